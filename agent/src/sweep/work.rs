//! A worker: takes one trial of a sweep after another, runs or resumes it as `agent run` would, and
//! leaves when nothing is left. Called by the command line.
//!
//! Any number of workers go through the trials, each in an order of its own. What keeps them apart
//! is each trial's lease; what keeps them within the budget is the ledger. A trial is run at least
//! once and has one result.

mod money;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::life::{Bounds, Life};
use super::trial::{EARLY_STOPPED, End, Hand, POISON, failures};
use super::watcher::{Watcher, Why};
use super::{Ledger, Place, Rungs, Spec, SweepError, Trial};
use crate::clock::{Clock, Moment};
use crate::error::{Error, ExitStatus};
use crate::job::{Holder, Job, JobError};
use crate::lease::{self, Look, Silence, Standing, Terms, Watch};
use crate::reaper::{Request, Signals};
use crate::run::{self, Local, Options};
use crate::storage::Storage;
use money::{Cashier, Grant};

/// Trials that fail here in a row, with none that ends well, before the fault is the machine's.
const FAILED_HERE_MAX: usize = 3;
/// Between two tries of a store that does not answer.
const RETRY_EVERY: Duration = Duration::from_secs(2);

/// Job, run directory and command line to a run's options.
type MakeOptions = dyn Fn(Job, PathBuf, Vec<String>) -> Result<Options, Error>;

/// What a worker is told.
pub struct Plan {
    pub store: Arc<dyn Storage>,
    pub place: Place,
    pub spec: Spec,
    /// Below this each trial has its run directory.
    pub runs: PathBuf,
    /// Words after the shared command: a program that takes the place of its first word, if the
    /// first is no flag, and flags of this machine.
    pub words: Vec<String>,
    /// What this machine costs; needed where the sweep has a budget.
    pub usd_per_hour: Option<f64>,
    /// Waits for what others hold to the end of the sweep.
    pub stay: bool,
    /// Order of the trials.
    pub seed: u64,
    /// How long this worker may be here, whatever is left.
    pub bounds: Bounds,
    /// How a run is supervised: from job, run directory and command.
    pub options: Box<MakeOptions>,
}

/// A trial that has no end yet, as far as this worker knows.
struct Open {
    trial: Trial,
    job: Job,
    watch: Watch,
    /// Epoch and tag of the last look at its holder.
    sign: Option<(u64, Option<String>)>,
    /// Its holder gave a sign of life since the last time that something was run here.
    alive: bool,
    /// Somebody took it away, or stopped it: not ours to take again.
    aside: bool,
}

/// What came of looking at a trial.
enum Turn {
    /// It has its end.
    Done,
    /// It was run here, for a while at least.
    Ran,
    /// Somebody has it.
    Held,
    Aside,
    /// There is no money for it now, or none for good.
    Short,
    Spent,
    /// This worker ends.
    Leave(ExitStatus),
}

struct Worker<'a> {
    plan: &'a Plan,
    clock: Arc<dyn Clock>,
    terms: Terms,
    holder: Holder,
    patience: Duration,
    cashier: Option<Cashier>,
    rungs: Option<Rungs>,
    finished: usize,
    failed: BTreeSet<String>,
    signals: Signals,
    life: Life,
    say: &'a mut dyn FnMut(&str),
}

