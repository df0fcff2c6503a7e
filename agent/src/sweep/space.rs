//! `sweep.toml`: which keys are tried with which values, and the list of trials that it means.
//! Called when a sweep is created.
//!
//! A trial is its settings and is named by their hash. Draws are a function of the seed, the
//! trial's number and the key alone, by SHA-256, so no generator and no platform changes them.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::SweepError;

/// No sweep is as large; one that is, is taken for a mistake.
pub const TRIALS_MAX: usize = 10_000;
/// Draws for one trial before the space is taken to be exhausted.
const DRAWS_MAX: usize = 1000;
/// Hexadecimal digits of a trial's name.
const ID_DIGITS: usize = 16;
/// Keys that the agent sets itself.
const OWN_KEYS: [&str; 3] = ["out_dir", "resume", "overwrite"];
/// Whole numbers up to this are exact in a double.
const WHOLE_MAX: f64 = 9_007_199_254_740_992.0;
const KEY_BYTES_MAX: usize = 64;

/// How trials come out of the keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Every combination of values.
    Grid,
    /// Each `[[trial]]` as it is written, over the fixed keys.
    List,
    /// `trials` draws.
    Random,
}

/// A value of a key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Setting {
    Bool(bool),
    Integer(i64),
    Float(f64),
    Text(String),
}

/// One point of the space: what is set besides the command that all trials share.
pub type Settings = BTreeMap<String, Setting>;

/// One trial.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// The hash of its settings: [`id_of`].
    pub id: String,
    pub settings: Settings,
}

/// The values of one key.
#[derive(Clone, Debug, PartialEq)]
enum Space {
    Values(Vec<Setting>),
    Uniform(f64, f64),
    LogUniform(f64, f64),
    /// Both ends included.
    Int(i64, i64),
}

impl Setting {
    /// As the trainer's command line takes it. Equal words are equal settings, so `1`, `1.0` and
    /// `1e0` are one.
    pub fn word(&self) -> String {
        match self {
            Self::Bool(value) => value.to_string(),
            Self::Integer(value) => value.to_string(),
            Self::Float(value) => format!("{value:?}"),
            Self::Text(text) => text.clone(),
        }
    }

    fn from_float(value: f64) -> Result<Self, String> {
        if !value.is_finite() {
            return Err(format!("expected a finite number, got {value}"));
        }
        let whole = value.fract() == 0.0 && value.abs() <= WHOLE_MAX;
        Ok(if whole {
            Self::Integer(value as i64)
        } else {
            Self::Float(value)
        })
    }

    fn from_toml(value: &toml::Value) -> Result<Self, String> {
        match value {
            toml::Value::Boolean(value) => Ok(Self::Bool(*value)),
            toml::Value::Integer(value) => Ok(Self::Integer(*value)),
            toml::Value::Float(value) => Self::from_float(*value),
            toml::Value::String(text) if text.chars().any(char::is_control) => Err(format!(
                "expected text without control characters, got {text:?}"
            )),
            toml::Value::String(text) => Ok(Self::Text(text.clone())),
            other => Err(format!(
                "expected a number, a text or a flag, got {}",
                other.type_str()
            )),
        }
    }
}

/// The name of the trial with these settings: SHA-256 of `key=word` lines in the order of the keys.
pub fn id_of(settings: &Settings) -> String {
    let lines = settings
        .iter()
        .map(|(key, value)| format!("{key}={}\n", value.word()));
    let digest = Sha256::digest(lines.collect::<String>());
    let hex = digest.iter().map(|byte| format!("{byte:02x}"));
    hex.collect::<String>()[..ID_DIGITS].to_owned()
}

/// What of the file says which trials there are.
pub(super) struct Source<'a> {
    pub(super) method: Method,
    pub(super) keys: &'a BTreeMap<String, toml::Value>,
    pub(super) list: &'a [BTreeMap<String, toml::Value>],
    /// How many draws; of `random` only.
    pub(super) trials: Option<usize>,
    pub(super) seed: u64,
}

