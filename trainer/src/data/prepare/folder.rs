//! The folder of a dataset in the making and how it gets its place. Called by `prepare`.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::super::dataset::{INFO, TOKENIZER, TRAIN, VAL, VOCAB};
use crate::{Error, Result};

/// Folders in the making start with this.
const PREFIX: &str = ".tmp-";
/// Locked by whoever works in the folder; the lock ends with the process, however that ends.
const LOCK: &str = "lock";
/// A younger folder may be on its way from its creation to its lock.
const LOCKED_AFTER: Duration = Duration::from_secs(10);
/// A folder without a lock is about to get its place, or its file system knows no locks: only one
/// in which nothing has been created for so long is cleared away.
const ABANDONED_AFTER: Duration = Duration::from_secs(24 * 3600);

/// What to do with a dataset that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IfPresent {
    /// An error.
    Refuse,
    /// Nothing: it is as good as the new one.
    Keep,
    /// The new one takes its place.
    Replace,
}

/// Refuses `out_dir` early if it will be refused in the end.
pub(super) fn check(out_dir: &Path, if_present: IfPresent) -> Result<()> {
    if if_present == IfPresent::Refuse && out_dir.join(TRAIN).exists() {
        return Err(Error::config(format!(
            "{}: holds a dataset already\nhint: --overwrite replaces it",
            out_dir.display()
        )));
    }
    Ok(())
}

/// A folder of this process alone, beside the one that it is to become. Removed with its contents
/// when dropped before it is installed.
pub(super) struct Workshop {
    dir: PathBuf,
    /// Holds the lock.
    _lock: File,
}

impl Workshop {
    /// Makes the folder beside `out_dir` and clears away those of processes that died.
    pub(super) fn open(out_dir: &Path) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let parent = parent(out_dir);
        fs::create_dir_all(parent).map_err(Error::write(parent))?;
        clear_abandoned(parent);
        let dir = parent.join(format!(
            "{PREFIX}{}-{}-{}",
            out_dir.file_name().unwrap_or_default().display(),
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        ));
        // Another container that shares the disk may have given the same number to its process.
        fs::create_dir(&dir).map_err(Error::write(&dir))?;
        let path = dir.join(LOCK);
        let lock = File::create(&path).map_err(Error::write(&path))?;
        // Where locks are unknown, nobody else gets this one either.
        lock.try_lock().ok();
        Ok(Self { dir, _lock: lock })
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Gives the finished files their place in `out_dir`. A new folder appears at once as a whole;
    /// in one that exists `train.bin` comes last, so that the dataset is there when all of it is.
    pub(super) fn install(self, out_dir: &Path, if_present: IfPresent) -> Result<()> {
        let lock = self.dir.join(LOCK);
        fs::remove_file(&lock).map_err(Error::write(&lock))?;
        sync_dir(&self.dir)?;
        match fs::rename(&self.dir, out_dir) {
            Ok(()) => return sync_dir(parent(out_dir)),
            Err(_) if out_dir.is_dir() => {}
            Err(error) => return Err(Error::write(out_dir)(error)),
        }
        let train = out_dir.join(TRAIN);
        if train.exists() {
            check(out_dir, if_present)?;
            if if_present == IfPresent::Keep {
                return Ok(());
            }
            fs::remove_file(&train).map_err(Error::write(&train))?;
        }
        for name in [VOCAB, TOKENIZER, INFO, VAL, TRAIN] {
            let (from, to) = (self.dir.join(name), out_dir.join(name));
            let moved = match fs::rename(&from, &to) {
                // The other kind of tokenizer must not stay behind.
                Err(error) if error.kind() == io::ErrorKind::NotFound => remove_if_present(&to),
                other => other,
            };
            moved.map_err(Error::write(&to))?;
        }
        sync_dir(out_dir)
    }
}

impl Drop for Workshop {
    fn drop(&mut self) {
        // After the renaming it is gone; otherwise what cannot be removed is cleared away later.
        fs::remove_dir_all(&self.dir).ok();
    }
}

/// Removes the folders in the making whose makers are dead. What cannot be removed stays.
fn clear_abandoned(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else {
        return;
    };
    for entry in entries.flatten() {
        let is_ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        if is_ours && is_abandoned(&entry.path()) {
            fs::remove_dir_all(entry.path()).ok();
        }
    }
}

fn is_abandoned(dir: &Path) -> bool {
    let modified = fs::metadata(dir).and_then(|metadata| metadata.modified());
    let Some(age) = modified.ok().and_then(|time| time.elapsed().ok()) else {
        return false;
    };
    let is_unlocked = || File::open(dir.join(LOCK)).is_ok_and(|lock| lock.try_lock().is_ok());
    age > ABANDONED_AFTER || (age > LOCKED_AFTER && is_unlocked())
}

fn remove_if_present(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The folder that holds `path`.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// Flushes the names in a folder to the disk.
fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(Error::write(dir))
}
