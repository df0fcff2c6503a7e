//! `agent reap`: jobs whose holder fell silent without writing down an end. Called by the command
//! line. It reads the store and changes nothing.
//!
//! Nobody's clock is compared with another's: either the beats are watched on our own for longer
//! than a ttl, or their ages are asked of the store.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::clock::Clock;
use crate::job::{BeatRecord, Job, JobError, LeaseKey, StatusEnvelope, read};
use crate::lease::{self, Silence, Standing, Terms, Top, Watch};
use crate::storage::retry::{Policy, Retry};
use crate::storage::{Storage, StorageError};

/// Keys listed at once.
const PAGE: usize = 1000;
/// No store holds as many pages of keys that are looked at one by one.
const PAGES_MAX: usize = 10_000;
/// One request is tried for so long.
const PATIENCE: Duration = Duration::from_secs(60);
/// How many times while it lasts a watch looks again.
const LOOKS: u32 = 8;

/// A job that somebody holds and nobody tends.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Leftover {
    pub job: String,
    pub epoch: u64,
    /// The agent's name of itself: host and process.
    pub holder: String,
    pub boot: String,
    pub provider: Option<String>,
    pub instance: Option<String>,
    pub gpu: Option<String>,
    /// How long ago its last sign of life was, by the store's clock, where it tells.
    pub silent_s: Option<u64>,
    /// The step of its last beat.
    pub step: Option<u64>,
    /// What it had spent by then, as it said.
    pub spent_usd: Option<f64>,
    pub usd_per_hour: Option<f64>,
    /// What the machine has cost since then if it still runs: nobody works on it.
    pub wasted_usd: Option<f64>,
}

/// How silence is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Silent {
    /// No beat on our clock for longer than the lease's ttl.
    Watched,
    /// The last sign is older than this by the store's clock.
    Since(Duration),
}

/// Finds leftovers in a store. `usd_per_hour` is what a machine costs whose price nobody told.
///
/// # Errors
/// Of the store, or if a record there cannot be read.
pub async fn reap(
    store: &Arc<dyn Storage>,
    clock: &dyn Clock,
    silent: Silent,
    usd_per_hour: Option<f64>,
) -> Result<Vec<Leftover>, JobError> {
    let retry = Retry::new(
        Arc::clone(store),
        Policy::until(PATIENCE),
        fastrand::u64(..),
    );
    let store: &dyn Storage = &retry;
    let terms = Terms::default();
    let mut held = Vec::new();
    for job in jobs(store).await? {
        if let Some(top) = holder(store, &job, &terms).await? {
            let mut watch = Watch::default();
            watch.see(&terms, &top, clock.now());
            held.push((job, top, watch));
        }
    }
    if silent == Silent::Watched
        && let Some(ttl_ms) = held.iter().map(|(_, top, _)| top.record.ttl_ms).max()
    {
        let patience = terms.patience(Duration::from_millis(ttl_ms));
        let mut expired = Vec::new();
        for _ in 0..=LOOKS {
            tokio::time::sleep(patience / LOOKS).await;
            for (job, before, mut watch) in std::mem::take(&mut held) {
                // One whose beat has changed lives.
                let Some(top) = holder(store, &job, &terms).await? else {
                    continue;
                };
                if (top.record.epoch, &top.beat) != (before.record.epoch, &before.beat) {
                    continue;
                }
                match watch.see(&terms, &top, clock.now()) {
                    Silence::Expired => expired.push((job, top, watch)),
                    Silence::Until(_) => held.push((job, top, watch)),
                }
            }
        }
        held = expired;
    }
    let mut leftovers = Vec::new();
    for (job, top, _) in held {
        let found = describe(store, &job, &top, usd_per_hour).await?;
        let since = match silent {
            Silent::Watched => true,
            Silent::Since(since) => found.silent_s.is_some_and(|age| age >= since.as_secs()),
        };
        if since {
            leftovers.push(found);
        }
    }
    leftovers.sort_by(|a, b| b.silent_s.cmp(&a.silent_s).then(a.job.cmp(&b.job)));
    Ok(leftovers)
}

