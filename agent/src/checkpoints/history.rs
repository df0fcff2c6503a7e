//! The valid history of a job: which commits count, newest first. Called by restore, prune, verify.

use std::sync::Arc;

use super::{CheckpointError, Finding, Transfer};
use crate::job::{CommitId, CommitRecord, Job};
use crate::storage::Storage;

/// The commits that count.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// The newest epoch, 0 if the job was never claimed.
    pub epoch: u64,
    /// That epoch's fence.
    pub base: Option<CommitId>,
    /// Newest first: the newest epoch's, its base, then along `parent` to the first that is gone.
    pub commits: Vec<CommitRecord>,
    /// What could not be read, and what does not count.
    pub findings: Vec<Finding>,
}

impl History {
    pub fn newest(&self) -> Option<&CommitRecord> {
        self.commits.first()
    }

    /// Whether the job has nothing to resume from, for certain.
    pub fn is_definitely_empty(&self) -> bool {
        let bad = |finding: &Finding| matches!(finding, Finding::Bad { .. });
        self.commits.is_empty() && self.base.is_none() && !self.findings.iter().any(bad)
    }
}

/// Reads the valid history.
///
/// # Errors
/// If the store could not be asked until the transfer's deadline. An error is never "none".
pub async fn history(
    store: &Arc<dyn Storage>,
    job: &Job,
    transfer: &Transfer,
) -> Result<History, CheckpointError> {
    unimplemented!("{} {job:?} {transfer:?}", store.name())
}
