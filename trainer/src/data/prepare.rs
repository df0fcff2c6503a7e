//! Preparation: from a text to a dataset folder, in two passes of bounded memory.
//!
//! The first pass checks the text and counts it, the second encodes pieces of it on all cores.
//! Called by `locate` for the datasets that the program knows and for texts of one's own.

mod folder;
mod pieces;
mod pipeline;
mod unpack;
mod json;
mod records;
mod documents;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

pub use documents::{Collection, Place, Remote, SourceFile, prepare_documents};
pub use folder::IfPresent;
use folder::Workshop;
use pieces::{CutRule, PieceFault, Pieces};
pub use records::Kind;
pub use unpack::Packing;

use super::dataset::{self, DatasetInfo};
use super::fetch::hexadecimal;
use super::token_file::TokenWriter;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// What the first pass reads at a time.
const BLOCK_BYTES: usize = 4 << 20;
/// What is encoded at a time: large enough that cuts cost nothing, small enough that memory for
/// the pieces in work stays small on many cores.
const PIECE_BYTES: usize = 256 << 10;
/// A part of a dataset is useless below this: one to read, one to foretell.
const PART_TOKENS_MIN: u64 = 2;
const FORMAT_VERSION: u32 = 1;

/// A text, and what to make of it.
#[derive(Clone, Debug)]
pub struct Preparation<'a> {
    pub text: Text<'a>,
    /// Where the text comes from, as `dataset.json` shall say it: a URL, a path, or `generated`.
    pub source: &'a str,
    pub name: &'a str,
    pub tokenizer: &'a TokenizerChoice,
    /// The last part of the text, by characters, that is held back for validation.
    pub val_fraction: f64,
    /// Nats per token, where it is known.
    pub entropy_per_token: Option<f64>,
    /// What to do if the folder holds a dataset already.
    pub if_present: IfPresent,
}

impl Preparation<'_> {
    /// nanoGPT's split.
    pub const VAL_FRACTION: f64 = 0.1;
}

/// Where the characters are. Line ends and a byte order mark are characters like others.
#[derive(Clone, Copy, Debug)]
pub enum Text<'a> {
    File(&'a Path),
    Inline(&'a str),
}

/// How text becomes tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenizerChoice {
    /// A vocabulary of the characters that the text holds.
    Char,
    Gpt2,
    /// A Hugging Face `tokenizer.json`.
    Json(PathBuf),
}

impl TokenizerChoice {
    /// Reads `char`, `gpt2` or the path of a `.json` file.
    ///
    /// # Errors
    /// `Error::Config` for anything else.
    pub fn parse(text: &str) -> Result<Self> {
        match text {
            "char" => Ok(Self::Char),
            "gpt2" => Ok(Self::Gpt2),
            path if path.ends_with(".json") => Ok(Self::Json(PathBuf::from(path))),
            _ => Err(Error::config(format!(
                "--tokenizer: expected char, gpt2 or the path of a tokenizer.json, got {text:?}"
            ))),
        }
    }

    /// The tokenizer, unless its vocabulary is to come from the text.
    fn open(&self) -> Result<Option<Tokenizer>> {
        match self {
            Self::Char => Ok(None),
            Self::Gpt2 => Tokenizer::gpt2().map(Some),
            Self::Json(path) => Tokenizer::from_file(path).map(Some),
        }
    }

    /// As `dataset.json` says it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Char => "char",
            Self::Gpt2 => "gpt2",
            Self::Json(_) => "json",
        }
    }
}

/// How far the work is, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub stage: Stage,
    pub done: u64,
    /// Unknown for some downloads.
    pub total: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Fetching,
    /// First pass: checking and counting.
    Scanning,
    /// Second pass: turning text into tokens.
    Encoding,
}

/// Hears of progress.
pub type OnProgress<'a> = &'a (dyn Fn(Progress) + Sync);

/// Makes the dataset folder `out_dir`: `train.bin`, `val.bin`, the tokenizer and `dataset.json`,
/// built under another name and put in place when all is on the disk. Other files in `out_dir`
/// stay. The text is split as nanoGPT splits it, by characters, and each part encoded by itself.
///
/// # Errors
/// `Error::Data` for text that is not UTF-8 or too short, `Error::Write` if the disk refuses,
/// `Error::Config` if `out_dir` holds a dataset that is to be left alone.
pub fn prepare(
    preparation: &Preparation<'_>,
    out_dir: &Path,
    progress: OnProgress<'_>,
) -> Result<DatasetInfo> {
    prepare_in_pieces(preparation, out_dir, PIECE_BYTES, progress)
}

