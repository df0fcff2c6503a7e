//! What the trainer's exit status means to the one who started it.

use std::fmt;

/// Exit codes of the trainer. Anything else, or death by a signal, is a crash: worth a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitCode {
    /// All steps are done and the last checkpoint is written.
    Finished = 0,
    /// Bad configuration or usage. A restart would fail in the same way.
    Config = 64,
    /// Bad data or an unreadable checkpoint. A restart would fail in the same way.
    Data = 65,
    /// The device asked for is not there or cannot be used.
    Device = 69,
    /// Something could not be written: disk full, read-only, or a run directory in use.
    CannotWrite = 73,
    /// Stopped on request after a checkpoint: resume me.
    Stopped = 75,
    /// The loss or the gradients diverged. A restart from the same place would diverge again.
    Diverged = 76,
}

impl ExitCode {
    /// The process exit status.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The meaning of a status, if it is one of ours.
    pub fn from_code(code: i32) -> Option<Self> {
        [
            Self::Finished,
            Self::Config,
            Self::Data,
            Self::Device,
            Self::CannotWrite,
            Self::Stopped,
            Self::Diverged,
        ]
        .into_iter()
        .find(|known| i32::from(known.code()) == code)
    }

    /// Whether starting the trainer again, unchanged, can help.
    pub fn is_worth_a_restart(self) -> bool {
        matches!(self, Self::Device | Self::CannotWrite | Self::Stopped)
    }
}

impl fmt::Display for ExitCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Finished => "finished",
            Self::Config => "bad configuration or usage",
            Self::Data => "bad data",
            Self::Device => "no usable device",
            Self::CannotWrite => "cannot write",
            Self::Stopped => "stopped after a checkpoint, resume me",
            Self::Diverged => "diverged",
        };
        write!(f, "{} ({text})", self.code())
    }
}

#[cfg(test)]
mod tests {
    use super::ExitCode;

    #[test]
    fn codes_survive_the_round_trip() {
        for code in [0, 64, 65, 69, 73, 75, 76] {
            assert_eq!(
                ExitCode::from_code(code).map(|c| i32::from(c.code())),
                Some(code)
            );
        }
        assert_eq!(ExitCode::from_code(1), None);
        assert_eq!(ExitCode::from_code(-9), None);
    }

    #[test]
    fn faults_that_repeat_are_not_restarted() {
        for code in [
            ExitCode::Config,
            ExitCode::Data,
            ExitCode::Diverged,
            ExitCode::Finished,
        ] {
            assert!(!code.is_worth_a_restart(), "{code}");
        }
    }
}
