//! Whether a machine is fit for a job: provider, store, network, clock, credentials, tokens, disk,
//! memory, trainer; a line for each. Called by `agent doctor`. Everything is asked at once, and
//! what does not answer is given up after seconds.

mod machine;
mod place;
mod remote;

use std::path::PathBuf;
use std::time::Duration;

use crate::error::ExitStatus;
use crate::http::Listen;
use crate::provider::{Environment, Kind};

/// For each check; together they take no longer.
pub const CHECK_MAX: Duration = Duration::from_secs(8);

pub type Check = protocol::doctor::Check<ExitStatus>;
pub type Report = protocol::doctor::Report<ExitStatus>;

/// What is to be looked at.
pub struct Asked {
    /// A bucket or a folder; what is written there is removed again.
    pub store: Option<String>,
    /// Whose machine it is, where that is told.
    pub provider: Option<Kind>,
    /// Where the trainer's directory will be.
    pub run_dir: PathBuf,
    /// Where the HTTP API is to be; `None` = off.
    pub listen: Option<Listen>,
    /// Dollars an hour, where that is told.
    pub price: Option<f64>,
    /// Where variables are looked up.
    pub environment: Environment,
}

/// Looks at the machine and at what it talks to.
pub async fn examine(asked: &Asked) -> Report {
    let (provider, metadata, store, disk, trainer) = tokio::join!(
        remote::provider(asked),
        remote::metadata(asked),
        remote::store(asked),
        place::disk(&asked.run_dir),
        place::trainer(),
    );
    let mut checks = provider;
    checks.push(metadata);
    checks.extend(store);
    checks.push(machine::credentials(asked));
    checks.push(machine::tokens(asked));
    checks.push(disk);
    checks.push(place::memory());
    checks.push(trainer);
    checks.push(machine::first_process(std::path::Path::new("/")));
    Report::new(checks)
}

/// What did not answer in time.
fn silent(check: &'static str, hint: &str) -> Check {
    let found = format!("no answer within {} s", CHECK_MAX.as_secs());
    Check::warning(check, found, hint)
}

#[cfg(test)]
mod tests;
