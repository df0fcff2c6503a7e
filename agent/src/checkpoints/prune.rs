//! Which commits to keep, and removing the others. Called by the supervisor's loop after a publish.
//!
//! Only with a live lease. A commit goes first, its data after it. Never the base, the newest two,
//! or the one that this run resumed from, whatever the policy says.

use std::sync::Arc;

use super::{CheckpointError, Permit, Transfer};
use crate::job::{CommitId, Job, Nonce};
use crate::storage::Storage;

/// What to keep beyond what is never deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The newest so many.
    pub keep_last: usize,
    /// The one with the lowest validation loss.
    pub keep_best: bool,
    /// Those whose step is a multiple of this.
    pub keep_every: Option<u64>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            keep_last: 3,
            keep_best: true,
            keep_every: None,
        }
    }
}

/// What was pruned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    pub commits: Vec<CommitId>,
    pub bytes: u64,
}

/// What was swept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    pub objects: usize,
    pub bytes: u64,
    pub uploads: usize,
}

/// Removes the commits that the policy does not keep. After a newer commit was verified. `epoch` is
/// ours; `resumed_from` is what [`super::restore`] took.
///
/// # Errors
/// `NotPermitted` as soon as the permit ends; what was removed until then stays removed.
pub async fn prune(
    store: &Arc<dyn Storage>,
    job: &Job,
    epoch: u64,
    resumed_from: Option<CommitId>,
    policy: &Policy,
    transfer: &Transfer,
    permit: Permit<'_>,
) -> Result<Pruned, CheckpointError> {
    unimplemented!(
        "{} {job:?} {epoch} {resumed_from:?} {policy:?} {transfer:?} {}",
        store.name(),
        permit()
    )
}

/// Removes what no commit names and what is unfinished, once it is a day old. `in_flight`: the
/// nonce of the upload that is going on, which is left alone. Now and then, with a live lease.
///
/// # Errors
/// As for [`prune`].
pub async fn sweep(
    store: &Arc<dyn Storage>,
    job: &Job,
    epoch: u64,
    in_flight: Option<&Nonce>,
    transfer: &Transfer,
    permit: Permit<'_>,
) -> Result<Swept, CheckpointError> {
    unimplemented!(
        "{} {job:?} {epoch} {in_flight:?} {transfer:?} {}",
        store.name(),
        permit()
    )
}
