//! What is true, whatever any agent believes: the store itself, who made what in it, and the
//! promises, checked whenever something changes. Reads the records by the protocol's own words, not
//! by the functions that are tried.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use protocol::RunDir;
use sha2::{Digest, Sha256};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::plan::Plan;
use crate::checkpoints::{Source, Transfer, restore};
use crate::clock::{Clock, Moment};
use crate::job::{
    CommitId, CommitRecord, FinalRecord, Job, LeaseKey, LeaseReason, LeaseRecord, Nonce,
};
use crate::storage::{Created, Storage};

/// What is left behind before a schedule begins.
const LITTER_AGE: Duration = Duration::from_secs(30 * 3600);
/// What is swept is older than this by any clock that is wrong by ten hours.
const LITTER_AGE_S: u64 = 14 * 3600;
/// Of how many changes one is tried by a reader that restores.
const READERS_EVERY: u64 = 4;

/// What is to be seen of a process.
pub(super) struct Face {
    pub(super) alive: bool,
    pub(super) frozen_until: Instant,
    pub(super) clock: Arc<dyn Clock>,
    /// The epoch it relies on, until when, and what its run resumed from.
    pub(super) held: Option<(u64, Moment)>,
    pub(super) resumed_from: Option<CommitId>,
}

impl Face {
    fn relies_on_the_lease(&self) -> Option<u64> {
        let (epoch, until) = self.held?;
        (self.alive && self.clock.now() < until).then_some(epoch)
    }
}

/// How often something worth trying happened.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) requests: u64,
    pub(super) epochs: u64,
    pub(super) commits: u64,
    pub(super) orphans: u64,
    pub(super) pruned: u64,
    pub(super) swept: u64,
    pub(super) damaged: u64,
    pub(super) kills: u64,
}

impl Counts {
    pub(super) fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.epochs += other.epochs;
        self.commits += other.commits;
        self.orphans += other.orphans;
        self.pruned += other.pruned;
        self.swept += other.swept;
        self.damaged += other.damaged;
        self.kills += other.kills;
    }
}

#[derive(Default)]
struct Ledger {
    trace: Vec<String>,
    violated: Option<String>,
    faces: Vec<Face>,
    /// Whose lease an epoch is.
    owners: BTreeMap<u64, usize>,
    damaged: BTreeSet<CommitId>,
    /// When each commit arrived, and when each claim was sent first, by its body.
    landed: BTreeMap<CommitId, Instant>,
    claims: BTreeMap<Bytes, Instant>,
    /// Keys whose bytes were found right, with their tags.
    right: BTreeSet<(String, String)>,
    newest: Option<CommitId>,
    counts: Counts,
    /// Uploads whose commits were pruned, and commits that came back after that: a create whose
    /// answer was lost can arrive late. They are older than two whole ones, and pruned again.
    pruned: BTreeSet<Nonce>,
    returned: BTreeSet<CommitId>,
    /// As it was when it was last looked for, until a record changes.
    survey: Option<Arc<Survey>>,
}

/// The records of a job as they stand.
#[derive(Default)]
pub(super) struct Survey {
    pub(super) leases: BTreeMap<u64, LeaseRecord>,
    pub(super) commits: BTreeMap<CommitId, CommitRecord>,
    pub(super) ended: Option<FinalRecord>,
}

impl Survey {
    pub(super) fn epoch(&self) -> u64 {
        self.leases.keys().next_back().copied().unwrap_or(0)
    }

    /// The commits that count, newest first.
    pub(super) fn history(&self) -> Vec<&CommitRecord> {
        let epoch = self.epoch();
        let own = self.commits.values().rev().filter(|c| c.epoch == epoch);
        let mut history: Vec<&CommitRecord> = own.collect();
        let mut next = self.leases.get(&epoch).and_then(|lease| lease.base);
        while let Some(commit) = next.and_then(|id| self.commits.get(&id)) {
            history.push(commit);
            next = commit.parent.filter(|parent| *parent < commit.id());
        }
        history
    }
}

pub(super) struct Truth {
    pub(super) memory: Arc<dyn Storage>,
    pub(super) job: Job,
    pub(super) began: Instant,
    /// Told when a process ends or something is found wrong.
    pub(super) changed: Notify,
    pub(super) aloud: bool,
    /// The last step of the job.
    total: u64,
    folder: PathBuf,
    readers: AtomicU64,
    ledger: Mutex<Ledger>,
}

