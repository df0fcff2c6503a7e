//! What a run reports: `events.jsonl` for programs, for a person either a progress bar or nanoGPT's
//! two lines, and where it is asked for, TensorBoard's event file.

mod board;
mod display;
pub mod tensorboard;

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Instant;

use jiff::Timestamp;
use protocol::{Event, Phase, Record, RunDir};

use self::board::Board;
use self::display::Display;
use crate::engine::UpdateStats;
use crate::error::{Error, Result};
use crate::eval::Losses;

pub use self::display::PrepareBar;

/// Reports of one trainer process.
pub struct Metrics {
    events: Option<EventLog>,
    board: Option<Board>,
    display: Display,
    throughput: Throughput,
    started: Instant,
}

/// What turns seconds into tokens/s and MFU.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    pub tokens_per_iteration: u64,
    pub flops_per_token: f64,
    /// Peak rate of the device, FLOP/s.
    pub peak_flops: Option<f64>,
}

impl Metrics {
    /// `progress` is the key of that name: `auto`, `bar` or `lines`. `started` is when the process
    /// began. Without a run directory nothing is recorded, only shown.
    ///
    /// # Errors
    /// If `events.jsonl` cannot be opened for appending.
    pub fn new(run: Option<&RunDir>, progress: &str, started: Instant) -> Result<Self> {
        let events = match run {
            Some(run) => {
                let path = run.events();
                Some(EventLog::open(&path).map_err(Error::write(&path))?)
            }
            None => None,
        };
        let display = Display::new(progress);
        Ok(Self {
            events,
            board: None,
            display,
            throughput: Throughput::default(),
            started,
        })
    }

    /// A line for the person.
    pub fn note(&mut self, line: &str) {
        self.display.line(line);
    }

    /// A warning for the person and for programs.
    pub fn warning(&mut self, message: &str) {
        self.display.line(&format!("warning: {message}"));
        self.record(Event::Warning {
            message: message.to_owned(),
        });
    }

    pub fn phase(&mut self, phase: Phase) {
        self.record(Event::Phase { phase });
    }

    /// The run goes from `step` to `max_iters`; from now on steps are timed and shown.
    pub fn begin(&mut self, step: u64, max_iters: u64, scale: Scale) {
        self.throughput = Throughput {
            scale: Some(scale),
            ..Throughput::default()
        };
        self.display.begin(step, max_iters);
    }

    /// After each iteration; `log` says whether `log_interval` asks for its line.
    pub fn step(&mut self, step: u64, stats: UpdateStats, lr: f64, seconds: f64, log: bool) {
        self.throughput.add(seconds);
        if !log {
            self.display.position(step + 1);
            return;
        }
        let rate = self.throughput.take();
        let mfu = rate.mfu.map_or(-100.0, |mfu| 100.0 * mfu);
        let loss = stats.loss;
        let milliseconds = rate.step_ms;
        self.display.step(
            step,
            &format!("iter {step}: loss {loss:.4}, time {milliseconds:.2}ms, mfu {mfu:.2}%"),
            loss,
            rate.tokens_per_second,
        );
        self.record(Event::Step {
            step,
            loss,
            lr,
            grad_norm: stats.grad_norm,
            step_ms: rate.step_ms,
            tokens_per_second: rate.tokens_per_second,
            mfu: rate.mfu,
        });
    }

    pub fn eval(&mut self, step: u64, losses: Losses, best: bool, seconds: f64) {
        let Losses { train, val } = losses;
        self.display.eval(
            &format!("step {step}: train loss {train:.4}, val loss {val:.4}"),
            losses.val,
        );
        self.record(Event::Eval {
            step,
            train_loss: train,
            val_loss: val,
            best,
            eval_ms: seconds * 1e3,
        });
    }

    /// Ends the progress bar, if there is one, leaving the terminal clean.
    pub fn end(&mut self) {
        self.display.end();
    }

    /// A bar for the preparation of a dataset.
    pub fn prepare_bar(&self) -> PrepareBar {
        self.display.prepare_bar()
    }

