//! What a job may take of time and money, and since when its machine counts. Held by the
//! supervisor's state, filled by the command line, changed by commands.
//!
//! Every limit is finite unless somebody writes `off`. All times are of the boot clock.

use std::time::Duration;

use crate::provider::Kind;

#[cfg(test)]
mod tests;

/// A machine whose first process began this soon after its boot was booted to run it.
const INIT_WITHIN: Duration = Duration::from_secs(120);
/// A machine that has been up for longer than this was not booted for this job.
const BOOTED_FOR_US: Duration = Duration::from_secs(3600);

/// The limits of one agent; `None` = off.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// From the container's start to the moment that the machine is off.
    pub wall: Option<Duration>,
    /// With nothing to supervise: no trainer, no restore, no upload, no command.
    pub idle: Option<Duration>,
    /// A trainer that trains and reports nothing is restarted.
    pub stall: Option<Duration>,
    /// From the container's start until the store is known to work.
    pub boot: Option<Duration>,
    /// From then on until the lease is ours, where we do not stand by.
    pub claim: Option<Duration>,
    /// One restore.
    pub restore: Option<Duration>,
    /// One trainer's preparation of its data.
    pub fetch: Option<Duration>,
    /// With the lease but without a step, restores and data aside.
    pub first_step: Option<Duration>,
    /// What the job may cost, all its machines together.
    pub budget_usd: Option<f64>,
    /// What this machine may cost while another has the job.
    pub standby_usd: Option<f64>,
    /// Somebody must say this often that the job is still wanted.
    pub keepalive: Option<Duration>,
    /// The provider ends the machine this long after the agent's start.
    pub provider: Option<Duration>,
}

impl Default for Limits {
    fn default() -> Self {
        let minutes = |n: u64| Some(Duration::from_secs(n * 60));
        Self {
            wall: minutes(24 * 60),
            idle: minutes(30),
            stall: minutes(15),
            boot: minutes(15),
            claim: minutes(30),
            restore: minutes(60),
            fetch: minutes(120),
            first_step: minutes(45),
            budget_usd: None,
            standby_usd: None,
            keepalive: None,
            provider: None,
        }
    }
}

/// Which limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    Wall,
    Provider,
    Budget,
    KeepAlive,
    Idle,
    Boot,
    Claim,
    Restore,
    Fetch,
    FirstStep,
    Standby,
}

impl Timer {
    /// The word for programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Wall => "wall",
            Self::Provider => "provider",
            Self::Budget => "budget",
            Self::KeepAlive => "keepalive",
            Self::Idle => "idle",
            Self::Boot => "boot",
            Self::Claim => "claim",
            Self::Restore => "restore",
            Self::Fetch => "fetch",
            Self::FirstStep => "first_step",
            Self::Standby => "standby",
        }
    }

    /// The reason of an end by it, as in the status.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Wall => "max_duration_exceeded",
            Self::Provider => "time_slice_over",
            Self::Budget => "budget_exceeded",
            Self::KeepAlive => "keepalive_expired",
            Self::Idle => "idle_exceeded",
            Self::Boot => "boot_deadline_exceeded",
            Self::Claim => "claim_deadline_exceeded",
            Self::Restore => "restore_deadline_exceeded",
            Self::Fetch => "fetch_deadline_exceeded",
            Self::FirstStep => "first_step_deadline_exceeded",
            Self::Standby => "standby_budget_exceeded",
        }
    }

    /// The sentence for people.
    pub fn text(self) -> &'static str {
        match self {
            Self::Wall => "the wall-clock limit is reached",
            Self::Provider => "the provider's time is up",
            Self::Budget => "the budget is used up",
            Self::KeepAlive => "nobody has said for too long that the job is wanted",
            Self::Idle => "there was nothing to do for too long",
            Self::Boot => "the store did not answer before the boot deadline",
            Self::Claim => "the lease was not ours before the claim deadline",
            Self::Restore => "the checkpoint was not here before the restore deadline",
            Self::Fetch => "the data was not ready before the fetch deadline",
            Self::FirstStep => "this machine made no step before the first-step deadline",
            Self::Standby => "the standby budget is used up",
        }
    }
}

/// For how long this machine has counted when the agent starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Age {
    /// For limits of time: since the container's start.
    pub wall: Duration,
    /// For money: booting is paid for, too.
    pub paid: Duration,
}

impl Age {
    /// The age of a machine that has been `up` for so long, whose first process began `init` after
    /// its boot. On a machine that serves more than this job, the agent's start is all that counts.
    pub fn of(kind: Kind, up: Duration, init: Duration) -> Self {
        let virtual_machine = match kind {
            Kind::Local | Kind::Slurm => return Self::default(),
            Kind::Lambda | Kind::Aws | Kind::Gcp | Kind::Azure | Kind::Paperspace => true,
            Kind::Vast
            | Kind::RunPod
            | Kind::Modal
            | Kind::JarvisLabs
            | Kind::Colab
            | Kind::Replicate
            | Kind::Kubernetes => false,
        };
        let fresh = up <= BOOTED_FOR_US;
        let wall = if init > INIT_WITHIN {
            up.saturating_sub(init)
        } else if fresh {
            up
        } else {
            Duration::ZERO
        };
        let paid = if virtual_machine && fresh { up } else { wall };
        Self { wall, paid }
    }

    /// As the kernel tells it.
    pub fn of_this_machine(kind: Kind, up: Duration) -> Self {
        let stat = std::fs::read_to_string("/proc/1/stat").unwrap_or_default();
        match start_of_process(&stat) {
            Some(init) => Self::of(kind, up, init),
            // Hidden from us: no more is known than that we are here.
            None => Self::default(),
        }
    }
}

/// When a process began, from its `stat` in `/proc`: the 22nd field, in hundredths of a second.
fn start_of_process(stat: &str) -> Option<Duration> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let ticks: u64 = fields.split(' ').nth(19)?.parse().ok()?;
    Some(Duration::from_millis(ticks.checked_mul(10)?))
}
