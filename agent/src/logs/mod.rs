//! What a trainer prints, kept: on the console, in `logs/a<attempt>.log`, in memory for tail and
//! search, and in compressed segments for the store. The supervisor's loop makes one [`Logs`] and
//! gives each trainer a sink of it.
//!
//! The trainer's pipes are read into a bounded queue; one thread makes lines of the bytes, masks
//! secrets and writes to all four. Whatever is too slow or too full loses lines, never time of the
//! trainer, and says so by a line with a [`Gap`].

mod assemble;
mod console;
mod file;
mod limit;
mod queue;
mod ring;
mod segments;
mod worker;

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{oneshot, watch};

use crate::child::{Sink, Source};
use crate::redact::Redactor;
pub use console::Console;
use queue::Queue;
use worker::{Core, Input, Worker};

#[cfg(test)]
mod tests;

/// Most bytes of output that wait to be made lines.
const QUEUE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What a piece of output weighs in the queue besides its bytes: a trainer may write them singly.
const INPUT_OVERHEAD_BYTES: usize = 128;

/// A line as it is stored: one JSON object a line in a segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// The cursor: grows over all attempts of a job, see [`first_seq`].
    pub seq: u64,
    /// Wall-clock time it was read, RFC 3339, UTC.
    pub time: String,
    pub attempt: u32,
    pub source: Source,
    /// At most 16 KiB and a remark on what was cut; without the terminal's codes and secrets.
    pub line: String,
    /// Output was lost just before this; the text of the line says the same for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gap: Option<Gap>,
}

/// Output that is not in the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    pub bytes: u64,
    pub reason: String,
}

/// The first cursor of an attempt. An attempt's number is never used twice and grows over the whole
/// life of a job, so a cursor that starts with it needs no memory of what came before. It stays
/// below 2^53, which JSON numbers need, for two million attempts.
pub fn first_seq(attempt: u32) -> u64 {
    u64::from(attempt) << 32
}

/// Lines ready to be created in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Below the job's prefix: `logs/a<attempt:04>/seg-<n:08>.ndjson.zst`.
    pub key: String,
    /// zstd of ndjson of [`Line`]s.
    pub bytes: Vec<u8>,
}

/// Which lines to show; without any wish all that are in memory.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// Only those after this cursor.
    pub after: Option<u64>,
    /// Only those up to this cursor, itself included.
    pub up_to: Option<u64>,
    /// Only those from this time on, and before that one: RFC 3339, UTC, as lines have it.
    pub from_time: Option<String>,
    pub until_time: Option<String>,
    pub source: Option<Source>,
    /// Only those that contain this.
    pub grep: Option<String>,
    /// Of these, only so many of the newest.
    pub tail: Option<usize>,
    /// Most lines.
    pub limit: usize,
}

/// What the log has taken in and given up since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub stdout_lines: u64,
    pub stderr_lines: u64,
    pub agent_lines: u64,
    pub dropped_bytes: u64,
}

/// The answer to a [`Query`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    pub lines: Vec<Line>,
    /// `after` for the next page.
    pub next: Option<u64>,
    pub has_more: bool,
    /// Lines after the cursor are no longer in memory; the segments have them.
    pub missed: bool,
}

/// The log of a job in this process. Dropping it ends its thread when the queue is empty.
#[derive(Debug)]
pub struct Logs {
    queue: Arc<Queue<Input>>,
    core: Arc<Mutex<Core>>,
    newest: watch::Receiver<u64>,
}

impl Logs {
    /// A log in the directory `dir`. Segments that an earlier agent left there are offered again.
    ///
    /// # Errors
    /// If the directory or a thread cannot be made.
    pub fn open(dir: &Path, redactor: Arc<Redactor>, console: Console) -> io::Result<Self> {
        let core = Arc::new(Mutex::new(Core::open(dir)?));
        let queue = Arc::new(Queue::new(QUEUE_BYTES_MAX));
        let (tell, newest) = watch::channel(0);
        let worker = Worker::new(
            Arc::clone(&queue),
            Arc::clone(&core),
            redactor,
            console::Screen::start(console)?,
            tell,
        );
        thread::Builder::new()
            .name("logs".to_owned())
            .spawn(move || worker.run())?;
        Ok(Self {
            queue,
            core,
            newest,
        })
    }

    /// Begins an attempt, which may have begun already: what comes after this belongs to it, and of
    /// the first in this process what came before it too. The sink is for its trainer.
    pub fn begin(&self, attempt: u32) -> Arc<dyn Sink> {
        self.queue.push(0, Input::Begin { attempt });
        Arc::new(AttemptSink {
            queue: Arc::clone(&self.queue),
            attempt,
            bytes: [AtomicU64::new(0), AtomicU64::new(0)],
        })
    }

    /// Adds a line of the agent's own to the current attempt.
    pub fn note(&self, text: &str) {
        // A note weighs what it holds, but is never given up: the agent says little.
        let text = text.to_owned();
        self.queue.push(0, Input::Note { text });
    }

    /// The newest lines, oldest first.
    pub fn tail(&self, count: usize) -> Vec<Line> {
        self.core().ring.tail(count)
    }

    pub fn page(&self, query: &Query) -> Page {
        self.core().ring.page(query)
    }

    pub fn counts(&self) -> Counts {
        self.core().counts
    }

    /// Tells the cursor of the newest line whenever there is one.
    pub fn newest(&self) -> watch::Receiver<u64> {
        self.newest.clone()
    }

    /// The oldest segment that is not in the store yet. It is offered until [`Self::stored`].
    pub fn next_segment(&self) -> Option<Segment> {
        self.core().segments.oldest()
    }

    /// A segment is in the store.
    pub fn stored(&self, key: &str) {
        self.core().segments.stored(key);
    }

    /// Compressed bytes that wait for the store.
    pub fn waiting_bytes(&self) -> usize {
        self.core().segments.waiting_bytes()
    }

    /// Cuts the last segment, and waits until everything handed over so far is in it and was shown.
    /// `false` if that took longer than `limit`, as when the console takes nothing.
    pub async fn flush(&self, limit: Duration) -> bool {
        let (done, waited) = oneshot::channel();
        self.queue.push(0, Input::Flush { done });
        matches!(tokio::time::timeout(limit, waited).await, Ok(Ok(())))
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Logs {
    fn drop(&mut self) {
        self.queue.close();
    }
}

/// Hands one trainer's output to the queue. Never waits.
struct AttemptSink {
    queue: Arc<Queue<Input>>,
    attempt: u32,
    /// Bytes seen of either stream: by a jump in them the other side knows what was given up.
    bytes: [AtomicU64; 2],
}

impl AttemptSink {
    fn count(&self, source: Source, bytes: usize) -> u64 {
        let counter = match source {
            Source::Stdout => &self.bytes[0],
            Source::Stderr | Source::Agent => &self.bytes[1],
        };
        counter.fetch_add(bytes as u64, Ordering::Relaxed)
    }
}

impl Sink for AttemptSink {
    fn write(&self, source: Source, bytes: &[u8]) {
        let input = Input::Output {
            attempt: self.attempt,
            source,
            before: self.count(source, bytes.len()),
            bytes: bytes.into(),
        };
        self.queue.push(bytes.len() + INPUT_OVERHEAD_BYTES, input);
    }

    fn end(&self, source: Source) {
        let input = Input::End {
            attempt: self.attempt,
            source,
            before: self.count(source, 0),
        };
        self.queue.push(0, input);
    }
}
