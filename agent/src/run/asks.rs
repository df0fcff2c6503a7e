//! What the loop asks of the store, each as a task that is answered by one message, and how the
//! answers are understood.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::controls::{last_key, read_controls};
use super::drills;
use super::output::{last_attempt, ship};
use super::power::spent_until_now;
use super::{Executor, Message, PREFIX, checkpoint_fault, fault, job_fault, new_nonce};
use crate::checkpoints::{self, Finding, Source};
use crate::clock::Moment;
use crate::job::{
    BeatRecord, CommitId, FinalRecord, Job, JobError, LeaseReason, StatusEnvelope, VERSION,
};
use crate::lease::{self, Claimant, Look, Standing, Terms};
use crate::state::{Beat, Claim, Event, Fault, LeaseMode, Level, Reason, Restored, Sight, Verdict};
use crate::status::{self, Extra, LOG_LINES};
use crate::storage::retry::{Policy, Retry};
use crate::storage::{Storage, StorageError, probe};

/// One small request that is not about the lease.
pub(super) const REQUEST_MAX: Duration = Duration::from_secs(10);
/// The end and the release are tried for so long before the supervisor hears of it.
const RECORD_MAX: Duration = Duration::from_secs(10);
/// Bringing what there is of the output to the store.
const LOGS_MAX: Duration = Duration::from_secs(25);
/// What is swept is a day old; how much later does not matter.
const SWEEP_EVERY: Duration = Duration::from_secs(6 * 3600);

/// The time for people, RFC 3339.
pub(super) fn wall_time() -> String {
    drills::wall_clock()
        .strftime("%Y-%m-%dT%H:%M:%SZ")
        .to_string()
}

impl Executor {
    /// What happened, by what a task has to say.
    pub(crate) fn understand(&mut self, message: Message) -> Vec<Event> {
        let event = match message {
            Message::Event(event) => event,
            Message::ChildExited(exit) => return self.child_exited(exit),
            Message::Looked { asked, look } => {
                let sight = match look {
                    Ok(look) => {
                        let sight = self.sight(&look);
                        self.look = Some(look);
                        Ok(sight)
                    }
                    Err(error) => Err(job_fault(&error)),
                };
                Event::Looked { asked, sight }
            }
            Message::Claimed {
                asked,
                claim,
                attempts,
                control,
                spent: (total_usd, own_usd),
            } => {
                self.attempt = self.attempt.max(attempts);
                self.control = self.control.take().max(control);
                let claim = self.claimed(asked, claim);
                let spent = Event::Spent { total_usd, own_usd };
                let ours = matches!(claim, Ok(Claim::Ours { .. }));
                let news = [ours.then_some(spent), Some(Event::Claimed { asked, claim })];
                return news.into_iter().flatten().collect();
            }
            Message::Restored(result) => {
                self.restoring = None;
                Event::Restored(self.restored(result))
            }
            Message::Published {
                epoch,
                step,
                took,
                result,
            } => {
                self.publishing = None;
                self.published((epoch, step), took, result)
            }
            Message::Controls(commands, last) => {
                self.control = Some(last);
                let commands = commands.into_iter();
                return commands
                    .map(|(id, command)| Event::Control { id, command })
                    .collect();
            }
        };
        vec![event]
    }

    /// Whether the store keeps the promises that a lease rests on.
    pub(super) fn probe(&mut self) {
        let options = Arc::clone(&self.options);
        let logs = Arc::clone(&self.logs);
        let limit = options.settings.store_patience;
        let work = async move {
            let probing = probe::probe(&options.store, fastrand::u64(..), |_| {});
            let verdict = match timeout(limit, probing).await {
                Ok(Ok(found)) => {
                    if let Some(warning) = found.warning() {
                        logs.note(&format!("{PREFIX}warning: {warning}"));
                    }
                    Ok(match found.objection() {
                        None => Verdict::Sound,
                        Some(why) => Verdict::NoLeases(why),
                    })
                }
                Ok(Err(error)) => Err(fault(error.is_transient(), &error)),
                Err(_) => Err(fault(true, &"the store does not answer")),
            };
            Message::Event(Event::Probed(verdict))
        };
        self.spawn(work, None);
    }

    pub(super) fn look(&mut self) {
        let options = Arc::clone(&self.options);
        let asked = self.options.clock.now();
        let work = async move {
            let look = lease::look(&*options.store, &options.job, &options.terms).await;
            Message::Looked { asked, look }
        };
        self.spawn(work, None);
    }

