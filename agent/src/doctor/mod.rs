//! Whether a machine is fit for a job: provider, store, network, clock, credentials, tokens, disk,
//! memory, trainer; a line for each. Called by `agent doctor`. Everything is asked at once, and
//! what does not answer is given up after seconds.

mod machine;
mod place;
mod remote;

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::error::ExitStatus;
use crate::http::Listen;
use crate::provider::{Environment, Kind};

/// For each check; together they take no longer.
pub const CHECK_MAX: Duration = Duration::from_secs(8);

/// What a check comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Ok,
    /// It works, but slower, or not for long.
    Warning,
    /// A job would fail.
    Error,
}

impl Verdict {
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Check {
    pub check: &'static str,
    pub status: Verdict,
    /// What was found and, where it is not well, what that means.
    pub found: String,
    /// What to do.
    pub hint: Option<String>,
    /// How a job would end, where it would fail.
    #[serde(skip)]
    pub exit: ExitStatus,
}

impl Check {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self {
            check,
            status: Verdict::Ok,
            found: found.into(),
            hint: None,
            exit: ExitStatus::Completed,
        }
    }

    fn warning(check: &'static str, found: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            status: Verdict::Warning,
            hint: Some(hint.into()),
            ..Self::ok(check, found)
        }
    }

    fn error(
        check: &'static str,
        exit: ExitStatus,
        found: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self {
            status: Verdict::Error,
            exit,
            ..Self::warning(check, found, hint)
        }
    }

    /// What did not answer in time.
    fn silent(check: &'static str, hint: &str) -> Self {
        let found = format!("no answer within {} s", CHECK_MAX.as_secs());
        Self::warning(check, found, hint)
    }

    /// `warning  memory      0.9 GiB available: …; hint: …`, on one line whatever was found.
    pub fn line(&self) -> String {
        let one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let hint = self
            .hint
            .as_deref()
            .map(|hint| format!("; hint: {}", one_line(hint)));
        format!(
            "{:<8} {:<11} {}{}",
            self.status.name(),
            self.check,
            one_line(&self.found),
            hint.unwrap_or_default()
        )
    }
}

/// Everything that was looked at.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The worst of the checks.
    pub status: Verdict,
    pub checks: Vec<Check>,
}

impl Report {
    fn new(checks: Vec<Check>) -> Self {
        let worst = checks.iter().map(|check| check.status).max();
        Self {
            status: worst.unwrap_or(Verdict::Ok),
            checks,
        }
    }

    /// How a job would end: by the first error.
    pub fn exit_status(&self) -> ExitStatus {
        let error = |check: &&Check| check.status == Verdict::Error;
        let first = self.checks.iter().find(error);
        first.map_or(ExitStatus::Completed, |check| check.exit)
    }

    /// A line for each check, and how many are not well.
    pub fn lines(&self) -> Vec<String> {
        let count = |verdict| {
            let of = self.checks.iter().filter(|check| check.status == verdict);
            match (of.count(), verdict) {
                (1, Verdict::Error) => "1 error".to_owned(),
                (count, Verdict::Error) => format!("{count} errors"),
                (1, _) => "1 warning".to_owned(),
                (count, _) => format!("{count} warnings"),
            }
        };
        let mut lines: Vec<String> = self.checks.iter().map(Check::line).collect();
        let (errors, warnings) = (count(Verdict::Error), count(Verdict::Warning));
        lines.push(format!(
            "{} checks, {errors}, {warnings}",
            self.checks.len()
        ));
        lines
    }
}

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

#[cfg(test)]
mod tests;
