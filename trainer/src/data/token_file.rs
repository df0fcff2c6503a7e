//! Token files: nanoGPT's `.bin`, and the same for vocabularies that 16 bits cannot hold.
//!
//! Up to 65,536 ids: little-endian `u16`, nothing else. Beyond: a header of 24 bytes (magic
//! `ANNEAL32`, `u32` version 1, `u32` reserved 0, `u64` token count, all little-endian), then
//! little-endian `u32`. Preparation writes them, [`super::Dataset`] opens and checks them, the
//! loader copies windows out of the mapping.

use std::fs::{self, File};
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Largest vocabulary whose ids fit into 16 bits.
pub const VOCAB_SIZE_U16_MAX: usize = 1 << 16;
const VOCAB_SIZE_MAX: u64 = 1 << 32;

const MAGIC: &[u8; 8] = b"ANNEAL32";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 24;

/// Tokens read at a time when ids are checked: small enough that a scan of any file needs little
/// memory, large enough that the disk reads in long runs.
const CHECK_TOKENS: usize = 1 << 19;
const WRITE_BUFFER_BYTES: usize = 1 << 20;

/// A token file on disk, mapped into memory: pages are read when they are used.
#[derive(Debug)]
pub struct TokenFile {
    path: PathBuf,
    map: memmap2::Mmap,
    format: Format,
    vocab_size: usize,
    /// Tokens.
    len: usize,
    stamp: Stamp,
}

/// Writes a token file piece by piece.
#[derive(Debug)]
pub struct TokenWriter {
    path: PathBuf,
    file: BufWriter<File>,
    format: Format,
    vocab_size: usize,
    count: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    U16,
    U32,
}

/// What a finished check is remembered by: the content of `<name>.checked`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    vocab_size: usize,
    size_bytes: u64,
    mtime_s: i64,
    mtime_ns: i64,
}

