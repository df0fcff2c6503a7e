//! The loop: hears what happens, asks the supervisor, carries out what it wants. Called by the
//! command line.
//!
//! Everything that takes time is a task of its own that ends in one message; a task that breaks
//! down is a message as well. The loop itself never waits for the store.

mod controls;
mod drills;
mod output;
mod asks;
mod local;
mod quiet;
mod power;
mod publish;
mod show;
mod trainer;

use std::ffi::OsString;
use std::io::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use protocol::RunDir;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use crate::board::Board;
use crate::checkpoints::{self, CheckpointError, Policy, Transfer, Upload, clear_stage};
use crate::child::{self, Child, group};
use crate::clock::{Clock, Moment};
use crate::deadman::Pulse;
use crate::error::{Error, ExitStatus};
use crate::follow::{Checkpoints, Events};
use crate::ingest::{Lines, ParseLogs};
use crate::job::{CommitId, Holder, Job, JobError, LeaseRecord, Nonce};
use crate::lease::{self, Look, Terms};
use crate::logs::{Console, Logs};
use crate::machine::{Switch, Webhook};
use crate::metrics::gpu::Gpus;
use crate::metrics::store::Requests;
use crate::reaper::{self, Request, Signals};
use crate::redact::Redactor;
use crate::state::{Action, Event, Fault, Level, Settings, State};
use crate::status::More;
use crate::storage::Storage;
use crate::supervisor::step;
pub use drills::Outage;
pub use local::Local;
pub(crate) use quiet::Quiet;
pub use show::Face;
#[cfg(test)]
pub(crate) use trainer::newest_whole;
pub use trainer::{command_line, find_program};

/// How often files are looked at and timers are checked.
const TICK: Duration = Duration::from_millis(200);
/// What is left of a former agent's trainer is gone within this, or cannot be killed.
const LEFT_OVER_MAX: Duration = Duration::from_secs(10);
/// The agent's own lines start with this on the console.
const PREFIX: &str = "agent: ";

/// What to run, where, and how.
pub struct Options {
    pub store: Arc<dyn Storage>,
    pub job: Job,
    pub run_dir: RunDir,
    pub holder: Holder,
    pub settings: Settings,
    pub terms: Terms,
    pub policy: Policy,
    pub transfer: Transfer,
    /// The trainer's command line.
    pub command: Vec<String>,
    /// From a signal to the moment that the machine is gone.
    pub grace: Duration,
    /// Names of the agent's secrets that the trainer gets all the same.
    pub pass_env: Vec<String>,
    pub redactor: Arc<Redactor>,
    pub clock: Arc<dyn Clock>,
    /// The one epoch that this run may begin with, where its caller has bound something to it; if
    /// somebody else has that one, the job is held elsewhere.
    pub first_epoch: Option<u64>,
    pub machine: Machine,
}

/// What the loop needs of the machine that it runs on.
#[derive(Clone, Default)]
pub struct Machine {
    /// `None`: its price is not asked, nobody wants it back, and nothing is ever switched off.
    pub switch: Option<Arc<Switch>>,
    /// Shows the dead-man's switch that the agent lives.
    pub pulse: Pulse,
    pub webhook: Option<Webhook>,
    /// What the store goes through, so that an outage can be rehearsed.
    pub outage: Outage,
    /// The line about it with which a run begins.
    pub words: String,
}

/// What a task has to say.
pub(crate) enum Message {
    Event(Event),
    ChildExited(child::Exit),
    Looked {
        asked: Moment,
        look: Result<Look, JobError>,
    },
    Claimed {
        asked: Moment,
        claim: Result<lease::Claim, JobError>,
        /// The highest attempt that has left anything in the store.
        attempts: u32,
        /// The last command that was there before us.
        control: Option<String>,
        /// What the job had cost by then, and what of that this machine.
        spent: (f64, f64),
    },
    Restored(Result<checkpoints::Restored, CheckpointError>),
    Published {
        epoch: u64,
        step: u64,
        took: Duration,
        result: Result<checkpoints::Published, CheckpointError>,
    },
    /// Commands with their numbers, and the key of the last.
    Controls(Vec<(String, crate::state::Command)>, String),
}

/// Whether commits may be created now, as tasks see it.
struct Permit {
    clock: Arc<dyn Clock>,
    until: Mutex<Option<Moment>>,
}

impl Permit {
    fn set(&self, until: Option<Moment>) {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }

    fn allows(&self) -> bool {
        let until = *self.until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| self.clock.now() < until)
    }
}

/// Which upload goes on, or went on last: it is no litter, however old it gets.
#[derive(Default)]
struct InFlight(Mutex<Option<Nonce>>);

impl InFlight {
    fn set(&self, nonce: Nonce) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(nonce);
    }

    fn get(&self) -> Option<Nonce> {
        let nonce = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        nonce.clone()
    }
}

