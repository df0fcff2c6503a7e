//! What a store can do, found out by doing it. Called before a store is first used for a lease, and
//! by `agent probe-store`.

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;

use super::crc64::crc64nvme;
use super::retry::{Policy, Retry};
use super::{Body, Created, Part, Storage, StorageError};

const RACERS: usize = 32;
const ROUNDS: usize = 3;
/// For each check: a store that is slower is none to hold a lease in.
pub const CHECK_MAX: Duration = Duration::from_secs(15);
/// For each request, with its retries: what failed is told while there is time.
const REQUESTS: Policy = Policy {
    deadline: Duration::from_secs(10),
    wait_first: Duration::from_millis(200),
    wait_max: Duration::from_secs(1),
};

/// What was found, of one ability.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    Works,
    /// It does not, and what was seen.
    Fails(String),
    /// It cannot be told, and why.
    Unknown(String),
}

/// What a store can do, and what may be done with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What people call the store.
    pub store: String,
    /// Read, write, list and delete are allowed.
    pub access: Finding,
    /// A second create of a key is refused.
    pub create_only: Finding,
    /// Of racing creates one wins.
    pub races: Finding,
    /// What was written or deleted is listed so at once.
    pub strong_list: Finding,
    /// Who does not know the secret of our key is refused.
    pub auth: Finding,
    /// A part that does not have its checksum is refused.
    pub part_checksums: Finding,
    /// The checksum of a whole object can be asked for.
    pub kept_checksums: Finding,
    /// Unfinished uploads can be found and swept.
    pub lists_uploads: Finding,
}

impl Verdict {
    /// Whether the lease may rest on this store: one trainer for a job, whatever happens.
    pub fn allows_lease(&self) -> bool {
        [
            &self.access,
            &self.create_only,
            &self.races,
            &self.strong_list,
        ]
        .into_iter()
        .all(|finding| *finding == Finding::Works)
    }

    /// The abilities with their names, those that the lease needs first.
    pub fn findings(&self) -> [(&'static str, &Finding); 8] {
        [
            ("access", &self.access),
            ("create-only", &self.create_only),
            ("races", &self.races),
            ("strong list", &self.strong_list),
            ("auth", &self.auth),
            ("part checksums", &self.part_checksums),
            ("kept checksums", &self.kept_checksums),
            ("lists uploads", &self.lists_uploads),
        ]
    }

    /// Why no lease may rest on this store, in one line; `None` if one may.
    pub fn objection(&self) -> Option<String> {
        if self.allows_lease() {
            return None;
        }
        let wrong: Vec<String> = self.findings()[..4]
            .iter()
            .filter(|(_, finding)| **finding != Finding::Works)
            .map(|(name, finding)| format!("{name}: {finding}"))
            .collect();
        let wrong = wrong.join("; ");
        Some(format!(
            "{}: no lease can be held here ({wrong})",
            self.store
        ))
    }

    /// What is wrong with this store though leases work, in one line.
    pub fn warning(&self) -> Option<String> {
        let Finding::Fails(seen) = &self.auth else {
            return None;
        };
        Some(format!(
            "{}: keys keep nobody out of this store: it {seen}",
            self.store
        ))
    }

    /// What to do with this store: a line for each thing, and a hint where leases do not work.
    pub fn summary(&self) -> String {
        let verdict = match self.objection() {
            None => format!("{}: leases are safe here (--lease strict)", self.store),
            Some(why) => format!(
                "{why}\nhint: use another store, or --lease off if you make sure that only one \
                 container runs this job"
            ),
        };
        match self.warning() {
            None => verdict,
            Some(warning) => format!("{verdict}\nwarning: {warning}"),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Works => f.write_str("yes"),
            Self::Fails(seen) => write!(f, "no: {seen}"),
            Self::Unknown(why) => write!(f, "unknown: {why}"),
        }
    }
}

/// The verdict as a table for people.
impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, finding) in self.findings() {
            writeln!(f, "{}", row(name, finding))?;
        }
        f.write_str(&self.summary())
    }
}

fn row(name: &str, finding: &Finding) -> String {
    format!("{name:<16}{finding}")
}

/// One probe under way: keys below a place of its own.
struct Probe {
    /// Faults of the way there are not the store's: retried, and lost answers settled.
    store: Arc<Retry>,
    at: String,
}

