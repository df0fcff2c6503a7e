//! The switch's side: reads the pipe, counts, and acts.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, getppid, kill_process, setsid};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::net::unix::pipe::Receiver;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::{Orders, Pulse, UNDER_GUARD};
use crate::child::{group, shield_from_oom};
use crate::clock::{BootClock, Clock, Moment};
use crate::machine::Switch;
use crate::provider::{Adapter, Kind, PowerOff, Services, detect, environment};
use crate::reaper::{Request, Signals};

/// The first argument that makes a process the switch.
pub const COMMAND: &str = "watch-agent";

const TICK: Duration = Duration::from_secs(1);
/// Finding out whose machine this is; then what was found must do.
const DETECT_MAX: Duration = Duration::from_secs(20);
/// An agent that was killed or has said good-bye is gone within this.
const GONE_MAX: Duration = Duration::from_secs(30);

/// Why the watch is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The agent leaves as it means to.
    Bye,
    /// The pipe is closed: nobody holds it any more.
    Died,
    Hangs,
    Overdue,
}

/// What is known of the agent.
#[derive(Debug)]
pub(super) struct Watch {
    orders: Orders,
    /// Seconds that *we* have lived through without a line: a machine that was suspended, or a
    /// container that was frozen, has not waited.
    silent: Duration,
    heard: bool,
    hard: Option<Moment>,
}

impl Watch {
    pub(super) fn new(orders: Orders) -> Self {
        Self {
            orders,
            silent: Duration::ZERO,
            heard: false,
            hard: None,
        }
    }

    pub(super) fn line(&mut self, line: &str) -> Option<Verdict> {
        let mut words = line.split(' ');
        match (words.next(), words.next()) {
            (Some("bye"), None) => return Some(Verdict::Bye),
            (Some("beat"), Some(hard)) => {
                self.heard = true;
                self.silent = Duration::ZERO;
                let hard = hard.parse().ok().map(Duration::from_millis);
                self.hard = hard.map(Moment::since_boot);
            }
            // An agent that says anything else is of no version that we know, and lives.
            _ => self.silent = Duration::ZERO,
        }
        None
    }

    pub(super) fn tick(&mut self, now: Moment) -> Option<Verdict> {
        self.silent += TICK;
        let patience = if self.heard {
            self.orders.hang
        } else {
            self.orders.boot
        };
        if self.silent >= patience {
            return Some(Verdict::Hangs);
        }
        let late = self
            .hard
            .is_some_and(|hard| now >= hard + self.orders.margin);
        late.then_some(Verdict::Overdue)
    }
}

/// Starts a switch below this process; its end of the pipe is ours to write to.
pub(super) fn start(orders: &Orders) -> io::Result<OwnedFd> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    // Waited for by nobody: it outlives us, or the reaper buries it.
    let _child = Command::new("/proc/self/exe")
        .arg(COMMAND)
        // What is in a session of its own below us and carries no mark is taken for a trainer's.
        .env(group::MARK, COMMAND)
        .stdin(Stdio::from(read))
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .spawn()?;
    let mut line = serde_json::to_vec(orders).expect("it holds only texts and numbers");
    line.push(b'\n');
    std::fs::File::from(write.try_clone()?).write_all(&line)?;
    Ok(write)
}

impl Pulse {
    /// Starts the switch, as a child of this process.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(orders: Orders) -> io::Result<Self> {
        let end = start(&orders)?;
        Self::over(end, Some(orders))
    }

    /// The switch is our parent, and standard input leads to it.
    ///
    /// # Errors
    /// If it does not.
    pub fn to_parent() -> io::Result<Self> {
        let end = rustix::io::fcntl_dupfd_cloexec(io::stdin(), 0)?;
        Self::over(end, None)
    }
}

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

/// The process `agent watch-agent`: standard input is the pipe, the parent is the agent.
///
/// # Errors
/// If the pipe is none, or the orders are not there.
pub fn run() -> io::Result<()> {
    // Out of the agent's process group and terminal: what ends them is not for us.
    let _a_leader_already = setsid();
    let parent = getppid();
    let _not_allowed_here = shield_from_oom();
    let stdin = rustix::io::fcntl_dupfd_cloexec(io::stdin(), 0)?;
    runtime()?.block_on(async {
        let mut lines = lines(stdin)?;
        let first = lines.next_line().await?.unwrap_or_default();
        let orders: Orders = serde_json::from_str(&first)?;
        let verdict = watch(&mut lines, orders.clone()).await;
        if verdict == Verdict::Bye {
            return Ok(());
        }
        if verdict != Verdict::Died && getppid() == parent {
            end_agent(parent);
        }
        act(verdict, &orders).await;
        Ok(())
    })
}

