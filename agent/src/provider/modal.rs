//! Modal: functions and sandboxes, billed while their process runs.

use std::time::Duration;

use super::api::{GRACE, Provider, Way};
use super::{Environment, PowerOff};

/// The longest that one attempt may run; its own limit is not shown inside.
pub(super) const LONGEST: Duration = Duration::from_secs(24 * 3600);

pub(super) struct Modal {
    url: Option<String>,
}

impl Modal {
    pub(super) fn new(environment: &Environment) -> Self {
        Self {
            url: environment("AGENT_PUBLIC_URL"),
        }
    }
}

impl Provider for Modal {
    fn way(&self, _how: PowerOff) -> Way {
        Way::Exit
    }

    /// Only the program that made the tunnel knows its address.
    fn public_url(&self, _port: u16) -> Option<String> {
        self.url.clone()
    }

    /// SIGINT, then the kill 30 s after.
    fn default_grace(&self) -> Duration {
        GRACE
    }
}
