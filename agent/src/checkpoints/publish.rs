//! A staged checkpoint on its way into the store. Called by the supervisor's loop.
//!
//! Order: parts, completion, HEAD of every file, permit, commit, commit read back. The commit is
//! created last, so that every prefix of this is no checkpoint at all.

use std::sync::Arc;

use super::{CheckpointError, Permit, Staged, Transfer};
use crate::job::{CommitId, CommitRecord, Job, Nonce};
use crate::storage::Storage;

/// One upload. Keeps what got through, so that after an error, or after `run` was dropped, a second
/// `run` goes on from there within the same process.
#[derive(Debug)]
pub struct Upload {
    job: Job,
    commit: CommitRecord,
    staged: Staged,
}

/// How far an upload is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub bytes_done: u64,
    pub bytes_total: u64,
}

/// How an upload ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Published {
    /// It is in the store, read back.
    Committed(CommitRecord),
    /// This epoch already has a commit of this step (the trainer went back and came again): that
    /// one stays, this one is dropped.
    Already(CommitRecord),
}

impl Upload {
    /// Of a staged checkpoint, by the holder of `epoch`. `parent`: the commit that the run went on
    /// from, the newest that this process restored or published. `nonce` must be new.
    pub fn new(
        job: &Job,
        epoch: u64,
        nonce: Nonce,
        parent: Option<CommitId>,
        run_digest: Option<String>,
        staged: Staged,
    ) -> Self {
        unimplemented!("{job:?} {epoch} {nonce} {parent:?} {run_digest:?} {staged:?}")
    }

    pub fn id(&self) -> CommitId {
        self.commit.id()
    }

    pub fn progress(&self) -> Progress {
        unimplemented!("{:?}", self.job)
    }

    /// Uploads what is still missing, verifies, commits. `tell` hears of progress after each part.
    /// Safe to drop at any await; safe to call again.
    ///
    /// # Errors
    /// `NotPermitted` if the permit had ended before the commit. Transient errors after the
    /// transfer's deadline: call again. Others: give it up with [`Upload::close`].
    pub async fn run(
        &mut self,
        store: &Arc<dyn Storage>,
        transfer: &Transfer,
        permit: Permit<'_>,
        tell: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Published, CheckpointError> {
        tell(Progress::default());
        unimplemented!("{} {transfer:?} {}", store.name(), permit())
    }

    /// Done with it: gives up what is unfinished in the store (best effort; sweep finds the rest)
    /// and discards the staged files.
    ///
    /// # Errors
    /// If the staged files cannot be removed.
    pub async fn close(self, store: &Arc<dyn Storage>) -> Result<(), CheckpointError> {
        unimplemented!("{} {:?}", store.name(), self.staged)
    }
}
