//! Uploads in parts to a folder. Called by the local store.
//!
//! A part whose place is known is written right there in the file that becomes the object, so that
//! a checkpoint crosses the disk once. Its place is known once part 1 has told the parts' size;
//! what comes before that, and the shorter last part, waits in a file of its own.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use super::super::crc64::{self, Crc64};
use super::super::{Body, Part, PendingUpload, UploadId, keys};
use super::{sync_folder, unique};

const BLOCK_BYTES: usize = 1 << 20;

/// The uploads of this process; those of a dead one can be listed and aborted, not continued.
pub(super) struct Uploads {
    folder: PathBuf,
    known: Mutex<HashMap<String, Upload>>,
}

struct Upload {
    key: String,
    /// Of every part but the last.
    part_bytes: Option<u64>,
    parts: BTreeMap<u32, Sent>,
}

#[derive(Clone, Copy)]
struct Sent {
    bytes: u64,
    crc64nvme: u64,
    /// Whether it is in the object's file already.
    in_place: bool,
}

impl Uploads {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            known: Mutex::default(),
        }
    }

    pub(super) fn make_folder(&self) -> io::Result<()> {
        fs::create_dir_all(&self.folder)
    }

    pub(super) fn begin(&self, key: &str) -> io::Result<UploadId> {
        let id = unique();
        let folder = self.folder.join(&id);
        fs::create_dir(&folder)?;
        fs::write(folder.join("key"), key)?;
        File::create_new(folder.join("object"))?;
        let upload = Upload {
            key: key.to_owned(),
            part_bytes: None,
            parts: BTreeMap::new(),
        };
        self.known().insert(id.clone(), upload);
        Ok(UploadId(id))
    }

    pub(super) fn part(
        &self,
        key: &str,
        id: &UploadId,
        number: u32,
        body: &Body,
        crc64nvme: u64,
    ) -> io::Result<Part> {
        keys::check_part(number).map_err(wrong)?;
        let bytes = body.size();
        let place = self.place(key, id, number, bytes)?;
        let folder = self.folder.join(&id.0);
        let (path, offset) = match place {
            Some(offset) => (folder.join("object"), offset),
            None => (folder.join(number.to_string()), 0),
        };
        let mut options = OpenOptions::new();
        let file = options.write(true).create(place.is_none()).open(path)?;
        let found = copy(body, &file, offset)?;
        if found != crc64nvme {
            return Err(wrong(format!(
                "part {number}: expected the checksum {crc64nvme:016x}, got {found:016x}"
            )));
        }
        let sent = Sent {
            bytes,
            crc64nvme,
            in_place: place.is_some(),
        };
        self.with(key, id, |upload| upload.parts.insert(number, sent))?;
        Ok(Part {
            number,
            tag: format!("{crc64nvme:016x}"),
            crc64nvme,
        })
    }

    /// Puts the parts together and onto the disk; the path of the whole file.
    pub(super) fn assemble(
        &self,
        key: &str,
        id: &UploadId,
        parts: &[Part],
        crc64nvme: u64,
    ) -> io::Result<PathBuf> {
        keys::check_parts(parts).map_err(wrong)?;
        let known = self.with(key, id, |upload| upload.parts.clone())?;
        let mut sent = Vec::new();
        for part in parts {
            let known = known.get(&part.number);
            let known = known.filter(|sent| sent.crc64nvme == part.crc64nvme);
            let known =
                known.ok_or_else(|| wrong(format!("part {} is not what was sent", part.number)))?;
            sent.push((part.number, *known));
        }
        let sizes: Vec<u64> = sent.iter().map(|(_, sent)| sent.bytes).collect();
        keys::check_sizes(&sizes, keys::PART_BYTES_MIN).map_err(wrong)?;
        let whole = sent.iter().fold(0, |crc, (_, sent)| {
            crc64::combine(crc, sent.crc64nvme, sent.bytes)
        });
        if whole != crc64nvme {
            return Err(wrong(format!(
                "expected the checksum {crc64nvme:016x}, got {whole:016x}"
            )));
        }
        let folder = self.folder.join(&id.0);
        let path = folder.join("object");
        let object = OpenOptions::new().write(true).open(&path)?;
        for (number, part) in sent.iter().filter(|(_, sent)| !sent.in_place) {
            let body = Body::File {
                path: folder.join(number.to_string()),
                offset: 0,
                bytes: part.bytes,
            };
            let found = copy(&body, &object, u64::from(*number - 1) * sizes[0])?;
            if found != part.crc64nvme {
                return Err(wrong(format!("part {number} changed on the disk")));
            }
        }
        object.set_len(sizes.iter().sum())?;
        object.sync_all()?;
        Ok(path)
    }

    pub(super) fn abort(&self, id: &UploadId) -> io::Result<()> {
        let known = self.known().remove(&id.0).is_some();
        // Only names that `unique` makes: an id must not lead elsewhere.
        let ours = known || id.0.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
        if !ours || id.0.is_empty() {
            return Ok(());
        }
        match fs::remove_dir_all(self.folder.join(&id.0)) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            removed => removed.and_then(|()| sync_folder(&self.folder)),
        }
    }

    pub(super) fn list(&self, prefix: &str) -> io::Result<Vec<PendingUpload>> {
        let mut pending = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            // Completed or aborted meanwhile.
            let Ok(key) = fs::read_to_string(entry.path().join("key")) else {
                continue;
            };
            if !key.starts_with(prefix) {
                continue;
            }
            let age = age_s(&entry.path().join("key"));
            pending.push(PendingUpload {
                key,
                upload: UploadId(entry.file_name().to_string_lossy().into_owned()),
                age_s: age.ok(),
            });
        }
        Ok(pending)
    }

    /// Where in the object a part belongs, if that is known.
    fn place(&self, key: &str, id: &UploadId, number: u32, bytes: u64) -> io::Result<Option<u64>> {
        let first = |upload: &mut Upload| {
            if number == 1 {
                upload.part_bytes.get_or_insert(bytes);
            }
            upload.part_bytes
        };
        let size = self.with(key, id, first)?;
        if number == 1 && size != Some(bytes) {
            let detail = format!("part 1 has {bytes} bytes, expected {size:?} as before");
            return Err(wrong(detail));
        }
        let size = size.filter(|size| *size == bytes);
        Ok(size.map(|size| u64::from(number - 1) * size))
    }

    fn with<T>(
        &self,
        key: &str,
        id: &UploadId,
        work: impl FnOnce(&mut Upload) -> T,
    ) -> io::Result<T> {
        let mut known = self.known();
        let upload = known.get_mut(&id.0).filter(|upload| upload.key == key);
        upload.map(work).ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Upload>> {
        self.known.lock().expect("no holder of the lock panics")
    }
}

fn wrong(detail: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, detail)
}

fn age_s(path: &Path) -> io::Result<u64> {
    let modified = fs::metadata(path)?.modified()?;
    Ok(modified.elapsed().unwrap_or_default().as_secs())
}

/// Copies a part to a file and says the checksum of what it copied.
fn copy(body: &Body, to: &File, offset: u64) -> io::Result<u64> {
    let mut crc = Crc64::new();
    match body {
        Body::Bytes(bytes) => {
            crc.update(bytes);
            to.write_all_at(bytes, offset)?;
        }
        Body::File {
            path,
            offset: from,
            bytes,
        } => {
            let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
            let source = File::open(path).map_err(|e| wrong(named(e).to_string()))?;
            let mut block = vec![0; BLOCK_BYTES];
            let mut done = 0;
            while done < *bytes {
                let size = (*bytes - done).min(BLOCK_BYTES as u64) as usize;
                source
                    .read_exact_at(&mut block[..size], from + done)
                    .map_err(named)?;
                crc.update(&block[..size]);
                to.write_all_at(&block[..size], offset + done)?;
                done += size as u64;
            }
        }
    }
    Ok(crc.value())
}
