//! A sweep: many trials of one trainer, each an ordinary job, done by any number of workers that
//! know of each other only through the store. Called by the command line.
//!
//! ```text
//! sweeps/<s>/spec.json              created once: the command, the trials, the rules
//! sweeps/<s>/trials/<hash>/…        a job, as any other
//! sweeps/<s>/budget/<n:08>.json     created once each: entry n+1 holds the new totals
//! sweeps/<s>/rungs/<r:02>/<hash>.json   created once: how a trial fared at a rung
//! ```

mod space;
mod spec;
mod ledger;
mod rungs;
mod trial;
mod watcher;
mod life;
mod work;
mod status;
#[cfg(test)]
mod tests;

pub use ledger::{Account, Ledger, Reservation, Reserve};
pub use life::Bounds;
pub use rungs::{Rungs, Verdict};
pub use space::{Method, Setting, Settings, TRIALS_MAX, Trial, id_of};
pub use spec::{Budget, Creation, Halving, Spec};
pub use status::{Overview, Row, TrialState, overview};
pub use work::{Plan, work};

use crate::error::Error;
use crate::job::{Job, JobError};
use crate::storage::StorageError;

/// The folder of all sweeps.
const SWEEPS: &str = "sweeps";

/// What can go wrong with a sweep.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// The file or the spec asks for what cannot be; every fault.
    #[error("{}", .0.join("\n"))]
    Spec(Vec<String>),
    /// Another sweep of this name is there.
    #[error(
        "{key} is another sweep: {}\nhint: give this one another name",
        differences.join("; ")
    )]
    Differs {
        key: String,
        differences: Vec<String>,
    },
    #[error(transparent)]
    Job(#[from] JobError),
}

impl From<StorageError> for SweepError {
    fn from(error: StorageError) -> Self {
        Self::Job(error.into())
    }
}

impl From<SweepError> for Error {
    fn from(error: SweepError) -> Self {
        match error {
            SweepError::Job(JobError::Storage(error)) => Self::Storage(error),
            SweepError::Job(error) => Self::Bad(error.to_string()),
            error => Self::Usage(error.to_string()),
        }
    }
}

impl SweepError {
    /// Whether trying again can help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Job(error) if error.is_transient())
    }
}

/// A sweep's place in a store: makes keys, touches nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    id: String,
}

impl Place {
    /// The place of a sweep of this name.
    ///
    /// # Errors
    /// If the name could not be part of a key in every store.
    pub fn new(name: &str) -> Result<Self, JobError> {
        let id = format!("{SWEEPS}/{name}");
        if name.contains('/') {
            return Err(JobError::Name { id });
        }
        Ok(Self {
            id: Job::new(id)?.id().to_owned(),
        })
    }

    /// A store's location and the name from `s3://bucket/prefix/sweeps/NAME` or a folder so named.
    pub fn split(location: &str) -> Option<(&str, &str)> {
        let (above, name) = location.trim_end_matches('/').rsplit_once('/')?;
        let store = above.strip_suffix(SWEEPS)?;
        match store.strip_suffix('/') {
            // A bucket of that name.
            Some(store) if store.ends_with('/') => None,
            Some("") => Some(("/", name)),
            Some(store) => Some((store, name)),
            None if store.is_empty() => Some((".", name)),
            None => None,
        }
    }

    pub fn spec(&self) -> String {
        format!("{}/spec.json", self.id)
    }

    /// A trial as a job.
    ///
    /// # Errors
    /// If the id cannot be part of a key.
    pub fn trial(&self, id: &str) -> Result<Job, JobError> {
        Job::new(format!("{}/trials/{id}", self.id))
    }

    pub fn budgets(&self) -> String {
        format!("{}/budget/", self.id)
    }

    pub fn budget(&self, n: u64) -> String {
        format!("{}/budget/{n:08}.json", self.id)
    }

    pub fn rungs(&self, rung: u32) -> String {
        format!("{}/rungs/{rung:02}/", self.id)
    }

    pub fn rung(&self, rung: u32, trial: &str) -> String {
        format!("{}/rungs/{rung:02}/{trial}.json", self.id)
    }
}

/// Dollars in millionths, which add up exactly; rounded up.
pub(crate) fn micro(usd: f64) -> u64 {
    (usd * 1e6).ceil().max(0.0) as u64
}

/// Millionths in dollars.
pub(crate) fn usd(micro: u64) -> f64 {
    micro as f64 / 1e6
}
