//! The last that can be done without a provider: end this container, or shut this machine down.
//! Called by the ladder when the provider denies everything.

use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;
use tokio::time::{sleep, timeout};

/// Between asking the first process to end and ending it.
const TERM_TO_KILL: Duration = Duration::from_secs(10);
const SHUTDOWN_MAX: Duration = Duration::from_secs(30);

#[async_trait]
pub(super) trait Host: Send + Sync {
    /// Whether the end of our process is the end of the container.
    fn is_first(&self) -> bool;

    /// Ends the container's first process.
    async fn end_container(&self) -> Result<(), String>;

    async fn shut_down(&self) -> Result<(), String>;
}

/// The machine that we run on.
pub(super) struct Machine;

#[async_trait]
impl Host for Machine {
    fn is_first(&self) -> bool {
        std::process::id() == 1
    }

    async fn end_container(&self) -> Result<(), String> {
        for signal in [Signal::TERM, Signal::KILL] {
            kill_process(Pid::INIT, signal).map_err(|error| format!("kill 1: {error}"))?;
            sleep(TERM_TO_KILL).await;
        }
        Err("kill 1: it lives on".to_owned())
    }

    async fn shut_down(&self) -> Result<(), String> {
        let mut faults = Vec::new();
        for words in [&["shutdown", "-h", "now"][..], &["systemctl", "poweroff"]] {
            let mut command = Command::new(words[0]);
            command.args(&words[1..]).kill_on_drop(true);
            command.stdin(Stdio::null()).stdout(Stdio::null());
            let fault = match timeout(SHUTDOWN_MAX, command.output()).await {
                Ok(Ok(output)) if output.status.success() => return Ok(()),
                Ok(Ok(output)) => {
                    let said = String::from_utf8_lossy(&output.stderr);
                    let line = said.lines().next().unwrap_or_default();
                    format!("{} {line}", output.status)
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no end in sight".to_owned(),
            };
            faults.push(format!("{}: {fault}", words.join(" ")));
        }
        Err(faults.join("; "))
    }
}
