//! One job, one trainer: claim an epoch, keep it, give it back. Called by the supervisor's loop.
//!
//! Rests on create-only objects and on nothing else: whoever creates `lease/<e>.json` has epoch
//! `e`. No clock of two machines is ever compared. Every request is bounded by `ttl/6`; nothing is
//! retried but claim, release and revoke, and those decide by reading back.

#[cfg(test)]
mod tests;
mod watch;

use std::time::Duration;

pub use watch::{Silence, Watch};

use crate::clock::{Clock, Moment};
use crate::job::requests::{self, Backoff, Settled, bounded, settle};
use crate::job::{
    BeatRecord, CommitId, FinalRecord, Holder, Job, JobError, LeaseKey, LeaseReason, LeaseRecord,
    Nonce, ReleasedRecord, VERSION, list_all, parse, to_bytes,
};
use crate::storage::{Entry, Storage};

/// How often a look begins again because the newest epoch changed under it.
const LOOKS_MAX: u32 = 8;

/// The times of a lease. All agents of a job that agree on `rho` and `slack` are safe together;
/// each holder's own `ttl` stands in its lease.
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
    /// What its last beat is told from others by, if it ever beat.
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
    /// New for every call; those of calls that ended in an error tell their leases later.
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
    /// The next epoch is claimed: kill the trainer's group, publish nothing more, leave. Who has
    /// it, if that could be read.
    Lost(Option<LeaseRecord>),
}

/// One consistent look at who has the job.
///
/// # Errors
/// If the store could not be asked, or a lease there cannot be read: never taken for "none".
pub async fn look(store: &dyn Storage, job: &Job, terms: &Terms) -> Result<Look, JobError> {
    for _ in 0..LOOKS_MAX {
        let prefix = job.leases();
        let listed = bounded(
            store,
            terms.request_limit(),
            "list",
            &prefix,
            list_all(store, &prefix),
        )
        .await?;
        let (mut epoch, mut beat, mut released) = (None, None, false);
        for entry in &listed {
            if let Some(LeaseKey::Record(found)) = job.parse_lease(&entry.key) {
                epoch = epoch.max(Some(found));
            }
        }
        let Some(epoch) = epoch else {
            return Ok(Look { top: None });
        };
        for entry in listed {
            match job.parse_lease(&entry.key) {
                Some(LeaseKey::Beat(of)) if of == epoch => {
                    beat = Some(sign_of_life(store, terms, entry).await?);
                }
                Some(LeaseKey::Released(of)) if of == epoch => released = true,
                _ => {}
            }
        }
        let key = job.lease(epoch);
        let object = bounded(store, terms.request_limit(), "get", &key, store.get(&key)).await?;
        let record = parse_lease(store, &key, &object.bytes, epoch)?;
        // After the listing: a holder writes down the end before it releases.
        let key = job.final_of(epoch);
        let end = match bounded(store, terms.request_limit(), "get", &key, store.get(&key)).await {
            Ok(object) => Some(parse::<FinalRecord>(store, &key, &object.bytes)?),
            Err(error) if error.is_missing() => None,
            Err(error) => return Err(error.into()),
        };
        // An end written by a zombie is void, and its epoch is not the newest any more.
        if end.is_some() && next_lease(store, job, terms, epoch).await?.is_some() {
            continue;
        }
        let top = Top {
            record,
            beat,
            released,
            end,
        };
        return Ok(Look { top: Some(top) });
    }
    let busy = format!("the newest epoch changed {LOOKS_MAX} times while it was read");
    Err(requests::transient(store, "list", &job.leases(), busy).into())
}

