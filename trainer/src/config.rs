//! The configuration of a run: nanoGPT's keys and ours, where their values come from, and whether
//! they make sense. The command line resolves one before any work; everything else reads it.
//!
//! Keys stand once, in `table`; shipped configs in `configs/`, embedded by `shipped`.

use std::fs;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::{Error, Result};

mod value;
mod table;
mod validate;
mod shipped;
mod python;
mod draft;
mod help;

#[cfg(test)]
mod tests;

use draft::Draft;
pub use table::Config;
pub(crate) use validate::MICRO_STEPS_MAX;

/// A config that is ready to run, and what its user should know about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Resolved {
    pub config: Config,
    /// Name of the shipped config, stem of the file, or `default`.
    pub name: String,
    /// Settings that have no effect here, a line each.
    pub notes: Vec<String>,
}

/// A key in which two configs differ, with both values in TOML.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    pub key: &'static str,
    pub old: String,
    pub new: String,
}

impl Config {
    /// Reads `source`, then `overrides`, over the defaults, and checks the whole.
    ///
    /// `source` is a shipped name (nanoGPT's `train_` in front of it is accepted) or a path: it
    /// contains `/` or ends in `.toml` or `.py`. A `.py` file is read, never executed.
    /// `overrides` are command-line words: `--key=value`, `--key value`, or `--key` for true.
    ///
    /// # Errors
    /// [`Error::Config`] with every fault of file, command line and values.
    pub fn resolve(source: Option<&str>, overrides: &[String]) -> Result<Resolved> {
        let mut draft = Draft::default();
        let name = match source {
            None => "default".to_owned(),
            Some(path) if path.contains('/') || has_config_extension(path) => {
                read_file(&mut draft, path);
                let stem = Path::new(path).file_stem().unwrap_or_default();
                stem.to_string_lossy().into_owned()
            }
            Some(name) => match shipped::find(name) {
                Ok((name, text)) => {
                    draft.toml(text, &format!("configs/{name}.toml"));
                    name.to_owned()
                }
                Err(fault) => {
                    draft.fault(fault);
                    name.to_owned()
                }
            },
        };
        draft.command_line(overrides);
        let (config, faults) = draft.finish();
        if !faults.is_empty() {
            return Err(Error::Config(faults));
        }
        let notes = config.notes();
        Ok(Resolved {
            config,
            name,
            notes,
        })
    }

    /// Reads a run's `config.toml` back. Keys that it lacks take their defaults.
    ///
    /// # Errors
    /// [`Error::Config`] with every fault of the text and its values.
    pub fn from_toml_str(text: &str) -> Result<Self> {
        let mut draft = Draft::default();
        draft.toml(text, "config.toml");
        let (config, faults) = draft.finish();
        if faults.is_empty() {
            Ok(config)
        } else {
            Err(Error::Config(faults))
        }
    }

    /// Every key in table order, a line each, readable by [`Config::resolve`].
    pub fn to_toml(&self) -> String {
        table::KEYS
            .iter()
            .map(|key| format!("{} = {}\n", key.name, (key.get)(self)))
            .collect()
    }

    /// SHA-256 of [`Config::to_toml`], lower-case hexadecimal.
    pub fn hash(&self) -> String {
        let digest = Sha256::digest(self.to_toml());
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// What changed from this config to `other`, in table order.
    pub fn differences(&self, other: &Self) -> Vec<Difference> {
        table::KEYS
            .iter()
            .map(|key| Difference {
                key: key.name,
                old: (key.get)(self).to_string(),
                new: (key.get)(other).to_string(),
            })
            .filter(|difference| difference.old != difference.new)
            .collect()
    }

    /// Tokens that one optimizer step learns from.
    pub fn tokens_per_iteration(&self) -> u64 {
        self.gradient_accumulation_steps
            .saturating_mul(self.batch_size as u64)
            .saturating_mul(self.block_size as u64)
    }

    /// Every key with its type, default and meaning, nanoGPT's first; at most 100 columns wide.
    pub fn help() -> String {
        help::text()
    }

    /// Whether there is a key of this name.
    pub fn has_key(name: &str) -> bool {
        table::find(name).is_some()
    }

    /// Name and text of each config that ships in the binary.
    pub fn shipped() -> &'static [(&'static str, &'static str)] {
        shipped::CONFIGS
    }

    /// Settings away from their defaults that have no effect here.
    fn notes(&self) -> Vec<String> {
        let default = Self::default();
        let mut notes = Vec::new();
        if self.wandb_log {
            notes.push("wandb_log=true has no effect: events.jsonl holds the metrics".to_owned());
        }
        if self.backend != default.backend {
            let backend = &self.backend;
            notes.push(format!(
                "backend={backend} has no effect: a run uses one process"
            ));
        }
        if self.compile != default.compile {
            let compile = self.compile;
            notes.push(format!(
                "compile={compile} has no effect: the program is compiled already"
            ));
        }
        notes
    }
}

fn has_config_extension(path: &str) -> bool {
    [".toml", ".py"].iter().any(|end| path.ends_with(end))
}

/// Reads the config file at `path` into `draft`.
fn read_file(draft: &mut Draft, path: &str) {
    match fs::read_to_string(path) {
        Ok(text) if path.ends_with(".py") => draft.python(&text, path),
        Ok(text) => draft.toml(&text, path),
        Err(error) => {
            let stem = Path::new(path).file_stem().unwrap_or_default();
            let hint = match shipped::find(&stem.to_string_lossy()) {
                Ok((name, _)) => format!("\nhint: --config {name} is built in and needs no file"),
                Err(_) => String::new(),
            };
            draft.fault(format!("cannot read config {path}: {error}{hint}"));
        }
    }
}
