//! The thread behind [`super::Logs`]: takes bytes from the queue and leaves lines everywhere.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::{oneshot, watch};

use super::assemble::{Assembler, LINE_BYTES_MAX, PROGRESS_EVERY, without_controls};
use super::console::Screen;
use super::file::LogFile;
use super::limit::Limit;
use super::queue::{Popped, Queue};
use super::ring::Ring;
use super::segments::Segments;
use super::{Counts, Gap, Line, first_seq};
use crate::child::Source;
use crate::redact::Redactor;

/// How often progress bars, segments and limits are looked after when nothing comes.
const TICK: Duration = Duration::from_millis(100);

/// Readers are told of lines this often at most: where output flows, what came goes out as one.
const NEWS_EVERY: Duration = Duration::from_millis(250);

/// What is kept of before the first attempt, in lines. The agent says little then.
const EARLY_LINES_MAX: usize = 256;

/// What the thread is told.
#[derive(Debug)]
pub(super) enum Input {
    Begin {
        attempt: u32,
    },
    Output {
        attempt: u32,
        source: Source,
        /// Bytes of this stream that went before.
        before: u64,
        bytes: Box<[u8]>,
    },
    End {
        attempt: u32,
        source: Source,
        before: u64,
    },
    Note {
        text: String,
    },
    Flush {
        done: oneshot::Sender<()>,
    },
}

/// What readers of the log share with the thread.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) ring: Ring,
    pub(super) segments: Segments,
    dir: PathBuf,
    file: Option<LogFile>,
    attempt: u32,
    next_seq: u64,
    /// What the agent said before it had an attempt: its first segment begins with that, so that
    /// nothing in the store belongs to no attempt, where other agents' lines would be as well.
    early: VecDeque<Line>,
    early_lost_bytes: u64,
    clock: Written,
    pub(super) counts: Counts,
}

/// The time in words, which many lines have in common.
#[derive(Debug, Default)]
struct Written {
    millisecond: i64,
    words: String,
}

impl Written {
    fn now(&mut self) -> String {
        let now = Timestamp::now();
        if self.words.is_empty() || now.as_millisecond() != self.millisecond {
            self.millisecond = now.as_millisecond();
            self.words = format!("{now:.3}");
        }
        self.words.clone()
    }
}

impl Core {
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        Ok(Self {
            ring: Ring::default(),
            segments: Segments::open(dir.join("spool"))?,
            dir: dir.to_owned(),
            file: None,
            attempt: 0,
            next_seq: 0,
            early: VecDeque::new(),
            early_lost_bytes: 0,
            clock: Written::default(),
            counts: Counts::default(),
        })
    }

    fn begin(&mut self, attempt: u32, now: Instant) {
        if attempt == self.attempt {
            return;
        }
        self.segments.begin(attempt);
        self.attempt = attempt;
        self.next_seq = first_seq(attempt);
        self.file = None;
        let lost_bytes = std::mem::take(&mut self.early_lost_bytes);
        if lost_bytes > 0 {
            let reason = "the agent had no attempt for too long";
            self.add_gap(Source::Agent, lost_bytes, reason, now);
        }
        for line in std::mem::take(&mut self.early) {
            let line = Line {
                seq: self.next_seq,
                attempt,
                ..line
            };
            self.next_seq += 1;
            self.segments.push(&line, now);
        }
    }

    /// Numbers a line and puts it into file, ring and segment.
    fn add(&mut self, source: Source, line: String, gap: Option<Gap>, now: Instant) {
        let line = Line {
            seq: self.next_seq,
            time: self.clock.now(),
            attempt: self.attempt,
            source,
            line,
            gap,
        };
        self.next_seq += 1;
        let lines = match source {
            Source::Stdout => &mut self.counts.stdout_lines,
            Source::Stderr => &mut self.counts.stderr_lines,
            Source::Agent => &mut self.counts.agent_lines,
        };
        *lines += 1;
        // A disk that takes no more costs the local log; the next line tries again.
        if self.file.is_none() {
            self.file = LogFile::open(&self.dir, self.attempt).ok();
        }
        if let Some(file) = &mut self.file
            && file.write(&line).is_err()
        {
            self.file = None;
        }
        if self.attempt == 0 {
            self.early.push_back(line.clone());
            if self.early.len() > EARLY_LINES_MAX
                && let Some(oldest) = self.early.pop_front()
            {
                self.early_lost_bytes += oldest.line.len() as u64 + 1;
            }
        } else {
            self.segments.push(&line, now);
        }
        self.ring.push(line);
    }

    fn add_gap(&mut self, source: Source, bytes: u64, reason: &str, now: Instant) {
        self.counts.dropped_bytes += bytes;
        let gap = Gap {
            bytes,
            reason: reason.to_owned(),
        };
        self.add(
            source,
            format!("[{bytes} bytes of output lost: {reason}]"),
            Some(gap),
            now,
        );
    }

    fn flush_file(&mut self) {
        if let Some(file) = &mut self.file
            && file.flush().is_err()
        {
            self.file = None;
        }
    }
}

