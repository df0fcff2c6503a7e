//! Holding on to a local checkpoint while it is uploaded: the trainer may prune its own at any
//! time. Called by the supervisor's loop before publish.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use protocol::{Manifest, RunDir};
use sha2::{Digest, Sha256};

use super::{CheckpointError, Transfer, blocking, local, plain_name};
use crate::storage::crc64::{Crc64, combine};

/// Below the run directory. No trainer looks there.
const STAGE: &str = ".publish";
/// What larger parts than the least are a multiple of.
const PART_BYTES_UNIT: u64 = 1 << 20;
/// Below S3's limit of 10,000, so that rounding never reaches it.
const PARTS_MAX: u64 = 9_000;
const BUFFER_BYTES: usize = 1 << 20;

/// A whole checkpoint that stays as it is until it is discarded.
#[derive(Clone, Debug, PartialEq)]
pub struct Staged {
    pub folder: PathBuf,
    pub manifest: Manifest,
    /// Every file of the checkpoint, the manifest last.
    pub files: Vec<StagedFile>,
}

/// A file with all its checksums, taken in one read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StagedFile {
    pub name: String,
    pub bytes: u64,
    /// Lower-case hexadecimal.
    pub sha256: String,
    /// CRC-64/NVME of the whole file.
    pub crc64nvme: u64,
    /// Size of every part but the last.
    pub part_bytes: u64,
    /// CRC-64/NVME of each part, in order; one for an empty file.
    pub part_crc64nvme: Vec<u64>,
}

impl Staged {
    pub fn step(&self) -> u64 {
        self.manifest.step
    }

    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// Lets go of the files. The trainer's own checkpoint is untouched.
    ///
    /// # Errors
    /// If the folder cannot be removed.
    pub async fn discard(self) -> Result<(), CheckpointError> {
        blocking(move || remove(&self.folder)).await
    }
}

/// Links the checkpoint of `step` into the stage (copies where links fail), then reads every file
/// once: SHA-256 against the manifest, CRC-64/NVME of each part and of the whole.
///
/// # Errors
/// `Gone` if the trainer has pruned it, `Damaged` if it is not what its manifest says.
pub async fn stage(
    run_dir: &RunDir,
    step: u64,
    transfer: &Transfer,
) -> Result<Staged, CheckpointError> {
    /// Tells one stage of this process from the next; what others left is cleared at the start.
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let source = run_dir.checkpoint(step);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("{}-{count}", RunDir::checkpoint_name(step));
    let folder = run_dir.root().join(STAGE).join(name);
    let least = transfer.part_bytes_min;
    blocking(move || {
        let held = hold(&source, &folder);
        let staged = held.and_then(|manifest| check(&source, &folder, manifest, least));
        if staged.is_err() {
            remove(&folder)?;
        }
        staged
    })
    .await
}

/// Removes what a former process left in the stage. Before the first [`stage`] of a process.
///
/// # Errors
/// If the stage cannot be removed.
pub async fn clear_stage(run_dir: &RunDir) -> Result<(), CheckpointError> {
    let folder = run_dir.root().join(STAGE);
    blocking(move || remove(&folder)).await
}

/// Links or copies a checkpoint into `folder`.
fn hold(source: &Path, folder: &Path) -> Result<Manifest, CheckpointError> {
    fs::create_dir_all(folder).map_err(|e| local(folder, e))?;
    let take = |name: &str| {
        let (from, to) = (source.join(name), folder.join(name));
        let taken = match fs::hard_link(&from, &to) {
            // Some file systems have no links, or too many of one file.
            Err(error) if error.kind() != ErrorKind::NotFound => fs::copy(&from, &to).map(|_| ()),
            linked => linked,
        };
        taken.map_err(|error| match error.kind() {
            ErrorKind::NotFound if source.join(RunDir::MANIFEST).exists() => {
                damaged(&from, "named in the manifest and not there")
            }
            ErrorKind::NotFound => CheckpointError::Gone {
                path: source.to_owned(),
            },
            _ => local(&from, error),
        })
    };
    take(RunDir::MANIFEST)?;
    let path = folder.join(RunDir::MANIFEST);
    let text = fs::read(&path).map_err(|e| local(&path, e))?;
    let manifest = Manifest::parse(&String::from_utf8_lossy(&text))
        .map_err(|e| damaged(&source.join(RunDir::MANIFEST), &e.to_string()))?;
    for name in manifest.files.keys() {
        if !plain_name(name) || name == RunDir::MANIFEST {
            let detail = format!("expected plain file names, got {name:?}");
            return Err(damaged(&source.join(RunDir::MANIFEST), &detail));
        }
        take(name)?;
    }
    Ok(manifest)
}

