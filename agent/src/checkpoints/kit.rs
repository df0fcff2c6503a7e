//! What the tests of checkpoints share: a job in memory, hosts with run directories, a trainer's
//! checkpoints, and a store to which something happens after so many requests.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use protocol::{FileEntry, Manifest, RunDir};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::stage::hexadecimal;
use super::*;
use crate::clock::{Clock, Moment};
use crate::job::{CommitRecord, Holder, Job, LeaseReason, LeaseRecord, Nonce, VERSION, to_bytes};
use crate::storage::faults::{Faulty, Plan};
use crate::storage::memory::Memory;
use crate::storage::{
    Body, Created, Entry, Head, Object, Part, PendingUpload, StorageError, UploadId,
};

pub(super) const CONFIG: &str = "c0ffee";

/// The boot clock of a test: tokio's, paused.
pub(super) struct Paused(tokio::time::Instant);

impl Paused {
    pub(super) fn new() -> Self {
        Self(tokio::time::Instant::now())
    }
}

impl Clock for Paused {
    fn now(&self) -> Moment {
        Moment::since_boot(self.0.elapsed())
    }
}

pub(super) fn allowed() -> bool {
    true
}

pub(super) fn silent(_: Progress) {}

/// A job in a store in memory.
pub(super) struct World {
    pub(super) memory: Arc<dyn Storage>,
    pub(super) store: Arc<dyn Storage>,
    pub(super) faulty: Arc<Faulty>,
    pub(super) job: Job,
    pub(super) transfer: Transfer,
    nonces: AtomicU64,
}

impl World {
    pub(super) fn new() -> Self {
        Self::with(Plan::default())
    }

    pub(super) fn with(plan: Plan) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(Paused::new());
        let memory = Memory::with_clock(Arc::clone(&clock)).with_part_bytes_min(1);
        let memory: Arc<dyn Storage> = Arc::new(memory);
        let faulty = Arc::new(Faulty::new(Arc::clone(&memory), clock, plan));
        Self {
            memory,
            store: Arc::clone(&faulty) as Arc<dyn Storage>,
            faulty,
            job: Job::new("j").unwrap(),
            transfer: Transfer {
                parallel: 4,
                part_bytes_min: 128,
                deadline: Duration::from_secs(600),
            },
            nonces: AtomicU64::new(1),
        }
    }

    pub(super) fn nonce(&self) -> Nonce {
        Nonce::from_bits(u128::from(self.nonces.fetch_add(1, Ordering::Relaxed)))
    }

    /// Claims an epoch with this base, by decree.
    pub(super) async fn lease(&self, epoch: u64, base: Option<CommitId>) {
        let record = LeaseRecord {
            version: VERSION,
            epoch,
            nonce: self.nonce(),
            holder: Holder::default(),
            ttl_ms: 60_000,
            base,
            attempt: 1,
            reason: LeaseReason::First,
        };
        let key = self.job.lease(epoch);
        let created = self.memory.create(&key, to_bytes(&record)).await.unwrap();
        assert!(matches!(created, Created::New(_)), "{key}");
    }

    /// Stages and publishes a checkpoint of `host` without any fault.
    pub(super) async fn publish(
        &self,
        host: &Host,
        epoch: u64,
        step: u64,
        parent: Option<CommitId>,
    ) -> CommitId {
        let mut upload = self.upload(host, epoch, step, parent).await;
        let published = upload
            .run(&self.memory, &self.transfer, &allowed, &silent)
            .await;
        let Ok(Published::Committed(commit)) = published else {
            panic!("{published:?}");
        };
        upload.close(self.memory.as_ref()).await.unwrap();
        commit.id()
    }

    pub(super) async fn upload(
        &self,
        host: &Host,
        epoch: u64,
        step: u64,
        parent: Option<CommitId>,
    ) -> Upload {
        let staged = stage(&host.run_dir, step, &self.transfer).await.unwrap();
        Upload::new(&self.job, epoch, self.nonce(), parent, None, staged)
    }

    pub(super) async fn restore(
        &self,
        host: &Host,
        epoch: u64,
    ) -> Result<Restored, CheckpointError> {
        restore(&self.store, &self.job, epoch, &host.run_dir, &self.transfer).await
    }

    pub(super) async fn history(&self) -> Vec<CommitId> {
        let history = history(&self.memory, &self.job, &self.transfer)
            .await
            .unwrap();
        assert_eq!(history.findings, [], "nothing of the history is unreadable");
        history.commits.iter().map(CommitRecord::id).collect()
    }

    pub(super) async fn commit(&self, id: CommitId) -> CommitRecord {
        crate::job::read(self.memory.as_ref(), &self.job.commit(id))
            .await
            .unwrap()
    }

    pub(super) async fn verify(&self) -> Report {
        let (memory, job) = (&self.memory, &self.job);
        verify(memory, job, Depth::Bytes, &self.transfer)
            .await
            .unwrap()
    }

    /// Every byte of every commit that counts is right.
    pub(super) async fn assert_sound(&self, context: &str) -> Report {
        let report = self.verify().await;
        assert_eq!(report.problems, [] as [&str; 0], "{context}");
        report
    }
}

