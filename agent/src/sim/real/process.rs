//! One process of the agent: the real supervisor and the real executor, in a loop whose trainer is
//! made up. The trainer's checkpoints are real files in a real run directory.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use protocol::RunDir;
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until};

use super::plan::{Bug, Plan};
use super::truth::Truth;
use crate::checkpoints::kit::save;
use crate::clock::{Clock, Moment};
use crate::error::ExitStatus;
use crate::run::{Executor, Message, newest_whole};
use crate::sim::world::{made, started};
use crate::state::{
    Action, Beat, Event, Exit, Fault, Published, Reason, Sight, Signal, Stage, Verdict,
};
use crate::storage::Storage;
use crate::supervisor::step;

const TICK: Duration = Duration::from_millis(200);
/// A trainer's steps are told in portions of this length.
const PORTION_MS: u64 = 500;
const KEPT_ON_DISK: usize = 3;
/// How long a commit is permitted by a supervisor that permits for ever.
const EVER: Duration = Duration::from_secs(1_000_000);

/// A machine's boot clock: it began some time ago and runs a little fast or slow.
pub(super) struct Skewed {
    pub(super) began: Instant,
    pub(super) offset: Duration,
    pub(super) rate: f64,
}

impl Clock for Skewed {
    fn now(&self) -> Moment {
        Moment::since_boot(self.offset + self.began.elapsed().mul_f64(self.rate))
    }
}

/// What the world does to a process.
#[derive(Clone, Debug)]
pub(super) enum Order {
    Notice(Duration),
    /// The trainer ends.
    End {
        code: Option<i32>,
        signal: Option<i32>,
    },
    /// The trainer does nothing any more, or does not hear signals.
    Hang,
    Deafen,
}

/// Where a process lives.
pub(super) struct Place {
    pub(super) who: usize,
    pub(super) plan: Plan,
    pub(super) truth: Arc<Truth>,
    pub(super) store: Arc<dyn Storage>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) run_dir: RunDir,
}

/// A trainer's own doings.
#[derive(Clone, Copy, Debug)]
enum Life {
    Begin,
    Advance,
    Save { step: u64, exit: Option<i32> },
}

#[derive(Default)]
struct Trainer {
    step: u64,
    started: bool,
    hung: bool,
    deaf: bool,
    ending: bool,
    /// What it does when; the number keeps two of one moment in order.
    agenda: BTreeMap<(Instant, u64), Life>,
    count: u64,
}

impl Trainer {
    fn plan(&mut self, at: Instant, life: Life) {
        self.count += 1;
        self.agenda.insert((at, self.count), life);
    }
}

pub(super) struct Process {
    place: Place,
    executor: Executor,
    tell: mpsc::UnboundedSender<Message>,
    messages: mpsc::UnboundedReceiver<Message>,
    orders: mpsc::UnboundedReceiver<Order>,
    random: fastrand::Rng,
    trainer: Option<Trainer>,
    segments: u32,
}

/// What wakes a process.
enum Woken {
    Message(Box<Message>),
    Order(Order),
    Trainer,
    Tick,
}

impl Process {
    pub(super) fn new(
        place: Place,
        make: impl FnOnce(mpsc::UnboundedSender<Message>) -> Executor,
        orders: mpsc::UnboundedReceiver<Order>,
        seed: u64,
    ) -> Self {
        let (tell, messages) = mpsc::unbounded_channel();
        Self {
            executor: make(tell.clone()),
            place,
            tell,
            messages,
            orders,
            random: fastrand::Rng::with_seed(seed),
            trainer: None,
            segments: 0,
        }
    }