impl Truth {
    pub(super) fn new(memory: Arc<dyn Storage>, folder: PathBuf, total: u64, aloud: bool) -> Self {
        Self {
            memory,
            job: Job::new("j").unwrap(),
            began: Instant::now(),
            changed: Notify::new(),
            aloud,
            total,
            folder,
            readers: AtomicU64::new(0),
            ledger: Mutex::default(),
        }
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap()
    }

    pub(super) fn note(&self, text: impl FnOnce() -> String) {
        if self.aloud {
            let now = self.began.elapsed().as_millis();
            let mut ledger = self.ledger();
            if ledger.violated.is_none() {
                let line = format!("{now:>8} ms  {}", text());
                ledger.trace.push(line);
            }
        }
    }

    pub(super) fn trace(&self) -> String {
        // Its name is random.
        let folder = self.folder.display().to_string();
        self.ledger().trace.join("\n").replace(&folder, "")
    }

    pub(super) fn require(&self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.ledger().violated.get_or_insert_with(what);
            self.changed.notify_one();
        }
    }

    pub(super) fn violated(&self) -> Option<String> {
        self.ledger().violated.clone()
    }

    pub(super) fn counts(&self) -> Counts {
        self.ledger().counts
    }

    pub(super) fn count(&self, add: impl FnOnce(&mut Counts)) {
        add(&mut self.ledger().counts);
    }

    pub(super) fn appear(&self, face: Face) -> usize {
        let mut ledger = self.ledger();
        ledger.faces.push(face);
        ledger.faces.len() - 1
    }

    /// Looks at a process, or changes what is to be seen of it.
    pub(super) fn face<T>(&self, who: usize, look: impl FnOnce(&mut Face) -> T) -> T {
        look(&mut self.ledger().faces[who])
    }

    pub(super) fn is_frozen(&self, who: usize) -> bool {
        self.face(who, |face| Instant::now() < face.frozen_until)
    }

    /// Comes back when the process can act: never, if it is dead.
    pub(super) async fn awake(&self, who: usize) {
        loop {
            let (alive, until) = self.face(who, |face| (face.alive, face.frozen_until));
            if !alive {
                std::future::pending::<()>().await;
            }
            if Instant::now() >= until {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }

    pub(super) fn kill(&self, who: usize) {
        self.face(who, |face| face.alive = false);
        self.count(|counts| counts.kills += 1);
        self.changed.notify_one();
    }

    /// Never two that may rely on the lease.
    pub(super) fn check_holders(&self) {
        let holders: Vec<usize> = {
            let ledger = self.ledger();
            let faces = ledger.faces.iter().enumerate();
            let awake = faces.filter(|(_, face)| Instant::now() >= face.frozen_until);
            awake
                .filter(|(_, face)| face.relies_on_the_lease().is_some())
                .map(|(who, _)| who)
                .collect()
        };
        self.require(holders.len() <= 1, || {
            format!("agents {holders:?} all rely on the lease")
        });
    }

    /// What an agent that is awake must not even ask for. `what`: a commit, an end, a deletion.
    pub(super) async fn asks(&self, who: usize, what: &str, key: &str) {
        if self.is_frozen(who) {
            return;
        }
        let survey = self.survey().await;
        let Some((epoch, top)) = survey.leases.last_key_value() else {
            return;
        };
        let owner = self.ledger().owners.get(epoch).copied();
        let lost = owner != Some(who) && !top.is_revoked();
        self.require(!lost, || {
            format!("agent {who} does not hold epoch {epoch} and {what}s {key}")
        });
    }

    pub(super) fn sends(&self, key: &str, body: &Bytes) {
        if let Some(LeaseKey::Record(_)) = self.job.parse_lease(key) {
            let now = Instant::now();
            self.ledger().claims.entry(body.clone()).or_insert(now);
        }
    }

    /// After a create, or a put that is one where the store knows no better.
    pub(super) async fn created(&self, who: usize, key: &str, body: &Bytes, created: &Created) {
        if *created == Created::Exists {
            return self.note(|| format!("agent {who}: {key} exists"));
        }
        self.note(|| format!("agent {who}: created {key}"));
        if let Some(LeaseKey::Record(epoch)) = self.job.parse_lease(key) {
            self.claimed(who, epoch, body).await;
            self.check("the claim", true).await;
        } else if let Some(id) = self.job.parse_commit(key) {
            self.committed(who, id, body).await;
            self.check("the commit", false).await;
        } else if key.starts_with(&self.job.finals()) {
            self.ended(who, key, body).await;
        }
    }

    async fn claimed(&self, who: usize, epoch: u64, body: &Bytes) {
        let lease: LeaseRecord = serde_json::from_slice(body).unwrap();
        let survey = self.survey().await;
        let mut ledger = self.ledger();
        ledger.owners.insert(epoch, who);
        ledger.counts.epochs += 1;
        let holder =
            ledger.faces.iter().enumerate().find(|(other, face)| {
                *other != who && face.relies_on_the_lease() == Some(epoch - 1)
            });
        let holder = holder.map(|(other, _)| other);
        // Work of the last moments may be lost; nothing that was there when the claimer looked.
        let of_last = survey.commits.keys().rev().find(|id| id.epoch == epoch - 1);
        let before = survey.leases.get(&(epoch - 1)).and_then(|last| last.base);
        let newest = of_last.copied().or(before);
        let landed = newest.and_then(|id| ledger.landed.get(&id).copied());
        let sent = ledger.claims.get(body).copied();
        drop(ledger);
        let revoked = lease.reason == LeaseReason::Revoked;
        self.require(holder.is_none() || revoked, || {
            format!("agent {who} takes epoch {epoch} from {holder:?}, which relies on its own")
        });
        let looked = sent.map(|sent| sent - Plan::terms().request_limit());
        let covers = lease.base == newest || landed > looked;
        self.require(covers, || {
            let base = lease.base;
            format!("epoch {epoch} begins at {base:?}, its claimer could see {newest:?}")
        });
    }

    async fn committed(&self, who: usize, id: CommitId, body: &Bytes) {
        let commit: CommitRecord = serde_json::from_slice(body).unwrap();
        let survey = self.survey().await;
        let mut ledger = self.ledger();
        ledger.landed.insert(id, Instant::now());
        ledger.counts.commits += 1;
        if ledger.pruned.contains(&commit.nonce) {
            ledger.returned.insert(id);
            return;
        }
        let owner = ledger.owners.get(&id.epoch).copied();
        let counts = survey.epoch() == id.epoch;
        ledger.counts.orphans += u64::from(!counts);
        drop(ledger);
        self.require(owner == Some(who), || {
            format!(
                "agent {who} commits {id}, epoch {} is {owner:?}'s",
                id.epoch
            )
        });
        let mut before = survey.history().into_iter().map(CommitRecord::id);
        let first = before.all(|other| other == id);
        self.require(!counts || first || commit.parent.is_some(), || {
            format!("commit {id} goes on from nothing, and there is something")
        });
        let parent = commit.parent;
        self.require(parent.is_none_or(|parent| parent < id), || {
            format!("commit {id} goes on from {parent:?}")
        });
    }

    async fn ended(&self, who: usize, key: &str, body: &Bytes) {
        let end: FinalRecord = serde_json::from_slice(body).unwrap();
        let survey = self.survey().await;
        let owner = self.ledger().owners.get(&end.epoch).copied();
        self.require(owner == Some(who), || {
            format!("agent {who} writes {key}, which is {owner:?}'s")
        });
        let newest = survey.history().first().map(|commit| commit.id());
        let valid = survey.epoch() == end.epoch;
        let total = end.commit.is_some_and(|commit| commit.step == self.total);
        let verified = total && newest == end.commit && end.status == "completed";
        self.require(!valid || verified, || {
            format!("{key} names {:?}, the newest is {newest:?}", end.commit)
        });
    }

    /// Before an object goes.
    pub(super) async fn deleting(&self, who: usize, key: &str) {
        let survey = self.survey().await;
        if let Some(id) = self.job.parse_commit(key) {
            let base = survey.leases.values().next_back().and_then(|l| l.base);
            let history = survey.history();
            let owner = self.ledger().owners.get(&survey.epoch()).copied();
            let resumed = owner.and_then(|owner| self.face(owner, |face| face.resumed_from));
            let mut kept: Vec<CommitId> = history.iter().take(2).map(|c| c.id()).collect();
            kept.extend(base.into_iter().chain(resumed));
            self.require(!kept.contains(&id), || {
                format!("agent {who} deletes commit {id} of the kept {kept:?}")
            });
            let mut ledger = self.ledger();
            ledger.counts.pruned += 1;
            let commit = survey.commits.get(&id);
            ledger
                .pruned
                .extend(commit.map(|commit| commit.nonce.clone()));
        } else if let Some((id, nonce, _)) = self.job.parse_data(key) {
            let named = survey.commits.get(&id).is_some_and(|c| c.nonce == nonce);
            let returned = self.ledger().returned.contains(&id);
            self.require(!named || returned, || {
                format!("agent {who} deletes {key}, which a commit names")
            });
            if !self.ledger().pruned.contains(&nonce) {
                self.count(|counts| counts.swept += 1);
                let listed = self.memory.list(key, None, 1).await.unwrap();
                let age_s = listed.first().and_then(|entry| entry.age_s);
                self.require(age_s.is_none_or(|age| age >= LITTER_AGE_S), || {
                    format!("agent {who} sweeps {key} at the age of {age_s:?} s")
                });
            }
        } else {
            self.require(false, || format!("agent {who} deletes {key}"));
        }
    }

    /// A record was created, replaced or removed.
    pub(super) fn changes(&self, key: &str) {
        let job = &self.job;
        let lease = matches!(job.parse_lease(key), Some(LeaseKey::Record(_)));
        if lease || job.parse_commit(key).is_some() || key.starts_with(&job.finals()) {
            self.ledger().survey = None;
        }
    }

    pub(super) async fn survey(&self) -> Arc<Survey> {
        let known = self.ledger().survey.clone();
        if let Some(survey) = known {
            return survey;
        }
        let mut survey = Survey::default();
        for entry in self.list(&self.job.leases()).await {
            if let Some(LeaseKey::Record(epoch)) = self.job.parse_lease(&entry) {
                survey.leases.insert(epoch, self.record(&entry).await);
            }
        }
        for entry in self.list(&self.job.commits()).await {
            let id = self.job.parse_commit(&entry).expect("agents spell keys");
            survey.commits.insert(id, self.record(&entry).await);
        }
        let end = self.job.final_of(survey.epoch());
        if self.memory.head(&end).await.is_ok() {
            survey.ended = Some(self.record(&end).await);
        }
        let survey = Arc::new(survey);
        self.ledger().survey = Some(Arc::clone(&survey));
        survey
    }

    async fn list(&self, prefix: &str) -> Vec<String> {
        let listed = self.memory.list(prefix, None, 100_000).await.unwrap();
        listed.into_iter().map(|entry| entry.key).collect()
    }

    async fn record<R: serde::de::DeserializeOwned>(&self, key: &str) -> R {
        let object = self.memory.get(key).await.unwrap();
        serde_json::from_slice(&object.bytes).unwrap()
    }

    /// What must hold at every moment: all that counts is whole, the newest never goes back, and a
    /// reader that comes now gets it.
    pub(super) async fn check(&self, after: &str, may_go_back: bool) {
        let survey = self.survey().await;
        let history = survey.history();
        let mut good = None;
        for (age, commit) in history.iter().enumerate() {
            let id = commit.id();
            let returned = self.ledger().returned.contains(&id);
            self.require(age >= 2 || !returned, || {
                format!("after {after}: commit {id} was pruned and is among the newest")
            });
            if returned || self.ledger().damaged.contains(&id) {
                continue;
            }
            good = good.or(Some(id));
            if let Some(wrong) = self.first_wrong(commit).await {
                self.require(false, || format!("after {after}: commit {id}: {wrong}"));
            }
        }
        let newest = history.first().map(|commit| commit.id());
        let before = std::mem::replace(&mut self.ledger().newest, newest);
        self.require(may_go_back || newest >= before, || {
            format!("after {after}: the newest commit went from {before:?} to {newest:?}")
        });
        let count = self.readers.fetch_add(1, Ordering::Relaxed);
        if count.is_multiple_of(READERS_EVERY) {
            self.try_reading(after, count, survey.epoch(), good).await;
        }
    }

    async fn first_wrong(&self, commit: &CommitRecord) -> Option<String> {
        for file in &commit.files {
            let key = self.job.key(&file.key);
            let Ok(object) = self.memory.get(&key).await else {
                return Some(format!("{key} is not there"));
            };
            let known = (key, object.tag);
            if self.ledger().right.contains(&known) {
                continue;
            }
            let found = Sha256::digest(&object.bytes);
            let found: String = found.iter().map(|byte| format!("{byte:02x}")).collect();
            if object.bytes.len() as u64 != file.bytes || found != file.sha256 {
                return Some(format!("{} is not what was committed", known.0));
            }
            self.ledger().right.insert(known);
        }
        (commit.files.is_empty()).then(|| "names no files".to_owned())
    }

    /// Restores on a new machine, as if every agent had died at this moment.
    async fn try_reading(&self, after: &str, count: u64, epoch: u64, good: Option<CommitId>) {
        let folder = self.folder.join(format!("reader{count}"));
        let transfer = Transfer {
            parallel: 1,
            part_bytes_min: 1 << 20,
            deadline: Duration::from_secs(1),
        };
        let run_dir = RunDir::new(&folder);
        let restored = restore(&self.memory, &self.job, epoch + 1, &run_dir, &transfer).await;
        let found = match &restored {
            Ok(restored) => match restored.source {
                Source::Store { commit, .. } => Ok(Some(commit)),
                Source::Fresh => Ok(None),
                Source::Local { step } => Err(format!("step {step} of nowhere")),
            },
            Err(error) => Err(error.to_string()),
        };
        std::fs::remove_dir_all(&folder).ok();
        self.require(found == Ok(good), || {
            format!("after {after}: a reader gets {found:?} instead of {good:?}")
        });
    }

    /// The newest commit that counts and was not damaged.
    pub(super) async fn newest_good(&self) -> Option<CommitId> {
        let survey = self.survey().await;
        let history = survey.history();
        let ledger = self.ledger();
        let mut ids = history.iter().map(|commit| commit.id());
        ids.find(|id| !ledger.damaged.contains(id) && !ledger.returned.contains(id))
    }

    /// Whether the newest epoch is this process's.
    pub(super) async fn holds_top(&self, who: usize) -> bool {
        let top = self.survey().await.epoch();
        self.ledger().owners.get(&top) == Some(&who)
    }

    /// What somebody left behind long ago: a file without a commit, and an upload.
    pub(super) async fn litter(&self) {
        let id = CommitId { epoch: 1, step: 7 };
        let key = |bits| {
            let folder = self.job.data(id, &Nonce::from_bits(bits));
            format!("{folder}{}", RunDir::MODEL)
        };
        let put = self.memory.put(&key(1), "litter".into()).await;
        put.expect("memory does not fail");
        let begun = self.memory.begin_upload(&key(2)).await;
        begun.expect("memory does not fail");
        tokio::time::advance(LITTER_AGE).await;
    }

    /// Spoils a file of the newest checkpoint, as long as all others are good: bits, its end, or
    /// all of it.
    pub(super) async fn damage(&self, random: &mut fastrand::Rng) {
        let survey = self.survey().await;
        let history = survey.history();
        let others = history.iter().skip(1).map(|commit| commit.id()).collect();
        let Some(newest) = history.first().filter(|_| history.len() >= 3) else {
            return;
        };
        let all_good = {
            let ledger = self.ledger();
            ledger.damaged.is_disjoint(&others) && !ledger.damaged.contains(&newest.id())
        };
        if !all_good {
            return;
        }
        let file = &newest.files[random.usize(..newest.files.len())];
        let key = self.job.key(&file.key);
        let mut bytes = match self.memory.get(&key).await {
            Ok(object) if !object.bytes.is_empty() => object.bytes.to_vec(),
            _ => return,
        };
        match random.u8(0..3) {
            0 => bytes[0] ^= 1,
            1 => bytes.truncate(bytes.len() / 2),
            _ => bytes.clear(),
        }
        let id = newest.id();
        self.ledger().damaged.insert(id);
        self.count(|counts| counts.damaged += 1);
        if bytes.is_empty() {
            self.memory.delete(&key).await.unwrap();
        } else {
            self.memory.put(&key, Bytes::from(bytes)).await.unwrap();
        }
        self.note(|| format!("{key} is damaged"));
        self.check("the damage", false).await;
    }

    /// Whether a problem that `verify` found is of a checkpoint that was damaged on purpose, or of
    /// one that came back.
    pub(super) fn is_expected(&self, problem: &str) -> bool {
        let ledger = self.ledger();
        let mut expected = ledger.damaged.iter().chain(&ledger.returned);
        expected.any(|id| problem.contains(&id.to_string()))
    }
}
