//! A store in memory. Called by tests and by the simulator: it keeps every promise of the trait,
//! at once, and its tags are as weak as S3's (equal bytes, equal tag).

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use bytes::Bytes;

use super::crc64::crc64nvme;
use super::{
    Body, Created, Entry, Head, Object, Part, PendingUpload, Storage, StorageError, UploadId, keys,
};
use crate::clock::{BootClock, Clock, Moment};

const NAME: &str = "memory";

/// Objects in a map.
pub struct Memory {
    clock: Arc<dyn Clock>,
    /// The least size of every part but the last, in bytes.
    part_bytes_min: u64,
    lists_tags: bool,
    uploads_begun: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Stored>,
    uploads: BTreeMap<String, Upload>,
}

struct Stored {
    bytes: Bytes,
    crc64nvme: u64,
    written: Moment,
}

struct Upload {
    key: String,
    begun: Moment,
    parts: BTreeMap<u32, (Bytes, u64)>,
}

impl Stored {
    fn tag(&self) -> String {
        format!("{:016x}-{}", self.crc64nvme, self.bytes.len())
    }
}

impl Memory {
    pub fn new() -> Self {
        Self::with_clock(Arc::new(BootClock))
    }

    /// A store whose ages are told by `clock`.
    pub fn with_clock(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            part_bytes_min: keys::PART_BYTES_MIN,
            lists_tags: true,
            uploads_begun: AtomicU64::new(0),
            state: Mutex::default(),
        }
    }

    /// The same store, content with smaller parts than S3 is: for simulations of many uploads.
    pub fn with_part_bytes_min(self, part_bytes_min: u64) -> Self {
        Self {
            part_bytes_min,
            ..self
        }
    }

    /// The same store, with listings that leave tags out.
    pub fn without_listed_tags(self) -> Self {
        Self {
            lists_tags: false,
            ..self
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the lock panics")
    }

    fn store(&self, state: &mut State, key: &str, bytes: Bytes) -> String {
        let stored = Stored {
            crc64nvme: crc64nvme(&bytes),
            bytes,
            written: self.clock.now(),
        };
        let tag = stored.tag();
        state.objects.insert(key.to_owned(), stored);
        tag
    }

    fn age_s(&self, then: Moment) -> Option<u64> {
        Some(self.clock.now().since(then).as_secs())
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

fn check(operation: &'static str, key: &str) -> Result<(), StorageError> {
    keys::check(key).map_err(|e| StorageError::permanent(NAME, operation, key, e))
}

fn find<'a>(state: &'a State, key: &str) -> Result<&'a Stored, StorageError> {
    let stored = state.objects.get(key);
    stored.ok_or_else(|| StorageError::missing(NAME, key))
}

#[async_trait]
impl Storage for Memory {
    fn name(&self) -> String {
        NAME.to_owned()
    }