/// Carries out what the supervisor wants. Its own loop is [`run`]; the simulator has another.
pub(crate) struct Executor {
    options: Arc<Options>,
    pub(crate) state: State,
    local: Local,
    logs: Arc<Logs>,
    tell: mpsc::UnboundedSender<Message>,
    quiet: Quiet,
    permit: Arc<Permit>,
    events: Events,
    found: Checkpoints,
    child: Option<Arc<Child>>,
    look: Option<Look>,
    lease: Option<LeaseRecord>,
    /// What the next commit goes on from, and what this run went on from.
    parent: Option<CommitId>,
    pub(crate) resumed_from: Option<CommitId>,
    /// Survives a failed try, so that the next one goes on from there.
    upload: Arc<tokio::sync::Mutex<Option<Upload>>>,
    in_flight: Arc<InFlight>,
    publishing: Option<tokio::task::AbortHandle>,
    restoring: Option<tokio::task::AbortHandle>,
    /// When unfinished things in the store were last looked for.
    swept: Option<Moment>,
    attempt: u32,
    beats: u64,
    control: Option<String>,
    /// What of this machine's cost is in the last beat.
    told_usd: f64,
    /// When the dead-man's switch last saw us.
    pulsed: Option<Moment>,
    rev: u64,
    started_at: String,
    /// For those who watch.
    board: Board,
    more: More,
    gpus: Gpus,
    store_requests: Arc<Requests>,
    lines: Lines,
    /// Where the trainer finds who listens to its reports.
    trainer_env: Vec<(OsString, OsString)>,
}

/// Runs a job to its end, or to the end of this agent's part in it.
///
/// # Errors
/// If nothing could be begun: the run directory, the log, the signals.
pub async fn run(options: Options) -> Result<ExitStatus, Error> {
    run_with(options, Face::default()).await
}

/// The same, shown to whoever asks.
///
/// # Errors
/// As [`run`].
pub async fn run_with(options: Options, face: Face) -> Result<ExitStatus, Error> {
    let mut signals = Signals::listen().map_err(Error::machine("signals"))?;
    let Some(local) = Local::open(&options.run_dir, &options.holder.boot)? else {
        let text = format!(
            "{PREFIX}another agent uses {}",
            options.run_dir.root().display()
        );
        Console::default()
            .stderr
            .write_all(format!("{text}\n").as_bytes())
            .ok();
        return Ok(ExitStatus::NotOurs);
    };
    reaper::start().map_err(Error::machine("reaper"))?;
    let checkpoints = options.run_dir.checkpoints();
    if let Err(survivors) = group::kill_left_over(&checkpoints, LEFT_OVER_MAX).await {
        let what = format!(
            "a former trainer of {} lives: {survivors}",
            options.run_dir.root().display()
        );
        return Err(Error::Bad(what));
    }
    if let Err(error) = clear_stage(&options.run_dir).await {
        return Err(Error::Bad(error.to_string()));
    }
    let logs = Logs::open(
        &options.run_dir.logs(),
        Arc::clone(&options.redactor),
        Console::default(),
    );
    let logs = logs.map_err(Error::machine(options.run_dir.logs().display().to_string()))?;
    let (tell, mut messages) = mpsc::unbounded_channel();
    let quiet = Quiet::start().map_err(Error::machine("threads"))?;
    let mut executor = Executor::new(options, local, logs, tell, quiet);
    let mut notices = executor.hear_the_provider();
    executor.say(Level::Info, &executor.options.machine.words);
    let mut shown = executor.face(face);
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            Some(message) = messages.recv() => {
                for event in executor.understand(message) {
                    executor.happen(event);
                }
            }
            request = signals.next() => executor.signalled(request),
            Some(notice) = notices.recv() => executor.noticed(notice),
            Some(event) = shown.asked() => executor.happen(event),
            _ = ticks.tick() => {
                for event in executor.follow() {
                    executor.happen(event);
                }
                executor.happen(Event::Tick);
                executor.show_life();
                executor.show();
            }
        }
        if let Some(status) = executor.state.exited {
            executor.show();
            executor.logs.flush(Duration::from_secs(2)).await;
            shown.close().await;
            return Ok(status);
        }
    }
}

impl Executor {
    pub(crate) fn new(
        mut options: Options,
        local: Local,
        logs: Logs,
        tell: mpsc::UnboundedSender<Message>,
        quiet: Quiet,
    ) -> Self {
        let run_dir = options.run_dir.clone();
        let (store, store_requests) = Requests::over(options.store);
        options.store = store;
        let state = State::new(options.settings.clone(), options.clock.now());
        let board = Board::new(Arc::clone(&options.redactor));
        Self {
            state,
            local,
            logs: Arc::new(logs),
            tell,
            quiet,
            permit: Arc::new(Permit {
                clock: Arc::clone(&options.clock),
                until: Mutex::default(),
            }),
            events: Events::new(run_dir.events()),
            found: Checkpoints::new(run_dir),
            child: None,
            look: None,
            lease: None,
            parent: None,
            resumed_from: None,
            upload: Arc::default(),
            in_flight: Arc::default(),
            publishing: None,
            restoring: None,
            swept: None,
            attempt: 0,
            beats: 0,
            control: None,
            told_usd: 0.0,
            pulsed: None,
            rev: 0,
            started_at: asks::wall_time(),
            board,
            more: More::default(),
            gpus: Gpus::default(),
            store_requests,
            lines: Lines::new(ParseLogs::Never),
            trainer_env: Vec::new(),
            options: Arc::new(options),
        }
    }

