//! A decorator that makes any store misbehave: at random by a seed, or as told. Called by the
//! conformance suite, the simulator and tests of whatever stands on a store.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::sleep;

use super::{
    Body, Created, Entry, Head, Object, Part, PendingUpload, Storage, StorageError, UploadId,
};
use crate::clock::{Clock, Moment};

/// What happens how often. Probabilities are of one call; they exclude each other.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    pub seed: u64,
    /// The request never arrives.
    pub fail_before: f64,
    /// It is done, and its answer is lost.
    pub fail_after: f64,
    /// 409, not done: writes only.
    pub conflict: f64,
    /// 503 SlowDown, not done.
    pub slow_down: f64,
    /// It is done, or its answer arrives, up to `delay_max` later.
    pub delay: f64,
    pub delay_max: Duration,
    /// A put or create is said to have failed and is done up to `delay_max` later.
    pub late: f64,
    /// `get` and `head` tell what was there before the last put.
    pub stale: f64,
    /// Every call fails then, without being done.
    pub outages: Vec<Range<Moment>>,
}

/// What some stores do always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quirks {
    /// `create` replaces what is there.
    pub create_replaces: bool,
    /// `create` looks, then writes: several racers win.
    pub create_races: bool,
    /// Listings leave out what was written less than this ago.
    pub list_lag: Duration,
    /// Any checksum of a part is taken, and none is told.
    pub ignores_checksums: bool,
}

/// What is to happen to one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Before,
    After,
    Conflict,
    SlowDown,
    /// Done so much later.
    DelayBefore(Duration),
    /// Answered so much later.
    DelayAfter(Duration),
    /// Said to have failed, done so much later. Of puts and creates; of others as `Before`.
    Late(Duration),
    /// What was there before the last put. Of `get` and `head`; others are left alone.
    Stale,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    Get,
    GetRange,
    Head,
    Put,
    Create,
    List,
    Delete,
    BeginUpload,
    UploadPart,
    CompleteUpload,
    AbortUpload,
    ListUploads,
}

/// A store with faults.
pub struct Faulty {
    inner: Arc<dyn Storage>,
    clock: Arc<dyn Clock>,
    plan: Plan,
    quirks: Quirks,
    state: Mutex<State>,
}

struct State {
    random: fastrand::Rng,
    down: bool,
    told: BTreeMap<Operation, VecDeque<Fault>>,
    calls: BTreeMap<Operation, u64>,
    /// What the last put replaced.
    previous: BTreeMap<String, Object>,
    written: BTreeMap<String, Moment>,
}

impl Operation {
    fn writes(self) -> bool {
        !matches!(
            self,
            Self::Get | Self::GetRange | Self::Head | Self::List | Self::ListUploads
        )
    }

    fn words(self) -> &'static str {
        match self {
            Self::Get | Self::GetRange => "get",
            Self::Head => "head",
            Self::Put => "put",
            Self::Create => "create",
            Self::List => "list",
            Self::Delete => "delete",
            Self::BeginUpload => "begin upload of",
            Self::UploadPart => "upload part of",
            Self::CompleteUpload => "complete",
            Self::AbortUpload => "abort upload of",
            Self::ListUploads => "list uploads of",
        }
    }
}

impl Faulty {
    pub fn new(inner: Arc<dyn Storage>, clock: Arc<dyn Clock>, plan: Plan) -> Self {
        let state = State {
            random: fastrand::Rng::with_seed(plan.seed),
            down: false,
            told: BTreeMap::new(),
            calls: BTreeMap::new(),
            previous: BTreeMap::new(),
            written: BTreeMap::new(),
        };
        Self {
            inner,
            clock,
            plan,
            quirks: Quirks::default(),
            state: Mutex::new(state),
        }
    }

    pub fn with_quirks(self, quirks: Quirks) -> Self {
        Self { quirks, ..self }
    }

    /// From now on every call fails, or none does but by the plan.
    pub fn set_down(&self, down: bool) {
        self.state().down = down;
    }

    /// The next call of this operation that has no fault yet gets this one.
    pub fn next(&self, operation: Operation, fault: Fault) {
        self.state()
            .told
            .entry(operation)
            .or_default()
            .push_back(fault);
    }

    /// How often an operation was called, in vain or not.
    pub fn calls(&self, operation: Operation) -> u64 {
        self.state().calls.get(&operation).copied().unwrap_or(0)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the lock panics")
    }

