//! Decoding token by token, for text that appears while it is made. Called by sampling.

use std::str;

use super::{Subword, Tokenizer};

/// No character has more bytes than this, so that no more tokens are held back to complete one.
const CHARACTER_BYTES_MAX: usize = 4;

/// Turns ids into text piece by piece and never cuts a character in two: a byte-level token may
/// hold half of one, which then waits for the rest.
pub struct DecodeStream<'a> {
    tokenizer: &'a Tokenizer,
    /// Bytes that are not a whole character yet; byte-level tokenizers only.
    bytes: Vec<u8>,
    /// The tokens of the last piece of text and those after it; other tokenizers only.
    ids: Vec<u32>,
    /// How many of `ids` belong to the last piece.
    told: usize,
}

impl<'a> DecodeStream<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Self {
        Self {
            tokenizer,
            bytes: Vec::new(),
            ids: Vec::new(),
            told: 0,
        }
    }

    /// Takes one more id and gives the text that is complete with it, which may be empty.
    pub fn push(&mut self, id: u32) -> String {
        match self.tokenizer {
            Tokenizer::Char(_) => self.tokenizer.decode(&[id]),
            Tokenizer::Subword(subword) => match subword.bytes(id) {
                Some(bytes) => {
                    self.bytes.extend_from_slice(bytes);
                    self.whole_characters()
                }
                None => self.whole_piece(subword, id),
            },
        }
    }

    /// Ends the stream: what was held back can no longer be completed.
    pub fn finish(self) -> String {
        match self.tokenizer {
            Tokenizer::Subword(subword) if !self.ids.is_empty() => {
                text_after(subword, &self.ids, self.told)
            }
            _ => String::from_utf8_lossy(&self.bytes).into_owned(),
        }
    }

    /// Takes the whole characters from `bytes`; what can never become one is U+FFFD, exactly as
    /// [`String::from_utf8_lossy`] would have it over the bytes of all tokens.
    fn whole_characters(&mut self) -> String {
        let mut text = String::new();
        let mut rest = self.bytes.as_slice();
        loop {
            match str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(str::from_utf8(valid).expect("valid up to here"));
                    rest = after;
                    let Some(invalid) = error.error_len() else {
                        break;
                    };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &rest[invalid..];
                }
            }
        }
        self.bytes = rest.to_vec();
        text
    }

    /// For decoders that look at neighbouring tokens: the text that `id` adds to the piece before.
    fn whole_piece(&mut self, subword: &Subword, id: u32) -> String {
        self.ids.push(id);
        let text = text_after(subword, &self.ids, self.told);
        let held = self.ids.len() - self.told;
        if text.ends_with(char::REPLACEMENT_CHARACTER) && held < CHARACTER_BYTES_MAX {
            return String::new();
        }
        self.ids.drain(..self.told);
        self.told = self.ids.len();
        text
    }
}

/// What the ids from `told` on add to the text of those before.
fn text_after(subword: &Subword, ids: &[u32], told: usize) -> String {
    let before = subword.decode(&ids[..told]);
    let mut text = subword.decode(ids);
    let common = if text.starts_with(&before) {
        before.len()
    } else {
        0
    };
    text.split_off(common)
}
