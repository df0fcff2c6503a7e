//! Values of keys: what a literal in a file or a word of the command line means for each type.
//! Used by the table of keys and the parsers; [`Value`]'s text is TOML.

use std::fmt;
use std::path::PathBuf;

/// The type of a key, as a person sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Int,
    Float,
    Bool,
    Text,
    Path,
}

/// A literal, before it is fitted to its key.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Integer(i128),
    Float(f64),
    Bool(bool),
    Text(String),
}

/// A Rust type that a key can have.
pub(super) trait Field: Sized {
    const KIND: Kind;
    /// `None` if the value does not fit the type exactly.
    fn from_value(value: &Value) -> Option<Self>;
    fn to_value(&self) -> Value;
}

impl Kind {
    /// The type's name in `--help`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Int => "int",
            Self::Float => "float",
            Self::Bool => "bool",
            Self::Text => "str",
            Self::Path => "path",
        }
    }

    /// What a fault says was expected.
    pub(super) fn expectation(self) -> &'static str {
        match self {
            Self::Int => "a whole number from 0 to 2^64 - 1",
            Self::Float => "a number",
            Self::Bool => "true or false",
            Self::Text | Self::Path => "a string",
        }
    }
}

impl Value {
    /// A word of the command line, for a key of this kind. A word that is no such literal stays
    /// text, which the key then refuses.
    pub(super) fn from_word(kind: Kind, word: &str) -> Self {
        let literal = match kind {
            Kind::Int | Kind::Float => number(word),
            Kind::Bool => boolean(word),
            Kind::Text | Kind::Path => None,
        };
        let quoted = ['"', '\'']
            .iter()
            .find_map(|&quote| word.strip_prefix(quote)?.strip_suffix(quote));
        literal.unwrap_or_else(|| match kind {
            Kind::Text | Kind::Path => Self::Text(quoted.unwrap_or(word).to_owned()),
            _ => Self::Text(word.to_owned()),
        })
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Integer(value) => write!(f, "{value}"),
            Self::Float(value) if value.is_nan() => f.write_str("nan"),
            // Debug prints the shortest text that reads back to the same bits.
            Self::Float(value) => write!(f, "{value:?}"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Text(text) => {
                f.write_str("\"")?;
                for c in text.chars() {
                    match c {
                        '"' | '\\' => write!(f, "\\{c}")?,
                        '\n' => f.write_str("\\n")?,
                        '\r' => f.write_str("\\r")?,
                        '\t' => f.write_str("\\t")?,
                        c if c.is_control() => write!(f, "\\u{:04x}", u32::from(c))?,
                        c => write!(f, "{c}")?,
                    }
                }
                f.write_str("\"")
            }
        }
    }
}

/// `True`, `true`, `1` and their opposites.
fn boolean(text: &str) -> Option<Value> {
    match text {
        "True" | "true" | "1" => Some(Value::Bool(true)),
        "False" | "false" | "0" => Some(Value::Bool(false)),
        _ => None,
    }
}

/// A number as Python writes it: `5`, `600_000`, `1e-3`, or a product of whole numbers, `5*8`.
pub(super) fn number(text: &str) -> Option<Value> {
    let product = text
        .split('*')
        .map(|factor| digits(factor.trim())?.parse().ok())
        .try_fold(1i128, |product, factor| product.checked_mul(factor?));
    if let Some(product) = product {
        return Some(Value::Integer(product));
    }
    // Rust's parser would also take `nan` and `infinity`, which are no literals of Python.
    let text = digits(text).filter(|text| text.contains(|c: char| c.is_ascii_digit()))?;
    text.parse().ok().map(Value::Float)
}

/// The text without underscores between digits; `None` if one stands anywhere else.
fn digits(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let is_digit = |i: usize| bytes.get(i).is_some_and(u8::is_ascii_digit);
    let well_placed = (0..bytes.len())
        .filter(|&i| bytes[i] == b'_')
        .all(|i| i > 0 && is_digit(i - 1) && is_digit(i + 1));
    well_placed.then(|| text.replace('_', ""))
}

/// A whole number, also one written as a float (`1e3`), as long as the float holds it exactly.
fn whole(value: &Value) -> Option<i128> {
    const EXACT_MAX: f64 = (1u64 << f64::MANTISSA_DIGITS) as f64;
    match *value {
        Value::Integer(value) => Some(value),
        Value::Float(value) if value.fract() == 0.0 && value.abs() <= EXACT_MAX => {
            Some(value as i128)
        }
        _ => None,
    }
}

impl Field for u64 {
    const KIND: Kind = Kind::Int;

    fn from_value(value: &Value) -> Option<Self> {
        whole(value)?.try_into().ok()
    }

    fn to_value(&self) -> Value {
        Value::Integer((*self).into())
    }
}

impl Field for usize {
    const KIND: Kind = Kind::Int;

    fn from_value(value: &Value) -> Option<Self> {
        whole(value)?.try_into().ok()
    }

    fn to_value(&self) -> Value {
        Value::Integer(*self as i128)
    }
}

impl Field for f64 {
    const KIND: Kind = Kind::Float;

    fn from_value(value: &Value) -> Option<Self> {
        match *value {
            Value::Integer(value) => Some(value as Self),
            Value::Float(value) => Some(value),
            _ => None,
        }
    }

    fn to_value(&self) -> Value {
        Value::Float(*self)
    }
}

impl Field for bool {
    const KIND: Kind = Kind::Bool;

    fn from_value(value: &Value) -> Option<Self> {
        match *value {
            Value::Bool(value) => Some(value),
            _ => None,
        }
    }

    fn to_value(&self) -> Value {
        Value::Bool(*self)
    }
}

impl Field for String {
    const KIND: Kind = Kind::Text;

    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Text(text) => Some(text.clone()),
            _ => None,
        }
    }

    fn to_value(&self) -> Value {
        Value::Text(self.clone())
    }
}

impl Field for PathBuf {
    const KIND: Kind = Kind::Path;

    fn from_value(value: &Value) -> Option<Self> {
        String::from_value(value).map(Self::from)
    }

    fn to_value(&self) -> Value {
        Value::Text(self.to_string_lossy().into_owned())
    }
}
