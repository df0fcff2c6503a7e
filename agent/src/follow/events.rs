//! `events.jsonl` read as it grows: over torn lines, truncation, a file put in its place, and a
//! restart of the agent.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use protocol::Record;
use serde::{Deserialize, Serialize};

/// A reader of one events file, which need not exist yet.
#[derive(Debug)]
pub struct Events {
    path: PathBuf,
    open: Option<Open>,
    /// Where an earlier reader stopped; used when the file is first opened.
    resume: Option<Position>,
    /// The start of a line whose end is not written yet.
    partial: Vec<u8>,
    /// The line is longer than the limit: its rest is read and forgotten.
    skipping: bool,
}

/// Where a reader stands: always at the start of a line. Kept by the agent to go on after its own
/// restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    device: u64,
    inode: u64,
    /// Bytes read, up to and with the last newline.
    offset: u64,
    /// The last bytes before `offset`, by which another file with the same inode is known.
    before: Vec<u8>,
}

/// What one look brought.
#[derive(Debug, Default, PartialEq)]
pub struct Polled {
    /// In the order they were written.
    pub records: Vec<Record>,
    /// Lines that are no event of this version: torn, unknown, too long or not text.
    pub skipped_lines: u64,
    /// The file was cut short or replaced: what follows may repeat what came before.
    pub started_over: bool,
    /// There is more to read at once.
    pub more: bool,
}

#[derive(Debug)]
struct Open {
    file: File,
    device: u64,
    inode: u64,
    /// Bytes read, the partial line included.
    offset: u64,
    /// Bytes just before `offset`, at most [`BEFORE_BYTES`].
    before: Vec<u8>,
}

/// Longest line taken for an event.
const LINE_BYTES_MAX: usize = 1024 * 1024;

/// Most bytes read by one poll.
const POLL_BYTES_MAX: usize = 1024 * 1024;

/// Bytes remembered to recognise the place.
const BEFORE_BYTES: usize = 64;

