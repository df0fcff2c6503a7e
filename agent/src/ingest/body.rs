//! Reads what trainers post: Kubeflow's `trainerStatus`, and lines of JSON. Numbers may come as
//! texts; names that are not known are passed over.

use std::time::Duration;

use serde_json::{Map, Value};

use super::now;
use crate::progress::Report;

/// Lines of one body.
const LINES_MAX: usize = 10_000;
/// Longer than any run: ten years.
const SECONDS_MAX: f64 = 315_360_000.0;

/// A report from the body of Kubeflow's protocol.
pub(super) fn kubeflow(bytes: &[u8]) -> Result<Report, String> {
    let body: Value =
        serde_json::from_slice(bytes).map_err(|error| format!("not JSON: {error}"))?;
    let status = body.get("trainerStatus").and_then(Value::as_object);
    let status = status.ok_or("expected an object with trainerStatus")?;
    let mut values = Map::new();
    for metric in status
        .get("metrics")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        if let (Some(name), Some(value)) = (
            metric.get("name").and_then(Value::as_str),
            metric.get("value"),
        ) {
            values.insert(name.to_owned(), value.clone());
        }
    }
    let mut report = read(&values);
    report.percent =
        number(status.get("progressPercentage")).filter(|it| (0.0..=100.0).contains(it));
    report.eta = number(status.get("estimatedRemainingSeconds")).and_then(seconds);
    if let Some(time) = status.get("lastUpdatedTime").and_then(Value::as_str)
        && let Ok(time) = time.parse::<jiff::Timestamp>()
    {
        report.time = format!("{time:.3}");
    }
    Ok(report)
}

/// Reports from lines of JSON objects.
pub(super) fn lines(bytes: &[u8]) -> Result<Vec<Report>, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| format!("not UTF-8: {error}"))?;
    let lines = text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty());
    let mut reports = Vec::new();
    for (at, line) in lines {
        if reports.len() == LINES_MAX {
            return Err(format!("expected at most {LINES_MAX} lines"));
        }
        let values: Map<String, Value> = serde_json::from_str(line)
            .map_err(|error| format!("line {}: expected an object: {error}", at + 1))?;
        reports.push(read(&values));
    }
    Ok(reports)
}

/// The values of a report under the names that trainers give them.
pub(super) fn read(values: &Map<String, Value>) -> Report {
    let any = |names: &[&str]| names.iter().find_map(|name| number(values.get(*name)));
    let whole = |names: &[&str]| any(names).and_then(count);
    let time = values
        .get("time")
        .or_else(|| values.get("ts"))
        .and_then(Value::as_str);
    let time = time.and_then(|time| time.parse::<jiff::Timestamp>().ok());
    Report {
        time: time.map_or_else(now, |time| format!("{time:.3}")),
        phase: None,
        step: whole(&["step", "current_step", "global_step", "iter"]),
        total_steps: whole(&["total_steps", "max_steps", "max_iters"]),
        epoch: any(&["epoch", "current_epoch"]),
        total_epochs: any(&["total_epochs", "num_train_epochs"]),
        loss: any(&["loss", "train/loss"]),
        val_loss: any(&["val_loss", "eval_loss", "val/loss", "eval/loss"]),
        train_loss: any(&["train_loss"]),
        lr: any(&["lr", "learning_rate"]),
        grad_norm: any(&["grad_norm"]),
        step_time: any(&["step_ms"]).and_then(|ms| seconds(ms / 1e3)),
        tokens_per_second: any(&["tokens_per_second"]),
        tokens_per_step: whole(&["tokens_per_step"]),
        mfu: any(&["mfu"]),
        percent: any(&["percent"]).filter(|it| (0.0..=100.0).contains(it)),
        eta: any(&["eta_seconds"]).and_then(seconds),
    }
}

/// A number, or a text that is one. `NaN` is a text in JSON, and a loss can be it.
fn number(value: Option<&Value>) -> Option<f64> {
    match value? {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

pub(super) fn count(value: f64) -> Option<u64> {
    // Above this not every whole number is one of these.
    let exact = (0.0..9_007_199_254_740_992.0).contains(&value);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked"
    )]
    let count = value as u64;
    exact.then_some(count)
}

pub(super) fn seconds(value: f64) -> Option<Duration> {
    (0.0..=SECONDS_MAX)
        .contains(&value)
        .then(|| Duration::from_secs_f64(value))
}
