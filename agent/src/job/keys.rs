//! The keys of a job, written and read back. Called by whatever touches a store.

use super::{CommitId, JobError, Nonce};

/// A job's place in a store: makes keys, touches nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    id: String,
}

/// What an object below `lease/` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseKey {
    Record(u64),
    Beat(u64),
    Released(u64),
}

impl Job {
    pub const ID_BYTES_MAX: usize = 512;

    /// A job of this name. A name may hold `/`: a trial of a sweep is a job below its sweep.
    ///
    /// # Errors
    /// If the name could not be part of a key in every store.
    pub fn new(id: impl Into<String>) -> Result<Self, JobError> {
        let id = id.into();
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        let word = |w: &str| !w.is_empty() && w != "." && w != ".." && w.bytes().all(allowed);
        if id.len() <= Self::ID_BYTES_MAX && id.split('/').all(word) {
            Ok(Self { id })
        } else {
            Err(JobError::Name { id })
        }
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// Everything of this job starts with this.
    pub fn prefix(&self) -> String {
        format!("{}/", self.id)
    }

    /// The store's key of one relative to the job.
    pub fn key(&self, relative: &str) -> String {
        format!("{}/{relative}", self.id)
    }

    /// Created once by whoever submits.
    pub fn spec(&self) -> String {
        format!("{}/spec.json", self.id)
    }

    pub fn leases(&self) -> String {
        format!("{}/lease/", self.id)
    }

    /// Created once: the claim of an epoch.
    pub fn lease(&self, epoch: u64) -> String {
        format!("{}/lease/{epoch:08}.json", self.id)
    }

    /// Overwritten by the epoch's holder only.
    pub fn beat(&self, epoch: u64) -> String {
        format!("{}/lease/{epoch:08}.beat.json", self.id)
    }

    /// Created once by the holder that leaves on purpose.
    pub fn released(&self, epoch: u64) -> String {
        format!("{}/lease/{epoch:08}.released.json", self.id)
    }

    /// What a key below `lease/` is; `None` for a stranger's.
    pub fn parse_lease(&self, key: &str) -> Option<LeaseKey> {
        let name = key.strip_prefix(&self.leases())?;
        let (epoch, rest) = name.split_once('.')?;
        let epoch = number(epoch, 8)?;
        match rest {
            "json" => Some(LeaseKey::Record(epoch)),
            "beat.json" => Some(LeaseKey::Beat(epoch)),
            "released.json" => Some(LeaseKey::Released(epoch)),
            _ => None,
        }
    }

    pub fn all_data(&self) -> String {
        format!("{}/data/", self.id)
    }

    /// Below this are the files of one upload. Never used twice: the nonce is new each time.
    pub fn data(&self, id: CommitId, nonce: &Nonce) -> String {
        let CommitId { epoch, step } = id;
        format!("{}/data/{epoch:08}/{step:010}-{nonce}/", self.id)
    }

    /// Which upload a key below `data/` belongs to, and the file's name in it.
    pub fn parse_data<'a>(&self, key: &'a str) -> Option<(CommitId, Nonce, &'a str)> {
        let rest = key.strip_prefix(&self.all_data())?;
        let (epoch, rest) = rest.split_once('/')?;
        let (upload, file) = rest.split_once('/')?;
        let (step, nonce) = upload.split_once('-')?;
        let id = CommitId {
            epoch: number(epoch, 8)?,
            step: number(step, 10)?,
        };
        Some((id, Nonce::try_from(nonce.to_owned()).ok()?, file))
    }

    pub fn commits(&self) -> String {
        format!("{}/commit/", self.id)
    }

    /// Created once, last: a checkpoint exists exactly when this does.
    pub fn commit(&self, id: CommitId) -> String {
        format!("{}/commit/{id}.json", self.id)
    }

    /// Which commit a key below `commit/` is; `None` for a stranger's.
    pub fn parse_commit(&self, key: &str) -> Option<CommitId> {
        CommitId::parse(key.strip_prefix(&self.commits())?.strip_suffix(".json")?)
    }

    pub fn finals(&self) -> String {
        format!("{}/final/", self.id)
    }

    /// Created once: the end. Void once the next epoch's lease exists.
    pub fn final_of(&self, epoch: u64) -> String {
        format!("{}/final/{epoch:08}.json", self.id)
    }

    /// Overwritten by the holder; a convenience, never a truth.
    pub fn status(&self) -> String {
        format!("{}/status.json", self.id)
    }

    pub fn controls(&self) -> String {
        format!("{}/control/", self.id)
    }

    /// Created once by the orchestrator.
    pub fn control(&self, n: u64) -> String {
        format!("{}/control/{n:08}.json", self.id)
    }

    /// The number of a key below `control/`.
    pub fn parse_control(&self, key: &str) -> Option<u64> {
        let name = key.strip_prefix(&self.controls())?;
        number(name.strip_suffix(".json")?, 8)
    }

    pub fn logs(&self) -> String {
        format!("{}/logs/", self.id)
    }

    /// Created once: a segment of an attempt's captured output.
    pub fn log_segment(&self, attempt: u32, n: u64) -> String {
        format!("{}/logs/a{attempt:04}/seg-{n:08}.ndjson.zst", self.id)
    }

    /// Attempt and number of a log segment's key.
    pub fn parse_log_segment(&self, key: &str) -> Option<(u32, u64)> {
        let rest = key.strip_prefix(&self.logs())?.strip_prefix('a')?;
        let (attempt, segment) = rest.split_once("/seg-")?;
        let attempt = u32::try_from(number(attempt, 4)?).ok()?;
        Some((attempt, number(segment.strip_suffix(".ndjson.zst")?, 8)?))
    }

    pub fn events(&self) -> String {
        format!("{}/events/", self.id)
    }

    /// Created once: what an agent of this epoch has to say.
    pub fn event(&self, epoch: u64, n: u64) -> String {
        format!("{}/events/{epoch:08}-{n:08}.json", self.id)
    }

    pub fn artifacts(&self) -> String {
        format!("{}/artifacts/", self.id)
    }
}

/// A number written with leading zeros up to a width, and with none beyond it.
pub(super) fn number(text: &str, width: usize) -> Option<u64> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    let padded = text.len() == width || (text.len() > width && !text.starts_with('0'));
    text.parse().ok().filter(|_| digits && padded)
}
