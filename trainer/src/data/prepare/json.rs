//! One text out of a line of JSON, without building the rest of it. Called by `records`.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Unexpected};
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

/// An error names at most this many fields of a line.
const NAMED_MAX: usize = 20;

/// The way to a text: `text`, or `data.content` for a field of a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Field {
    names: Vec<String>,
}

/// Why a line gives no text: what was got, and what may help.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) got: String,
    pub(super) hint: String,
}

impl Field {
    pub(super) fn new(path: &str) -> Self {
        Self {
            names: path.split('.').map(str::to_owned).collect(),
        }
    }

    /// The text of this field in `line`, a JSON object.
    pub(super) fn text<'a>(&self, line: &'a [u8]) -> Result<Cow<'a, str>, Fault> {
        let mut json = serde_json::Deserializer::from_slice(line);
        let found = Seed(&self.names).deserialize(&mut json);
        match found.and_then(|text| json.end().map(|()| text)) {
            Ok(Some(text)) => Ok(text),
            Ok(None) => Err(Fault {
                got: match top_level(line) {
                    Some(names) => format!("an object of {names}"),
                    None => "none".to_owned(),
                },
                hint: "--field names it; dots lead into objects, as in --field=data.text".into(),
            }),
            Err(error) => {
                // The line is known better than serde_json knows it.
                let place = format!(" at line {} column {}", error.line(), error.column());
                let what = error.to_string();
                let what = what.strip_suffix(&place).unwrap_or(&what);
                Err(Fault {
                    got: format!("{what} at column {}", error.column()),
                    hint: if error.is_data() {
                        "--field names a field that holds a string in every line".into()
                    } else {
                        "each line is to be one whole JSON object; mend the line or leave it out"
                            .into()
                    },
                })
            }
        }
    }
}

/// The names of an object's fields, for an error.
fn top_level(line: &[u8]) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(line).ok()?;
    let names: Vec<&str> = value.as_object()?.keys().map(String::as_str).collect();
    let more = names.len().saturating_sub(NAMED_MAX);
    let mut text = names[..names.len() - more].join(", ");
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    Some(if text.is_empty() {
        "no fields".to_owned()
    } else {
        text
    })
}

/// Goes down the names that are left: the text, or `None` where a name is missing.
#[derive(Clone, Copy)]
struct Seed<'p>(&'p [String]);

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Option<Cow<'de, str>>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        if self.0.is_empty() {
            from.deserialize_str(self)
        } else {
            from.deserialize_map(self)
        }
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Option<Cow<'de, str>>;

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(if self.0.is_empty() {
            "a string"
        } else {
            "an object"
        })
    }

    fn visit_borrowed_str<E: serde::de::Error>(self, text: &'de str) -> Result<Self::Value, E> {
        self.visit(Cow::Borrowed(text))
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
        self.visit(Cow::Owned(text.to_owned()))
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
        let Some((first, rest)) = self.0.split_first() else {
            return Err(M::Error::invalid_type(Unexpected::Map, &self));
        };
        let mut found = None;
        while let Some(is_it) = map.next_key_seed(Is(first))? {
            if is_it {
                found = map.next_value_seed(Seed(rest))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

impl Seed<'_> {
    fn visit<'de, E: serde::de::Error>(
        self,
        text: Cow<'de, str>,
    ) -> Result<Option<Cow<'de, str>>, E> {
        if self.0.is_empty() {
            Ok(Some(text))
        } else {
            Err(E::invalid_type(Unexpected::Str(&text), &self))
        }
    }
}

/// Whether a key is this one.
struct Is<'p>(&'p str);

impl<'de> DeserializeSeed<'de> for Is<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<bool, D::Error> {
        from.deserialize_str(self)
    }
}

impl Visitor<'_> for Is<'_> {
    type Value = bool;

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("a name")
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<bool, E> {
        Ok(name == self.0)
    }
}

#[cfg(test)]
mod tests;