/// One stream of one attempt.
#[derive(Debug, Default)]
struct Stream {
    assembler: Assembler,
    /// Bytes of it that should have gone before the next ones.
    expected: u64,
}

/// A line ready to be stored.
struct Clean {
    source: Source,
    line: String,
}

pub(super) struct Worker {
    queue: Arc<Queue<Input>>,
    core: Arc<Mutex<Core>>,
    redactor: Arc<Redactor>,
    screen: Screen,
    newest: watch::Sender<u64>,
    streams: BTreeMap<(u32, Source), Stream>,
    limit: Limit<Clean>,
    ticked: Instant,
    told: Instant,
}

impl Worker {
    pub(super) fn new(
        queue: Arc<Queue<Input>>,
        core: Arc<Mutex<Core>>,
        redactor: Arc<Redactor>,
        screen: Screen,
        newest: watch::Sender<u64>,
    ) -> Self {
        Self {
            queue,
            core,
            redactor,
            screen,
            newest,
            streams: BTreeMap::new(),
            limit: Limit::new(Instant::now()),
            ticked: Instant::now(),
            told: Instant::now(),
        }
    }

    /// Works until the queue is closed and empty.
    pub(super) fn run(mut self) {
        loop {
            let popped = self.queue.pop(TICK);
            let now = Instant::now();
            match popped {
                Popped::Item(input) => {
                    self.take(input, now);
                    self.screen.send();
                }
                Popped::Idle => {}
                Popped::Closed => break,
            }
            if now - self.ticked >= TICK {
                self.tick(now);
                self.screen.send();
                self.ticked = now;
            }
        }
        self.end_all(Instant::now());
    }

    fn take(&mut self, input: Input, now: Instant) {
        match input {
            Input::Begin { attempt } => {
                self.end_all(now);
                self.with_core(|core| core.begin(attempt, now));
            }
            Input::Output {
                attempt,
                source,
                before,
                bytes,
            } => {
                let mut stream = self.stream(attempt, source, before, now);
                stream.expected = before + bytes.len() as u64;
                stream
                    .assembler
                    .push(&bytes, |line, cut| self.line(source, line, cut, now));
                stream
                    .assembler
                    .tick(now, |line, cut| self.line(source, line, cut, now));
                self.streams.insert((attempt, source), stream);
            }
            Input::End {
                attempt,
                source,
                before,
            } => {
                let mut stream = self.stream(attempt, source, before, now);
                stream
                    .assembler
                    .finish(|line, cut| self.line(source, line, cut, now));
                self.release(now);
            }
            Input::Note { text } => {
                let text = self.redactor.redact(&text).into_owned();
                self.screen.line(Source::Agent, &text);
                self.with_core(|core| core.add(Source::Agent, text, None, now));
            }
            Input::Flush { done } => {
                self.release(now);
                self.tick(now);
                self.with_core(|core| core.segments.cut());
                self.screen.flush(done);
            }
        }
    }

