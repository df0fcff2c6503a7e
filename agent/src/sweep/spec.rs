//! `spec.json` of a sweep: made from `sweep.toml`, created once, read by every worker. It holds the
//! list of trials itself, so that all derive the same.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::space::{self, Method, Source, Trial, id_of};
use super::{Place, SweepError, micro};
use crate::job::{VERSION, parse, to_bytes};
use crate::storage::{Created, Storage};

const ATTEMPTS_MAX: u32 = 3;
const ETA: u32 = 3;
/// Differences told; the rest is counted.
const DIFFERENCES_MAX: usize = 5;

/// `sweep.toml` as a person writes it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: Option<String>,
    command: Option<Vec<String>>,
    method: Method,
    trials: Option<usize>,
    seed: Option<u64>,
    attempts_max: Option<u32>,
    #[serde(default)]
    keys: BTreeMap<String, toml::Value>,
    #[serde(default)]
    trial: Vec<BTreeMap<String, toml::Value>>,
    budget: Option<Budget>,
    halving: Option<HalvingFile>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct HalvingFile {
    first_step: u64,
    eta: Option<u32>,
}

/// What all workers together may spend, in dollars.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    pub usd: f64,
    /// What one claim of a trial may cost at most: reserved before it, and then its limit. A trial
    /// that needs more is claimed again, from its newest checkpoint.
    pub claim_usd: f64,
}

/// Asynchronous successive halving: at `first_step * eta^r` updates a trial goes on only if it is
/// in the best `1/eta` of those that came as far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Halving {
    pub first_step: u64,
    pub eta: u32,
}

/// `spec.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    pub version: u32,
    pub name: String,
    /// The trainer and the flags that all trials share.
    pub command: Vec<String>,
    pub method: Method,
    /// A trial that failed so often is given up.
    pub attempts_max: u32,
    pub budget: Option<Budget>,
    pub halving: Option<Halving>,
    pub trials: Vec<Trial>,
}

/// What became of a creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Creation {
    New,
    /// The same sweep was there.
    Same,
}

impl Halving {
    /// The step of a rung, from 0; `None` beyond what a run can have.
    pub fn step(&self, rung: u32) -> Option<u64> {
        let factor = u64::from(self.eta).checked_pow(rung)?;
        self.first_step.checked_mul(factor)
    }
}

impl Spec {
    /// What a file means. `name` goes before the file's own.
    ///
    /// # Errors
    /// With every fault of the file.
    pub fn from_toml(text: &str, name: Option<&str>) -> Result<Self, SweepError> {
        let file: File = toml::from_str(text)
            .map_err(|error| SweepError::Spec(vec![error.to_string().trim_end().to_owned()]))?;
        let mut faults = Vec::new();
        let name = name.map(str::to_owned).or(file.name);
        let Some(name) = name else {
            faults.push("name: expected in the file or by --name".to_owned());
            return Err(SweepError::Spec(faults));
        };
        if file.seed.is_some() && file.method != Method::Random {
            faults.push("seed: expected with method = \"random\" only".to_owned());
        }
        let command = file.command.unwrap_or_else(|| vec!["trainer".to_owned()]);
        if command
            .first()
            .is_none_or(|program| program.starts_with('-'))
        {
            faults.push("command: expected a program and its flags".to_owned());
        }
        let attempts_max = file.attempts_max.unwrap_or(ATTEMPTS_MAX);
        if attempts_max == 0 {
            faults.push("attempts_max: expected at least 1".to_owned());
        }
        if let Some(Budget { usd, claim_usd }) = file.budget {
            let sound = usd.is_finite() && claim_usd.is_finite();
            if !sound || micro(claim_usd) == 0 || usd < claim_usd {
                faults.push(format!(
                    "budget: expected 0 < claim_usd <= usd, got {claim_usd} and {usd}"
                ));
            }
        }
        let halving = file.halving.map(|halving| Halving {
            first_step: halving.first_step,
            eta: halving.eta.unwrap_or(ETA),
        });
        if halving.is_some_and(|halving| halving.eta < 2 || halving.first_step == 0) {
            faults.push("halving: expected first_step >= 1 and eta >= 2".to_owned());
        }
        let source = Source {
            method: file.method,
            keys: &file.keys,
            list: &file.trial,
            trials: file.trials,
            seed: file.seed.unwrap_or(0),
        };
        let trials = match space::trials(&source) {
            Ok(trials) => trials,
            Err(SweepError::Spec(more)) => {
                faults.extend(more);
                Vec::new()
            }
            Err(error) => return Err(error),
        };
        if !faults.is_empty() {
            return Err(SweepError::Spec(faults));
        }
        Ok(Self {
            version: VERSION,
            name,
            command,
            method: file.method,
            attempts_max,
            budget: file.budget,
            halving,
            trials,
        })
    }