impl TokenFile {
    /// Maps the token file at `path`, whose ids are to lie below `vocab_size`. The ids themselves
    /// are read by [`Self::check_ids`].
    ///
    /// # Errors
    /// [`Error::Data`] when the file is missing, empty, of a length that its format cannot have,
    /// or not in the format that this vocabulary calls for.
    pub fn open(path: &Path, vocab_size: usize) -> Result<Self> {
        let format = Format::of(vocab_size);
        let mut file = File::open(path).map_err(Error::read(path))?;
        let metadata = file.metadata().map_err(Error::read(path))?;
        let name = path.display();
        if !metadata.is_file() {
            return Err(Error::Data(format!(
                "{name}: expected a token file, got a folder"
            )));
        }
        let size_bytes = metadata.len();
        if size_bytes == 0 {
            return Err(Error::Data(format!(
                "{name}: expected token ids, got an empty file\n\
                 hint: the preparation was cut short or had no text; prepare the dataset again"
            )));
        }
        let mut header = Vec::with_capacity(HEADER_BYTES);
        (&mut file)
            .take(HEADER_BYTES as u64)
            .read_to_end(&mut header)
            .map_err(Error::read(path))?;
        let len = match format {
            Format::U16 => u16_len(path, size_bytes, &header, vocab_size)?,
            Format::U32 => u32_len(path, size_bytes, &header, vocab_size)?,
        };
        let len = usize::try_from(len).map_err(|_| {
            Error::Data(format!(
                "{name}: {len} tokens are more than this machine can address"
            ))
        })?;
        #[expect(
            unsafe_code,
            reason = "a mapping is how a file larger than memory is read"
        )]
        // SAFETY: the mapping is read-only and its bytes are read as plain integers, of which every
        // pattern is valid. A file that another process cuts short while it is mapped would end
        // this process with SIGBUS; datasets are written under another name and renamed, so only
        // a deliberate truncation can do that.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(Error::read(path))?;
        Ok(Self {
            path: path.to_owned(),
            map,
            format,
            vocab_size,
            len,
            stamp: Stamp {
                vocab_size,
                size_bytes,
                mtime_s: metadata.mtime(),
                mtime_ns: metadata.mtime_nsec(),
            },
        })
    }

    /// Number of tokens, at least 1.
    #[expect(
        clippy::len_without_is_empty,
        reason = "an empty file is refused at open"
    )]
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Copies the tokens `start..start + out.len()` into `out`.
    ///
    /// # Panics
    /// When the range passes the end of the file.
    pub fn copy(&self, start: usize, out: &mut [u32]) {
        assert!(
            start <= self.len && out.len() <= self.len - start,
            "{} tokens from {start} of {}, which holds {}",
            out.len(),
            self.path.display(),
            self.len
        );
        let width = self.format.bytes();
        let first = self.format.header_bytes() + start * width;
        let bytes = &self.map[first..first + out.len() * width];
        match self.format {
            Format::U16 => {
                for (id, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *id = u32::from(u16::from_le_bytes(*bytes));
                }
            }
            Format::U32 => {
                for (id, bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *id = u32::from_le_bytes(*bytes);
                }
            }
        }
    }

    /// Verifies that every id lies below the vocabulary. A success is remembered beside the file
    /// (`<name>.checked`) by size, modification time and vocabulary, so that it is read once; where
    /// that note cannot be written, the next run scans again.
    ///
    /// # Errors
    /// [`Error::Data`] naming the first id at or beyond the vocabulary and its position.
    pub fn check_ids(&self) -> Result<()> {
        let note = self.note_path();
        let remembered = fs::read(&note)
            .ok()
            .and_then(|bytes| serde_json::from_slice::<Stamp>(&bytes).ok());
        if remembered == Some(self.stamp) {
            return Ok(());
        }
        let fault = self.first_bad_id()?;
        if let Some((position, id)) = fault {
            return Err(Error::Data(format!(
                "{}: token {position} is id {id}, but the vocabulary has {} ids (0 to {})\n\
                 hint: the file was written with another tokenizer; prepare the dataset again",
                self.path.display(),
                self.vocab_size,
                self.vocab_size - 1
            )));
        }
        let bytes = serde_json::to_vec(&self.stamp).expect("integers always serialise");
        // Renamed into place, so that two trainers that start together never read half a note.
        let temporary = note.with_extension(format!("checked-{}", std::process::id()));
        let noted = fs::write(&temporary, bytes).and_then(|()| fs::rename(&temporary, &note));
        if noted.is_err() {
            // Nothing is lost but time: the scan is repeated on the next run.
            drop(fs::remove_file(&temporary));
        }
        Ok(())
    }

    /// `<name>.checked` beside the file.
    fn note_path(&self) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(".checked");
        PathBuf::from(name)
    }

    /// Position and value of the first id that the vocabulary does not hold. Reads the file rather
    /// than the mapping: pages touched through a mapping would count as memory of this process.
    fn first_bad_id(&self) -> Result<Option<(usize, u32)>> {
        if self.vocab_size as u64 == self.format.ids() {
            return Ok(None);
        }
        let file = File::open(&self.path).map_err(Error::read(&self.path))?;
        let found = (0..self.len.div_ceil(CHECK_TOKENS))
            .into_par_iter()
            .map(|chunk| {
                let first = chunk * CHECK_TOKENS;
                let count = CHECK_TOKENS.min(self.len - first);
                let mut bytes = vec![0; count * self.format.bytes()];
                let offset = self.format.header_bytes() + first * self.format.bytes();
                file.read_exact_at(&mut bytes, offset as u64)
                    .map_err(Error::read(&self.path))?;
                Ok(self
                    .bad_id_in(&bytes)
                    .map(|(position, id)| (first + position, id)))
            })
            .find_first(|result| !matches!(result, Ok(None)));
        found.unwrap_or(Ok(None))
    }

    /// The maximum comes first, because it vectorises; only a chunk at fault is searched.
    fn bad_id_in(&self, bytes: &[u8]) -> Option<(usize, u32)> {
        let limit = self.vocab_size as u64;
        match self.format {
            Format::U16 => {
                let ids = bytes.as_chunks::<2>().0;
                let id = |bytes: &[u8; 2]| u16::from_le_bytes(*bytes);
                let maximum = ids.iter().map(id).fold(0, u16::max);
                if u64::from(maximum) < limit {
                    return None;
                }
                let position = ids.iter().position(|b| u64::from(id(b)) >= limit)?;
                Some((position, u32::from(id(&ids[position]))))
            }
            Format::U32 => {
                let ids = bytes.as_chunks::<4>().0;
                let id = |bytes: &[u8; 4]| u32::from_le_bytes(*bytes);
                let maximum = ids.iter().map(id).fold(0, u32::max);
                if u64::from(maximum) < limit {
                    return None;
                }
                let position = ids.iter().position(|b| u64::from(id(b)) >= limit)?;
                Some((position, id(&ids[position])))
            }
        }
    }
}

impl TokenWriter {
    /// Creates the file at `path`, or empties it. The caller gives a temporary name and renames.
    ///
    /// # Errors
    /// [`Error::Write`] when the file cannot be created.
    pub fn create(path: &Path, vocab_size: usize) -> Result<Self> {
        let format = Format::of(vocab_size);
        let file = File::create(path).map_err(Error::write(path))?;
        let mut file = BufWriter::with_capacity(WRITE_BUFFER_BYTES, file);
        file.write_all(&format.header(0))
            .map_err(Error::write(path))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            format,
            vocab_size,
            count: 0,
        })
    }

    /// Appends `ids`.
    ///
    /// # Errors
    /// [`Error::Data`] when an id is not of the vocabulary (nothing of `ids` is written then),
    /// [`Error::Write`] when the disk refuses.
    pub fn write(&mut self, ids: &[u32]) -> Result<()> {
        if let Some(index) = ids.iter().position(|id| *id as usize >= self.vocab_size) {
            return Err(Error::Data(format!(
                "{}: token {} is id {}, but the vocabulary has {} ids (0 to {})",
                self.path.display(),
                self.count + index as u64,
                ids[index],
                self.vocab_size,
                self.vocab_size - 1
            )));
        }
        let written = match self.format {
            Format::U16 => ids
                .iter()
                .try_for_each(|id| self.file.write_all(&(*id as u16).to_le_bytes())),
            Format::U32 => ids
                .iter()
                .try_for_each(|id| self.file.write_all(&id.to_le_bytes())),
        };
        written.map_err(Error::write(&self.path))?;
        self.count += ids.len() as u64;
        Ok(())
    }

    /// Completes the header, flushes to the disk and returns the number of tokens written.
    ///
    /// # Errors
    /// [`Error::Write`] when the disk refuses.
    pub fn finish(self) -> Result<u64> {
        let Self {
            path,
            file,
            format,
            count,
            ..
        } = self;
        let mut file = file
            .into_inner()
            .map_err(|error| Error::write(&path)(error.into_error()))?;
        file.seek(SeekFrom::Start(0))
            .and_then(|_| file.write_all(&format.header(count)))
            .and_then(|()| file.sync_all())
            .map_err(Error::write(&path))?;
        Ok(count)
    }
}

