//! What a seed makes of a schedule over the real functions, and the mistakes that can be planted.

use std::time::Duration;

use crate::checkpoints::{Policy, Transfer};
use crate::lease::Terms;
use crate::limits::Age;
use crate::provider::PowerOff;
use crate::sim::world::LIMITS;
use crate::state::{LeaseMode, OnLost, Settings};
use crate::storage::faults;

pub(super) const TTL: Duration = Duration::from_secs(12);
const RHO: f64 = 0.01;

/// A mistake that the simulator must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bug {
    /// The store ignores the condition of a create.
    CreateReplaces,
    /// The commit is there before its files are.
    CommitFirst,
    /// A listing that fails is taken for an empty one.
    ErrorsAreEmpty,
    /// Pruning does not know what this run resumed from.
    ForgetsResumed,
    /// A watcher takes over after a quarter of the patience.
    HastyWatcher,
    /// A beat is counted from its answer, not from when it was sent.
    DatesByAnswer,
    /// Uploads are never given up, and commits are permitted for ever once they were.
    EndlessPermit,
    /// An upload that failed counts as published.
    LiesOfPublishing,
    /// Clocks of two machines run apart by far more than is allowed for.
    FastClocks,
    /// A beat looks at nothing but itself.
    DeafToLoss,
}

/// What a seed makes of a schedule.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) machines: usize,
    pub(super) lease: LeaseMode,
    pub(super) on_lost: OnLost,
    pub(super) faults_until: Duration,
    /// Something happens to an agent this often, in milliseconds.
    pub(super) fault_every: u64,
    /// Faults of single requests, of all kinds together, in percent.
    pub(super) request_faults: u64,
    /// Longest way of a request, and of its answer.
    pub(super) way_ms_max: u64,
    /// In percent of all faults.
    pub(super) damages: u64,
    pub(super) total: u64,
    pub(super) step_ms: u64,
    pub(super) checkpoint_every: u64,
    pub(super) save_ms: u64,
    pub(super) patience: Duration,
    pub(super) keep_last: usize,
    /// Agent 0 is killed at this request, before it arrives or after it was carried out.
    pub(super) cut: Option<(u64, Cut)>,
    /// Whether somebody left something behind in the store.
    pub(super) litter: bool,
    /// By how many seconds wall clocks are off.
    pub(super) wall_off_s: i64,
    pub(super) bug: Option<Bug>,
}

/// When a kill comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    Before,
    After,
}

impl Plan {
    /// One agent, one after it on another machine if it dies, and no faults.
    pub(super) fn calm() -> Self {
        Self {
            machines: 1,
            lease: LeaseMode::Strict,
            on_lost: OnLost::Standby,
            faults_until: Duration::ZERO,
            fault_every: 1,
            request_faults: 0,
            way_ms_max: 40,
            damages: 0,
            total: 100,
            step_ms: 100,
            checkpoint_every: 20,
            save_ms: 300,
            patience: Duration::from_secs(60),
            keep_last: 2,
            cut: None,
            litter: false,
            wall_off_s: 0,
            bug: None,
        }
    }

    pub(super) fn rough(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed ^ 0x5eed);
        let total = random.u64(100..1_500);
        Self {
            machines: random.usize(2..=4),
            lease: if random.u8(0..10) < 7 {
                LeaseMode::Strict
            } else {
                LeaseMode::Lenient
            },
            on_lost: if random.bool() {
                OnLost::Exit
            } else {
                OnLost::Standby
            },
            faults_until: Duration::from_millis(random.u64(20_000..240_000)),
            fault_every: random.u64(1_000..20_000),
            request_faults: random.u64(0..25),
            way_ms_max: if random.bool() { 40 } else { 400 },
            damages: random.u64(5..20),
            total,
            step_ms: random.u64(50..250),
            checkpoint_every: total / random.u64(5..40) + 1,
            save_ms: random.u64(50..1_500),
            patience: Duration::from_secs(random.u64(10..200)),
            keep_last: random.usize(1..4),
            cut: None,
            litter: random.bool(),
            wall_off_s: random.i64(-36_000..36_000),
            bug: None,
        }
    }

    /// With a mistake, and what brings it to light.
    pub(super) fn with(self, bug: Bug) -> Self {
        let mut plan = Self {
            bug: Some(bug),
            machines: 3,
            on_lost: OnLost::Standby,
            patience: self.patience.min(Duration::from_secs(20)),
            fault_every: 3_000,
            ..self
        };
        match bug {
            Bug::ErrorsAreEmpty => plan.request_faults = 40,
            Bug::LiesOfPublishing => {
                plan.request_faults = 40;
                plan.patience = Duration::from_secs(2);
                plan.total = 100;
                plan.faults_until = Duration::from_secs(300);
            }
            // Something is always on its way.
            Bug::EndlessPermit => {
                plan.way_ms_max = 300;
                plan.total = 600;
                plan.step_ms = 100;
                plan.checkpoint_every = 10;
            }
            _ => {}
        }
        plan
    }

    pub(super) fn settings(&self) -> Settings {
        Settings {
            lease: self.lease,
            on_lost: self.on_lost,
            takes_keys: false,
            again: false,
            ttl: TTL,
            kill_budget: Duration::from_millis(1_500),
            rho: RHO,
            restarts_max: 5,
            backoff_first: Duration::from_millis(500),
            backoff_max: Duration::from_secs(5),
            start_patience: Duration::from_secs(20),
            save_patience: Duration::from_secs(5),
            store_patience: Duration::from_secs(120),
            status_every: Duration::from_secs(4),
            logs_every: Duration::from_secs(10),
            limits: LIMITS,
            age: Age::default(),
            price: None,
            power_off: PowerOff::None,
        }
    }

    pub(super) fn terms() -> Terms {
        Terms {
            ttl: TTL,
            rho: RHO,
            slack: Duration::from_secs(1),
        }
    }

    pub(super) fn transfer(&self) -> Transfer {
        Transfer {
            parallel: 3,
            part_bytes_min: 128,
            deadline: self.patience,
        }
    }

    pub(super) fn policy(&self) -> Policy {
        Policy {
            settled: None,
            keep_last: self.keep_last,
            keep_best: self.keep_last.is_multiple_of(2),
            keep_every: None,
        }
    }

    /// What happens to single requests of one process.
    pub(super) fn requests(&self, seed: u64) -> faults::Plan {
        let part = self.request_faults as f64 / 100.0;
        faults::Plan {
            seed,
            fail_before: part * 0.2,
            fail_after: part * 0.2,
            conflict: part * 0.2,
            slow_down: part * 0.1,
            delay: part * 0.2,
            delay_max: Duration::from_secs(15),
            late: part * 0.1,
            ..faults::Plan::default()
        }
    }
}