pub(super) fn id(epoch: u64, step: u64) -> CommitId {
    CommitId { epoch, step }
}

/// A machine with a run directory.
pub(super) struct Host {
    pub(super) run_dir: RunDir,
    _folder: TempDir,
}

impl Host {
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self {
            run_dir: RunDir::new(folder.path()),
            _folder: folder,
        }
    }

    pub(super) fn save(&self, step: u64, salt: u64, val_loss: Option<f64>) {
        save(&self.run_dir, step, salt, val_loss);
    }

    /// Contents of a checkpoint by file; `None` if it is not there.
    pub(super) fn contents(&self, step: u64) -> Option<BTreeMap<String, Vec<u8>>> {
        let entries = fs::read_dir(self.run_dir.checkpoint(step)).ok()?;
        let read = entries.map(|entry| {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read(entry.path()).unwrap())
        });
        Some(read.collect())
    }

    /// Steps of the checkpoints that a trainer would see, oldest first.
    pub(super) fn steps(&self) -> Vec<u64> {
        let Ok(entries) = fs::read_dir(self.run_dir.checkpoints()) else {
            return Vec::new();
        };
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut steps: Vec<u64> = names
            .filter_map(|name| RunDir::checkpoint_step(&name))
            .collect();
        steps.sort_unstable();
        steps
    }
}

/// Writes a checkpoint as a trainer does. `salt` tells two of one step apart.
pub(crate) fn save(run_dir: &RunDir, step: u64, salt: u64, val_loss: Option<f64>) {
    let folder = run_dir.checkpoint(step);
    fs::create_dir_all(&folder).unwrap();
    let mut random = fastrand::Rng::with_seed(step.wrapping_mul(1_000).wrapping_add(salt));
    let mut files = BTreeMap::new();
    for (name, bytes) in [
        // Several parts with a rest, several whole parts, one put, nothing at all.
        (RunDir::MODEL, 200),
        (RunDir::OPTIMIZER, 256),
        (RunDir::STATE, 40),
        (RunDir::VOCAB, 0),
    ] {
        let contents: Vec<u8> = (0..bytes).map(|_| random.u8(..)).collect();
        fs::write(folder.join(name), &contents).unwrap();
        let entry = FileEntry {
            bytes,
            sha256: hexadecimal(&Sha256::digest(&contents)),
        };
        files.insert(name.to_owned(), entry);
    }
    let manifest = Manifest {
        format_version: 1,
        step,
        val_loss,
        config_hash: CONFIG.to_owned(),
        time: "2026-01-02T03:04:05Z".to_owned(),
        files,
    };
    fs::write(folder.join(RunDir::MANIFEST), manifest.to_json()).unwrap();
}

