//! What the loop shows to whoever watches: the newest status, the history, series of values and
//! counts. The loop writes it; the HTTP server and the metrics read it. Neither waits.

mod counters;
mod history;
mod series;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

pub use counters::{BUCKETS, Counters, Histogram};
pub use history::{Entry, History};
pub use series::{NAMES, Point, Series};

use crate::clock::Moment;
use crate::redact::Redactor;
use crate::state::{Event, Level};
use crate::status::{self, JobStatus};

/// A status is shown anew this often even if nothing happened: what counts down goes on.
const SHOW_EVERY: Duration = Duration::from_secs(5);
/// The wall clock may run this far from the boot clock between two looks.
const JUMP: Duration = Duration::from_secs(2);

/// The loop's side.
pub struct Board {
    shown: watch::Sender<Arc<Shown>>,
    shared: Arc<Shared>,
    redactor: Arc<Redactor>,
    counters: Counters,
    /// Whether the trainer is known to save when it is asked to.
    pub can_save: bool,
    changed: bool,
    shown_at: Option<Moment>,
    /// Both clocks at the last look.
    clocks: Option<(Moment, SystemTime)>,
}

/// The readers' side.
#[derive(Clone)]
pub struct View {
    pub shown: watch::Receiver<Arc<Shown>>,
    shared: Arc<Shared>,
}

/// What the loop knew at one moment.
#[derive(Clone, Debug, Default)]
pub struct Shown {
    /// Without `logs`, without secrets.
    pub status: JobStatus,
    pub counters: Counters,
    /// The agent is about to end: nothing will be shown after this.
    pub over: bool,
    /// The end has begun.
    pub ending: bool,
    pub can_save: bool,
}

#[derive(Default)]
struct Shared {
    history: Mutex<History>,
    series: Mutex<Series>,
}

impl Board {
    pub fn new(redactor: Arc<Redactor>) -> Self {
        Self {
            shown: watch::Sender::default(),
            shared: Arc::default(),
            redactor,
            counters: Counters::default(),
            can_save: true,
            changed: true,
            shown_at: None,
            clocks: None,
        }
    }

    pub fn view(&self) -> View {
        View {
            shown: self.shown.subscribe(),
            shared: Arc::clone(&self.shared),
        }
    }

    /// Something happened: it is counted, and shown at the next look.
    pub fn hear(&mut self, event: &Event) {
        match event {
            Event::Tick => return,
            Event::Record(record) => lock(&self.shared.series).record(record),
            Event::Reported(report) => lock(&self.shared.series).report(report),
            _ => {}
        }
        self.changed = true;
        self.counters.hear(event);
    }

    /// A try to publish did not succeed; `fenced` = the lease was not ours any more.
    pub fn unpublished(&mut self, fenced: bool) {
        let outcome = if fenced { "fenced" } else { "failed" };
        *self.counters.checkpoints.entry(outcome).or_default() += 1;
    }

    /// The agent said something. What matters goes into the history.
    pub fn note(&self, level: Level, text: &str) {
        let text = self.redactor.redact(text);
        lock(&self.shared.history).say(level, &text);
    }

    /// Whether it is time to show a status again.
    pub fn is_due(&mut self, now: Moment) -> bool {
        self.watch_clocks(now, SystemTime::now());
        self.changed || self.shown_at.is_none_or(|at| now.since(at) >= SHOW_EVERY)
    }

    /// Shows a status.
    pub fn show(&mut self, status: JobStatus, ending: bool, over: bool, now: Moment) {
        self.changed = false;
        self.shown_at = Some(now);
        let mut json = serde_json::to_value(status).expect("a status is JSON");
        status::redact(&mut json, &self.redactor);
        let status: JobStatus = serde_json::from_value(json).expect("masks change texts only");
        lock(&self.shared.history).see(&status);
        self.shown.send_replace(Arc::new(Shown {
            status,
            counters: self.counters.clone(),
            over,
            ending,
            can_save: self.can_save,
        }));
    }

    fn watch_clocks(&mut self, now: Moment, wall: SystemTime) {
        if let Some((then, wall_then)) = self.clocks.replace((now, wall)) {
            let boot = now.since(then);
            let apart = match wall.duration_since(wall_then) {
                Ok(passed) => passed.abs_diff(boot),
                Err(back) => back.duration() + boot,
            };
            if apart > JUMP {
                self.counters.clock_jumps += 1;
            }
        }
    }
}

impl View {
    /// What was shown last.
    pub fn now(&self) -> Arc<Shown> {
        Arc::clone(&self.shown.borrow())
    }

    pub fn history<T>(&self, read: impl FnOnce(&History) -> T) -> T {
        read(&lock(&self.shared.history))
    }

    pub fn series<T>(&self, read: impl FnOnce(&Series) -> T) -> T {
        read(&lock(&self.shared.series))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