    /// Gives the supervisor an event and does what it says.
    fn happen(&mut self, event: Event) {
        let now = self.options.clock.now();
        self.board.hear(&event);
        for action in step(&mut self.state, event, now) {
            self.carry_out(action, now);
        }
    }

    pub(crate) fn carry_out(&mut self, action: Action, now: Moment) {
        match action {
            Action::Probe => self.probe(),
            Action::Look => self.look(),
            Action::Claim { after } => self.claim(after),
            Action::Beat => self.beat(),
            Action::Restore => self.restore(),
            Action::CancelRestore => {
                if let Some(task) = self.restoring.take() {
                    task.abort();
                }
            }
            Action::Start { .. } => self.start(),
            Action::Signal(signal) => self.signal(signal),
            Action::KillGroup => self.kill_group(),
            Action::Publish { epoch, step } => self.publish(epoch, step),
            Action::CancelPublish => {
                if let Some(task) = self.publishing.take() {
                    task.abort();
                }
            }
            Action::Prune => self.prune(now),
            Action::CommitUntil(until) => self.permit.set(until),
            Action::WriteStatus => self.write_status(now),
            Action::WriteLogs { last } => self.write_logs(last),
            Action::WriteFinal(reason) => self.write_final(&reason),
            Action::Release => self.release(),
            Action::Say(level, text) => self.say(level, &text),
            Action::PowerOff(how) => self.power_off(how),
            Action::Drill(drill) => self.rehearse(drill),
            Action::Renew(keys) => self.renew(&keys),
            Action::Alert(alert) => self.alert(&alert, now),
            Action::Exit(status) => self.say(Level::Info, &format!("exit status {status}")),
        }
    }

    fn say(&self, level: Level, text: &str) {
        let mark = match level {
            Level::Info => "",
            Level::Warning => "warning: ",
            Level::Error => "error: ",
        };
        self.board.note(level, text);
        for line in text.lines() {
            let mark = if line.starts_with("hint: ") { "" } else { mark };
            self.logs.note(&format!("{PREFIX}{mark}{line}"));
        }
    }

    /// Starts a task that ends in a message: its own, `cancelled` if it is aborted, or that the
    /// agent has broken down.
    fn spawn(
        &self,
        work: impl Future<Output = Message> + Send + 'static,
        cancelled: Option<Message>,
    ) -> tokio::task::AbortHandle {
        self.spawn_on(&Handle::current(), work, cancelled)
    }

    fn spawn_on(
        &self,
        threads: &Handle,
        work: impl Future<Output = Message> + Send + 'static,
        cancelled: Option<Message>,
    ) -> tokio::task::AbortHandle {
        let task = threads.spawn(work);
        let abort = task.abort_handle();
        let tell = self.tell.clone();
        tokio::spawn(async move {
            let message = match task.await {
                Ok(message) => Some(message),
                Err(error) if error.is_cancelled() => cancelled,
                Err(error) => Some(Message::Event(Event::Broken(error.to_string()))),
            };
            // Nobody listens any more only when the agent ends.
            message.map(|message| tell.send(message).ok());
        });
        abort
    }

    fn signalled(&mut self, request: Request) {
        let (source, grace) = match request {
            Request::Stop(signal) => (signal_name(signal), self.options.grace),
            Request::Forward(signal) => {
                if let Some(child) = &self.child {
                    child.signal(signal).ok();
                }
                return;
            }
        };
        self.happen(Event::Notice { source, grace });
    }
}

fn signal_name(signal: rustix::process::Signal) -> String {
    use rustix::process::Signal;
    let name = match signal {
        Signal::TERM => "SIGTERM",
        Signal::INT => "SIGINT",
        Signal::HUP => "SIGHUP",
        Signal::USR1 => "SIGUSR1",
        Signal::XCPU => "SIGXCPU",
        _ => return format!("signal {}", signal.as_raw()),
    };
    name.to_owned()
}

/// A nonce from the system's randomness.
fn new_nonce() -> Nonce {
    Nonce::from_bits(u128::from(fastrand::u64(..)) << 64 | u128::from(fastrand::u64(..)))
}

fn fault(transient: bool, error: &dyn std::fmt::Display) -> Fault {
    Fault {
        transient,
        text: error.to_string(),
    }
}

fn job_fault(error: &JobError) -> Fault {
    fault(error.is_transient(), error)
}

fn checkpoint_fault(error: &CheckpointError) -> Fault {
    // What may not be published now may be with the next lease.
    let passing = matches!(error, CheckpointError::NotPermitted { .. });
    fault(passing || error.is_transient(), error)
}
