//! The way from an agent to the store: [`Wire`] delays, freezes, dies and is cut with its process;
//! below it are the faults of single requests (`storage::faults`); below them [`Ground`] changes
//! the store and has every change judged.

use std::ops::Range;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::{Instant, sleep};

use super::plan::{Bug, Cut};
use super::truth::Truth;
use crate::storage::faults::Faulty;
use crate::storage::{
    Body, Created, Entry, Head, Object, Part, PendingUpload, Storage, StorageError, UploadId,
};

/// A process's own connection.
pub(super) struct Wire {
    pub(super) who: usize,
    pub(super) truth: Arc<Truth>,
    pub(super) faulty: Arc<Faulty>,
    pub(super) ground: Arc<Ground>,
    /// From here on nothing goes wrong any more.
    pub(super) calm_after: Instant,
    pub(super) random: Mutex<fastrand::Rng>,
    pub(super) requests: AtomicU64,
    pub(super) way_ms_max: u64,
    pub(super) cut: Option<(u64, Cut)>,
    pub(super) wall_off_s: i64,
    pub(super) bug: Option<Bug>,
}

impl Wire {
    /// One request: on its way, carried out, on its way back. One whose sender gives up may arrive
    /// all the same.
    async fn pass<T: Send + 'static>(
        &self,
        what: &'static str,
        key: &str,
        call: impl Future<Output = Result<T, StorageError>> + Send + 'static,
    ) -> Result<T, StorageError> {
        let (up, down, in_the_air) = {
            let mut random = self.random.lock().unwrap();
            let mut way = || Duration::from_millis(random.u64(1..=self.way_ms_max));
            (way(), way(), random.bool())
        };
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        self.truth.count(|counts| counts.requests += 1);
        let cut = self.cut.filter(|(at, _)| *at == number).map(|(_, cut)| cut);
        if cut == Some(Cut::Before) {
            self.truth
                .note(|| format!("agent {} is killed before it {what}s {key}", self.who));
            self.truth.kill(self.who);
        }
        let (who, truth) = (self.who, Arc::clone(&self.truth));
        let request = async move {
            if !in_the_air || truth.is_frozen(who) {
                truth.awake(who).await;
            }
            sleep(up).await;
            if !in_the_air {
                truth.awake(who).await;
            }
            let answer = call.await;
            if cut == Some(Cut::After) {
                truth.note(|| format!("agent {who} is killed, the last request was carried out"));
                truth.kill(who);
            }
            answer
        };
        let answer = if in_the_air && cut.is_none() {
            tokio::spawn(request).await.expect("it does not panic")
        } else {
            request.await
        };
        sleep(down).await;
        self.truth.awake(self.who).await;
        if let Err(error) = &answer
            && !error.is_missing()
        {
            self.truth.note(|| format!("agent {}: {error}", self.who));
        }
        answer
    }

    /// The store as this request meets it.
    fn below(&self) -> Arc<dyn Storage> {
        if Instant::now() >= self.calm_after {
            Arc::clone(&self.ground) as Arc<dyn Storage>
        } else {
            Arc::clone(&self.faulty) as Arc<dyn Storage>
        }
    }

    /// Ages as somebody tells them whose clock is wrong.
    fn aged(&self, age_s: Option<u64>) -> Option<u64> {
        age_s.map(|age| age.saturating_add_signed(self.wall_off_s))
    }

    fn needs_lease(&self, key: &str) -> bool {
        let job = &self.truth.job;
        job.parse_commit(key).is_some() || key.starts_with(&job.finals())
    }
}

#[async_trait]
impl Storage for Wire {
    fn name(&self) -> String {
        "memory".to_owned()
    }