impl Events {
    /// A reader from the start of the file.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            open: None,
            resume: None,
            partial: Vec::new(),
            skipping: false,
        }
    }

    /// A reader from where an earlier one stopped, if the file is still that one; else from the
    /// start.
    pub fn resume(path: impl Into<PathBuf>, position: Position) -> Self {
        Self {
            resume: Some(position),
            ..Self::new(path)
        }
    }

    /// Where a later reader can go on; `None` before the file was there.
    pub fn position(&self) -> Option<Position> {
        let Some(open) = &self.open else {
            return self.resume.clone();
        };
        let partial = self.partial.len();
        let whole_lines = open.before.len().saturating_sub(partial);
        // Inside a line longer than what is remembered, only the offset tells the place.
        let before = if self.skipping {
            &[]
        } else {
            &open.before[..whole_lines]
        };
        Some(Position {
            device: open.device,
            inode: open.inode,
            offset: open.offset - partial as u64,
            before: before.to_vec(),
        })
    }

    /// Reads what was written since the last call, up to 1 MiB. A file that is not there has
    /// nothing in it.
    ///
    /// # Errors
    /// If the file is there and cannot be read.
    pub fn poll(&mut self) -> io::Result<Polled> {
        let mut polled = Polled::default();
        if self.open.is_none() && !self.open_file(&mut polled)? {
            return Ok(polled);
        }
        self.notice_rewriting(&mut polled)?;
        let read = self.read_lines(&mut polled)?;
        polled.more = read == POLL_BYTES_MAX;
        // The old file is read to its end before the one in its place.
        if read == 0 && self.was_replaced()? {
            self.leave(&mut polled);
            polled.more = self.open_file(&mut polled)?;
        }
        Ok(polled)
    }

    fn open_file(&mut self, polled: &mut Polled) -> io::Result<bool> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        let metadata = file.metadata()?;
        let mut open = Open {
            file,
            device: metadata.dev(),
            inode: metadata.ino(),
            offset: 0,
            before: Vec::new(),
        };
        if let Some(position) = self.resume.take() {
            let same_file = (position.device, position.inode) == (open.device, open.inode);
            open.offset = position.offset;
            open.before = position.before;
            if !same_file || !open.is_as_it_was()? {
                open.offset = 0;
                open.before.clear();
                polled.started_over = true;
            }
        }
        self.open = Some(open);
        Ok(true)
    }

    /// A file shorter than what was read of it, or with other bytes there, was written anew.
    fn notice_rewriting(&mut self, polled: &mut Polled) -> io::Result<()> {
        let Some(open) = &mut self.open else {
            return Ok(());
        };
        if !open.is_as_it_was()? {
            open.offset = 0;
            open.before.clear();
            self.leave_line(polled);
            polled.started_over = true;
        }
        Ok(())
    }

    fn was_replaced(&self) -> io::Result<bool> {
        let Some(open) = &self.open else {
            return Ok(false);
        };
        match fs::metadata(&self.path) {
            Ok(metadata) => Ok((metadata.dev(), metadata.ino()) != (open.device, open.inode)),
            // Between removal and replacement: nothing yet.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn leave(&mut self, polled: &mut Polled) {
        self.leave_line(polled);
        self.open = None;
        polled.started_over = true;
    }

    /// Gives up on a line that will not be finished.
    fn leave_line(&mut self, polled: &mut Polled) {
        if !self.partial.is_empty() || self.skipping {
            polled.skipped_lines += 1;
        }
        self.partial.clear();
        self.skipping = false;
    }

    fn read_lines(&mut self, polled: &mut Polled) -> io::Result<usize> {
        let Some(open) = &mut self.open else {
            return Ok(0);
        };
        let bytes = open.read()?;
        let read = bytes.len();
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            let Some(end) = piece.strip_suffix(b"\n") else {
                self.keep_partial(piece);
                break;
            };
            if !self.skipping {
                self.partial.extend_from_slice(end);
            }
            let too_long =
                std::mem::take(&mut self.skipping) || self.partial.len() > LINE_BYTES_MAX;
            let record = if too_long {
                None
            } else {
                record(&self.partial)
            };
            let empty = self.partial.is_empty() && !too_long;
            self.partial.clear();
            match record {
                Some(record) => polled.records.push(record),
                None if empty => {}
                None => polled.skipped_lines += 1,
            }
        }
        Ok(read)
    }

    fn keep_partial(&mut self, piece: &[u8]) {
        if self.skipping {
            return;
        }
        if self.partial.len() + piece.len() > LINE_BYTES_MAX {
            self.partial = Vec::new();
            self.skipping = true;
        } else {
            self.partial.extend_from_slice(piece);
        }
    }
}

impl Open {
    fn read(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut from_here = At {
            file: &self.file,
            offset: self.offset,
        };
        from_here
            .by_ref()
            .take(POLL_BYTES_MAX as u64)
            .read_to_end(&mut bytes)?;
        self.offset += bytes.len() as u64;
        self.before
            .extend_from_slice(&bytes[bytes.len().saturating_sub(BEFORE_BYTES)..]);
        let excess = self.before.len().saturating_sub(BEFORE_BYTES);
        self.before.drain(..excess);
        Ok(bytes)
    }

    /// Whether the bytes before the offset are still those that were read.
    fn is_as_it_was(&self) -> io::Result<bool> {
        let mut now = vec![0; self.before.len()];
        let Some(start) = self.offset.checked_sub(now.len() as u64) else {
            return Ok(false);
        };
        if self.file.metadata()?.len() < self.offset {
            return Ok(false);
        }
        match self.file.read_exact_at(&mut now, start) {
            Ok(()) => Ok(now == self.before),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Reads a file from an offset of its own.
struct At<'a> {
    file: &'a File,
    offset: u64,
}

impl Read for At<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}

/// The event in a line. A trainer killed inside a line leaves its start, and the next one's first
/// event stands behind it on the same line.
fn record(line: &[u8]) -> Option<Record> {
    let text = str::from_utf8(line).ok();
    text.and_then(Record::parse).or_else(|| {
        let start = line
            .windows(RECORD_START.len())
            .rposition(|at| at == RECORD_START)?;
        Record::parse(str::from_utf8(&line[start..]).ok()?)
    })
}

/// How the writer begins every record.
const RECORD_START: &[u8] = b"{\"time\":";
