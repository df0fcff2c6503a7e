//! Models of the Hugging Face hub: found in its cache, or fetched into it, verified. Called by
//! `init_from` and `trainer import`.
//!
//! The cache is huggingface_hub's, so that Python finds what is fetched here and the other way
//! round: `hub/models--OWNER--NAME/refs/main` names a commit, `snapshots/COMMIT/` holds its files.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use super::huggingface::{CONFIG, INDEX, TOKENIZER, WEIGHTS, shards};
use crate::checkpoint::atomic_write;
use crate::data::fetch::{self, Access, Wanted};
use crate::data::hub::{self, Repository, is_name};
use crate::error::{Error, Result};

/// Names of nanoGPT's `init_from`, which are repositories of this owner.
pub const NAMES: [&str; 4] = ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"];
const OWNER: &str = "openai-community";

/// Where the hub and its cache are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hub {
    hub: hub::Hub,
    cache: PathBuf,
}

impl Hub {
    /// What the environment says: `HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_OFFLINE`; `HF_HUB_CACHE`,
    /// `HF_HOME`, `XDG_CACHE_HOME`, `HOME`.
    pub fn from_environment() -> Self {
        Self::of(|name| env::var_os(name))
    }

    fn of(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let home = || {
            let caches = variable("XDG_CACHE_HOME")
                .map(PathBuf::from)
                .or_else(|| variable("HOME").map(|home| Path::new(&home).join(".cache")));
            let home = variable("HF_HOME").map(PathBuf::from);
            home.unwrap_or_else(|| caches.unwrap_or_default().join("huggingface"))
        };
        Self {
            hub: hub::Hub::of(|name| variable(name)?.into_string().ok()),
            cache: variable("HF_HUB_CACHE").map_or_else(|| home().join("hub"), PathBuf::from),
        }
    }

    /// The folder of the model that `what` names: a folder, `OWNER/NAME`, or one of [`NAMES`].
    /// `progress` hears the file, its bytes at hand and all of them.
    ///
    /// # Errors
    /// [`Error::Data`] if it is neither here nor to be had, [`Error::Write`] if the cache refuses.
    pub fn folder(
        &self,
        what: &str,
        progress: &mut dyn FnMut(&str, u64, Option<u64>),
    ) -> Result<PathBuf> {
        if Path::new(what).is_dir() {
            return Ok(PathBuf::from(what));
        }
        let repository = if NAMES.contains(&what) {
            format!("{OWNER}/{what}")
        } else {
            what.to_owned()
        };
        let named = repository.split_once('/');
        if !named.is_some_and(|(owner, name)| is_name(owner) && is_name(name)) {
            return Err(Error::Data(format!(
                "{what}: no such folder, and no OWNER/NAME of the Hugging Face hub"
            )));
        }
        for repository in [what, &repository] {
            if let Some(folder) = self.cached(repository) {
                return Ok(folder);
            }
        }
        if self.hub.offline {
            return Err(Error::Data(format!(
                "{repository} is not in the cache {}, and HF_HUB_OFFLINE forbids to fetch it",
                self.cache.display()
            )));
        }
        self.fetch(&repository, progress)
            .map_err(|error| match error {
                Error::Data(message) => Error::Data(format!(
                    "{message}\n\
                 hint: a folder that holds {CONFIG} and {WEIGHTS} will do: --init_from=./FOLDER\n\
                 hint: HF_ENDPOINT names a mirror of the hub, HF_HOME a cache that has the model\n\
                 hint: HF_TOKEN is a token for models that are not open to all"
                )),
                other => other,
            })
    }

    fn repository(&self, name: &str) -> PathBuf {
        self.cache
            .join(format!("models--{}", name.replace('/', "--")))
    }

    /// The snapshot that `main` names, if it holds a model.
    fn cached(&self, name: &str) -> Option<PathBuf> {
        let repository = self.repository(name);
        let commit = fs::read_to_string(repository.join("refs/main")).ok()?;
        let folder = repository.join("snapshots").join(commit.trim());
        let has = |name: &str| folder.join(name).exists();
        (has(CONFIG) && (has(WEIGHTS) || has(INDEX))).then_some(folder)
    }

    /// Fetches what a model needs, each file verified by the hub's digest; the reference last, so
    /// that half a model is never found.
    fn fetch(
        &self,
        name: &str,
        progress: &mut dyn FnMut(&str, u64, Option<u64>),
    ) -> Result<PathBuf> {
        let of = Repository {
            is_dataset: false,
            name,
        };
        let (sha, entries) = self.hub.files(of, "main", "")?;
        let repository = self.repository(name);
        let folder = repository.join("snapshots").join(&sha);
        fs::create_dir_all(&folder).map_err(Error::write(&folder))?;
        let mut get = |file: &str| -> Result<bool> {
            let Some(entry) = entries.iter().find(|entry| entry.path == file) else {
                return Ok(false);
            };
            let to = folder.join(file);
            let whole = to.metadata().is_ok_and(|about| about.len() == entry.size);
            if !whole {
                let sources = [self.hub.address(of, &sha, file)];
                let wanted = Wanted {
                    sources: &sources,
                    sha256: entry.sha256.as_deref(),
                    bytes: Some(entry.size),
                };
                let access = Access {
                    bearer: self.hub.token.as_deref(),
                    ..Access::default()
                };
                let mut progress = |done, all| progress(file, done, all);
                fetch::fetch_with(wanted, access, &to, &mut progress)?;
            }
            Ok(true)
        };
        let mut missing = Vec::new();
        if !get(CONFIG)? {
            missing.push(CONFIG.to_owned());
        }
        if !get(WEIGHTS)? {
            let index = folder.join(INDEX);
            let names = if get(INDEX)? {
                let bytes = fs::read(&index).map_err(Error::read(&index))?;
                shards(&bytes).unwrap_or_default()
            } else {
                vec![WEIGHTS.to_owned()]
            };
            for name in names {
                if !get(&name)? {
                    missing.push(name);
                }
            }
        }
        if !missing.is_empty() {
            return Err(Error::Data(format!(
                "{name}: the repository has no {}",
                missing.join(", ")
            )));
        }
        // GPT-2's own is built in.
        get(TOKENIZER)?;
        let refs = repository.join("refs");
        fs::create_dir_all(&refs).map_err(Error::write(&refs))?;
        atomic_write(&refs.join("main"), sha.as_bytes())?;
        Ok(folder)
    }
}

#[cfg(test)]
mod tests;
