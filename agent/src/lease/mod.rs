//! One job, one trainer: claim an epoch, keep it, give it back. Called by the supervisor's loop.
//!
//! Rests on create-only objects and on nothing else: whoever creates `lease/<e>.json` has epoch `e`.
//! No clock of two machines is ever compared. Every request is bounded by `ttl/6`; nothing is
//! retried but claim, release and revoke, and those decide by reading back.

use std::time::Duration;

use crate::clock::{Clock, Moment};
use crate::job::{
    BeatRecord, CommitId, FinalRecord, Holder, Job, JobError, LeaseReason, LeaseRecord, Nonce,
};
use crate::storage::Storage;

/// The times of a lease. All agents of a job that agree on `rho` and `slack` are safe together; each
/// holder's own `ttl` stands in its lease.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Terms {
    pub ttl: Duration,
    /// By how much the rates of two machines' clocks may differ.
    pub rho: f64,
    /// What a watcher waits beyond that.
    pub slack: Duration,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(60),
            rho: 0.01,
            slack: Duration::from_secs(5),
        }
    }
}

impl Terms {
    /// How often the holder beats.
    pub fn beat_interval(&self) -> Duration {
        self.ttl / 4
    }

    /// How long after sending a beat that got through the lease is ours for certain.
    pub fn validity(&self) -> Duration {
        self.ttl.mul_f64(1.0 - self.rho)
    }

    /// No beat for this long: warn.
    pub fn warn_after(&self) -> Duration {
        self.ttl / 2
    }

    /// No beat for this long: publish nothing more, save locally.
    pub fn stop_publishing_after(&self) -> Duration {
        self.ttl.mul_f64(0.75)
    }

    /// How long a watcher waits for the holder of a lease with this time to live.
    pub fn patience(&self, ttl: Duration) -> Duration {
        ttl.mul_f64(1.0 + self.rho) + self.slack
    }

    /// The longest that one request may take.
    pub fn request_limit(&self) -> Duration {
        self.ttl / 6
    }
}

/// What stood in the store at one moment: the newest epoch and what became of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Look {
    pub top: Option<Top>,
}

/// The newest epoch.
#[derive(Clone, Debug, PartialEq)]
pub struct Top {
    pub record: LeaseRecord,
    /// Tag of its last beat, if it ever beat.
    pub beat: Option<String>,
    pub released: bool,
    pub end: Option<FinalRecord>,
}

/// What a look means to somebody who wants the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nobody ever had it: claim.
    Free,
    /// Its holder left: claim.
    Released,
    /// Somebody has it: watch, and claim once the watch has expired.
    Held,
    /// The orchestrator took it away: leave.
    Revoked,
    /// The job has ended: leave.
    Done,
}

impl Look {
    pub fn standing(&self) -> Standing {
        match &self.top {
            None => Standing::Free,
            Some(top) if top.end.is_some() => Standing::Done,
            Some(top) if top.released => Standing::Released,
            Some(top) if top.record.is_revoked() => Standing::Revoked,
            Some(_) => Standing::Held,
        }
    }

    /// The newest epoch's number, 0 if there is none.
    pub fn epoch(&self) -> u64 {
        self.top.as_ref().map_or(0, |top| top.record.epoch)
    }
}

/// Who claims, and why it may.
#[derive(Clone, Debug)]
pub struct Claimant {
    /// New for every epoch that is claimed; the same when a claim that ended in an error is tried
    /// again, which then finds what the lost answer was.
    pub nonce: Nonce,
    pub holder: Holder,
    pub attempt: u32,
    pub reason: LeaseReason,
}

/// What became of a claim.
#[derive(Clone, Debug, PartialEq)]
pub enum Claim {
    Won(Lease),
    /// Somebody else was first; look again.
    Lost(LeaseRecord),
    /// The holder gave a sign of life meanwhile; go on watching.
    Alive,
}

/// A lease that was ours when it was claimed.
#[derive(Clone, Debug, PartialEq)]
pub struct Lease {
    pub record: LeaseRecord,
    /// Ours for certain before this moment, if no beat follows.
    pub valid_until: Moment,
}

impl Lease {
    pub fn epoch(&self) -> u64 {
        self.record.epoch
    }

    pub fn base(&self) -> Option<CommitId> {
        self.record.base
    }
}

