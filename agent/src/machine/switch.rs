//! Giving the machine back: by a command that the user named, else by the provider's adapter.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::{sleep, timeout};

use crate::provider::{Adapter, Outcome, PowerOff};

/// One try of the user's command.
const COMMAND_MAX: Duration = Duration::from_secs(60);
/// Between two tries; it doubles.
const WAIT_FIRST: Duration = Duration::from_secs(1);
const WAIT_MAX: Duration = Duration::from_secs(60);

/// How this machine is given back.
pub struct Switch {
    adapter: Adapter,
    /// Run by `sh -c` instead of asking the provider; success is its exit status 0.
    command: Option<String>,
}

impl Switch {
    pub fn new(adapter: Adapter, command: Option<String>) -> Self {
        Self { adapter, command }
    }

    pub fn adapter(&self) -> &Adapter {
        &self.adapter
    }

    /// Tries for as long as this process lives, until the machine is gone as far as can be known or
    /// the end of this process is what is left to do. `say` gets a line on each failure.
    pub async fn power_off(&self, how: PowerOff, mut say: impl FnMut(String)) -> Outcome {
        if how == PowerOff::None {
            return Outcome::Accepted;
        }
        let Some(command) = &self.command else {
            return self.adapter.power_off_until_gone(how, say).await;
        };
        let mut wait = WAIT_FIRST;
        loop {
            match attempt(command, how).await {
                Ok(()) => return Outcome::Accepted,
                Err(why) => say(format!("the power-off command: {why}; trying again")),
            }
            sleep(wait).await;
            wait = (wait * 2).min(WAIT_MAX);
        }
    }

    /// What would be done, in order, with secrets masked.
    pub fn requests(&self, how: PowerOff) -> Vec<String> {
        match (&self.command, how) {
            (_, PowerOff::None) => Vec::new(),
            (Some(_), _) => vec!["the power-off command, by sh -c".to_owned()],
            (None, _) => self.adapter.requests(how),
        }
    }
}

async fn attempt(command: &str, how: PowerOff) -> Result<(), String> {
    let how = match how {
        PowerOff::None => "none",
        PowerOff::Stop => "stop",
        PowerOff::Destroy => "destroy",
    };
    let mut child = Command::new("sh")
        .arg("-c")
        .arg(command)
        .env("AGENT_POWER_OFF", how)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| error.to_string())?;
    match timeout(COMMAND_MAX, child.wait()).await {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(status.to_string()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("not done within {} s", COMMAND_MAX.as_secs())),
    }
}
