//! What the trainer's events say: where it stands, how it goes, and when it last moved. Fed by the
//! supervisor; read by the status and by the stall timer.

use std::time::Duration;

use protocol::{Event, Phase, Record};

use crate::clock::Moment;

/// How many times longer than ever before a step or an evaluation may take before it counts as
/// stalled.
const SLOWER_MAX: u32 = 10;

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
                self.tokens_per_second = Some(*tokens_per_second);
                self.mfu = *mfu;
                self.step_time = milliseconds(*step_ms);
                self.slowest_pause = self.slowest_pause.max(paused);
            }
            Event::Eval { val_loss, .. } => {
                self.val_loss = val_loss.is_finite().then_some(*val_loss);
                self.slowest_pause = self.slowest_pause.max(paused);
            }
            Event::Checkpoint {
                stall_ms, write_ms, ..
            } => {
                let took = milliseconds(stall_ms + write_ms);
                self.save_time = self.save_time.max(took);
            }
            Event::Finished { reason, .. } => self.finished = Some(reason.clone()),
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

    /// Seconds to the end of the run at the present pace.
    pub fn eta(&self) -> Option<Duration> {
        let left = self.total_steps?.saturating_sub(self.step?);
        let left = u32::try_from(left).unwrap_or(u32::MAX);
        Some(self.step_time?.saturating_mul(left))
    }

    pub fn steps_per_second(&self) -> Option<f64> {
        let time = self.step_time?.as_secs_f64();
        (time > 0.0).then(|| 1.0 / time)
    }

    fn set_step(&mut self, step: u64) {
        self.step = Some(step);
        self.tokens = Some(step.saturating_mul(self.tokens_per_iteration));
    }
}

/// A duration out of an event; `None` for what no duration can be.
fn milliseconds(ms: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(ms / 1e3).ok()
}

#[cfg(test)]
mod tests;
