//! The one decorator that retries. Called by whoever wants a store that gets over an outage.
//!
//! A create whose answer was lost is settled by reading back: the body that is there tells whose it
//! is, so bodies given to [`Storage::create`] differ from any rival's, by a nonce.

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::{
    Body, Created, Entry, Head, Keys, Object, Part, PendingUpload, Storage, StorageError, UploadId,
};

/// How long and how often to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// One operation ends by then, whatever it took: with its answer or its last error.
    pub deadline: Duration,
    /// The wait after the first failure; it doubles from there on.
    pub wait_first: Duration,
    pub wait_max: Duration,
}

impl Policy {
    /// Waits from 0.2 s to 20 s, for as long as `deadline`.
    pub const fn until(deadline: Duration) -> Self {
        Self {
            deadline,
            wait_first: Duration::from_millis(200),
            wait_max: Duration::from_secs(20),
        }
    }
}

/// A store whose transient errors are tried again until a deadline.
pub struct Retry {
    inner: Arc<dyn Storage>,
    policy: Policy,
    jitter: Mutex<fastrand::Rng>,
}

/// One operation under way: how often it failed and how long it may go on.
struct Attempts<'a> {
    retry: &'a Retry,
    operation: &'static str,
    key: &'a str,
    failed: u32,
    deadline: Instant,
}

impl Retry {
    /// `seed` is of the jitter.
    pub fn new(inner: Arc<dyn Storage>, policy: Policy, seed: u64) -> Self {
        Self {
            inner,
            policy,
            jitter: Mutex::new(fastrand::Rng::with_seed(seed)),
        }
    }

    fn start<'a>(&'a self, operation: &'static str, key: &'a str) -> Attempts<'a> {
        Attempts {
            retry: self,
            operation,
            key,
            failed: 0,
            deadline: Instant::now() + self.policy.deadline,
        }
    }

    async fn again<T, F: Future<Output = Result<T, StorageError>> + Send>(
        &self,
        operation: &'static str,
        key: &str,
        call: impl Fn() -> F + Send,
    ) -> Result<T, StorageError> {
        let mut attempts = self.start(operation, key);
        loop {
            match attempts.limited(call()).await {
                Err(e) if e.is_transient() => attempts.wait(e).await?,
                answer => return answer,
            }
        }
    }
}

impl Attempts<'_> {
    /// One call, cut short at the deadline.
    async fn limited<T>(
        &self,
        call: impl Future<Output = Result<T, StorageError>>,
    ) -> Result<T, StorageError> {
        timeout_at(self.deadline, call).await.unwrap_or_else(|_| {
            let store = self.retry.inner.name();
            let limit = self.retry.policy.deadline.as_secs_f64();
            let detail = format!("no answer within {limit:.1} s");
            Err(StorageError::transient(
                &store,
                self.operation,
                self.key,
                detail,
            ))
        })
    }

    /// Waits before the next attempt, or gives the error back if there is no time for one.
    async fn wait(&mut self, error: StorageError) -> Result<(), StorageError> {
        let policy = &self.retry.policy;
        let longest = policy.wait_first.saturating_mul(1 << self.failed.min(20));
        let longest = longest.min(policy.wait_max);
        let share = {
            let mut jitter = self
                .retry
                .jitter
                .lock()
                .expect("no holder of the lock panics");
            0.5 + 0.5 * jitter.f64()
        };
        self.failed += 1;
        let next = Instant::now() + longest.mul_f64(share);
        if next >= self.deadline {
            return Err(self.told(error));
        }
        sleep_until(next).await;
        Ok(())
    }

    /// The error with how often it was met.
    fn told(&self, error: StorageError) -> StorageError {
        let StorageError::Transient {
            store,
            operation,
            key,
            detail,
        } = error
        else {
            return error;
        };
        let limit = self.retry.policy.deadline.as_secs_f64();
        StorageError::Transient {
            store,
            operation,
            key,
            detail: format!(
                "{detail} (attempt {}, given up at {limit:.1} s)",
                self.failed
            ),
        }
    }
}

#[async_trait]
impl Storage for Retry {
    fn name(&self) -> String {
        self.inner.name()
    }

    fn address(&self) -> Option<String> {
        self.inner.address()
    }

    async fn stranger(&self) -> Option<Arc<dyn Storage>> {
        self.inner.stranger().await
    }

