//! How long the adapter waits for what. Tests hurry.

use std::time::Duration;

/// How long to wait for what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// After the first failure; it doubles from there on. Waits are jittered, as many machines end
    /// together at the end of a sweep.
    pub(super) first: Duration,
    pub(super) max: Duration,
    /// Between two looks whether an accepted end has come.
    pub(super) look_every: Duration,
    /// How long it may take to come.
    pub(super) settle: Duration,
    /// How long only a destroy is tried while the provider cannot be reached.
    pub(super) patience: Duration,
    /// How long the price is asked for: nothing waits for it.
    pub(super) price: Duration,
    /// A machine that outlives its end by this costs money that nobody watches.
    pub(super) zombie: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            first: Duration::from_secs(1),
            max: Duration::from_secs(60),
            look_every: Duration::from_secs(5),
            settle: Duration::from_secs(90),
            patience: Duration::from_secs(600),
            price: Duration::from_secs(10),
            zombie: Duration::from_secs(3600),
        }
    }
}
