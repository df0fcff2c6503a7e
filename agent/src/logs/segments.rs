//! Lines cut into compressed segments that wait, on disk, for somebody to bring them to the store.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Gap, Line, Segment};

/// A segment is cut at this size before compression, or at this age.
const SEGMENT_BYTES: usize = 1024 * 1024;
const SEGMENT_AGE: Duration = Duration::from_secs(30);

/// Most compressed bytes that wait on disk, and in memory when the disk takes none.
const DISK_BYTES_MAX: usize = 64 * 1024 * 1024;
const MEMORY_BYTES_MAX: usize = 4 * 1024 * 1024;

/// zstd's own default.
const LEVEL: i32 = 3;

#[derive(Debug)]
pub(super) struct Segments {
    /// Where those that wait are kept, so that a restarted agent finds them.
    spool: PathBuf,
    waiting: VecDeque<Waiting>,
    /// The attempt and lines of the segment being filled, as ndjson.
    attempt: u32,
    lines: Vec<u8>,
    started: Option<Instant>,
    /// Number of the next segment of this attempt.
    next: u64,
    /// Given up since the last time somebody asked.
    lost: Option<Gap>,
}

#[derive(Debug)]
struct Waiting {
    name: Name,
    bytes: usize,
    body: Body,
}

#[derive(Debug)]
enum Body {
    Disk(PathBuf),
    Memory(Vec<u8>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    attempt: u32,
    number: u64,
}

impl Name {
    /// Key in the job's part of the store.
    fn key(self) -> String {
        format!(
            "logs/a{:04}/seg-{:08}.ndjson.zst",
            self.attempt, self.number
        )
    }

    fn file(self) -> String {
        format!("a{:04}-seg-{:08}.ndjson.zst", self.attempt, self.number)
    }

    fn parse(file: &str) -> Option<Self> {
        let name = file.strip_prefix('a')?.strip_suffix(".ndjson.zst")?;
        let (attempt, number) = name.split_once("-seg-")?;
        Some(Self {
            attempt: attempt.parse().ok()?,
            number: number.parse().ok()?,
        })
    }
}

impl Segments {
    /// Finds what an earlier agent left in the spool.
    pub(super) fn open(spool: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&spool)?;
        let mut waiting = Vec::new();
        for entry in fs::read_dir(&spool)? {
            let entry = entry?;
            let name = entry.file_name();
            match name.to_str().and_then(Name::parse) {
                Some(name) => {
                    let bytes = usize::try_from(entry.metadata()?.len()).unwrap_or(usize::MAX);
                    let body = Body::Disk(entry.path());
                    waiting.push(Waiting { name, bytes, body });
                }
                // Half written when an agent died; its lines are in the local log.
                None => fs::remove_file(entry.path())?,
            }
        }
        waiting.sort_by_key(|waiting| waiting.name);
        Ok(Self {
            spool,
            waiting: waiting.into(),
            attempt: 0,
            lines: Vec::new(),
            started: None,
            next: 0,
            lost: None,
        })
    }

    pub(super) fn begin(&mut self, attempt: u32) {
        self.cut();
        let of_it = self
            .waiting
            .iter()
            .filter(|waiting| waiting.name.attempt == attempt);
        self.next = of_it
            .map(|waiting| waiting.name.number + 1)
            .max()
            .unwrap_or(0);
        self.attempt = attempt;
    }

    pub(super) fn push(&mut self, line: &Line, now: Instant) {
        let json = serde_json::to_vec(line).expect("a line holds only strings and numbers");
        self.lines.extend_from_slice(&json);
        self.lines.push(b'\n');
        self.started.get_or_insert(now);
        if self.lines.len() >= SEGMENT_BYTES {
            self.cut();
        }
    }

    pub(super) fn tick(&mut self, now: Instant) {
        if self
            .started
            .is_some_and(|started| now - started >= SEGMENT_AGE)
        {
            self.cut();
        }
    }

    /// Ends the segment being filled, if it has lines.
    pub(super) fn cut(&mut self) {
        if self.lines.is_empty() {
            return;
        }
        let lines = std::mem::take(&mut self.lines);
        self.started = None;
        let name = Name {
            attempt: self.attempt,
            number: self.next,
        };
        self.next += 1;
        let Ok(compressed) = zstd::encode_all(lines.as_slice(), LEVEL) else {
            self.lose(lines.len());
            return;
        };
        let bytes = compressed.len();
        let body = match write_whole(&self.spool, &name.file(), &compressed) {
            Ok(path) => Body::Disk(path),
            // The disk is full, say: all the more reason to bring the log away.
            Err(_) => Body::Memory(compressed),
        };
        self.waiting.push_back(Waiting { name, bytes, body });
        self.bound();
    }

    /// Gives up the oldest beyond the limits.
    fn bound(&mut self) {
        for (on_disk, limit) in [(true, DISK_BYTES_MAX), (false, MEMORY_BYTES_MAX)] {
            let is_of_kind = |w: &Waiting| matches!(w.body, Body::Disk(_)) == on_disk;
            let of_kind = self.waiting.iter().filter(|w| is_of_kind(w));
            let mut bytes: usize = of_kind.map(|waiting| waiting.bytes).sum();
            while bytes > limit
                && let Some(oldest) = self.waiting.iter().position(is_of_kind)
                && let Some(waiting) = self.waiting.remove(oldest)
            {
                bytes -= waiting.bytes;
                self.lose(waiting.bytes);
                waiting.remove();
            }
        }
    }

    fn lose(&mut self, bytes: usize) {
        let lost = self.lost.get_or_insert(Gap {
            bytes: 0,
            reason: "the store took no log segments for too long".to_owned(),
        });
        lost.bytes += bytes as u64;
    }

    /// What was given up since the last call.
    pub(super) fn take_lost(&mut self) -> Option<Gap> {
        self.lost.take()
    }

    /// The oldest segment that waits. One that cannot be read any more is given up.
    pub(super) fn oldest(&mut self) -> Option<Segment> {
        while let Some(waiting) = self.waiting.front() {
            let bytes = match &waiting.body {
                Body::Disk(path) => fs::read(path).ok(),
                Body::Memory(bytes) => Some(bytes.clone()),
            };
            let key = waiting.name.key();
            match bytes {
                Some(bytes) => return Some(Segment { key, bytes }),
                None => {
                    let bytes = waiting.bytes;
                    self.waiting.pop_front();
                    self.lose(bytes);
                }
            }
        }
        None
    }

    /// The segment with this key is in the store.
    pub(super) fn stored(&mut self, key: &str) {
        if let Some(index) = self.waiting.iter().position(|w| w.name.key() == key)
            && let Some(waiting) = self.waiting.remove(index)
        {
            waiting.remove();
        }
    }

    pub(super) fn waiting_bytes(&self) -> usize {
        self.waiting.iter().map(|waiting| waiting.bytes).sum()
    }
}

impl Waiting {
    fn remove(self) {
        if let Body::Disk(path) = self.body {
            // One that stays is offered again by the next agent, under its own key.
            let _stays = fs::remove_file(path);
        }
    }
}

/// Writes a file that is there whole or not at all.
fn write_whole(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<PathBuf> {
    let temporary = dir.join(".tmp");
    let path = dir.join(name);
    let written = fs::write(&temporary, bytes).and_then(|()| fs::rename(&temporary, &path));
    if let Err(error) = written {
        let _best_effort = fs::remove_file(&temporary);
        return Err(error);
    }
    Ok(path)
}
