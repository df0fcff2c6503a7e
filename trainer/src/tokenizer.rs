//! Text to token ids and back: characters, GPT-2's byte-pair encoding, or any `tokenizer.json`.
//!
//! Called by data preparation, sampling and whoever reads or writes a checkpoint.

mod chars;
mod words;
mod bpe;
mod gpt2;
mod stream;
mod subword;
#[cfg(test)]
mod tests;

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use protocol::RunDir;

pub use chars::CharTokenizer;
pub use stream::DecodeStream;
pub use subword::Subword;

use crate::{Error, Result};

/// Vocabularies that are not of characters are padded to a multiple of this, as nanoGPT pads
/// 50,257 to 50,304: matrix multiplications like it.
const VOCAB_MULTIPLE: usize = 64;

/// nanoGPT's vocabulary of characters.
pub const META: &str = "meta.pkl";

/// A vocabulary and how text is cut into it. Cheap to clone.
#[derive(Clone)]
pub enum Tokenizer {
    /// One id for each character.
    Char(Arc<CharTokenizer>),
    /// Pieces of words: GPT-2's, or any Hugging Face tokenizer.
    Subword(Arc<Subword>),
}

impl Tokenizer {
    /// A vocabulary of the characters in `chars`, sorted by code point as nanoGPT sorts them.
    ///
    /// # Errors
    /// `Error::Data` if there are none.
    pub fn from_chars(chars: impl IntoIterator<Item = char>) -> Result<Self> {
        let mut chars: Vec<char> = chars.into_iter().collect();
        chars.sort_unstable();
        chars.dedup();
        Ok(Self::Char(Arc::new(CharTokenizer::new(chars)?)))
    }

    /// GPT-2's tokenizer, built from ranks inside the program, once in a process.
    ///
    /// # Errors
    /// `Error::Data` if the ranks do not make a tokenizer: a fault of the build.
    pub fn gpt2() -> Result<Self> {
        static GPT2: OnceLock<Arc<Subword>> = OnceLock::new();
        if let Some(built) = GPT2.get() {
            return Ok(Self::Subword(Arc::clone(built)));
        }
        let built = Arc::new(Subword::gpt2()?);
        Ok(Self::Subword(Arc::clone(GPT2.get_or_init(|| built))))
    }

