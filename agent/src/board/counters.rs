//! Counts and distributions of what happened, for the metrics page.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use protocol::Event as Trainer;

use crate::state::{Beat, Claim, Event, Exit};

/// Upper bounds of the histograms' buckets, seconds: from a tiny model's step to a large upload.
pub const BUCKETS: [f64; 16] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0,
    1800.0,
];

/// How long things took.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    /// Not cumulative; the last is beyond all bounds.
    pub counts: [u64; BUCKETS.len() + 1],
    pub sum: f64,
}

impl Histogram {
    pub fn observe(&mut self, seconds: f64) {
        if seconds.is_finite() && seconds >= 0.0 {
            let bucket = BUCKETS.partition_point(|&bound| bound < seconds);
            self.counts[bucket] += 1;
            self.sum += seconds;
        }
    }

    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// What was counted since this agent began. Keys are words of the agent's own, so few.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counters {
    pub steps: u64,
    pub tokens: u64,
    pub step_seconds: Histogram,
    pub save_seconds: Histogram,
    pub upload_seconds: Histogram,
    /// By outcome: `published`; `superseded`, a newer one was published instead; `failed` and
    /// `fenced`, a try that did not succeed, or was refused because the lease was not ours.
    pub checkpoints: BTreeMap<&'static str, u64>,
    pub uploaded_bytes: u64,
    /// By result: `held`, `lost`, `error`.
    pub renewals: BTreeMap<&'static str, u64>,
    pub takeovers: u64,
    /// By source: signals and providers' notices.
    pub notices: BTreeMap<String, u64>,
    /// By how the trainer ended: `out_of_memory`, `signal`, `exit`.
    pub trainer_ends: BTreeMap<&'static str, u64>,
    pub clock_jumps: u64,
    /// Wall-clock time of the trainer's last word and of the last publish, seconds since 1970.
    pub progress_at: Option<f64>,
    pub published_at: Option<f64>,
    tokens_per_iteration: u64,
    /// Steps of checkpoints that were found and not published.
    waiting: BTreeSet<u64>,
}

/// Checkpoints that wait and are remembered.
const WAITING_MAX: usize = 1_024;
/// Sources of notices that are counted apart.
const SOURCES_MAX: usize = 32;

impl Counters {
    pub(super) fn hear(&mut self, event: &Event) {
        match event {
            Event::Record(record) => self.trainer(&record.event),
            Event::Reported(report) => {
                self.progress_at = Some(unix_time());
                if let Some(time) = report.step_time {
                    self.step_seconds.observe(time.as_secs_f64());
                }
            }
            Event::CheckpointFound { step } if self.waiting.len() < WAITING_MAX => {
                self.waiting.insert(*step);
            }
            // What a restore brought was published before.
            Event::Started(_) => self.waiting.clear(),
            // Tries that failed are told apart by the loop: see `Board::unpublished`.
            Event::PublishEnded {
                step,
                result: Ok(published),
                ..
            } => {
                self.waiting.remove(step);
                let newer = self.waiting.split_off(step);
                let older = std::mem::replace(&mut self.waiting, newer);
                *self.checkpoints.entry("published").or_default() += 1;
                *self.checkpoints.entry("superseded").or_default() += older.len() as u64;
                self.uploaded_bytes += published.bytes;
                self.upload_seconds.observe(published.took.as_secs_f64());
                self.published_at = Some(unix_time());
            }
            Event::BeatAnswered { beat, .. } => {
                let result = match beat {
                    Ok(Beat::Held) => "held",
                    Ok(Beat::Superseded { .. }) => "lost",
                    Err(_) => "error",
                };
                *self.renewals.entry(result).or_default() += 1;
            }
            Event::Claimed {
                claim: Ok(Claim::Ours { epoch, .. }),
                ..
            } if *epoch > 1 => self.takeovers += 1,
            Event::Notice { source, .. } => {
                let known = self.notices.contains_key(source);
                if known || self.notices.len() < SOURCES_MAX {
                    *self.notices.entry(source.clone()).or_default() += 1;
                }
            }
            Event::Exited(exit) => {
                *self.trainer_ends.entry(how(exit)).or_default() += 1;
            }
            _ => {}
        }
    }

    fn trainer(&mut self, event: &Trainer) {
        self.progress_at = Some(unix_time());
        match event {
            Trainer::Started {
                tokens_per_iteration,
                ..
            } => self.tokens_per_iteration = *tokens_per_iteration,
            Trainer::Step { step_ms, .. } => {
                self.steps += 1;
                self.tokens += self.tokens_per_iteration;
                self.step_seconds.observe(step_ms / 1e3);
            }
            Trainer::Checkpoint {
                stall_ms, write_ms, ..
            } => self.save_seconds.observe((stall_ms + write_ms) / 1e3),
            _ => {}
        }
    }
}

fn how(exit: &Exit) -> &'static str {
    match exit {
        Exit {
            out_of_memory: true,
            ..
        } => "out_of_memory",
        Exit {
            signal: Some(_), ..
        } => "signal",
        _ => "exit",
    }
}

fn unix_time() -> f64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.unwrap_or(Duration::ZERO).as_secs_f64()
}
