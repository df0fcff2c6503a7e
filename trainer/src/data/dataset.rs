//! A prepared dataset: a folder with `train.bin`, `val.bin`, `dataset.json` and, unless the
//! tokenizer is built in, `vocab.json` or `tokenizer.json`.
//!
//! Preparation writes one, the loader draws from it, and a resumed run compares its fingerprint
//! with the one it began with. A folder that nanoGPT prepared is read as it is, and so are token
//! files of llm.c's.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::parts::{self, Parts};
use super::token_file::TokenFile;
use crate::error::{Error, Result};
use crate::tokenizer::{META, Tokenizer};

pub const INFO: &str = "dataset.json";
pub const TRAIN: &str = "train.bin";
pub const VAL: &str = "val.bin";
/// The tokenizer of a character vocabulary.
pub const VOCAB: &str = protocol::RunDir::VOCAB;
/// A Hugging Face tokenizer of one's own.
pub const TOKENIZER: &str = protocol::RunDir::TOKENIZER;

const FORMAT_VERSION: u32 = 1;
const GPT2_VOCAB_SIZE: usize = 50_257;
/// Held back from training for validation where no file is: a tenth, but no more than 4 Mi tokens,
/// which are more than evaluations look at.
const HELD_BACK: u64 = 10;
const HELD_BACK_MAX: u64 = 1 << 22;
/// Tokens at either end of `train.bin` that the fingerprint covers.
const FINGERPRINT_TOKENS: usize = 1 << 15;

/// `dataset.json`: what a prepared dataset holds and where it came from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DatasetInfo {
    /// Version of the folder's layout: 1.
    pub format_version: u32,
    pub name: String,
    /// `char`, `gpt2` or `json` (a tokenizer.json of one's own).
    pub tokenizer: String,
    /// Ids are below this.
    pub vocab_size: usize,
    pub train_tokens: u64,
    pub val_tokens: u64,
    /// Where the text came from: a URL, a path, or `generated`; of several, with spaces between.
    pub source: String,
    /// SHA-256 of the text, lower-case hexadecimal. Of documents: over the SHA-256 of the training
    /// ids and that of the validation ids, as little-endian 32-bit numbers.
    pub source_sha256: String,
    /// Entropy of the source in nats per token, where it is known: no model can do better.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entropy_per_token: Option<f64>,
}

/// An open dataset, its ids checked.
#[derive(Debug)]
pub struct Dataset {
    pub info: DatasetInfo,
    pub dir: PathBuf,
    pub train: TokenFile,
    pub val: TokenFile,
    fingerprint: String,
}

impl Dataset {
    /// Opens the dataset in `dir`. Without a `dataset.json` it is taken for one of nanoGPT's or of
    /// llm.c's, whose shards are told by their names: the tokenizer follows from `vocab.json` or
    /// `tokenizer.json`, and is GPT-2's where neither is.
    ///
    /// # Errors
    /// [`Error::Data`] for whatever is missing, damaged, or at odds with the rest.
    pub fn open(dir: &Path) -> Result<Self> {
        if !dir.is_dir() {
            return Err(Error::Data(format!(
                "no dataset in {}: expected a folder with {TRAIN} and {VAL}\n\
                 hint: `trainer prepare <name, file or url>` makes one",
                dir.display()
            )));
        }
        let described = read_if_present(&dir.join(INFO))?;
        let info = match &described {
            Some(bytes) => parse_info(&dir.join(INFO), bytes)?,
            None => infer_info(dir)?,
        };
        Self::of_parts(dir, info, described.is_some(), &parts::of_folder(dir)?)
    }

