//! The money of a worker: reserved before a claim, settled after it, taken back from the dead.
//!
//! What a dead worker can have spent is told by the store's own clock: from its reservation to its
//! last beat, and a ttl more, within which it had to stop. Where the store tells no ages it is all
//! that was reserved.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::super::watcher::Allowance;
use super::{Hand, Ledger, Plan, SweepError};
use crate::clock::{Clock, Moment};
use crate::error::Error;
use crate::job::{Holder, Job, LeaseKey, LeaseRecord, list_all, read};
use crate::lease::{self, Look, Silence, Standing, Terms, Watch};
use crate::storage::Storage;
use crate::sweep::ledger::{Reservation, Reserve};
use crate::sweep::{Place, micro};

/// How long saving and publishing are given beside the beats until the order is heard.
const SAVE: Duration = Duration::from_secs(60);
/// Ages are told in whole seconds, and a claim follows its reservation a moment later.
const MARGIN_S: u64 = 3;

/// What a claim may use.
pub(super) enum Grant {
    /// The sweep has no budget.
    Free,
    For(Allowance),
    Short,
    Spent,
}

/// Keeps a worker within the budget.
pub(super) struct Cashier {
    store: Arc<dyn Storage>,
    clock: Arc<dyn Clock>,
    terms: Terms,
    holder: Holder,
    place: Place,
    ledger: Ledger,
    claim_microusd: u64,
    microusd_per_hour: u64,
    /// Others' reservations that look dead, by trial and epoch: since when, and their holders.
    suspects: BTreeMap<(String, u64), (Moment, Watch)>,
}

impl Cashier {
    /// `None` for a sweep without a budget.
    pub(super) fn new(
        plan: &Plan,
        clock: &Arc<dyn Clock>,
        terms: Terms,
        holder: &Holder,
    ) -> Result<Option<Self>, Error> {
        let Some(budget) = plan.spec.budget else {
            return Ok(None);
        };
        let price = plan.usd_per_hour.map_or(0, micro);
        if price == 0 {
            let text = "the sweep has a budget: expected what this machine costs\n\
                        hint: --price DOLLARS, an hour";
            return Err(Error::Usage(text.to_owned()));
        }
        Ok(Some(Self {
            store: Arc::clone(&plan.store),
            clock: Arc::clone(clock),
            terms,
            place: plan.place.clone(),
            ledger: Ledger::new(&plan.store, &plan.place, budget.usd, &holder.agent),
            holder: holder.clone(),
            claim_microusd: micro(budget.claim_usd),
            microusd_per_hour: price,
            suspects: BTreeMap::new(),
        }))
    }

    /// Reserves the worst case of a claim of `epoch`.
    pub(super) async fn grant(
        &mut self,
        trial: &str,
        job: &Job,
        epoch: u64,
    ) -> Result<Grant, SweepError> {
        // Whoever had the trial before cannot use its reservation any more.
        for old in self.ledger.refresh().await?.reserved.clone() {
            if old.trial == trial && old.epoch < epoch && old.owner != self.holder.agent {
                let charge = self.charge(&old, job).await?;
                self.ledger.reclaim(&old, charge).await?;
            }
        }
        let begun = self.clock.now();
        let mut made = self.reserve(trial, epoch).await?;
        if made == Reserve::Short && self.take_back().await? {
            made = self.reserve(trial, epoch).await?;
        }
        Ok(match made {
            Reserve::Made => Grant::For(self.allowance(begun)),
            Reserve::Short => Grant::Short,
            Reserve::Spent => Grant::Spent,
        })
    }

    async fn reserve(&mut self, trial: &str, epoch: u64) -> Result<Reserve, SweepError> {
        let (claim, price) = (self.claim_microusd, self.microusd_per_hour);
        self.ledger.reserve(trial, epoch, claim, price).await
    }

    fn allowance(&self, since: Moment) -> Allowance {
        let hours = self.claim_microusd as f64 / self.microusd_per_hour as f64;
        // A century is as good as no limit.
        let hard = Duration::from_secs_f64((hours * 3600.0).min(3e9));
        // An order is heard a beat later, and the end takes a moment; but half is there to be used.
        let hard = hard.saturating_sub(self.terms.ttl / 2).max(hard / 2);
        let soft = hard.saturating_sub(SAVE).max(hard / 2);
        Allowance { since, soft, hard }
    }

