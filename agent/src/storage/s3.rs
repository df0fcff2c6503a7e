//! A store in a bucket: AWS S3 and whatever speaks its protocol. Called by `open`.
//!
//! One set of settings for all of them (`s3/connect.rs`), and one attempt for each call: what fails
//! is retried by `Retry`, which knows what a lost answer means. Bodies of parts are read from their
//! file as they are sent, so memory stays flat; each carries the CRC-64/NVME that the caller
//! computed, the one checksum that stores keep of a whole object however it was sent.

mod buffers;
mod connect;
mod errors;
#[cfg(test)]
pub(crate) mod server;
#[cfg(test)]
mod tests;

use std::fmt::Display;
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::SharedCredentialsProvider;
use aws_sdk_s3::error::SdkError;
use aws_sdk_s3::presigning::PresigningConfig;
use aws_sdk_s3::primitives::{ByteStream, ByteStreamError, DateTime, Length};
use aws_sdk_s3::types::{
    ChecksumAlgorithm, ChecksumMode, ChecksumType, CompletedMultipartUpload, CompletedPart,
};
use bytes::Bytes;

use self::buffers::Buffers;
pub use self::connect::Settings;
use self::connect::{Connection, Heard};
use self::errors::{Failed, Failure};
use super::{
    Body, Created, Entry, Head, Keys, Object, Part, PendingUpload, Storage, StorageError, UploadId,
    keys,
};

/// The most keys that S3 lists at once.
const PAGE_KEYS_MAX: usize = 1_000;
/// What is read of a file at once: each read is a trip to another thread.
const READ_BYTES: usize = 128 << 10;
/// Memory that is set aside for an answer by what its head says of its length.
const RECEIVE_BYTES_MAX: u64 = 16 << 20;
/// A request without a body to speak of.
const SMALL_LIMIT: Duration = Duration::from_secs(30);
/// Putting thousands of parts together takes minutes in some stores.
const COMPLETE_LIMIT: Duration = Duration::from_secs(300);
/// Bodies: at least this long, and long enough for a slow link.
const BODY_LIMIT_MIN: Duration = Duration::from_secs(60);
const BODY_BYTES_PER_S_MIN: u64 = 100_000;

/// Objects in a bucket, below a prefix.
#[derive(Clone)]
pub struct S3 {
    /// Replaced when it is told other keys.
    client: Arc<RwLock<Client>>,
    heard: Arc<Heard>,
    buffers: Buffers,
    credentials: Option<SharedCredentialsProvider>,
    bucket: String,
    /// Empty, or ends in a slash.
    prefix: String,
    name: String,
    /// At most so many keys of a listing at once.
    page_keys: usize,
}