/// Claims the epoch after the one looked at. The caller knows that it may: see [`Look::standing`]
/// and [`Watch`]. Lost answers, conflicts and time-outs are settled by reading back, until
/// `deadline` from now.
///
/// # Errors
/// If the deadline passed or the store refuses: then it is not known whether it was created. If it
/// took half of the ttl: it was created, but others may have watched it since. Either way nobody
/// beats for it: look again, and take a lease with the old nonce for that of a dead holder.
pub async fn claim(
    store: &dyn Storage,
    clock: &dyn Clock,
    job: &Job,
    terms: &Terms,
    look: &Look,
    claimant: &Claimant,
    deadline: Duration,
) -> Result<Claim, JobError> {
    let sent = clock.now();
    let ours = |record: &LeaseRecord| record.nonce == claimant.nonce;
    if let Some(top) = &look.top
        && ours(&top.record)
    {
        return Err(undated(store, job, top.record.epoch));
    }
    let epoch = look.epoch() + 1;
    let key = job.lease(epoch);
    let mut backoff = Backoff::new(terms.request_limit(), deadline, claimant.nonce.as_str());
    loop {
        if claimant.reason == LeaseReason::Expired && has_beaten(store, job, terms, look).await? {
            return Ok(Claim::Alive);
        }
        let record = LeaseRecord {
            version: VERSION,
            epoch,
            nonce: claimant.nonce.clone(),
            holder: claimant.holder.clone(),
            ttl_ms: u64::try_from(terms.ttl.as_millis()).unwrap_or(u64::MAX),
            base: base_for(store, job, terms, look).await?,
            attempt: claimant.attempt,
            reason: claimant.reason,
        };
        let record = match settle(store, terms.request_limit(), &key, to_bytes(&record)).await? {
            Settled::Created => record,
            // An earlier try of ours may have arrived late, with the base of that time.
            Settled::There(bytes) => parse_lease(store, &key, &bytes, epoch)?,
            Settled::Unknown(error) => {
                backoff.wait(error).await?;
                continue;
            }
        };
        if !ours(&record) {
            return Ok(Claim::Lost(record));
        }
        let valid_until = sent + terms.validity();
        let late = clock.now() + terms.warn_after() > valid_until;
        // A revocation does not run out: nobody watches it.
        if late && !record.is_revoked() {
            return Err(undated(store, job, epoch));
        }
        return Ok(Claim::Won(Lease {
            record,
            valid_until,
        }));
    }
}

/// Beats once, and looks whether somebody claimed the next epoch. `beat.seq` must be new each time,
/// from 1.
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
    let sent = clock.now();
    let key = job.beat(beat.epoch);
    let put = bounded(
        store,
        terms.request_limit(),
        "put",
        &key,
        store.put(&key, to_bytes(beat)),
    )
    .await;
    // Even if the beat failed, and only after it: a claim seen now may be older than the beat.
    if let Some(bytes) = next_lease(store, job, terms, beat.epoch).await? {
        let epoch = beat.epoch + 1;
        let record = parse_lease(store, &job.lease(epoch), &bytes, epoch);
        return Ok(Beat::Lost(record.ok()));
    }
    put?;
    Ok(Beat::Held {
        valid_until: sent + terms.validity(),
    })
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
    let record = ReleasedRecord {
        version: VERSION,
        epoch: lease.epoch,
        nonce: lease.nonce.clone(),
        reason: reason.to_owned(),
    };
    let key = job.released(lease.epoch);
    create_once(
        store,
        terms,
        &key,
        to_bytes(&record),
        &lease.nonce,
        deadline,
    )
    .await
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
    let key = job.final_of(end.epoch);
    create_once(store, terms, &key, to_bytes(end), &end.nonce, deadline).await
}

/// The orchestrator's hard kill: claims the next epoch so that nobody trains. To let the job go on,
/// release that epoch. `None`: the job has ended, there is nothing to take away.
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
) -> Result<Option<LeaseRecord>, JobError> {
    let mut backoff = Backoff::new(terms.request_limit(), deadline, nonce.as_str());
    let claimant = Claimant {
        nonce,
        holder: Holder {
            agent: Holder::ORCHESTRATOR.to_owned(),
            ..Holder::default()
        },
        attempt: 0,
        reason: LeaseReason::Revoked,
    };
    loop {
        let seen = look(store, job, terms).await?;
        match (seen.standing(), &seen.top) {
            (Standing::Done, _) => return Ok(None),
            (Standing::Revoked, Some(top)) => return Ok(Some(top.record.clone())),
            _ => {}
        }
        let limit = backoff.left();
        match claim(store, clock, job, terms, &seen, &claimant, limit).await? {
            Claim::Won(lease) => return Ok(Some(lease.record)),
            Claim::Lost(_) | Claim::Alive => {
                let taken = format!("epoch {} was claimed meanwhile", seen.epoch() + 1);
                let error = requests::transient(store, "create", &job.leases(), taken);
                backoff.wait(error).await?;
            }
        }
    }
}

