//! What a trainer prints, read as progress: nanoGPT's lines, Hugging Face's dictionaries, progress
//! bars, and `Epoch a/b … loss: x`. Called by the loop several times a second.

use std::sync::LazyLock;

use regex::Regex;

use super::body::{count, seconds};
use super::now;
use crate::child::Source;
use crate::logs::{Logs, Query};
use crate::progress::Report;

/// Lines read at once; what a flood has beyond that comes at the next look.
const LINES_MAX: usize = 2_000;

/// Whether output is read for progress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ParseLogs {
    /// Until the trainer writes an event.
    #[default]
    Auto,
    Always,
    Never,
}

/// Reads the log from where it was left.
#[derive(Debug, Default)]
pub struct Lines {
    parse: ParseLogs,
    after: Option<u64>,
    tokens_per_step: Option<u64>,
}

impl Lines {
    pub fn new(parse: ParseLogs) -> Self {
        Self {
            parse,
            ..Self::default()
        }
    }

    /// What was printed since the last look. `writes_events`: the trainer has a better way.
    pub fn read(&mut self, logs: &Logs, writes_events: bool) -> Vec<Report> {
        let off = match self.parse {
            ParseLogs::Auto => writes_events,
            ParseLogs::Always => false,
            ParseLogs::Never => true,
        };
        if off {
            return Vec::new();
        }
        let query = Query {
            after: self.after,
            limit: LINES_MAX,
            ..Query::default()
        };
        let page = logs.page(&query);
        self.after = page.next;
        let lines = page
            .lines
            .iter()
            .filter(|line| line.source != Source::Agent);
        lines
            .filter_map(|line| {
                let mut report = parse(&line.line)?;
                report.time.clone_from(&line.time);
                // Said once, at the start.
                self.tokens_per_step = report.tokens_per_step.or(self.tokens_per_step);
                if let (Some(tokens), Some(time)) = (self.tokens_per_step, report.step_time)
                    && !time.is_zero()
                {
                    report.tokens_per_second = Some(tokens as f64 / time.as_secs_f64());
                }
                Some(report)
            })
            .collect()
    }
}

/// A number as Python prints it.
const NUMBER: &str = r"([-+]?(?:[0-9]+\.?[0-9]*(?:[eE][-+]?[0-9]+)?|nan|inf))";

struct Table {
    iter: Regex,
    step: Regex,
    max_iters: Regex,
    tokens: Regex,
    value: Regex,
    bar: Regex,
    epoch_bar: Regex,
    epoch: Regex,
    loss: Regex,
}

static TABLE: LazyLock<Table> = LazyLock::new(|| {
    let make = |pattern: &str| {
        let pattern = pattern.replace("NUMBER", NUMBER);
        Regex::new(&pattern).expect("each is tried by a test")
    };
    Table {
        iter: make(r"^iter ([0-9]+): loss NUMBER, time NUMBERms(?:, mfu NUMBER%)?"),
        step: make(r"^step ([0-9]+): train loss NUMBER, val loss NUMBER"),
        max_iters: make(r"^(?:Overriding: )?max_iters\s*=\s*([0-9]+)"),
        tokens: make(r"^tokens per iteration will be: ([0-9,]+)"),
        value: make(r"'([a-z_]+)': '?NUMBER'?[,}]"),
        bar: make(r"^\s*[0-9]+%\|[^|]*\| *([0-9]+)/([0-9]+) \["),
        epoch_bar: make(r"^Epoch ([0-9]+): +([0-9]+)%\|"),
        epoch: make(r"Epoch:?\s+\[?([0-9]+)/([0-9]+)"),
        loss: make(r"(?:^|[^a-z_])loss[:=]\s*NUMBER"),
    }
});

/// The report in a line, if there is one.
pub fn parse(line: &str) -> Option<Report> {
    let table = &*TABLE;
    let report = Report {
        time: now(),
        ..Report::default()
    };
    let float = |text: &str| text.parse::<f64>().ok();
    if let Some(found) = table.iter.captures(line) {
        let mfu = found.get(4).and_then(|it| float(it.as_str()));
        return Some(Report {
            // The line comes after the update of this index.
            step: found[1]
                .parse::<u64>()
                .ok()
                .and_then(|index| index.checked_add(1)),
            loss: float(&found[2]),
            step_time: float(&found[3]).and_then(|ms| seconds(ms / 1e3)),
            // nanoGPT says -100 % while it does not know.
            mfu: mfu.map(|percent| percent / 100.0).filter(|mfu| *mfu >= 0.0),
            ..report
        });
    }
    if let Some(found) = table.step.captures(line) {
        return Some(Report {
            step: found[1].parse().ok(),
            train_loss: float(&found[2]),
            val_loss: float(&found[3]),
            ..report
        });
    }
    if let Some(found) = table.max_iters.captures(line) {
        let total_steps = found[1].parse().ok();
        return Some(Report {
            total_steps,
            ..report
        });
    }
    if let Some(found) = table.tokens.captures(line) {
        let tokens_per_step = found[1].replace(',', "").parse().ok();
        return Some(Report {
            tokens_per_step,
            ..report
        });
    }
    if line.trim_start().starts_with("{'") {
        return dictionary(table, line, report);
    }
    if let Some(found) = table.bar.captures(line) {
        let (step, total_steps) = (found[1].parse().ok(), found[2].parse().ok());
        return Some(Report {
            step,
            total_steps,
            ..report
        });
    }
    epochs(table, line, report)
}

/// `Epoch a/b … loss: x`, a bar of an epoch, or a loss alone.
fn epochs(table: &Table, line: &str, report: Report) -> Option<Report> {
    let float = |text: &str| text.parse::<f64>().ok();
    let loss = table.loss.captures(line).and_then(|found| float(&found[1]));
    if let Some(found) = table.epoch_bar.captures(line) {
        let part = float(&found[2])? / 100.0;
        let epoch = float(&found[1]).map(|epoch| epoch + part);
        return Some(Report {
            epoch,
            loss,
            ..report
        });
    }
    let found = table.epoch.captures(line);
    if let Some(found) = found {
        let (epoch, total_epochs) = (float(&found[1]), float(&found[2]));
        return Some(Report {
            epoch,
            total_epochs,
            loss,
            ..report
        });
    }
    loss.map(|loss| Report {
        loss: Some(loss),
        ..report
    })
}

/// `{'loss': 2.9, 'grad_norm': 1.0, 'learning_rate': 5e-05, 'epoch': 1.2}`.
fn dictionary(table: &Table, line: &str, mut report: Report) -> Option<Report> {
    let mut known = false;
    for found in table.value.captures_iter(line) {
        let Ok(value) = found[2].parse::<f64>() else {
            continue;
        };
        let slot = match &found[1] {
            "loss" => &mut report.loss,
            "eval_loss" => &mut report.val_loss,
            "train_loss" => &mut report.train_loss,
            "learning_rate" => &mut report.lr,
            "grad_norm" => &mut report.grad_norm,
            "epoch" => &mut report.epoch,
            "step" => {
                report.step = count(value);
                known = true;
                continue;
            }
            _ => continue,
        };
        *slot = Some(value);
        known = true;
    }
    known.then_some(report)
}
