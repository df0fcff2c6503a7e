//! One commit on its way into the run directory. Called by restore only.
//!
//! Files are fetched in ranges into `.restore/<commit>/`; beside each stands a list of the ranges
//! that are there, so that a process that comes after goes on where this one was killed. The list
//! is a help and no truth: SHA-256 decides, and if it disagrees with what was found here, the file
//! is fetched once more as a whole.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use protocol::{Manifest, RunDir};

use super::local::sync_folder;
use crate::checkpoints::stage::sha256_of;
use crate::checkpoints::{CheckpointError, Transfer, blocking, local, plain_name};
use crate::job::{CommitFile, CommitRecord, Job};
use crate::storage::retry::Retry;
use crate::storage::{Storage, StorageError};

/// Below the run directory, on the same file system as the checkpoints.
const FOLDER: &str = ".restore";
/// A range is a part, up to this: what is in flight is in memory.
const RANGE_BYTES_MAX: u64 = 8 << 20;
/// What a disk should have left beyond the checkpoint: its records, events and logs.
const SPARE_BYTES: u64 = 64 << 20;

pub(super) struct Download<'a> {
    store: &'a Arc<Retry>,
    job: &'a Job,
    commit: &'a CommitRecord,
    run_dir: &'a RunDir,
    transfer: &'a Transfer,
    folder: PathBuf,
}

/// What is wrong with a commit, in words; or the work's outcome.
pub(super) type Judged<T> = Result<T, String>;

impl<'a> Download<'a> {
    pub(super) fn new(
        store: &'a Arc<Retry>,
        job: &'a Job,
        commit: &'a CommitRecord,
        run_dir: &'a RunDir,
        transfer: &'a Transfer,
    ) -> Self {
        Self {
            store,
            job,
            commit,
            run_dir,
            transfer,
            folder: folder_of(run_dir, commit.step).join(commit.nonce.as_str()),
        }
    }

    /// Looks at every file in the store, then fetches; its size.
    pub(super) async fn obtain(&self) -> Result<Judged<u64>, CheckpointError> {
        match examine(self.store.as_ref(), self.job, self.commit).await? {
            Some(detail) => Ok(Err(detail)),
            None => self.fetch().await,
        }
    }

    /// Fetches what is missing and verifies all of it; its size.
    pub(super) async fn fetch(&self) -> Result<Judged<u64>, CheckpointError> {
        self.make_room().await?;
        for file in &self.commit.files {
            if let Err(detail) = self.fetch_file(file).await? {
                return Ok(Err(detail));
            }
        }
        let (folder, commit) = (self.folder.clone(), self.commit.clone());
        let home = folder_of(self.run_dir, commit.step);
        blocking(move || {
            if let Err(detail) = agrees(&folder, &commit) {
                return Ok(Err(detail));
            }
            for file in &commit.files {
                let list = list_of(&folder, file.name());
                fs::remove_file(&list).map_err(|e| local(&list, e))?;
            }
            sync_folder(&folder).map_err(|e| local(&folder, e))?;
            // Complete: from here on `appear` finds it.
            let ready = home.join(READY);
            fs::rename(&folder, &ready).map_err(|e| local(&ready, e))?;
            Ok(Ok(commit.bytes()))
        })
        .await
    }

    /// Removes what other commits left half fetched, and sees whether the disk can take this one.
    async fn make_room(&self) -> Result<(), CheckpointError> {
        let (folder, commit) = (self.folder.clone(), self.commit.clone());
        let home = self.run_dir.root().join(FOLDER);
        blocking(move || {
            (|| {
                fs::create_dir_all(&home)?;
                for other in fs::read_dir(&home)? {
                    let other = other?.path();
                    if folder.starts_with(&other) {
                        continue;
                    }
                    fs::remove_dir_all(other)?;
                }
                fs::create_dir_all(&folder)?;
                let ready = folder.with_file_name(READY);
                if ready.exists() {
                    fs::remove_dir_all(ready)?;
                }
                Ok(())
            })()
            .map_err(|e| local(&home, e))?;
            let space = rustix::fs::statvfs(&home).map_err(|e| local(&home, e.into()))?;
            let free = space.f_bavail.saturating_mul(space.f_frsize);
            let there: u64 = commit.files.iter().map(|file| on_disk(&folder, file)).sum();
            let need = commit.bytes().saturating_sub(there) + SPARE_BYTES;
            if free >= need {
                return Ok(());
            }
            Err(CheckpointError::NoSpace {
                path: home,
                step: commit.step,
                need,
                free,
            })
        })
        .await
    }

