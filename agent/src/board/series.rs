//! Values over the steps of a run, in bounded memory: each bucket keeps the least, the greatest and
//! the last value of its steps. When there are too many buckets, each two become one.

use std::collections::BTreeMap;

use jiff::Timestamp;
use protocol::{Event, Record};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::progress::Report;

/// Names of the series.
pub const NAMES: [&str; 8] = [
    "loss",
    "train_loss",
    "val_loss",
    "lr",
    "grad_norm",
    "step_ms",
    "tokens_per_second",
    "mfu",
];

/// Buckets of a series.
const BUCKETS_MAX: usize = 4_096;

/// All series of a run.
#[derive(Debug, Default)]
pub struct Series {
    by_name: BTreeMap<&'static str, Values>,
}

#[derive(Debug)]
struct Values {
    /// Steps of a bucket: a power of two.
    stride: u64,
    /// By `step / stride`.
    buckets: BTreeMap<u64, Bucket>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    step: u64,
    time_ms: i64,
    min: f64,
    max: f64,
    last: f64,
}

/// A stretch of a series.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Point {
    /// The last step of the stretch.
    pub step: u64,
    /// Wall-clock time of that step.
    pub time: String,
    pub min: f64,
    pub max: f64,
    pub last: f64,
}

impl Default for Values {
    fn default() -> Self {
        Self {
            stride: 1,
            buckets: BTreeMap::new(),
        }
    }
}

impl Bucket {
    fn and(self, later: Self) -> Self {
        Self {
            min: self.min.min(later.min),
            max: self.max.max(later.max),
            ..later
        }
    }
}

impl Values {
    fn add(&mut self, new: Bucket) {
        // A step that comes again supersedes itself and all that came after it, but not what is
        // merged with it already.
        self.buckets.split_off(&(new.step / self.stride + 1));
        let slot = self.buckets.entry(new.step / self.stride).or_insert(new);
        *slot = if slot.step >= new.step {
            new
        } else {
            slot.and(new)
        };
        if self.buckets.len() > BUCKETS_MAX {
            self.stride *= 2;
            let old = std::mem::take(&mut self.buckets);
            for bucket in old.into_values() {
                let slot = self.buckets.entry(bucket.step / self.stride);
                slot.and_modify(|first| *first = first.and(bucket))
                    .or_insert(bucket);
            }
        }
    }
}

impl Series {
    pub(super) fn record(&mut self, record: &Record) {
        let time = &record.time;
        match &record.event {
            Event::Started { resumed_from, .. } => self.forget_from(resumed_from.unwrap_or(0)),
            Event::Step {
                step,
                loss,
                lr,
                grad_norm,
                step_ms,
                tokens_per_second,
                mfu,
            } => {
                let values = [
                    ("loss", Some(*loss)),
                    ("lr", Some(*lr)),
                    ("grad_norm", Some(*grad_norm)),
                    ("step_ms", Some(*step_ms)),
                    ("tokens_per_second", Some(*tokens_per_second)),
                    ("mfu", *mfu),
                ];
                self.add_all(step + 1, time, &values);
            }
            Event::Eval {
                step,
                train_loss,
                val_loss,
                ..
            } => {
                let values = [
                    ("train_loss", Some(*train_loss)),
                    ("val_loss", Some(*val_loss)),
                ];
                self.add_all(*step, time, &values);
            }
            _ => {}
        }
    }

    pub(super) fn report(&mut self, report: &Report) {
        let Some(step) = report.step else {
            return;
        };
        let step_ms = report.step_time.map(|time| time.as_secs_f64() * 1e3);
        let values = [
            ("loss", report.loss),
            ("train_loss", report.train_loss),
            ("val_loss", report.val_loss),
            ("lr", report.lr),
            ("grad_norm", report.grad_norm),
            ("step_ms", step_ms),
            ("tokens_per_second", report.tokens_per_second),
            ("mfu", report.mfu),
        ];
        self.add_all(step, &report.time, &values);
    }

    fn add_all(&mut self, step: u64, time: &str, values: &[(&'static str, Option<f64>)]) {
        let time_ms = time.parse().map_or(0, Timestamp::as_millisecond);
        for &(name, value) in values {
            if let Some(value) = value.filter(|value| value.is_finite()) {
                self.by_name.entry(name).or_default().add(Bucket {
                    step,
                    time_ms,
                    min: value,
                    max: value,
                    last: value,
                });
            }
        }
    }

    /// A run goes on from this step: what came after it is superseded.
    fn forget_from(&mut self, step: u64) {
        for values in self.by_name.values_mut() {
            values.buckets.retain(|_, bucket| bucket.step <= step);
        }
    }

    /// A series in at most `points_max` points; `None` for a name that there is not.
    pub fn points(&self, name: &str, points_max: usize) -> Option<Vec<Point>> {
        let name = NAMES.into_iter().find(|known| *known == name)?;
        let Some(values) = self.by_name.get(name) else {
            return Some(Vec::new());
        };
        let all: Vec<Bucket> = values.buckets.values().copied().collect();
        let size = all.len().div_ceil(points_max.max(1)).max(1);
        let merged = all.chunks(size).filter_map(|chunk| {
            let bucket = chunk.iter().copied().reduce(Bucket::and)?;
            Some(Point {
                step: bucket.step,
                time: Timestamp::from_millisecond(bucket.time_ms)
                    .map_or_else(|_| String::new(), |time| format!("{time:.3}")),
                min: bucket.min,
                max: bucket.max,
                last: bucket.last,
            })
        });
        Some(merged.collect())
    }
}
