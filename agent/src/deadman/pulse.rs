//! The agent's side: a line a second into a pipe, without ever waiting for its reader.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use super::Orders;
use crate::clock::Moment;

/// The first argument of an agent whose standard input is the pipe.
pub const UNDER_GUARD: &str = "under-guard";

/// Shows that the agent lives. The default shows nobody.
#[derive(Clone, Default)]
pub struct Pulse(Option<Arc<Mutex<Pipe>>>);

struct Pipe {
    end: File,
    /// What makes another switch, where this process is the parent.
    orders: Option<Orders>,
}

impl Pulse {
    /// A pipe to a switch that this process has started, or that has started it.
    pub(super) fn over(end: OwnedFd, orders: Option<Orders>) -> io::Result<Self> {
        never_wait(&end)?;
        let end = File::from(end);
        Ok(Self(Some(Arc::new(Mutex::new(Pipe { end, orders })))))
    }

    /// The agent lives, and means to be gone by `hard`.
    ///
    /// # Errors
    /// If the switch is gone; another was started where that is possible.
    pub fn beat(&self, hard: Option<Moment>) -> io::Result<()> {
        let line = match hard {
            Some(at) => {
                let since = at.since(Moment::since_boot(std::time::Duration::ZERO));
                format!("beat {}\n", since.as_millis())
            }
            None => "beat -\n".to_owned(),
        };
        self.write(&line)
    }

    /// The agent ends as it means to: nothing is left to watch.
    pub fn bye(&self) {
        // If it is gone already, that is as well.
        self.write("bye\n").ok();
    }

    fn write(&self, line: &str) -> io::Result<()> {
        let Some(pipe) = &self.0 else {
            return Ok(());
        };
        let mut pipe = pipe.lock().unwrap_or_else(PoisonError::into_inner);
        match pipe.end.write_all(line.as_bytes()) {
            // It is behind, so it has enough to read.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => {
                let Some(orders) = pipe.orders.clone() else {
                    return Err(error);
                };
                let end = super::watch::start(&orders)?;
                never_wait(&end)?;
                pipe.end = File::from(end);
                pipe.end.write_all(line.as_bytes())?;
                Err(io::Error::other("it had ended; there is a new one"))
            }
            Ok(()) => Ok(()),
        }
    }
}

fn never_wait(end: &impl AsFd) -> io::Result<()> {
    let flags = fcntl_getfl(end)?;
    fcntl_setfl(end, flags | OFlags::NONBLOCK)?;
    Ok(())
}