    fn draw(&self, operation: Operation) -> Option<Fault> {
        let now = self.clock.now();
        let mut state = self.state();
        *state.calls.entry(operation).or_insert(0) += 1;
        if state.down || self.plan.outages.iter().any(|outage| outage.contains(&now)) {
            return Some(Fault::Before);
        }
        let told = state.told.get_mut(&operation).and_then(VecDeque::pop_front);
        if told.is_some() {
            return told;
        }
        let delay = self.plan.delay_max.mul_f64(state.random.f64());
        let delayed = if state.random.bool() {
            Fault::DelayBefore(delay)
        } else {
            Fault::DelayAfter(delay)
        };
        let mut left = state.random.f64();
        let odds = [
            (self.plan.fail_before, Fault::Before),
            (self.plan.fail_after, Fault::After),
            (self.plan.conflict, Fault::Conflict),
            (self.plan.slow_down, Fault::SlowDown),
            (self.plan.delay, delayed),
            (self.plan.late, Fault::Late(delay)),
            (self.plan.stale, Fault::Stale),
        ];
        let mut drawn = odds.into_iter().filter_map(|(probability, fault)| {
            left -= probability;
            (left < 0.0).then_some(fault)
        });
        // A conflict of a read is none, and the call is left alone.
        drawn
            .next()
            .filter(|fault| *fault != Fault::Conflict || operation.writes())
    }

    fn error(&self, operation: Operation, key: &str, detail: &str) -> StorageError {
        StorageError::transient(&self.inner.name(), operation.words(), key, detail)
    }

    async fn apply<T>(
        &self,
        operation: Operation,
        key: &str,
        fault: Option<Fault>,
        call: impl Future<Output = Result<T, StorageError>> + Send,
    ) -> Result<T, StorageError> {
        match fault {
            None | Some(Fault::Stale) => call.await,
            Some(Fault::Before | Fault::Late(_)) => {
                Err(self.error(operation, key, "connection refused (injected)"))
            }
            Some(Fault::After) => match call.await {
                Ok(_) => Err(self.error(operation, key, "connection reset (injected)")),
                error => error,
            },
            Some(Fault::Conflict) => {
                Err(self.error(operation, key, "409 ConditionalRequestConflict (injected)"))
            }
            Some(Fault::SlowDown) => Err(self.error(operation, key, "503 SlowDown (injected)")),
            Some(Fault::DelayBefore(delay)) => {
                sleep(delay).await;
                call.await
            }
            Some(Fault::DelayAfter(delay)) => {
                let answer = call.await;
                sleep(delay).await;
                answer
            }
        }
    }

    async fn through<T>(
        &self,
        operation: Operation,
        key: &str,
        call: impl Future<Output = Result<T, StorageError>> + Send,
    ) -> Result<T, StorageError> {
        let fault = self.draw(operation);
        self.apply(operation, key, fault, call).await
    }

    fn previous(&self, key: &str, fault: Option<Fault>) -> Option<Object> {
        let stale = fault == Some(Fault::Stale);
        stale
            .then(|| self.state().previous.get(key).cloned())
            .flatten()
    }

    fn note_write(&self, key: &str) {
        let now = self.clock.now();
        self.state().written.insert(key.to_owned(), now);
    }

    async fn quirky_create(&self, key: &str, body: Bytes) -> Result<Created, StorageError> {
        if self.quirks.create_replaces {
            return Ok(Created::New(self.inner.put(key, body).await?));
        }
        if self.quirks.create_races {
            match self.inner.head(key).await {
                Err(e) if e.is_missing() => {}
                found => return found.map(|_| Created::Exists),
            }
            // Rivals look now, before this one writes.
            tokio::task::yield_now().await;
            return Ok(Created::New(self.inner.put(key, body).await?));
        }
        self.inner.create(key, body).await
    }
}

#[async_trait]
impl Storage for Faulty {
    fn name(&self) -> String {
        self.inner.name()
    }

    fn address(&self) -> Option<String> {
        self.inner.address()
    }

    async fn stranger(&self) -> Option<Arc<dyn Storage>> {
        self.inner.stranger().await
    }

    async fn presigned(&self, key: &str, good_for: Duration) -> Option<String> {
        self.inner.presigned(key, good_for).await
    }

