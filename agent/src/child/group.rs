//! Everything a trainer started: found in `/proc` by session, process group, parentage and a mark
//! in the environment, so that a double fork does not escape.
//!
//! What escapes: a process that has left the session, lost its parents *and* wiped its environment.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, sleep};

use super::{Survivors, environment};

/// The environment variable that marks a trainer and its descendants.
pub const MARK: &str = "AGENT_TRAINER_MARK";

/// Between two looks at what is left after a kill.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// One process as `/proc/<pid>/stat` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) parent: u32,
    pub(crate) group: u32,
    pub(crate) session: u32,
    pub(crate) state: char,
}

impl Process {
    /// Whether it has ended and waits for its parent to ask.
    pub(crate) fn is_zombie(&self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x')
    }

    /// Reads the line (proc(5)): `pid (name) state ppid pgrp session …`, where the name may hold
    /// anything, parentheses and newlines included.
    pub(crate) fn parse(stat: &str) -> Option<Self> {
        let (pid, rest) = stat.split_once(" (")?;
        let (_name, rest) = rest.rsplit_once(") ")?;
        let mut fields = rest.split(' ');
        Some(Self {
            pid: pid.parse().ok()?,
            state: fields.next()?.chars().next()?,
            parent: fields.next()?.parse().ok()?,
            group: fields.next()?.parse().ok()?,
            session: fields.next()?.parse().ok()?,
        })
    }
}

/// All processes that can be seen.
pub(crate) fn processes() -> io::Result<Vec<Process>> {
    let mut processes = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // One that ended since the listing is not there any more.
        let Ok(stat) = fs::read(format!("/proc/{pid}/stat")) else {
            continue;
        };
        processes.extend(Process::parse(&String::from_utf8_lossy(&stat)));
    }
    Ok(processes)
}

/// The living processes of the trainer whose leader is (or was) `leader` and whose environment has
/// `mark`, the leader included.
///
/// # Errors
/// If `/proc` cannot be read.
pub fn members(leader: u32, mark: &str) -> io::Result<Vec<u32>> {
    let processes = processes()?;
    let own_session = session_of_orphans_parent(&processes);
    let belongs = |process: &Process| {
        process.pid == leader
            || process.group == leader
            || process.session == leader
            || has_in_environment(process.pid, MARK, mark)
            || own_session.is_some_and(|session| is_disowned(process, session))
    };
    Ok(with_descendants(&processes, belongs))
}

/// Our session, if those that become our children by their parents' death were started by a
/// trainer: the first process of a container inherits everybody's.
fn session_of_orphans_parent(processes: &[Process]) -> Option<u32> {
    let own = processes.iter().find(|p| p.pid == std::process::id());
    own.filter(|own| own.pid != 1).map(|own| own.session)
}

/// Whether it is an orphan that has left its session, its group and its environment behind. A
/// trainer is in a session of its own and nobody comes back from there; what we start ourselves is
/// in our session until it carries a mark.
fn is_disowned(process: &Process, own_session: u32) -> bool {
    process.parent == std::process::id()
        && process.session != own_session
        && environment_value(process.pid, MARK).is_none()
}

/// The living processes of a former agent's trainer that writes to these `checkpoints`: an agent
/// that has the run directory for itself kills them before it trains. The job's name would not do:
/// another agent of this machine may be its holder.
///
/// # Errors
/// If `/proc` cannot be read.
pub fn left_over(checkpoints: &Path) -> io::Result<Vec<u32>> {
    let processes = processes()?;
    let mut above = BTreeSet::from([std::process::id()]);
    // An agent started by a trainer of the same directory would find its own ancestors.
    while let Some(process) = processes
        .iter()
        .find(|process| above.contains(&process.pid) && !above.contains(&process.parent))
    {
        above.insert(process.parent);
    }
    let marked = |process: &Process| {
        !above.contains(&process.pid)
            && has_in_environment(process.pid, environment::CHECKPOINTS, checkpoints)
            && environment_value(process.pid, MARK).is_some()
    };
    let mut found = with_descendants(&processes, marked);
    found.retain(|pid| !above.contains(pid));
    Ok(found)
}

/// Kills a former agent's trainer of these `checkpoints` and returns when none of it is left.
///
/// # Errors
/// [`Survivors`] if some are still there after `limit`.
pub async fn kill_left_over(checkpoints: &Path, limit: Duration) -> Result<(), Survivors> {
    kill_found(|| left_over(checkpoints), limit).await
}

/// Sends a signal to each; returns how many were there to get it.
///
/// # Errors
/// If none can be reached and one was refused.
pub fn signal(pids: &[u32], signal: Signal) -> io::Result<usize> {
    let mut reached = 0;
    let mut refused = None;
    for &pid in pids {
        let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
            continue;
        };
        match kill_process(pid, signal) {
            Ok(()) => reached += 1,
            Err(rustix::io::Errno::SRCH) => {}
            Err(error) => refused = Some(error),
        }
    }
    match refused {
        Some(error) if reached == 0 => Err(error.into()),
        _ => Ok(reached),
    }
}

/// Kills the members again and again until none is left: some may be forking.
pub(super) async fn kill(leader: u32, mark: &str, limit: Duration) -> Result<(), Survivors> {
    kill_found(|| members(leader, mark), limit).await
}

async fn kill_found(
    find: impl Fn() -> io::Result<Vec<u32>>,
    limit: Duration,
) -> Result<(), Survivors> {
    let start = Instant::now();
    let mut last = Vec::new();
    loop {
        match find() {
            Ok(found) if found.is_empty() => return Ok(()),
            Ok(found) => {
                let _refused_ones_survive = signal(&found, Signal::KILL);
                last = found;
            }
            // Not knowing is not "gone": look again.
            Err(_) => {}
        }
        if start.elapsed() >= limit {
            return Err(Survivors {
                pids: last,
                waited: limit,
            });
        }
        sleep(LOOK_EVERY).await;
    }
}

/// The living processes that `belongs` names and their living descendants, without this process.
fn with_descendants(processes: &[Process], belongs: impl Fn(&Process) -> bool) -> Vec<u32> {
    let mut found: BTreeSet<u32> = processes
        .iter()
        .filter(|p| belongs(p))
        .map(|p| p.pid)
        .collect();
    loop {
        let before = found.len();
        for process in processes {
            if found.contains(&process.parent) {
                found.insert(process.pid);
            }
        }
        if found.len() == before {
            break;
        }
    }
    found.remove(&std::process::id());
    let living = |pid: &u32| processes.iter().any(|p| p.pid == *pid && !p.is_zombie());
    found.into_iter().filter(living).collect()
}

fn has_in_environment(pid: u32, name: &str, value: impl AsRef<OsStr>) -> bool {
    environment_value(pid, name).is_some_and(|found| found == value.as_ref().as_bytes())
}

/// A variable of another process as it was when that started; `None` if it is not ours to read.
fn environment_value(pid: u32, name: &str) -> Option<Vec<u8>> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let mut variables = environment.split(|&byte| byte == 0);
    variables.find_map(|variable| {
        let value = variable.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
        Some(value.to_vec())
    })
}