fn prepare_in_pieces(
    preparation: &Preparation<'_>,
    out_dir: &Path,
    piece_bytes: usize,
    progress: OnProgress<'_>,
) -> Result<DatasetInfo> {
    let val_fraction = preparation.val_fraction;
    check_val_fraction(val_fraction)?;
    folder::check(out_dir, preparation.if_present)?;
    // A tokenizer of one's own is read before the long work, so that a fault shows at once.
    let given = preparation.tokenizer.open()?;
    let scan = scan(preparation, progress)?;
    // Python's int() cuts off, and so does this.
    let train_chars = (scan.chars as f64 * (1.0 - val_fraction)) as u64;
    let split = scan.offset(&preparation.text, train_chars)?;
    let tokenizer = match given {
        Some(tokenizer) => tokenizer,
        None => Tokenizer::from_chars(scan.alphabet.iter().copied())?,
    };

    let workshop = Workshop::open(out_dir)?;
    let encoding = Encoding {
        text: preparation.text,
        rule: CutRule::of(preparation.tokenizer),
        tokenizer: &tokenizer,
        piece_bytes,
        total: scan.bytes,
        progress,
    };
    let train_tokens = encoding.write(0..split, &workshop.dir().join(dataset::TRAIN))?;
    let val_tokens = encoding.write(split..scan.bytes, &workshop.dir().join(dataset::VAL))?;
    if train_tokens < PART_TOKENS_MIN || val_tokens < PART_TOKENS_MIN {
        return Err(Error::Data(format!(
            "{}: {} characters give {train_tokens} training and {val_tokens} validation tokens, \
             expected {PART_TOKENS_MIN} or more\nhint: use a longer text",
            preparation.source, scan.chars
        )));
    }
    tokenizer.save(workshop.dir())?;
    let info = DatasetInfo {
        format_version: FORMAT_VERSION,
        name: preparation.name.to_owned(),
        tokenizer: preparation.tokenizer.name().to_owned(),
        vocab_size: tokenizer.vocab_size(),
        train_tokens,
        val_tokens,
        source: preparation.source.to_owned(),
        source_sha256: scan.sha256,
        entropy_per_token: preparation.entropy_per_token,
    };
    dataset::write_info(workshop.dir(), &info)?;
    workshop.install(out_dir, preparation.if_present)?;
    Ok(info)
}

fn check_val_fraction(val_fraction: f64) -> Result<()> {
    if val_fraction > 0.0 && val_fraction < 1.0 {
        return Ok(());
    }
    Err(Error::config(format!(
        "val_fraction: expected a number between 0 and 1, got {val_fraction}"
    )))
}

impl<'a> Text<'a> {
    /// Its size in bytes.
    fn bytes(&self) -> Result<u64> {
        match self {
            Self::File(path) => {
                let metadata = path.metadata().map_err(Error::read(path))?;
                if metadata.is_file() {
                    Ok(metadata.len())
                } else {
                    Err(Error::Data(format!("{}: not a file", path.display())))
                }
            }
            Self::Inline(text) => Ok(text.len() as u64),
        }
    }

    /// Reads the bytes in `range`.
    fn reader(&self, range: Range<u64>) -> Result<Box<dyn Read + Send + 'a>> {
        match *self {
            Self::File(path) => {
                let mut file = File::open(path).map_err(Error::read(path))?;
                file.seek(SeekFrom::Start(range.start))
                    .map_err(Error::read(path))?;
                Ok(Box::new(file.take(range.end - range.start)))
            }
            Self::Inline(text) => {
                let at = |offset: u64| usize::try_from(offset).expect("within a text in memory");
                Ok(Box::new(&text.as_bytes()[at(range.start)..at(range.end)]))
            }
        }
    }

    /// For `map_err` on anything that reads it.
    fn cannot_read(&self, error: io::Error) -> Error {
        match self {
            Self::File(path) => Error::read(path)(error),
            Self::Inline(_) => unreachable!("reading memory cannot fail: {error}"),
        }
    }
}

/// What the first pass finds out.
struct Scan {
    bytes: u64,
    chars: u64,
    sha256: String,
    /// Every character of the text, sorted.
    alphabet: Vec<char>,
    /// Of each block: its first byte and how many characters come before.
    blocks: Vec<(u64, u64)>,
}

