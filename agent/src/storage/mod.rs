//! Where a job lives: a bucket, a folder, or memory. Called by the lease, publish and restore.
//!
//! One trait with three homes, all held to the same suite (`suite.rs`). Keys are relative to the
//! store's own prefix, `/`-separated, without `.` and `..`. The one primitive that everything rests
//! on is [`Storage::create`]: of any number of racers exactly one creates.

pub mod crc64;
mod keys;
pub mod memory;
pub mod local;
pub mod s3;
pub mod open;
pub mod probe;
pub mod retry;
#[cfg(any(test, feature = "testing"))]
pub mod faults;
#[cfg(test)]
mod suite;
#[cfg(test)]
mod tests;

use std::fmt::Display;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;

/// A store of immutable or single-writer objects.
#[async_trait]
pub trait Storage: Send + Sync {
    /// What people call it: `s3://bucket/prefix`, a path. Never holds a credential.
    fn name(&self) -> String;

    /// Where it is asked over a network, as far as known: `http://host:port`.
    fn address(&self) -> Option<String> {
        None
    }

    /// The same store, asked by somebody who knows the name of our key and not its secret; `None`
    /// where there are no keys.
    async fn stranger(&self) -> Option<Arc<dyn Storage>> {
        None
    }

    /// Whether it asks with keys that can be replaced.
    fn takes_keys(&self) -> bool {
        false
    }

    /// Asks with these keys from now on, and with its own again once they have expired.
    ///
    /// # Errors
    /// If the store asks with none.
    fn renew(&self, _keys: &Keys) -> Result<(), String> {
        Err(format!("{} is not opened with keys", self.name()))
    }

    /// A link that anybody can get the object by for so long; `None` where there are none. The
    /// link is a secret.
    async fn presigned(&self, _key: &str, _good_for: Duration) -> Option<String> {
        None
    }

    /// The whole object, for small ones.
    async fn get(&self, key: &str) -> Result<Object, StorageError>;

    /// Some bytes of an object; shorter only where the object ends.
    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StorageError>;

    /// Size, tag and checksum.
    async fn head(&self, key: &str) -> Result<Head, StorageError>;

    /// Creates or replaces an object, atomically; returns its new tag.
    async fn put(&self, key: &str, body: Bytes) -> Result<String, StorageError>;

    /// Creates an object where there is none, atomically against any number of racers.
    ///
    /// # Errors
    /// After a transient error the object may or may not have been created, by this call: whoever
    /// needs to know reads it back and looks for its own nonce.
    async fn create(&self, key: &str, body: Bytes) -> Result<Created, StorageError>;

    /// Every object whose key starts with `prefix` and sorts after `after`, in key order, at most
    /// `max`. Walks as many pages as that takes; an error on any page is an error of the whole.
    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        max: usize,
    ) -> Result<Vec<Entry>, StorageError>;

    /// Removes an object; one that is not there is fine.
    async fn delete(&self, key: &str) -> Result<(), StorageError>;

    /// Begins an object that is sent in parts, to replace whatever is under the key.
    async fn begin_upload(&self, key: &str) -> Result<UploadId, StorageError>;

    /// Sends one part; sending a number again replaces it. Every part but the last has the same
    /// size, at least 5 MiB. `crc64nvme` is the caller's own checksum of these bytes, which the
    /// store checks where it can.
    async fn upload_part(
        &self,
        key: &str,
        upload: &UploadId,
        number: u32,
        body: Body,
        crc64nvme: u64,
    ) -> Result<Part, StorageError>;

    /// Makes the object of its parts, in order. `crc64nvme` is of the whole object.
    async fn complete_upload(
        &self,
        key: &str,
        upload: &UploadId,
        parts: &[Part],
        crc64nvme: u64,
    ) -> Result<(), StorageError>;

    /// Gives up an upload and what it occupies; one that is not there is fine.
    async fn abort_upload(&self, key: &str, upload: &UploadId) -> Result<(), StorageError>;

    /// Unfinished uploads below a prefix, with their age where the store tells it.
    async fn list_uploads(&self, prefix: &str) -> Result<Vec<PendingUpload>, StorageError>;
}

/// Temporary keys to a store.
#[derive(Clone, PartialEq, Eq)]
pub struct Keys {
    pub access_key_id: String,
    pub secret_access_key: String,
    pub session_token: String,
    pub expires: Option<SystemTime>,
}

impl std::fmt::Debug for Keys {
    /// Without what is secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").finish_non_exhaustive()
    }
}

/// A small object, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    pub bytes: Bytes,
    /// Changes whenever the object is written with other bytes.
    pub tag: String,
}

/// What a store says of an object without sending it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    pub bytes: u64,
    pub tag: String,
    /// CRC-64/NVME of the whole object, where the store keeps one.
    pub crc64nvme: Option<u64>,
}

/// What became of a create-only put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Created {
    /// It is ours; its tag.
    New(String),
    /// Something is there already, perhaps from an earlier attempt of ours.
    Exists,
}

/// One line of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    pub bytes: u64,
    /// As `head` tells it; empty where listings leave it out.
    pub tag: String,
    /// How long ago it was written by the store's clock, in seconds, where the store tells it.
    pub age_s: Option<u64>,
}

/// Bytes to send: in memory, or a stretch of a file that is read as it is sent.
#[derive(Clone, Debug)]
pub enum Body {
    Bytes(Bytes),
    File {
        path: PathBuf,
        offset: u64,
        bytes: u64,
    },
}

impl Body {
    /// How many bytes it stands for.
    pub fn size(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File { bytes, .. } => *bytes,
        }
    }
}

/// The store's name for an upload in parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadId(pub String);

/// A part that the store has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// From 1.
    pub number: u32,
    pub tag: String,
    pub crc64nvme: u64,
}

/// An upload that was begun and neither completed nor aborted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingUpload {
    pub key: String,
    pub upload: UploadId,
    pub age_s: Option<u64>,
}

/// What can go wrong with a store, by what a caller does about it. Messages never hold a
/// credential or a signed URL.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// Definitely not there. Never used for a store that could not be asked.
    #[error("{store}: {key} is not there")]
    Missing { store: String, key: String },
    /// May work later: connections, time-outs, throttling, 5xx, conflicts.
    #[error("{store}: {operation} {key}: {detail}")]
    Transient {
        store: String,
        operation: &'static str,
        key: String,
        detail: String,
    },
    /// Will not work without somebody's help: credentials, permissions, no bucket, full disk,
    /// damaged data, an unsupported request.
    #[error("{store}: {operation} {key}: {detail}")]
    Permanent {
        store: String,
        operation: &'static str,
        key: String,
        detail: String,
    },
}

impl StorageError {
    pub(crate) fn missing(store: &str, key: &str) -> Self {
        Self::Missing {
            store: store.to_owned(),
            key: key.to_owned(),
        }
    }

    pub(crate) fn transient(
        store: &str,
        operation: &'static str,
        key: &str,
        detail: impl Display,
    ) -> Self {
        Self::Transient {
            store: store.to_owned(),
            operation,
            key: key.to_owned(),
            detail: detail.to_string(),
        }
    }

    pub(crate) fn permanent(
        store: &str,
        operation: &'static str,
        key: &str,
        detail: impl Display,
    ) -> Self {
        Self::Permanent {
            store: store.to_owned(),
            operation,
            key: key.to_owned(),
            detail: detail.to_string(),
        }
    }

    /// Whether trying again can help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Transient { .. })
    }

    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Missing { .. })
    }
}
