//! Rehearsals on a live job: what goes wrong goes wrong for real, for a while. Called by the loop.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rustix::fs::{FallocateFlags, Mode, OFlags, fallocate, fstatvfs, openat};
use rustix::process::Signal;
use tokio::time::{Instant, sleep};

use super::{Executor, PREFIX};
use crate::state::{Drill, Level};
use crate::storage::{
    Body, Created, Entry, Head, Keys, Object, Part, PendingUpload, Storage, StorageError, UploadId,
};

/// How long an outage, a jump of the clock or a full disk lasts.
const LASTS: Duration = Duration::from_secs(30);
/// How far the wall clock jumps.
const JUMP_S: i64 = 10 * 3600;

/// What people's clock shows beside the truth, in a drill.
static JUMPED_S: AtomicI64 = AtomicI64::new(0);

/// The time for people.
pub(super) fn wall_clock() -> jiff::Timestamp {
    let jumped = jiff::SignedDuration::from_secs(JUMPED_S.load(Ordering::Relaxed));
    jiff::Timestamp::now()
        .saturating_add(jumped)
        .unwrap_or(jiff::Timestamp::MAX)
}

impl Executor {
    pub(super) fn rehearse(&self, drill: Drill) {
        let logs = Arc::clone(&self.logs);
        let over = move || logs.note(&format!("{PREFIX}drill: {} is over", drill.name()));
        match drill {
            // The supervisor does it by itself.
            Drill::Preempt => {}
            Drill::Stall => {
                if let Some(child) = &self.child
                    && let Err(error) = child.signal(Signal::STOP)
                {
                    self.say(Level::Warning, &format!("drill: {error}"));
                }
            }
            Drill::StoreOutage => {
                self.options.machine.outage.begin(LASTS);
                tokio::spawn(async move {
                    sleep(LASTS).await;
                    over();
                });
            }
            Drill::ClockJump => {
                JUMPED_S.store(JUMP_S, Ordering::Relaxed);
                tokio::spawn(async move {
                    sleep(LASTS).await;
                    JUMPED_S.store(0, Ordering::Relaxed);
                    over();
                });
            }
            Drill::DiskFull => match Ballast::take(self.options.run_dir.root(), None) {
                Ok(ballast) => {
                    tokio::spawn(async move {
                        sleep(LASTS).await;
                        drop(ballast);
                        over();
                    });
                }
                Err(error) => self.say(Level::Warning, &format!("drill: {error}")),
            },
        }
    }
}

/// Takes the room of a disk: a file without a name, which is gone when this is dropped, however the
/// agent ends.
struct Ballast {
    /// Held for its room alone.
    _file: File,
    #[cfg(test)]
    bytes: u64,
}

impl Ballast {
    /// All that is free in the filesystem of this folder, or at most so much.
    ///
    /// # Errors
    /// If the filesystem knows no files without a name, or gives nothing.
    fn take(folder: &Path, bytes_max: Option<u64>) -> io::Result<Self> {
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = openat(rustix::fs::CWD, folder, flags, Mode::RUSR | Mode::WUSR)?;
        let room = fstatvfs(&file)?;
        let free = room.f_bavail.saturating_mul(room.f_frsize);
        let free = free.min(bytes_max.unwrap_or(free));
        fallocate(&file, FallocateFlags::empty(), 0, free)?;
        Ok(Self {
            _file: File::from(file),
            #[cfg(test)]
            bytes: free,
        })
    }
}

/// Until when no request reaches the store.
#[derive(Clone, Default)]
pub struct Outage(Arc<Mutex<Option<Instant>>>);

impl Outage {
    fn begin(&self, lasts: Duration) {
        let mut until = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *until = Some(Instant::now() + lasts);
    }

    fn is_now(&self) -> bool {
        let until = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Instant::now() < until)
    }

    /// The store, as it is reached where this can cut it off.
    pub fn over(&self, store: Arc<dyn Storage>) -> Arc<dyn Storage> {
        Arc::new(Cuttable {
            below: store,
            outage: self.clone(),
        })
    }
}

