//! A job in a store, walked from end to end. Called by `agent verify` and by tests.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::history::{Line, commit_ids, read_commits};
use super::prune::unnamed;
use super::restore::examine;
use super::stage::hexadecimal;
use super::{CheckpointError, Finding, Transfer, history, steady, unfinished};
use crate::job::{
    BeatRecord, CommitFile, CommitId, CommitRecord, FinalRecord, Job, JobError, LeaseKey, Nonce,
    ReleasedRecord, list_all, read,
};
use crate::storage::Storage;
use crate::storage::retry::Retry;

/// Bytes read at once.
const RANGE_BYTES: u64 = 8 << 20;

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
    /// Files that no commit names, which is what an upload that goes on looks like as well.
    pub unnamed_files: usize,
    pub unnamed_bytes: u64,
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
    let retrying = steady(store, transfer);
    let mut report = Report::default();
    if !check_leases(&retrying, job, &mut report).await? {
        // Without every fence nothing can be said of the commits.
        return Ok(report);
    }
    // Data before commits, as in sweep: what is committed meanwhile is found named.
    let data = list_all(&retrying, &job.all_data()).await?;
    for entry in &data {
        if job.parse_data(&entry.key).is_none() {
            report
                .problems
                .push(format!("{}: no key of a job", entry.key));
        }
    }
    let line = Line::read(&retrying, job).await?;
    let commits = check_commits(&retrying, job, &line, &mut report).await?;
    let counted = history(store, job, transfer).await?;
    report.history = counted.commits.iter().map(CommitRecord::id).collect();
    for finding in counted.findings {
        if let Finding::Bad { commit, detail } = finding {
            report.problems.push(format!("commit {commit}: {detail}"));
        }
    }
    let mut wrong = Vec::new();
    for commit in commits.values() {
        let found = match examine(&retrying, job, commit).await? {
            None if depth == Depth::Bytes => check_bytes(&retrying, job, commit).await?,
            found => found,
        };
        wrong.extend(found.map(|detail| (commit.id(), detail)));
    }
    // A job that lives prunes meanwhile: a commit first, its data after it.
    let committed: BTreeSet<CommitId> = commit_ids(&retrying, job).await?.into_iter().collect();
    report.history.retain(|id| committed.contains(id));
    report.orphans.retain(|id| committed.contains(id));
    for (id, detail) in wrong {
        if committed.contains(&id) {
            report.problems.push(format!("commit {id}: {detail}"));
        }
    }
    let unnamed = unnamed(&retrying, job, data, &committed, None).await?;
    for entry in unnamed.into_values().flatten() {
        report.unnamed_files += 1;
        report.unnamed_bytes += entry.bytes;
    }
    report.unfinished_uploads = unfinished(&retrying, job).await?.len();
    report.problems.sort_unstable();
    report.problems.dedup();
    Ok(report)
}