impl Format {
    fn of(vocab_size: usize) -> Self {
        assert!(
            vocab_size > 0 && vocab_size as u64 <= VOCAB_SIZE_MAX,
            "a vocabulary of {vocab_size} ids"
        );
        if vocab_size <= VOCAB_SIZE_U16_MAX {
            Self::U16
        } else {
            Self::U32
        }
    }

    /// Bytes of one token.
    fn bytes(self) -> usize {
        match self {
            Self::U16 => 2,
            Self::U32 => 4,
        }
    }

    /// Ids that can be written at all.
    fn ids(self) -> u64 {
        1 << (8 * self.bytes())
    }

    fn header_bytes(self) -> usize {
        match self {
            Self::U16 => 0,
            Self::U32 => HEADER_BYTES,
        }
    }

    fn header(self, count: u64) -> Vec<u8> {
        let mut header = Vec::new();
        if self == Self::U32 {
            header.extend_from_slice(MAGIC);
            header.extend_from_slice(&VERSION.to_le_bytes());
            header.extend_from_slice(&0u32.to_le_bytes());
            header.extend_from_slice(&count.to_le_bytes());
        }
        assert_eq!(header.len(), self.header_bytes());
        header
    }
}

/// Tokens of a headerless file of 16-bit ids.
fn u16_len(path: &Path, size_bytes: u64, head: &[u8], vocab_size: usize) -> Result<u64> {
    let name = path.display();
    let tokens = size_bytes.saturating_sub(HEADER_BYTES as u64) / 4;
    // The whole header must fit, since no sequence of 16-bit ids is excluded by its first bytes.
    if head == Format::U32.header(tokens) {
        return Err(Error::Data(format!(
            "{name}: expected 16-bit ids, as for any vocabulary of {vocab_size}, got the 32-bit \
             format\nhint: the file was written for another tokenizer; prepare the dataset again"
        )));
    }
    if !size_bytes.is_multiple_of(2) {
        return Err(Error::Data(format!(
            "{name}: expected 16-bit ids, an even number of bytes, got {size_bytes} bytes\n\
             hint: the file was cut short or is no token file; prepare the dataset again"
        )));
    }
    Ok(size_bytes / 2)
}

/// Tokens of a file of 32-bit ids with its header.
fn u32_len(path: &Path, size_bytes: u64, head: &[u8], vocab_size: usize) -> Result<u64> {
    let name = path.display();
    if head.len() < HEADER_BYTES || &head[..8] != MAGIC {
        return Err(Error::Data(format!(
            "{name}: expected the 32-bit format (magic ANNEAL32), as for any vocabulary of \
             {vocab_size}, got a file without its header\n\
             hint: the file was written for another tokenizer; prepare the dataset again"
        )));
    }
    let u32_at = |at: usize| {
        u32::from_le_bytes(
            head[at..at + 4]
                .try_into()
                .expect("four bytes of a header of 24"),
        )
    };
    let (version, reserved) = (u32_at(8), u32_at(12));
    if (version, reserved) != (VERSION, 0) {
        return Err(Error::Data(format!(
            "{name}: expected version {VERSION} of the 32-bit format, got version {version}, \
             reserved {reserved}\nhint: a newer program wrote it; prepare the dataset again"
        )));
    }
    let count = u64::from(u32_at(16)) | u64::from(u32_at(20)) << 32;
    let body = size_bytes - HEADER_BYTES as u64;
    if !body.is_multiple_of(4) || body / 4 != count {
        return Err(Error::Data(format!(
            "{name}: expected {count} tokens of 4 bytes, as its header says, got {body} bytes\n\
             hint: the file was cut short while it was written; prepare the dataset again"
        )));
    }
    if count == 0 {
        return Err(Error::Data(format!(
            "{name}: expected token ids, got none\n\
             hint: the preparation of this dataset had no text; prepare it again"
        )));
    }
    Ok(count)
}

#[cfg(test)]
mod tests;