/// Finds out what `store` can do. `nonce` makes the keys differ from every other probe's. It writes
/// below `probe-<nonce>/` and removes what it wrote, unless the store ceases to answer. `tell`
/// hears each finding as a row of the verdict's table, as soon as it is known.
///
/// # Errors
/// If the store cannot be asked at all: transient when it did not answer a check within
/// [`CHECK_MAX`], permanent with wrong credentials or no bucket. What it answers wrongly is no
/// error but a finding.
pub async fn probe(
    store: &Arc<dyn Storage>,
    nonce: u64,
    tell: impl FnMut(&str),
) -> Result<Verdict, StorageError> {
    let probe = Probe {
        store: Arc::new(Retry::new(Arc::clone(store), REQUESTS, nonce)),
        at: format!("probe-{nonce:016x}"),
    };
    let verdict = probe.run(tell).await;
    // One that does not answer was waited for already.
    if verdict.as_ref().is_err_and(StorageError::is_transient) {
        return verdict;
    }
    let cleared = probe.check("clean-up", probe.clear()).await;
    let mut verdict = verdict?;
    if let Err(e) = cleared {
        verdict.access = Finding::Fails(e.to_string());
    }
    Ok(verdict)
}

impl Probe {
    async fn run(&self, mut tell: impl FnMut(&str)) -> Result<Verdict, StorageError> {
        let mut found = |name: &str, finding| {
            tell(&row(name, &finding));
            finding
        };
        let access = found("access", self.check("access", self.access()).await?);
        let create_only = self.check("create-only", self.create_only()).await?;
        let create_only = found("create-only", create_only);
        let races = match create_only {
            Finding::Works => self.check("races", self.races()).await?,
            _ => Finding::Fails("create-only does not work for one alone".to_owned()),
        };
        let races = found("races", races);
        let strong_list = self.check("strong list", self.strong_list()).await?;
        let strong_list = found("strong list", strong_list);
        let auth = found("auth", self.check("auth", self.auth()).await?);
        let uploads = self.check("uploads", self.uploads()).await?;
        let (part_checksums, kept_checksums, lists_uploads) = uploads;
        Ok(Verdict {
            store: self.store.name(),
            access,
            create_only,
            races,
            strong_list,
            auth,
            part_checksums: found("part checksums", part_checksums),
            kept_checksums: found("kept checksums", kept_checksums),
            lists_uploads: found("lists uploads", lists_uploads),
        })
    }

    /// Within its time; that there was no answer is told with the check and who was asked.
    async fn check<T>(
        &self,
        name: &str,
        work: impl Future<Output = Result<T, StorageError>>,
    ) -> Result<T, StorageError> {
        let silent = match tokio::time::timeout(CHECK_MAX, work).await {
            Ok(Err(StorageError::Transient {
                operation, detail, ..
            })) => format!("{operation}: {detail}"),
            Ok(answer) => return answer,
            Err(_) => format!("not done within {} s", CHECK_MAX.as_secs()),
        };
        let asked = self.store.address();
        let asked = asked.map_or_else(String::new, |address| format!("; asked {address}"));
        let detail = format!("{silent}{asked}");
        let store = self.store.name();
        Err(StorageError::transient(&store, "check", name, detail))
    }

    fn key(&self, name: &str) -> String {
        format!("{}/{name}", self.at)
    }

    async fn access(&self) -> Result<Finding, StorageError> {
        let key = self.key("access");
        let absent = self.store.get(&key).await;
        match absent {
            Err(e) if e.is_missing() => {}
            Err(e) => return Err(e),
            Ok(_) => return Ok(Finding::Fails("has an object that nobody made".to_owned())),
        }
        for text in ["first", "second"] {
            self.store.put(&key, Bytes::from(text)).await?;
            let got = self.store.get(&key).await?.bytes;
            if got != text {
                return Ok(Finding::Fails(format!("put {text:?}, then got {got:?}")));
            }
        }
        self.store.delete(&key).await?;
        match self.store.head(&key).await {
            Err(e) if e.is_missing() => Ok(Finding::Works),
            Err(e) => Err(e),
            Ok(_) => Ok(Finding::Fails("a deleted object is still there".to_owned())),
        }
    }

    async fn create_only(&self) -> Result<Finding, StorageError> {
        let key = self.key("create");
        // A store may have no such operation at all, which it says as a permanent error.
        match self.store.create(&key, Bytes::from("first")).await {
            Ok(Created::New(_)) => {}
            Ok(Created::Exists) => {
                return Ok(Finding::Fails("refused where nothing is".to_owned()));
            }
            Err(e @ StorageError::Permanent { .. }) => return Ok(Finding::Fails(e.to_string())),
            Err(e) => return Err(e),
        }
        let second = self.store.create(&key, Bytes::from("second")).await?;
        let got = self.store.get(&key).await?.bytes;
        Ok(match second {
            Created::Exists if got == "first" => Finding::Works,
            Created::Exists => Finding::Fails("refused, and replaced all the same".to_owned()),
            Created::New(_) => Finding::Fails("replaced what was there".to_owned()),
        })
    }