    /// Opens token files of llm.c's, which are GPT-2's, as they lie; `what` is how they were named.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(super) fn open_files(what: &str, name: &str, parts: &Parts) -> Result<Self> {
        let dir = parts.train[0].parent();
        let dir = dir.filter(|dir| !dir.as_os_str().is_empty());
        let info = DatasetInfo {
            name: name.to_owned(),
            source: what.to_owned(),
            ..undescribed("gpt2", GPT2_VOCAB_SIZE)
        };
        Self::of_parts(dir.unwrap_or(Path::new(".")), info, false, parts)
    }

    /// `is_described`: the counts in `info` are to hold; else they are filled in.
    fn of_parts(dir: &Path, info: DatasetInfo, is_described: bool, parts: &Parts) -> Result<Self> {
        let open = |paths: &[PathBuf]| -> Result<TokenFile> {
            if parts.needs_header {
                paths
                    .iter()
                    .try_for_each(|path| TokenFile::expect_llmc(path))?;
            }
            let file = TokenFile::open_all(paths, info.vocab_size)?;
            file.check_ids()?;
            Ok(file)
        };
        let train = open(&parts.train)?;
        let (train, val) = if parts.val.is_empty() {
            hold_back(train)?
        } else {
            (train, open(&parts.val)?)
        };
        let (train_tokens, val_tokens) = (train.len() as u64, val.len() as u64);
        let info = if is_described {
            for (file, expected, got) in [
                (&train, info.train_tokens, train_tokens),
                (&val, info.val_tokens, val_tokens),
            ] {
                if expected != got {
                    return Err(Error::Data(format!(
                        "{}: expected {expected} tokens, as {INFO} says, got {got}\n\
                         hint: the file was cut short or replaced; prepare the dataset again",
                        file.path().display()
                    )));
                }
            }
            info
        } else {
            DatasetInfo {
                train_tokens,
                val_tokens,
                ..info
            }
        };
        let fingerprint = fingerprint(dir, &info, &train)?;
        Ok(Self {
            info,
            dir: dir.to_owned(),
            train,
            val,
            fingerprint,
        })
    }

    /// Identifies the tokens and their tokenizer, not the place or the name: SHA-256 in lower-case
    /// hexadecimal over the counts, the text's own hash, the tokenizer's file and both ends of
    /// `train.bin`. Two datasets that differ in it must not follow each other in one run.
    pub fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }
}

/// Writes `dataset.json` into `dir` and flushes it to the disk.
///
/// # Errors
/// [`Error::Write`] when the disk refuses.
pub fn write_info(dir: &Path, info: &DatasetInfo) -> Result<()> {
    let path = dir.join(INFO);
    let mut text = serde_json::to_vec_pretty(info).expect("strings and numbers always serialise");
    text.push(b'\n');
    let mut file = File::create(&path).map_err(Error::write(&path))?;
    file.write_all(&text)
        .and_then(|()| file.sync_all())
        .map_err(Error::write(&path))
}

fn parse_info(path: &Path, bytes: &[u8]) -> Result<DatasetInfo> {
    let fault = |fault: String| {
        Error::Data(format!(
            "{}: {fault}\nhint: prepare the dataset again",
            path.display()
        ))
    };
    #[derive(Deserialize)]
    struct Versioned {
        format_version: u32,
    }
    // The version comes first, so that a newer layout is named as such.
    let version = serde_json::from_slice::<Versioned>(bytes)
        .map_err(|error| fault(format!("expected a description of a dataset, got {error}")))?
        .format_version;
    if version != FORMAT_VERSION {
        return Err(fault(format!(
            "expected format_version {FORMAT_VERSION}, got {version}"
        )));
    }
    let info: DatasetInfo =
        serde_json::from_slice(bytes).map_err(|error| fault(format!("{error}")))?;
    if !(1..=u64::from(u32::MAX)).contains(&(info.vocab_size as u64)) {
        return Err(fault(format!(
            "expected a vocab_size of 1 to {}, got {}",
            u32::MAX,
            info.vocab_size
        )));
    }
    Ok(info)
}

/// What nanoGPT's folder does not say itself. The token counts are filled in by the caller.
fn infer_info(dir: &Path) -> Result<DatasetInfo> {
    let (tokenizer, vocab_size) = if let Some(bytes) = read_if_present(&dir.join(VOCAB))? {
        ("char", char_vocab_size(&dir.join(VOCAB), &bytes)?)
    } else if let Some(bytes) = read_if_present(&dir.join(TOKENIZER))? {
        ("json", json_vocab_size(&dir.join(TOKENIZER), &bytes)?)
    } else if dir.join(META).exists() {
        let tokenizer = Tokenizer::from_meta(&dir.join(META)).map_err(|error| {
            Error::Data(format!(
                "{error}\nhint: prepare the text itself: `trainer prepare input.txt --tokenizer \
                 char`"
            ))
        })?;
        ("char", tokenizer.vocab_size())
    } else {
        ("gpt2", GPT2_VOCAB_SIZE)
    };
    // `.` and the like have no last part of their own.
    let whole = fs::canonicalize(dir).map_err(Error::read(dir))?;
    let name = whole.file_name().unwrap_or(whole.as_os_str());
    Ok(DatasetInfo {
        name: name.to_string_lossy().into_owned(),
        source: dir.display().to_string(),
        ..undescribed(tokenizer, vocab_size)
    })
}

