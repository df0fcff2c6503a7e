//! What the agent itself can fail of, and what its exit status tells the one who started it.

use std::fmt;

use crate::storage::StorageError;

/// Exit statuses of the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// The trainer finished and its last checkpoint is verified in the store.
    Completed = 0,
    /// The store that was probed cannot hold a lease.
    Unfit = 1,
    /// Failed for good: the same would happen elsewhere.
    Failed = 10,
    /// Failed here; another try, perhaps on another machine, can succeed.
    Retryable = 11,
    /// Stopped or preempted: whoever starts the job again goes on from its newest checkpoint.
    Resumable = 12,
    /// Another agent has the job, or it is done already. Do not retry.
    NotOurs = 13,
    /// A limit of time or money was reached.
    Limit = 14,
    /// Bad usage.
    Usage = 64,
    /// A fault of the agent.
    Bug = 70,
}

impl ExitStatus {
    /// The process exit status.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// What a process exit status of an agent means; any other is a fault of it.
    pub fn of_code(code: u8) -> Self {
        let all = [
            Self::Completed,
            Self::Unfit,
            Self::Failed,
            Self::Retryable,
            Self::Resumable,
            Self::NotOurs,
            Self::Limit,
            Self::Usage,
        ];
        all.into_iter()
            .find(|status| status.code() == code)
            .unwrap_or(Self::Bug)
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Completed => "completed",
            Self::Unfit => "the store holds no lease",
            Self::Failed => "failed",
            Self::Retryable => "failed, worth another try",
            Self::Resumable => "stopped, resumable",
            Self::NotOurs => "the job is not ours",
            Self::Limit => "a limit was reached",
            Self::Usage => "bad usage",
            Self::Bug => "fault of the agent",
        };
        write!(f, "{} ({text})", self.code())
    }
}

/// What ends a command before or beside the supervision of a trainer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line or an environment variable asks for something that cannot be.
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// Something on this machine: a file, a process, a signal handler.
    #[error("{what}: {source}")]
    Machine {
        what: String,
        source: std::io::Error,
    },
    /// A checkpoint or a store that was looked at and found bad.
    #[error("{0}")]
    Bad(String),
}

impl Error {
    /// Names what was being done when the machine said no.
    pub fn machine(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        |source| Self::Machine { what, source }
    }

    pub fn exit_status(&self) -> ExitStatus {
        match self {
            Self::Usage(_) => ExitStatus::Usage,
            Self::Storage(error) if error.is_transient() => ExitStatus::Retryable,
            Self::Machine { .. } => ExitStatus::Retryable,
            Self::Storage(_) | Self::Bad(_) => ExitStatus::Failed,
        }
    }
}
