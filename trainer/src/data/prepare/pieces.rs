//! Cuts a stream of text into pieces that can be encoded by themselves. Called by `prepare`.

use std::io::{self, Read};

use super::{TokenizerChoice, whole_characters};

/// A piece without a safe place to cut grows to this many times its size, then it is cut between
/// any two characters. Then one token may come out as two: once in megabytes without white space.
const GROWTH_MAX: usize = 32;

/// Where a text can be cut so that its parts give the same tokens as the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CutRule {
    /// Between any two characters: each is a token.
    Anywhere,
    /// Before white space that follows something else. GPT-2's pattern has no alternative that
    /// goes on from other characters to white space, and none that looks back, so that a match
    /// begins there in any case.
    BeforeWhiteSpace,
    /// Before a line feed that follows a letter or digit. The patterns in use (Llama, Qwen, GPT-4,
    /// BERT) end a match there; after a full stop some do not. A tokenizer that puts something
    /// before each text (SentencePiece's `▁`) puts it before each piece: one token in
    /// [`super::PIECE_BYTES`].
    BeforeLineFeed,
}

impl CutRule {
    pub(super) fn of(tokenizer: &TokenizerChoice) -> Self {
        match tokenizer {
            TokenizerChoice::Char => Self::Anywhere,
            TokenizerChoice::Gpt2 => Self::BeforeWhiteSpace,
            TokenizerChoice::Json(_) => Self::BeforeLineFeed,
        }
    }

    /// The last place in `text`, but not its beginning, where it can be cut.
    fn last_cut(self, text: &str) -> Option<usize> {
        match self {
            Self::Anywhere => (!text.is_empty()).then_some(text.len()),
            Self::BeforeWhiteSpace => last_pair(text, |before, at| {
                !before.is_whitespace() && at.is_whitespace()
            }),
            // ASCII first: some alphabets have marks that count as letters here, but not in the
            // patterns of the tokenizers.
            Self::BeforeLineFeed => last_pair(text, |before, at| {
                at == '\n' && before.is_ascii_alphanumeric()
            })
            .or_else(|| last_pair(text, |before, at| at == '\n' && before.is_alphanumeric())),
        }
    }
}

/// The last place between two characters that satisfy `is_cut`.
fn last_pair(text: &str, is_cut: impl Fn(char, char) -> bool) -> Option<usize> {
    let mut chars = text.char_indices().rev();
    let (mut at, mut after) = chars.next()?;
    for (start, before) in chars {
        if is_cut(before, after) {
            return Some(at);
        }
        (at, after) = (start, before);
    }
    None
}

/// The pieces of a text, in order; together they are the text.
pub(super) struct Pieces<'a> {
    reader: Box<dyn Read + Send + 'a>,
    rule: CutRule,
    piece_bytes: usize,
    /// Read, but not given out.
    buffer: Vec<u8>,
    /// Bytes that were given out.
    offset: u64,
}

/// Why there is no next piece.
#[derive(Debug)]
pub(super) enum PieceFault {
    Read(io::Error),
    /// This byte of the stream is no part of a character.
    NotUtf8 {
        offset: u64,
        byte: u8,
    },
}

impl<'a> Pieces<'a> {
    pub(super) fn new(
        reader: Box<dyn Read + Send + 'a>,
        rule: CutRule,
        piece_bytes: usize,
    ) -> Self {
        Self {
            reader,
            rule,
            piece_bytes,
            buffer: Vec::new(),
            offset: 0,
        }
    }

    /// The next piece; `None` after the last.
    pub(super) fn next(&mut self) -> Result<Option<String>, PieceFault> {
        for growth in 1..=GROWTH_MAX {
            let wanted = self.piece_bytes * growth;
            let missing = wanted.saturating_sub(self.buffer.len()) as u64;
            (&mut self.reader)
                .take(missing)
                .read_to_end(&mut self.buffer)
                .map_err(PieceFault::Read)?;
            let is_last = self.buffer.len() < wanted;
            let whole = match whole_characters(&self.buffer) {
                Ok(text) if is_last && text.len() < self.buffer.len() => Err(text.len()),
                other => other,
            }
            .map_err(|at| PieceFault::NotUtf8 {
                offset: self.offset + at as u64,
                byte: self.buffer[at],
            })?;
            if whole.is_empty() && is_last {
                return Ok(None);
            }
            let cut = if is_last {
                Some(whole.len())
            } else if growth == GROWTH_MAX {
                self.rule.last_cut(whole).or(Some(whole.len()))
            } else {
                self.rule.last_cut(whole)
            };
            if let Some(cut) = cut {
                let piece = whole[..cut].to_owned();
                self.buffer.drain(..cut);
                self.offset += cut as u64;
                return Ok(Some(piece));
            }
        }
        unreachable!("the last growth always cuts")
    }
}
