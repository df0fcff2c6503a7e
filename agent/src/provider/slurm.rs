//! Slurm: an allocation ends with its batch script.

use std::time::{Duration, SystemTime};

use super::api::{GRACE, Provider, Way};
use super::{Environment, PowerOff};

pub(super) struct Slurm;

impl Provider for Slurm {
    fn way(&self, _how: PowerOff) -> Way {
        Way::Exit
    }

    /// `KillWait`, where nobody set it; `--signal` gives what its offset says.
    fn default_grace(&self) -> Duration {
        GRACE
    }
}

/// Until the allocation's end, which Slurm gives in seconds since 1970.
pub(super) fn ends_in(environment: &Environment) -> Option<Duration> {
    let end_s: u64 = environment("SLURM_JOB_END_TIME")?.parse().ok()?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    Some(Duration::from_secs(end_s).saturating_sub(now.ok()?))
}