    /// One file, whole and verified. Once more from nothing if what was found here was wrong.
    async fn fetch_file(&self, file: &CommitFile) -> Result<Judged<()>, CheckpointError> {
        loop {
            let (found_here, answer) = self.fetch_ranges(file).await?;
            if let Err(detail) = answer {
                return Ok(Err(detail));
            }
            let (path, list) = (self.path(file), list_of(&self.folder, file.name()));
            let expected = file.clone();
            let wrong = blocking(move || {
                let synced = File::open(&path).and_then(|file| file.sync_all());
                synced.map_err(|e| local(&path, e))?;
                let (bytes, sha256) = sha256_of(&path).map_err(|e| local(&path, e))?;
                if (bytes, &sha256) == (expected.bytes, &expected.sha256) {
                    return Ok(None);
                }
                for wrong in [&path, &list] {
                    fs::remove_file(wrong).map_err(|e| local(wrong, e))?;
                }
                Ok(Some(format!(
                    "{}: expected {} bytes of sha256 {}, got {bytes} of {sha256}",
                    expected.key, expected.bytes, expected.sha256
                )))
            })
            .await?;
            match wrong {
                None => return Ok(Ok(())),
                Some(detail) if !found_here => return Ok(Err(detail)),
                Some(_) => {}
            }
        }
    }

    /// Fetches the ranges that are missing. Whether some were here already; what is wrong.
    async fn fetch_ranges(&self, file: &CommitFile) -> Result<(bool, Judged<()>), CheckpointError> {
        let (path, list) = (self.path(file), list_of(&self.folder, file.name()));
        let range_bytes = self.transfer.part_bytes_min.min(RANGE_BYTES_MAX);
        let bytes = file.bytes;
        let (there, sink) = blocking(move || open(&path, &list, bytes)).await?;
        let sink = Arc::new(sink);
        let ranges = (0..bytes.div_ceil(range_bytes))
            .filter(|index| !there.contains(index))
            .map(|index| {
                let range = index * range_bytes..bytes.min((index + 1) * range_bytes);
                let (key, sink) = (self.job.key(&file.key), Arc::clone(&sink));
                let store = Arc::clone(self.store);
                async move {
                    let part = store.get_range(&key, range.clone()).await?;
                    let (got, expected) = (part.len() as u64, range.end - range.start);
                    if got != expected {
                        let at = range.start;
                        let detail = format!("expected {expected} bytes at {at}, got {got}");
                        return Ok(Err(format!("{key}: {detail}")));
                    }
                    blocking(move || sink.take(index, range.start, &part)).await?;
                    Ok::<_, CheckpointError>(Ok(()))
                }
            });
        let mut fetched = stream::iter(ranges).buffer_unordered(self.transfer.parallel.max(1));
        while let Some(answer) = fetched.next().await {
            match answer {
                Ok(Ok(())) => {}
                Ok(Err(detail)) => return Ok((false, Err(detail))),
                Err(error) if is_missing(&error) => {
                    let detail = format!("{}: not there", file.key);
                    return Ok((false, Err(detail)));
                }
                Err(error) => return Err(error),
            }
        }
        Ok((!there.is_empty(), Ok(())))
    }

    fn path(&self, file: &CommitFile) -> PathBuf {
        self.folder.join(file.name())
    }
}

/// What is wrong with a commit, by its record and by what the store says of each file.
pub(in crate::checkpoints) async fn examine(
    store: &dyn Storage,
    job: &Job,
    commit: &CommitRecord,
) -> Result<Option<String>, CheckpointError> {
    let data = job.data(commit.id(), &commit.nonce);
    let mut names = BTreeSet::new();
    for file in &commit.files {
        let name = file.name();
        if job.key(&file.key) != format!("{data}{name}") || !plain_name(name) || !names.insert(name)
        {
            return Ok(Some(format!("names {:?} among its files", file.key)));
        }
    }
    if !names.contains(RunDir::MANIFEST) {
        return Ok(Some(format!("no {} among its files", RunDir::MANIFEST)));
    }
    for file in &commit.files {
        let key = job.key(&file.key);
        let head = match store.head(&key).await {
            Ok(head) => head,
            Err(error) if error.is_missing() => {
                return Ok(Some(format!("{}: not there", file.key)));
            }
            Err(error) => return Err(error.into()),
        };
        if head.bytes != file.bytes {
            let (key, expected) = (&file.key, file.bytes);
            return Ok(Some(format!(
                "{key}: expected {expected} bytes, got {}",
                head.bytes
            )));
        }
        if let Some(crc) = head.crc64nvme.filter(|crc| *crc != file.crc64nvme) {
            let (key, expected) = (&file.key, file.crc64nvme);
            let detail = format!("{key}: expected crc64nvme {expected:016x}, got {crc:016x}");
            return Ok(Some(detail));
        }
    }
    Ok(None)
}

