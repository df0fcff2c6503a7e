//! What the first process of a container owes: it buries orphans and hears signals. The
//! supervisor's loop starts this once and waits for [`Signals::next`].
//!
//! Nobody's exit status is stolen: trainers are known by number, and any other child (the SDK may
//! start a credential helper) is left to its owner, who asks for it at once; only what is still a
//! zombie after [`OWNER_TAKES_AT_MOST`] has no owner.

use std::collections::BTreeMap;
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, WaitOptions, set_child_subreaper, waitid, waitpid,
};
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

use crate::child::{group, is_ours};

#[cfg(test)]
mod tests;

/// Between two looks for zombies.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Whoever started a process and waits for it has taken its status within this time.
const OWNER_TAKES_AT_MOST: Duration = Duration::from_secs(2);

/// Becomes the parent of all orphans below this process, and buries them from a thread of its own
/// for as long as the process lives. A second call does nothing.
///
/// # Errors
/// If the kernel refuses, or the thread cannot be made.
pub fn start() -> io::Result<()> {
    static STARTED: AtomicBool = AtomicBool::new(false);
    if STARTED.swap(true, Ordering::Relaxed) {
        return Ok(());
    }
    if std::process::id() != 1 {
        set_child_subreaper(Some(rustix::process::getpid()))?;
    }
    thread::Builder::new().name("reap".to_owned()).spawn(|| {
        let mut seen = BTreeMap::new();
        loop {
            bury(&mut seen, Instant::now());
            thread::sleep(LOOK_EVERY);
        }
    })?;
    Ok(())
}

/// Reaps those zombies that were seen long enough ago. `seen` says since when each is known.
fn bury(seen: &mut BTreeMap<u32, Instant>, now: Instant) {
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    // One call in the usual case that there is none; an error is "no children at all".
    if !matches!(waitid(WaitId::All, look), Ok(Some(_))) {
        seen.clear();
        return;
    }
    let Ok(processes) = group::processes() else {
        return;
    };
    let own = std::process::id();
    let zombies = processes
        .iter()
        .filter(|p| p.parent == own && p.is_zombie());
    // No trainer starts meanwhile, so none can get a number that is looked at here.
    is_ours(|is_ours| {
        let mut still = BTreeMap::new();
        for pid in zombies
            .map(|zombie| zombie.pid)
            .filter(|&pid| !is_ours(pid))
        {
            let since = *seen.get(&pid).unwrap_or(&now);
            let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
            if now - since >= OWNER_TAKES_AT_MOST {
                // Gone already is as well.
                let _gone = waitpid(number, WaitOptions::NOHANG);
            } else {
                still.insert(pid, since);
            }
        }
        *seen = still;
    });
}

/// What a signal to the agent asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// The machine goes away or somebody wants an end: stop in good order. Providers give notice by
    /// any of SIGTERM, SIGINT, SIGHUP, SIGUSR1 and SIGXCPU.
    Stop(Signal),
    /// Not for the agent: hand it to the trainer.
    Forward(Signal),
}

/// The signals that this process gets from now on. As the first process of a container it would not
/// get them at all without asking.
#[derive(Debug)]
pub struct Signals {
    streams: Vec<(Signal, Stream)>,
    /// Never read. Whoever started the agent may have it ignore SIGCHLD, and then the kernel throws
    /// every exit status away; a handler undoes that.
    _child: Stream,
}

impl Signals {
    /// Starts to listen; call inside the runtime, before the first trainer is started.
    ///
    /// # Errors
    /// If a handler cannot be installed.
    pub fn listen() -> io::Result<Self> {
        let mut streams = Vec::new();
        for number in [
            Signal::TERM,
            Signal::INT,
            Signal::HUP,
            Signal::USR1,
            Signal::XCPU,
            Signal::USR2,
            Signal::QUIT,
        ] {
            streams.push((number, signal(SignalKind::from_raw(number.as_raw()))?));
        }
        Ok(Self {
            streams,
            _child: signal(SignalKind::child())?,
        })
    }

    /// Waits for the next one. May be cancelled without losing any.
    pub async fn next(&mut self) -> Request {
        let streams = &mut self.streams;
        let number = std::future::poll_fn(|context| {
            let came = streams.iter_mut().find_map(|(number, stream)| {
                let came = pin!(stream.recv()).poll(context);
                came.is_ready().then_some(*number)
            });
            came.map_or(std::task::Poll::Pending, std::task::Poll::Ready)
        })
        .await;
        request(number)
    }
}

fn request(number: Signal) -> Request {
    match number {
        Signal::TERM | Signal::INT | Signal::HUP | Signal::USR1 | Signal::XCPU => {
            Request::Stop(number)
        }
        _ => Request::Forward(number),
    }
}
