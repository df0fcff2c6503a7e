//! What a run has measured, out of its `events.jsonl`, and as CSV. Called by `trainer plot`,
//! `trainer export` and [`super::tensorboard`].

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;

use protocol::{Event, Record, RunDir};

use crate::error::{Error, Result};

/// What one iteration measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Seconds since 1970, where the record says so.
    pub time: f64,
    /// Nats per token.
    pub loss: f64,
    pub learning_rate: f64,
    pub grad_norm: f64,
    pub tokens_per_second: f64,
    /// 0 to 1.
    pub mfu: Option<f64>,
}

/// Losses of one evaluation, nats per token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    pub time: f64,
    pub train: f64,
    pub val: f64,
}

/// A run's measurements by step. What a resume went back on is left out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    pub steps: BTreeMap<u64, Step>,
    pub evaluations: BTreeMap<u64, Evaluation>,
    /// Time and text.
    pub samples: BTreeMap<u64, (f64, String)>,
}

impl History {
    /// # Errors
    /// [`Error::Data`] if the run has no events, or they cannot be read.
    pub fn read(run: &RunDir) -> Result<Self> {
        let path = run.events();
        if !path.exists() {
            return Err(Error::Data(format!(
                "{}: expected a run directory with events.jsonl, got none",
                run.root().display()
            )));
        }
        let text = fs::read_to_string(&path).map_err(Error::read(&path))?;
        Ok(Self::parse(&text))
    }

    /// Takes lines that are no events for nothing, as every reader does.
    pub fn parse(text: &str) -> Self {
        let mut history = Self::default();
        for Record { time, event, .. } in text.lines().filter_map(Record::parse) {
            let seconds = time.parse::<jiff::Timestamp>();
            let time = seconds.map_or(0.0, |time| time.as_millisecond() as f64 / 1e3);
            history.add(time, event);
        }
        history
    }

    fn add(&mut self, time: f64, event: Event) {
        match event {
            Event::Started { resumed_from, .. } => {
                let from = resumed_from.unwrap_or(0);
                self.steps.retain(|step, _| *step < from);
                self.evaluations.retain(|step, _| *step <= from);
                self.samples.retain(|step, _| *step <= from);
            }
            Event::Step {
                step,
                loss,
                lr,
                grad_norm,
                tokens_per_second,
                mfu,
                ..
            } => {
                // After a rollback the steps begin again at an earlier one.
                self.steps.split_off(&step);
                let later = step.saturating_add(1);
                self.evaluations.split_off(&later);
                self.samples.split_off(&later);
                let measured = Step {
                    time,
                    loss,
                    learning_rate: lr,
                    grad_norm,
                    tokens_per_second,
                    mfu,
                };
                self.steps.insert(step, measured);
            }
            Event::Eval {
                step,
                train_loss,
                val_loss,
                ..
            } => {
                let (train, val) = (train_loss, val_loss);
                let measured = Evaluation { time, train, val };
                self.evaluations.insert(step, measured);
            }
            Event::Sample { step, text } => {
                self.samples.insert(step, (time, text));
            }
            _ => {}
        }
    }

    /// A line for each step that measured anything; empty fields where it did not.
    pub fn csv(&self) -> String {
        let mut text =
            "step,loss,lr,grad_norm,tokens_per_second,mfu,eval_train_loss,eval_val_loss\n"
                .to_owned();
        let mut all: Vec<u64> = self
            .steps
            .keys()
            .chain(self.evaluations.keys())
            .copied()
            .collect();
        all.sort_unstable();
        all.dedup();
        let shown = |value: Option<f64>| match value {
            Some(value) if value.is_finite() => value.to_string(),
            _ => String::new(),
        };
        for step in all {
            let (made, seen) = (self.steps.get(&step), self.evaluations.get(&step));
            let fields = [
                made.map(|made| made.loss),
                made.map(|made| made.learning_rate),
                made.map(|made| made.grad_norm),
                made.map(|made| made.tokens_per_second),
                made.and_then(|made| made.mfu),
                seen.map(|seen| seen.train),
                seen.map(|seen| seen.val),
            ];
            write!(text, "{step}").expect("writing to a string cannot fail");
            for field in fields {
                write!(text, ",{}", shown(field)).expect("writing to a string cannot fail");
            }
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests;