    fn sight(&self, look: &Look) -> Sight {
        let epoch = look.epoch();
        let Some(top) = &look.top else {
            return Sight::Free { epoch };
        };
        match look.standing() {
            Standing::Free | Standing::Released => Sight::Free { epoch },
            Standing::Revoked => Sight::Revoked { epoch },
            Standing::Done => {
                let end = top.end.as_ref();
                let text = end.map(|end| format!("{}: {}", end.status, end.reason));
                Sight::Done {
                    epoch,
                    status: text.unwrap_or_default(),
                }
            }
            Standing::Held => Sight::Held {
                epoch,
                tag: top.beat.clone().unwrap_or_default(),
                patience: self
                    .options
                    .terms
                    .patience(Duration::from_millis(top.record.ttl_ms)),
                holder: top.record.holder.agent.clone(),
                dead: self.local.made(&top.record.nonce),
            },
        }
    }

    pub(super) fn claim(&mut self, after: u64) {
        let asked = self.options.clock.now();
        let look = self.look.clone().filter(|look| look.epoch() == after);
        // A new nonce for each try: what became of an earlier one is seen by the next look.
        let nonce = new_nonce();
        let (Some(look), Ok(())) = (look, self.local.note(&nonce)) else {
            let fault = fault(true, &"the run directory cannot be written");
            return self.answer_claim(asked, Err(fault));
        };
        let dead = look
            .top
            .as_ref()
            .is_some_and(|top| self.local.made(&top.record.nonce));
        let reason = match look.standing() {
            Standing::Free => LeaseReason::First,
            Standing::Released | Standing::Done | Standing::Revoked => LeaseReason::Released,
            Standing::Held if dead => LeaseReason::Restarted,
            Standing::Held if self.options.settings.lease == LeaseMode::Off => {
                LeaseReason::Unleased
            }
            Standing::Held => LeaseReason::Expired,
        };
        if self.comes_late(&look) {
            return self.answer_claim(asked, Ok(Claim::Taken));
        }
        let before = look.top.as_ref().map_or(0, |top| top.record.attempt);
        let (own, told) = (self.attempt, self.told_usd);
        let options = Arc::clone(&self.options);
        let price = self.state.meter.price().cloned();
        let work = async move {
            let (job, terms) = (&options.job, &options.terms);
            let found = bounded(last_attempt(&*options.store, job)).await;
            let control = bounded(last_key(&*options.store, &job.controls())).await;
            let spent = spent_until_now(&options, look.top.as_ref(), asked, price.as_ref()).await;
            let (Ok(found), Ok(control), Ok(spent)) = (found, control, spent) else {
                let claim = Err(fault(true, &"the store does not answer"));
                return Message::Event(Event::Claimed { asked, claim });
            };
            // A process before us on this machine counted it as we do.
            let own_usd = if dead { spent.1 } else { told };
            let attempts = found.max(before).max(own);
            let claimant = Claimant {
                nonce,
                holder: options.holder.clone(),
                attempt: attempts + 1,
                reason,
            };
            let limit = terms.ttl.mul_f64(0.3);
            let claim = lease::claim(
                &*options.store,
                &*options.clock,
                job,
                terms,
                &look,
                &claimant,
                limit,
            );
            Message::Claimed {
                asked,
                claim: claim.await,
                attempts,
                control,
                spent: (spent.0, own_usd),
            }
        };
        self.spawn(work, None);
    }

    fn answer_claim(&self, asked: Moment, claim: Result<Claim, Fault>) {
        let answer = Message::Event(Event::Claimed { asked, claim });
        // Nobody listens any more only when the agent ends.
        self.tell.send(answer).ok();
    }

    /// Only a lease whose creation is dated by our own request counts; see `supervisor::lease`.
    fn claimed(
        &mut self,
        asked: Moment,
        claim: Result<lease::Claim, JobError>,
    ) -> Result<Claim, Fault> {
        let terms = &self.options.terms;
        match claim {
            Ok(lease::Claim::Won(lease)) => {
                let sent = lease.valid_until - terms.validity();
                if sent.since(asked) > terms.ttl / 3 || sent < asked {
                    return Err(fault(true, &"the claim took too long"));
                }
                let epoch = lease.epoch();
                let base = lease.base();
                self.parent = base;
                self.beats = 0;
                // From here on our lines go to the store, under a number that nobody else has.
                if self.child.is_none() {
                    self.logs.begin(self.attempt + 1);
                }
                self.lease = Some(lease.record);
                Ok(Claim::Ours {
                    epoch,
                    base: base.map(|base| base.step),
                })
            }
            // One that we gave up has arrived after all: the next look takes it for a dead one's.
            Ok(lease::Claim::Lost(record)) if self.local.made(&record.nonce) => {
                Err(fault(true, &"an earlier claim of ours came first"))
            }
            Ok(lease::Claim::Lost(_) | lease::Claim::Alive) => Ok(Claim::Taken),
            Err(error) => Err(job_fault(&error)),
        }
    }