/// Moves what was fetched among the checkpoints. What stood there was put aside before.
pub(super) async fn appear(run_dir: &RunDir, step: u64) -> Result<(), CheckpointError> {
    let run_dir = run_dir.clone();
    blocking(move || {
        let home = folder_of(&run_dir, step);
        let checkpoint = run_dir.checkpoint(step);
        (|| {
            fs::create_dir_all(run_dir.checkpoints())?;
            // Without a manifest, so it was no checkpoint.
            match fs::remove_dir_all(&checkpoint) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            fs::rename(home.join(READY), &checkpoint)?;
            sync_folder(&run_dir.checkpoints())?;
            fs::remove_dir_all(run_dir.root().join(FOLDER))
        })()
        .map_err(|e| local(&checkpoint, e))
    })
    .await
}

/// A checkpoint that was fetched and verified.
const READY: &str = "ready";

fn folder_of(run_dir: &RunDir, step: u64) -> PathBuf {
    run_dir
        .root()
        .join(FOLDER)
        .join(RunDir::checkpoint_name(step))
}

/// Where a file's list of ranges stands.
fn list_of(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!(".{name}.ranges"))
}

/// A file that is being put together, and the list of what it has.
struct Sink {
    path: PathBuf,
    file: File,
    list: File,
}

impl Sink {
    fn take(&self, index: u64, offset: u64, part: &Bytes) -> Result<(), CheckpointError> {
        (|| {
            self.file.write_all_at(part, offset)?;
            // One short write to the end of a file: whole lines even from several threads.
            (&self.list).write_all(format!("{index}\n").as_bytes())
        })()
        .map_err(|e| local(&self.path, e))
    }
}

/// Opens a file to go on with it; which ranges it has.
fn open(path: &Path, list: &Path, bytes: u64) -> Result<(BTreeSet<u64>, Sink), CheckpointError> {
    (|| {
        let there = match fs::read_to_string(list) {
            Ok(text) if path.exists() => {
                text.lines().filter_map(|line| line.parse().ok()).collect()
            }
            _ => BTreeSet::new(),
        };
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)?;
        file.set_len(bytes)?;
        let mut options = OpenOptions::new();
        if there.is_empty() {
            options.write(true).truncate(true);
        } else {
            options.append(true);
        }
        let list = options.create(true).open(list)?;
        let sink = Sink {
            path: path.to_owned(),
            file,
            list,
        };
        Ok((there, sink))
    })()
    .map_err(|e| local(path, e))
}

/// How much of a file is on the disk already.
fn on_disk(folder: &Path, file: &CommitFile) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let found = fs::metadata(folder.join(file.name()));
    found.map_or(0, |found| (found.blocks() * 512).min(file.bytes))
}

/// Whether the manifest that was fetched says what the commit says.
fn agrees(folder: &Path, commit: &CommitRecord) -> Judged<()> {
    let path = folder.join(RunDir::MANIFEST);
    let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", RunDir::MANIFEST))?;
    let manifest = Manifest::parse(&text).map_err(|e| format!("{}: {e}", RunDir::MANIFEST))?;
    let mut listed = manifest.files.len();
    for file in commit
        .files
        .iter()
        .filter(|file| file.name() != RunDir::MANIFEST)
    {
        let entry = manifest.files.get(file.name());
        if entry.is_none_or(|e| (e.bytes, &e.sha256) != (file.bytes, &file.sha256)) {
            return Err(format!("its manifest says otherwise of {}", file.name()));
        }
        listed -= 1;
    }
    if listed == 0 && manifest.step == commit.step {
        Ok(())
    } else {
        Err("its manifest is of another checkpoint".to_owned())
    }
}

fn is_missing(error: &CheckpointError) -> bool {
    use crate::job::JobError;
    matches!(
        error,
        CheckpointError::Job(JobError::Storage(StorageError::Missing { .. }))
    )
}
