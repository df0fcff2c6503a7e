//! A Hugging Face tokenizer of any kind, with a faster way for GPT-2's. Called by `Tokenizer`.

use std::sync::OnceLock;

use tokenizers::{DecoderWrapper, Tokenizer};

use super::bpe::Bpe;
use super::gpt2;
use crate::{Error, Result};

/// What stands for an id or a byte that is no text.
const REPLACEMENT: &str = "\u{FFFD}";

/// A tokenizer whose tokens are pieces of words.
pub struct Subword {
    /// Finds special tokens in the text.
    prompt: Tokenizer,
    /// A copy that takes special tokens for text, made when it is needed.
    ordinary: OnceLock<Tokenizer>,
    /// Encodes ordinary text as `ordinary` does, many times faster; only GPT-2's has it.
    fast: Option<Bpe>,
    /// The bytes of each token, `None` where an id is not in use; only of byte-level tokenizers,
    /// whose tokens can be halves of characters.
    token_bytes: Option<Vec<Option<Box<[u8]>>>>,
    vocab_size: usize,
}

impl Subword {
    pub(super) fn gpt2() -> Result<Self> {
        let (tokenizer, fast) = gpt2::build().map_err(refused)?;
        Ok(Self {
            fast: Some(fast),
            ..Self::new(tokenizer)?
        })
    }

    pub(super) fn from_json(bytes: &[u8]) -> Result<Self> {
        let tokenizer = Tokenizer::from_bytes(bytes).map_err(|error| {
            Error::Data(format!(
                "not a tokenizer of the Hugging Face format: {error}"
            ))
        })?;
        Self::new(tokenizer)
    }

    fn new(mut tokenizer: Tokenizer) -> Result<Self> {
        // A file may ask for both, for the use of its own model; neither suits a stream of text.
        tokenizer.with_truncation(None).map_err(refused)?;
        tokenizer.with_padding(None);
        tokenizer.set_encode_special_tokens(false);
        let Some(last) = tokenizer.get_vocab(true).into_values().max() else {
            return Err(Error::Data("a tokenizer without tokens".to_owned()));
        };
        let token_bytes = matches!(tokenizer.get_decoder(), Some(DecoderWrapper::ByteLevel(_)))
            .then(|| bytes_of_tokens(&tokenizer, last));
        Ok(Self {
            prompt: tokenizer,
            ordinary: OnceLock::new(),
            fast: None,
            token_bytes,
            vocab_size: last as usize + 1,
        })
    }

    pub(super) fn to_json(&self) -> Vec<u8> {
        let text = self.prompt.to_string(false);
        text.expect("a tokenizer holds only strings and numbers")
            .into_bytes()
    }

    pub(super) fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    pub(super) fn special_id(&self, token: &str) -> Option<u32> {
        let added = self.prompt.get_added_vocabulary();
        if added.is_special_token(token) {
            self.prompt.token_to_id(token)
        } else {
            None
        }
    }

    pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.prompt.encode_fast(text, false).map_err(refused)?;
        Ok(encoding.get_ids().to_vec())
    }

    pub(super) fn encode_ordinary(&self, text: &str) -> Result<Vec<u32>> {
        if let Some(fast) = &self.fast {
            return Ok(fast.encode(text));
        }
        let ordinary = self.ordinary.get_or_init(|| {
            let mut copy = self.prompt.clone();
            copy.set_encode_special_tokens(true);
            copy
        });
        let encoding = ordinary.encode_fast(text, false).map_err(refused)?;
        Ok(encoding.get_ids().to_vec())
    }

    pub(super) fn decode(&self, ids: &[u32]) -> String {
        if let Some(table) = &self.token_bytes {
            let bytes: Vec<u8> = ids
                .iter()
                .flat_map(|id| bytes_of(table, *id).iter().copied())
                .collect();
            return String::from_utf8_lossy(&bytes).into_owned();
        }
        // Other decoders look at neighbouring tokens, so that ids in use are decoded in runs.
        ids.chunk_by(|a, b| self.is_in_use(*a) && self.is_in_use(*b))
            .map(|run| {
                if self.is_in_use(run[0]) {
                    self.prompt.decode(run, false).ok()
                } else {
                    None
                }
            })
            .map(|text| text.unwrap_or_else(|| REPLACEMENT.to_owned()))
            .collect()
    }

    fn is_in_use(&self, id: u32) -> bool {
        self.prompt.id_to_token(id).is_some()
    }

    /// The bytes of a token, where tokens have bytes of their own.
    pub(super) fn bytes(&self, id: u32) -> Option<&[u8]> {
        Some(bytes_of(self.token_bytes.as_ref()?, id))
    }
}

fn bytes_of(table: &[Option<Box<[u8]>>], id: u32) -> &[u8] {
    match table.get(id as usize) {
        Some(Some(bytes)) => bytes,
        _ => REPLACEMENT.as_bytes(),
    }
}

/// The bytes of every token of a byte-level tokenizer up to the id `last`.
fn bytes_of_tokens(tokenizer: &Tokenizer, last: u32) -> Vec<Option<Box<[u8]>>> {
    let printable = gpt2::printable_alphabet();
    // The alphabet reaches no further than U+0143.
    let mut bytes = [None; 0x180];
    for (char, byte) in printable.into_iter().zip(0..=u8::MAX) {
        bytes[char as usize] = Some(byte);
    }
    let added = tokenizer.get_added_tokens_decoder();
    (0..=last)
        .map(|id| {
            // Added tokens are spelled as they are, all others in the printable alphabet.
            if let Some(token) = added.get(&id) {
                return Some(token.content.as_bytes().into());
            }
            let token = tokenizer.id_to_token(id)?;
            let spelled: Option<Box<[u8]>> = token
                .chars()
                .map(|char| bytes.get(char as usize).copied().flatten())
                .collect();
            Some(spelled.unwrap_or_else(|| token.as_bytes().into()))
        })
        .collect()
}

fn refused(error: tokenizers::Error) -> Error {
    Error::Data(format!("the tokenizer refused the text: {error}"))
}
