//! A job in a store: every key once, every record once. Called by the lease, the checkpoints, the
//! status and the logs.
//!
//! Keys carry padded numbers, so that a listing sorts as the numbers do; reading one back is
//! strict, so that a stranger's object is never taken for one of ours.

mod keys;
mod record;
pub(crate) mod requests;
#[cfg(test)]
mod tests;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use keys::{Job, LeaseKey};
pub use record::{
    BeatRecord, CommitFile, CommitRecord, FinalRecord, Holder, LeaseReason, LeaseRecord,
    ReleasedRecord, SpecRecord, StatusEnvelope, VERSION,
};

pub(crate) use record::{list_all, parse, read, to_bytes};

use crate::storage::StorageError;

/// What can go wrong with a job in a store.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// An object is there and cannot be what its key says.
    #[error("{store}: {key}: {detail}")]
    Malformed {
        store: String,
        key: String,
        detail: String,
    },
    /// Not a job's name.
    #[error(
        "job name {id:?}: expected words of letters, digits, '.', '_' and '-' \
         joined by '/', at most {max} bytes",
        max = Job::ID_BYTES_MAX
    )]
    Name { id: String },
}

impl JobError {
    /// Whether trying again can help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Storage(error) if error.is_transient())
    }

    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Storage(error) if error.is_missing())
    }
}

/// A number nobody else draws: 32 hexadecimal digits. Whoever makes something in a store puts one
/// into it, and knows it again by that after a lost answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Nonce(String);

impl Nonce {
    /// A nonce of 128 random bits, which the caller draws.
    pub fn from_bits(bits: u128) -> Self {
        Self(format!("{bits:032x}"))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Nonce {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let hexadecimal = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if text.len() == 32 && text.bytes().all(hexadecimal) {
            Ok(Self(text))
        } else {
            Err(format!("nonce {text:?}: expected 32 hexadecimal digits"))
        }
    }
}

impl From<Nonce> for String {
    fn from(nonce: Nonce) -> Self {
        nonce.0
    }
}

impl fmt::Display for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which commit: `<step:010>-<epoch:08>`, in records as in keys. Ordered by epoch, then step: of
/// two commits in one history the greater is the newer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CommitId {
    pub epoch: u64,
    pub step: u64,
}

impl CommitId {
    /// Reads `<step:010>-<epoch:08>`; `None` for anything spelled otherwise.
    pub fn parse(text: &str) -> Option<Self> {
        let (step, epoch) = text.split_once('-')?;
        Some(Self {
            epoch: keys::number(epoch, 8)?,
            step: keys::number(step, 10)?,
        })
    }
}

impl fmt::Display for CommitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:010}-{:08}", self.step, self.epoch)
    }
}

impl TryFrom<String> for CommitId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text).ok_or_else(|| format!("commit {text:?}: expected <step>-<epoch>"))
    }
}

impl From<CommitId> for String {
    fn from(id: CommitId) -> Self {
        id.to_string()
    }
}
