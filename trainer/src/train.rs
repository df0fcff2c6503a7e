//! The training run: open or resume it, the loop, and what happens at its ends.

mod open;
mod report;
mod startup;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::{Event, ExitCode, Phase, RunDir};

use crate::checkpoint::{Checkpoints, SaveOutcome, Snapshot, TrainState};
use crate::config::Config;
use crate::data::{Dataset, Loader};
use crate::engine::{Engine, MicroStep, UpdateStats};
use crate::error::{Error, Result};
use crate::eval;
use crate::metrics::Metrics;
use crate::schedule;
use crate::signals::Signals;
use crate::tokenizer::Tokenizer;

use self::open::load_newest;
pub use self::open::train;
pub(crate) use self::open::{identity, open_data, open_loader};
use self::startup::Startup;

/// A run in progress.
struct Trainer<'a> {
    config: Config,
    run: RunDir,
    signals: &'a Signals,
    metrics: &'a mut Metrics,
    dataset: Arc<Dataset>,
    tokenizer: Tokenizer,
    loader: Loader,
    engine: Box<dyn Engine>,
    checkpoints: Checkpoints,
    /// What a checkpoint carries besides the engine's state.
    state: TrainState,
    /// Step of the newest checkpoint handed over, and whether it knows its validation loss.
    saved: Option<(u64, bool)>,
    saved_at: Instant,
    /// How long training stood still for each checkpoint that is being written.
    stalls: BTreeMap<u64, Duration>,
    /// Why the newest checkpoint could not be written, if it could not.
    save_failure: Option<String>,
    last_losses: Option<eval::Losses>,
    /// Step and learning rate of the updates whose results the engine has not told.
    submitted: VecDeque<(u64, f64)>,
    /// Since when the update at hand takes its time.
    timed_from: Instant,
    startup: Startup,
}

/// How a run ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Finished,
    Stopped,
    Evaluated,
}

