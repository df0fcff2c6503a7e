//! The operations on files that checkpoints are made of, for the other parts of `checkpoint`.
//!
//! Everything that changes the disk goes through here and reports to `before`, so that a test can
//! kill the process ahead of any single one.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use protocol::{FileEntry, RunDir};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

#[cfg(test)]
use super::tests::kill::before;
#[cfg(not(test))]
fn before(_operation: &str, _path: &Path) {}

/// Hashed and written in pieces that stay in the cache between the two. Tests take small ones, to
/// be killed inside a file too.
const PIECE_BYTES: usize = if cfg!(test) { 512 } else { 1 << 20 };

/// Replaces or creates a file so that a reader, or the next start after a crash, finds the old
/// contents or the new ones whole. The temporary file beside it has a fixed name: two processes
/// must not write the same file at once.
///
/// # Errors
/// [`Error::Write`]; the old contents stay.
pub fn atomic_write(path: &Path, contents: &[u8]) -> Result<()> {
    let name = path.file_name().expect("the caller names a file");
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut temporary_name = std::ffi::OsString::from(RunDir::TEMPORARY_PREFIX);
    temporary_name.push(name);
    let temporary = folder.join(temporary_name);
    let written = write_file(&temporary, contents).and_then(|_| rename(&temporary, path));
    if written.is_err() {
        // The first error is the one to report; what is left over is overwritten next time.
        drop(fs::remove_file(&temporary));
    }
    written?;
    sync_dir(folder)
}

/// A file that is hashed while it is written, so that it need not be read again.
pub(super) struct HashingFile {
    file: File,
    path: PathBuf,
    sha256: Sha256,
    bytes: u64,
}

impl HashingFile {
    pub(super) fn create(path: &Path) -> Result<Self> {
        before("create", path);
        Ok(Self {
            file: File::create(path).map_err(Error::write(path))?,
            path: path.to_owned(),
            sha256: Sha256::new(),
            bytes: 0,
        })
    }

    pub(super) fn write(&mut self, contents: &[u8]) -> Result<()> {
        for piece in contents.chunks(PIECE_BYTES) {
            before("write", &self.path);
            self.sha256.update(piece);
            self.file
                .write_all(piece)
                .map_err(Error::write(&self.path))?;
            self.bytes += piece.len() as u64;
        }
        Ok(())
    }

    /// Brings it to the disk and tells what was written.
    pub(super) fn finish(self) -> Result<FileEntry> {
        before("sync", &self.path);
        self.file.sync_all().map_err(Error::write(&self.path))?;
        Ok(FileEntry {
            bytes: self.bytes,
            sha256: hexadecimal(&self.sha256.finalize()),
        })
    }
}

/// Writes one file whole and brings it to the disk.
pub(super) fn write_file(path: &Path, contents: &[u8]) -> Result<FileEntry> {
    let mut file = HashingFile::create(path)?;
    file.write(contents)?;
    file.finish()
}

/// Makes a directory and those above it. One that is there already is fine.
pub(super) fn create_dir_all(path: &Path) -> Result<()> {
    before("mkdir", path);
    fs::create_dir_all(path).map_err(Error::write(path))
}

pub(super) fn rename(from: &Path, to: &Path) -> Result<()> {
    before("rename", to);
    fs::rename(from, to).map_err(Error::write(to))
}

/// Brings the names in a directory to the disk.
pub(super) fn sync_dir(path: &Path) -> Result<()> {
    before("sync", path);
    match File::open(path).and_then(|directory| directory.sync_all()) {
        // Some network file systems know no fsync of a directory; they order renames themselves.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported
            ) =>
        {
            Ok(())
        }
        result => result.map_err(Error::write(path)),
    }
}

/// Deletes a checkpoint, or what is left of one: renamed first, so that nobody ever takes one that
/// is half deleted for whole.
pub(super) fn discard(run: &RunDir, path: &Path) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let doomed = run.checkpoints().join(format!(
        "{}delete-{}",
        RunDir::TEMPORARY_PREFIX,
        name.trim_start_matches(RunDir::TEMPORARY_PREFIX)
    ));
    if is_there(&doomed) {
        remove(&doomed)?;
    }
    rename(path, &doomed)?;
    remove(&doomed)
}

/// Deletes a file, or a directory with everything in it.
pub(super) fn remove(path: &Path) -> Result<()> {
    let about = fs::symlink_metadata(path).map_err(Error::write(path))?;
    if !about.is_dir() {
        before("remove", path);
        return fs::remove_file(path).map_err(Error::write(path));
    }
    for entry in fs::read_dir(path).map_err(Error::write(path))? {
        remove(&entry.map_err(Error::write(path))?.path())?;
    }
    before("rmdir", path);
    fs::remove_dir(path).map_err(Error::write(path))
}

/// Whether a file, a directory or a dangling link has this name.
pub(super) fn is_there(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// Where the checkpoint of a step waits while its successor of the same step moves in. It still
/// counts while nothing stands in its place.
pub(super) fn set_aside(run: &RunDir, step: u64) -> PathBuf {
    run.checkpoints().join(format!(
        "{}old-{}",
        RunDir::TEMPORARY_PREFIX,
        RunDir::checkpoint_name(step)
    ))
}

/// The step of a directory made by [`set_aside`]; `None` for any other name.
pub(super) fn set_aside_step(name: &str) -> Option<u64> {
    let name = name.strip_prefix(RunDir::TEMPORARY_PREFIX)?;
    checkpoint_step(name.strip_prefix("old-")?)
}

/// The step of a checkpoint's directory, if its name is spelled as we spell it.
pub(super) fn checkpoint_step(name: &str) -> Option<u64> {
    RunDir::checkpoint_step(name).filter(|&step| RunDir::checkpoint_name(step) == name)
}

pub(super) fn hexadecimal(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
