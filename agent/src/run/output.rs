//! The output of a job in the store: segments of its log, by attempt. Called by the loop's asks.

#[cfg(test)]
mod tests;

use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;

use crate::job::Job;
use crate::logs::Logs;
use crate::storage::{Created, Storage, StorageError};

const LISTED_MAX: usize = 100_000;
/// Keys tried for a segment: more than one are taken only where two holders had the same attempt.
const KEYS_MAX: usize = 4;

/// Brings segments to the store, oldest first. One whose key is taken goes behind the others of its
/// attempt: a holder that died before anybody could know of its last attempt had the same number.
pub(super) async fn ship(
    store: &dyn Storage,
    job: &Job,
    logs: &Logs,
    last: bool,
) -> Result<(), StorageError> {
    if last {
        logs.flush(Duration::from_secs(2)).await;
    }
    while let Some(segment) = logs.next_segment() {
        let key = format!("{}{}", job.prefix(), segment.key);
        place(store, job, &key, segment.bytes.into()).await?;
        logs.stored(&segment.key);
    }
    Ok(())
}

async fn place(
    store: &dyn Storage,
    job: &Job,
    key: &str,
    bytes: Bytes,
) -> Result<(), StorageError> {
    let mut free = key.to_owned();
    for _ in 0..KEYS_MAX {
        let created = store.create(&free, bytes.clone()).await?;
        // One that is there already may be our own, of a try whose answer was lost.
        if matches!(created, Created::New(_)) || store.get(&free).await?.bytes == bytes {
            return Ok(());
        }
        free = next_key(store, job, key).await?;
    }
    let detail = "others take every key behind it";
    Err(StorageError::transient(
        &store.name(),
        "create",
        key,
        detail,
    ))
}

/// The key behind all segments of the attempt that `key` is of.
async fn next_key(store: &dyn Storage, job: &Job, key: &str) -> Result<String, StorageError> {
    let (attempt, number) = job.parse_log_segment(key).expect("it is a segment's key");
    let listed = store.list(&job.logs(), None, LISTED_MAX).await?;
    let segments = listed
        .iter()
        .filter_map(|entry| job.parse_log_segment(&entry.key));
    let numbers = segments.filter(|(other, _)| *other == attempt);
    let last = numbers.map(|(_, number)| number).max().unwrap_or(number);
    Ok(job.log_segment(attempt, last + 1))
}

/// The highest attempt that has left output in the store, or that its holder spoke of: one that
/// died young has left none.
pub(super) async fn last_attempt(store: &dyn Storage, job: &Job) -> Result<u32, StorageError> {
    let listed = store.list(&job.logs(), None, LISTED_MAX).await?;
    let attempts = listed
        .iter()
        .filter_map(|entry| job.parse_log_segment(&entry.key));
    let stored = attempts.map(|(attempt, _)| attempt).max().unwrap_or(0);
    let status = match store.get(&job.status()).await {
        Ok(status) => status.bytes,
        Err(error) if error.is_missing() => return Ok(stored),
        Err(error) => return Err(error),
    };
    let status: Value = serde_json::from_slice(&status).unwrap_or_default();
    let told = status["status"]["attempt"].as_u64().unwrap_or(0);
    Ok(stored.max(u32::try_from(told).unwrap_or(0)))
}
