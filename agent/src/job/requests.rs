//! Single requests: each bounded, a create settled by what is there. Called by the lease and by
//! publish, which decide for themselves whether to try again.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep_until, timeout};

use super::JobError;
use crate::storage::{Created, Storage, StorageError};

/// The wait after the first failure; it doubles from there on.
const WAIT_FIRST: Duration = Duration::from_millis(200);

/// What one try to create something came to.
pub(crate) enum Settled {
    Created,
    /// This is there now, perhaps from an earlier try of ours.
    There(Bytes),
    /// It may arrive yet.
    Unknown(StorageError),
}

/// One request, cut short at a limit.
pub(crate) async fn bounded<T, E: From<StorageError>>(
    store: &dyn Storage,
    limit: Duration,
    operation: &'static str,
    key: &str,
    request: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    timeout(limit, request).await.unwrap_or_else(|_| {
        let detail = format!("no answer within {:.1} s", limit.as_secs_f64());
        Err(transient(store, operation, key, detail).into())
    })
}

/// Tries once to create `key`, and reads back what is there unless it was created for certain.
///
/// # Errors
/// What trying again cannot help.
pub(crate) async fn settle(
    store: &dyn Storage,
    limit: Duration,
    key: &str,
    body: Bytes,
) -> Result<Settled, JobError> {
    let created = match bounded(store, limit, "create", key, store.create(key, body)).await {
        Ok(Created::New(_)) => return Ok(Settled::Created),
        Ok(Created::Exists) => transient(store, "create", key, "refused, yet nothing is there"),
        Err(error) if error.is_transient() => error,
        Err(error) => return Err(error.into()),
    };
    match bounded(store, limit, "get", key, store.get(key)).await {
        Ok(object) => Ok(Settled::There(object.bytes)),
        Err(error) if error.is_missing() => Ok(Settled::Unknown(created)),
        Err(error) if error.is_transient() => Ok(Settled::Unknown(error)),
        Err(error) => Err(error.into()),
    }
}

pub(crate) fn transient(
    store: &dyn Storage,
    operation: &'static str,
    key: &str,
    detail: impl Into<String>,
) -> StorageError {
    StorageError::Transient {
        store: store.name(),
        operation,
        key: key.to_owned(),
        detail: detail.into(),
    }
}

/// Waits between tries, until a deadline.
pub(crate) struct Backoff {
    give_up: Instant,
    longest: Duration,
    wait: Duration,
    jitter: DefaultHasher,
}

impl Backoff {
    /// `seed` tells one of several racers from the others.
    pub(crate) fn new(longest: Duration, deadline: Duration, seed: &str) -> Self {
        let mut jitter = DefaultHasher::new();
        seed.hash(&mut jitter);
        Self {
            give_up: Instant::now() + deadline,
            longest,
            wait: WAIT_FIRST,
            jitter,
        }
    }

    pub(crate) fn left(&self) -> Duration {
        self.give_up.saturating_duration_since(Instant::now())
    }

    /// Waits, or gives the error back if the deadline comes first.
    pub(crate) async fn wait(&mut self, error: StorageError) -> Result<(), JobError> {
        self.wait.hash(&mut self.jitter);
        // Half of the wait is certain, half is drawn.
        let drawn = (self.jitter.finish() % 1024) as f64 / 2048.0;
        let next = Instant::now() + self.wait.min(self.longest).mul_f64(0.5 + drawn);
        if next >= self.give_up {
            return Err(error.into());
        }
        self.wait = self
            .wait
            .saturating_mul(2)
            .min(self.longest.max(WAIT_FIRST));
        sleep_until(next).await;
        Ok(())
    }
}