impl S3 {
    /// The store below `prefix` in `bucket`. Nothing is asked of it yet.
    ///
    /// # Errors
    /// If the bucket's name or the prefix cannot be one.
    pub async fn open(
        bucket: &str,
        prefix: &str,
        settings: Settings,
    ) -> Result<Self, StorageError> {
        let prefix = prefix.trim_matches('/');
        let mut name = format!("s3://{bucket}");
        if !prefix.is_empty() {
            name = format!("{name}/{prefix}");
            keys::check(prefix).map_err(|e| StorageError::permanent(&name, "open", prefix, e))?;
        }
        let named = bucket
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || ".-_".contains(c));
        if bucket.is_empty() || !named {
            // Not shown: it may be credentials in the place of a bucket.
            let detail = "expected a bucket of letters, digits, dots, hyphens and underscores";
            return Err(StorageError::permanent("s3://…", "open", prefix, detail));
        }
        let Connection {
            client,
            heard,
            credentials,
        } = connect::connect(settings).await;
        Ok(Self {
            client: Arc::new(RwLock::new(client)),
            heard,
            buffers: Buffers::default(),
            credentials,
            bucket: bucket.to_owned(),
            prefix: match prefix {
                "" => String::new(),
                prefix => format!("{prefix}/"),
            },
            name,
            page_keys: PAGE_KEYS_MAX,
        })
    }

    /// What asks now.
    fn client(&self) -> Client {
        let client = self.client.read().unwrap_or_else(PoisonError::into_inner);
        client.clone()
    }

    /// The key in the bucket.
    fn full(&self, operation: &'static str, key: &str) -> Result<String, StorageError> {
        keys::check(key).map_err(|e| self.permanent(operation, key, e))?;
        Ok(format!("{}{key}", self.prefix))
    }

    fn permanent(&self, operation: &'static str, key: &str, detail: impl Display) -> StorageError {
        StorageError::permanent(&self.name, operation, key, detail)
    }

    /// One request, cut short at its limit.
    async fn send<T, E: Failure>(
        &self,
        limit: Duration,
        request: impl Future<Output = Result<T, SdkError<E>>>,
    ) -> Result<T, Failed> {
        match tokio::time::timeout(limit, request).await {
            Ok(answer) => answer.map_err(|e| Failed::new(&e)),
            Err(_) => Err(Failed::silent(limit)),
        }
    }

    /// All of a body that comes in, of which so many bytes are expected, cut short at the limit for
    /// them. Each piece is put where it belongs as it comes: a body is in memory once.
    async fn receive(&self, bytes: u64, mut body: ByteStream) -> Result<Bytes, Failed> {
        let expected = usize::try_from(bytes.min(RECEIVE_BYTES_MAX)).expect("bounded just now");
        let mut received = self.buffers.lend(expected);
        let collect = async {
            while let Some(piece) = body.try_next().await? {
                received.extend(&piece);
            }
            Ok(Bytes::from_owner(received))
        };
        let limit = body_limit(bytes);
        match tokio::time::timeout(limit, collect).await {
            Ok(body) => body.map_err(|e: ByteStreamError| Failed::cut(&e)),
            Err(_) => Err(Failed::silent(limit)),
        }
    }

    /// What a failure means for the caller.
    fn told(&self, operation: &'static str, key: &str, failed: Failed) -> StorageError {
        failed.into_error(&self.name, operation, key)
    }

    /// `HEAD` has no body that tells a missing bucket, or a wrong endpoint, from a missing object.
    async fn head_failed(&self, key: &str, failed: Failed) -> StorageError {
        if failed.status != Some(404) {
            return self.told("head", key, failed);
        }
        let bucket = self.client().head_bucket().bucket(&self.bucket);
        match self.send(SMALL_LIMIT, bucket.send()).await {
            // Not allowed to ask, of a bucket that is there.
            Ok(_) => StorageError::missing(&self.name, key),
            Err(failed) if failed.status == Some(403) => StorageError::missing(&self.name, key),
            Err(failed) if failed.status == Some(404) => {
                self.told("head", key, failed.with_code("NoSuchBucket"))
            }
            Err(failed) => self.told("head", key, failed),
        }
    }

    fn age_s(&self, then: Option<&DateTime>) -> Option<u64> {
        let then = SystemTime::try_from(*then?).ok()?;
        let age = self.heard.now().duration_since(then);
        Some(age.unwrap_or_default().as_secs())
    }
}

#[async_trait]
impl Storage for S3 {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn address(&self) -> Option<String> {
        self.heard.address()
    }

    fn takes_keys(&self) -> bool {
        true
    }

    fn renew(&self, keys: &Keys) -> Result<(), String> {
        let new = connect::with_keys(&self.client(), keys, self.credentials.as_ref());
        *self.client.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }

    async fn stranger(&self) -> Option<Arc<dyn Storage>> {
        let credentials = self.credentials.as_ref()?;
        let client = connect::stranger(&self.client(), credentials).await?;
        Some(Arc::new(Self {
            client: Arc::new(RwLock::new(client)),
            credentials: None,
            ..self.clone()
        }))
    }

    async fn presigned(&self, key: &str, good_for: Duration) -> Option<String> {
        let full = self.full("get", key).ok()?;
        let config = PresigningConfig::expires_in(good_for).ok()?;
        let request = self.client().get_object().bucket(&self.bucket).key(full);
        let signed = request.presigned(config).await.ok()?;
        Some(signed.uri().to_owned())
    }