fn scan(preparation: &Preparation<'_>, progress: OnProgress<'_>) -> Result<Scan> {
    let text = &preparation.text;
    let bytes = text.bytes()?;
    if bytes == 0 {
        return Err(Error::Data(format!(
            "{}: an empty text",
            preparation.source
        )));
    }
    let mut reader = text.reader(0..bytes)?;
    let mut hash = Sha256::new();
    let mut alphabet = Alphabet::new();
    let mut blocks = Vec::new();
    let (mut start, mut chars) = (0, 0);
    let mut block = Vec::with_capacity(BLOCK_BYTES + 4);
    loop {
        let carried = block.len();
        (&mut reader)
            .take((BLOCK_BYTES - carried) as u64)
            .read_to_end(&mut block)
            .map_err(|error| text.cannot_read(error))?;
        let is_last = block.len() < BLOCK_BYTES;
        let (new, whole) = (&block[carried..], whole_characters(&block));
        let text = match whole {
            Ok(text) if is_last && text.len() < block.len() => Err(text.len()),
            other => other,
        }
        .map_err(|at| not_utf8(preparation.source, start + at as u64, block[at]))?;
        blocks.push((start, chars));
        let (_, count) = rayon::join(|| hash.update(new), || alphabet.look_at(text));
        chars += count;
        start += text.len() as u64;
        let read = text.len();
        block.drain(..read);
        progress(Progress {
            stage: Stage::Scanning,
            done: start,
            total: Some(bytes),
        });
        if is_last {
            break;
        }
    }
    Ok(Scan {
        bytes: start,
        chars,
        sha256: hexadecimal(&hash.finalize()),
        alphabet: alphabet.chars().collect(),
        blocks,
    })
}

/// The characters that a text holds.
struct Alphabet {
    /// By code point.
    seen: Vec<bool>,
}

impl Alphabet {
    fn new() -> Self {
        Self {
            seen: vec![false; char::MAX as usize + 1],
        }
    }

    /// Marks each character of `text` as seen, and counts them.
    fn look_at(&mut self, text: &str) -> u64 {
        let mut count = 0;
        for char in text.chars() {
            self.seen[char as usize] = true;
            count += 1;
        }
        count
    }

    /// Those seen, sorted.
    fn chars(&self) -> impl Iterator<Item = char> + '_ {
        ('\0'..=char::MAX).filter(|char| self.seen[*char as usize])
    }
}

/// The whole characters at the beginning of `bytes`, which may end within one; or the index of the
/// first byte that is no UTF-8.
fn whole_characters(bytes: &[u8]) -> Result<&str, usize> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text),
        Err(error) if error.error_len().is_some() => Err(error.valid_up_to()),
        Err(error) => {
            let valid = &bytes[..error.valid_up_to()];
            Ok(std::str::from_utf8(valid).expect("valid up to here"))
        }
    }
}

fn not_utf8(source: &str, offset: u64, byte: u8) -> Error {
    Error::Data(format!(
        "{source}: expected UTF-8, got the byte 0x{byte:02X} at offset {offset}\n\
         hint: convert the text first, for example by `iconv -f LATIN1 -t UTF-8`"
    ))
}

impl Scan {
    /// The byte offset of the character with the index `chars`.
    fn offset(&self, text: &Text<'_>, chars: u64) -> Result<u64> {
        // Blocks start with 0 characters before them, so that one of them always qualifies.
        let block = self.blocks.partition_point(|(_, before)| *before <= chars) - 1;
        let (start, before) = self.blocks[block];
        let mut bytes = Vec::new();
        text.reader(start..self.bytes.min(start + BLOCK_BYTES as u64))?
            .read_to_end(&mut bytes)
            .map_err(|error| text.cannot_read(error))?;
        let inside = usize::try_from(chars - before).expect("no more than a block has");
        let block = whole_characters(&bytes).map_err(|_| changed())?;
        let at = block.char_indices().nth(inside);
        Ok(start + at.map_or(block.len(), |(at, _)| at) as u64)
    }
}

fn changed() -> Error {
    Error::Data("the text changed while it was being read".to_owned())
}

/// The second pass.
struct Encoding<'a> {
    text: Text<'a>,
    rule: CutRule,
    tokenizer: &'a Tokenizer,
    piece_bytes: usize,
    /// Of the whole text, for the progress.
    total: u64,
    progress: OnProgress<'a>,
}

impl Encoding<'_> {
    /// Encodes the bytes in `range` into a token file and returns the number of tokens.
    fn write(&self, range: Range<u64>, path: &Path) -> Result<u64> {
        let mut writer = TokenWriter::create(path, self.tokenizer.vocab_size())?;
        let reader = self.text.reader(range.clone())?;
        let mut pieces = Pieces::new(reader, self.rule, self.piece_bytes);
        let mut done = range.start;
        pipeline::in_order(
            rayon::current_num_threads(),
            std::iter::from_fn(|| pieces.next().transpose()).map(|piece| {
                piece.map_err(|fault| match fault {
                    PieceFault::Read(error) => self.text.cannot_read(error),
                    // The first pass has seen that it is UTF-8.
                    PieceFault::NotUtf8 { .. } => changed(),
                })
            }),
            |piece| Ok((self.tokenizer.encode_ordinary(&piece)?, piece.len())),
            |(ids, bytes)| {
                writer.write(&ids)?;
                done += bytes as u64;
                (self.progress)(Progress {
                    stage: Stage::Encoding,
                    done,
                    total: Some(self.total),
                });
                Ok(())
            },
        )?;
        if done == range.end {
            writer.finish()
        } else {
            Err(changed())
        }
    }
}