/// The trials that a file means, in its order.
///
/// # Errors
/// With every fault of the file.
pub(super) fn trials(source: &Source<'_>) -> Result<Vec<Trial>, SweepError> {
    let mut faults = Vec::new();
    let mut spaces = BTreeMap::new();
    for (key, value) in source.keys {
        check_key(key, &mut faults);
        match space(value) {
            Ok(space) => {
                spaces.insert(key.clone(), space);
            }
            Err(fault) => faults.push(format!("keys.{key}: {fault}")),
        }
    }
    let random = source.method == Method::Random;
    if random != source.trials.is_some() {
        let wanted = if random { "how many" } else { "none" };
        faults.push(format!("trials: expected {wanted} with this method"));
    }
    if (source.method == Method::List) == source.list.is_empty() {
        faults.push("[[trial]]: expected with method = \"list\", and only there".to_owned());
    }
    if source.method != Method::Random {
        for (key, space) in &spaces {
            let one = matches!(space, Space::Values(values) if values.len() == 1);
            match (source.method, space) {
                (Method::Grid, Space::Values(_)) => {}
                (Method::List, _) if one => {}
                (Method::Grid, _) => faults.push(format!(
                    "keys.{key}: a grid has no ranges: expected a list of values"
                )),
                _ => faults.push(format!("keys.{key}: expected one value, for all trials")),
            }
        }
    }
    if !faults.is_empty() {
        return Err(SweepError::Spec(faults));
    }
    let points = match source.method {
        Method::Grid => grid(&spaces),
        Method::List => list(&spaces, source.list),
        Method::Random => draws(&spaces, source.trials.unwrap_or(0), source.seed),
    };
    named(points.map_err(SweepError::Spec)?)
}

/// Names the points, of which no two may be the same.
fn named(points: Vec<Settings>) -> Result<Vec<Trial>, SweepError> {
    let fault = |text: String| Err(SweepError::Spec(vec![text]));
    if points.is_empty() || points.len() > TRIALS_MAX {
        return fault(format!(
            "expected 1 to {TRIALS_MAX} trials, got {}",
            points.len()
        ));
    }
    let mut known: BTreeMap<String, usize> = BTreeMap::new();
    let mut trials = Vec::new();
    for (i, settings) in points.into_iter().enumerate() {
        let id = id_of(&settings);
        if let Some(first) = known.insert(id.clone(), i) {
            let (first, second) = (first + 1, i + 1);
            return fault(format!("trials {first} and {second} are the same"));
        }
        trials.push(Trial { id, settings });
    }
    Ok(trials)
}

fn check_key(key: &str, faults: &mut Vec<String>) {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'.';
    if key.is_empty() || key.len() > KEY_BYTES_MAX || !key.bytes().all(allowed) {
        faults.push(format!("{key:?}: expected a key of the trainer's config"));
    } else if OWN_KEYS.contains(&key) {
        faults.push(format!("{key}: the agent sets it itself"));
    }
}

fn space(value: &toml::Value) -> Result<Space, String> {
    let values = |values: &[toml::Value]| -> Result<Space, String> {
        let settings: Result<Vec<_>, _> = values.iter().map(Setting::from_toml).collect();
        let settings = settings?;
        if settings.is_empty() {
            return Err("expected at least one value".to_owned());
        }
        let words: BTreeSet<String> = settings.iter().map(Setting::word).collect();
        if words.len() < settings.len() {
            return Err("expected values that differ".to_owned());
        }
        Ok(Space::Values(settings))
    };
    let table = match value {
        toml::Value::Array(array) => return values(array),
        toml::Value::Table(table) => table,
        value => return Ok(Space::Values(vec![Setting::from_toml(value)?])),
    };
    const KINDS: &str = "expected one of choice, uniform, log_uniform and int";
    let mut entries = table.iter();
    let (Some((kind, toml::Value::Array(array))), None) = (entries.next(), entries.next()) else {
        return Err(format!("{KINDS} with a list"));
    };
    if kind == "choice" {
        return values(array);
    }
    let number = |value: &toml::Value| match value {
        toml::Value::Integer(value) => Some(*value as f64),
        toml::Value::Float(value) => Some(*value).filter(|value| value.is_finite()),
        _ => None,
    };
    let [low, high] = array.as_slice() else {
        return Err(format!("{kind}: expected [low, high]"));
    };
    let (Some(from), Some(to)) = (number(low), number(high)) else {
        return Err(format!("{kind}: expected two numbers"));
    };
    if from >= to {
        return Err(format!("{kind}: expected low < high, got [{from}, {to}]"));
    }
    match (kind.as_str(), low.as_integer(), high.as_integer()) {
        ("uniform", ..) => Ok(Space::Uniform(from, to)),
        ("log_uniform", ..) if from > 0.0 => Ok(Space::LogUniform(from, to)),
        ("log_uniform", ..) => Err(format!("log_uniform: expected low > 0, got {from}")),
        ("int", Some(low), Some(high)) => Ok(Space::Int(low, high)),
        ("int", ..) => Err("int: expected two whole numbers".to_owned()),
        _ => Err(format!("{KINDS}, got {kind}")),
    }
}

