//! The records of a job. Fields that a reader does not know are ignored; a version above its own is
//! refused, so that an old agent never guesses at a new protocol.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{CommitId, JobError, Nonce};
use crate::storage::{Entry, Storage, StorageError};

/// The records this program writes and the newest it reads.
pub const VERSION: u32 = 1;

/// No job has as many objects of one kind; a listing this long is taken for a mistake.
const LISTED_MAX: usize = 200_000;

/// `spec.json`: what was asked for. The agent reads what it needs and keeps the rest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SpecRecord {
    pub version: u32,
    /// The trainer's command line.
    pub command: Vec<String>,
    /// SHA-256 of the trainer's resolved config where the submitter knows it.
    #[serde(default)]
    pub config_hash: Option<String>,
    #[serde(default)]
    pub limits: Value,
    #[serde(default)]
    pub price: Value,
    #[serde(default)]
    pub dataset: Value,
}

/// Who holds a lease; for people and for a restart on the same machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The agent's name of itself: host and process.
    pub agent: String,
    /// The machine's boot id: the same value, the same boot.
    pub boot: String,
    #[serde(default)]
    pub provider: Option<String>,
    #[serde(default)]
    pub instance: Option<String>,
    #[serde(default)]
    pub gpu: Option<String>,
}

impl Holder {
    /// The agent's name in a lease that no agent holds.
    pub const ORCHESTRATOR: &'static str = "orchestrator";
}

/// Why a lease could be claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaseReason {
    /// There was none.
    First,
    /// The holder before left on purpose.
    Released,
    /// The holder before gave no sign for longer than its time to live.
    Expired,
    /// The holder before was a dead process of this boot.
    Restarted,
    /// `--lease off`: whoever starts takes it, by the user's own promise to start one.
    Unleased,
    /// The orchestrator took it away from the holder before.
    Revoked,
    /// A later agent's reason.
    #[serde(other)]
    Unknown,
}

/// `lease/<epoch>.json`: the claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRecord {
    pub version: u32,
    pub epoch: u64,
    pub nonce: Nonce,
    pub holder: Holder,
    /// After this long without a beat (and some slack) others may claim the next epoch.
    pub ttl_ms: u64,
    /// The fence: the newest commit before this epoch. Later ones of older epochs do not count.
    pub base: Option<CommitId>,
    pub attempt: u32,
    pub reason: LeaseReason,
}

impl LeaseRecord {
    /// Whether the orchestrator holds it so that nobody trains.
    pub fn is_revoked(&self) -> bool {
        self.reason == LeaseReason::Revoked
    }
}

/// `lease/<epoch>.beat.json`: a sign of life. `nonce` is the lease's; with it `seq` makes
/// every body differ from all others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BeatRecord {
    pub version: u32,
    pub epoch: u64,
    pub seq: u64,
    pub nonce: Nonce,
    pub step: u64,
    /// What the whole job has cost so far, all its machines together.
    pub spent_usd: f64,
    /// What of that is the holder's machine.
    #[serde(default)]
    pub machine_usd: f64,
}

/// `lease/<epoch>.released.json`: the holder left on purpose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleasedRecord {
    pub version: u32,
    pub epoch: u64,
    pub nonce: Nonce,
    pub reason: String,
}

/// One file of a checkpoint in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitFile {
    /// Where it is, relative to the job, so that a job can be copied: `data/<epoch>/<step>-<nonce>/
    /// <name>`.
    pub key: String,
    pub bytes: u64,
    /// Lower-case hexadecimal.
    pub sha256: String,
    /// CRC-64/NVME of the whole file, 16 hexadecimal digits.
    #[serde(with = "crc64nvme_hex")]
    pub crc64nvme: u64,
}

impl CommitFile {
    /// The file's name within its checkpoint.
    pub fn name(&self) -> &str {
        self.key.rsplit('/').next().unwrap_or(&self.key)
    }
}

/// `commit/<step>-<epoch>.json`: a checkpoint that is whole in the store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CommitRecord {
    pub version: u32,
    pub epoch: u64,
    pub step: u64,
    pub nonce: Nonce,
    pub files: Vec<CommitFile>,
    /// The commit that its run went on from.
    pub parent: Option<CommitId>,
    pub config_hash: String,
    pub val_loss: Option<f64>,
    /// What else tells one run from another; the agent's own.
    #[serde(default)]
    pub run_digest: Option<String>,
}

impl CommitRecord {
    pub fn id(&self) -> CommitId {
        CommitId {
            epoch: self.epoch,
            step: self.step,
        }
    }

    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

/// `final/<epoch>.json`: the end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FinalRecord {
    pub version: u32,
    pub epoch: u64,
    pub nonce: Nonce,
    /// `completed`, `failed`, `stopped` …
    pub status: String,
    pub reason: String,
    /// The agent's exit status.
    pub exit: i32,
    pub cost_usd: Option<f64>,
    /// The last checkpoint of the job.
    pub commit: Option<CommitId>,
}

/// `status.json`: the status as the HTTP API tells it, with whose it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatusEnvelope {
    pub version: u32,
    pub epoch: u64,
    pub status: Value,
}

/// The bytes of a record.
pub(crate) fn to_bytes(record: &impl Serialize) -> Bytes {
    let text = serde_json::to_vec(record).expect("records hold only strings and numbers");
    Bytes::from(text)
}

/// Reads a record and checks its version.
pub(crate) fn parse<R: DeserializeOwned>(
    store: &dyn Storage,
    key: &str,
    bytes: &[u8],
) -> Result<R, JobError> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let malformed = |detail: String| JobError::Malformed {
        store: store.name(),
        key: key.to_owned(),
        detail,
    };
    let Version { version } = serde_json::from_slice(bytes)
        .map_err(|error| malformed(format!("not a record of this protocol: {error}")))?;
    if version > VERSION {
        let newer = format!("version {version} is newer than this program's {VERSION}");
        return Err(malformed(newer));
    }
    serde_json::from_slice(bytes).map_err(|error| malformed(error.to_string()))
}

/// Reads a record from its key.
///
/// # Errors
/// Of the store, `Missing` among them; or if what is there is not such a record.
pub(crate) async fn read<R: DeserializeOwned>(
    store: &dyn Storage,
    key: &str,
) -> Result<R, JobError> {
    let object = store.get(key).await?;
    parse(store, key, &object.bytes)
}

/// Every object below a prefix.
///
/// # Errors
/// Of the store; or if there are so many that the listing may be cut short.
pub(crate) async fn list_all(
    store: &dyn Storage,
    prefix: &str,
) -> Result<Vec<Entry>, StorageError> {
    let listed = store.list(prefix, None, LISTED_MAX).await?;
    if listed.len() < LISTED_MAX {
        return Ok(listed);
    }
    Err(StorageError::Permanent {
        store: store.name(),
        operation: "list",
        key: prefix.to_owned(),
        detail: format!("expected fewer than {LISTED_MAX} objects"),
    })
}

mod crc64nvme_hex {
    //! A checksum as text: JSON readers in other languages lose the low bits of large numbers.

    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(crc: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("{crc:016x}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(source: D) -> Result<u64, D::Error> {
        let text = String::deserialize(source)?;
        u64::from_str_radix(&text, 16).map_err(D::Error::custom)
    }
}