/// Reads what was held once, and compares it with the manifest.
fn check(
    source: &Path,
    folder: &Path,
    manifest: Manifest,
    least: u64,
) -> Result<Staged, CheckpointError> {
    let mut files = Vec::with_capacity(manifest.files.len() + 1);
    for (name, entry) in &manifest.files {
        let path = folder.join(name);
        let file = read_once(&path, name, least).map_err(|e| local(&path, e))?;
        if (file.bytes, &file.sha256) != (entry.bytes, &entry.sha256) {
            let detail = format!(
                "expected {} bytes of sha256 {}, got {} of {}",
                entry.bytes, entry.sha256, file.bytes, file.sha256
            );
            return Err(damaged(&source.join(name), &detail));
        }
        files.push(file);
    }
    let path = folder.join(RunDir::MANIFEST);
    files.push(read_once(&path, RunDir::MANIFEST, least).map_err(|e| local(&path, e))?);
    Ok(Staged {
        folder: folder.to_owned(),
        manifest,
        files,
    })
}

/// All checksums of a file in one read.
fn read_once(path: &Path, name: &str, least: u64) -> io::Result<StagedFile> {
    let mut file = File::open(path)?;
    let part_bytes = part_bytes(file.metadata()?.len(), least);
    let mut buffer = vec![0; BUFFER_BYTES];
    let (mut sha256, mut bytes, mut whole) = (Sha256::new(), 0, 0);
    let mut parts = Vec::new();
    loop {
        let (mut part, mut part_length) = (Crc64::new(), 0);
        while part_length < part_bytes {
            let room = usize::try_from(part_bytes - part_length).unwrap_or(usize::MAX);
            let read = file.read(&mut buffer[..room.min(BUFFER_BYTES)])?;
            if read == 0 {
                break;
            }
            sha256.update(&buffer[..read]);
            part.update(&buffer[..read]);
            part_length += read as u64;
        }
        if part_length > 0 || parts.is_empty() {
            let crc = part.value();
            whole = if parts.is_empty() {
                crc
            } else {
                combine(whole, crc, part_length)
            };
            parts.push(crc);
        }
        bytes += part_length;
        if part_length < part_bytes {
            break;
        }
    }
    Ok(StagedFile {
        name: name.to_owned(),
        bytes,
        sha256: hexadecimal(&sha256.finalize()),
        crc64nvme: whole,
        part_bytes,
        part_crc64nvme: parts,
    })
}

/// The size of every part but the last, of a file of this size.
pub(super) fn part_bytes(file_bytes: u64, least: u64) -> u64 {
    let needed = file_bytes.div_ceil(PARTS_MAX);
    if needed <= least {
        least
    } else {
        needed.next_multiple_of(PART_BYTES_UNIT)
    }
}

/// SHA-256 of a file and its size, read in pieces.
pub(super) fn sha256_of(path: &Path) -> io::Result<(u64, String)> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; BUFFER_BYTES];
    let (mut sha256, mut bytes) = (Sha256::new(), 0);
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok((bytes, hexadecimal(&sha256.finalize())));
        }
        sha256.update(&buffer[..read]);
        bytes += read as u64;
    }
}

pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        write!(text, "{byte:02x}").expect("writing to a string never fails");
    }
    text
}

fn remove(folder: &Path) -> Result<(), CheckpointError> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(local(folder, e)),
        _ => Ok(()),
    }
}

fn damaged(path: &Path, detail: &str) -> CheckpointError {
    CheckpointError::Damaged {
        path: path.to_owned(),
        detail: detail.to_owned(),
    }
}
