//! What the supervisor knows and says: the closed enums [`Event`] and [`Action`], and [`State`].
//!
//! Everything that can happen is an event, everything that the agent can do is an action; the
//! supervisor (`supervisor.rs`) is the function between them, and the loop in `run` carries the
//! actions out.

mod clocks;
mod command;
mod message;
mod reason;

use std::time::Duration;

pub use clocks::{Answer, Clocks};
pub use command::{Change, Command, Drill, LimitsChange, StopOrder};
pub use message::{
    Action, Alert, Beat, Claim, Event, Exit, Fault, Level, Published, Restored, Sight, Signal,
    Verdict,
};
pub use reason::{Cause, Reason};

use crate::clock::Moment;
use crate::cost::Meter;
use crate::error::ExitStatus;
use crate::limits::{Age, Limits};
use crate::progress::Progress;
use crate::provider::{PowerOff, Price};

/// How strictly the lease is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseMode {
    /// No training without a valid lease.
    Strict,
    /// Training goes on unpublished while the store cannot be reached.
    Lenient,
    /// The user promises that there is one container; any store will do.
    Off,
}

/// What to do where another agent has the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnLost {
    Exit,
    Standby,
}

/// What the supervisor was told at its start.
#[derive(Clone, Debug)]
pub struct Settings {
    pub lease: LeaseMode,
    pub on_lost: OnLost,
    /// Whether the store can be told other keys.
    pub takes_keys: bool,
    /// Claim a job that has ended, to go on with it.
    pub again: bool,
    /// How long a lease outlives its last beat.
    pub ttl: Duration,
    /// How long before its end the lease counts as over for whoever must stop training in time.
    pub kill_budget: Duration,
    /// Part of the ttl by which clocks of two machines may run apart.
    pub rho: f64,
    /// Crashes in a row without a new checkpoint that are one too many.
    pub restarts_max: u32,
    pub backoff_first: Duration,
    pub backoff_max: Duration,
    /// How long the trainer may be silent before it trains; in training it is a limit.
    pub start_patience: Duration,
    /// From SIGTERM to SIGKILL where nobody waits for this machine.
    pub save_patience: Duration,
    /// How long a store that cannot be reached is waited for, before training and after it.
    pub store_patience: Duration,
    pub status_every: Duration,
    pub logs_every: Duration,
    /// What time and money may be taken; changed by commands.
    pub limits: Limits,
    /// For how long the machine counts already.
    pub age: Age,
    /// What it costs, until the provider says something else.
    pub price: Option<Price>,
    /// How the machine is given back at the end.
    pub power_off: PowerOff,
}

/// Everything the supervisor knows.
#[derive(Clone, Debug)]
pub struct State {
    pub settings: Settings,
    pub began: Moment,
    pub lease: Lease,
    pub trainer: Trainer,
    pub checkpoints: Checkpoints,
    pub progress: Progress,
    pub counts: Counts,
    /// The end, from the moment that it is decided. The first reason wins.
    pub ending: Option<Ending>,
    pub status: Mirror,
    pub logs: Mirror,
    pub clocks: Clocks,
    pub meter: Meter,
    /// What was asked through the store, and what became of it; the newest last.
    pub answers: Vec<Answer>,
    /// Set once [`Action::Exit`] was given.
    pub exited: Option<ExitStatus>,
}

/// Where this agent stands with the lease of the job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lease {
    /// Asks what the store can do.
    Probing(Call),
    /// Wants it.
    Seeking(Seeking),
    /// Has it, as far as anybody can know.
    Held(Held),
    /// Is out of it for good.
    Gone,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seeking {
    pub call: Call,
    /// Set while the call in flight is a claim.
    pub claiming: bool,
    /// The holder that we watch, since when its tag is unchanged.
    pub watch: Option<Watched>,
    /// The epoch that was ours until its beats failed for too long.
    pub lapsed: Option<u64>,
    pub since: Moment,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    pub epoch: u64,
    pub tag: String,
    pub since: Moment,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub epoch: u64,
    pub base: Option<u64>,
    pub claimed: Moment,
    /// When the newest beat that got through (or the claim) left.
    pub sent: Moment,
    pub beat: Call,
    /// How far the person was warned since then.
    pub risk: Risk,
}

/// How long no beat got through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Risk {
    None,
    /// ttl / 2.
    Warned,
    /// 0.75 ttl: nothing is published, the trainer was asked to save.
    Unpublished,
}

/// Something asked of the store again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Due at this moment, after so many failures in a row.
    Due {
        at: Moment,
        failures: u32,
    },
    InFlight {
        failures: u32,
    },
}

/// The trainer's process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trainer {
    /// None, and none before this moment. `restore`: the run directory must be looked after first.
    Absent {
        not_before: Moment,
        restore: bool,
    },
    Restoring {
        call: Call,
        since: Moment,
    },
    Running {
        since: Moment,
        stop: Option<Stop>,
    },
}

