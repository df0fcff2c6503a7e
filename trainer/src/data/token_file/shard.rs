//! One token file: its format, its length, its ids. Called by `TokenFile`.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::VOCAB_SIZE_U16_MAX;
use crate::error::{Error, Result};

const VOCAB_SIZE_MAX: u64 = 1 << 32;

const MAGIC: &[u8; 8] = b"ANNEAL32";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 24;

/// llm.c's, from its `dev/data/data_common.py`.
const LLMC_MAGIC: u32 = 20_240_520;
/// Of its files for LLaMA 3, whose tokens take 32 bits.
const LLMC_MAGIC_LLAMA3: u32 = 20_240_801;
const LLMC_VERSION: u32 = 1;
const LLMC_HEADER_BYTES: usize = 256 * 4;

/// Tokens read at a time when ids are checked: small enough that a scan of any file needs little
/// memory, large enough that the disk reads in long runs.
pub(super) const CHECK_TOKENS: usize = 1 << 19;

/// A token file on disk, mapped into memory.
#[derive(Debug)]
pub(super) struct Shard {
    path: PathBuf,
    map: memmap2::Mmap,
    format: Format,
    vocab_size: usize,
    /// Tokens.
    len: usize,
    pub(super) stamp: Stamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    U16,
    U32,
    /// 16 bits after llm.c's header.
    Llmc,
}

/// What a finished check is remembered by: the content of `<name>.checked`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stamp {
    vocab_size: usize,
    size_bytes: u64,
    mtime_s: i64,
    mtime_ns: i64,
}

impl Shard {
    pub(super) fn open(path: &Path, vocab_size: usize) -> Result<Self> {
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
        let mut header = Vec::with_capacity(LLMC_HEADER_BYTES);
        (&mut file)
            .take(LLMC_HEADER_BYTES as u64)
            .read_to_end(&mut header)
            .map_err(Error::read(path))?;
        let (format, len) = match Format::of(vocab_size) {
            Format::U32 => (Format::U32, u32_len(path, size_bytes, &header, vocab_size)?),
            _ if is_llmc(&header) => (Format::Llmc, llmc_len(path, size_bytes, &header)?),
            _ => (Format::U16, u16_len(path, size_bytes, &header, vocab_size)?),
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

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Copies tokens that lie within the file.
    pub(super) fn copy(&self, start: usize, out: &mut [u32]) {
        let width = self.format.bytes();
        let first = self.format.header_bytes() + start * width;
        let bytes = &self.map[first..first + out.len() * width];
        match self.format {
            Format::U16 | Format::Llmc => {
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

    /// As `TokenFile::check_ids`.
    pub(super) fn check_ids(&self) -> Result<()> {
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
            Format::U16 | Format::Llmc => {
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

impl Format {
    /// What is written for a vocabulary.
    pub(super) fn of(vocab_size: usize) -> Self {
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
            Self::U16 | Self::Llmc => 2,
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
            Self::Llmc => LLMC_HEADER_BYTES,
        }
    }

    pub(super) fn header(self, count: u64) -> Vec<u8> {
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
    if head.starts_with(&Format::U32.header(tokens)) {
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
    let (version, reserved) = (u32_at(head, 8), u32_at(head, 12));
    if (version, reserved) != (VERSION, 0) {
        return Err(Error::Data(format!(
            "{name}: expected version {VERSION} of the 32-bit format, got version {version}, \
             reserved {reserved}\nhint: a newer program wrote it; prepare the dataset again"
        )));
    }
    let count = u64::from(u32_at(head, 16)) | u64::from(u32_at(head, 20)) << 32;
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

/// Whether a file begins as llm.c's do: the magic, two numbers, and zeros as far as the header
/// goes, which would be `!` a thousand times over.
fn is_llmc(head: &[u8]) -> bool {
    head.len() >= 12 && u32_at(head, 0) == LLMC_MAGIC && head[12..].iter().all(|byte| *byte == 0)
}

/// As `TokenFile::expect_llmc`.
pub(super) fn expect_llmc(path: &Path) -> Result<()> {
    let mut head = Vec::with_capacity(LLMC_HEADER_BYTES);
    let file = File::open(path).map_err(Error::read(path))?;
    file.take(LLMC_HEADER_BYTES as u64)
        .read_to_end(&mut head)
        .map_err(Error::read(path))?;
    let name = path.display();
    let got = match head.len() {
        0..12 => format!("{} bytes", head.len()),
        _ if is_llmc(&head) => return Ok(()),
        _ => match u32_at(&head, 0) {
            LLMC_MAGIC => "more than zeros in the rest of its header".to_owned(),
            LLMC_MAGIC_LLAMA3 => format!("tokens of LLaMA 3 (magic {LLMC_MAGIC_LLAMA3})"),
            magic => format!("magic {magic}"),
        },
    };
    Err(Error::Data(format!(
        "{name}: expected a token file of llm.c's for GPT-2 (magic {LLMC_MAGIC}, header of \
         {LLMC_HEADER_BYTES} bytes), got {got}\n\
         hint: files without a header, as nanoGPT's, are read from a folder with train.bin and \
         val.bin; a text becomes a dataset by `trainer prepare FILE`"
    )))
}

/// Tokens of a file with llm.c's header.
fn llmc_len(path: &Path, size_bytes: u64, head: &[u8]) -> Result<u64> {
    let name = path.display();
    let version = u32_at(head, 4);
    if version != LLMC_VERSION {
        return Err(Error::Data(format!(
            "{name}: expected version {LLMC_VERSION} of llm.c's token files (magic {LLMC_MAGIC}), \
             got version {version}\nhint: make the file anew by llm.c's dev/data scripts for GPT-2"
        )));
    }
    let count = u64::from(u32_at(head, 8));
    let expected = LLMC_HEADER_BYTES as u64 + 2 * count;
    if size_bytes != expected {
        return Err(Error::Data(format!(
            "{name}: expected {expected} bytes for {count} tokens, as its header says, got \
             {size_bytes}\nhint: the file was cut short; fetch or copy it again"
        )));
    }
    if count == 0 {
        return Err(Error::Data(format!("{name}: expected token ids, got none")));
    }
    Ok(count)
}

/// The number at an offset of a header.
fn u32_at(head: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes of a header"))
}