    /// Keeps an event file for TensorBoard from now on; the run begins or goes on at `step`.
    pub fn open_board(&mut self, run: &RunDir, step: u64, config: &str) {
        let now = seconds(Timestamp::now());
        match Board::create(run, now, step, config) {
            Ok(board) => self.board = Some(board),
            Err(error) => self.lose_board(&error),
        }
    }

    /// The run goes on from `step`, where it was before.
    pub fn went_back(&mut self, step: u64) {
        let Some(board) = &mut self.board else { return };
        if let Err(error) = board.start(seconds(Timestamp::now()), step) {
            self.lose_board(&error);
        }
    }

    /// An event file is a picture of the run and no part of it: what fails is told once.
    fn lose_board(&mut self, error: &Error) {
        self.board = None;
        self.warning(&format!(
            "{error}; the run goes on without its event file for TensorBoard"
        ));
    }

    /// Appends an event. A log that cannot be written is reported once and then left alone: a full
    /// disk must not end a run whose checkpoints may still find room elsewhere or later.
    pub fn record(&mut self, event: Event) {
        let now = Timestamp::now();
        let shown = self.board.as_mut();
        let shown = shown.map(|board| board.record(seconds(now), &event));
        if let Some(log) = &mut self.events {
            let record = Record {
                time: now.to_string(),
                elapsed_s: self.started.elapsed().as_secs_f64(),
                event,
            };
            if let Err(error) = log.append(&record)
                && !std::mem::replace(&mut log.failed, true)
            {
                self.display
                    .line(&format!("warning: cannot write events.jsonl: {error}"));
            }
        }
        if let Some(Err(error)) = shown {
            self.lose_board(&error);
        }
    }
}

/// Removes the event files of a run that is discarded.
///
/// # Errors
/// [`Error::Write`] if one cannot be removed.
pub fn discard_boards(run: &RunDir) -> Result<()> {
    board::discard(run)
}

/// Since 1970.
fn seconds(time: Timestamp) -> f64 {
    time.as_millisecond() as f64 / 1e3
}

/// The file `events.jsonl`, open for appending.
struct EventLog {
    file: File,
    failed: bool,
}

impl EventLog {
    fn open(path: &Path) -> io::Result<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(path)?;
        // A process killed inside a line leaves it torn; the next event must not be lost with it.
        if file.seek(SeekFrom::End(0))? > 0 {
            file.seek(SeekFrom::End(-1))?;
            let mut last = [0];
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                file.write_all(b"\n")?;
            }
        }
        Ok(Self {
            file,
            failed: false,
        })
    }

    /// One `write` for the line, so that a reader sees all of it or a torn end.
    fn append(&mut self, record: &Record) -> io::Result<()> {
        self.file.write_all((record.to_line() + "\n").as_bytes())
    }
}

/// Time per iteration and what follows from it, since the last line.
#[derive(Default)]
struct Throughput {
    scale: Option<Scale>,
    iterations: u64,
    seconds: f64,
    /// All iterations of this process.
    total_iterations: u64,
    mfu: Option<f64>,
}

struct Rate {
    step_ms: f64,
    tokens_per_second: f64,
    mfu: Option<f64>,
}

impl Throughput {
    /// nanoGPT's: the first iterations are not representative, then a running mean.
    const MFU_AFTER_ITERATIONS: u64 = 5;
    const MFU_KEEP: f64 = 0.9;

    fn add(&mut self, seconds: f64) {
        self.iterations += 1;
        self.total_iterations += 1;
        self.seconds += seconds;
    }

    fn take(&mut self) -> Rate {
        let scale = self.scale.expect("a run begins before it steps");
        let seconds = self.seconds / self.iterations as f64;
        let tokens_per_second = scale.tokens_per_iteration as f64 / seconds;
        if self.total_iterations > Self::MFU_AFTER_ITERATIONS
            && let Some(peak) = scale.peak_flops
        {
            let now = tokens_per_second * scale.flops_per_token / peak;
            let keep = Self::MFU_KEEP;
            self.mfu = Some(self.mfu.map_or(now, |mfu| keep * mfu + (1.0 - keep) * now));
        }
        self.iterations = 0;
        self.seconds = 0.0;
        Rate {
            step_ms: seconds * 1e3,
            tokens_per_second,
            mfu: self.mfu,
        }
    }
}

#[cfg(test)]
mod tests;
