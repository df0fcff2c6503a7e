//! One trial's job as workers see it: how often it failed, ending it without a run, and taking it
//! from a dead holder. Called by the worker.
//!
//! Everything goes through the lease: whoever ends a trial claims its next epoch first.

use std::collections::BTreeMap;
use std::time::Duration;

use super::SweepError;
use crate::clock::Clock;
use crate::job::{
    FinalRecord, Holder, Job, LeaseKey, LeaseReason, LeaseRecord, Nonce, ReleasedRecord, VERSION,
    list_all, read,
};
use crate::lease::{self, Claim, Claimant, Lease, Look, Standing, Terms};
use crate::storage::Storage;

/// Words in a release that say that the trial failed, and not its machine or its store.
const FAILED: [&str; 5] = [
    "failed",
    "oom_killed",
    "stalled_killed",
    "disk_full",
    "agent_broken",
];
/// The end and the release are tried for so long.
const RECORD_MAX: Duration = Duration::from_secs(10);

/// What is needed to touch a lease.
pub(super) struct Hand<'a> {
    pub(super) store: &'a dyn Storage,
    pub(super) clock: &'a dyn Clock,
    pub(super) terms: &'a Terms,
    pub(super) holder: &'a Holder,
}

/// How a trial ends without a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End {
    /// Of the final record.
    pub(super) status: &'static str,
    pub(super) reason: &'static str,
    pub(super) exit: i32,
}

/// It was not among the best at a rung.
pub(super) const EARLY_STOPPED: End = End {
    status: "stopped",
    reason: "early_stopped",
    exit: 0,
};
/// It failed too often.
pub(super) const POISON: End = End {
    status: "failed",
    reason: "poison",
    exit: 10,
};

/// How many holders failed at a trial that nobody holds now: by their own word, or by falling
/// silent. One that lost its lease and claimed the next itself has not failed.
pub(super) async fn failures(store: &dyn Storage, job: &Job) -> Result<u32, SweepError> {
    let mut epochs = BTreeMap::new();
    for entry in list_all(store, &job.leases()).await? {
        match job.parse_lease(&entry.key) {
            Some(LeaseKey::Record(epoch)) => *epochs.entry(epoch).or_insert(false) |= false,
            Some(LeaseKey::Released(epoch)) => *epochs.entry(epoch).or_insert(false) = true,
            Some(LeaseKey::Beat(_)) | None => {}
        }
    }
    let mut failures = 0;
    let mut later: Option<LeaseRecord> = None;
    for (epoch, released) in epochs.into_iter().rev() {
        let record: LeaseRecord = read(store, &job.lease(epoch)).await?;
        let failed = if released {
            let left: ReleasedRecord = read(store, &job.released(epoch)).await?;
            FAILED.contains(&left.reason.as_str())
        } else {
            let agent = &record.holder.agent;
            let same = later.is_some_and(|later| later.holder.agent == *agent);
            !same && !record.is_revoked()
        };
        failures += u32::from(failed);
        later = Some(record);
    }
    Ok(failures)
}

impl Hand<'_> {
    /// Claims the epoch after the one looked at, without meaning to train. `None`: another was
    /// faster, or the holder lives.
    async fn claim(&self, job: &Job, look: &Look) -> Result<Option<Lease>, SweepError> {
        let reason = match look.standing() {
            Standing::Free => LeaseReason::First,
            Standing::Held => LeaseReason::Expired,
            Standing::Released | Standing::Revoked | Standing::Done => LeaseReason::Released,
        };
        let bits = u128::from(fastrand::u64(..)) << 64 | u128::from(fastrand::u64(..));
        let claimant = Claimant {
            nonce: Nonce::from_bits(bits),
            holder: self.holder.clone(),
            attempt: look.top.as_ref().map_or(0, |top| top.record.attempt),
            reason,
        };
        let limit = self.terms.ttl.mul_f64(0.3);
        let (store, clock, terms) = (self.store, self.clock, self.terms);
        match lease::claim(store, clock, job, terms, look, &claimant, limit).await? {
            Claim::Won(lease) => Ok(Some(lease)),
            Claim::Lost(_) | Claim::Alive => Ok(None),
        }
    }

    async fn release(&self, job: &Job, lease: &Lease, reason: &str) -> Result<(), SweepError> {
        let record = &lease.record;
        lease::release(self.store, job, self.terms, record, reason, RECORD_MAX).await?;
        Ok(())
    }

    /// Takes the trial from a holder that is dead, or that never came, and leaves it free: what was
    /// bound to that holder's epoch is void from then on. False: another was faster.
    pub(super) async fn set_free(&self, job: &Job, look: &Look) -> Result<bool, SweepError> {
        let Some(lease) = self.claim(job, look).await? else {
            return Ok(false);
        };
        self.release(job, &lease, "expired").await?;
        Ok(true)
    }

    /// Writes down the end of a trial that is not run any more. False: another was faster.
    pub(super) async fn conclude(
        &self,
        job: &Job,
        look: &Look,
        end: End,
    ) -> Result<bool, SweepError> {
        let Some(lease) = self.claim(job, look).await? else {
            return Ok(false);
        };
        let record = FinalRecord {
            version: VERSION,
            epoch: lease.epoch(),
            nonce: lease.record.nonce.clone(),
            status: end.status.to_owned(),
            reason: end.reason.to_owned(),
            exit: end.exit,
            cost_usd: None,
            commit: lease.base(),
        };
        let left = lease.valid_until.since(self.clock.now());
        // Not so late that another may have claimed before it lands; the next pass tries again.
        if left > self.terms.request_limit() {
            let limit = RECORD_MAX.min(left - self.terms.request_limit());
            lease::finish(self.store, job, self.terms, &record, limit).await?;
        }
        self.release(job, &lease, end.reason).await?;
        Ok(true)
    }
}