/// Works on a sweep until nothing is left for this worker.
///
/// # Errors
/// If nothing could be begun, or the store refuses.
pub async fn work(plan: &Plan, say: &mut dyn FnMut(&str)) -> Result<ExitStatus, Error> {
    let mut open = Vec::new();
    for trial in &plan.spec.trials {
        let job = plan.place.trial(&trial.id).map_err(SweepError::from)?;
        open.push(Open {
            trial: trial.clone(),
            job,
            watch: Watch::default(),
            sign: None,
            alive: false,
            aside: false,
        });
    }
    fastrand::Rng::with_seed(plan.seed).shuffle(&mut open);
    let Some(first) = open.first() else {
        return Ok(ExitStatus::Completed);
    };
    // What all runs have in common.
    let common = (plan.options)(first.job.clone(), plan.runs.clone(), Vec::new())?;
    let mut holder = common.holder;
    // Whoever holds a lease or a reservation is known by this, also from a former worker here.
    holder.agent = format!("{}:{:08x}", holder.agent, fastrand::u32(..));
    let rungs = |halving| Rungs::new(&plan.store, &plan.place, halving);
    let mut worker = Worker {
        plan,
        clock: Arc::clone(&common.clock),
        terms: common.terms,
        patience: common.settings.store_patience,
        cashier: Cashier::new(plan, &common.clock, common.terms, &holder)?,
        rungs: plan.spec.halving.map(rungs),
        holder,
        finished: 0,
        failed: BTreeSet::new(),
        signals: Signals::listen().map_err(Error::machine("signals"))?,
        life: Life::new(&plan.bounds, &common.clock),
        say,
    };
    worker.rounds(open).await
}

