//! Why the agent ends: what it means for the exit status, for the job and for people.

use crate::error::ExitStatus;
use crate::limits::Timer;

/// Why the agent ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    Completed,
    /// By a signal or a provider's notice.
    Preempted {
        source: String,
    },
    /// By the orchestrator.
    Stopped,
    /// Asked to leave the job to another machine.
    Yielded,
    /// A limit of time or money.
    Limit(Timer),
    LeaseLost {
        holder: String,
    },
    Revoked,
    HeldElsewhere {
        holder: String,
    },
    AlreadyDone {
        status: String,
    },
    /// Exit status 64, 65 or 76 of the trainer.
    TrainerRefuses {
        code: u8,
    },
    /// Too many crashes in a row; the cause of the last.
    Crashed {
        cause: Cause,
        detail: String,
    },
    /// The program could not be started at all.
    CannotStart(String),
    StoreRefused(String),
    StoreUnavailable(String),
    Broken(String),
}

/// Why a trainer process ended that should not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    Crash,
    OutOfMemory,
    NoDevice,
    CannotWrite,
    Stalled,
}

impl Reason {
    pub fn exit_status(&self) -> ExitStatus {
        match self {
            Self::Completed => ExitStatus::Completed,
            Self::Preempted { .. } | Self::Stopped | Self::Yielded => ExitStatus::Resumable,
            // The provider's time is up, not ours; and another machine may be able to train.
            Self::Limit(Timer::Provider) => ExitStatus::Resumable,
            Self::Limit(Timer::FirstStep) => ExitStatus::Retryable,
            Self::Limit(_) => ExitStatus::Limit,
            Self::LeaseLost { .. }
            | Self::Revoked
            | Self::HeldElsewhere { .. }
            | Self::AlreadyDone { .. } => ExitStatus::NotOurs,
            Self::TrainerRefuses { .. } | Self::CannotStart(_) | Self::StoreRefused(_) => {
                ExitStatus::Failed
            }
            Self::Crashed { .. } | Self::StoreUnavailable(_) => ExitStatus::Retryable,
            Self::Broken(_) => ExitStatus::Bug,
        }
    }

    /// Whether this is the end of the job, and not only of this agent's part in it.
    pub fn ends_job(&self) -> bool {
        matches!(self, Self::Completed | Self::TrainerRefuses { .. })
    }

    /// Whether the trainer is asked to save before it goes.
    pub fn is_gentle(&self) -> bool {
        matches!(
            self,
            Self::Preempted { .. } | Self::Stopped | Self::Yielded | Self::Limit(_)
        )
    }

    /// Whether the job now waits for another agent, as far as this one can know.
    pub fn is_queued(&self) -> bool {
        let leaves = matches!(self, Self::Preempted { .. } | Self::Stopped | Self::Yielded);
        leaves || matches!(self, Self::Limit(Timer::Provider | Timer::FirstStep))
    }

    /// Whether this agent has, or had until a moment ago, nothing to lose in the store.
    pub fn is_loss(&self) -> bool {
        matches!(
            self,
            Self::LeaseLost { .. }
                | Self::Revoked
                | Self::HeldElsewhere { .. }
                | Self::AlreadyDone { .. }
        )
    }

    /// The word for programs, as in the status.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Completed => "succeeded",
            Self::Preempted { .. } => "preempted",
            Self::Stopped => "cancelled",
            Self::Yielded => "yielded",
            Self::Limit(timer) => timer.reason(),
            Self::LeaseLost { .. } | Self::Revoked => "lease_lost",
            Self::HeldElsewhere { .. } => "lease_lost_race",
            Self::AlreadyDone { .. } => "already_done",
            Self::TrainerRefuses { code: 76 } => "diverged",
            Self::TrainerRefuses { .. } | Self::CannotStart(_) => "failed",
            Self::Crashed { cause, .. } => match cause {
                Cause::Crash | Cause::NoDevice => "failed",
                Cause::OutOfMemory => "oom_killed",
                Cause::CannotWrite => "disk_full",
                Cause::Stalled => "stalled_killed",
            },
            Self::StoreRefused(_) | Self::StoreUnavailable(_) => "store_unavailable",
            Self::Broken(_) => "agent_broken",
        }
    }

    /// The sentence for people.
    pub fn text(&self) -> String {
        match self {
            Self::Completed => "the job is completed".to_owned(),
            Self::Preempted { source } => format!("stopped by {source}"),
            Self::Stopped => "stopped by the orchestrator".to_owned(),
            Self::Yielded => "leaves the job to another machine, as asked".to_owned(),
            Self::Limit(timer) => timer.text().to_owned(),
            Self::LeaseLost { holder } => format!("the lease was taken by {holder}"),
            Self::Revoked => "the orchestrator took the job away".to_owned(),
            Self::HeldElsewhere { holder } => format!("the job is run by {holder}"),
            Self::AlreadyDone { status } => format!("the job has ended already: {status}"),
            Self::TrainerRefuses { code } => {
                let meaning = protocol::ExitCode::from_code(i32::from(*code));
                let meaning = meaning.map_or_else(|| code.to_string(), |code| code.to_string());
                format!("the trainer exited with {meaning}; a restart would not help")
            }
            Self::Crashed { detail, .. } => format!("too many failures in a row: {detail}"),
            Self::CannotStart(detail) => format!("the trainer cannot be started: {detail}"),
            Self::StoreRefused(detail) => format!("the store cannot be used: {detail}"),
            Self::StoreUnavailable(detail) => format!("the store is not available: {detail}"),
            Self::Broken(detail) => format!("the agent broke down: {detail}"),
        }
    }
}