    fn takes_keys(&self) -> bool {
        self.inner.takes_keys()
    }

    fn renew(&self, keys: &Keys) -> Result<(), String> {
        self.inner.renew(keys)
    }

    async fn presigned(&self, key: &str, good_for: Duration) -> Option<String> {
        self.inner.presigned(key, good_for).await
    }

    async fn get(&self, key: &str) -> Result<Object, StorageError> {
        self.again("get", key, || self.inner.get(key)).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StorageError> {
        self.again("get", key, || self.inner.get_range(key, range.clone()))
            .await
    }

    async fn head(&self, key: &str) -> Result<Head, StorageError> {
        self.again("head", key, || self.inner.head(key)).await
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<String, StorageError> {
        self.again("put", key, || self.inner.put(key, body.clone()))
            .await
    }

    async fn create(&self, key: &str, body: Bytes) -> Result<Created, StorageError> {
        let mut attempts = self.start("create", key);
        loop {
            let first = attempts.failed == 0;
            let created = self.inner.create(key, body.clone());
            match attempts.limited(created).await {
                Ok(Created::Exists) if !first => break,
                Err(e) if e.is_transient() => attempts.wait(e).await?,
                answer => return answer,
            }
        }
        // Something is there, and an attempt of ours may have put it there.
        loop {
            match attempts.limited(self.inner.get(key)).await {
                Ok(object) if object.bytes == body => return Ok(Created::New(object.tag)),
                Ok(_) => return Ok(Created::Exists),
                Err(e) if e.is_transient() => attempts.wait(e).await?,
                Err(e) => return Err(e),
            }
        }
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        max: usize,
    ) -> Result<Vec<Entry>, StorageError> {
        self.again("list", prefix, || self.inner.list(prefix, after, max))
            .await
    }

    async fn delete(&self, key: &str) -> Result<(), StorageError> {
        self.again("delete", key, || self.inner.delete(key)).await
    }

    async fn begin_upload(&self, key: &str) -> Result<UploadId, StorageError> {
        self.again("begin upload of", key, || self.inner.begin_upload(key))
            .await
    }

    async fn upload_part(
        &self,
        key: &str,
        upload: &UploadId,
        number: u32,
        body: Body,
        crc64nvme: u64,
    ) -> Result<Part, StorageError> {
        self.again("upload part of", key, || {
            let body = body.clone();
            self.inner.upload_part(key, upload, number, body, crc64nvme)
        })
        .await
    }

    /// Stores differ in what they say to a second completion, so after a failure the object itself
    /// is looked at: it is there, and the checksum is the expected one where the store tells it.
    /// Keys of uploads are used once.
    async fn complete_upload(
        &self,
        key: &str,
        upload: &UploadId,
        parts: &[Part],
        crc64nvme: u64,
    ) -> Result<(), StorageError> {
        let mut attempts = self.start("complete", key);
        loop {
            let completed = self.inner.complete_upload(key, upload, parts, crc64nvme);
            let error = match attempts.limited(completed).await {
                Ok(()) => return Ok(()),
                Err(e) => e,
            };
            let gone = error.is_missing() && attempts.failed > 0;
            if !gone && !error.is_transient() {
                return Err(error);
            }
            if !gone {
                attempts.wait(error).await?;
            }
            match attempts.limited(self.inner.head(key)).await {
                Ok(head) if head.crc64nvme.is_none_or(|crc| crc == crc64nvme) => return Ok(()),
                Err(e) if gone && !e.is_transient() => return Err(e),
                Err(e) if e.is_transient() => attempts.wait(e).await?,
                Ok(_) if gone => {
                    let detail = "the upload is gone, and what is there is something else";
                    return Err(StorageError::permanent(
                        &self.name(),
                        "complete",
                        key,
                        detail,
                    ));
                }
                _ => {}
            }
        }
    }

    async fn abort_upload(&self, key: &str, upload: &UploadId) -> Result<(), StorageError> {
        self.again("abort upload of", key, || {
            self.inner.abort_upload(key, upload)
        })
        .await
    }

    async fn list_uploads(&self, prefix: &str) -> Result<Vec<PendingUpload>, StorageError> {
        self.again("list uploads of", prefix, || {
            self.inner.list_uploads(prefix)
        })
        .await
    }
}
