//! What the trainer's events say: where it stands, how it goes, and when it last moved. Fed by the
//! supervisor; read by the status and by the stall timer.

use std::time::Duration;

use protocol::{Event, Phase, Record};

use crate::clock::Moment;

/// How many times longer than ever before a step or an evaluation may take before it counts as
/// stalled.
const SLOWER_MAX: u32 = 10;

/// What a trainer says of itself that writes no events; what it does not say is `None`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Wall-clock time, RFC 3339.
    pub time: String,
    /// `None` for training.
    pub phase: Option<Phase>,
    /// Updates made.
    pub step: Option<u64>,
    pub total_steps: Option<u64>,
    pub epoch: Option<f64>,
    pub total_epochs: Option<f64>,
    pub loss: Option<f64>,
    pub val_loss: Option<f64>,
    pub train_loss: Option<f64>,
    pub lr: Option<f64>,
    pub grad_norm: Option<f64>,
    pub step_time: Option<Duration>,
    pub tokens_per_second: Option<f64>,
    pub tokens_per_step: Option<u64>,
    pub mfu: Option<f64>,
    /// 0 to 100.
    pub percent: Option<f64>,
    pub eta: Option<Duration>,
}

/// What is known of one trainer process and of the run as a whole.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// What the trainer is busy with; `None` before its first event.
    pub phase: Option<Phase>,
    /// Whether this process has reported `started`: its signal handlers are in place by then.
    pub started: bool,
    /// Updates made.
    pub step: Option<u64>,
    pub total_steps: Option<u64>,
    /// Tokens that the run has seen by now.
    pub tokens: Option<u64>,
    pub loss: Option<f64>,
    pub val_loss: Option<f64>,
    pub lr: Option<f64>,
    pub grad_norm: Option<f64>,
    /// Passes over the data, as those trainers count that report them.
    pub epoch: Option<f64>,
    pub total_epochs: Option<f64>,
    pub tokens_per_second: Option<f64>,
    pub mfu: Option<f64>,
    /// Set when the newest loss or gradient is not a finite number.
    pub non_finite: bool,
    /// Wall-clock time of the newest event, as the trainer wrote it.
    pub updated_at: Option<String>,
    /// When this process last reported anything.
    pub moved: Option<Moment>,
    /// The trainer's own last words on why it ended.
    pub finished: Option<String>,
    /// Longest time that a checkpoint took to write.
    pub save_time: Option<Duration>,
    step_time: Option<Duration>,
    /// What the trainer itself says of how far it is and how long it will take, and since when.
    told_percent: Option<f64>,
    told_eta: Option<Duration>,
    /// The first step that this process reported, and when.
    first_step: Option<(u64, Moment)>,
    slowest_pause: Duration,
    tokens_per_iteration: u64,
}

impl Progress {
    /// A new trainer process: what the former one was busy with no longer counts.
    pub fn begin_process(&mut self, now: Moment) {
        self.phase = None;
        self.started = false;
        self.moved = Some(now);
        self.finished = None;
        self.first_step = None;
        self.told_percent = None;
        self.told_eta = None;
    }

    /// Takes in what a trainer reports that writes no events: by its output, or over HTTP. It never
    /// counts as `started`: such a trainer may know no signals.
    pub fn report(&mut self, report: &Report, now: Moment) {
        let paused = self.moved.map_or(Duration::ZERO, |moved| now.since(moved));
        self.moved = Some(now);
        self.updated_at = Some(report.time.clone());
        self.slowest_pause = self.slowest_pause.max(paused);
        self.phase = Some(report.phase.unwrap_or(Phase::Training));
        self.tokens_per_iteration = report.tokens_per_step.unwrap_or(self.tokens_per_iteration);
        // Lines of another counter, or of a rank that is behind, move nothing backward; a process
        // that begins anew does.
        let floor = self.first_step.and(self.step);
        if let Some(step) = report.step.filter(|&step| Some(step) >= floor) {
            self.set_step(step);
            let first = *self.first_step.get_or_insert((step, now));
            self.step_time = measured(report.step_time, first, (step, now)).or(self.step_time);
        }
        if let Some(loss) = report.loss {
            self.non_finite = !loss.is_finite();
            self.loss = loss.is_finite().then_some(loss);
        }
        let finite = |new: Option<f64>, old| new.filter(|value| value.is_finite()).or(old);
        // A bar of another, shorter loop is none of the run.
        self.total_steps = self.total_steps.max(report.total_steps);
        self.val_loss = finite(report.val_loss, self.val_loss);
        self.lr = finite(report.lr, self.lr);
        self.grad_norm = finite(report.grad_norm, self.grad_norm);
        self.epoch = finite(report.epoch, self.epoch);
        self.total_epochs = finite(report.total_epochs, self.total_epochs);
        self.tokens_per_second = finite(report.tokens_per_second, self.tokens_per_second);
        self.mfu = finite(report.mfu, self.mfu);
        self.told_percent = finite(report.percent, self.told_percent);
        self.told_eta = report.eta.or(self.told_eta);
    }

