//! Saves beside the training: one thread at a time writes, prunes and reports. Called by `train`.

use std::thread::{self, JoinHandle};
use std::time::Instant;

use protocol::RunDir;

use super::{Snapshot, files, retain, write};
use crate::error::{Error, Result};

/// The checkpoints of one run, for the trainer that holds its [`super::RunLock`]. Dropping it
/// waits for the save in flight.
#[derive(Debug)]
pub struct Checkpoints {
    run: RunDir,
    keep_last: u64,
    in_flight: Option<InFlight>,
    /// Reports that nobody has fetched yet.
    outcomes: Vec<SaveOutcome>,
}

#[derive(Debug)]
struct InFlight {
    step: u64,
    thread: JoinHandle<Vec<SaveOutcome>>,
}

/// How a save went.
#[derive(Clone, Debug, PartialEq)]
pub enum SaveOutcome {
    /// The checkpoint is whole, on disk.
    Written {
        step: u64,
        /// Its directory, relative to the run directory.
        path: String,
        /// Size of its files together.
        bytes: u64,
        /// Time of writing it, without pruning, milliseconds.
        write_ms: f64,
        val_loss: Option<f64>,
    },
    /// There is no new checkpoint; the older ones are as they were.
    Failed { step: u64, error: String },
    /// The checkpoint was written, but an older one that is not needed could not be deleted.
    NotPruned { step: u64, error: String },
}

impl Checkpoints {
    /// Makes `checkpoints/` and tidies after a trainer that was killed there. The newest
    /// `keep_last` checkpoints are kept, at least one, and the best.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn open(run: RunDir, keep_last: u64) -> Result<Self> {
        files::create_dir_all(&run.checkpoints())?;
        files::sync_dir(run.root())?;
        retain::sweep(&run)?;
        Ok(Self {
            run,
            keep_last,
            in_flight: None,
            outcomes: Vec::new(),
        })
    }

    /// Has the background save what `snapshot` waits for, of this step, and returns at once; if a
    /// save is still in flight, waits for that one first. How it went comes from [`Self::poll`] or
    /// [`Self::finish`].
    ///
    /// # Errors
    /// [`Error::Write`] if the system gives no thread.
    pub fn save(
        &mut self,
        step: u64,
        snapshot: impl FnOnce() -> Result<Snapshot> + Send + 'static,
    ) -> Result<()> {
        self.wait();
        let (run, keep_last) = (self.run.clone(), self.keep_last);
        let thread = thread::Builder::new()
            .name("checkpoint".to_owned())
            .spawn(move || save(&run, keep_last, step, snapshot))
            .map_err(Error::write(&self.run.checkpoint(step)))?;
        self.in_flight = Some(InFlight { step, thread });
        Ok(())
    }

    /// Whether a save is still being written.
    pub fn is_busy(&self) -> bool {
        self.in_flight
            .as_ref()
            .is_some_and(|save| !save.thread.is_finished())
    }

    /// What has been reported since the last call, without waiting.
    pub fn poll(&mut self) -> Vec<SaveOutcome> {
        if !self.is_busy() {
            self.wait();
        }
        std::mem::take(&mut self.outcomes)
    }

    /// Waits for the save in flight and gives all that was not fetched yet.
    pub fn finish(&mut self) -> Vec<SaveOutcome> {
        self.wait();
        std::mem::take(&mut self.outcomes)
    }

    /// Deletes every checkpoint of the run, for a run that starts afresh in its place.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn clear(&mut self) -> Result<()> {
        self.wait();
        for listed in super::list(&self.run)? {
            files::discard(&self.run, &listed.path)?;
        }
        files::sync_dir(&self.run.checkpoints())
    }

    fn wait(&mut self) {
        let Some(InFlight { step, thread }) = self.in_flight.take() else {
            return;
        };
        match thread.join() {
            Ok(outcomes) => self.outcomes.extend(outcomes),
            Err(panic) => {
                let message = panic
                    .downcast_ref::<String>()
                    .map(String::as_str)
                    .or_else(|| panic.downcast_ref::<&str>().copied())
                    .unwrap_or("no message");
                self.outcomes.push(SaveOutcome::Failed {
                    step,
                    error: format!("the thread that writes checkpoints panicked: {message}"),
                });
            }
        }
    }
}

impl Drop for Checkpoints {
    fn drop(&mut self) {
        self.wait();
    }
}

fn save(
    run: &RunDir,
    keep_last: u64,
    step: u64,
    snapshot: impl FnOnce() -> Result<Snapshot>,
) -> Vec<SaveOutcome> {
    let start = Instant::now();
    let manifest = match snapshot().and_then(|snapshot| write::write(run, &snapshot)) {
        Ok(manifest) => manifest,
        Err(error) => {
            let error = error.to_string();
            return vec![SaveOutcome::Failed { step, error }];
        }
    };
    let home = run.checkpoint(step);
    let mut outcomes = vec![SaveOutcome::Written {
        step,
        path: home
            .strip_prefix(run.root())
            .expect("a checkpoint lies in its run directory")
            .to_string_lossy()
            .into_owned(),
        bytes: manifest.bytes(),
        write_ms: start.elapsed().as_secs_f64() * 1e3,
        val_loss: manifest.val_loss,
    }];
    if let Err(error) = retain::prune(run, step, keep_last) {
        let error = error.to_string();
        outcomes.push(SaveOutcome::NotPruned { step, error });
    }
    outcomes
}