    async fn get(&self, key: &str) -> Result<Object, StorageError> {
        let fault = self.draw(Operation::Get);
        if let Some(object) = self.previous(key, fault) {
            return Ok(object);
        }
        self.apply(Operation::Get, key, fault, self.inner.get(key))
            .await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StorageError> {
        let call = self.inner.get_range(key, range);
        self.through(Operation::GetRange, key, call).await
    }

    async fn head(&self, key: &str) -> Result<Head, StorageError> {
        let fault = self.draw(Operation::Head);
        if let Some(object) = self.previous(key, fault) {
            return Ok(Head {
                bytes: object.bytes.len() as u64,
                tag: object.tag,
                crc64nvme: None,
            });
        }
        let head = self
            .apply(Operation::Head, key, fault, self.inner.head(key))
            .await?;
        let crc64nvme = head.crc64nvme.filter(|_| !self.quirks.ignores_checksums);
        Ok(Head { crc64nvme, ..head })
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<String, StorageError> {
        let fault = self.draw(Operation::Put);
        if let Some(Fault::Late(delay)) = fault {
            let (inner, key, body) = (Arc::clone(&self.inner), key.to_owned(), body.clone());
            tokio::spawn(async move {
                sleep(delay).await;
                inner.put(&key, body).await
            });
        }
        let call = async {
            let before = self.inner.get(key).await;
            let tag = self.inner.put(key, body).await?;
            if let Ok(before) = before {
                self.state().previous.insert(key.to_owned(), before);
            }
            self.note_write(key);
            Ok(tag)
        };
        self.apply(Operation::Put, key, fault, call).await
    }

    async fn create(&self, key: &str, body: Bytes) -> Result<Created, StorageError> {
        let fault = self.draw(Operation::Create);
        if let Some(Fault::Late(delay)) = fault {
            let (inner, key, body) = (Arc::clone(&self.inner), key.to_owned(), body.clone());
            tokio::spawn(async move {
                sleep(delay).await;
                inner.create(&key, body).await
            });
        }
        let call = async {
            let created = self.quirky_create(key, body).await?;
            self.note_write(key);
            Ok(created)
        };
        self.apply(Operation::Create, key, fault, call).await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        max: usize,
    ) -> Result<Vec<Entry>, StorageError> {
        let call = self.inner.list(prefix, after, max);
        let mut entries = self.through(Operation::List, prefix, call).await?;
        let (now, state) = (self.clock.now(), self.state());
        entries.retain(|entry| {
            let written = state.written.get(&entry.key);
            written.is_none_or(|written| now.since(*written) >= self.quirks.list_lag)
        });
        Ok(entries)
    }

    async fn delete(&self, key: &str) -> Result<(), StorageError> {
        let call = self.inner.delete(key);
        self.through(Operation::Delete, key, call).await
    }

    async fn begin_upload(&self, key: &str) -> Result<UploadId, StorageError> {
        let call = self.inner.begin_upload(key);
        self.through(Operation::BeginUpload, key, call).await
    }

    async fn upload_part(
        &self,
        key: &str,
        upload: &UploadId,
        number: u32,
        body: Body,
        crc64nvme: u64,
    ) -> Result<Part, StorageError> {
        let crc64nvme = match &body {
            Body::Bytes(bytes) if self.quirks.ignores_checksums => super::crc64::crc64nvme(bytes),
            _ => crc64nvme,
        };
        let call = self.inner.upload_part(key, upload, number, body, crc64nvme);
        self.through(Operation::UploadPart, key, call).await
    }

    async fn complete_upload(
        &self,
        key: &str,
        upload: &UploadId,
        parts: &[Part],
        crc64nvme: u64,
    ) -> Result<(), StorageError> {
        let call = self.inner.complete_upload(key, upload, parts, crc64nvme);
        self.through(Operation::CompleteUpload, key, call).await
    }

    async fn abort_upload(&self, key: &str, upload: &UploadId) -> Result<(), StorageError> {
        let call = self.inner.abort_upload(key, upload);
        self.through(Operation::AbortUpload, key, call).await
    }

    async fn list_uploads(&self, prefix: &str) -> Result<Vec<PendingUpload>, StorageError> {
        let call = self.inner.list_uploads(prefix);
        self.through(Operation::ListUploads, prefix, call).await
    }
}