    /// Takes one event in.
    pub fn record(&mut self, record: &Record, now: Moment) {
        let paused = self.moved.map_or(Duration::ZERO, |moved| now.since(moved));
        self.moved = Some(now);
        self.updated_at = Some(record.time.clone());
        match &record.event {
            Event::Started {
                max_iters,
                tokens_per_iteration,
                resumed_from,
                ..
            } => {
                self.started = true;
                self.total_steps = Some(*max_iters);
                self.tokens_per_iteration = *tokens_per_iteration;
                self.set_step(resumed_from.unwrap_or(0));
            }
            Event::Phase { phase } => self.phase = Some(*phase),
            Event::Step {
                step,
                loss,
                lr,
                grad_norm,
                step_ms,
                tokens_per_second,
                mfu,
            } => {
                self.phase = Some(Phase::Training);
                self.set_step(step + 1);
                self.non_finite = !loss.is_finite() || !grad_norm.is_finite();
                self.loss = loss.is_finite().then_some(*loss);
                self.lr = Some(*lr);
                self.grad_norm = grad_norm.is_finite().then_some(*grad_norm);
                self.tokens_per_second = Some(*tokens_per_second);
                self.mfu = *mfu;
                self.step_time = milliseconds(*step_ms);
                self.slowest_pause = self.slowest_pause.max(paused);
            }
            Event::Eval { step, val_loss, .. } => {
                self.set_step(*step);
                self.val_loss = val_loss.is_finite().then_some(*val_loss);
                self.slowest_pause = self.slowest_pause.max(paused);
            }
            Event::Checkpoint {
                stall_ms, write_ms, ..
            } => {
                let took = milliseconds(stall_ms + write_ms);
                self.save_time = self.save_time.max(took);
            }
            Event::Finished { reason, step, .. } => {
                self.set_step(*step);
                self.finished = Some(reason.clone());
            }
            Event::Sample { .. } | Event::Warning { .. } => {}
        }
    }

    /// How long the trainer may be silent now. `start` is the patience before training, `stall`
    /// that of training; a trainer whose steps are slow by nature gets more.
    pub fn patience(&self, start: Duration, stall: Duration) -> Duration {
        match self.phase {
            None | Some(Phase::Preparing | Phase::Loading | Phase::Compiling) => start,
            Some(Phase::Training | Phase::Evaluating | Phase::Checkpointing) => {
                stall.max(self.slowest_pause * SLOWER_MAX)
            }
        }
    }

    /// Time to the end of the run at the present pace, or as the trainer says.
    pub fn eta(&self) -> Option<Duration> {
        if self.told_eta.is_some() {
            return self.told_eta;
        }
        let left = self.total_steps?.saturating_sub(self.step?);
        let left = u32::try_from(left).unwrap_or(u32::MAX);
        Some(self.step_time?.saturating_mul(left))
    }

    /// How far the run is, 0 to 100.
    pub fn percent(&self) -> Option<f64> {
        let part = |done: f64, of: f64| (of > 0.0).then(|| (done * 100.0 / of).clamp(0.0, 100.0));
        let steps = || part(self.step? as f64, self.total_steps? as f64);
        let epochs = || part(self.epoch?, self.total_epochs?);
        self.told_percent.or_else(steps).or_else(epochs)
    }

    /// The time that the newest step took.
    pub fn step_time(&self) -> Option<Duration> {
        self.step_time
    }

    pub fn steps_per_second(&self) -> Option<f64> {
        let time = self.step_time?.as_secs_f64();
        (time > 0.0).then(|| 1.0 / time)
    }

    fn set_step(&mut self, step: u64) {
        self.step = Some(step);
        let known = self.tokens_per_iteration > 0;
        self.tokens = known.then(|| step.saturating_mul(self.tokens_per_iteration));
    }
}

/// The time of a step: as it was told, else the mean since the first one that was reported.
fn measured(
    told: Option<Duration>,
    (first, since): (u64, Moment),
    (step, now): (u64, Moment),
) -> Option<Duration> {
    let steps = u32::try_from(step - first).ok().filter(|&steps| steps > 0);
    told.or_else(|| Some(now.since(since) / steps?))
}

/// A duration out of an event; `None` for what no duration can be.
fn milliseconds(ms: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(ms / 1e3).ok()
}

#[cfg(test)]
mod tests;