impl Worker<'_> {
    async fn rounds(&mut self, mut open: Vec<Open>) -> Result<ExitStatus, Error> {
        let pause = (self.terms.ttl / 8).max(Duration::from_millis(100));
        while !open.is_empty() {
            let (mut ran, mut short, mut spent) = (false, false, false);
            let mut waits = self.plan.stay;
            let mut left = Vec::new();
            for mut one in open {
                if let Some(status) = self.must_leave(Duration::ZERO).await {
                    return Ok(status);
                }
                let turn = match one.aside {
                    true => Turn::Aside,
                    false => self.turn(&mut one).await?,
                };
                match turn {
                    Turn::Done => continue,
                    Turn::Leave(status) => return Ok(status),
                    Turn::Ran => ran = true,
                    Turn::Held => waits |= !one.alive,
                    Turn::Aside => one.aside = true,
                    Turn::Short => short = true,
                    Turn::Spent => spent = true,
                }
                left.push(one);
            }
            open = left;
            if ran {
                self.life.was_busy();
                // Holders that lived before may have died meanwhile.
                open.iter_mut().for_each(|one| one.alive = false);
                continue;
            }
            if open.iter().all(|one| one.aside) {
                break;
            }
            if !waits && !short {
                return Ok(self.leave(open.len(), spent));
            }
            if let Some(status) = self.must_leave(pause).await {
                return Ok(status);
            }
        }
        Ok(self.leave(open.len(), false))
    }

    fn leave(&mut self, left: usize, spent: bool) -> ExitStatus {
        if spent {
            self.tell(&format!("the budget is spent, {left} trials are left"));
            return ExitStatus::Limit;
        }
        let text = match left {
            0 => "every trial has its end".to_owned(),
            _ => format!("nothing is left for this worker; others have {left} trials"),
        };
        self.tell(&text);
        ExitStatus::Completed
    }

    fn tell(&mut self, text: &str) {
        (self.say)(&format!("agent: sweep: {text}"));
    }

    /// Why this worker must end now, whatever is left; or before the pause is over.
    async fn must_leave(&mut self, pause: Duration) -> Option<ExitStatus> {
        self.touch();
        if self.is_signalled(pause).await {
            return Some(ExitStatus::Resumable);
        }
        let timer = self.life.over()?;
        self.tell(timer.text());
        Some(ExitStatus::Limit)
    }

    /// Work goes on.
    fn touch(&mut self) {
        if let Some(fault) = self.life.touch() {
            self.tell(&fault);
        }
    }

    /// Whether somebody wants this worker to end, at once or before the pause is over.
    async fn is_signalled(&mut self, pause: Duration) -> bool {
        let asked = async { while !matches!(self.signals.next().await, Request::Stop(_)) {} };
        timeout(pause, asked).await.is_ok()
    }

    /// Does something for the store, again and again while it does not answer.
    async fn look(&mut self, job: &Job) -> Result<Look, Error> {
        let begun = self.clock.now();
        loop {
            self.touch();
            let store = &*self.plan.store;
            match lease::look(store, job, &self.terms).await {
                Ok(look) => return Ok(look),
                Err(error) if self.may_wait(&error, begun) => {
                    self.tell(&format!("{error}; trying again"));
                    tokio::time::sleep(RETRY_EVERY).await;
                }
                Err(error) => return Err(SweepError::from(error).into()),
            }
        }
    }

    fn may_wait(&self, error: &JobError, begun: Moment) -> bool {
        error.is_transient() && self.clock.now().since(begun) < self.patience
    }

    /// Looks at one trial, and takes it if it is free.
    async fn turn(&mut self, one: &mut Open) -> Result<Turn, Error> {
        let look = self.look(&one.job).await?;
        let Some(top) = &look.top else {
            return self.take(one, look).await;
        };
        match look.standing() {
            Standing::Done => return Ok(Turn::Done),
            Standing::Revoked => return Ok(Turn::Aside),
            Standing::Free | Standing::Released => return self.take(one, look).await,
            Standing::Held => {}
        }
        // A worker that was killed on this machine: nobody holds it any more.
        let run_dir = self.run_dir(one);
        if run_dir.is_dir()
            && let Some(local) = Local::open(&protocol::RunDir::new(run_dir), &self.holder.boot)?
            && local.made(&top.record.nonce)
        {
            drop(local);
            return self.take(one, look).await;
        }
        let sign = (top.record.epoch, top.beat.clone());
        one.alive |= one.sign.as_ref().is_some_and(|before| *before != sign);
        one.sign = Some(sign);
        if one.watch.see(&self.terms, top, self.clock.now()) != Silence::Expired {
            return Ok(Turn::Held);
        }
        let text = format!("{} was left by {}", one.trial.id, top.record.holder.agent);
        self.tell(&text);
        let freed = self.hand().set_free(&one.job, &look).await;
        match freed {
            Ok(true) => {
                let look = self.look(&one.job).await?;
                match look.standing() {
                    Standing::Released => self.take(one, look).await,
                    _ => Ok(Turn::Held),
                }
            }
            Ok(false) => Ok(Turn::Held),
            Err(error) => self.later(error),
        }
    }

    /// A store that fails now is asked again in the next round.
    fn later(&mut self, error: SweepError) -> Result<Turn, Error> {
        if error.is_transient() {
            self.tell(&format!("{error}; trying again"));
            return Ok(Turn::Held);
        }
        Err(error.into())
    }

    fn hand(&self) -> Hand<'_> {
        Hand {
            store: &*self.plan.store,
            clock: &*self.clock,
            terms: &self.terms,
            holder: &self.holder,
        }
    }

    fn run_dir(&self, one: &Open) -> PathBuf {
        self.plan.runs.join(&one.trial.id)
    }

    /// Runs a trial that nobody holds, unless it is to have its end without that.
    async fn take(&mut self, one: &mut Open, look: Look) -> Result<Turn, Error> {
        match self.verdict(one, &look).await {
            Ok(None) => {}
            Ok(Some(end)) => return self.conclude(one, &look, end).await,
            Err(error) => return self.later(error),
        }
        let epoch = look.epoch() + 1;
        let grant = match &mut self.cashier {
            None => Grant::Free,
            Some(cashier) => match cashier.grant(&one.trial.id, &one.job, epoch).await {
                Ok(grant) => grant,
                Err(error) => return self.later(error),
            },
        };
        let allowance = match grant {
            Grant::Free => None,
            Grant::For(allowance) => Some(allowance),
            Grant::Short => return Ok(Turn::Short),
            Grant::Spent => return Ok(Turn::Spent),
        };
        let begun = self.clock.now();
        self.tell(&format!("takes {}, epoch {epoch}", one.trial.id));
        let settings = one.trial.settings.iter();
        let settings = settings.map(|(key, value)| format!("--{key}={}", value.word()));
        let command = command(&self.plan.spec.command, &self.plan.words, settings);
        let options = (self.plan.options)(one.job.clone(), self.run_dir(one), command);
        let mut options = options?;
        options.holder = self.holder.clone();
        options.first_epoch = Some(epoch);
        let (end, over) = oneshot::channel();
        let watcher = Watcher::new(
            &self.plan.store,
            &self.clock,
            (&one.job, &one.trial.id),
            &options.run_dir,
            allowance,
            self.terms.ttl,
            self.rungs.take(),
        );
        let watcher = tokio::spawn(watcher.watch(over));
        let lent = self.life.lend();
        let status = run::run(options).await;
        drop(lent);
        self.touch();
        end.send(()).ok();
        let watcher = watcher
            .await
            .map_err(|error| Error::Bad(error.to_string()))?;
        self.rungs = watcher.rungs;
        if let Some(cashier) = &mut self.cashier
            && let Err(error) = cashier.settle(&one.trial.id, begun).await
        {
            self.tell(&format!("{error}; the money is booked later"));
        }
        self.ended(one, status?, watcher.why).await
    }

    /// Whether a trial ends here and now, by what happened to it before.
    async fn verdict(&self, one: &Open, look: &Look) -> Result<Option<End>, SweepError> {
        if look.top.is_none() {
            return Ok(None);
        }
        if let Some(rungs) = &self.rungs
            && rungs.is_stopped(&one.trial.id).await?
        {
            return Ok(Some(EARLY_STOPPED));
        }
        let failures = failures(&*self.plan.store, &one.job).await?;
        Ok((failures >= self.plan.spec.attempts_max).then_some(POISON))
    }

    async fn conclude(&mut self, one: &Open, look: &Look, end: End) -> Result<Turn, Error> {
        match self.hand().conclude(&one.job, look, end).await {
            Ok(true) => {
                self.tell(&format!("{} has its end: {}", one.trial.id, end.reason));
                // Seen as done by the next look, or tried again.
                Ok(Turn::Ran)
            }
            Ok(false) => Ok(Turn::Held),
            Err(error) => self.later(error),
        }
    }

    /// What the end of a run means for the trial and for this worker.
    async fn ended(
        &mut self,
        one: &mut Open,
        status: ExitStatus,
        why: Option<Why>,
    ) -> Result<Turn, Error> {
        let id = one.trial.id.clone();
        match status {
            ExitStatus::Completed => {
                self.finished += 1;
                // Everything of it is verified in the store; a sweep must not fill the disk.
                let run_dir = protocol::RunDir::new(self.run_dir(one));
                std::fs::remove_dir_all(run_dir.checkpoints()).ok();
                Ok(Turn::Done)
            }
            ExitStatus::NotOurs => Ok(Turn::Ran),
            ExitStatus::Resumable if self.is_signalled(Duration::ZERO).await => {
                Ok(Turn::Leave(status))
            }
            ExitStatus::Resumable if why == Some(Why::Halved) => {
                self.finished += 1;
                let look = self.look(&one.job).await?;
                match look.standing() {
                    Standing::Released => self.conclude(one, &look, EARLY_STOPPED).await,
                    _ => Ok(Turn::Ran),
                }
            }
            ExitStatus::Resumable if why == Some(Why::Money) => Ok(Turn::Ran),
            ExitStatus::Resumable => Ok(Turn::Aside),
            ExitStatus::Failed | ExitStatus::Retryable => {
                self.failed.insert(id.clone());
                let (failed, finished) = (self.failed.len(), self.finished);
                let done = self.look(&one.job).await?.standing() == Standing::Done;
                if finished == 0 && failed >= FAILED_HERE_MAX {
                    self.tell(&format!("{failed} trials failed here and none ended well"));
                    return Ok(Turn::Leave(status));
                }
                Ok(if done { Turn::Done } else { Turn::Ran })
            }
            other => Ok(Turn::Leave(other)),
        }
    }
}

/// The shared command, this machine's words, the trial's settings; of flags the last wins.
fn command(
    shared: &[String],
    words: &[String],
    settings: impl Iterator<Item = String>,
) -> Vec<String> {
    let mut command = shared.to_vec();
    let mut words = words.iter().peekable();
    if let Some(program) = words.next_if(|word| !word.starts_with('-')) {
        command[0].clone_from(program);
    }
    command.extend(words.cloned());
    command.extend(settings);
    command
}