/// A lease that others may have watched for longer than we know of: no beat helps, as the last look
/// of a watcher can come before it and the watcher's own claim after everything that we look at.
fn undated(store: &dyn Storage, job: &Job, epoch: u64) -> JobError {
    let detail = "created too long ago to count as ours";
    requests::transient(store, "create", &job.lease(epoch), detail).into()
}

/// The fence of the next epoch: the newest commit of the epoch looked at, else that epoch's own.
async fn base_for(
    store: &dyn Storage,
    job: &Job,
    terms: &Terms,
    look: &Look,
) -> Result<Option<CommitId>, JobError> {
    let Some(top) = &look.top else {
        return Ok(None);
    };
    let prefix = job.commits();
    let listed = bounded(
        store,
        terms.request_limit(),
        "list",
        &prefix,
        list_all(store, &prefix),
    )
    .await?;
    let commits = listed
        .iter()
        .filter_map(|entry| job.parse_commit(&entry.key));
    let newest = commits.filter(|id| id.epoch == top.record.epoch).max();
    Ok(newest.or(top.record.base))
}

/// Whether the holder gave a sign of life since the look.
async fn has_beaten(
    store: &dyn Storage,
    job: &Job,
    terms: &Terms,
    look: &Look,
) -> Result<bool, JobError> {
    let Some(top) = &look.top else {
        return Ok(false);
    };
    let key = job.beat(top.record.epoch);
    // By a listing, as the look did: tags are compared with tags from the same source only.
    let listed = bounded(
        store,
        terms.request_limit(),
        "list",
        &key,
        store.list(&key, None, 1),
    )
    .await?;
    let now = match listed.into_iter().next() {
        Some(entry) => Some(sign_of_life(store, terms, entry).await?),
        None => None,
    };
    Ok(now != top.beat)
}

/// What changes with each beat: the tag that the listing tells. Where listings tell none, the beat
/// itself, or a holder that lives would look dead.
async fn sign_of_life(store: &dyn Storage, terms: &Terms, beat: Entry) -> Result<String, JobError> {
    if !beat.tag.is_empty() {
        return Ok(beat.tag);
    }
    let key = &beat.key;
    let object = bounded(store, terms.request_limit(), "get", key, store.get(key)).await?;
    let record: BeatRecord = parse(store, key, &object.bytes)?;
    Ok(format!("{} {}", record.nonce.as_str(), record.seq))
}

/// The lease after an epoch, if it is claimed.
async fn next_lease(
    store: &dyn Storage,
    job: &Job,
    terms: &Terms,
    epoch: u64,
) -> Result<Option<bytes::Bytes>, JobError> {
    let key = job.lease(epoch + 1);
    match bounded(store, terms.request_limit(), "get", &key, store.get(&key)).await {
        Ok(object) => Ok(Some(object.bytes)),
        Err(error) if error.is_missing() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn parse_lease(
    store: &dyn Storage,
    key: &str,
    bytes: &[u8],
    epoch: u64,
) -> Result<LeaseRecord, JobError> {
    let record: LeaseRecord = parse(store, key, bytes)?;
    if record.epoch == epoch {
        return Ok(record);
    }
    Err(JobError::Malformed {
        store: store.name(),
        key: key.to_owned(),
        detail: format!("expected epoch {epoch}, got {}", record.epoch),
    })
}

/// Creates what only the holder of an epoch creates; an earlier try of ours is as good.
async fn create_once(
    store: &dyn Storage,
    terms: &Terms,
    key: &str,
    body: bytes::Bytes,
    nonce: &Nonce,
    deadline: Duration,
) -> Result<(), JobError> {
    #[derive(serde::Deserialize)]
    struct Author {
        nonce: Nonce,
    }
    let mut backoff = Backoff::new(terms.request_limit(), deadline, nonce.as_str());
    loop {
        match settle(store, terms.request_limit(), key, body.clone()).await? {
            Settled::Created => return Ok(()),
            Settled::There(bytes) => {
                let author = serde_json::from_slice::<Author>(&bytes);
                if author.is_ok_and(|author| author.nonce == *nonce) {
                    return Ok(());
                }
                return Err(JobError::Malformed {
                    store: store.name(),
                    key: key.to_owned(),
                    detail: format!("expected nonce {nonce}, got another's"),
                });
            }
            Settled::Unknown(error) => backoff.wait(error).await?,
        }
    }
}