/// A store to which something happens after so many requests.
pub(super) struct Halting {
    inner: Arc<dyn Storage>,
    left: AtomicU64,
    then: Then,
}

enum Then {
    /// It answers no more.
    Halt { carry_out_last: bool },
    /// Somebody else does this to it, once, and it goes on.
    Meanwhile(Mutex<Option<BoxFuture<'static, ()>>>),
}

impl Halting {
    pub(super) fn after(
        inner: &Arc<dyn Storage>,
        requests: u64,
        carry_out_last: bool,
    ) -> Arc<dyn Storage> {
        Arc::new(Self {
            inner: Arc::clone(inner),
            left: AtomicU64::new(requests),
            then: Then::Halt { carry_out_last },
        })
    }

    /// `event` happens right before the request after so many.
    pub(super) fn meanwhile(
        inner: &Arc<dyn Storage>,
        requests: u64,
        event: BoxFuture<'static, ()>,
    ) -> Arc<Self> {
        Arc::new(Self {
            inner: Arc::clone(inner),
            left: AtomicU64::new(requests),
            then: Then::Meanwhile(Mutex::new(Some(event))),
        })
    }

    /// Whether there were enough requests for the event to happen.
    pub(super) fn happened(&self) -> bool {
        matches!(&self.then, Then::Meanwhile(event) if event.lock().unwrap().is_none())
    }

    async fn pass<T>(&self, call: impl Future<Output = T> + Send) -> T {
        let take = |left: u64| left.checked_sub(1);
        if self
            .left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, take)
            .is_ok()
        {
            return call.await;
        }
        match &self.then {
            Then::Halt { carry_out_last } => {
                if *carry_out_last {
                    call.await;
                }
                std::future::pending().await
            }
            Then::Meanwhile(event) => {
                let event = event.lock().unwrap().take();
                if let Some(event) = event {
                    event.await;
                }
                call.await
            }
        }
    }
}

#[async_trait]
impl Storage for Halting {
    fn name(&self) -> String {
        self.inner.name()
    }

    async fn get(&self, key: &str) -> Result<Object, StorageError> {
        self.pass(self.inner.get(key)).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StorageError> {
        self.pass(self.inner.get_range(key, range)).await
    }

    async fn head(&self, key: &str) -> Result<Head, StorageError> {
        self.pass(self.inner.head(key)).await
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<String, StorageError> {
        self.pass(self.inner.put(key, body)).await
    }

    async fn create(&self, key: &str, body: Bytes) -> Result<Created, StorageError> {
        self.pass(self.inner.create(key, body)).await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        max: usize,
    ) -> Result<Vec<Entry>, StorageError> {
        self.pass(self.inner.list(prefix, after, max)).await
    }

    async fn delete(&self, key: &str) -> Result<(), StorageError> {
        self.pass(self.inner.delete(key)).await
    }

    async fn begin_upload(&self, key: &str) -> Result<UploadId, StorageError> {
        self.pass(self.inner.begin_upload(key)).await
    }

    async fn upload_part(
        &self,
        key: &str,
        upload: &UploadId,
        number: u32,
        body: Body,
        crc64nvme: u64,
    ) -> Result<Part, StorageError> {
        let call = self.inner.upload_part(key, upload, number, body, crc64nvme);
        self.pass(call).await
    }

    async fn complete_upload(
        &self,
        key: &str,
        upload: &UploadId,
        parts: &[Part],
        crc64nvme: u64,
    ) -> Result<(), StorageError> {
        let call = self.inner.complete_upload(key, upload, parts, crc64nvme);
        self.pass(call).await
    }

    async fn abort_upload(&self, key: &str, upload: &UploadId) -> Result<(), StorageError> {
        self.pass(self.inner.abort_upload(key, upload)).await
    }

    async fn list_uploads(&self, prefix: &str) -> Result<Vec<PendingUpload>, StorageError> {
        self.pass(self.inner.list_uploads(prefix)).await
    }
}