    async fn get(&self, key: &str) -> Result<Object, StorageError> {
        let (below, at) = (self.below(), key.to_owned());
        self.pass("get", key, async move { below.get(&at).await })
            .await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StorageError> {
        let (below, at) = (self.below(), key.to_owned());
        let call = async move { below.get_range(&at, range).await };
        self.pass("get", key, call).await
    }

    async fn head(&self, key: &str) -> Result<Head, StorageError> {
        let (below, at) = (self.below(), key.to_owned());
        self.pass("head", key, async move { below.head(&at).await })
            .await
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<String, StorageError> {
        let (below, at) = (self.below(), key.to_owned());
        self.pass("put", key, async move { below.put(&at, body).await })
            .await
    }

    async fn create(&self, key: &str, body: Bytes) -> Result<Created, StorageError> {
        if self.needs_lease(key) {
            self.truth.asks(self.who, "create", key).await;
        }
        self.truth.sends(key, &body);
        let (below, at) = (self.below(), key.to_owned());
        self.pass("create", key, async move { below.create(&at, body).await })
            .await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        max: usize,
    ) -> Result<Vec<Entry>, StorageError> {
        let (below, at) = (self.below(), prefix.to_owned());
        let after = after.map(str::to_owned);
        let call = async move { below.list(&at, after.as_deref(), max).await };
        let listed = match self.pass("list", prefix, call).await {
            Err(_) if self.bug == Some(Bug::ErrorsAreEmpty) => Vec::new(),
            listed => listed?,
        };
        let aged = listed.into_iter().map(|entry| Entry {
            age_s: self.aged(entry.age_s),
            ..entry
        });
        Ok(aged.collect())
    }

    async fn delete(&self, key: &str) -> Result<(), StorageError> {
        self.truth.asks(self.who, "delete", key).await;
        let (below, at) = (self.below(), key.to_owned());
        self.pass("delete", key, async move { below.delete(&at).await })
            .await
    }

    async fn begin_upload(&self, key: &str) -> Result<UploadId, StorageError> {
        let (below, at) = (self.below(), key.to_owned());
        let call = async move { below.begin_upload(&at).await };
        self.pass("begin upload of", key, call).await
    }

    async fn upload_part(
        &self,
        key: &str,
        upload: &UploadId,
        number: u32,
        body: Body,
        crc64nvme: u64,
    ) -> Result<Part, StorageError> {
        let (below, at, upload) = (self.below(), key.to_owned(), upload.clone());
        let body = Body::Bytes(read(key, body)?);
        let call = async move {
            let part = below.upload_part(&at, &upload, number, body, crc64nvme);
            part.await
        };
        self.pass("upload part of", key, call).await
    }

    async fn complete_upload(
        &self,
        key: &str,
        upload: &UploadId,
        parts: &[Part],
        crc64nvme: u64,
    ) -> Result<(), StorageError> {
        let (below, at) = (self.below(), key.to_owned());
        let (upload, parts) = (upload.clone(), parts.to_vec());
        let call = async move { below.complete_upload(&at, &upload, &parts, crc64nvme).await };
        self.pass("complete", key, call).await
    }

    async fn abort_upload(&self, key: &str, upload: &UploadId) -> Result<(), StorageError> {
        let (below, at, upload) = (self.below(), key.to_owned(), upload.clone());
        let call = async move { below.abort_upload(&at, &upload).await };
        self.pass("abort upload of", key, call).await
    }

    async fn list_uploads(&self, prefix: &str) -> Result<Vec<PendingUpload>, StorageError> {
        let (below, at) = (self.below(), prefix.to_owned());
        let call = async move { below.list_uploads(&at).await };
        let listed = self.pass("list uploads of", prefix, call).await?;
        let aged = listed.into_iter().map(|upload| PendingUpload {
            age_s: self.aged(upload.age_s),
            ..upload
        });
        Ok(aged.collect())
    }
}

/// The bytes of a part, read here and now.
fn read(key: &str, body: Body) -> Result<Bytes, StorageError> {
    use std::os::unix::fs::FileExt;
    let (path, offset, bytes) = match body {
        Body::Bytes(bytes) => return Ok(bytes),
        Body::File {
            path,
            offset,
            bytes,
        } => (path, offset, bytes),
    };
    let mut buffer = vec![0; usize::try_from(bytes).unwrap()];
    let read = std::fs::File::open(&path).and_then(|f| f.read_exact_at(&mut buffer, offset));
    read.map_err(|e| StorageError::permanent("memory", "read", key, e))?;
    Ok(Bytes::from(buffer))
}

/// The store itself, as one process changes it.
pub(super) struct Ground {
    pub(super) who: usize,
    pub(super) truth: Arc<Truth>,
    /// Where the files of checkpoints are instead of the store, if they come after the commit.
    pub(super) elsewhere: Option<Arc<dyn Storage>>,
}

impl Ground {
    fn store(&self, key: &str) -> &dyn Storage {
        match &self.elsewhere {
            Some(elsewhere) if key.starts_with(&self.truth.job.all_data()) => elsewhere.as_ref(),
            _ => self.truth.memory.as_ref(),
        }
    }

    /// Before an object is written that is written once.
    async fn writes(&self, key: &str, crc64nvme: u64) {
        if key.starts_with(&self.truth.job.all_data())
            && let Ok(head) = self.store(key).head(key).await
        {
            self.truth.require(head.crc64nvme == Some(crc64nvme), || {
                format!("agent {} overwrites {key}", self.who)
            });
        }
    }
}

#[async_trait]
impl Storage for Ground {
    fn name(&self) -> String {
        "memory".to_owned()
    }

    async fn get(&self, key: &str) -> Result<Object, StorageError> {
        self.store(key).get(key).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StorageError> {
        self.store(key).get_range(key, range).await
    }

    async fn head(&self, key: &str) -> Result<Head, StorageError> {
        self.store(key).head(key).await
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<String, StorageError> {
        let crc64nvme = crate::storage::crc64::crc64nvme(&body);
        self.writes(key, crc64nvme).await;
        let tag = self.store(key).put(key, body.clone()).await?;
        self.truth.changes(key);
        let created = Created::New(tag.clone());
        self.truth.created(self.who, key, &body, &created).await;
        Ok(tag)
    }

    async fn create(&self, key: &str, body: Bytes) -> Result<Created, StorageError> {
        let created = self.store(key).create(key, body.clone()).await?;
        self.truth.changes(key);
        self.truth.created(self.who, key, &body, &created).await;
        Ok(created)
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        max: usize,
    ) -> Result<Vec<Entry>, StorageError> {
        self.store(prefix).list(prefix, after, max).await
    }

    async fn delete(&self, key: &str) -> Result<(), StorageError> {
        self.truth.deleting(self.who, key).await;
        self.store(key).delete(key).await?;
        self.truth.changes(key);
        self.truth
            .note(|| format!("agent {}: deleted {key}", self.who));
        self.truth.check("the deletion", false).await;
        Ok(())
    }

    async fn begin_upload(&self, key: &str) -> Result<UploadId, StorageError> {
        self.store(key).begin_upload(key).await
    }

    async fn upload_part(
        &self,
        key: &str,
        upload: &UploadId,
        number: u32,
        body: Body,
        crc64nvme: u64,
    ) -> Result<Part, StorageError> {
        let store = self.store(key);
        store
            .upload_part(key, upload, number, body, crc64nvme)
            .await
    }

    async fn complete_upload(
        &self,
        key: &str,
        upload: &UploadId,
        parts: &[Part],
        crc64nvme: u64,
    ) -> Result<(), StorageError> {
        self.writes(key, crc64nvme).await;
        let store = self.store(key);
        store.complete_upload(key, upload, parts, crc64nvme).await
    }

    async fn abort_upload(&self, key: &str, upload: &UploadId) -> Result<(), StorageError> {
        self.store(key).abort_upload(key, upload).await
    }

    async fn list_uploads(&self, prefix: &str) -> Result<Vec<PendingUpload>, StorageError> {
        self.store(prefix).list_uploads(prefix).await
    }
}