/// The trainer is to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stop {
    pub why: StopReason,
    /// When the group is killed.
    pub kill_at: Moment,
    pub killed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    Stalled,
    /// The lease is about to run out.
    LeaseAtRisk,
    /// The agent ends, or stands by.
    Ending,
}

/// Checkpoints of this job, by step.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Checkpoints {
    /// Newest whole one in the run directory, as far as known.
    pub local: Option<u64>,
    /// Newest verified one of the valid history in the store.
    pub published: Option<u64>,
    /// When this agent last published.
    pub published_at: Option<Moment>,
    pub upload: Option<Upload>,
    /// Not before this moment, after so many failures in a row.
    pub retry_at: Option<Moment>,
    pub failures: u32,
    /// Longest time that a publish took.
    pub upload_time: Option<Duration>,
    /// What was published when the newest beat left.
    pub at_beat: Option<u64>,
    /// What was published before a beat that saw no later lease: a lease that somebody creates
    /// after that has this for its base, or a later one.
    pub settled: Option<u64>,
    pub prune_due: bool,
    pub pruning: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upload {
    pub epoch: u64,
    pub step: u64,
    pub since: Moment,
    pub cancelled: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Counts {
    /// Trainer processes started.
    pub attempts: u32,
    pub crashes: u32,
    /// Crashes since there was a new checkpoint.
    pub crashes_in_a_row: u32,
    /// Times that the trainer was stopped through no fault of its own.
    pub preemptions: u32,
    /// The newest checkpoint at the last crash.
    pub checkpoint_at_crash: Option<u64>,
}

/// The end and how far it has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    pub reason: Reason,
    pub since: Moment,
    /// When everything must be over.
    pub deadline: Option<Moment>,
    /// When the first signal or notice asked for the end.
    pub noticed: Option<Moment>,
    /// Nothing is waited for any more.
    pub now: bool,
    /// The end of the job is written down in the store.
    pub recorded: bool,
    /// Whether somebody asked for the machine to be given back, or kept.
    pub power_off: Option<bool>,
    pub stage: Stage,
    pub stage_since: Moment,
    /// What the present stage asked for.
    pub call: Call,
}

/// The steps of the end, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// The trainer saves and goes.
    Stopping,
    /// Its last checkpoint goes to the store.
    Publishing,
    Logs,
    Final,
    Status,
    Releasing,
    /// The machine is given back, for as long as that takes.
    PoweringOff,
    Over,
}

/// Something that is written to the store from time to time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Mirror {
    pub changed: bool,
    pub in_flight: bool,
    pub written: Option<Moment>,
}

impl State {
    pub fn new(settings: Settings, now: Moment) -> Self {
        let meter = clocks::meter(&settings, now);
        Self {
            clocks: Clocks::new(&settings, &meter, now),
            meter,
            answers: Vec::new(),
            settings,
            began: now,
            lease: Lease::Probing(Call::due(now)),
            trainer: Trainer::Absent {
                not_before: now,
                restore: true,
            },
            checkpoints: Checkpoints::default(),
            progress: Progress::default(),
            counts: Counts::default(),
            ending: None,
            status: Mirror::default(),
            logs: Mirror::default(),
            exited: None,
        }
    }

    /// The epoch that this agent holds.
    pub fn epoch(&self) -> Option<u64> {
        match &self.lease {
            Lease::Held(held) => Some(held.epoch),
            _ => None,
        }
    }

    /// Until when the lease is surely ours.
    pub fn valid_until(&self) -> Option<Moment> {
        match &self.lease {
            Lease::Held(held) => Some(held.sent + self.settings.valid_for()),
            _ => None,
        }
    }

    /// Whether a trainer process may be alive.
    pub fn has_trainer(&self) -> bool {
        matches!(self.trainer, Trainer::Running { .. })
    }
}

impl Settings {
    /// How long after a beat was sent its holder may rely on it: `ttl * (1 - rho)`.
    pub fn valid_for(&self) -> Duration {
        self.ttl.mul_f64(1.0 - self.rho)
    }
}

impl Call {
    pub fn due(at: Moment) -> Self {
        Self::Due { at, failures: 0 }
    }

    /// Takes the call off the list if it is due; the caller makes it.
    pub fn take(&mut self, now: Moment) -> bool {
        let Self::Due { at, failures } = *self else {
            return false;
        };
        let due = now >= at;
        if due {
            *self = Self::InFlight { failures };
        }
        due
    }

    /// It failed: again after a back-off that doubles from `first` to `max`.
    pub fn failed(&mut self, now: Moment, first: Duration, max: Duration) {
        let (Self::InFlight { failures } | Self::Due { failures, .. }) = *self;
        let wait = backoff(failures, first, max);
        *self = Self::Due {
            at: now + wait,
            failures: failures.saturating_add(1),
        };
    }

    pub fn is_in_flight(self) -> bool {
        matches!(self, Self::InFlight { .. })
    }
}

/// `first * 2^failures`, at most `max`.
pub fn backoff(failures: u32, first: Duration, max: Duration) -> Duration {
    first
        .saturating_mul(2_u32.saturating_pow(failures))
        .min(max)
}
