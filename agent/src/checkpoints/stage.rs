//! Holding on to a local checkpoint while it is uploaded: the trainer may prune its own at any time.
//! Called by the supervisor's loop before publish.

use std::path::PathBuf;

use protocol::{Manifest, RunDir};

use super::CheckpointError;

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
        unimplemented!()
    }
}

/// Links the checkpoint of `step` into the stage (copies where links fail), then reads every file
/// once: SHA-256 against the manifest, CRC-64/NVME of each part and of the whole.
///
/// # Errors
/// `Gone` if the trainer has pruned it, `Damaged` if it is not what its manifest says.
pub async fn stage(run_dir: &RunDir, step: u64) -> Result<Staged, CheckpointError> {
    unimplemented!("{run_dir:?} {step}")
}

/// Removes what a former process left in the stage. Before the first [`stage`] of a process.
///
/// # Errors
/// If the stage cannot be removed.
pub async fn clear_stage(run_dir: &RunDir) -> Result<(), CheckpointError> {
    unimplemented!("{run_dir:?}")
}