fn lines(end: OwnedFd) -> io::Result<Lines<BufReader<Receiver>>> {
    let receiver = Receiver::from_owned_fd(end)?;
    Ok(BufReader::new(receiver).lines())
}

async fn watch(lines: &mut Lines<BufReader<Receiver>>, orders: Orders) -> Verdict {
    let mut watch = Watch::new(orders);
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let verdict = tokio::select! {
            line = lines.next_line() => match line {
                Ok(Some(line)) => watch.line(&line),
                Ok(None) | Err(_) => Some(Verdict::Died),
            },
            _ = ticks.tick() => watch.tick(BootClock.now()),
        };
        if let Some(verdict) = verdict {
            return verdict;
        }
    }
}

/// A stopped process is killed as well as a running one, and its trainer with it.
fn end_agent(agent: Option<Pid>) {
    if let Some(agent) = agent {
        let _gone_already = kill_process(agent, Signal::KILL);
    }
}

/// Gives the machine back, for as long as it takes.
async fn act(verdict: Verdict, orders: &Orders) {
    let why = match verdict {
        Verdict::Bye => return,
        Verdict::Died => "the agent has died",
        Verdict::Hangs => "the agent hangs",
        Verdict::Overdue => "the agent has outlived its deadline",
    };
    let environment = environment();
    let services = Services::new(&environment);
    let detected = detect(&environment, orders.provider(), &services);
    // Where nobody answers, the machine is nobody's, and only a command can end it.
    let instance = timeout(DETECT_MAX, detected).await.ok();
    let kind = instance.as_ref().map_or(Kind::Local, |it| it.kind);
    let how = orders.power_off(kind);
    if how == PowerOff::None {
        return say(format!("{why}; the machine stays on"));
    }
    say(format!("{why}; giving the machine back"));
    let Some(instance) = instance else {
        return run_command(orders, how).await;
    };
    let adapter = Adapter::new(instance, services, environment);
    let switch = Switch::new(adapter, orders.power_off_command.clone());
    let outcome = switch.power_off(how, say).await;
    say(format!("{outcome:?}"));
}

/// For a machine whose provider could not be found out in time.
async fn run_command(orders: &Orders, how: PowerOff) {
    let environment = environment();
    let services = Services::new(&environment);
    let unknown = crate::provider::Instance {
        kind: Kind::Local,
        found_by: "nothing".to_owned(),
        id: None,
        region: None,
        machine: None,
        spot: None,
        ends_in: None,
    };
    let adapter = Adapter::new(unknown, services, environment);
    let switch = Switch::new(adapter, orders.power_off_command.clone());
    switch.power_off(how, say).await;
}

/// A line for people, from a thread of its own: a console that nobody reads must not hold us up.
fn say(text: String) {
    let told = std::thread::Builder::new().spawn(move || {
        writeln!(io::stderr(), "agent: dead-man's switch: {text}").ok();
    });
    // Without the thread it stays unsaid.
    told.ok();
}

/// The first process of a container: starts the agent as its child, hands signals on to it, and
/// watches. Returns the agent's exit status.
///
/// # Errors
/// If the agent cannot be started.
pub fn be_first(orders: &Orders, arguments: &[OsString]) -> io::Result<u8> {
    runtime()?.block_on(async {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        let mut signals = Signals::listen()?;
        let mut agent = tokio::process::Command::new("/proc/self/exe")
            .arg(UNDER_GUARD)
            .args(arguments)
            .stdin(Stdio::from(write))
            .spawn()?;
        let pid = agent.id().and_then(|pid| i32::try_from(pid).ok());
        let pid = pid.and_then(Pid::from_raw);
        let _not_allowed_here = shield_from_oom();
        let mut lines = lines(read)?;
        let mut watching = std::pin::pin!(watch(&mut lines, orders.clone()));
        let verdict = loop {
            tokio::select! {
                verdict = &mut watching => break verdict,
                request = signals.next() => {
                    let (Request::Stop(signal) | Request::Forward(signal)) = request;
                    if let Some(agent) = pid {
                        let _gone_already = kill_process(agent, signal);
                    }
                }
            }
        };
        if !matches!(verdict, Verdict::Bye | Verdict::Died) {
            end_agent(pid);
        }
        let status = timeout(GONE_MAX, agent.wait()).await;
        act(verdict, orders).await;
        let code = status.ok().and_then(Result::ok).and_then(|s| s.code());
        if verdict != Verdict::Bye {
            // What was said is on its way.
            sleep(Duration::from_millis(100)).await;
        }
        Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(137))
    })
}