    async fn get(&self, key: &str) -> Result<Object, StorageError> {
        let full = self.full("get", key)?;
        let request = self.client().get_object().bucket(&self.bucket).key(full);
        let got = self.send(SMALL_LIMIT, request.send()).await;
        let got = got.map_err(|e| self.told("get", key, e))?;
        let tag = tag(got.e_tag());
        let bytes = got.content_length().unwrap_or(0).unsigned_abs();
        let bytes = self.receive(bytes, got.body).await;
        let bytes = bytes.map_err(|e| self.told("get", key, e))?;
        Ok(Object { bytes, tag })
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StorageError> {
        let full = self.full("get", key)?;
        if range.is_empty() {
            // S3 has no empty range, but whoever asks learns whether the object is there.
            self.head(key).await?;
            return Ok(Bytes::new());
        }
        let request = self.client().get_object().bucket(&self.bucket).key(full);
        let request = request.range(format!("bytes={}-{}", range.start, range.end - 1));
        let limit = body_limit(range.end - range.start);
        let got = match self.send(limit, request.send()).await {
            Err(failed) if failed.status == Some(416) => return Ok(Bytes::new()),
            got => got.map_err(|e| self.told("get", key, e))?,
        };
        // A store that ignores ranges sends all of it: that is not what was asked.
        let whole = got.content_range().is_none() && range.start > 0;
        let bytes = self.receive(range.end - range.start, got.body).await;
        let bytes = bytes.map_err(|e| self.told("get", key, e))?;
        if whole || bytes.len() as u64 > range.end - range.start {
            let detail = format!("asked for {range:?}, got {} bytes", bytes.len());
            return Err(self.permanent("get", key, detail));
        }
        Ok(bytes)
    }

    async fn head(&self, key: &str) -> Result<Head, StorageError> {
        let full = self.full("head", key)?;
        let request = self.client().head_object().bucket(&self.bucket).key(full);
        let request = request.checksum_mode(ChecksumMode::Enabled);
        let head = match self.send(SMALL_LIMIT, request.send()).await {
            Ok(head) => head,
            Err(failed) => return Err(self.head_failed(key, failed).await),
        };
        let bytes = head.content_length().and_then(|n| u64::try_from(n).ok());
        let Some(bytes) = bytes else {
            return Err(self.permanent("head", key, "the answer has no Content-Length"));
        };
        // Of parts' checksums, which is no checksum of the object.
        let composite = head.checksum_type() == Some(&ChecksumType::Composite);
        let crc64nvme = head.checksum_crc64_nvme().filter(|_| !composite);
        Ok(Head {
            bytes,
            tag: tag(head.e_tag()),
            crc64nvme: crc64nvme.and_then(decode_crc),
        })
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<String, StorageError> {
        let full = self.full("put", key)?;
        let limit = body_limit(body.len() as u64);
        let request = self.client().put_object().bucket(&self.bucket).key(full);
        let put = self.send(limit, request.body(body.into()).send()).await;
        let put = put.map_err(|e| self.told("put", key, e))?;
        Ok(tag(put.e_tag()))
    }

    async fn create(&self, key: &str, body: Bytes) -> Result<Created, StorageError> {
        let full = self.full("create", key)?;
        let limit = body_limit(body.len() as u64);
        let request = self.client().put_object().bucket(&self.bucket).key(full);
        let request = request.if_none_match("*").body(body.into());
        match self.send(limit, request.send()).await {
            Ok(put) => Ok(Created::New(tag(put.e_tag()))),
            // Older MinIO says 304.
            Err(e) if matches!(e.status, Some(412 | 304)) => Ok(Created::Exists),
            Err(e) => Err(self.told("create", key, e)),
        }
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        max: usize,
    ) -> Result<Vec<Entry>, StorageError> {
        let told = |e| self.told("list", prefix, e);
        let wrong = |detail: &str| self.permanent("list", prefix, detail);
        let mut entries: Vec<Entry> = Vec::new();
        let mut token: Option<String> = None;
        // Ends: every page brings keys beyond the last one's, or is the last.
        while entries.len() < max {
            let page_keys = (max - entries.len()).min(self.page_keys);
            let request = self.client().list_objects_v2().bucket(&self.bucket);
            let request = request.prefix(format!("{}{prefix}", self.prefix));
            let request = request.set_start_after(after.map(|a| format!("{}{a}", self.prefix)));
            let request = request.set_continuation_token(token.take());
            let request = request.max_keys(page_keys.try_into().expect("at most a page"));
            let page = self.send(SMALL_LIMIT, request.send()).await.map_err(told)?;
            let before = entries.len();
            for object in page.contents() {
                let key = object.key().and_then(|key| key.strip_prefix(&self.prefix));
                let Some(key) = key else {
                    return Err(wrong("the answer has a key that was not asked for"));
                };
                if entries.last().is_some_and(|last| *last.key >= *key) {
                    return Err(wrong("the store does not list in the order of keys"));
                }
                entries.push(Entry {
                    key: key.to_owned(),
                    bytes: object.size().unwrap_or(0).unsigned_abs(),
                    tag: tag(object.e_tag()),
                    age_s: self.age_s(object.last_modified()),
                });
            }
            if page.is_truncated() != Some(true) {
                break;
            }
            token = page.next_continuation_token().map(str::to_owned);
            if token.is_none() || entries.len() == before {
                return Err(wrong("the store says there is more and does not list it"));
            }
        }
        entries.truncate(max);
        // What other tools put there (folders' markers) is no object of ours.
        entries.retain(|entry| keys::check(&entry.key).is_ok());
        Ok(entries)
    }

    async fn delete(&self, key: &str) -> Result<(), StorageError> {
        let full = self.full("delete", key)?;
        let request = self.client().delete_object().bucket(&self.bucket).key(full);
        match self.send(SMALL_LIMIT, request.send()).await {
            Err(e) if e.is_missing() => Ok(()),
            deleted => deleted.map(|_| ()).map_err(|e| self.told("delete", key, e)),
        }
    }

    async fn begin_upload(&self, key: &str) -> Result<UploadId, StorageError> {
        let full = self.full("begin upload of", key)?;
        let request = self.client().create_multipart_upload().bucket(&self.bucket);
        let request = request
            .key(full)
            .checksum_algorithm(ChecksumAlgorithm::Crc64Nvme)
            .checksum_type(ChecksumType::FullObject);
        let begun = self.send(SMALL_LIMIT, request.send()).await;
        let begun = begun.map_err(|e| self.told("begin upload of", key, e))?;
        match begun.upload_id() {
            Some(id) => Ok(UploadId(id.to_owned())),
            None => Err(self.permanent("begin upload of", key, "the answer has no upload id")),
        }
    }

    async fn upload_part(
        &self,
        key: &str,
        upload: &UploadId,
        number: u32,
        body: Body,
        crc64nvme: u64,
    ) -> Result<Part, StorageError> {
        let operation = "upload part of";
        let full = self.full(operation, key)?;
        keys::check_part(number).map_err(|e| self.permanent(operation, key, e))?;
        let bytes = body.size();
        let body = stream(body).await;
        let body = body.map_err(|e| self.permanent(operation, key, e))?;
        let request = self.client().upload_part().bucket(&self.bucket).key(full);
        let request = request
            .upload_id(&upload.0)
            .part_number(number.try_into().expect("checked above"))
            .content_length(bytes.try_into().expect("a part has less than 2^63 bytes"))
            .checksum_crc64_nvme(encode_crc(crc64nvme))
            .body(body);
        let sent = self.send(body_limit(bytes), request.send()).await;
        let sent = sent.map_err(|e| self.told(operation, key, e))?;
        Ok(Part {
            number,
            tag: sent.e_tag().unwrap_or_default().to_owned(),
            crc64nvme,
        })
    }

    async fn complete_upload(
        &self,
        key: &str,
        upload: &UploadId,
        parts: &[Part],
        crc64nvme: u64,
    ) -> Result<(), StorageError> {
        let operation = "complete";
        let full = self.full(operation, key)?;
        keys::check_parts(parts).map_err(|e| self.permanent(operation, key, e))?;
        let parts = parts.iter().map(|part| {
            CompletedPart::builder()
                .part_number(part.number.try_into().expect("checked above"))
                .e_tag(&part.tag)
                .checksum_crc64_nvme(encode_crc(part.crc64nvme))
                .build()
        });
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts.collect()));
        let request = self
            .client()
            .complete_multipart_upload()
            .bucket(&self.bucket);
        let request = request
            .key(full)
            .upload_id(&upload.0)
            .checksum_crc64_nvme(encode_crc(crc64nvme))
            .checksum_type(ChecksumType::FullObject)
            .multipart_upload(parts.build());
        let completed = self.send(COMPLETE_LIMIT, request.send()).await;
        completed.map_err(|e| self.told(operation, key, e))?;
        Ok(())
    }

