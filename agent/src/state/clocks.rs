//! What the limits count, beside the limits themselves.

use std::time::Duration;

use super::Settings;
use crate::clock::Moment;
use crate::cost::Meter;

/// Moments and times that limits are held against.
#[derive(Clone, Debug, PartialEq)]
pub struct Clocks {
    /// When the machine must be off, by each limit that has such a moment.
    pub wall: Option<Moment>,
    pub provider: Option<Moment>,
    pub budget: Option<Moment>,
    /// Somebody must say before this that the job is wanted.
    pub keepalive: Option<Moment>,
    /// When time was counted last.
    pub counted: Moment,
    /// The store is known to work; then, time without the lease before it was ours for once.
    pub booted: bool,
    pub claiming: Duration,
    pub claimed: bool,
    /// Time that this machine stood by.
    pub standing_by: Duration,
    /// Time since there was last something to supervise.
    pub idle: Duration,
    /// Time of the present restore, and of the present trainer's preparation of data.
    pub restoring: Duration,
    pub fetching: Duration,
    /// Time with the lease and without a step.
    pub untrained: Duration,
    pub trained: bool,
    /// How many of `cost::ALERTS` have been said.
    pub alerts: usize,
}

impl Clocks {
    pub(super) fn new(settings: &Settings, meter: &Meter, now: Moment) -> Self {
        let limits = &settings.limits;
        let began = now - settings.age.wall;
        Self {
            wall: limits.wall.map(|wall| began + wall),
            provider: limits.provider.map(|left| now + left),
            budget: limits.budget_usd.and_then(|usd| meter.reaches(usd, now)),
            keepalive: limits.keepalive.map(|ttl| now + ttl),
            counted: now,
            booted: false,
            claiming: Duration::ZERO,
            claimed: false,
            standing_by: Duration::ZERO,
            idle: Duration::ZERO,
            restoring: Duration::ZERO,
            fetching: Duration::ZERO,
            untrained: Duration::ZERO,
            trained: false,
            alerts: 0,
        }
    }
}

/// A meter for a machine of this age.
pub(super) fn meter(settings: &Settings, now: Moment) -> Meter {
    let mut meter = Meter::new(now - settings.age.paid);
    if let Some(price) = &settings.price {
        meter.set_price(price.clone(), now);
    }
    meter
}

/// What became of a command that came through the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The number of its key below `control/`.
    pub id: String,
    pub kind: String,
    /// Why not, if it was not done.
    pub refused: Option<String>,
}