/// All that is known of token files without a description but their name and place.
fn undescribed(tokenizer: &str, vocab_size: usize) -> DatasetInfo {
    DatasetInfo {
        format_version: FORMAT_VERSION,
        name: String::new(),
        tokenizer: tokenizer.to_owned(),
        vocab_size,
        train_tokens: 0,
        val_tokens: 0,
        source: String::new(),
        source_sha256: String::new(),
        entropy_per_token: None,
    }
}

/// Gives up the end of the tokens for validation.
fn hold_back(tokens: TokenFile) -> Result<(TokenFile, TokenFile)> {
    let count = tokens.len() as u64;
    let held = (count / HELD_BACK).min(HELD_BACK_MAX);
    if held == 0 {
        return Err(Error::Data(format!(
            "{}: expected at least {HELD_BACK} tokens, of which a part is for validation, got \
             {count}\nhint: use more tokens, or files with \"val\" in their names",
            tokens.path().display()
        )));
    }
    Ok(tokens.split((count - held) as usize))
}

fn char_vocab_size(path: &Path, bytes: &[u8]) -> Result<usize> {
    #[derive(Deserialize)]
    struct Vocab {
        chars: Vec<String>,
    }
    let name = path.display();
    let vocab: Vocab = serde_json::from_slice(bytes).map_err(|error| {
        Error::Data(format!(
            "{name}: expected a vocabulary of characters, got {error}"
        ))
    })?;
    if vocab.chars.is_empty() {
        return Err(Error::Data(format!(
            "{name}: expected characters, got none"
        )));
    }
    Ok(vocab.chars.len())
}

fn json_vocab_size(path: &Path, bytes: &[u8]) -> Result<usize> {
    let name = path.display();
    let tokenizer = tokenizers::Tokenizer::from_bytes(bytes)
        .map_err(|error| Error::Data(format!("{name}: expected a tokenizer, got {error}")))?;
    // Ids may have gaps, so that the number of entries says too little.
    let last = tokenizer.get_vocab(true).into_values().max();
    let last = last.ok_or_else(|| Error::Data(format!("{name}: a tokenizer without tokens")))?;
    Ok(last as usize + 1)
}

fn fingerprint(dir: &Path, info: &DatasetInfo, train: &TokenFile) -> Result<String> {
    let mut hash = Sha256::new();
    // Each part is preceded by its length, so that no two lists of parts run together alike.
    let mut part = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    part(info.tokenizer.as_bytes());
    for number in [info.vocab_size as u64, info.train_tokens, info.val_tokens] {
        part(&number.to_le_bytes());
    }
    part(info.source_sha256.as_bytes());
    for name in [VOCAB, TOKENIZER] {
        // GPT-2's is built in; what lies beside token files belongs to something else.
        let bytes = match info.tokenizer.as_str() {
            "gpt2" => None,
            _ => read_if_present(&dir.join(name))?,
        };
        part(&bytes.unwrap_or_default());
    }
    // Only where it is what counts: folders without one keep the fingerprint that they had.
    if info.tokenizer == "char" && !dir.join(VOCAB).exists() {
        part(&read_if_present(&dir.join(META))?.unwrap_or_default());
    }
    let mut ends = vec![0; FINGERPRINT_TOKENS.min(train.len())];
    for start in [0, train.len() - ends.len()] {
        train.copy(start, &mut ends);
        part(
            &ends
                .iter()
                .flat_map(|id| id.to_le_bytes())
                .collect::<Vec<u8>>(),
        );
    }
    let digest = hash.finalize();
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn read_if_present(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::read(path)(error)),
    }
}

#[cfg(test)]
mod tests;
