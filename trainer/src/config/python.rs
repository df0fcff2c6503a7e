//! nanoGPT's config files: lines `key = literal`, blank lines and comments. They are read, never
//! executed, so whatever else Python allows is refused.

use super::value::{self, Value};

/// One line of a config file.
#[derive(Debug, PartialEq)]
pub(super) enum Line<'a> {
    /// Nothing but space and comment.
    Blank,
    Setting(&'a str, Value),
    /// Anything else.
    Refused,
}

/// Reads one line, without its newline.
pub(super) fn line(text: &str) -> Line<'_> {
    let code = without_comment(text).trim_end();
    if code.trim().is_empty() {
        return Line::Blank;
    }
    let setting = code.split_once('=').and_then(|(name, literal)| {
        let name = name.trim_end();
        let starts_well = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        let is_name = starts_well && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        let value = parse_literal(literal.trim())?;
        is_name.then_some((name, value))
    });
    match setting {
        Some((name, value)) => Line::Setting(name, value),
        None => Line::Refused,
    }
}

/// The line up to its `#`, unless that stands inside quotes.
fn without_comment(line: &str) -> &str {
    let mut quote = None;
    let mut escaped = false;
    for (i, c) in line.char_indices() {
        match quote {
            None if c == '#' => return &line[..i],
            None if c == '"' || c == '\'' => quote = Some(c),
            Some(_) if escaped => escaped = false,
            Some(_) if c == '\\' => escaped = true,
            Some(open) if c == open => quote = None,
            _ => {}
        }
    }
    line
}

/// A flag, number, product of whole numbers or quoted string.
fn parse_literal(text: &str) -> Option<Value> {
    match text {
        "True" | "true" => return Some(Value::Bool(true)),
        "False" | "false" => return Some(Value::Bool(false)),
        _ => {}
    }
    match text.chars().next()? {
        quote @ ('"' | '\'') => {
            let inner = text.strip_prefix(quote)?.strip_suffix(quote)?;
            unescape(inner, quote).map(Value::Text)
        }
        _ => value::number(text),
    }
}

/// The text between two quotes; `None` if it holds the quote itself or an escape that a config
/// has no use for.
fn unescape(inner: &str, quote: char) -> Option<String> {
    let mut text = String::new();
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next()? {
                escaped @ ('\\' | '\'' | '"') => text.push(escaped),
                'n' => text.push('\n'),
                't' => text.push('\t'),
                _ => return None,
            },
            c if c == quote => return None,
            c => text.push(c),
        }
    }
    Some(text)
}
