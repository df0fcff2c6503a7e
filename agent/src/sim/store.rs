//! A faithful model of the job store: create-only leases, commits, ends. Each method is one atomic
//! request; what lies between requests is the simulator's to decide.

use std::collections::{BTreeMap, BTreeSet};

/// A commit by epoch and step: of two in one history the greater is the newer.
pub(super) type CommitId = (u64, u64);

#[derive(Clone, Debug)]
pub(super) struct LeaseRecord {
    pub(super) nonce: u64,
    pub(super) base: Option<CommitId>,
    pub(super) revoked: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Commit {
    pub(super) parent: Option<CommitId>,
    /// A reader finds it bad.
    pub(super) damaged: bool,
}

/// The newest epoch as one look sees it.
#[derive(Clone, Debug)]
pub(super) struct Top {
    pub(super) epoch: u64,
    pub(super) nonce: u64,
    pub(super) tag: u64,
    pub(super) released: bool,
    pub(super) revoked: bool,
    pub(super) ended: bool,
}

#[derive(Default)]
pub(super) struct Store {
    leases: BTreeMap<u64, LeaseRecord>,
    beats: BTreeMap<u64, u64>,
    released: BTreeSet<u64>,
    pub(super) commits: BTreeMap<CommitId, Commit>,
    finals: BTreeSet<u64>,
    /// Whether an end was written that was valid when it was.
    pub(super) was_ended: bool,
}

impl Store {
    pub(super) fn top_epoch(&self) -> u64 {
        self.leases.keys().next_back().copied().unwrap_or(0)
    }

    pub(super) fn top(&self) -> Option<Top> {
        let (&epoch, lease) = self.leases.iter().next_back()?;
        Some(Top {
            epoch,
            nonce: lease.nonce,
            tag: self.beats.get(&epoch).copied().unwrap_or(0),
            released: self.released.contains(&epoch),
            revoked: lease.revoked,
            ended: self.finals.contains(&epoch),
        })
    }

    pub(super) fn beat_tag(&self, epoch: u64) -> u64 {
        self.beats.get(&epoch).copied().unwrap_or(0)
    }

    /// The fence for whoever claims the epoch after this one.
    pub(super) fn base_after(&self, epoch: u64) -> Option<CommitId> {
        let newest = self.commits.range((epoch, 0)..(epoch + 1, 0)).next_back();
        newest
            .map(|(&id, _)| id)
            .or_else(|| self.leases.get(&epoch)?.base)
    }

    pub(super) fn base_of(&self, epoch: u64) -> Option<CommitId> {
        self.leases.get(&epoch)?.base
    }

    /// Create-only: the nonce that has the epoch now.
    pub(super) fn create_lease(&mut self, epoch: u64, record: LeaseRecord) -> u64 {
        self.leases.entry(epoch).or_insert(record).nonce
    }

    pub(super) fn next_exists(&self, epoch: u64) -> Option<bool> {
        self.leases.get(&(epoch + 1)).map(|lease| lease.revoked)
    }

    pub(super) fn beat(&mut self, epoch: u64, tag: u64) {
        self.beats.insert(epoch, tag);
    }

    pub(super) fn release(&mut self, epoch: u64) {
        self.released.insert(epoch);
    }

    pub(super) fn end(&mut self, epoch: u64) {
        self.finals.insert(epoch);
        self.was_ended |= self.is_ended();
    }

    /// Whether the job has ended: an end that no later lease makes void.
    pub(super) fn is_ended(&self) -> bool {
        self.finals.contains(&self.top_epoch())
    }

    /// The valid history, newest first.
    pub(super) fn history(&self) -> Vec<CommitId> {
        self.history_of(self.top_epoch())
    }

    /// The valid history as seen by the holder of an epoch.
    pub(super) fn history_of(&self, epoch: u64) -> Vec<CommitId> {
        let of_epoch = self.commits.range((epoch, 0)..(epoch + 1, 0)).rev();
        let mut history: Vec<CommitId> = of_epoch.map(|(&id, _)| id).collect();
        let mut next = self.leases.get(&epoch).and_then(|lease| lease.base);
        while let Some(id) = next {
            let Some(commit) = self.commits.get(&id) else {
                break;
            };
            history.push(id);
            next = commit.parent;
        }
        history
    }

    /// The newest checkpoint of the valid history that a reader can use.
    pub(super) fn newest_good(&self) -> Option<CommitId> {
        let history = self.history();
        history.into_iter().find(|id| !self.commits[id].damaged)
    }
}