struct Cuttable {
    below: Arc<dyn Storage>,
    outage: Outage,
}

impl Cuttable {
    fn way(&self, operation: &'static str, key: &str) -> Result<&dyn Storage, StorageError> {
        if self.outage.is_now() {
            let (store, detail) = (self.below.name(), "cut off by a drill");
            return Err(StorageError::transient(&store, operation, key, detail));
        }
        Ok(&*self.below)
    }
}

#[async_trait]
impl Storage for Cuttable {
    fn name(&self) -> String {
        self.below.name()
    }

    fn address(&self) -> Option<String> {
        self.below.address()
    }

    async fn stranger(&self) -> Option<Arc<dyn Storage>> {
        self.below.stranger().await
    }

    fn takes_keys(&self) -> bool {
        self.below.takes_keys()
    }

    fn renew(&self, keys: &Keys) -> Result<(), String> {
        self.below.renew(keys)
    }

    async fn presigned(&self, key: &str, good_for: Duration) -> Option<String> {
        self.below.presigned(key, good_for).await
    }

    async fn get(&self, key: &str) -> Result<Object, StorageError> {
        self.way("get", key)?.get(key).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StorageError> {
        self.way("get", key)?.get_range(key, range).await
    }

    async fn head(&self, key: &str) -> Result<Head, StorageError> {
        self.way("head", key)?.head(key).await
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<String, StorageError> {
        self.way("put", key)?.put(key, body).await
    }

    async fn create(&self, key: &str, body: Bytes) -> Result<Created, StorageError> {
        self.way("create", key)?.create(key, body).await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        max: usize,
    ) -> Result<Vec<Entry>, StorageError> {
        self.way("list", prefix)?.list(prefix, after, max).await
    }

    async fn delete(&self, key: &str) -> Result<(), StorageError> {
        self.way("delete", key)?.delete(key).await
    }

    async fn begin_upload(&self, key: &str) -> Result<UploadId, StorageError> {
        self.way("begin upload of", key)?.begin_upload(key).await
    }

    async fn upload_part(
        &self,
        key: &str,
        upload: &UploadId,
        number: u32,
        body: Body,
        crc64nvme: u64,
    ) -> Result<Part, StorageError> {
        self.way("upload part of", key)?
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
        self.way("complete upload of", key)?
            .complete_upload(key, upload, parts, crc64nvme)
            .await
    }

    async fn abort_upload(&self, key: &str, upload: &UploadId) -> Result<(), StorageError> {
        self.way("abort upload of", key)?
            .abort_upload(key, upload)
            .await
    }

    async fn list_uploads(&self, prefix: &str) -> Result<Vec<PendingUpload>, StorageError> {
        self.way("list uploads of", prefix)?
            .list_uploads(prefix)
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::memory::Memory;

    fn free(folder: &Path) -> u64 {
        let room = rustix::fs::statvfs(folder).unwrap();
        room.f_bavail * room.f_frsize
    }

    #[test]
    fn a_ballast_takes_room_and_gives_it_back() {
        let folder = tempfile::tempdir().unwrap();
        let bytes = 64 << 20;
        let before = free(folder.path());
        let ballast = Ballast::take(folder.path(), Some(bytes)).unwrap();
        assert_eq!(ballast.bytes, bytes);
        // Others use the disk as well, but hardly half of that meanwhile.
        assert!(free(folder.path()) + bytes / 2 < before);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        drop(ballast);
        assert!(free(folder.path()) + bytes / 2 > before);
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_is_of_the_way_and_ends() {
        let outage = Outage::default();
        let store = outage.over(Arc::new(Memory::new()));
        store.put("a", "1".into()).await.unwrap();
        outage.begin(LASTS);
        let cut = store.get("a").await.unwrap_err();
        assert!(cut.is_transient(), "{cut}");
        assert!(store.list("", None, 1).await.is_err());
        tokio::time::advance(LASTS).await;
        assert_eq!(store.get("a").await.unwrap().bytes, "1");
    }
}