/// What became of a beat.
#[derive(Clone, Debug, PartialEq)]
pub enum Beat {
    Held {
        valid_until: Moment,
    },
    /// The next epoch is claimed: kill the trainer's group, publish nothing more, leave.
    Lost(LeaseRecord),
}

/// Whether a held lease has gone silent, by our own clock and nothing else. Pure.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    seen: Option<Sign>,
}

#[derive(Clone, Debug, PartialEq)]
struct Sign {
    epoch: u64,
    beat: Option<String>,
    since: Moment,
}

/// What a watch says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Silence {
    /// Nobody may claim before this moment, and then only if nothing has changed.
    Until(Moment),
    Expired,
}

impl Watch {
    /// Takes in a look. `now` is the moment its answer had arrived, never an earlier one.
    pub fn see(&mut self, terms: &Terms, top: &Top, now: Moment) -> Silence {
        unimplemented!("{terms:?} {top:?} {now:?} {:?}", self.seen)
    }
}

/// One consistent look at who has the job.
///
/// # Errors
/// If the store could not be asked, or a lease there cannot be read. Never takes an error for "none".
pub async fn look(store: &dyn Storage, job: &Job, terms: &Terms) -> Result<Look, JobError> {
    unimplemented!("{} {job:?} {terms:?}", store.name())
}

/// Claims the epoch after the one looked at. The caller knows that it may: see [`Look::standing`] and
/// [`Watch`]. Lost answers, conflicts and time-outs are settled by reading back, until `deadline`
/// from now.
///
/// # Errors
/// If the deadline passed or the store refuses: then it is not known whether we have it. The lease,
/// if it is ours, is found by calling again with the same nonce.
pub async fn claim(
    store: &dyn Storage,
    clock: &dyn Clock,
    job: &Job,
    terms: &Terms,
    look: &Look,
    claimant: &Claimant,
    deadline: Duration,
) -> Result<Claim, JobError> {
    unimplemented!(
        "{} {:?} {job:?} {terms:?} {look:?} {claimant:?} {deadline:?}",
        store.name(),
        clock.now()
    )
}

/// Beats once, and looks whether somebody claimed the next epoch. `beat.seq` must be new each time.
///
/// # Errors
/// If the store could not be asked: then nothing is known, and the lease is ours as long as before.
pub async fn beat(
    store: &dyn Storage,
    clock: &dyn Clock,
    job: &Job,
    terms: &Terms,
    beat: &BeatRecord,
) -> Result<Beat, JobError> {
    unimplemented!(
        "{} {:?} {job:?} {terms:?} {beat:?}",
        store.name(),
        clock.now()
    )
}

/// Leaves on purpose, so that the next one need not wait. After the last publish, never before.
///
/// # Errors
/// If it could not be made sure until `deadline` from now; whoever waits then waits out the ttl.
pub async fn release(
    store: &dyn Storage,
    job: &Job,
    terms: &Terms,
    lease: &LeaseRecord,
    reason: &str,
    deadline: Duration,
) -> Result<(), JobError> {
    unimplemented!(
        "{} {job:?} {terms:?} {lease:?} {reason} {deadline:?}",
        store.name()
    )
}

/// Writes down the end of the job. `end.epoch` and `end.nonce` are the lease's; the caller checks
/// `now < valid_until` just before.
///
/// # Errors
/// If it could not be made sure until `deadline` from now.
pub async fn finish(
    store: &dyn Storage,
    job: &Job,
    terms: &Terms,
    end: &FinalRecord,
    deadline: Duration,
) -> Result<(), JobError> {
    unimplemented!("{} {job:?} {terms:?} {end:?} {deadline:?}", store.name())
}

/// The orchestrator's hard kill: claims the next epoch so that nobody trains. To let the job go on,
/// release that epoch.
///
/// # Errors
/// As for [`claim`].
pub async fn revoke(
    store: &dyn Storage,
    clock: &dyn Clock,
    job: &Job,
    terms: &Terms,
    nonce: Nonce,
    deadline: Duration,
) -> Result<LeaseRecord, JobError> {
    unimplemented!(
        "{} {:?} {job:?} {terms:?} {nonce:?} {deadline:?}",
        store.name(),
        clock.now()
    )
}
