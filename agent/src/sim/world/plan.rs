//! What a seed makes of a schedule.

use std::time::Duration;

use crate::limits::Limits;
use crate::sim::random::Random;
use crate::state::{LeaseMode, OnLost};

/// Only stalls are looked after.
pub(in crate::sim) const LIMITS: Limits = Limits {
    wall: None,
    idle: None,
    stall: Some(Duration::from_secs(20)),
    boot: None,
    claim: None,
    restore: None,
    fetch: None,
    first_step: None,
    budget_usd: None,
    standby_usd: None,
    keepalive: None,
    provider: None,
};

/// What a seed makes of a schedule.
#[derive(Clone, Debug)]
pub(in crate::sim) struct Plan {
    pub(in crate::sim) agents: u64,
    pub(in crate::sim) lease: LeaseMode,
    pub(in crate::sim) on_lost: OnLost,
    pub(in crate::sim) freezes: bool,
    pub(in crate::sim) faults_until: u64,
    pub(in crate::sim) fault_every: u64,
    pub(in crate::sim) lost_percent: u64,
    pub(in crate::sim) slow_percent: u64,
    pub(in crate::sim) total: u64,
    pub(in crate::sim) step_ms: u64,
    pub(in crate::sim) checkpoint_every: u64,
    pub(in crate::sim) save_ms: u64,
    pub(in crate::sim) upload_ms: u64,
    /// Machines that cost money, and have to be off in time.
    pub(in crate::sim) limited: Option<Limited>,
}

/// When machines must be off, and who sees to it.
#[derive(Clone, Debug)]
pub(in crate::sim) struct Limited {
    pub(in crate::sim) limits: Limits,
    /// Whether there is a dead-man's switch.
    pub(in crate::sim) switch: bool,
    /// It ends an agent that is silent for so long, or so late.
    pub(in crate::sim) hang: Duration,
    /// How often the provider refuses in vain.
    pub(in crate::sim) refusals: u64,
    /// Machines that are rented in the place of lost ones.
    pub(in crate::sim) replacements: u64,
}

impl Plan {
    pub(in crate::sim) fn calm() -> Self {
        Self {
            agents: 1,
            lease: LeaseMode::Strict,
            on_lost: OnLost::Exit,
            freezes: false,
            faults_until: 0,
            fault_every: 1,
            lost_percent: 0,
            slow_percent: 0,
            total: 100,
            step_ms: 200,
            checkpoint_every: 20,
            save_ms: 300,
            upload_ms: 1_500,
            limited: None,
        }
    }

    pub(in crate::sim) fn rough(seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0x5eed);
        Self {
            agents: random.between(1, 4),
            lease: if random.chance(70) {
                LeaseMode::Strict
            } else {
                LeaseMode::Lenient
            },
            on_lost: if random.chance(50) {
                OnLost::Exit
            } else {
                OnLost::Standby
            },
            freezes: true,
            faults_until: random.between(20_000, 150_000),
            fault_every: random.between(2_000, 40_000),
            lost_percent: random.between(0, 25),
            slow_percent: random.between(0, 20),
            total: random.between(40, 400),
            step_ms: random.between(50, 400),
            checkpoint_every: random.between(5, 60),
            save_ms: random.between(50, 2_000),
            upload_ms: random.between(200, 9_000),
            limited: None,
        }
    }

    pub(in crate::sim) fn never_frozen(seed: u64) -> Self {
        Self {
            freezes: false,
            lease: LeaseMode::Strict,
            ..Self::rough(seed)
        }
    }

    /// Everything goes wrong, and every machine has a deadline.
    pub(in crate::sim) fn limited(seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0x0ff);
        let seconds = |random: &mut Random, low, high| {
            let on = random.chance(80);
            on.then(|| Duration::from_secs(random.between(low, high)))
        };
        let limits = Limits {
            wall: Some(Duration::from_secs(random.between(30, 400))),
            provider: seconds(&mut random, 60, 500).filter(|_| seed.is_multiple_of(3)),
            idle: seconds(&mut random, 20, 200),
            boot: seconds(&mut random, 10, 60),
            claim: seconds(&mut random, 20, 100),
            restore: seconds(&mut random, 20, 60),
            fetch: seconds(&mut random, 20, 60),
            first_step: seconds(&mut random, 10, 60),
            ..LIMITS
        };
        let rough = Self::rough(seed);
        Self {
            total: rough.total * random.between(1, 20),
            faults_until: rough.faults_until * 2,
            limited: Some(Limited {
                limits,
                switch: true,
                hang: Duration::from_secs(30),
                refusals: random.between(0, 5),
                replacements: random.between(0, 4),
            }),
            ..rough
        }
    }

    /// The same, and nobody watches over the agents.
    pub(in crate::sim) fn unwatched(seed: u64) -> Self {
        let mut plan = Self::limited(seed);
        if let Some(limited) = &mut plan.limited {
            limited.switch = false;
        }
        plan
    }

    /// Nothing goes wrong but that the time is not enough.
    pub(in crate::sim) fn short(seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0x5407);
        let limits = Limits {
            wall: Some(Duration::from_secs(random.between(90, 400))),
            ..LIMITS
        };
        Self {
            total: 1_000_000,
            save_ms: random.between(50, 8_000),
            upload_ms: random.between(200, 10_000),
            checkpoint_every: random.between(20, 100),
            limited: Some(Limited {
                limits,
                switch: true,
                hang: Duration::from_secs(30),
                refusals: 0,
                replacements: 0,
            }),
            ..Self::calm()
        }
    }
}
