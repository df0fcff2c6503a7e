//! A config under construction: values set from files and the command line, where each came from,
//! and every fault met on the way.

use toml::de::{DeTable, DeValue};

use super::python::{self, Line};
use super::shipped::nearest;
use super::table::{self, Config, KEYS, Key};
use super::value::{Kind, Value};

/// Where a word of the command line comes from, in faults.
const COMMAND_LINE: &str = "command line";

#[derive(Default)]
pub(super) struct Draft {
    config: Config,
    /// Keys that have been set, in order, and where.
    origins: Vec<(&'static str, String)>,
    faults: Vec<String>,
    /// Keys that somebody meant to set and that still hold their default.
    doubtful: Vec<&'static str>,
    /// Something could not be read at all: any key may have been meant.
    unreadable: bool,
}

impl Draft {
    /// Flat TOML; `file` is its name in faults.
    pub(super) fn toml(&mut self, text: &str, file: &str) {
        let place = |offset: usize| {
            let newlines = text.bytes().take(offset).filter(|&b| b == b'\n').count();
            format!("{file}:{}", newlines + 1)
        };
        let (table, errors) = DeTable::parse_recoverable(text);
        let mut broken = Vec::new();
        for error in errors {
            let place = place(error.span().map_or(0, |span| span.start));
            self.fault(format!("{place}: {}", error.message()));
            broken.push(place);
        }
        let mut entries: Vec<_> = table.get_ref().iter().collect();
        entries.sort_by_key(|(name, _)| name.span().start);
        for (name, value) in entries {
            let place = place(name.span().start);
            // What the parser makes of a broken line is a guess.
            if broken.contains(&place) {
                continue;
            }
            let Some(key) = self.key(&place, name.get_ref()) else {
                continue;
            };
            match from_toml(value.get_ref()) {
                Ok(value) => self.set(&place, key, &value),
                Err(got) => self.refuse(&place, key, got),
            }
        }
    }

    /// nanoGPT's `key = literal` lines; `file` is its name in faults.
    pub(super) fn python(&mut self, text: &str, file: &str) {
        for (i, line) in text.lines().enumerate() {
            let place = format!("{file}:{}", i + 1);
            match python::line(line) {
                Line::Blank => {}
                Line::Setting(name, value) => {
                    if let Some(key) = self.key(&place, name) {
                        self.set(&place, key, &value);
                    }
                }
                Line::Refused => {
                    let line = line.trim();
                    self.fault(format!("{place}: expected key = literal, got `{line}`"));
                }
            }
        }
    }

    /// The words of the command line: `--key=value`, `--key value`, `--key`.
    pub(super) fn command_line(&mut self, words: &[String]) {
        let mut words = words.iter().map(String::as_str).peekable();
        while let Some(word) = words.next() {
            let Some(setting) = word.strip_prefix("--").filter(|rest| !rest.is_empty()) else {
                self.fault(format!(
                    "{COMMAND_LINE}: expected --key=value, got `{word}`; --config names a config"
                ));
                continue;
            };
            let (name, given) = match setting.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (setting, words.next_if(|next| !next.starts_with("--"))),
            };
            let Some(key) = self.key(COMMAND_LINE, name) else {
                continue;
            };
            match given {
                Some(word) => self.set(COMMAND_LINE, key, &Value::from_word(key.kind, word)),
                None if key.kind == Kind::Bool => {
                    self.set(COMMAND_LINE, key, &Value::Bool(true));
                }
                None => self.refuse(COMMAND_LINE, key, "nothing"),
            }
        }
    }

    /// Notes a fault that belongs to no key.
    pub(super) fn fault(&mut self, text: String) {
        self.faults.push(text);
        self.unreadable = true;
    }

    /// The config and every fault: those met so far, and the rules that the values break.
    pub(super) fn finish(self) -> (Config, Vec<String>) {
        let Self {
            config,
            origins,
            mut faults,
            doubtful,
            unreadable,
        } = self;
        let is_set = |name: &&str| origins.iter().any(|(set, _)| set == name);
        // After a fault some keys may hold defaults that nobody meant. A rule that involves them
        // could complain of a value that is written nowhere.
        let is_meant =
            |name: &&str| is_set(name) || !(unreadable || doubtful.iter().any(|key| key == name));
        let mut broken: Vec<_> = config
            .faults()
            .into_iter()
            .filter(|fault| fault.keys.iter().all(is_meant))
            .map(|fault| {
                let origin = origins
                    .iter()
                    .rposition(|(name, _)| fault.keys.contains(name))
                    .expect("the defaults alone break no rule");
                (origin, fault.text)
            })
            .collect();
        broken.sort_by_key(|(origin, _)| *origin);
        for (origin, text) in broken {
            let (_, place) = &origins[origin];
            faults.push(format!("{place}: {text}"));
        }
        (config, faults)
    }

    /// The key of this name, or a fault.
    fn key(&mut self, place: &str, name: &str) -> Option<&'static Key> {
        let key = table::find(name);
        if key.is_none() {
            let advice = match nearest(name, KEYS.iter().map(|key| key.name)) {
                Some(nearest) => {
                    self.doubtful.push(nearest);
                    format!("did you mean {nearest}?")
                }
                None => "--help lists every key".to_owned(),
            };
            self.faults
                .push(format!("{place}: unknown key `{name}`; {advice}"));
        }
        key
    }

    fn set(&mut self, place: &str, key: &Key, value: &Value) {
        if key.name == "batch_size" {
            // The number that was set before still says how many tokens make up a step.
            let fit = matches!(value, Value::Text(word) if word == "auto");
            self.config.fit_batch = fit;
            if fit {
                return;
            }
        }
        if (key.set)(&mut self.config, value) {
            self.origins.retain(|(name, _)| *name != key.name);
            self.origins.push((key.name, place.to_owned()));
        } else {
            self.refuse(place, key, &value.to_string());
        }
    }

    fn refuse(&mut self, place: &str, key: &Key, got: &str) {
        self.origins.retain(|(name, _)| *name != key.name);
        let (name, expected) = (key.name, key.kind.expectation());
        self.doubtful.push(name);
        self.faults
            .push(format!("{place}: {name}: expected {expected}, got {got}"));
    }
}

/// A TOML value; or, of a type that no key has, what a fault calls it.
fn from_toml(value: &DeValue<'_>) -> Result<Value, &'static str> {
    match value {
        DeValue::String(text) => Ok(Value::Text(text.clone().into_owned())),
        DeValue::Boolean(value) => Ok(Value::Bool(*value)),
        DeValue::Integer(value) => i128::from_str_radix(value.as_str(), value.radix())
            .map(Value::Integer)
            .map_err(|_| "a number that is too large"),
        DeValue::Float(value) => value
            .as_str()
            .parse()
            .map(Value::Float)
            .map_err(|_| "a malformed number"),
        DeValue::Datetime(_) => Err("a date"),
        DeValue::Array(_) => Err("an array"),
        DeValue::Table(_) => Err("a table"),
    }
}
