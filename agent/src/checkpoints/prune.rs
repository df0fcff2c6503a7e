//! Which commits to keep, and removing the others. Called by the supervisor's loop after a publish.
//!
//! Only with a live lease. A commit goes first, its data after it. Never the base, the newest two,
//! or the one that this run resumed from, whatever the policy says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::history::{Line, commit_ids, read_commit, read_commits};
use super::{CheckpointError, Permit, Transfer, delete, steady, unfinished};
use crate::job::{CommitId, Job, Nonce, list_all};
use crate::storage::retry::Retry;
use crate::storage::{Entry, Storage};

/// Whatever the policy says.
const KEEP_LAST_MIN: usize = 2;
/// What no commit names may be on its way to one for this long.
const SWEEP_AGE: Duration = Duration::from_secs(24 * 3600);

/// What to keep beyond what is never deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Later ones are let alone, and count for nothing: the lease may be somebody else's since.
    pub settled: Option<u64>,
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
            settled: None,
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
    let retrying = steady(store, transfer);
    let line = own_line(&retrying, job, epoch).await?;
    let ids = commit_ids(&retrying, job).await?;
    let settled = |id: &CommitId| policy.settled.is_none_or(|settled| id.step <= settled);
    let ids = ids.into_iter().rev().filter(|id| line.holds(*id));
    let ids: Vec<CommitId> = ids.filter(settled).collect();
    let mut pruned = Pruned::default();
    // Nothing of ours yet: what is there is all that there is to go back to.
    if ids.first().is_none_or(|newest| newest.epoch != epoch) {
        return Ok(pruned);
    }
    let mut judged = Vec::new();
    let mut records = BTreeMap::new();
    for (id, record) in read_commits(&retrying, job, ids.into_iter()).await? {
        // One that cannot be read stays for somebody to look at.
        if let Ok(Some(record)) = record {
            judged.push((id, record.val_loss));
            records.insert(id, record.nonce);
        }
    }
    let kept: BTreeSet<CommitId> = line.base().into_iter().chain(resumed_from).collect();
    for id in superfluous(&judged, &kept, policy).into_iter().rev() {
        delete(store.as_ref(), &job.commit(id), transfer, permit).await?;
        pruned.commits.push(id);
        let data = job.data(id, &records[&id]);
        for entry in list_all(&retrying, &data)
            .await
            .map_err(CheckpointError::from)?
        {
            delete(store.as_ref(), &entry.key, transfer, permit).await?;
            pruned.bytes += entry.bytes;
        }
    }
    Ok(pruned)
}

/// Which commits to delete, of (commit, validation loss), newest first.
pub(super) fn superfluous(
    commits: &[(CommitId, Option<f64>)],
    kept: &BTreeSet<CommitId>,
    policy: &Policy,
) -> Vec<CommitId> {
    let measured = commits
        .iter()
        .filter_map(|(id, loss)| Some((loss.filter(|loss| !loss.is_nan())?, id)));
    let best = measured
        .filter(|_| policy.keep_best)
        .min_by(|(a, i), (b, j)| a.total_cmp(b).then(i.cmp(j)))
        .map(|(_, id)| *id);
    let major = |step: u64| {
        let every = policy.keep_every.filter(|every| *every > 0);
        every.is_some_and(|every| step.is_multiple_of(every))
    };
    commits
        .iter()
        .map(|(id, _)| *id)
        .skip(policy.keep_last.max(KEEP_LAST_MIN))
        .filter(|id| Some(*id) != best && !kept.contains(id) && !major(id.step))
        .collect()
}

/// Removes what no commit names, commits that do not count, and what is unfinished, once it is a
/// day old. `in_flight`: the nonce of the upload that is going on, which is left alone. Now and
/// then, with a live lease.
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
    let retrying = steady(store, transfer);
    let line = own_line(&retrying, job, epoch).await?;
    let all = |prefix: String| {
        let retrying = &retrying;
        async move {
            list_all(retrying, &prefix)
                .await
                .map_err(CheckpointError::from)
        }
    };
    // Data first: what is committed between the two listings is then found in the second.
    let data = all(job.all_data()).await?;
    let commits = all(job.commits()).await?;
    let old = |of: u64, age_s: Option<u64>| {
        // A store that tells no age: a former epoch's at least cannot be on its way any more.
        of <= epoch && age_s.map_or(of < epoch, |age| age >= SWEEP_AGE.as_secs())
    };
    let mut swept = Swept::default();
    let mut committed = BTreeSet::new();
    for entry in commits {
        let Some(id) = job.parse_commit(&entry.key) else {
            continue;
        };
        if id.epoch < epoch && !line.holds(id) && old(id.epoch, entry.age_s) {
            delete(store.as_ref(), &entry.key, transfer, permit).await?;
            swept.objects += 1;
        } else {
            committed.insert(id);
        }
    }
    let unnamed = unnamed(&retrying, job, data, &committed, in_flight).await?;
    for ((id, _), entries) in unnamed {
        if !entries.iter().all(|entry| old(id.epoch, entry.age_s)) {
            continue;
        }
        for entry in entries {
            delete(store.as_ref(), &entry.key, transfer, permit).await?;
            swept.objects += 1;
            swept.bytes += entry.bytes;
        }
    }
    for pending in unfinished(&retrying, job).await? {
        let ours = job.parse_data(&pending.key);
        let Some((id, nonce, _)) = ours else { continue };
        if in_flight == Some(&nonce) || !old(id.epoch, pending.age_s) {
            continue;
        }
        if !permit() {
            let what = format!("giving up the upload of {}", pending.key);
            return Err(CheckpointError::NotPermitted { what });
        }
        store.abort_upload(&pending.key, &pending.upload).await?;
        swept.uploads += 1;
    }
    Ok(swept)
}

/// Objects below `data/` by upload.
type Uploads = BTreeMap<(CommitId, Nonce), Vec<Entry>>;

/// The uploads that no commit names.
pub(super) async fn unnamed(
    store: &Retry,
    job: &Job,
    data: Vec<Entry>,
    committed: &BTreeSet<CommitId>,
    in_flight: Option<&Nonce>,
) -> Result<Uploads, CheckpointError> {
    let mut uploads = Uploads::new();
    for entry in data {
        if let Some((id, nonce, _)) = job.parse_data(&entry.key) {
            uploads.entry((id, nonce)).or_default().push(entry);
        }
    }
    // A step may have been uploaded twice; the commit says which upload is its own.
    let mut named = BTreeSet::new();
    for (id, nonce) in uploads.keys() {
        if !committed.contains(id) {
            continue;
        }
        match read_commit(store, job, *id).await? {
            Ok(Some(record)) if record.nonce != *nonce => {}
            // Named; or pruned since the listing, or unreadable: left alone.
            _ => {
                named.insert((*id, nonce.clone()));
            }
        }
    }
    uploads.retain(|upload, _| !named.contains(upload) && in_flight != Some(&upload.1));
    Ok(uploads)
}

/// The line, if its newest epoch is ours.
async fn own_line(store: &Retry, job: &Job, epoch: u64) -> Result<Line, CheckpointError> {
    let line = Line::read(store, job).await?;
    if line.epoch() == epoch {
        return Ok(line);
    }
    let what = format!(
        "pruning under epoch {epoch}, the newest being {},",
        line.epoch()
    );
    Err(CheckpointError::NotPermitted { what })
}
