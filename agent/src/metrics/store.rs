//! Requests to the store, counted on their way: how many of each operation, how they ended, how
//! long they took. Put around the store by the loop, below whatever tries again.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;

use crate::board::Histogram;
use crate::storage::{
    Body, Created, Entry, Head, Keys, Object, Part, PendingUpload, Storage, StorageError, UploadId,
};

/// What was asked of the store so far.
#[derive(Default)]
pub struct Requests(Mutex<Asked>);

/// By operation and outcome (`ok`, `missing`, `transient`, `permanent`), and how long
/// each operation took.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Asked {
    pub outcomes: BTreeMap<(&'static str, &'static str), u64>,
    pub seconds: BTreeMap<&'static str, Histogram>,
}

impl Requests {
    /// The store, counted from here on.
    pub fn over(store: Arc<dyn Storage>) -> (Arc<dyn Storage>, Arc<Self>) {
        let requests = Arc::new(Self::default());
        let counted = Counted {
            below: store,
            requests: Arc::clone(&requests),
        };
        (Arc::new(counted), requests)
    }

    pub fn so_far(&self) -> Asked {
        let asked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        asked.clone()
    }

    fn count(&self, operation: &'static str, outcome: &'static str, took: Duration) {
        let mut asked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *asked.outcomes.entry((operation, outcome)).or_default() += 1;
        let seconds = asked.seconds.entry(operation).or_default();
        seconds.observe(took.as_secs_f64());
    }
}

struct Counted {
    below: Arc<dyn Storage>,
    requests: Arc<Requests>,
}

impl Counted {
    async fn counted<T>(
        &self,
        operation: &'static str,
        request: impl Future<Output = Result<T, StorageError>>,
    ) -> Result<T, StorageError> {
        let began = Instant::now();
        let answer = request.await;
        let outcome = match &answer {
            Ok(_) => "ok",
            Err(error) if error.is_missing() => "missing",
            Err(error) if error.is_transient() => "transient",
            Err(_) => "permanent",
        };
        self.requests.count(operation, outcome, began.elapsed());
        answer
    }
}

#[async_trait]
impl Storage for Counted {
    fn name(&self) -> String {
        self.below.name()
    }

    fn address(&self) -> Option<String> {
        self.below.address()
    }

    async fn stranger(&self) -> Option<Arc<dyn Storage>> {
        self.below.stranger().await
    }

    fn takes_keys(&self) -> bool {
        self.below.takes_keys()
    }

    fn renew(&self, keys: &Keys) -> Result<(), String> {
        self.below.renew(keys)
    }

    async fn presigned(&self, key: &str, good_for: Duration) -> Option<String> {
        self.below.presigned(key, good_for).await
    }

    async fn get(&self, key: &str) -> Result<Object, StorageError> {
        self.counted("get", self.below.get(key)).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StorageError> {
        let request = self.below.get_range(key, range);
        self.counted("get_range", request).await
    }

    async fn head(&self, key: &str) -> Result<Head, StorageError> {
        self.counted("head", self.below.head(key)).await
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<String, StorageError> {
        self.counted("put", self.below.put(key, body)).await
    }

    async fn create(&self, key: &str, body: Bytes) -> Result<Created, StorageError> {
        self.counted("create", self.below.create(key, body)).await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        max: usize,
    ) -> Result<Vec<Entry>, StorageError> {
        let request = self.below.list(prefix, after, max);
        self.counted("list", request).await
    }

    async fn delete(&self, key: &str) -> Result<(), StorageError> {
        self.counted("delete", self.below.delete(key)).await
    }

    async fn begin_upload(&self, key: &str) -> Result<UploadId, StorageError> {
        let request = self.below.begin_upload(key);
        self.counted("begin_upload", request).await
    }

    async fn upload_part(
        &self,
        key: &str,
        upload: &UploadId,
        number: u32,
        body: Body,
        crc64nvme: u64,
    ) -> Result<Part, StorageError> {
        let request = self.below.upload_part(key, upload, number, body, crc64nvme);
        self.counted("upload_part", request).await
    }

    async fn complete_upload(
        &self,
        key: &str,
        upload: &UploadId,
        parts: &[Part],
        crc64nvme: u64,
    ) -> Result<(), StorageError> {
        let request = self.below.complete_upload(key, upload, parts, crc64nvme);
        self.counted("complete_upload", request).await
    }

    async fn abort_upload(&self, key: &str, upload: &UploadId) -> Result<(), StorageError> {
        let request = self.below.abort_upload(key, upload);
        self.counted("abort_upload", request).await
    }

    async fn list_uploads(&self, prefix: &str) -> Result<Vec<PendingUpload>, StorageError> {
        let request = self.below.list_uploads(prefix);
        self.counted("list_uploads", request).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::memory::Memory;

    #[tokio::test]
    async fn every_request_is_counted_by_how_it_ended() {
        let (store, requests) = Requests::over(Arc::new(Memory::default()));
        store.create("a", "1".into()).await.unwrap();
        store.create("a", "2".into()).await.unwrap();
        store.get("a").await.unwrap();
        store.get("b").await.unwrap_err();
        let asked = requests.so_far();
        let wanted = [
            (("create", "ok"), 2),
            (("get", "missing"), 1),
            (("get", "ok"), 1),
        ];
        assert_eq!(asked.outcomes, BTreeMap::from(wanted));
        assert_eq!(asked.seconds["get"].count(), 2);
    }
}
