//! A job in a store, walked from end to end. Called by `agent verify` and by tests.

use std::sync::Arc;

use super::{CheckpointError, Transfer};
use crate::job::{CommitId, Job};
use crate::storage::Storage;

/// How deep to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Records, sizes, the store's own checksums.
    Heads,
    /// Every byte, against SHA-256.
    Bytes,
}

/// What there is and what is wrong with it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    pub epochs: u64,
    /// The valid history, newest first.
    pub history: Vec<CommitId>,
    /// Commits that do not count.
    pub orphans: Vec<CommitId>,
    /// Bytes of files that no commit names, and how many files.
    pub unnamed_bytes: u64,
    pub unnamed_files: usize,
    pub unfinished_uploads: usize,
    /// Every inconsistency, one line each. Empty: the job is sound.
    pub problems: Vec<String>,
}

/// Walks a job and reports every inconsistency.
///
/// # Errors
/// If the store could not be asked; what is wrong in the store is in the report.
pub async fn verify(
    store: &Arc<dyn Storage>,
    job: &Job,
    depth: Depth,
    transfer: &Transfer,
) -> Result<Report, CheckpointError> {
    unimplemented!("{} {job:?} {depth:?} {transfer:?}", store.name())
}
