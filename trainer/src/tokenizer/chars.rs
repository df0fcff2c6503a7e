//! A vocabulary of characters, as nanoGPT's shakespeare_char has it. Called by `Tokenizer`.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::pickle::{Pickle, Value};
use crate::{Error, Result};

/// Marks a character that the vocabulary lacks in [`CharTokenizer::ids`].
const ABSENT: u32 = u32::MAX;
/// An error names at most this many characters of a kind.
const NAMED_MAX: usize = 40;

/// Maps each character (Unicode scalar value) to its own id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CharTokenizer {
    /// The character of each id.
    chars: Vec<char>,
    /// The id of each character by code point, up to the last one in use.
    ids: Vec<u32>,
}

/// `vocab.json`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct VocabFile {
    format_version: u32,
    /// One character each, in the order of their ids.
    chars: Vec<String>,
}

impl CharTokenizer {
    const FORMAT_VERSION: u32 = 1;

    /// Gives each of `chars` its place as its id.
    ///
    /// # Errors
    /// `Error::Data` if there are none, or one occurs twice.
    pub fn new(chars: Vec<char>) -> Result<Self> {
        let Some(last) = chars.iter().max() else {
            return Err(Error::Data("a vocabulary without characters".to_owned()));
        };
        let mut ids = vec![ABSENT; *last as usize + 1];
        for (char, id) in chars.iter().zip(0..) {
            if ids[*char as usize] != ABSENT {
                return Err(Error::Data(format!(
                    "the vocabulary holds {} twice",
                    named(*char)
                )));
            }
            ids[*char as usize] = id;
        }
        Ok(Self { chars, ids })
    }

    /// Reads `vocab.json`.
    pub(super) fn from_json(bytes: &[u8]) -> Result<Self> {
        let file: VocabFile = serde_json::from_slice(bytes)
            .map_err(|error| Error::Data(format!("not a vocabulary of characters: {error}")))?;
        if file.format_version != Self::FORMAT_VERSION {
            return Err(Error::Data(format!(
                "vocabulary format {}, expected {}",
                file.format_version,
                Self::FORMAT_VERSION
            )));
        }
        let single = |entry: &String| {
            let mut chars = entry.chars();
            match (chars.next(), chars.next()) {
                (Some(char), None) => Ok(char),
                _ => Err(Error::Data(format!(
                    "vocabulary entry {entry:?}, expected one character"
                ))),
            }
        };
        Self::new(file.chars.iter().map(single).collect::<Result<_>>()?)
    }

    /// Reads nanoGPT's `meta.pkl`: a dictionary whose `itos` gives each id its character.
    pub(super) fn from_meta(bytes: &[u8]) -> Result<Self> {
        let fault = |what: &str| Error::Data(format!("not a vocabulary of characters: {what}"));
        let pickle = Pickle::parse(bytes, &[]).map_err(|what| fault(&what))?;
        let itos = pickle.entry(pickle.root(), "itos");
        let Some(Value::Dict(entries)) = itos.map(|itos| pickle.get(itos)) else {
            return Err(fault("expected the dictionary `itos`, got none"));
        };
        let mut chars = vec![None; entries.len()];
        for (id, text) in entries {
            let (Value::Int(id), Value::Text(text)) = (pickle.get(*id), pickle.get(*text)) else {
                return Err(fault("itos: expected ids and their characters"));
            };
            let slot = usize::try_from(*id).ok().and_then(|id| chars.get_mut(id));
            let mut of_text = text.chars();
            match (slot, of_text.next(), of_text.next()) {
                (Some(slot), Some(char), None) => *slot = Some(char),
                _ => {
                    return Err(fault(&format!(
                        "itos: expected ids below {} of one character each, got {text:?} for {id}",
                        entries.len()
                    )));
                }
            }
        }
        let chars: Option<Vec<char>> = chars.into_iter().collect();
        Self::new(chars.ok_or_else(|| fault("itos: an id occurs twice"))?)
    }

    /// The text of `vocab.json`.
    pub(super) fn to_json(&self) -> Vec<u8> {
        let file = VocabFile {
            format_version: Self::FORMAT_VERSION,
            chars: self.chars.iter().map(char::to_string).collect(),
        };
        serde_json::to_vec(&file).expect("a vocabulary holds only strings and a number")
    }

    /// The characters in the order of their ids.
    pub fn chars(&self) -> &[char] {
        &self.chars
    }

    pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::with_capacity(text.len());
        for char in text.chars() {
            match self.ids.get(char as usize) {
                Some(id) if *id != ABSENT => ids.push(*id),
                _ => return Err(self.lacks(text)),
            }
        }
        Ok(ids)
    }

    pub(super) fn char(&self, id: u32) -> Option<char> {
        self.chars.get(usize::try_from(id).ok()?).copied()
    }

    /// Names every character of `text` that has no id.
    fn lacks(&self, text: &str) -> Error {
        let absent: BTreeSet<char> = text
            .chars()
            .filter(|char| self.ids.get(*char as usize).is_none_or(|id| *id == ABSENT))
            .collect();
        let mut message = format!(
            "the text holds characters that the vocabulary lacks: {}",
            list(absent.into_iter().map(named))
        );
        let quoted = self.chars.iter().map(|char| format!("{char:?}"));
        write!(
            message,
            "\nhint: the vocabulary has {} characters: {}",
            self.chars.len(),
            list(quoted)
        )
        .expect("writing to a string cannot fail");
        Error::Data(message)
    }
}

/// A character as an error shows it: `'é' (U+00E9)`.
fn named(char: char) -> String {
    format!("{char:?} (U+{:04X})", u32::from(char))
}

/// Joins at most [`NAMED_MAX`] of `items` and counts the rest.
fn list(items: impl ExactSizeIterator<Item = String>) -> String {
    let more = items.len().saturating_sub(NAMED_MAX);
    let mut text = items.take(NAMED_MAX).collect::<Vec<_>>().join(", ");
    if more > 0 {
        write!(text, " and {more} more").expect("writing to a string cannot fail");
    }
    text
}
