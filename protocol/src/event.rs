//! `events.jsonl`: one JSON object a line, appended as things happen.
//!
//! Readers skip event types and fields that they do not know, and a torn last line is normal: the
//! writer may have been killed inside it. After a resume the file goes on; the `started` event says
//! from which step, and steps logged after that checkpoint are superseded.

use serde::{Deserialize, Serialize};

/// One line of `events.jsonl`: an event with its time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Wall-clock time, RFC 3339, UTC.
    pub time: String,
    /// Seconds since this trainer process started, from a monotonic clock.
    pub elapsed_s: f64,
    #[serde(flatten)]
    pub event: Event,
}

/// Everything a trainer reports.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// Data, model and device are ready and training begins or goes on. Only `phase` and `warning`
    /// events of the same process come before it.
    Started {
        /// Version of the trainer that writes this.
        version: String,
        /// Process id, for an operator.
        pid: u32,
        /// Name of the config, or the path it came from.
        config: String,
        /// SHA-256 of the resolved config, as in the manifest.
        config_hash: String,
        /// Engine: `candle`, …
        engine: String,
        /// Device: `cpu`, `cuda:0`, …
        device: String,
        threads: u32,
        /// Parameters as nanoGPT counts them: without the position embedding.
        parameters: u64,
        tokens_per_iteration: u64,
        /// Iterations that the whole run will make, counted from 0.
        max_iters: u64,
        /// The step of the checkpoint this process continues from.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        resumed_from: Option<u64>,
        /// What the time from the process's start to this event went to, milliseconds by stage, in
        /// their order: `process`, `device`, `data`, `engine`, `checkpoint`.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        startup_ms: Vec<(String, f64)>,
    },
    /// What the trainer is busy with from now on. Each phase has its own patience.
    Phase { phase: Phase },
    /// One optimizer step was made.
    Step {
        /// Index of the iteration, from 0, as in nanoGPT's `iter` line.
        step: u64,
        /// Mean training loss over the micro-steps, nats per token. JSON null if not finite.
        #[serde(with = "finite_or_null")]
        loss: f64,
        lr: f64,
        /// Global L2 norm of the gradient before clipping. JSON null if not finite.
        #[serde(with = "finite_or_null")]
        grad_norm: f64,
        /// Time of this iteration without evaluation and checkpoint, milliseconds.
        step_ms: f64,
        tokens_per_second: f64,
        /// Model FLOP utilisation against the device's measured or known peak, 0 to 1; absent
        /// while it is not known yet.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mfu: Option<f64>,
    },
    /// Losses on fixed windows of both splits, after `step` updates.
    Eval {
        step: u64,
        #[serde(with = "finite_or_null")]
        train_loss: f64,
        #[serde(with = "finite_or_null")]
        val_loss: f64,
        /// Whether this is the lowest validation loss so far.
        best: bool,
        eval_ms: f64,
    },
    /// A checkpoint is complete on disk.
    Checkpoint {
        /// Updates made.
        step: u64,
        /// Its directory, relative to the run directory.
        path: String,
        bytes: u64,
        /// How long training stood still for it, milliseconds.
        stall_ms: f64,
        /// How long writing took in the background, milliseconds.
        write_ms: f64,
    },
    /// Text generated during or after training.
    Sample { step: u64, text: String },
    /// Something the person should know; training goes on.
    Warning { message: String },
    /// The last event of a process that ended by itself.
    Finished {
        reason: String,
        exit_code: u8,
        /// Updates made.
        step: u64,
    },
}

/// What the trainer is busy with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Fetching and tokenising the dataset.
    Preparing,
    /// Opening data, building the model, reading a checkpoint.
    Loading,
    /// Building kernels or capturing graphs; some engines have no such phase.
    Compiling,
    Training,
    Evaluating,
    /// Training waits for a checkpoint to be written.
    Checkpointing,
}

impl Record {
    /// Reads one line. `None` for a torn line, an unknown event type or anything else that is not
    /// an event of this version: readers go on with the next line.
    pub fn parse(line: &str) -> Option<Self> {
        serde_json::from_str(line).ok()
    }

    /// The line for `events.jsonl`, without its newline.
    pub fn to_line(&self) -> String {
        serde_json::to_string(self).expect("events hold only strings, numbers and flags")
    }
}

/// JSON has no NaN: a loss that is not finite is written as null and read back as NaN.
mod finite_or_null {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        value.is_finite().then_some(*value).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(event: Event) -> Record {
        Record {
            time: "2026-01-02T03:04:05Z".to_owned(),
            elapsed_s: 1.5,
            event,
        }
    }

    #[test]
    fn a_step_reads_back_and_is_flat_json() {
        let step = record(Event::Step {
            step: 7,
            loss: 2.5,
            lr: 1e-3,
            grad_norm: 0.5,
            step_ms: 12.0,
            tokens_per_second: 1e4,
            mfu: None,
        });
        let line = step.to_line();
        assert!(
            line.contains(r#""event":"step","step":7,"loss":2.5"#),
            "{line}"
        );
        assert_eq!(Record::parse(&line), Some(step));
    }

    #[test]
    fn a_loss_that_is_not_finite_becomes_null() {
        let line = record(Event::Eval {
            step: 1,
            train_loss: f64::NAN,
            val_loss: f64::INFINITY,
            best: false,
            eval_ms: 1.0,
        })
        .to_line();
        assert!(
            line.contains(r#""train_loss":null,"val_loss":null"#),
            "{line}"
        );
        let Some(Record {
            event: Event::Eval { train_loss, .. },
            ..
        }) = Record::parse(&line)
        else {
            panic!("{line}");
        };
        assert!(train_loss.is_nan());
    }

    #[test]
    fn torn_lines_and_unknown_events_are_skipped_and_unknown_fields_ignored() {
        let line = record(Event::Phase {
            phase: Phase::Training,
        })
        .to_line();
        assert_eq!(Record::parse(&line[..line.len() - 3]), None);
        assert_eq!(
            Record::parse(&line.replace("phase\":\"training", "phase\":\"dreaming")),
            None
        );
        assert_eq!(
            Record::parse(&line.replace("event\":\"phase", "event\":\"novel")),
            None
        );
        let wider = line.replacen('{', "{\"added_later\":[1,2],", 1);
        assert_eq!(Record::parse(&wider), Record::parse(&line));
        assert!(Record::parse(&wider).is_some());
    }
}