    /// Creates the sweep in a store.
    ///
    /// # Errors
    /// [`SweepError::Differs`] if another of this name is there; or of the store.
    pub async fn create(&self, store: &dyn Storage, place: &Place) -> Result<Creation, SweepError> {
        let key = place.spec();
        if let Created::New(_) = store.create(&key, to_bytes(self)).await? {
            return Ok(Creation::New);
        }
        let there = store.get(&key).await?;
        let there: Value = parse(store, &key, &there.bytes)?;
        let ours = serde_json::to_value(self).expect("a spec holds only JSON");
        let mut differences = Vec::new();
        compare("", &there, &ours, &mut differences);
        if differences.is_empty() {
            return Ok(Creation::Same);
        }
        let more = differences.len().saturating_sub(DIFFERENCES_MAX);
        differences.truncate(DIFFERENCES_MAX);
        if more > 0 {
            differences.push(format!("and {more} more"));
        }
        let key = format!("{}: {key}", store.name());
        Err(SweepError::Differs { key, differences })
    }

    /// Reads a sweep and checks that its trials bear their own names.
    ///
    /// # Errors
    /// Of the store, `Missing` among them; or if it is not such a record.
    pub async fn read(store: &dyn Storage, place: &Place) -> Result<Self, SweepError> {
        let key = place.spec();
        let spec: Self = parse(store, &key, &store.get(&key).await?.bytes)?;
        let wrong = spec.trials.iter().find(|it| it.id != id_of(&it.settings));
        let detail = match wrong {
            Some(trial) => format!("trial {} does not bear the hash of its settings", trial.id),
            None if spec.command.is_empty() => "no command".to_owned(),
            None => return Ok(spec),
        };
        let key = format!("{}: {key}", store.name());
        Err(SweepError::Spec(vec![format!("{key}: {detail}")]))
    }

    /// The keys in which trials differ.
    pub fn varied(&self) -> Vec<String> {
        let mut keys: Vec<&String> = self
            .trials
            .iter()
            .flat_map(|it| it.settings.keys())
            .collect();
        keys.sort_unstable();
        keys.dedup();
        let first = self.trials.first().map(|trial| &trial.settings);
        let differs = |key: &&String| {
            let of_first = first.and_then(|settings| settings.get(*key));
            let mut others = self.trials.iter().map(|trial| trial.settings.get(*key));
            others.any(|value| value != of_first)
        };
        keys.into_iter().filter(differs).cloned().collect()
    }
}

/// Notes where two documents differ, with both values.
fn compare(path: &str, there: &Value, ours: &Value, differences: &mut Vec<String>) {
    let shown = |value: Option<&Value>| value.map_or("nothing".to_owned(), Value::to_string);
    match (there, ours) {
        (Value::Object(a), Value::Object(b)) => {
            let keys = a.keys().chain(b.keys().filter(|key| !a.contains_key(*key)));
            for key in keys {
                let path = match path {
                    "" => key.clone(),
                    path => format!("{path}.{key}"),
                };
                match (a.get(key), b.get(key)) {
                    (Some(a), Some(b)) => compare(&path, a, b, differences),
                    (a, b) => {
                        let (a, b) = (shown(a), shown(b));
                        differences.push(format!("{path}: there is {a}, wanted is {b}"));
                    }
                }
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (i, (a, b)) in a.iter().zip(b).enumerate() {
                compare(&format!("{path}[{i}]"), a, b, differences);
            }
        }
        (Value::Array(a), Value::Array(b)) => {
            let (a, b) = (a.len(), b.len());
            differences.push(format!("{path}: there are {a}, wanted are {b}"));
        }
        (a, b) if a != b => differences.push(format!("{path}: there is {a}, wanted is {b}")),
        _ => {}
    }
}
