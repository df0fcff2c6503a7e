//! What the run directory holds and whose it is. Called by restore only.

use std::cmp::Reverse;
use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use protocol::{Manifest, RunDir};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::checkpoints::stage::{hexadecimal, sha256_of};
use crate::checkpoints::{CheckpointError, blocking, local, plain_name};
use crate::job::{CommitId, CommitRecord, Job};

/// In the run directory: whose checkpoints these are.
const NOTE: &str = ".job.json";
/// In the run directory: checkpoints that the last restore put aside. The next one that puts some
/// aside removes them.
const ASIDE: &str = ".aside";

/// Which job the run directory works for, and what its checkpoints descend from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    pub(super) job: String,
    /// The epoch under which this run directory is published.
    pub(super) epoch: u64,
    /// The commit that was restored, or whose descendants were kept.
    pub(super) commit: Option<CommitId>,
}

impl Note {
    pub(super) fn of(job: &Job, epoch: u64, commit: Option<CommitId>) -> Self {
        Self {
            job: job.id().to_owned(),
            epoch,
            commit,
        }
    }

    /// The note, if there is one. One that cannot be read counts as none: the checkpoints beside it
    /// are then a stranger's.
    pub(super) async fn read(run_dir: &RunDir) -> Result<Option<Self>, CheckpointError> {
        let path = run_dir.root().join(NOTE);
        blocking(move || match fs::read(&path) {
            Ok(text) => Ok(serde_json::from_slice(&text).ok()),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(local(&path, e)),
        })
        .await
    }

    pub(super) async fn write(&self, run_dir: &RunDir) -> Result<(), CheckpointError> {
        let text = serde_json::to_vec(self).expect("a note holds only strings and numbers");
        let root = run_dir.root().to_owned();
        blocking(move || {
            let path = root.join(NOTE);
            let new = root.join(format!("{NOTE}.new"));
            (|| {
                fs::create_dir_all(&root)?;
                let mut file = fs::File::create(&new)?;
                file.write_all(&text)?;
                file.sync_all()?;
                fs::rename(&new, &path)?;
                sync_folder(&root)
            })()
            .map_err(|e| local(&path, e))
        })
        .await
    }

    /// Whether the run directory's checkpoints descend from this commit, or from nothing.
    pub(super) fn descends_from(&self, commit: Option<CommitId>) -> bool {
        let published = commit.is_some_and(|commit| commit.epoch == self.epoch);
        published || commit == self.commit
    }
}

/// A checkpoint in the run directory that has a manifest.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) step: u64,
    pub(super) manifest: Manifest,
    folder: PathBuf,
    manifest_sha256: String,
}

impl Candidate {
    /// Whether it is, by its manifest, the commit itself.
    pub(super) fn is_commit(&self, commit: &CommitRecord) -> bool {
        let mut files = commit.files.iter();
        files.any(|f| f.name() == RunDir::MANIFEST && f.sha256 == self.manifest_sha256)
    }

    /// What is wrong with its files, if anything.
    pub(super) async fn damage(&self) -> Result<Option<String>, CheckpointError> {
        let Self {
            folder, manifest, ..
        } = self.clone();
        blocking(move || Ok(damage(&folder, &manifest))).await
    }
}

fn damage(folder: &Path, manifest: &Manifest) -> Option<String> {
    for (name, entry) in &manifest.files {
        if !plain_name(name) {
            return Some(format!("expected plain file names, got {name:?}"));
        }
        // Sizes first: hashing takes long.
        let found = fs::metadata(folder.join(name)).map(|file| file.len());
        match found {
            Ok(bytes) if bytes == entry.bytes => {}
            Ok(bytes) => {
                return Some(format!(
                    "{name}: expected {} bytes, got {bytes}",
                    entry.bytes
                ));
            }
            Err(error) => return Some(format!("{name}: {error}")),
        }
    }
    for (name, entry) in &manifest.files {
        match sha256_of(&folder.join(name)) {
            Ok((_, sha256)) if sha256 == entry.sha256 => {}
            Ok((_, sha256)) => {
                let expected = &entry.sha256;
                return Some(format!("{name}: expected sha256 {expected}, got {sha256}"));
            }
            Err(error) => return Some(format!("{name}: {error}")),
        }
    }
    None
}

/// Every checkpoint with a manifest of its step, newest first.
pub(super) async fn candidates(run_dir: &RunDir) -> Result<Vec<Candidate>, CheckpointError> {
    let run_dir = run_dir.clone();
    blocking(move || {
        let folder = run_dir.checkpoints();
        let entries = match fs::read_dir(&folder) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|e| local(&folder, e))?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| local(&folder, e))?;
            let name = entry.file_name();
            let Some(step) = name.to_str().and_then(RunDir::checkpoint_step) else {
                continue;
            };
            let Ok(text) = fs::read(entry.path().join(RunDir::MANIFEST)) else {
                continue;
            };
            let manifest = Manifest::parse(&String::from_utf8_lossy(&text));
            if let Ok(manifest) = manifest.map_err(drop)
                && manifest.step == step
            {
                found.push(Candidate {
                    step,
                    manifest,
                    folder: entry.path(),
                    manifest_sha256: hexadecimal(&Sha256::digest(&text)),
                });
            }
        }
        found.sort_unstable_by_key(|candidate: &Candidate| Reverse(candidate.step));
        Ok(found)
    })
    .await
}

/// Moves checkpoints where no trainer looks, and removes those moved there before.
pub(super) async fn set_aside(run_dir: &RunDir, steps: Vec<u64>) -> Result<(), CheckpointError> {
    let run_dir = run_dir.clone();
    blocking(move || {
        let aside = run_dir.root().join(ASIDE);
        (|| {
            match fs::remove_dir_all(&aside) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            fs::create_dir_all(&aside)?;
            for step in steps {
                let name = RunDir::checkpoint_name(step);
                fs::rename(run_dir.checkpoint(step), aside.join(name))?;
            }
            sync_folder(&run_dir.checkpoints())
        })()
        .map_err(|e| local(&aside, e))
    })
    .await
}

pub(super) fn sync_folder(folder: &Path) -> std::io::Result<()> {
    fs::File::open(folder)?.sync_all()
}

/// Refuses a run directory whose checkpoints are not this job's; `step` is the newest of them.
pub(super) fn check_owner(
    note: Option<&Note>,
    run_dir: &RunDir,
    job: &Job,
    step: u64,
) -> Result<(), CheckpointError> {
    let owner = match note {
        Some(note) if note.job == job.id() => return Ok(()),
        Some(note) => format!("job {}", note.job),
        None => "no job that is known".to_owned(),
    };
    Err(CheckpointError::Foreign {
        path: run_dir.checkpoints(),
        job: job.id().to_owned(),
        step,
        owner,
    })
}