    /// Books what a claim has cost since then.
    pub(super) async fn settle(&mut self, trial: &str, since: Moment) -> Result<(), SweepError> {
        let hours = self.clock.now().since(since).as_secs_f64() / 3600.0;
        let spent = (hours * self.microusd_per_hour as f64).ceil() as u64;
        self.ledger.settle(trial, spent).await
    }

    /// Looks for reservations of dead workers; whether any was found.
    async fn take_back(&mut self) -> Result<bool, SweepError> {
        let mut found = false;
        for other in self.ledger.refresh().await?.reserved.clone() {
            if other.owner == self.holder.agent {
                continue;
            }
            let job = self.place.trial(&other.trial)?;
            if self.is_dead(&other, &job).await? {
                let charge = self.charge(&other, &job).await?;
                self.ledger.reclaim(&other, charge).await?;
                found = true;
            }
        }
        Ok(found)
    }

    /// Whether nobody can use a reservation any more. One whose owner is only silent is made so, by
    /// taking the epoch away from it.
    async fn is_dead(&mut self, other: &Reservation, job: &Job) -> Result<bool, SweepError> {
        let look = lease::look(&*self.store, job, &self.terms).await?;
        let now = self.clock.now();
        let top = look.top.as_ref().filter(|_| look.epoch() >= other.epoch);
        let theirs = top.is_some_and(|top| top.record.holder.agent == other.owner);
        if top.is_some() && !theirs {
            return Ok(true);
        }
        let suspect = (other.trial.clone(), other.epoch);
        let (since, watch) = self
            .suspects
            .entry(suspect)
            .or_insert_with(|| (now, Watch::default()));
        let waited = now.since(*since) >= self.terms.patience(self.terms.ttl);
        match (top, look.standing()) {
            // It has left, and will book what it spent by itself if it lives.
            (Some(_), Standing::Done | Standing::Released) => Ok(waited),
            (Some(top), _) => {
                let silent = watch.see(&self.terms, top, now) == Silence::Expired;
                Ok(silent && self.fence(job, &look).await?)
            }
            // It has not claimed yet, and never will.
            (None, Standing::Free | Standing::Released) => {
                Ok(waited && self.fence(job, &look).await?)
            }
            (None, Standing::Done | Standing::Revoked) => Ok(waited),
            (None, Standing::Held) => Ok(false),
        }
    }

    async fn fence(&self, job: &Job, look: &Look) -> Result<bool, SweepError> {
        let hand = Hand {
            store: &*self.store,
            clock: &*self.clock,
            terms: &self.terms,
            holder: &self.holder,
        };
        hand.set_free(job, look).await
    }

    /// The most that a dead owner of a reservation can have spent of it.
    async fn charge(&self, dead: &Reservation, job: &Job) -> Result<u64, SweepError> {
        let store = &*self.store;
        let is_theirs = async |epoch: u64| match read::<LeaseRecord>(store, &job.lease(epoch)).await
        {
            Ok(record) => Ok((record.holder.agent == dead.owner).then_some(record.ttl_ms)),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error),
        };
        let Some(ttl_ms) = is_theirs(dead.epoch).await? else {
            // It never claimed, so it never trained.
            return Ok(0);
        };
        let mut epoch = dead.epoch;
        while is_theirs(epoch + 1).await?.is_some() {
            epoch += 1;
        }
        let entry = self.place.budget(dead.entry);
        let entry = store.list(&entry, None, 1).await?;
        let reserved_age = entry.first().and_then(|entry| entry.age_s);
        let signs = list_all(store, &job.leases()).await?;
        let signs = signs.into_iter().filter(|sign| {
            matches!(
                job.parse_lease(&sign.key),
                Some(LeaseKey::Record(of) | LeaseKey::Beat(of) | LeaseKey::Released(of))
                    if (dead.epoch..=epoch).contains(&of)
            )
        });
        let last_age = signs.map(|sign| sign.age_s).min().flatten();
        let (Some(reserved_age), Some(last_age)) = (reserved_age, last_age) else {
            return Ok(dead.microusd);
        };
        let lived_s = reserved_age.saturating_sub(last_age) + ttl_ms.div_ceil(1000) + MARGIN_S;
        let charge = u128::from(lived_s) * u128::from(dead.microusd_per_hour) / 3600;
        Ok(dead.microusd.min(u64::try_from(charge).unwrap_or(u64::MAX)))
    }
}

#[cfg(test)]
mod tests;