/// Who holds a job, unless nobody does or it has its end.
async fn holder(store: &dyn Storage, job: &Job, terms: &Terms) -> Result<Option<Top>, JobError> {
    let look = lease::look(store, job, terms).await?;
    Ok(look
        .top
        .clone()
        .filter(|_| look.standing() == Standing::Held))
}

async fn describe(
    store: &dyn Storage,
    job: &Job,
    top: &Top,
    usd_per_hour: Option<f64>,
) -> Result<Leftover, JobError> {
    let epoch = top.record.epoch;
    let beat = there(read::<BeatRecord>(store, &job.beat(epoch)).await)?;
    let status = there(read::<StatusEnvelope>(store, &job.status()).await)?;
    let told = status.filter(|status| status.epoch == epoch);
    let told = told.and_then(|it| it.status["cost"]["price_per_hour"].as_f64());
    let usd_per_hour = told.or(usd_per_hour);
    let signs = crate::job::list_all(store, &job.leases()).await?;
    let of_epoch = signs.into_iter().filter(|sign| {
        matches!(
            job.parse_lease(&sign.key),
            Some(LeaseKey::Record(of) | LeaseKey::Beat(of)) if of == epoch
        )
    });
    let silent_s = of_epoch.filter_map(|sign| sign.age_s).min();
    let holder = &top.record.holder;
    Ok(Leftover {
        job: job.id().to_owned(),
        epoch,
        holder: holder.agent.clone(),
        boot: holder.boot.clone(),
        provider: holder.provider.clone(),
        instance: holder.instance.clone(),
        gpu: holder.gpu.clone(),
        silent_s,
        step: beat.as_ref().map(|beat| beat.step),
        spent_usd: beat.map(|beat| beat.spent_usd),
        usd_per_hour,
        wasted_usd: silent_s
            .zip(usd_per_hour)
            .map(|(age, price)| age as f64 / 3600.0 * price),
    })
}

/// A record, or that there is none for certain.
fn there<R>(answer: Result<R, JobError>) -> Result<Option<R>, JobError> {
    match answer {
        Ok(record) => Ok(Some(record)),
        Err(error) if error.is_missing() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Every job of a store, by name: a job is what has a lease. Data, commits and logs are many and
/// are stepped over.
async fn jobs(store: &dyn Storage) -> Result<Vec<Job>, StorageError> {
    let mut found = BTreeSet::new();
    let mut after: Option<String> = None;
    for _ in 0..PAGES_MAX {
        let page = store.list("", after.as_deref(), PAGE).await?;
        let full = page.len() == PAGE;
        let mut over = None;
        for entry in &page {
            match part_of(&entry.key) {
                Some((job, Part::Lease)) => {
                    found.insert(job.id().to_owned());
                }
                // The next page begins behind this folder.
                Some((_, Part::Many(folder))) if full => {
                    over = Some(format!("{folder}~"));
                    break;
                }
                _ => {}
            }
        }
        after = match (over, page.last()) {
            (Some(over), _) => Some(over),
            (None, Some(last)) if full => Some(last.key.clone()),
            _ => break,
        };
    }
    Ok(found
        .into_iter()
        .filter_map(|id| Job::new(id).ok())
        .collect())
}

/// What of a job an object is.
enum Part {
    Lease,
    /// One of many below this folder.
    Many(String),
}

fn part_of(key: &str) -> Option<(Job, Part)> {
    let words = ["/lease/", "/data/", "/commit/", "/logs/"];
    for word in words {
        for (at, _) in key.match_indices(word) {
            let Ok(job) = Job::new(&key[..at]) else {
                continue;
            };
            if word == "/lease/" && job.parse_lease(key).is_some() {
                return Some((job, Part::Lease));
            }
            let many = job.parse_data(key).is_some()
                || job.parse_commit(key).is_some()
                || job.parse_log_segment(key).is_some();
            if many {
                let folder = key[..at + word.len()].to_owned();
                return Some((job, Part::Many(folder)));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests;