    /// Takes the stream out, with what was lost of it said.
    fn stream(&mut self, attempt: u32, source: Source, before: u64, now: Instant) -> Stream {
        let mut stream = self.streams.remove(&(attempt, source)).unwrap_or_default();
        if before > stream.expected {
            let bytes = before - stream.expected + stream.assembler.tear();
            self.release(now);
            let reason = "more came than could be read";
            self.with_core(|core| core.add_gap(source, bytes, reason, now));
        }
        stream
    }

    /// One line as it came.
    fn line(&mut self, source: Source, bytes: &[u8], cut_bytes: u64, now: Instant) {
        let text = String::from_utf8_lossy(bytes);
        let plain = without_controls(&text);
        let masked = self.redactor.redact(&plain);
        let colours_hide_nothing = matches!(masked, Cow::Borrowed(_))
            && (matches!(plain, Cow::Borrowed(_))
                || matches!(self.redactor.redact(&text), Cow::Borrowed(_)));
        let bytes = plain.len() as u64 + cut_bytes;
        let plain_line = capped(&masked, bytes);
        if colours_hide_nothing {
            self.screen.line(source, &capped(&text, bytes));
        } else {
            self.screen.line(source, &plain_line);
        }
        let clean = Clean {
            source,
            line: plain_line,
        };
        let weight = clean.line.len() + 1;
        if let Some(clean) = self.limit.pass(weight, clean, now) {
            self.with_core(|core| core.add(clean.source, clean.line, None, now));
        }
    }

    fn tick(&mut self, now: Instant) {
        let mut streams = std::mem::take(&mut self.streams);
        for ((_, source), stream) in &mut streams {
            stream
                .assembler
                .tick(now, |line, cut| self.line(*source, line, cut, now));
        }
        self.streams = streams;
        if let Some(released) = self.limit.tick(now) {
            self.add_released(released, now);
        }
        let newest = self.with_core(|core| {
            core.segments.tick(now);
            if let Some(lost) = core.segments.take_lost() {
                core.add_gap(Source::Agent, lost.bytes, &lost.reason, now);
            }
            core.flush_file();
            core.next_seq
        });
        // After a silence the first line is told of at once.
        if now - self.told >= NEWS_EVERY && *self.newest.borrow() != newest {
            self.told = now;
            self.newest.send_replace(newest);
        }
    }

    fn release(&mut self, now: Instant) {
        let released = self.limit.release();
        self.add_released(released, now);
    }

    fn add_released(&mut self, released: super::limit::Released<Clean>, now: Instant) {
        self.with_core(|core| {
            if released.left_out_bytes > 0 {
                let source = released
                    .items
                    .first()
                    .map_or(Source::Agent, |clean| clean.source);
                let reason = "the trainer printed more than the log takes";
                core.add_gap(source, released.left_out_bytes, reason, now);
            }
            for clean in released.items {
                core.add(clean.source, clean.line, None, now);
            }
        });
    }

    fn end_all(&mut self, now: Instant) {
        for ((_, source), mut stream) in std::mem::take(&mut self.streams) {
            stream
                .assembler
                .finish(|line, cut| self.line(source, line, cut, now));
        }
        self.release(now);
        self.with_core(|core| {
            core.segments.cut();
            core.flush_file();
        });
    }

    fn with_core<T>(&self, with: impl FnOnce(&mut Core) -> T) -> T {
        with(&mut self.core.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The text up to the cap, with a remark on what is missing of `bytes`.
fn capped(text: &str, bytes: u64) -> String {
    let end = text.floor_char_boundary(LINE_BYTES_MAX);
    if end == text.len() && bytes <= LINE_BYTES_MAX as u64 {
        return text.to_owned();
    }
    let missing = bytes.saturating_sub(end as u64);
    format!("{} [{missing} more bytes]", &text[..end])
}

const _: () = assert!(TICK.as_millis() < PROGRESS_EVERY.as_millis());