    /// Reads any Hugging Face `tokenizer.json`.
    ///
    /// # Errors
    /// `Error::Data` if the file cannot be read or is no tokenizer.
    pub fn from_file(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).map_err(Error::read(path))?;
        Self::from_bytes(RunDir::TOKENIZER, &bytes).map_err(at(path))
    }

    /// Reads the characters of nanoGPT's `meta.pkl`, of which nothing is run.
    ///
    /// # Errors
    /// `Error::Data` if the file cannot be read or is no such vocabulary.
    pub fn from_meta(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).map_err(Error::read(path))?;
        let chars = CharTokenizer::from_meta(&bytes).map_err(at(path))?;
        Ok(Self::Char(Arc::new(chars)))
    }

    /// Reads the tokenizer of a dataset or checkpoint folder, nanoGPT's [`META`] among them;
    /// `None` if the folder has none.
    ///
    /// # Errors
    /// `Error::Data` if a tokenizer file is there but cannot be read.
    pub fn load(dir: &Path) -> Result<Option<Self>> {
        for name in [RunDir::VOCAB, RunDir::TOKENIZER] {
            let path = dir.join(name);
            match fs::read(&path) {
                Ok(bytes) => return Self::from_bytes(name, &bytes).map(Some).map_err(at(&path)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::read(&path)(error)),
            }
        }
        let meta = dir.join(META);
        if meta.exists() {
            return Self::from_meta(&meta).map(Some);
        }
        Ok(None)
    }

    /// Reads what [`Self::to_bytes`] wrote under [`Self::file_name`].
    ///
    /// # Errors
    /// `Error::Data` if the name is not a tokenizer's or the bytes are no tokenizer.
    pub fn from_bytes(file_name: &str, bytes: &[u8]) -> Result<Self> {
        match file_name {
            RunDir::VOCAB => Ok(Self::Char(Arc::new(CharTokenizer::from_json(bytes)?))),
            RunDir::TOKENIZER => Ok(Self::Subword(Arc::new(Subword::from_json(bytes)?))),
            _ => Err(Error::Data(format!(
                "unknown tokenizer file {file_name}, expected {} or {}",
                RunDir::VOCAB,
                RunDir::TOKENIZER
            ))),
        }
    }

    /// The name of the file that holds this tokenizer.
    pub fn file_name(&self) -> &'static str {
        match self {
            Self::Char(_) => RunDir::VOCAB,
            Self::Subword(_) => RunDir::TOKENIZER,
        }
    }

    /// The contents of the file that holds this tokenizer; the same tokenizer gives the same bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Char(chars) => chars.to_json(),
            Self::Subword(subword) => subword.to_json(),
        }
    }

    /// Writes the tokenizer into `dir`, whole or not at all.
    ///
    /// # Errors
    /// `Error::Write` if that fails.
    pub fn save(&self, dir: &Path) -> Result<()> {
        let path = dir.join(self.file_name());
        let temporary = dir.join(format!(".{}.{}", self.file_name(), std::process::id()));
        let written = fs::File::create(&temporary)
            .and_then(|mut file| {
                file.write_all(&self.to_bytes())
                    .and_then(|()| file.sync_all())
            })
            .and_then(|()| fs::rename(&temporary, &path));
        written.map_err(|error| {
            // What matters is why the write failed, not whether its remains could be removed.
            fs::remove_file(&temporary).ok();
            Error::write(&path)(error)
        })
    }

    /// One more than the highest id.
    pub fn vocab_size(&self) -> usize {
        match self {
            Self::Char(chars) => chars.chars().len(),
            Self::Subword(subword) => subword.vocab_size(),
        }
    }

    /// The size that a model over this vocabulary should have: exact for characters, else rounded
    /// up to a multiple of 64.
    pub fn padded_vocab_size(&self) -> usize {
        match self {
            Self::Char(_) => self.vocab_size(),
            Self::Subword(_) => self.vocab_size().next_multiple_of(VOCAB_MULTIPLE),
        }
    }

    /// Ids of `text`; special tokens spelled out in it (`<|endoftext|>`) become their own ids, as
    /// nanoGPT's `sample.py` wants it of a prompt.
    ///
    /// # Errors
    /// `Error::Data` naming the characters that the vocabulary lacks.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match self {
            Self::Char(chars) => chars.encode(text),
            Self::Subword(subword) => subword.encode(text),
        }
    }

    /// Ids of `text`, in which special tokens are text like any other: for training data.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_ordinary(&self, text: &str) -> Result<Vec<u32>> {
        match self {
            Self::Char(chars) => chars.encode(text),
            Self::Subword(subword) => subword.encode_ordinary(text),
        }
    }

    /// The text of `ids`. Ids beyond the vocabulary, which a model with a padded vocabulary can
    /// produce, and bytes that are no UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        match self {
            Self::Char(chars) => ids
                .iter()
                .map(|id| chars.char(*id).unwrap_or(char::REPLACEMENT_CHARACTER))
                .collect(),
            Self::Subword(subword) => subword.decode(ids),
        }
    }

    /// Decodes ids one at a time.
    pub fn decode_stream(&self) -> DecodeStream<'_> {
        DecodeStream::new(self)
    }

    /// The id of a special token such as `<|endoftext|>`, if the vocabulary has it.
    pub fn special_id(&self, token: &str) -> Option<u32> {
        match self {
            Self::Char(_) => None,
            Self::Subword(subword) => subword.special_id(token),
        }
    }
}

/// For `map_err`: puts the path before the first line of a data error.
fn at(path: &Path) -> impl FnOnce(Error) -> Error {
    let path = path.to_owned();
    move |error| Error::Data(format!("{}: {error}", path.display()))
}
