//! The thread that forks, which lives as long as the agent, and the thread that waits for one
//! trainer. Knows which processes are ours to reap.
//!
//! The kernel sends the parent-death signal when the *thread* that forked ends, not its process: a
//! trainer started from a worker of some pool would die with that worker.

use std::collections::BTreeSet;
use std::io;
use std::process::{Command as StdCommand, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::thread;

use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, WaitIdStatus, WaitOptions, kill_process, waitid, waitpid,
};
use tokio::sync::watch;

use super::capture::{self, Sink};
use super::{Child, Command, Exit, Oom, Status, exec, group, oom};
use crate::cgroup::Cgroup;
use crate::clock::{BootClock, Clock};

/// Leaders that this module reaps. Held while forking, so that nobody sees a child that is not yet
/// in it.
static OURS: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

/// Calls `with` on the question whether a process is one that this module waits for. No process is
/// started meanwhile.
pub fn is_ours<T>(with: impl FnOnce(&dyn Fn(u32) -> bool) -> T) -> T {
    let ours = OURS.lock().unwrap_or_else(PoisonError::into_inner);
    with(&|pid| ours.contains(&pid))
}

/// Keeps a leader from being reaped.
#[derive(Debug)]
pub(super) struct Unreaped {
    leader: Pid,
    mark: String,
    /// Dropped to let the waiting thread reap.
    _release: mpsc::Sender<()>,
}

impl Drop for Unreaped {
    fn drop(&mut self) {
        // Whoever drops a trainer wants it gone. Its number is still its own.
        let leader = self.leader.as_raw_nonzero().get().unsigned_abs();
        let _leader_may_have_ended = kill_process(self.leader, Signal::KILL);
        if let Ok(members) = group::members(leader, &self.mark) {
            let _nobody_to_tell = group::signal(&members, Signal::KILL);
        }
    }
}

pub(super) fn spawn(command: &Command, sink: Arc<dyn Sink>) -> io::Result<Child> {
    let memory = match &command.memory {
        Some(group) => Some(group.clone()),
        // Without it only the reason of a kill stays unknown.
        None => Cgroup::of_self().unwrap_or(None),
    };
    let mark = new_mark();
    let mut std_command = StdCommand::new(&command.launcher);
    std_command
        .arg(exec::COMMAND)
        .arg(std::process::id().to_string())
        .arg(oom::of_trainers().unwrap_or_default().to_string())
        .arg("--")
        .arg(&command.program)
        .args(&command.args)
        .env_clear()
        .envs(command.env.resolve())
        .env(group::MARK, &mark)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if let Some(cwd) = &command.cwd {
        std_command.current_dir(cwd);
    }
    let kills_before = memory.as_ref().and_then(|group| group.memory().oom_kills);

    let mut process = fork_in_the_permanent_thread(std_command)?;
    let raw = i32::try_from(process.id()).expect("process ids are positive i32");
    let leader = Pid::from_raw(raw).expect("a process id is never zero");
    let (release, released) = mpsc::channel();
    let unreaped = Unreaped {
        leader,
        mark: mark.clone(),
        _release: release,
    };
    let stdout = process.stdout.take().expect("piped above");
    let stderr = process.stderr.take().expect("piped above");
    let (tell, exit) = watch::channel(None);
    let waiting = thread::Builder::new()
        .name("wait".to_owned())
        .spawn(move || {
            let status = wait_without_reaping(leader);
            let memory = memory.as_ref().map(Cgroup::memory).unwrap_or_default();
            let kills = match (kills_before, memory.oom_kills) {
                (Some(before), Some(after)) => after.saturating_sub(before),
                _ => 0,
            };
            let limit_bytes = memory.limit_bytes;
            let oom = (kills > 0).then_some(Oom { kills, limit_bytes });
            tell.send_replace(Some(Exit { status, oom }));
            let _the_sender_was_dropped = released.recv();
            reap(leader);
        });
    if let Err(error) = waiting {
        drop(unreaped);
        reap(leader);
        return Err(error);
    }
    // If the readers cannot be started, dropping `unreaped` ends the trainer.
    let open_pipes = capture::start(stdout, stderr, sink)?;
    Ok(Child {
        leader,
        mark,
        exit,
        open_pipes,
        _unreaped: unreaped,
    })
}

/// A text that no other process tree on this machine carries in its environment.
fn new_mark() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{}-{count}-{:?}", std::process::id(), BootClock.now())
        .replace(|c: char| !c.is_ascii_alphanumeric() && c != '-', "")
}

struct Request {
    command: StdCommand,
    answer: mpsc::Sender<io::Result<std::process::Child>>,
}

fn fork_in_the_permanent_thread(command: StdCommand) -> io::Result<std::process::Child> {
    static SPAWNER: OnceLock<Mutex<mpsc::Sender<Request>>> = OnceLock::new();
    let gone = || io::Error::other("the thread that starts processes has ended");
    let spawner = match SPAWNER.get() {
        Some(spawner) => spawner,
        None => {
            let (requests, queue) = mpsc::channel::<Request>();
            thread::Builder::new()
                .name("fork".to_owned())
                .spawn(move || serve(&queue))?;
            // Of two at the same time one wins; the other's thread ends with its queue, unused.
            SPAWNER.get_or_init(|| Mutex::new(requests))
        }
    };
    let (answer, answered) = mpsc::channel();
    let request = Request { command, answer };
    let sent = {
        let spawner = spawner.lock().unwrap_or_else(PoisonError::into_inner);
        spawner.send(request)
    };
    sent.map_err(|_| gone())?;
    answered.recv().map_err(|_| gone())?
}

fn serve(queue: &mpsc::Receiver<Request>) {
    // Ends never: the sender is in a static.
    for Request {
        mut command,
        answer,
    } in queue
    {
        let spawned = {
            let mut ours = OURS.lock().unwrap_or_else(PoisonError::into_inner);
            let spawned = command.spawn();
            if let Ok(child) = &spawned {
                ours.insert(child.id());
            }
            spawned
        };
        let _asker_waits = answer.send(spawned);
    }
}

/// Waits for the leader's end and leaves it a zombie, so that its process id, group and session
/// stay its own while its group is looked for.
fn wait_without_reaping(leader: Pid) -> Status {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    loop {
        match waitid(WaitId::Pid(leader), options) {
            Ok(Some(status)) => return status_of(&status),
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            // Somebody else reaped it, which only a bug of ours can do: the end is known, its
            // reason is not.
            Err(_) => return Status::Code(-1),
        }
    }
}

fn status_of(status: &WaitIdStatus) -> Status {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Status::Code(code),
        (None, Some(signal)) => Status::Signal(signal),
        (None, None) => Status::Code(-1),
    }
}

fn reap(leader: Pid) {
    while let Err(rustix::io::Errno::INTR) = waitpid(Some(leader), WaitOptions::empty()) {}
    let mut ours = OURS.lock().unwrap_or_else(PoisonError::into_inner);
    ours.remove(&leader.as_raw_nonzero().get().unsigned_abs());
}
