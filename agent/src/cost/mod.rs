//! What a job costs: the machine's time at its price, and what former machines spent. Held by the
//! supervisor's state, asked by the limits and the status.

mod table;
#[cfg(test)]
mod tests;

use std::time::Duration;

use crate::clock::Moment;
use crate::provider::{Price, PriceSource};

pub use table::{Disk, Table};

/// Alerts are said when these parts of the budget are used.
pub const ALERTS: [f64; 4] = [0.5, 0.8, 0.95, 1.0];

/// Counts money by the boot clock.
#[derive(Clone, Debug, PartialEq)]
pub struct Meter {
    price: Option<Price>,
    /// Dollars of this machine up to `from`, at former prices: compute and storage.
    before: (f64, f64),
    from: Moment,
    since: Moment,
    /// What the job had cost when we last looked, and how much of that was this machine.
    former_usd: f64,
    counted_usd: f64,
}

impl Meter {
    /// A machine that costs since this moment.
    pub fn new(since: Moment) -> Self {
        Self {
            price: None,
            before: (0.0, 0.0),
            from: since,
            since,
            former_usd: 0.0,
            counted_usd: 0.0,
        }
    }

    pub fn price(&self) -> Option<&Price> {
        self.price.as_ref()
    }

    pub fn since(&self) -> Moment {
        self.since
    }

    /// The price from now on. What the provider says of itself for the first time holds for the
    /// time before as well: the price until then was somebody's guess.
    pub fn set_price(&mut self, price: Price, now: Moment) {
        let guessed = self
            .price
            .as_ref()
            .is_none_or(|old| old.source != PriceSource::Provider);
        if !guessed {
            self.before = self.machine(now);
            self.from = now;
        }
        self.price = Some(price);
    }

    /// What the job had cost when its lease became ours. `own` is what of that was this machine.
    pub fn set_former(&mut self, total: f64, own: f64) {
        let sound = |usd: f64| if usd.is_finite() { usd.max(0.0) } else { 0.0 };
        self.former_usd = sound(total);
        self.counted_usd = sound(own).min(self.former_usd);
    }

    /// Dollars an hour, storage included.
    pub fn rate(&self) -> f64 {
        let rate = |price: &Price| price.per_hour + price.storage_per_hour;
        self.price.as_ref().map_or(0.0, rate)
    }

    /// Dollars of this machine: compute, storage.
    pub fn machine(&self, now: Moment) -> (f64, f64) {
        let hours = now.since(self.from).as_secs_f64() / 3600.0;
        let (compute, storage) = self.before;
        match &self.price {
            Some(price) => (
                compute + hours * price.per_hour,
                storage + hours * price.storage_per_hour,
            ),
            None => (compute, storage),
        }
    }

    /// Dollars of this machine, together.
    pub fn own(&self, now: Moment) -> f64 {
        let (compute, storage) = self.machine(now);
        compute + storage
    }

    /// Dollars that others spent on the job.
    pub fn former(&self) -> f64 {
        self.former_usd - self.counted_usd
    }

    /// Dollars of the whole job.
    pub fn total(&self, now: Moment) -> f64 {
        self.former() + self.own(now)
    }

    /// Dollars of the whole job, if it goes on for so long.
    pub fn total_after(&self, now: Moment, rest: Duration) -> f64 {
        self.total(now) + rest.as_secs_f64() / 3600.0 * self.rate()
    }

    /// When the job will have cost this much; `None` = never, at this price.
    pub fn reaches(&self, budget_usd: f64, now: Moment) -> Option<Moment> {
        let left = budget_usd - self.total(now);
        if left <= 0.0 {
            return Some(now);
        }
        let seconds = left / self.rate() * 3600.0;
        let wait = Duration::try_from_secs_f64(seconds).ok()?;
        Some(now + wait)
    }
}
