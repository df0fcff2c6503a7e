//! The checkpoint to start from, brought into the run directory. Called by the supervisor's loop
//! before the trainer starts.

use std::sync::Arc;

use protocol::RunDir;

use super::{CheckpointError, Finding, Transfer};
use crate::job::{CommitId, Job};
use crate::storage::Storage;

/// What the trainer will resume from, and what was noticed on the way.
#[derive(Clone, Debug, PartialEq)]
pub struct Restored {
    pub source: Source,
    /// The newest commit that this run goes on from: the parent of what it publishes next.
    pub parent: Option<CommitId>,
    pub findings: Vec<Finding>,
}

/// Where the run starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// From step 0: the store has nothing of this job, for certain.
    Fresh,
    /// A local checkpoint, whole, that descends from the newest commit.
    Local { step: u64 },
    /// A commit, downloaded and verified.
    Store { commit: CommitId, bytes: u64 },
}

impl Source {
    pub fn step(&self) -> u64 {
        match self {
            Self::Fresh => 0,
            Self::Local { step } => *step,
            Self::Store { commit, .. } => commit.step,
        }
    }
}

/// Makes the newest checkpoint of `checkpoints/` the one to resume from. With a live lease of
/// `epoch`, or with none at all under `--lease off`.
///
/// # Errors
/// Transient errors after the transfer's deadline; `NoneWhole` if the store has checkpoints and none
/// is whole; `NoSpace`; `Foreign` if the run directory belongs to another job.
pub async fn restore(
    store: &Arc<dyn Storage>,
    job: &Job,
    epoch: u64,
    run_dir: &RunDir,
    transfer: &Transfer,
) -> Result<Restored, CheckpointError> {
    unimplemented!("{} {job:?} {epoch} {run_dir:?} {transfer:?}", store.name())
}

/// Notes in the run directory that its checkpoints now descend from `commit`: after each publish.
/// Restore does so by itself.
///
/// # Errors
/// If the note cannot be written.
pub async fn note_published(
    run_dir: &RunDir,
    job: &Job,
    commit: CommitId,
) -> Result<(), CheckpointError> {
    unimplemented!("{run_dir:?} {job:?} {commit:?}")
}
