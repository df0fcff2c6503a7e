//! Whether a machine is fit to train: one line for each thing that is looked at, with what it means
//! and what to do. Called by `trainer doctor`. Nothing here takes more than a few seconds.

mod gpu;
mod host;
mod disk;
mod run;

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use protocol::ExitCode;
use serde::Serialize;

use crate::config::{Config, Resolved};
use crate::error::Result;

/// What a check comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Ok,
    /// It works, but slower, or not for long.
    Warning,
    /// A run would fail.
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
    /// How a run would end, where it would fail.
    #[serde(skip)]
    pub code: ExitCode,
}

impl Check {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self {
            check,
            status: Verdict::Ok,
            found: found.into(),
            hint: None,
            code: ExitCode::Finished,
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
        code: ExitCode,
        found: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self {
            status: Verdict::Error,
            code,
            ..Self::warning(check, found, hint)
        }
    }

    /// An error of the program's own kind: its first line is what was found, its hints what to do.
    fn failed(check: &'static str, code: ExitCode, error: &crate::Error) -> Self {
        let text = error.to_string();
        let (hints, faults): (Vec<&str>, Vec<&str>) =
            text.lines().partition(|line| line.starts_with("hint: "));
        let hints: Vec<&str> = hints.iter().map(|hint| &hint["hint: ".len()..]).collect();
        Self {
            hint: (!hints.is_empty()).then(|| hints.join("; ")),
            ..Self::error(check, code, faults.join("; "), "")
        }
    }

    /// `warning  memory      0.9 GiB available: …; hint: …`
    pub fn line(&self) -> String {
        let hint = self.hint.as_ref().map(|hint| format!("; hint: {hint}"));
        format!(
            "{:<8} {:<11} {}{}",
            self.status.name(),
            self.check,
            self.found,
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

    /// How a run would end: by the first error.
    pub fn exit_code(&self) -> ExitCode {
        let error = |check: &&Check| check.status == Verdict::Error;
        let first = self.checks.iter().find(error);
        first.map_or(ExitCode::Finished, |check| check.code)
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

/// Looks at the machine, for the config where one was given: `named` says so. A config with faults
/// is one of the findings, and the rest is looked at with the defaults.
pub fn examine(config: Result<Resolved>, named: bool) -> Report {
    let mut checks = Vec::new();
    let config = match config {
        Ok(resolved) => {
            if named {
                checks.push(run::config(&resolved));
            }
            resolved.config
        }
        Err(error) => {
            checks.push(Check::failed("config", ExitCode::Config, &error));
            Config::default()
        }
    };
    checks.extend(gpu::checks(&config));
    checks.extend(host::checks(&config));
    checks.extend(disk::checks(&config));
    checks.extend(run::checks(&config, named));
    Report::new(checks)
}

/// What `look` finds, unless that takes too long: a disk behind a dead network answers never.
fn in_time<T: Send + 'static>(
    at_most: Duration,
    look: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        // Whoever asked may have gone.
        send.send(look()).ok();
    });
    receive.recv_timeout(at_most).ok()
}

#[cfg(test)]
mod tests;