/// Leases, what hangs on them, and ends. False if a lease cannot be read.
async fn check_leases(
    store: &Retry,
    job: &Job,
    report: &mut Report,
) -> Result<bool, CheckpointError> {
    let mut nonces: BTreeMap<u64, Nonce> = BTreeMap::new();
    let mut others = Vec::new();
    let mut whole = true;
    for entry in list_all(store, &job.leases()).await? {
        match job.parse_lease(&entry.key) {
            Some(LeaseKey::Record(epoch)) => {
                let lease = read::<crate::job::LeaseRecord>(store, &entry.key).await;
                let Some(lease) = readable(lease, report)? else {
                    whole = false;
                    continue;
                };
                if lease.epoch != epoch || lease.base.is_some_and(|base| base.epoch >= epoch) {
                    report
                        .problems
                        .push(format!("{}: epoch or base is off", entry.key));
                }
                nonces.insert(epoch, lease.nonce);
            }
            Some(other) => others.push((entry.key, other)),
            None => report
                .problems
                .push(format!("{}: no key of a job", entry.key)),
        }
    }
    report.epochs = nonces.len() as u64;
    for (expected, epoch) in (1..).zip(nonces.keys()) {
        if expected != *epoch {
            report.problems.push(format!(
                "lease {epoch}: expected epoch {expected} before it"
            ));
            break;
        }
    }
    for (key, kind) in others {
        let (epoch, nonce) = match kind {
            LeaseKey::Released(epoch) => {
                let record = read::<ReleasedRecord>(store, &key).await;
                (epoch, readable(record, report)?.map(|record| record.nonce))
            }
            LeaseKey::Beat(epoch) | LeaseKey::Record(epoch) => {
                let record = read::<BeatRecord>(store, &key).await;
                (epoch, readable(record, report)?.map(|record| record.nonce))
            }
        };
        if nonce.is_some_and(|nonce| nonces.get(&epoch) != Some(&nonce)) {
            report
                .problems
                .push(format!("{key}: not by the holder of epoch {epoch}"));
        }
    }
    for entry in list_all(store, &job.finals()).await? {
        let record = read::<FinalRecord>(store, &entry.key).await;
        let Some(end) = readable(record, report)? else {
            continue;
        };
        if job.final_of(end.epoch) != entry.key || nonces.get(&end.epoch) != Some(&end.nonce) {
            report
                .problems
                .push(format!("{}: not by the holder of its epoch", entry.key));
        }
    }
    Ok(whole)
}

/// Every commit that can be read and was made by a holder.
async fn check_commits(
    store: &Retry,
    job: &Job,
    line: &Line,
    report: &mut Report,
) -> Result<BTreeMap<CommitId, CommitRecord>, CheckpointError> {
    for entry in list_all(store, &job.commits()).await? {
        if job.parse_commit(&entry.key).is_none() {
            report
                .problems
                .push(format!("{}: no key of a job", entry.key));
        }
    }
    let ids = commit_ids(store, job).await?;
    let mut commits = BTreeMap::new();
    let mut nonces = BTreeMap::new();
    for (id, record) in read_commits(store, job, ids.into_iter()).await? {
        if !line.leases.contains_key(&id.epoch) {
            report
                .problems
                .push(format!("commit {id}: its epoch was never claimed"));
        }
        match record {
            Err(detail) => report.problems.push(format!("commit {id}: {detail}")),
            // Pruned since the listing.
            Ok(None) => {}
            Ok(Some(record)) => {
                if let Some(other) = nonces.insert(record.nonce.clone(), id) {
                    report
                        .problems
                        .push(format!("commit {id}: same nonce as {other}"));
                }
                if line.holds(id) {
                    commits.insert(id, record);
                } else {
                    report.orphans.push(id);
                }
            }
        }
    }
    Ok(commits)
}

/// Reads every byte of a commit; what is wrong.
async fn check_bytes(
    store: &Retry,
    job: &Job,
    commit: &CommitRecord,
) -> Result<Option<String>, CheckpointError> {
    for CommitFile {
        key, bytes, sha256, ..
    } in &commit.files
    {
        let mut hash = Sha256::new();
        let mut offset = 0;
        while offset < *bytes {
            let range = offset..(offset + RANGE_BYTES).min(*bytes);
            let part = match store.get_range(&job.key(key), range.clone()).await {
                Err(error) if error.is_missing() => return Ok(Some(format!("{key}: not there"))),
                part => part?,
            };
            if part.len() as u64 != range.end - range.start {
                return Ok(Some(format!(
                    "{key}: ends at {}",
                    offset + part.len() as u64
                )));
            }
            hash.update(&part);
            offset = range.end;
        }
        let found = hexadecimal(&hash.finalize());
        if found != *sha256 {
            return Ok(Some(format!(
                "{key}: expected sha256 {sha256}, got {found}"
            )));
        }
    }
    Ok(None)
}

/// A record, or a problem more.
fn readable<R>(
    record: Result<R, JobError>,
    report: &mut Report,
) -> Result<Option<R>, CheckpointError> {
    match record {
        Ok(record) => Ok(Some(record)),
        Err(JobError::Malformed { key, detail, .. }) => {
            report.problems.push(format!("{key}: {detail}"));
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}
