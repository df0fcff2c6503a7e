//! Takes secrets out of text before it is stored or shown: known values, presigned URLs,
//! authorization headers, tokens by their look. Used for captured output, status and errors.

mod names;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::env;
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};

use aho_corasick::AhoCorasick;

pub use names::{is_secret, is_the_agents};

#[cfg(test)]
mod tests;

/// What stands in a secret's place.
pub const MASK: &str = "[redacted]";

/// Shorter values are no secrets, and masking them would make text unreadable.
const VALUE_BYTES_MIN: usize = 8;

/// Masks the secrets it knows and what looks like one.
#[derive(Debug)]
pub struct Redactor {
    state: RwLock<Arc<State>>,
}

struct State {
    values: BTreeSet<String>,
    /// Finds the values, then [`TRIGGERS`], in one pass.
    finder: AhoCorasick,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} values", self.values.len())
    }
}

/// Where to look closer, and how. Compared without regard to case.
const TRIGGERS: [(&str, Rule); 29] = [
    ("x-amz-signature=", Rule::Query),
    ("x-amz-credential=", Rule::Query),
    ("x-amz-security-token=", Rule::Query),
    ("x-goog-signature=", Rule::Query),
    ("x-goog-credential=", Rule::Query),
    ("awsaccesskeyid=", Rule::Query),
    ("&signature=", Rule::Query),
    ("?signature=", Rule::Query),
    ("&sig=", Rule::Query),
    ("?sig=", Rule::Query),
    ("authorization", Rule::Header),
    ("x-amz-security-token", Rule::Value),
    ("secret_access_key", Rule::Value),
    ("secretaccesskey", Rule::Value),
    ("session_token", Rule::Value),
    ("sessiontoken", Rule::Value),
    ("api_key", Rule::Value),
    ("api-key", Rule::Value),
    ("password", Rule::Value),
    ("bearer ", Rule::Bearer),
    ("://", Rule::UserInfo),
    ("sk-", Rule::Token { bytes_min: 20 }),
    ("hf_", Rule::Token { bytes_min: 20 }),
    ("ghp_", Rule::Token { bytes_min: 20 }),
    ("github_pat_", Rule::Token { bytes_min: 20 }),
    ("rpa_", Rule::Token { bytes_min: 20 }),
    ("akia", Rule::Token { bytes_min: 16 }),
    ("asia", Rule::Token { bytes_min: 16 }),
    ("eyj", Rule::WebToken),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// The query of the URL that this stands in.
    Query,
    /// `name: value` up to the end of the line or the closing quote.
    Header,
    /// `name = value`, one word.
    Value,
    /// The word behind it.
    Bearer,
    /// `user:password@` behind it.
    UserInfo,
    /// A word that starts with it, has a digit and goes on for so many bytes.
    Token { bytes_min: usize },
    /// A JSON web token: three words joined by dots.
    WebToken,
}

impl Redactor {
    /// Knows the values of the secret variables in this process's environment.
    pub fn from_env() -> Self {
        // A value that is not text is compared as far as it is.
        Self::from_variables(env::vars_os().map(|(name, value)| {
            let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
            (text(name), text(value))
        }))
    }

    /// Knows the values of those variables whose names say that they are secret.
    pub fn from_variables(variables: impl IntoIterator<Item = (String, String)>) -> Self {
        let secrets = variables.into_iter().filter(|(name, _)| is_secret(name));
        let values = secrets.flat_map(|(_, value)| forms(&value)).collect();
        Self {
            state: RwLock::new(Arc::new(State::new(values))),
        }
    }

    /// Masks this value as well from now on: a credential that came from a file or a server.
    pub fn learn(&self, secret: &str) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let mut values = state.values.clone();
        values.extend(forms(secret));
        *state = Arc::new(State::new(values));
    }

    /// The text without secrets. It should be whole lines: half a secret is not recognised.
    pub fn redact<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let state = Arc::clone(&self.state.read().unwrap_or_else(PoisonError::into_inner));
        let mut masks: Vec<Range<usize>> = Vec::new();
        for found in state.finder.find_overlapping_iter(text) {
            let pattern = found.pattern().as_usize();
            let mask = match pattern.checked_sub(state.values.len()) {
                None => Some(found.range()),
                Some(trigger) => TRIGGERS[trigger].1.mask(text, found.range()),
            };
            masks.extend(mask);
        }
        if masks.is_empty() {
            return Cow::Borrowed(text);
        }
        masks.sort_by_key(|mask| mask.start);
        let mut clean = String::with_capacity(text.len());
        let mut done = 0;
        for mask in masks {
            if mask.start >= done {
                clean.push_str(&text[done..mask.start]);
                clean.push_str(MASK);
            }
            done = done.max(mask.end);
        }
        clean.push_str(&text[done..]);
        Cow::Owned(clean)
    }
}

