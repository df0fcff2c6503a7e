//! The trainer as a process: started in a session of its own, heard, signalled, waited for, and
//! gone with all that it started. The supervisor's loop calls this.
//!
//! A trainer never outlives its agent: it is started through [`exec`], which asks the kernel to
//! kill it when the thread that forked it ends, and that thread lives as long as the agent.

mod capture;
mod environment;
pub mod exec;
pub mod group;
mod oom;
mod spawner;

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::watch;

use crate::cgroup::Cgroup;
pub use capture::{Sink, Source};
pub use environment::Environment;
pub use oom::shield_from_oom;
pub use spawner::is_ours;

#[cfg(test)]
mod tests;

/// What to start.
#[derive(Clone, Debug)]
pub struct Command {
    pub program: OsString,
    pub args: Vec<OsString>,
    /// Working directory; the agent's if absent.
    pub cwd: Option<PathBuf>,
    pub env: Environment,
    /// The group whose out-of-memory counter tells why the trainer was killed; the agent's own if
    /// absent.
    pub memory: Option<Cgroup>,
    /// The executable that has [`exec::COMMAND`]: the agent's own.
    pub launcher: PathBuf,
}

impl Command {
    pub fn new(program: impl Into<OsString>, args: impl IntoIterator<Item = OsString>) -> Self {
        Self {
            program: program.into(),
            args: args.into_iter().collect(),
            cwd: None,
            env: Environment::default(),
            memory: None,
            // Not a path of the disk: an agent replaced by a newer one still starts itself.
            launcher: PathBuf::from("/proc/self/exe"),
        }
    }
}

/// How a trainer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    pub status: Status,
    /// The kernel killed processes of its memory group while it ran.
    pub oom: Option<Oom>,
}

/// How the leader itself ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Code(i32),
    /// The number of the signal that ended it.
    Signal(i32),
}

/// Kills by the kernel for memory during a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Oom {
    pub kills: u64,
    /// The limit that was hit, bytes; absent if the whole machine ran out.
    pub limit_bytes: Option<u64>,
}

impl Exit {
    /// Whether it was the trainer itself that the kernel killed for memory.
    pub fn is_oom_kill(&self) -> bool {
        self.oom.is_some() && self.status == Status::Signal(Signal::KILL.as_raw())
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status {
            Status::Code(code) => write!(f, "exit code {code}")?,
            Status::Signal(number) => write!(f, "{}", SignalName(number))?,
        }
        let Some(oom) = self.oom else {
            return Ok(());
        };
        if self.is_oom_kill() {
            f.write_str(": killed by the kernel for want of memory")?;
        } else {
            write!(
                f,
                "; {} of its processes killed for want of memory",
                oom.kills
            )?;
        }
        match oom.limit_bytes {
            Some(bytes) => write!(f, ", limit {} MiB", bytes >> 20),
            None => Ok(()),
        }
    }
}

/// A signal's number as people know it.
struct SignalName(i32);

impl fmt::Display for SignalName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match Signal::from_named_raw(self.0) {
            Some(Signal::HUP) => "SIGHUP",
            Some(Signal::INT) => "SIGINT",
            Some(Signal::QUIT) => "SIGQUIT",
            Some(Signal::ILL) => "SIGILL",
            Some(Signal::ABORT) => "SIGABRT",
            Some(Signal::BUS) => "SIGBUS",
            Some(Signal::FPE) => "SIGFPE",
            Some(Signal::KILL) => "SIGKILL",
            Some(Signal::USR1) => "SIGUSR1",
            Some(Signal::SEGV) => "SIGSEGV",
            Some(Signal::PIPE) => "SIGPIPE",
            Some(Signal::TERM) => "SIGTERM",
            Some(Signal::XCPU) => "SIGXCPU",
            _ => return write!(f, "signal {}", self.0),
        };
        f.write_str(name)
    }
}

/// A trainer that was started. Dropping it kills what is left of it.
#[derive(Debug)]
pub struct Child {
    leader: Pid,
    mark: String,
    exit: watch::Receiver<Option<Exit>>,
    /// Pipes that have not reached their end.
    open_pipes: watch::Receiver<u32>,
    /// Until this is gone the leader stays a zombie, so that nobody else gets its number.
    _unreaped: spawner::Unreaped,
}

/// Processes that are still there after they were killed, stuck in the kernel or not ours to kill.
#[derive(Debug, thiserror::Error)]
#[error(
    "{} still there {:?} after SIGKILL: pid {}",
    count(pids),
    waited,
    list(pids)
)]
pub struct Survivors {
    pub pids: Vec<u32>,
    pub waited: Duration,
}

impl Child {
    /// Starts the command, with its output going to `sink`. Returns when the process exists; that
    /// the program cannot be executed is told by its exit: code 64 and a line on standard error.
    ///
    /// # Errors
    /// If no process can be made, or the launcher or the working directory is not there.
    pub fn spawn(command: &Command, sink: Arc<dyn Sink>) -> io::Result<Self> {
        spawner::spawn(command, sink)
    }

    /// Process id of the leader, which is its process group and session as well.
    pub fn pid(&self) -> u32 {
        self.leader.as_raw_nonzero().get().unsigned_abs()
    }

    /// Sends a signal to the leader alone. `false` if it has ended.
    ///
    /// The leader first: a signal to the whole group would end the helpers (data loaders) that it
    /// needs to save a checkpoint.
    ///
    /// # Errors
    /// If the kernel refuses for another reason.
    pub fn signal(&self, signal: Signal) -> io::Result<bool> {
        if self.exit.borrow().is_some() {
            return Ok(false);
        }
        // The number is still the leader's: it is not reaped before `self` is dropped.
        match kill_process(self.leader, signal) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::SRCH) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends a signal to the leader and everything it started. Returns how many got it.
    ///
    /// # Errors
    /// If `/proc` cannot be read.
    pub fn signal_group(&self, signal: Signal) -> io::Result<usize> {
        group::signal(&group::members(self.pid(), &self.mark)?, signal)
    }

    /// Waits for the leader's end. May be cancelled and called again; the answer stays the same.
    pub async fn wait(&self) -> Exit {
        let mut exit = self.exit.clone();
        let ended = exit.wait_for(Option::is_some).await;
        let ended = ended.expect("the waiting thread tells the end before it goes");
        (*ended).expect("waited for it to be there")
    }

    /// The leader's end if it has come.
    pub fn try_wait(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Whether both of its pipes have been read to their end, waiting for that as long as `limit`.
    /// A process that outlives the leader may hold them open.
    pub async fn drained(&self, limit: Duration) -> bool {
        let mut open = self.open_pipes.clone();
        let end = tokio::time::timeout(limit, open.wait_for(|&open| open == 0)).await;
        matches!(end, Ok(Ok(_)))
    }

    /// Kills the leader and everything it started, those that left its group and session included,
    /// and returns when none is left.
    ///
    /// # Errors
    /// [`Survivors`] if some are still there after `limit`.
    pub async fn kill_group(&self, limit: Duration) -> Result<(), Survivors> {
        group::kill(self.pid(), &self.mark, limit).await
    }
}

fn count(pids: &[u32]) -> String {
    match pids {
        [_] => "a process".to_owned(),
        _ => format!("{} processes", pids.len()),
    }
}

fn list(pids: &[u32]) -> String {
    let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
    pids.join(", ")
}