impl Trainer<'_> {
    /// nanoGPT's loop. An evaluation and a checkpoint at `step` see the model after `step` updates.
    fn run(&mut self) -> Result<Ending> {
        loop {
            let step = self.state.step;
            let at_end = step >= self.config.max_iters;
            let eval_due = every(self.config.eval_interval, step) || at_end;
            let val_loss = if eval_due || self.config.eval_only {
                if self.settle()? {
                    continue;
                }
                self.evaluate(step)?
            } else {
                None
            };
            if self.config.eval_only {
                // Only a stop leaves it without its loss.
                let evaluated = val_loss.is_some();
                return Ok(if evaluated {
                    Ending::Evaluated
                } else {
                    Ending::Stopped
                });
            }
            let stop = self.signals.stop_requested();
            if stop || at_end || self.checkpoint_is_due(step, val_loss) {
                if self.settle()? {
                    continue;
                }
                self.save(val_loss)?;
            }
            if stop || at_end {
                self.wait_for_checkpoints()?;
                // Without its last evaluation a run is not finished; resuming makes up for it.
                let finished = at_end && val_loss.is_some();
                return Ok(if finished {
                    Ending::Finished
                } else {
                    Ending::Stopped
                });
            }

            if self.submitted.is_empty() {
                self.timed_from = Instant::now();
            }
            let data_step = step + self.state.data_offset;
            for micro in 0..self.config.gradient_accumulation_steps {
                let at = MicroStep {
                    step: data_step,
                    micro,
                };
                self.engine
                    .forward_backward(&self.loader.batch(data_step, micro), at)?;
            }
            let lr = schedule::learning_rate(&self.config, step);
            let stats = self.engine.submit_update(lr)?;
            self.submitted.push_back((step, lr));
            self.state.step += 1;
            self.state.tokens += self.config.tokens_per_iteration();
            if let Some(stats) = stats
                && self.account(stats)?
            {
                continue;
            }
            let outcomes = self.checkpoints.poll();
            self.report_saves(outcomes);
            for warning in self.engine.take_warnings() {
                self.metrics.warning(&warning);
            }
        }
    }

    /// Takes note of the oldest update that was not told yet; whether the run was rolled back.
    fn account(&mut self, stats: UpdateStats) -> Result<bool> {
        let (step, lr) = self.submitted.pop_front().expect("it was submitted");
        if let Some(reason) = self.divergence(step, stats) {
            // What came after it is void as well.
            self.state.step = step;
            self.roll_back(step, &reason)?;
            return Ok(true);
        }
        let now = Instant::now();
        let seconds = (now - std::mem::replace(&mut self.timed_from, now)).as_secs_f64();
        let log = every(self.config.log_interval, step);
        self.metrics.step(step, stats, lr, seconds, log);
        Ok(false)
    }

    /// Waits for the updates that were not told yet; whether the run was rolled back.
    fn settle(&mut self) -> Result<bool> {
        while let Some(stats) = self.engine.finish()? {
            if self.account(stats)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The validation loss; `None` where a stop came in between.
    fn evaluate(&mut self, step: u64) -> Result<Option<f64>> {
        self.metrics.phase(Phase::Evaluating);
        let begin = Instant::now();
        let stop = || self.signals.stop_requested();
        let losses = eval::losses(
            self.engine.as_mut(),
            &self.loader,
            self.config.eval_iters,
            &stop,
        )?;
        let Some(losses) = losses else {
            return Ok(None);
        };
        let best = self
            .state
            .best_val_loss
            .is_none_or(|best| losses.val < best);
        self.metrics
            .eval(step, losses, best, begin.elapsed().as_secs_f64());
        if !(losses.train.is_finite() && losses.val.is_finite()) {
            return Err(Error::Diverged(format!(
                "step {step}: the evaluation's loss is not finite (train {}, val {})",
                losses.train, losses.val
            )));
        }
        if best {
            self.state.best_val_loss = Some(losses.val);
        }
        self.last_losses = Some(losses);
        self.metrics.phase(Phase::Training);
        Ok(Some(losses.val))
    }

    /// nanoGPT saves after an evaluation, always or if it is the best so far, and never at step 0.
    /// Ours also saves by steps, by the clock and on request.
    fn checkpoint_is_due(&self, step: u64, val_loss: Option<f64>) -> bool {
        let asked = self.signals.take_checkpoint_request();
        let improved = val_loss.is_some() && val_loss == self.state.best_val_loss;
        let evaluated = val_loss.is_some() && (improved || self.config.always_save_checkpoint);
        let minutes = self.saved_at.elapsed().as_secs_f64() / 60.0;
        let by_clock =
            self.config.checkpoint_minutes > 0.0 && minutes >= self.config.checkpoint_minutes;
        let by_steps = every(self.config.checkpoint_interval, step);
        asked || step > 0 && (evaluated || by_clock || by_steps)
    }

    /// Hands a checkpoint of this step to the writer, unless it has it.
    fn save(&mut self, val_loss: Option<f64>) -> Result<()> {
        let step = self.state.step;
        self.saved_at = Instant::now();
        if self
            .saved
            .is_some_and(|(s, knows_loss)| s == step && (knows_loss || val_loss.is_none()))
        {
            return Ok(());
        }
        let begin = Instant::now();
        let (state, config_hash) = (self.state.clone(), self.config.hash());
        let tokenizer = &self.tokenizer;
        let tokenizer = Some((tokenizer.file_name().to_owned(), tokenizer.to_bytes()));
        let engine = self.engine.snapshot()?;
        self.checkpoints.save(step, move || {
            Ok(Snapshot {
                state,
                engine: engine()?,
                tokenizer,
                config_hash,
                val_loss,
            })
        })?;
        self.stalls.insert(step, begin.elapsed());
        self.saved = Some((step, val_loss.is_some()));
        Ok(())
    }

    fn report_saves(&mut self, outcomes: Vec<SaveOutcome>) {
        for outcome in outcomes {
            match outcome {
                SaveOutcome::Written {
                    step,
                    path,
                    bytes,
                    write_ms,
                    ..
                } => {
                    let stall = self.stalls.remove(&step).unwrap_or_default();
                    self.save_failure = None;
                    let stall_ms = stall.as_secs_f64() * 1e3;
                    let event = Event::Checkpoint {
                        step,
                        path,
                        bytes,
                        stall_ms,
                        write_ms,
                    };
                    self.metrics.record(event);
                }
                SaveOutcome::Failed { step, error } => {
                    self.stalls.remove(&step);
                    self.saved = None;
                    let message = format!("the checkpoint of step {step} was not saved: {error}");
                    self.metrics.warning(&message);
                    self.save_failure = Some(message);
                }
                SaveOutcome::NotPruned { step, error } => {
                    self.metrics.warning(&format!("step {step}: {error}"));
                }
            }
        }
    }

    /// Waits until what was handed over is on disk.
    fn wait_for_checkpoints(&mut self) -> Result<()> {
        self.metrics.phase(Phase::Checkpointing);
        let outcomes = self.checkpoints.finish();
        self.report_saves(outcomes);
        match self.save_failure.take() {
            Some(message) => Err(Error::NotSaved(message)),
            None => Ok(()),
        }
    }

    /// Why this iteration counts as diverged, if it does; else its loss enters the running mean.
    fn divergence(&mut self, step: u64, stats: UpdateStats) -> Option<String> {
        /// Weight of the newest loss in the running mean.
        const MEAN_WEIGHT: f64 = 0.02;
        /// Below this, in nats, the loss of a single batch may well be a multiple of the mean.
        const MEAN_FLOOR: f64 = 1.0;
        let UpdateStats {
            loss,
            grad_norm,
            overflowed,
        } = stats;
        if overflowed {
            return None;
        }
        if !(loss.is_finite() && grad_norm.is_finite()) {
            return Some(format!(
                "iteration {step}: loss {loss}, gradient norm {grad_norm}"
            ));
        }
        let mean = self.state.loss_mean.unwrap_or(loss);
        let limit = self.config.divergence_factor * mean.max(MEAN_FLOOR);
        if self.config.divergence_factor > 0.0 && loss > limit {
            return Some(format!(
                "iteration {step}: loss {loss:.4} is above {limit:.4}, which is {} times its \
                 running mean {mean:.4} (at least {MEAN_FLOOR})",
                self.config.divergence_factor
            ));
        }
        self.state.loss_mean = Some(mean + MEAN_WEIGHT * (loss - mean));
        None
    }

    /// Goes back to the newest checkpoint and past the data that led to `step`, or gives up.
    fn roll_back(&mut self, step: u64, reason: &str) -> Result<()> {
        let give_up = |why: &str| Err(Error::Diverged(format!("{reason}{why}")));
        if self.config.on_divergence != "rollback" {
            return give_up(
                "\nhint: a lower learning_rate, a longer warmup_iters, or \
                 --on_divergence=rollback to skip the data that led here",
            );
        }
        if self.state.rollbacks >= self.config.rollback_max {
            return give_up(&format!(", after {} rollbacks", self.state.rollbacks));
        }
        let outcomes = self.checkpoints.finish();
        self.report_saves(outcomes);
        let loaded = load_newest(&self.run, self.metrics)?;
        let Some(loaded) = loaded else {
            return give_up(", and there is no checkpoint to go back to");
        };
        let bad_data_step = step + self.state.data_offset;
        let rollbacks = self.state.rollbacks + 1;
        self.engine.load_state(&loaded.engine)?;
        self.submitted.clear();
        self.saved = Some((loaded.state.step, loaded.manifest.val_loss.is_some()));
        self.state = TrainState {
            data_offset: bad_data_step + 1 - loaded.state.step,
            rollbacks,
            config: self.state.config.clone(),
            ..loaded.state
        };
        self.metrics.warning(&format!(
            "{reason}: back to the checkpoint of step {}, skipping the data in between \
             (rollback {rollbacks} of {})",
            self.state.step, self.config.rollback_max
        ));
        self.metrics.went_back(self.state.step);
        Ok(())
    }
}

/// Whether something that happens every `interval` steps is due; 0 = never.
fn every(interval: u64, step: u64) -> bool {
    interval > 0 && step.is_multiple_of(interval)
}

impl Ending {
    fn exit_code(self) -> ExitCode {
        match self {
            Self::Finished | Self::Evaluated => ExitCode::Finished,
            Self::Stopped => ExitCode::Stopped,
        }
    }
}