impl State {
    fn new(values: BTreeSet<String>) -> Self {
        let triggers = TRIGGERS.iter().map(|(text, _)| *text);
        let patterns = values.iter().map(String::as_str).chain(triggers);
        let finder = AhoCorasick::builder()
            .ascii_case_insensitive(true)
            .build(patterns)
            .expect("an environment is far smaller than the automaton's limit of 2^31 states");
        Self { values, finder }
    }
}

/// How a secret may stand in text: each of its lines, as it is and percent-encoded.
fn forms(secret: &str) -> Vec<String> {
    let lines = secret.lines().map(str::trim);
    let long = lines.filter(|line| line.len() >= VALUE_BYTES_MIN);
    long.flat_map(|line| [line.to_owned(), percent_encoded(line)])
        .collect()
}

/// RFC 3986: everything but the unreserved characters as `%XX`.
fn percent_encoded(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
            char::from(byte).to_string()
        }
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

impl Rule {
    /// What to mask, given where the trigger stands.
    fn mask(self, text: &str, at: Range<usize>) -> Option<Range<usize>> {
        let starts_a_word = !text[..at.start].ends_with(|c: char| c.is_ascii_alphanumeric());
        match self {
            Self::Query => {
                let url = text[..at.start].trim_end_matches(|c| !ends_url(c)).len();
                let query = text[url..at.end].find('?').map(|query| url + query + 1);
                let start = query.unwrap_or(at.start);
                let end = text[at.end..]
                    .find(ends_url)
                    .map_or(text.len(), |end| at.end + end);
                Some(start..end)
            }
            Self::Header | Self::Value => {
                let value = value_start(text, at.end)?;
                let quoted = text[..value].ends_with(['"', '\'']);
                let end = match self {
                    _ if quoted => text[value..].find(['"', '\'']),
                    Self::Header => None,
                    _ => text[value..].find(|c: char| c.is_whitespace() || ",;&".contains(c)),
                };
                let end = end.map_or(text.len(), |end| value + end);
                (end > value).then_some(value..end)
            }
            Self::Bearer => {
                let end = word_end(text, at.end, "._~+/=-");
                (end - at.end >= VALUE_BYTES_MIN).then_some(at.end..end)
            }
            Self::UserInfo => {
                let authority = text[at.end..]
                    .find(|c: char| c == '/' || c == '?' || ends_url(c))
                    .map_or(&text[at.end..], |end| &text[at.end..at.end + end]);
                let user_info = &authority[..authority.rfind('@')?];
                let colon = user_info.find(':')?;
                Some(at.end + colon + 1..at.end + user_info.len())
            }
            Self::Token { bytes_min } => {
                let end = word_end(text, at.end, "_-");
                let word = &text[at.end..end];
                let random = word.bytes().any(|byte| byte.is_ascii_digit());
                (starts_a_word && random && word.len() >= bytes_min).then_some(at.start..end)
            }
            Self::WebToken => {
                let end = word_end(text, at.end, "_-.");
                let dots = text[at.start..end]
                    .bytes()
                    .filter(|&byte| byte == b'.')
                    .count();
                (starts_a_word && dots == 2 && end - at.start >= 30).then_some(at.start..end)
            }
        }
    }
}

/// Whether a URL in running text stops before this.
fn ends_url(c: char) -> bool {
    c.is_whitespace() || c.is_control() || "\"'<>`".contains(c)
}

/// Where the value behind a name begins: after `:` or `=`, spaces and an opening quote.
fn value_start(text: &str, name_end: usize) -> Option<usize> {
    let behind = &text[name_end..];
    let behind = behind.trim_start_matches(['"', '\'', ' ']);
    let value = behind
        .strip_prefix([':', '='])?
        .trim_start_matches([' ', '\t']);
    let value = value.strip_prefix(['"', '\'']).unwrap_or(value);
    Some(text.len() - value.len())
}

/// The end of a word of letters, digits and `others` that starts at `start`.
fn word_end(text: &str, start: usize, others: &str) -> usize {
    let outside = |c: char| !c.is_ascii_alphanumeric() && !others.contains(c);
    text[start..]
        .find(outside)
        .map_or(text.len(), |end| start + end)
}