    async fn abort_upload(&self, key: &str, upload: &UploadId) -> Result<(), StorageError> {
        let full = self.full("abort upload of", key)?;
        let request = self.client().abort_multipart_upload().bucket(&self.bucket);
        let request = request.key(full).upload_id(&upload.0);
        match self.send(SMALL_LIMIT, request.send()).await {
            Err(e) if e.is_missing() => Ok(()),
            aborted => aborted
                .map(|_| ())
                .map_err(|e| self.told("abort upload of", key, e)),
        }
    }

    async fn list_uploads(&self, prefix: &str) -> Result<Vec<PendingUpload>, StorageError> {
        let told = |e| self.told("list uploads of", prefix, e);
        let mut pending = Vec::new();
        let (mut key_marker, mut id_marker) = (None, None);
        loop {
            let request = self.client().list_multipart_uploads().bucket(&self.bucket);
            let request = request
                .prefix(format!("{}{prefix}", self.prefix))
                .set_key_marker(key_marker.clone())
                .set_upload_id_marker(id_marker.clone());
            let page = self.send(SMALL_LIMIT, request.send()).await.map_err(told)?;
            for upload in page.uploads() {
                let key = upload.key().and_then(|key| key.strip_prefix(&self.prefix));
                if let (Some(key), Some(id)) = (key, upload.upload_id()) {
                    pending.push(PendingUpload {
                        key: key.to_owned(),
                        upload: UploadId(id.to_owned()),
                        age_s: self.age_s(upload.initiated()),
                    });
                }
            }
            let next = page.next_key_marker().map(str::to_owned);
            let next_id = page.next_upload_id_marker().map(str::to_owned);
            let more = page.is_truncated() == Some(true);
            // Markers that do not move would have no end.
            if !more || next.is_none() || (&next, &next_id) == (&key_marker, &id_marker) {
                return Ok(pending);
            }
            (key_marker, id_marker) = (next, next_id);
        }
    }
}

/// A body as the client sends it. Of a file nothing is read before it is sent.
async fn stream(body: Body) -> Result<ByteStream, String> {
    match body {
        Body::Bytes(bytes) => Ok(bytes.into()),
        Body::File {
            path,
            offset,
            bytes,
        } => {
            let stream = ByteStream::read_from().path(&path).offset(offset);
            let stream = stream.length(Length::Exact(bytes)).buffer_size(READ_BYTES);
            let stream = stream.build().await;
            stream.map_err(|e| format!("{}: {}", path.display(), errors::chain(&e)))
        }
    }
}

/// Stores differ in whether they quote tags, some even with themselves.
fn tag(tag: Option<&str>) -> String {
    tag.unwrap_or_default().trim_matches('"').to_owned()
}

fn body_limit(bytes: u64) -> Duration {
    Duration::from_secs(bytes / BODY_BYTES_PER_S_MIN).max(BODY_LIMIT_MIN)
}

fn encode_crc(crc: u64) -> String {
    aws_smithy_types::base64::encode(crc.to_be_bytes())
}

fn decode_crc(text: &str) -> Option<u64> {
    let bytes = aws_smithy_types::base64::decode(text).ok()?;
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}
