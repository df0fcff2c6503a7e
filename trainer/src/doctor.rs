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

use crate::config::{Config, Resolved};
use crate::error::Result;

pub type Check = protocol::doctor::Check<ExitCode>;
pub type Report = protocol::doctor::Report<ExitCode>;

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
            checks.push(failed("config", ExitCode::Config, &error));
            Config::default()
        }
    };
    checks.extend(gpu::checks(&config));
    checks.extend(host::checks(&config));
    checks.extend(disk::checks(&config));
    checks.extend(run::checks(&config, named));
    Report::new(checks)
}

/// An error of the program's own kind: its first line is what was found, its hints what to do.
fn failed(check: &'static str, exit: ExitCode, error: &crate::Error) -> Check {
    let text = error.to_string();
    let (hints, faults): (Vec<&str>, Vec<&str>) =
        text.lines().partition(|line| line.starts_with("hint: "));
    let hints: Vec<&str> = hints.iter().map(|hint| &hint["hint: ".len()..]).collect();
    Check {
        hint: (!hints.is_empty()).then(|| hints.join("; ")),
        ..Check::error(check, exit, faults.join("; "), "")
    }
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
