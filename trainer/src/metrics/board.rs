//! The event file that TensorBoard shows while a run goes on, in `tensorboard/` of the run
//! directory: one for each start of the trainer. Called by `Metrics`, with every event.
//!
//! TensorBoard reads the files of a folder in the order of their names, each to its end before the
//! next, and at a start forgets what it was told of that step and later.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::path::{Path, PathBuf};

use protocol::{Event, Record, RunDir};

use super::seconds;
use super::tensorboard::{PREFIX, SUFFIX, config, evaluation, iteration, sample, start, version};
use crate::error::{Error, Result};

/// The event file of this process.
pub(super) struct Board {
    path: PathBuf,
    /// Each record is one `write`, so that a reader sees it at once, and all of it.
    file: File,
    /// What the start made readers forget although it still holds: the evaluation and the sample of
    /// the step that the run goes on from. They are told again, unless that step is evaluated anew.
    forgotten: Forgotten,
    /// `events.jsonl`, where that is found.
    events: PathBuf,
}

/// Each with the time at which it was measured.
#[derive(Default)]
struct Forgotten {
    evaluation: Option<(f64, Event)>,
    sample: Option<(f64, Event)>,
}

impl Board {
    /// A new file, after all that are there.
    pub(super) fn create(run: &RunDir, now: f64, step: u64, toml: &str) -> Result<Self> {
        let folder = run.tensorboard();
        fs::create_dir_all(&folder).map_err(Error::write(&folder))?;
        // The clock may have been set back since the last start.
        let last = files(&folder)?.into_iter().map(|(number, _)| number).max();
        let number = last.map_or(0, |last| last + 1).max(now as u64);
        let path = folder.join(format!("{PREFIX}{number:010}{SUFFIX}"));
        let file = OpenOptions::new()
            .append(true)
            .create_new(true)
            .open(&path)
            .map_err(Error::write(&path))?;
        let mut board = Self {
            path,
            file,
            forgotten: Forgotten::default(),
            events: run.events(),
        };
        board.write(&version(now))?;
        board.start(now, step)?;
        board.write(&config(now, step, toml))?;
        Ok(board)
    }

    /// The run goes on from `step`.
    pub(super) fn start(&mut self, now: f64, step: u64) -> Result<()> {
        self.write(&start(now, step))?;
        self.forgotten = Forgotten::find(&self.events, step)?;
        Ok(())
    }

    /// Tells what TensorBoard can show of an event.
    pub(super) fn record(&mut self, now: f64, event: &Event) -> Result<()> {
        match event {
            Event::Eval { step, .. } if self.forgotten.is_of(*step) => {
                self.forgotten.evaluation = None;
            }
            Event::Sample { step, .. } if self.forgotten.is_of(*step) => {
                self.forgotten.sample = None;
            }
            Event::Step { .. } | Event::Eval { .. } | Event::Sample { .. } => self.tell_again()?,
            Event::Finished { .. } => return self.tell_again(),
            _ => return Ok(()),
        }
        self.tell(now, event)
    }

    fn tell_again(&mut self) -> Result<()> {
        let Forgotten { evaluation, sample } = std::mem::take(&mut self.forgotten);
        for (at, event) in evaluation.into_iter().chain(sample) {
            self.tell(at, &event)?;
        }
        Ok(())
    }

    fn tell(&mut self, at: f64, event: &Event) -> Result<()> {
        let record = match event {
            Event::Step {
                step,
                loss,
                lr,
                grad_norm,
                tokens_per_second,
                mfu,
                ..
            } => {
                let [loss, lr, norm] = [loss, lr, grad_norm].map(|value| Some(*value));
                iteration(at, *step, [loss, lr, norm, Some(*tokens_per_second), *mfu])
            }
            Event::Eval {
                step,
                train_loss,
                val_loss,
                ..
            } => evaluation(at, *step, *train_loss, *val_loss),
            Event::Sample { step, text } => sample(at, *step, text),
            _ => return Ok(()),
        };
        self.write(&record)
    }

    fn write(&mut self, record: &[u8]) -> Result<()> {
        self.file
            .write_all(record)
            .map_err(Error::write(&self.path))
    }
}

impl Forgotten {
    /// What `events.jsonl` tells of the model after `step` updates.
    fn find(events: &Path, step: u64) -> Result<Self> {
        let mut found = Self::default();
        let file = match File::open(events) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(found),
            opened => opened.map_err(Error::read(events))?,
        };
        for line in BufReader::new(file).split(b'\n') {
            let line = line.map_err(Error::read(events))?;
            let line = String::from_utf8_lossy(&line);
            let Some(Record { time, event, .. }) = Record::parse(&line) else {
                continue;
            };
            let at = time.parse().map_or(0.0, seconds);
            match event {
                Event::Eval { step: of, .. } if of == step => found.evaluation = Some((at, event)),
                Event::Sample { step: of, .. } if of == step => found.sample = Some((at, event)),
                // What followed an earlier checkpoint is another model.
                Event::Step { step: of, .. } if of < step => found = Self::default(),
                Event::Started { resumed_from, .. } if resumed_from.unwrap_or(0) < step => {
                    found = Self::default();
                }
                _ => {}
            }
        }
        Ok(found)
    }

    /// Whether they are of the model after `step` updates.
    fn is_of(&self, step: u64) -> bool {
        let all = [&self.evaluation, &self.sample];
        all.into_iter().flatten().any(|(_, event)| match event {
            Event::Eval { step: of, .. } | Event::Sample { step: of, .. } => *of == step,
            _ => false,
        })
    }
}

/// Removes the event files of a run that is discarded.
pub(super) fn discard(run: &RunDir) -> Result<()> {
    let folder = run.tensorboard();
    for (_, path) in files(&folder)? {
        if path.to_string_lossy().ends_with(SUFFIX) {
            fs::remove_file(&path).map_err(Error::write(&path))?;
        }
    }
    Ok(())
}

/// Event files in `folder`, each with its number; others' carry a time in its place.
fn files(folder: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut files = Vec::new();
    let entries = match fs::read_dir(folder) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(files);
        }
        entries => entries.map_err(Error::read(folder))?,
    };
    for entry in entries {
        let path = entry.map_err(Error::read(folder))?.path();
        let number = path
            .file_name()
            .and_then(|name| name.to_str()?.strip_prefix(PREFIX))
            .and_then(|rest| rest.split('.').next()?.parse().ok());
        if let Some(number) = number {
            files.push((number, path));
        }
    }
    Ok(files)
}

#[cfg(test)]
mod reader;
#[cfg(test)]
mod tests;
