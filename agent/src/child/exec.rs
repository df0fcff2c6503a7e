//! The last step before the trainer, in the new process: `agent exec-trainer <parent>
//! <oom_score_adj> -- <program> <args>`. `main` hands over to this before it looks at anything
//! else.
//!
//! Asking the kernel for a signal at the parent's death has to happen in the child, between fork
//! and exec. Doing it in a program of our own needs no code inside a forked copy of a
//! multi-threaded process.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::oom;
use protocol::ExitCode;
use rustix::process::{Signal, getppid, set_parent_process_death_signal, setsid};

/// The first argument that asks for this.
pub const COMMAND: &str = "exec-trainer";

/// Why the trainer did not take this process over.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    #[error("{COMMAND}: expected <parent pid> <oom_score_adj> -- <program> [args]")]
    Usage,
    #[error("the agent ended before its trainer started")]
    Orphaned,
    #[error("cannot prepare the trainer's process: {0}")]
    Prepare(#[source] io::Error),
    #[error("cannot execute `{program}`: {source}")]
    Execute { program: String, source: io::Error },
}

impl ExecError {
    /// What to exit with: a program that is not there or not one will not be there next time.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage => ExitCode::Config.code(),
            Self::Execute { source, .. } => match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => {
                    ExitCode::Config.code()
                }
                _ if source.raw_os_error() == Some(NOT_AN_EXECUTABLE) => ExitCode::Config.code(),
                _ => CANNOT_START,
            },
            Self::Orphaned | Self::Prepare(_) => CANNOT_START,
        }
    }
}

/// `ENOEXEC`.
const NOT_AN_EXECUTABLE: i32 = 8;

/// The shell's code for "found but cannot be run": a crash, worth another try.
const CANNOT_START: u8 = 126;

/// Becomes the trainer. `args` is what follows [`COMMAND`]; returns only if that failed.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExecError {
    let mut args = args.into_iter();
    let mut number = || args.next()?.to_str()?.parse::<i32>().ok();
    let (parent, score_adj) = (number(), number());
    let separator = args.next();
    let (Some(parent), Some(score_adj), Some("--"), Some(program)) = (
        parent,
        score_adj,
        separator.as_deref().and_then(OsStr::to_str),
        args.next(),
    ) else {
        return ExecError::Usage;
    };
    // A session of its own: the terminal's Ctrl-C goes to the agent alone, and what the trainer
    // starts stays recognisable even in process groups of its own.
    let prepared = setsid().and_then(|_| set_parent_process_death_signal(Some(Signal::KILL)));
    if let Err(error) = prepared {
        return ExecError::Prepare(error.into());
    }
    // A parent that died before the call above sends nothing any more.
    if getppid().map(|pid| pid.as_raw_nonzero().get()) != Some(parent) {
        return ExecError::Orphaned;
    }
    // The agent's own protection is not for its trainer. Raising the value is always allowed, and
    // where the file cannot be written the trainer is better started than not.
    let _as_it_was = oom::set_score_adj(score_adj);
    let source = Command::new(&program).args(args).exec();
    ExecError::Execute {
        program: program.to_string_lossy().into_owned(),
        source,
    }
}
