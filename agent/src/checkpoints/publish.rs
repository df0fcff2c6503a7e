//! A staged checkpoint on its way into the store. Called by the supervisor's loop.
//!
//! Order: parts, completion, HEAD of every file, permit, commit, commit read back. The commit is
//! created last, so that every beginning of this is no checkpoint at all.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};

use super::stage::StagedFile;
use super::{CheckpointError, Permit, REQUEST_LIMIT, Staged, Transfer, blocking, local, steady};
use crate::job::requests::{Backoff, Settled, settle};
use crate::job::{
    CommitFile, CommitId, CommitRecord, Job, JobError, Nonce, VERSION, parse, read, to_bytes,
};
use crate::storage::retry::Retry;
use crate::storage::{Body, Part, Storage, StorageError, UploadId};

/// A file of one part and up to this size is one put; any other is sent in parts.
const SMALL_BYTES_MAX: u64 = 5 << 20;
/// How often a file begins anew because the store forgot its upload.
const RESTARTS_MAX: u32 = 3;

/// One upload. Keeps what got through, so that after an error, or after `run` was dropped, a second
/// `run` goes on from there within the same process.
#[derive(Debug)]
pub struct Upload {
    job: Job,
    commit: CommitRecord,
    staged: Staged,
    sending: Vec<Sending>,
}

/// How far an upload is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub bytes_done: u64,
    pub bytes_total: u64,
}

/// How an upload ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Published {
    /// It is in the store, read back.
    Committed(CommitRecord),
    /// This epoch already has a commit of this step (the trainer went back and came again): that
    /// one stays, this one is dropped.
    Already(CommitRecord),
}

/// How far one file is.
#[derive(Debug, Default)]
struct Sending {
    upload: Option<UploadId>,
    /// By number from 0; of a small file the one part says that it was put.
    parts: Vec<Option<Part>>,
    /// In the store, looked at.
    verified: bool,
}

/// One part, or a whole small file, to be sent.
struct Piece {
    file: usize,
    /// From 0.
    part: usize,
    key: String,
    upload: Option<UploadId>,
    path: PathBuf,
    offset: u64,
    bytes: u64,
    crc64nvme: u64,
}

impl Upload {
    /// Of a staged checkpoint, by the holder of `epoch`. `parent`: the commit that the run went on
    /// from, the newest that this process restored or published. `nonce` must be new.
    pub fn new(
        job: &Job,
        epoch: u64,
        nonce: Nonce,
        parent: Option<CommitId>,
        run_digest: Option<String>,
        staged: Staged,
    ) -> Self {
        let step = staged.step();
        let folder = job.data(CommitId { epoch, step }, &nonce);
        let relative = folder
            .strip_prefix(&job.prefix())
            .expect("data is below its job");
        let files = staged.files.iter().map(|file| CommitFile {
            key: format!("{relative}{}", file.name),
            bytes: file.bytes,
            sha256: file.sha256.clone(),
            crc64nvme: file.crc64nvme,
        });
        let commit = CommitRecord {
            version: VERSION,
            epoch,
            step,
            nonce,
            files: files.collect(),
            parent,
            config_hash: staged.manifest.config_hash.clone(),
            val_loss: staged.manifest.val_loss,
            run_digest,
        };
        let sending = staged.files.iter().map(|_| Sending::default()).collect();
        Self {
            job: job.clone(),
            commit,
            staged,
            sending,
        }
    }

    pub fn id(&self) -> CommitId {
        self.commit.id()
    }

    pub fn nonce(&self) -> &Nonce {
        &self.commit.nonce
    }

    /// How many requests it takes to send everything.
    #[cfg(test)]
    pub(super) fn pieces_total(&self) -> u64 {
        let files = self.staged.files.iter();
        files.map(|file| file.part_crc64nvme.len() as u64).sum()
    }

    pub fn progress(&self) -> Progress {
        let files = self.staged.files.iter().zip(&self.sending);
        let done = files.map(|(file, sending)| {
            if sending.verified {
                return file.bytes;
            }
            let parts = sending.parts.iter().enumerate();
            parts
                .filter(|(_, part)| part.is_some())
                .map(|(index, _)| piece_of(file, index).1)
                .sum()
        });
        Progress {
            bytes_done: done.sum(),
            bytes_total: self.staged.bytes(),
        }
    }

