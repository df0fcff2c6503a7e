//! The valid history of a job: which commits count, newest first. Called by restore, prune, verify.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::stream::{self, StreamExt};

use super::{CheckpointError, Finding, Transfer, steady};
use crate::job::{CommitId, CommitRecord, Job, JobError, LeaseKey, LeaseRecord, list_all, read};
use crate::storage::Storage;

/// Records read at once.
const READS_AT_ONCE: usize = 8;
/// No chain of parents is as long; one that is goes round in circles.
const CHAIN_MAX: usize = 100_000;

/// The commits that count.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// The newest epoch, 0 if the job was never claimed.
    pub epoch: u64,
    /// That epoch's fence.
    pub base: Option<CommitId>,
    /// Newest first: the newest epoch's, its base, then along `parent` to the first that is gone.
    pub commits: Vec<CommitRecord>,
    /// What should count and cannot be read.
    pub findings: Vec<Finding>,
}

impl History {
    pub fn newest(&self) -> Option<&CommitRecord> {
        self.commits.first()
    }

    /// Whether the job has nothing to resume from, for certain.
    pub fn is_definitely_empty(&self) -> bool {
        self.commits.is_empty() && self.base.is_none() && self.findings.is_empty()
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
    let store = &steady(store, transfer);
    let Some(&epoch) = lease_epochs(store, job).await?.last() else {
        return Ok(History::default());
    };
    let lease: LeaseRecord = read(store, &job.lease(epoch)).await?;
    let mut history = History {
        epoch,
        base: lease.base,
        ..History::default()
    };
    let listed = commit_ids(store, job).await?;
    let own = listed.into_iter().rev().filter(|id| id.epoch == epoch);
    for (id, record) in read_commits(store, job, own).await? {
        match record {
            Ok(Some(record)) => history.commits.push(record),
            // Pruned since the listing.
            Ok(None) => {}
            Err(detail) => history.findings.push(Finding::Bad { commit: id, detail }),
        }
    }
    let mut next = lease.base;
    // Each must be older than the one before, so that a damaged chain cannot go in circles.
    let mut older_than = CommitId { epoch, step: 0 };
    for _ in 0..CHAIN_MAX {
        let Some(id) = next.take() else {
            break;
        };
        let record = read_commit(store, job, id).await?;
        let bad = match record {
            _ if id >= older_than => format!("expected one older than {older_than}"),
            Err(detail) => detail,
            Ok(Some(record)) => {
                next = record.parent;
                older_than = id;
                history.commits.push(record);
                continue;
            }
            Ok(None) if Some(id) == lease.base => "its commit is not there".to_owned(),
            // Pruned: the history ends here.
            Ok(None) => break,
        };
        history.findings.push(Finding::Bad {
            commit: id,
            detail: bad,
        });
    }
    Ok(history)
}

/// Which commits were made by a holder while it was one, as the fences in the leases tell: of each
/// epoch those that are not newer than the next epoch's base. The valid history is among them, as
/// are older commits whose successors were pruned.
pub(super) struct Line {
    /// Every epoch that was claimed, with its lease.
    pub(super) leases: BTreeMap<u64, LeaseRecord>,
}

impl Line {
    /// Reads every lease.
    pub(super) async fn read(store: &dyn Storage, job: &Job) -> Result<Self, JobError> {
        let epochs = lease_epochs(store, job).await?;
        let reads = epochs.into_iter().map(|epoch| async move {
            let lease: LeaseRecord = read(store, &job.lease(epoch)).await?;
            Ok::<_, JobError>((epoch, lease))
        });
        let mut reads = stream::iter(reads).buffered(READS_AT_ONCE);
        let mut leases = BTreeMap::new();
        while let Some(lease) = reads.next().await {
            let (epoch, lease) = lease?;
            leases.insert(epoch, lease);
        }
        Ok(Self { leases })
    }

    /// The newest epoch, 0 if there is none.
    pub(super) fn epoch(&self) -> u64 {
        self.leases.last_key_value().map_or(0, |(epoch, _)| *epoch)
    }

    /// The newest epoch's fence.
    pub(super) fn base(&self) -> Option<CommitId> {
        self.leases
            .last_key_value()
            .and_then(|(_, lease)| lease.base)
    }

    pub(super) fn holds(&self, id: CommitId) -> bool {
        let next = self.leases.range(id.epoch + 1..).next();
        self.leases.contains_key(&id.epoch)
            && next.is_none_or(|(_, next)| next.base.is_some_and(|base| id <= base))
    }
}

/// Every epoch that was claimed, in order.
async fn lease_epochs(store: &dyn Storage, job: &Job) -> Result<Vec<u64>, JobError> {
    let listed = list_all(store, &job.leases()).await?;
    let mut epochs: Vec<u64> = listed
        .iter()
        .filter_map(|entry| match job.parse_lease(&entry.key) {
            Some(LeaseKey::Record(epoch)) => Some(epoch),
            _ => None,
        })
        .collect();
    epochs.sort_unstable();
    Ok(epochs)
}

/// Every commit there is, oldest first.
pub(super) async fn commit_ids(store: &dyn Storage, job: &Job) -> Result<Vec<CommitId>, JobError> {
    let listed = list_all(store, &job.commits()).await?;
    let mut ids: Vec<CommitId> = listed
        .iter()
        .filter_map(|entry| job.parse_commit(&entry.key))
        .collect();
    ids.sort_unstable();
    Ok(ids)
}

/// A commit; `None` if it is not there; what is wrong with it if it is none.
pub(super) type CommitRead = Result<Option<CommitRecord>, String>;

/// Commits in the order given.
pub(super) async fn read_commits(
    store: &dyn Storage,
    job: &Job,
    ids: impl Iterator<Item = CommitId>,
) -> Result<Vec<(CommitId, CommitRead)>, JobError> {
    let ids: Vec<CommitId> = ids.collect();
    let reads = ids.into_iter().map(|id| async move {
        let record = read_commit(store, job, id).await?;
        Ok::<_, JobError>((id, record))
    });
    let mut reads = stream::iter(reads).buffered(READS_AT_ONCE);
    let mut commits = Vec::new();
    while let Some(commit) = reads.next().await {
        commits.push(commit?);
    }
    Ok(commits)
}

pub(super) async fn read_commit(
    store: &dyn Storage,
    job: &Job,
    id: CommitId,
) -> Result<CommitRead, JobError> {
    let record: CommitRecord = match read(store, &job.commit(id)).await {
        Ok(record) => record,
        Err(error) if error.is_missing() => return Ok(Ok(None)),
        Err(JobError::Malformed { detail, .. }) => return Ok(Err(detail)),
        Err(error) => return Err(error),
    };
    if record.id() != id {
        return Ok(Err(format!("expected commit {id}, got {}", record.id())));
    }
    Ok(Ok(Some(record)))
}