    pub(super) fn beat(&mut self) {
        let asked = self.options.clock.now();
        self.beats += 1;
        let meter = &self.state.meter;
        self.told_usd = meter.own(asked);
        let record = BeatRecord {
            version: VERSION,
            epoch: self.state.epoch().unwrap_or(0),
            seq: self.beats,
            nonce: self
                .lease
                .as_ref()
                .map_or_else(new_nonce, |lease| lease.nonce.clone()),
            step: self.state.progress.step.unwrap_or(0),
            spent_usd: meter.total(asked),
            machine_usd: self.told_usd,
        };
        let options = Arc::clone(&self.options);
        let (tell, after) = (self.tell.clone(), self.control.clone());
        let work = async move {
            let (store, job) = (&*options.store, &options.job);
            let beat = lease::beat(store, &*options.clock, job, &options.terms, &record).await;
            if matches!(beat, Ok(lease::Beat::Held { .. }))
                && let Ok(Some((commands, last))) =
                    bounded(read_controls(store, job, after.as_deref())).await
            {
                tell.send(Message::Controls(commands, last)).ok();
            }
            let beat = match beat {
                Ok(lease::Beat::Held { .. }) => Ok(Beat::Held),
                Ok(lease::Beat::Lost(record)) => {
                    let revoked = record.as_ref().is_some_and(|record| record.is_revoked());
                    let holder = record.map_or("another agent".to_owned(), |r| r.holder.agent);
                    Ok(Beat::Superseded { holder, revoked })
                }
                Err(error) => Err(job_fault(&error)),
            };
            let epoch = record.epoch;
            Message::Event(Event::BeatAnswered { epoch, asked, beat })
        };
        self.spawn(work, None);
    }

    pub(super) fn restore(&mut self) {
        let options = Arc::clone(&self.options);
        let epoch = self.state.epoch().unwrap_or(0);
        let work = async move {
            let (store, job) = (&options.store, &options.job);
            let restored =
                checkpoints::restore(store, job, epoch, &options.run_dir, &options.transfer);
            Message::Restored(restored.await)
        };
        let cancelled = Message::Event(Event::Restored(Err(fault(true, &"cancelled"))));
        self.restoring = Some(self.spawn(work, Some(cancelled)));
    }

    fn restored(
        &mut self,
        result: Result<checkpoints::Restored, checkpoints::CheckpointError>,
    ) -> Result<Restored, Fault> {
        let restored = result.map_err(|error| checkpoint_fault(&error))?;
        self.parent = restored.parent;
        self.resumed_from = restored.parent;
        let bad = restored.findings.iter().map(|finding| match finding {
            Finding::Bad { commit, detail } => format!("commit {commit}: {detail}"),
            Finding::SetAside { step, detail } => {
                format!("local step {step}, put aside: {detail}")
            }
        });
        let bad = bad.collect();
        let step = match restored.source {
            Source::Fresh => None,
            Source::Local { step } => Some(step),
            Source::Store { commit, bytes } => {
                let mib = bytes as f64 / f64::from(1 << 20);
                self.say(
                    Level::Info,
                    &format!("fetched commit {commit}: {mib:.1} MiB"),
                );
                Some(commit.step)
            }
        };
        Ok(Restored {
            step,
            published: restored.parent.map(|commit: CommitId| commit.step),
            bad,
        })
    }

    /// Removes what the policy does not keep and, now and then, what was never finished.
    pub(super) fn prune(&mut self, now: Moment) {
        let options = Arc::clone(&self.options);
        let (permit, in_flight) = (Arc::clone(&self.permit), Arc::clone(&self.in_flight));
        let epoch = self.state.epoch().unwrap_or(0);
        let resumed_from = self.resumed_from;
        let policy = checkpoints::Policy {
            settled: self.state.checkpoints.settled,
            ..self.options.policy
        };
        let sweep = self.swept.is_none_or(|at| now.since(at) >= SWEEP_EVERY);
        if sweep {
            self.swept = Some(now);
        }
        let work = async move {
            let (store, job, transfer) = (&options.store, &options.job, &options.transfer);
            let allows = move || permit.allows();
            let policy = &policy;
            let mut result =
                checkpoints::prune(store, job, epoch, resumed_from, policy, transfer, &allows)
                    .await
                    .map(drop);
            if sweep && result.is_ok() {
                // One that begins after this is too young to be swept.
                let nonce = in_flight.get();
                let swept =
                    checkpoints::sweep(store, job, epoch, nonce.as_ref(), transfer, &allows);
                result = swept.await.map(drop);
            }
            let result = result.map_err(|error| checkpoint_fault(&error));
            Message::Event(Event::Pruned(result))
        };
        self.spawn(work, None);
    }