    async fn races(&self) -> Result<Finding, StorageError> {
        for round in 0..ROUNDS {
            let key = self.key(&format!("race-{round}"));
            let mut racers = JoinSet::new();
            for racer in 0..RACERS {
                let (store, key) = (Arc::clone(&self.store), key.clone());
                let body = Bytes::from(format!("racer {racer}"));
                racers.spawn(async move {
                    let created = store.create(&key, body.clone()).await?;
                    Ok(matches!(created, Created::New(_)).then_some(body))
                });
            }
            let mut winners = Vec::new();
            while let Some(racer) = racers.join_next().await {
                let answer: Result<Option<Bytes>, StorageError> =
                    racer.expect("no racer panics, and none is aborted");
                winners.extend(answer?);
            }
            let there = self.store.get(&key).await?.bytes;
            if winners.len() != 1 {
                let count = winners.len();
                return Ok(Finding::Fails(format!(
                    "{count} of {RACERS} racers won at once"
                )));
            }
            if winners[0] != there {
                return Ok(Finding::Fails(
                    "what the winner wrote is not there".to_owned(),
                ));
            }
        }
        Ok(Finding::Works)
    }

    async fn strong_list(&self) -> Result<Finding, StorageError> {
        let prefix = self.key("list/");
        for round in 0..ROUNDS {
            let key = format!("{prefix}{round}");
            self.store.put(&key, Bytes::from("listed")).await?;
            let listed = self.store.list(&prefix, None, ROUNDS + 1).await?;
            if listed.len() != 1 || listed[0].key != key {
                let count = listed.len();
                return Ok(Finding::Fails(format!(
                    "wrote 1 object, then listed {count}"
                )));
            }
            self.store.delete(&key).await?;
            let listed = self.store.list(&prefix, None, ROUNDS + 1).await?;
            if !listed.is_empty() {
                return Ok(Finding::Fails(
                    "lists an object that was deleted".to_owned(),
                ));
            }
        }
        Ok(Finding::Works)
    }

    /// A write and a read by somebody who does not know the secret of our key.
    async fn auth(&self) -> Result<Finding, StorageError> {
        let Some(stranger) = self.store.stranger().await else {
            return Ok(Finding::Unknown("there are no keys to ask with".to_owned()));
        };
        let key = self.key("auth");
        self.store.put(&key, Bytes::from("ours")).await?;
        match stranger.put(&key, Bytes::from("a stranger's")).await {
            Err(StorageError::Permanent { .. }) => {}
            Err(e) if e.is_transient() => return Err(e),
            _ => {
                let seen = "took a write that was signed with a wrong secret";
                return Ok(Finding::Fails(seen.to_owned()));
            }
        }
        match stranger.get(&key).await {
            Err(StorageError::Permanent { .. }) => Ok(Finding::Works),
            Err(e) if e.is_transient() => Err(e),
            _ => {
                let seen = "answered a read that was signed with a wrong secret";
                Ok(Finding::Fails(seen.to_owned()))
            }
        }
    }

    /// Part checksums, kept checksums, listing of uploads.
    async fn uploads(&self) -> Result<(Finding, Finding, Finding), StorageError> {
        let key = self.key("upload");
        let bytes = Bytes::from("the bytes of a part");
        let crc = crc64nvme(&bytes);
        let upload = self.store.begin_upload(&key).await?;
        let send = |crc| {
            let body = Body::Bytes(bytes.clone());
            self.store.upload_part(&key, &upload, 1, body, crc)
        };
        let part_checksums = match send(!crc).await {
            Ok(_) => Finding::Fails("took a part with a wrong checksum".to_owned()),
            Err(StorageError::Permanent { .. }) => Finding::Works,
            Err(e) => return Err(e),
        };
        let part: Part = send(crc).await?;
        let lists_uploads = match self.store.list_uploads(&self.at).await {
            Ok(pending) if pending.iter().any(|p| p.upload == upload) => Finding::Works,
            Ok(_) => Finding::Fails("does not list an unfinished upload".to_owned()),
            Err(e @ StorageError::Permanent { .. }) => Finding::Fails(e.to_string()),
            Err(e) => return Err(e),
        };
        let parts = [part];
        let completed = self.store.complete_upload(&key, &upload, &parts, crc);
        completed.await?;
        let kept_checksums = match self.store.head(&key).await?.crc64nvme {
            Some(kept) if kept == crc => Finding::Works,
            Some(_) => Finding::Fails("tells another checksum than it was sent".to_owned()),
            None => Finding::Fails("does not tell the checksum of an object".to_owned()),
        };
        Ok((part_checksums, kept_checksums, lists_uploads))
    }

    async fn clear(&self) -> Result<(), StorageError> {
        let prefix = self.key("");
        for entry in self.store.list(&prefix, None, usize::MAX).await? {
            self.store.delete(&entry.key).await?;
        }
        // Those of a store that cannot list them end by its own rules.
        let pending = self.store.list_uploads(&prefix).await.unwrap_or_default();
        for upload in pending {
            self.store.abort_upload(&upload.key, &upload.upload).await?;
        }
        Ok(())
    }
}
