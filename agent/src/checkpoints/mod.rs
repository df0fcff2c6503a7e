//! Checkpoints between the run directory and the store: stage, publish, history, restore, prune,
//! verify. Called by the supervisor's loop and by `agent verify`.
//!
//! A checkpoint exists in the store exactly when its commit does, and the commit is created last.
//! Nothing here trusts a pointer, overwrites an object, or takes an error for "no checkpoint".

pub mod stage;
pub mod publish;
pub mod history;
pub mod restore;
pub mod prune;
pub mod verify;
#[cfg(test)]
pub(crate) mod kit;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::job::requests::{Backoff, bounded};
use crate::job::{CommitId, Job, JobError};
use crate::storage::retry::{self, Retry};
use crate::storage::{PendingUpload, Storage, StorageError};

/// The longest that one small request may take.
const REQUEST_LIMIT: Duration = Duration::from_secs(30);

pub use history::{History, history};
pub use prune::{Policy, Pruned, Swept, prune, sweep};
pub use publish::{Progress, Published, Upload};
pub use restore::{Restored, Source, restore};
pub use stage::{Staged, clear_stage, stage};
pub use verify::{Depth, Report, verify};

/// What can go wrong with a checkpoint, by what a caller does about it.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error(transparent)]
    Job(#[from] JobError),
    /// The local disk or folder fails.
    #[error("{path}: {source}", path = path.display())]
    Local { path: PathBuf, source: io::Error },
    /// A local checkpoint is not what its manifest says; the trainer's matter, not the store's.
    #[error("{path}: {detail}", path = path.display())]
    Damaged { path: PathBuf, detail: String },
    /// A local checkpoint is not there (any more): the trainer prunes as it likes.
    #[error("{path}: no such checkpoint", path = path.display())]
    Gone { path: PathBuf },
    /// The permit ended: the lease is or may be lost, nothing more may be published or deleted.
    #[error("no valid lease: {what} refused")]
    NotPermitted { what: String },
    /// The store holds checkpoints of this job, and none of them can be used.
    #[error(
        "none of {count} checkpoints in the store is whole, newest {newest}: {detail}\n\
         hint: `agent verify` lists what is wrong; nothing was started from step 0"
    )]
    NoneWhole {
        count: usize,
        newest: CommitId,
        detail: String,
    },
    /// The run directory holds checkpoints that are not this job's.
    #[error(
        "{path}: expected checkpoints of job {job} only, got step {step} of {owner}\n\
         hint: give the job a run directory of its own, or move these checkpoints away",
        path = path.display()
    )]
    Foreign {
        path: PathBuf,
        job: String,
        step: u64,
        owner: String,
    },
    /// The disk cannot take the checkpoint.
    #[error(
        "{path}: not enough disk space: the checkpoint of step {step} needs {need} bytes, \
         {free} are free",
        path = path.display()
    )]
    NoSpace {
        path: PathBuf,
        step: u64,
        need: u64,
        free: u64,
    },
}

impl CheckpointError {
    /// Whether trying again can help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Job(error) if error.is_transient())
    }
}

impl From<StorageError> for CheckpointError {
    fn from(error: StorageError) -> Self {
        Self::Job(JobError::Storage(error))
    }
}

/// How files are moved, up and down.
#[derive(Clone, Copy, Debug)]
pub struct Transfer {
    /// Parts in flight at once; each may be in memory as a whole.
    pub parallel: usize,
    /// The least size of a part; files of more than 9,000 such parts get larger ones. Stores want
    /// 5 MiB at least.
    pub part_bytes_min: u64,
    /// How long one part, or one small request, is tried again before it is an error.
    pub deadline: Duration,
}

impl Default for Transfer {
    fn default() -> Self {
        Self {
            parallel: 4,
            part_bytes_min: 16 << 20,
            deadline: Duration::from_secs(15 * 60),
        }
    }
}

/// Whether publishing and deleting are allowed at this very moment: `now < valid_until`.
pub type Permit<'a> = &'a (dyn Fn() -> bool + Send + Sync);

/// Something that a person should hear of, and that did not stop the work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// A checkpoint in the store cannot be used; the next older one was tried.
    Bad { commit: CommitId, detail: String },
    /// A local checkpoint was put aside because it does not belong to the job's history, or is
    /// damaged.
    SetAside { step: u64, detail: String },
}

/// The store, with transient errors tried again until the transfer's deadline. Not for a create
/// that needs a permit: the permit may end between two tries.
fn steady(store: &Arc<dyn Storage>, transfer: &Transfer) -> Retry {
    // Many agents of one store should not come back from an outage in step.
    let policy = retry::Policy::until(transfer.deadline);
    Retry::new(Arc::clone(store), policy, fastrand::u64(..))
}

/// Unfinished uploads of a job's files. None where the store cannot list them, or may not tell us:
/// they end by its own rules.
async fn unfinished(store: &Retry, job: &Job) -> Result<Vec<PendingUpload>, CheckpointError> {
    match store.list_uploads(&job.all_data()).await {
        Err(StorageError::Permanent { .. }) => Ok(Vec::new()),
        listed => Ok(listed?),
    }
}

/// Deletes an object. The permit is asked before every try.
async fn delete(
    store: &dyn Storage,
    key: &str,
    transfer: &Transfer,
    permit: Permit<'_>,
) -> Result<(), CheckpointError> {
    let mut backoff = Backoff::new(REQUEST_LIMIT, transfer.deadline, key);
    loop {
        if !permit() {
            let what = format!("deleting {key}");
            return Err(CheckpointError::NotPermitted { what });
        }
        match bounded(store, REQUEST_LIMIT, "delete", key, store.delete(key)).await {
            Err(error) if error.is_transient() => backoff.wait(error).await?,
            deleted => return Ok(deleted?),
        }
    }
}

/// Whether a name is one of a file and nothing else: what comes from a store never leads elsewhere.
fn plain_name(name: &str) -> bool {
    let hidden = name.starts_with('.');
    !name.is_empty() && !hidden && !name.contains(['/', '\\', '\0'])
}

#[cfg(test)]
thread_local! {
    /// Work on the disk is done at once: of two threads no seed decides which comes first.
    pub(crate) static AT_ONCE: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Runs work on the disk on a thread for it. Once begun it goes on even if nobody waits any more.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CheckpointError> + Send + 'static,
) -> Result<T, CheckpointError> {
    #[cfg(test)]
    if AT_ONCE.get() {
        return work();
    }
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|stopped| match stopped.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => unreachable!("work on the disk is never cancelled"),
    })
}

fn local(path: &Path, source: io::Error) -> CheckpointError {
    CheckpointError::Local {
        path: path.to_owned(),
        source,
    }
}