    /// Runs until the supervisor wants to exit.
    pub(super) async fn live(mut self) -> ExitStatus {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let woken = self.wake(&mut ticks).await;
            self.place.truth.awake(self.place.who).await;
            match woken {
                Woken::Message(message) => {
                    for event in self.executor.understand(*message) {
                        self.happen(event).await;
                    }
                }
                Woken::Order(order) => self.obey(order).await,
                Woken::Trainer => self.live_trainer().await,
                Woken::Tick => {
                    if self.trainer.is_some() {
                        for event in self.executor.find_checkpoints() {
                            self.happen(event).await;
                        }
                    }
                    self.happen(Event::Tick).await;
                }
            }
            if let Some(status) = self.executor.state.exited {
                self.exits(status).await;
                return status;
            }
        }
    }

    async fn wake(&mut self, ticks: &mut Interval) -> Woken {
        let agenda = self.trainer.as_ref().filter(|trainer| !trainer.hung);
        let due = agenda.and_then(|trainer| trainer.agenda.keys().next().map(|(at, _)| *at));
        tokio::select! {
            biased;
            Some(message) = self.messages.recv() => Woken::Message(Box::new(message)),
            Some(order) = self.orders.recv() => Woken::Order(order),
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => Woken::Trainer,
            _ = ticks.tick() => Woken::Tick,
        }
    }

    /// Gives the supervisor an event and does what it says.
    async fn happen(&mut self, event: Event) {
        let now = self.place.clock.now();
        let event = self.mistake(event, now);
        let (who, truth) = (self.place.who, Arc::clone(&self.place.truth));
        let told = truth.aloud.then(|| format!("{event:?}"));
        let actions = step(&mut self.executor.state, event, now);
        if let Some(told) = told.filter(|told| told != "Tick" || !actions.is_empty()) {
            truth.note(|| format!("agent {who}: {told} -> {actions:?}"));
        }
        let state = &self.executor.state;
        let leaves = state.ending.as_ref();
        let leaves = leaves.is_some_and(|ending| ending.stage >= Stage::Releasing);
        let held = state.epoch().zip(state.valid_until());
        truth.face(who, |face| {
            face.held = held.filter(|_| !leaves);
            face.resumed_from = self.executor.resumed_from;
        });
        truth.check_holders();
        for action in actions {
            self.carry_out(action, now).await;
        }
    }

    async fn carry_out(&mut self, action: Action, now: Moment) {
        let bug = self.place.plan.bug;
        match action {
            Action::Probe => {
                let verdict = Event::Probed(Ok(Verdict::Sound));
                self.tell.send(Message::Event(verdict)).ok();
            }
            Action::Start { .. } => self.start().await,
            Action::Signal(signal) => self.signal(signal).await,
            Action::KillGroup => self.end_trainer(None, Some(9)),
            Action::WriteLogs { .. } => self.write_logs(),
            Action::Say(..) => {}
            Action::CommitUntil(until) if bug == Some(Bug::EndlessPermit) => {
                let until = until.map(|until| until + EVER);
                if until.is_some() {
                    self.executor.carry_out(Action::CommitUntil(until), now);
                }
            }
            Action::CancelPublish if bug == Some(Bug::EndlessPermit) => {}
            Action::Prune if bug == Some(Bug::ForgetsResumed) => {
                let resumed_from = self.executor.resumed_from.take();
                self.executor.carry_out(Action::Prune, now);
                self.executor.resumed_from = resumed_from;
            }
            other => self.executor.carry_out(other, now),
        }
    }

    /// The event as an agent with a mistake understands it.
    fn mistake(&self, event: Event, now: Moment) -> Event {
        match (self.place.plan.bug, event) {
            (Some(Bug::HastyWatcher), Event::Looked { asked, sight }) => {
                let sight = sight.map(|sight| match sight {
                    Sight::Held {
                        epoch,
                        tag,
                        patience,
                        holder,
                        dead,
                    } => Sight::Held {
                        epoch,
                        tag,
                        patience: patience / 4,
                        holder,
                        dead,
                    },
                    other => other,
                });
                Event::Looked { asked, sight }
            }
            (Some(Bug::DatesByAnswer), Event::BeatAnswered { epoch, beat, .. }) => {
                let asked = now;
                Event::BeatAnswered { epoch, asked, beat }
            }
            (Some(Bug::DeafToLoss), Event::BeatAnswered { epoch, asked, beat }) => {
                let beat = beat.map(|_| Beat::Held);
                Event::BeatAnswered { epoch, asked, beat }
            }
            (Some(Bug::LiesOfPublishing), Event::PublishEnded { epoch, step, .. }) => {
                let result = Ok(Published {
                    bytes: 1,
                    took: Duration::from_secs(1),
                });
                Event::PublishEnded {
                    epoch,
                    step,
                    result,
                }
            }
            (_, event) => event,
        }
    }

    async fn obey(&mut self, order: Order) {
        match (order, &mut self.trainer) {
            (Order::Notice(grace), _) => {
                let source = "SIGTERM".to_owned();
                self.happen(Event::Notice { source, grace }).await;
            }
            (Order::End { code, signal }, Some(_)) => self.end_trainer(code, signal),
            (Order::Hang, Some(trainer)) => trainer.hung = true,
            (Order::Deafen, Some(trainer)) => trainer.deaf = true,
            (_, None) => {}
        }
    }

    /// Starts the trainer, which takes the newest checkpoint that it finds.
    async fn start(&mut self) {
        let Place { who, truth, .. } = &self.place;
        let who = *who;
        let local = newest_whole(&self.place.run_dir);
        if truth.holds_top(who).await {
            let newest = truth.newest_good().await.map(|commit| commit.step);
            truth.require(local >= newest, || {
                format!("agent {who} starts at step {local:?}, the store has {newest:?}")
            });
        }
        truth.note(|| format!("agent {who}: the trainer starts at {local:?}"));
        let mut trainer = Trainer {
            step: local.unwrap_or(0),
            ..Trainer::default()
        };
        let wait = Duration::from_millis(self.random.u64(100..2_000));
        trainer.plan(Instant::now() + wait, Life::Begin);
        self.trainer = Some(trainer);
        self.tell.send(Message::Event(Event::Started(Ok(1)))).ok();
    }

    async fn signal(&mut self, signal: Signal) {
        let save_time = Duration::from_millis(self.place.plan.save_ms);
        let Some(trainer) = &mut self.trainer else {
            return;
        };
        if !trainer.started {
            return self.end_trainer(None, Some(15));
        }
        if trainer.deaf || trainer.hung || trainer.ending {
            return;
        }
        trainer.ending = signal == Signal::Terminate;
        let save = Life::Save {
            step: trainer.step,
            exit: trainer.ending.then_some(75),
        };
        trainer.plan(Instant::now() + save_time, save);
    }

    /// What the trainer does next. It goes on while its agent is stopped, and is heard later.
    async fn live_trainer(&mut self) {
        let plan = self.place.plan.clone();
        let save_time = Duration::from_millis(plan.save_ms);
        let portion = Duration::from_millis(PORTION_MS);
        let Some(trainer) = &mut self.trainer else {
            return;
        };
        let Some(((now, _), life)) = trainer.agenda.pop_first() else {
            return;
        };
        match life {
            Life::Begin => {
                trainer.started = true;
                trainer.plan(now, Life::Advance);
                let record = started(plan.total, trainer.step);
                self.happen(Event::Record(record)).await;
            }
            Life::Advance if trainer.ending => {}
            Life::Advance => {
                let before = trainer.step;
                let step = (before + PORTION_MS.div_ceil(plan.step_ms)).min(plan.total);
                trainer.step = step;
                trainer.ending = step == plan.total;
                let exit = trainer.ending.then_some(0);
                if exit.is_some() || before / plan.checkpoint_every < step / plan.checkpoint_every {
                    trainer.plan(now + save_time, Life::Save { step, exit });
                }
                trainer.plan(now + portion, Life::Advance);
                self.happen(Event::Record(made(step.max(1)))).await;
            }
            Life::Save { step, exit } => {
                self.save(step);
                if let Some(code) = exit {
                    self.end_trainer(Some(code), None);
                }
            }
        }
    }

    /// A checkpoint, as a trainer leaves it: the same bytes whoever makes it.
    fn save(&self, step: u64) {
        let run_dir = &self.place.run_dir;
        // Validation losses fall, with some noise.
        let val_loss = 1.0 / (step as f64 + 1.0) + 0.01 * ((step * 7) % 5) as f64;
        save(run_dir, step, 0, Some(val_loss));
        let entries = fs::read_dir(run_dir.checkpoints()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut steps: Vec<u64> = names
            .filter_map(|name| RunDir::checkpoint_step(&name))
            .collect();
        steps.sort_unstable();
        let old = steps.len().saturating_sub(KEPT_ON_DISK);
        for step in steps.drain(..old) {
            fs::remove_dir_all(run_dir.checkpoint(step)).unwrap();
        }
        let (who, truth) = (self.place.who, &self.place.truth);
        truth.note(|| format!("agent {who}: the trainer has saved step {step}"));
    }

    fn end_trainer(&mut self, code: Option<i32>, signal: Option<i32>) {
        if self.trainer.take().is_none() {
            return;
        }
        for event in self.executor.find_checkpoints() {
            self.tell.send(Message::Event(event)).ok();
        }
        let exit = Exit {
            code,
            signal,
            out_of_memory: false,
            local: newest_whole(&self.place.run_dir),
        };
        self.tell.send(Message::Event(Event::Exited(exit))).ok();
    }

    /// A segment of output; how they are made is tried elsewhere.
    fn write_logs(&mut self) {
        self.segments += 1;
        let name = format!("logs/a{:04}/seg-{:08}", self.place.who, self.segments);
        let key = self.place.truth.job.key(&format!("{name}.ndjson.zst"));
        let (store, tell) = (Arc::clone(&self.place.store), self.tell.clone());
        tokio::spawn(async move {
            let created = store.create(&key, "output".into()).await;
            let result = created.map(drop).map_err(|error| Fault {
                transient: error.is_transient(),
                text: error.to_string(),
            });
            tell.send(Message::Event(Event::LogsWritten(result))).ok();
        });
    }

    async fn exits(&self, status: ExitStatus) {
        let (who, truth) = (self.place.who, &self.place.truth);
        truth.note(|| format!("agent {who} exits: {status}"));
        truth.require(self.trainer.is_none(), || {
            format!("agent {who} leaves its trainer behind")
        });
        truth.require(status != ExitStatus::Bug, || {
            format!("agent {who} broke down")
        });
        let ended = truth.survey().await.ended.is_some();
        truth.require(status != ExitStatus::Completed || ended, || {
            format!("agent {who} says completed, the store does not")
        });
        let reason = self.executor.state.ending.as_ref().map(|it| &it.reason);
        let elsewhere = matches!(
            reason,
            Some(Reason::LeaseLost { .. } | Reason::HeldElsewhere { .. })
        );
        let ours = truth.holds_top(who).await;
        truth.require(!elsewhere || !ours, || {
            format!("agent {who} leaves for {reason:?}, and the newest lease is its own")
        });
    }
}
