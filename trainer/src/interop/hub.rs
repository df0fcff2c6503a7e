//! Models of the Hugging Face hub: found in its cache, or fetched into it, verified. Called by
//! `init_from` and `trainer import`.
//!
//! The cache is huggingface_hub's, so that Python finds what is fetched here and the other way
//! round: `hub/models--OWNER--NAME/refs/main` names a commit, `snapshots/COMMIT/` holds its files.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use ureq::Agent;

use super::huggingface::{CONFIG, INDEX, TOKENIZER, WEIGHTS, shards};
use crate::checkpoint::atomic_write;
use crate::data::fetch::{self, Wanted};
use crate::error::{Error, Result};

/// Names of nanoGPT's `init_from`, which are repositories of this owner.
pub const NAMES: [&str; 4] = ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"];
const OWNER: &str = "openai-community";
const ENDPOINT: &str = "https://huggingface.co";
const TIMEOUT: Duration = Duration::from_secs(30);
/// An answer about a repository is shorter than this.
const ANSWER_BYTES_MAX: u64 = 16 << 20;

/// Where the hub and its cache are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hub {
    endpoint: String,
    cache: PathBuf,
    offline: bool,
}

/// A file of a repository, as the hub lists it.
#[derive(Debug, Deserialize)]
struct Entry {
    path: String,
    size: u64,
    lfs: Option<Lfs>,
}

#[derive(Debug, Deserialize)]
struct Lfs {
    /// SHA-256, lower-case hexadecimal.
    oid: String,
}

impl Hub {
    /// What the environment says: `HF_ENDPOINT`, `HF_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME`,
    /// `HOME`, `HF_HUB_OFFLINE`.
    pub fn from_environment() -> Self {
        Self::of(|name| env::var_os(name))
    }

    fn of(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let variable = |name| variable(name).filter(|value| !value.is_empty());
        let home = || {
            let caches = variable("XDG_CACHE_HOME")
                .map(PathBuf::from)
                .or_else(|| variable("HOME").map(|home| Path::new(&home).join(".cache")));
            let home = variable("HF_HOME").map(PathBuf::from);
            home.unwrap_or_else(|| caches.unwrap_or_default().join("huggingface"))
        };
        let endpoint = variable("HF_ENDPOINT").and_then(|value| value.into_string().ok());
        let endpoint = endpoint.unwrap_or_else(|| ENDPOINT.to_owned());
        Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            cache: variable("HF_HUB_CACHE").map_or_else(|| home().join("hub"), PathBuf::from),
            offline: variable("HF_HUB_OFFLINE").is_some_and(|value| value != "0"),
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
        let is_name = |part: &str| {
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !part.is_empty() && !part.starts_with('.') && part.chars().all(is_plain)
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
        if self.offline {
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
                 hint: HF_ENDPOINT names a mirror of the hub, HF_HOME a cache that has the model"
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
        #[derive(Deserialize)]
        struct Revision {
            sha: String,
        }
        let base = format!("{}/api/models/{name}", self.endpoint);
        let Revision { sha } = self.ask(&format!("{base}/revision/main"))?;
        if sha.is_empty() || !sha.chars().all(|c| c.is_ascii_hexdigit()) {
            return Err(Error::Data(format!("{base}: a commit of {sha:?}")));
        }
        let entries: Vec<Entry> = self.ask(&format!("{base}/tree/{sha}"))?;
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
                let sources = [format!("{}/{name}/resolve/{sha}/{file}", self.endpoint)];
                let wanted = Wanted {
                    sources: &sources,
                    sha256: entry.lfs.as_ref().map(|lfs| lfs.oid.as_str()),
                    bytes: Some(entry.size),
                };
                fetch::fetch(wanted, &to, &mut |done, all| progress(file, done, all))?;
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
                "{base}: the repository has no {}",
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

    /// An answer of the hub's API.
    fn ask<T: serde::de::DeserializeOwned>(&self, url: &str) -> Result<T> {
        let agent: Agent = Agent::config_builder()
            .timeout_global(Some(TIMEOUT))
            .build()
            .into();
        let fault = |what: String| Error::Data(format!("{url}: {what}"));
        let mut answer = agent
            .get(url)
            .call()
            .map_err(|error| fault(error.to_string()))?;
        let body = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX);
        let bytes = body
            .read_to_vec()
            .map_err(|error| fault(error.to_string()))?;
        serde_json::from_slice(&bytes).map_err(|error| fault(format!("not as expected: {error}")))
    }
}

#[cfg(test)]
mod tests;