    async fn get(&self, key: &str) -> Result<Object, StorageError> {
        check("get", key)?;
        let state = self.state();
        let stored = find(&state, key)?;
        Ok(Object {
            bytes: stored.bytes.clone(),
            tag: stored.tag(),
        })
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StorageError> {
        check("get", key)?;
        let state = self.state();
        let bytes = &find(&state, key)?.bytes;
        let end = range.end.min(bytes.len() as u64) as usize;
        let start = (range.start.min(end as u64)) as usize;
        Ok(bytes.slice(start..end))
    }

    async fn head(&self, key: &str) -> Result<Head, StorageError> {
        check("head", key)?;
        let state = self.state();
        let stored = find(&state, key)?;
        Ok(Head {
            bytes: stored.bytes.len() as u64,
            tag: stored.tag(),
            crc64nvme: Some(stored.crc64nvme),
        })
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<String, StorageError> {
        check("put", key)?;
        Ok(self.store(&mut self.state(), key, body))
    }

    async fn create(&self, key: &str, body: Bytes) -> Result<Created, StorageError> {
        check("create", key)?;
        let mut state = self.state();
        if state.objects.contains_key(key) {
            return Ok(Created::Exists);
        }
        Ok(Created::New(self.store(&mut state, key, body)))
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        max: usize,
    ) -> Result<Vec<Entry>, StorageError> {
        let state = self.state();
        let found = state.objects.range(prefix.to_owned()..);
        let found = found.take_while(|(key, _)| key.starts_with(prefix));
        let found = found.filter(|(key, _)| after.is_none_or(|after| key.as_str() > after));
        let entries = found.take(max).map(|(key, stored)| Entry {
            key: key.clone(),
            bytes: stored.bytes.len() as u64,
            tag: if self.lists_tags {
                stored.tag()
            } else {
                String::new()
            },
            age_s: self.age_s(stored.written),
        });
        Ok(entries.collect())
    }

    async fn delete(&self, key: &str) -> Result<(), StorageError> {
        check("delete", key)?;
        self.state().objects.remove(key);
        Ok(())
    }

    async fn begin_upload(&self, key: &str) -> Result<UploadId, StorageError> {
        check("begin upload of", key)?;
        let id = self.uploads_begun.fetch_add(1, Ordering::Relaxed);
        let id = format!("upload-{id}");
        let upload = Upload {
            key: key.to_owned(),
            begun: self.clock.now(),
            parts: BTreeMap::new(),
        };
        self.state().uploads.insert(id.clone(), upload);
        Ok(UploadId(id))
    }

    async fn upload_part(
        &self,
        key: &str,
        upload: &UploadId,
        number: u32,
        body: Body,
        crc64nvme: u64,
    ) -> Result<Part, StorageError> {
        let wrong = |detail| StorageError::permanent(NAME, "upload part of", key, detail);
        keys::check_part(number).map_err(wrong)?;
        let bytes = read(body).await.map_err(wrong)?;
        let found = self::crc64nvme(&bytes);
        if found != crc64nvme {
            return Err(wrong(format!(
                "part {number}: expected the checksum {crc64nvme:016x}, got {found:016x}"
            )));
        }
        let mut state = self.state();
        let known = state.uploads.get_mut(&upload.0).filter(|u| u.key == key);
        let known = known.ok_or_else(|| StorageError::missing(NAME, key))?;
        known.parts.insert(number, (bytes, crc64nvme));
        Ok(Part {
            number,
            tag: format!("{crc64nvme:016x}"),
            crc64nvme,
        })
    }

    async fn complete_upload(
        &self,
        key: &str,
        upload: &UploadId,
        parts: &[Part],
        crc64nvme: u64,
    ) -> Result<(), StorageError> {
        let wrong = |detail| StorageError::permanent(NAME, "complete", key, detail);
        let mut state = self.state();
        let known = state.uploads.get(&upload.0).filter(|u| u.key == key);
        let known = known.ok_or_else(|| StorageError::missing(NAME, key))?;
        keys::check_parts(parts).map_err(wrong)?;
        let mut bytes = Vec::new();
        let mut sizes = Vec::new();
        for part in parts {
            let (part_bytes, _) = known
                .parts
                .get(&part.number)
                .filter(|(_, crc)| *crc == part.crc64nvme)
                .ok_or_else(|| wrong(format!("part {} is not what was sent", part.number)))?;
            sizes.push(part_bytes.len() as u64);
            bytes.extend_from_slice(part_bytes);
        }
        keys::check_sizes(&sizes, self.part_bytes_min).map_err(wrong)?;
        let found = self::crc64nvme(&bytes);
        if found != crc64nvme {
            return Err(wrong(format!(
                "expected the checksum {crc64nvme:016x}, got {found:016x}"
            )));
        }
        state.uploads.remove(&upload.0);
        self.store(&mut state, key, Bytes::from(bytes));
        Ok(())
    }

    async fn abort_upload(&self, _key: &str, upload: &UploadId) -> Result<(), StorageError> {
        self.state().uploads.remove(&upload.0);
        Ok(())
    }

    async fn list_uploads(&self, prefix: &str) -> Result<Vec<PendingUpload>, StorageError> {
        let state = self.state();
        let uploads = state.uploads.iter();
        let uploads = uploads.filter(|(_, upload)| upload.key.starts_with(prefix));
        let pending = uploads.map(|(id, upload)| PendingUpload {
            key: upload.key.clone(),
            upload: UploadId(id.clone()),
            age_s: self.age_s(upload.begun),
        });
        Ok(pending.collect())
    }
}

/// The bytes of a part, from wherever they are.
async fn read(body: Body) -> Result<Bytes, String> {
    use std::os::unix::fs::FileExt;
    match body {
        Body::Bytes(bytes) => Ok(bytes),
        Body::File {
            path,
            offset,
            bytes,
        } => {
            let shown = path.display().to_string();
            let read = move || {
                let mut buffer = vec![0; usize::try_from(bytes).expect("a part fits in memory")];
                std::fs::File::open(path)?.read_exact_at(&mut buffer, offset)?;
                Ok::<_, std::io::Error>(Bytes::from(buffer))
            };
            let read = tokio::task::spawn_blocking(read).await;
            let read = read.map_err(|e| format!("{shown}: {e}"))?;
            read.map_err(|e| format!("{shown}: {e}"))
        }
    }
}