    pub(super) fn write_status(&mut self, now: Moment) {
        self.rev += 1;
        let lines = self.logs.tail(LOG_LINES);
        let extra = Extra {
            job: self.options.job.id(),
            rev: self.rev,
            attempt: self.attempt,
            started_at: &self.started_at,
            written_at: &wall_time(),
            lines: &lines,
            holder: &self.options.holder.agent,
            more: &self.more,
        };
        let mut status = status::build(&self.state, &extra, now);
        status::redact(&mut status, &self.options.redactor);
        let envelope = StatusEnvelope {
            version: VERSION,
            epoch: self.state.epoch().unwrap_or(0),
            status,
        };
        let text = serde_json::to_string(&envelope).expect("a status holds only JSON");
        let options = Arc::clone(&self.options);
        let work = async move {
            let key = options.job.status();
            let written = bounded(options.store.put(&key, text.into())).await;
            Message::Event(Event::StatusWritten(written.map(drop)))
        };
        self.spawn(work, None);
    }

    pub(super) fn write_logs(&mut self, last: bool) {
        let options = Arc::clone(&self.options);
        let logs = Arc::clone(&self.logs);
        let work = async move {
            let policy = Policy::until(LOGS_MAX);
            let store = Retry::new(Arc::clone(&options.store), policy, fastrand::u64(..));
            let shipped = ship(&store, &options.job, &logs, last);
            let result = match timeout(LOGS_MAX, shipped).await {
                Ok(result) => result.map_err(|error| fault(error.is_transient(), &error)),
                Err(_) => Err(fault(true, &"the store is slow to take the output")),
            };
            Message::Event(Event::LogsWritten(result))
        };
        self.spawn(work, None);
    }

    pub(super) fn write_final(&mut self, reason: &Reason) {
        let Some(lease) = self.lease.clone() else {
            return;
        };
        let completed = *reason == Reason::Completed;
        let end = FinalRecord {
            version: VERSION,
            epoch: lease.epoch,
            nonce: lease.nonce,
            status: if completed { "completed" } else { "failed" }.to_owned(),
            reason: reason.code().to_owned(),
            exit: i32::from(reason.exit_status().code()),
            cost_usd: self.cost_usd(),
            commit: self.parent,
        };
        let (options, permit) = (Arc::clone(&self.options), Arc::clone(&self.permit));
        let work = async move {
            let result = if permit.allows() {
                record_end(&*options.store, &options.job, &options.terms, &end).await
            } else {
                Err(fault(true, &"no valid lease: the end is not written"))
            };
            Message::Event(Event::FinalWritten(result))
        };
        self.spawn(work, None);
    }

    pub(super) fn release(&mut self) {
        let Some(lease) = self.lease.clone() else {
            return;
        };
        let reason = match &self.state.ending {
            Some(ending) => ending.reason.code(),
            None => "released",
        };
        let options = Arc::clone(&self.options);
        let work = async move {
            let (store, job) = (&*options.store, &options.job);
            let released = lease::release(store, job, &options.terms, &lease, reason, RECORD_MAX);
            let result = released.await.map_err(|error| job_fault(&error));
            Message::Event(Event::Released(result))
        };
        self.spawn(work, None);
    }
}

/// A small request, with its time limit.
async fn bounded<T>(request: impl Future<Output = Result<T, StorageError>>) -> Result<T, Fault> {
    match timeout(REQUEST_MAX, request).await {
        Ok(result) => result.map_err(|error| fault(error.is_transient(), &error)),
        Err(_) => Err(fault(true, &"the store does not answer")),
    }
}

/// The end, and that no later lease had made it void by then.
async fn record_end(
    store: &dyn Storage,
    job: &Job,
    terms: &Terms,
    end: &FinalRecord,
) -> Result<(), Fault> {
    let finished = lease::finish(store, job, terms, end, RECORD_MAX).await;
    finished.map_err(|error| job_fault(&error))?;
    let look = lease::look(store, job, terms).await;
    let look = look.map_err(|error| job_fault(&error))?;
    if look.epoch() == end.epoch {
        Ok(())
    } else {
        Err(fault(
            true,
            &"the lease was taken while the end was written",
        ))
    }
}