    /// Uploads what is still missing, verifies, commits. `tell` hears of progress after each part.
    /// Safe to drop at any await; safe to call again.
    ///
    /// # Errors
    /// `NotPermitted` if the permit had ended before the commit. Transient errors after the
    /// transfer's deadline: call again. Others: give it up with [`Upload::close`].
    pub async fn run(
        &mut self,
        store: &Arc<dyn Storage>,
        transfer: &Transfer,
        permit: Permit<'_>,
        tell: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Published, CheckpointError> {
        let retrying = steady(store, transfer);
        let key = self.job.commit(self.id());
        // An earlier run may have got this far without hearing of it.
        match read::<CommitRecord>(&retrying, &key).await {
            Ok(found) => return Ok(self.judge(found)),
            Err(error) if error.is_missing() => {}
            Err(error) => return Err(error.into()),
        }
        for _ in 0..=RESTARTS_MAX {
            self.send(&retrying, transfer.parallel, tell).await?;
            if self.complete(&retrying).await? {
                return self.create_commit(store, transfer, permit).await;
            }
        }
        let detail = format!("the store forgot an upload {RESTARTS_MAX} times");
        Err(permanent(&retrying, "complete", &key, detail).into())
    }

    /// Done with it: gives up what is unfinished in the store (best effort; sweep finds the rest)
    /// and discards the staged files.
    ///
    /// # Errors
    /// If the staged files cannot be removed.
    pub async fn close(self, store: &dyn Storage) -> Result<(), CheckpointError> {
        for (file, sending) in self.commit.files.iter().zip(&self.sending) {
            if let (Some(upload), false) = (&sending.upload, sending.verified) {
                let key = self.job.key(&file.key);
                let aborted = store.abort_upload(&key, upload);
                // What stays is swept when it is a day old.
                drop(tokio::time::timeout(REQUEST_LIMIT, aborted).await);
            }
        }
        self.staged.discard().await
    }

    /// Sends every part that is not in the store yet, a few at once.
    async fn send(
        &mut self,
        store: &Retry,
        parallel: usize,
        tell: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<(), CheckpointError> {
        for index in 0..self.sending.len() {
            let file = &self.staged.files[index];
            let key = self.job.key(&self.commit.files[index].key);
            let sending = &mut self.sending[index];
            sending.parts.resize(file.part_crc64nvme.len(), None);
            let small = file.bytes <= SMALL_BYTES_MAX.min(file.part_bytes);
            if !small && sending.upload.is_none() && !sending.verified {
                sending.upload = Some(store.begin_upload(&key).await?);
            }
        }
        let mut left = self.pieces().into_iter();
        let mut sent: FuturesUnordered<_> = left
            .by_ref()
            .take(parallel.max(1))
            .map(|piece| piece.send(store))
            .collect();
        while let Some((file, part, answer)) = sent.next().await {
            match answer {
                Ok(answer) => {
                    // Not there if its upload was forgotten meanwhile.
                    if let Some(slot) = self.sending[file].parts.get_mut(part) {
                        *slot = Some(answer);
                    }
                }
                // Whoever completes it finds out, and begins anew.
                Err(error) if error.is_missing() => self.sending[file] = Sending::default(),
                Err(error) => return Err(error.into()),
            }
            tell(self.progress());
            sent.extend(left.next().map(|piece| piece.send(store)));
        }
        Ok(())
    }

    fn pieces(&self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for (index, (file, sending)) in self.staged.files.iter().zip(&self.sending).enumerate() {
            if sending.verified {
                continue;
            }
            for (part, _) in sending
                .parts
                .iter()
                .enumerate()
                .filter(|(_, part)| part.is_none())
            {
                let (offset, bytes) = piece_of(file, part);
                pieces.push(Piece {
                    file: index,
                    part,
                    key: self.job.key(&self.commit.files[index].key),
                    upload: sending.upload.clone(),
                    path: self.staged.folder.join(&file.name),
                    offset,
                    bytes,
                    crc64nvme: file.part_crc64nvme[part],
                });
            }
        }
        pieces
    }

    /// Makes objects of the parts and looks at each. False if the store forgot one's upload, which
    /// then begins anew.
    async fn complete(&mut self, store: &Retry) -> Result<bool, CheckpointError> {
        let mut whole = true;
        for (file, sending) in self.commit.files.iter().zip(&mut self.sending) {
            if sending.verified {
                continue;
            }
            let key = self.job.key(&file.key);
            let parts: Option<Vec<Part>> = sending.parts.iter().cloned().collect();
            let Some(parts) = parts.filter(|parts| !parts.is_empty()) else {
                whole = false;
                continue;
            };
            if let Some(upload) = &sending.upload {
                match store
                    .complete_upload(&key, upload, &parts, file.crc64nvme)
                    .await
                {
                    // Done by an earlier run that did not hear of it, or forgotten: HEAD tells.
                    Err(error) if error.is_missing() => {}
                    completed => completed?,
                }
            }
            let head = match store.head(&key).await {
                Err(error) if error.is_missing() => {
                    *sending = Sending::default();
                    whole = false;
                    continue;
                }
                head => head?,
            };
            if head.bytes != file.bytes || head.crc64nvme.is_some_and(|crc| crc != file.crc64nvme) {
                let detail = format!(
                    "expected {} bytes of crc64nvme {:016x}, got {} of {}",
                    file.bytes,
                    file.crc64nvme,
                    head.bytes,
                    head.crc64nvme
                        .map_or_else(|| "unknown".to_owned(), |crc| format!("{crc:016x}"))
                );
                return Err(permanent(store, "verify", &key, detail).into());
            }
            sending.verified = true;
        }
        Ok(whole)
    }

    /// The last step: from here on the checkpoint exists.
    async fn create_commit(
        &self,
        store: &Arc<dyn Storage>,
        transfer: &Transfer,
        permit: Permit<'_>,
    ) -> Result<Published, CheckpointError> {
        let key = self.job.commit(self.id());
        let body = to_bytes(&self.commit);
        let nonce = self.commit.nonce.as_str();
        let mut backoff = Backoff::new(REQUEST_LIMIT, transfer.deadline, nonce);
        let found: Bytes = loop {
            if !permit() {
                let what = format!("committing step {}", self.commit.step);
                return Err(CheckpointError::NotPermitted { what });
            }
            match settle(store.as_ref(), REQUEST_LIMIT, &key, body.clone()).await? {
                Settled::Created => break steady(store, transfer).get(&key).await?.bytes,
                Settled::There(bytes) => break bytes,
                Settled::Unknown(error) => backoff.wait(error).await?,
            }
        };
        let found: CommitRecord = parse(store.as_ref(), &key, &found)?;
        if found.nonce == self.commit.nonce && found != self.commit {
            return Err(CheckpointError::Job(JobError::Malformed {
                store: store.name(),
                key,
                detail: "the commit read back is not the one created".to_owned(),
            }));
        }
        Ok(self.judge(found))
    }

    fn judge(&self, found: CommitRecord) -> Published {
        if found.nonce == self.commit.nonce {
            Published::Committed(found)
        } else {
            Published::Already(found)
        }
    }
}

impl Piece {
    async fn send(self, store: &Retry) -> (usize, usize, Result<Part, StorageError>) {
        let (file, part) = (self.file, self.part);
        let number = u32::try_from(part + 1).expect("parts are at most 10,000");
        let Some(upload) = &self.upload else {
            return (file, part, self.put(store).await);
        };
        let body = Body::File {
            path: self.path,
            offset: self.offset,
            bytes: self.bytes,
        };
        let answer = store.upload_part(&self.key, upload, number, body, self.crc64nvme);
        (file, part, answer.await)
    }

    /// A small file, whole.
    async fn put(&self, store: &Retry) -> Result<Part, StorageError> {
        let path = self.path.clone();
        let read = blocking(move || std::fs::read(&path).map_err(|e| local(&path, e))).await;
        let body = read.map_err(|e| permanent(store, "put", &self.key, e.to_string()))?;
        Ok(Part {
            number: 1,
            tag: store.put(&self.key, Bytes::from(body)).await?,
            crc64nvme: self.crc64nvme,
        })
    }
}

/// Where a part of a file begins and how long it is.
fn piece_of(file: &StagedFile, part: usize) -> (u64, u64) {
    let offset = part as u64 * file.part_bytes;
    (offset, file.part_bytes.min(file.bytes - offset))
}

fn permanent(
    store: &dyn Storage,
    operation: &'static str,
    key: &str,
    detail: String,
) -> StorageError {
    StorageError::Permanent {
        store: store.name(),
        operation,
        key: key.to_owned(),
        detail,
    }
}