fn grid(spaces: &BTreeMap<String, Space>) -> Result<Vec<Settings>, Vec<String>> {
    let mut points = vec![Settings::new()];
    for (key, space) in spaces {
        let Space::Values(values) = space else {
            continue;
        };
        let size = points.len().saturating_mul(values.len());
        if size > TRIALS_MAX {
            return Err(vec![format!(
                "expected at most {TRIALS_MAX} trials, got {size} and more"
            )]);
        }
        let longer = points.iter().flat_map(|point| {
            values.iter().map(|value| {
                let mut point = point.clone();
                point.insert(key.clone(), value.clone());
                point
            })
        });
        points = longer.collect();
    }
    Ok(points)
}

fn list(
    fixed: &BTreeMap<String, Space>,
    list: &[BTreeMap<String, toml::Value>],
) -> Result<Vec<Settings>, Vec<String>> {
    let mut faults = Vec::new();
    let common = grid(fixed)?.pop().unwrap_or_default();
    let mut points = Vec::new();
    for (i, entry) in list.iter().enumerate() {
        let mut point = common.clone();
        for (key, value) in entry {
            check_key(key, &mut faults);
            match Setting::from_toml(value) {
                Ok(setting) => {
                    point.insert(key.clone(), setting);
                }
                Err(fault) => faults.push(format!("trial {}: {key}: {fault}", i + 1)),
            }
        }
        points.push(point);
    }
    if faults.is_empty() {
        Ok(points)
    } else {
        Err(faults)
    }
}

fn draws(
    spaces: &BTreeMap<String, Space>,
    count: usize,
    seed: u64,
) -> Result<Vec<Settings>, Vec<String>> {
    let mut known = BTreeSet::new();
    let mut points = Vec::new();
    for trial in 0..count.min(TRIALS_MAX + 1) {
        // A point that is there already is drawn again.
        let mut tries = (0..DRAWS_MAX).map(|nth| {
            let draw = |(key, space): (&String, &Space)| {
                let bits = bits(seed, trial, nth, key);
                (key.clone(), space.draw(bits))
            };
            spaces.iter().map(draw).collect::<Settings>()
        });
        let Some(point) = tries.find(|point| !known.contains(&id_of(point))) else {
            return Err(vec![format!(
                "expected a space with {count} points, found only {trial}"
            )]);
        };
        known.insert(id_of(&point));
        points.push(point);
    }
    Ok(points)
}

/// 64 random bits of one draw.
fn bits(seed: u64, trial: usize, nth: usize, key: &str) -> u64 {
    let digest = Sha256::digest(format!("sweep 1\n{seed}\n{trial}\n{nth}\n{key}"));
    let first = digest.first_chunk::<8>().expect("a digest has 32 bytes");
    u64::from_be_bytes(*first)
}

impl Space {
    fn draw(&self, bits: u64) -> Setting {
        // From 0 to 1, without 1.
        let part = (bits >> 11) as f64 / (1_u64 << 53) as f64;
        let below = |n: u64| ((u128::from(bits) * u128::from(n)) >> 64) as u64;
        match self {
            Self::Values(values) => values[below(values.len() as u64) as usize].clone(),
            Self::Int(low, high) => {
                let count = high.abs_diff(*low).saturating_add(1);
                Setting::Integer(low.saturating_add_unsigned(below(count)))
            }
            Self::Uniform(low, high) => rounded(low + part * (high - low), *low, *high),
            Self::LogUniform(low, high) => {
                let (from, to) = (low.ln(), high.ln());
                rounded((from + part * (to - from)).exp(), *low, *high)
            }
        }
    }
}

/// Six digits: short to read, and the same whatever the last bit of a platform's `exp` is.
fn rounded(value: f64, low: f64, high: f64) -> Setting {
    let short: f64 = format!("{value:.5e}").parse().unwrap_or(value);
    Setting::from_float(short.clamp(low, high)).expect("between two finite numbers")
}
