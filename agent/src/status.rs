//! `status.json`: what a poller sees of a job, built from what the supervisor knows. Written to the
//! store by the holder, later served over HTTP as well.
//!
//! Optional fields are left out, never null; numbers that are not finite never occur.

use serde_json::{Map, Value, json};

use crate::bill;
use crate::clock::Moment;
use crate::logs::Line;
use crate::redact::Redactor;
use crate::state::{Lease, Reason, Risk, Stage, State, StopReason, Trainer};

#[cfg(test)]
mod tests;

pub const SCHEMA_VERSION: u32 = 1;

/// Lines of output in a status, and bytes of them together.
pub const LOG_LINES: usize = 50;
const LOG_BYTES_MAX: usize = 64 << 10;

/// What a job is doing, and the status that its phase belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Phase {
    pub phase: &'static str,
    pub status: &'static str,
}

/// What is not in the supervisor's state.
pub struct Extra<'a> {
    pub job: &'a str,
    /// Counts the statuses of this process.
    pub rev: u64,
    pub attempt: u32,
    pub started_at: &'a str,
    pub written_at: &'a str,
    pub lines: &'a [Line],
    pub holder: &'a str,
}

/// The phase of §5.3 of the background specification.
pub fn phase(state: &State) -> Phase {
    let of = |status, phase| Phase { phase, status };
    if let Some(ending) = &state.ending {
        return match (&ending.reason, ending.stage) {
            (_, Stage::Stopping) => of("running", "draining"),
            (Reason::Completed, _) if ending.recorded => of("completed", "succeeded"),
            (_, Stage::Publishing | Stage::Logs | Stage::Final) => of("running", "finalizing"),
            (reason, _) if reason.is_queued() => of("queued", reason.code()),
            (reason, _) => of("failed", reason.code()),
        };
    }
    match (&state.lease, &state.trainer) {
        (Lease::Probing(_), _) => of("provisioning", "probing_store"),
        (Lease::Seeking(seeking), Trainer::Absent { .. }) if seeking.watch.is_some() => {
            of("queued", "standby")
        }
        (Lease::Seeking(_) | Lease::Gone, Trainer::Absent { .. }) => of("provisioning", "claiming"),
        (_, Trainer::Restoring { .. }) => of("provisioning", "restoring"),
        (_, Trainer::Absent { .. }) => of("provisioning", "starting"),
        (_, Trainer::Running { stop, .. }) => {
            let stalled = stop.as_ref().is_some_and(|s| s.why == StopReason::Stalled);
            match state.progress.phase {
                _ if stalled => of("running", "stalled"),
                None | Some(protocol::Phase::Loading | protocol::Phase::Compiling) => {
                    of("provisioning", "starting")
                }
                Some(protocol::Phase::Preparing) => of("provisioning", "fetching_data"),
                Some(protocol::Phase::Training) => of("running", "training"),
                Some(protocol::Phase::Evaluating) => of("running", "evaluating"),
                Some(protocol::Phase::Checkpointing) => of("running", "checkpointing"),
            }
        }
    }
}

/// The status as JSON, not yet redacted: see [`redact`].
pub fn build(state: &State, extra: &Extra<'_>, now: Moment) -> Value {
    let Phase { phase, status } = phase(state);
    let mut root = Map::new();
    let mut set = |key: &str, value: Value| {
        if !value.is_null() {
            root.insert(key.to_owned(), value);
        }
    };
    set("schema_version", json!(SCHEMA_VERSION));
    set("rev", json!(extra.rev));
    set("id", json!(extra.job));
    set("status", json!(status));
    set("phase", json!(phase));
    set("progress", progress(state, now));
    set("logs", tail(extra.lines));
    if let Some(last) = extra.lines.last() {
        set("logs_next", json!(last.seq));
    }
    set("lease", lease(state, extra, now));
    set("checkpoint", checkpoint(state, now));
    set("attempt", json!(extra.attempt));
    set("preemptions", json!(state.counts.preemptions));
    set("restarts", json!(state.counts.crashes));
    let over = state
        .ending
        .as_ref()
        .is_some_and(|ending| ending.stage >= Stage::Status);
    let times = [
        ("started", json!(extra.started_at)),
        ("updated", json!(extra.written_at)),
        ("ended", json!(over.then_some(extra.written_at))),
    ];
    set("timestamps", object(times));
    if let Some(ending) = &state.ending {
        let exit = ending.reason.exit_status();
        set("reason", json!(ending.reason.code()));
        set("message", json!(ending.reason.text()));
        set("resumable", json!(!ending.reason.ends_job()));
        set("retryable", json!(matches!(exit.code(), 11 | 12)));
        set("exit", json!(exit.code()));
    }
    let bill = bill::of(state, now, extra.written_at.parse().unwrap_or_default());
    let bill = serde_json::to_value(bill).expect("it holds only texts and numbers");
    root.extend(bill.as_object().cloned().unwrap_or_default());
    Value::Object(root)
}

fn progress(state: &State, now: Moment) -> Value {
    let it = &state.progress;
    let percent = match (it.step, it.total_steps) {
        (Some(step), Some(total)) if total > 0 => Some(step as f64 * 100.0 / total as f64),
        _ => None,
    };
    let fields = [
        ("step", json!(it.step)),
        ("total_steps", json!(it.total_steps)),
        ("tokens", json!(it.tokens)),
        ("loss", json!(it.loss)),
        ("val_loss", json!(it.val_loss)),
        ("lr", json!(it.lr)),
        ("steps_per_second", json!(it.steps_per_second())),
        ("tokens_per_second", json!(it.tokens_per_second)),
        ("mfu", json!(it.mfu)),
        ("percent", json!(percent)),
        ("eta_seconds", json!(it.eta().map(|eta| eta.as_secs()))),
        ("updated_at", json!(it.updated_at)),
        (
            "age_seconds",
            json!(it.moved.map(|m| now.since(m).as_secs_f64())),
        ),
        ("non_finite", json!(it.non_finite.then_some(true))),
    ];
    object(fields)
}

fn lease(state: &State, extra: &Extra<'_>, now: Moment) -> Value {
    let Lease::Held(held) = &state.lease else {
        return Value::Null;
    };
    let valid = state.valid_until().map(|until| until.since(now).as_secs());
    let at_risk = (held.risk > Risk::None).then_some(true);
    object([
        ("epoch", json!(held.epoch)),
        ("holder", json!(extra.holder)),
        ("valid_for_seconds", json!(valid)),
        ("at_risk", json!(at_risk)),
    ])
}

fn checkpoint(state: &State, now: Moment) -> Value {
    let it = &state.checkpoints;
    let at_risk = state
        .progress
        .step
        .map(|step| step.saturating_sub(it.published.unwrap_or(0)));
    let uploading = it.upload.as_ref().map(|upload| upload.step);
    let age = it.published_at.map(|at| now.since(at).as_secs_f64());
    object([
        ("step", json!(it.published)),
        ("age_seconds", json!(age)),
        ("local_step", json!(it.local)),
        ("uploading_step", json!(uploading)),
        ("steps_at_risk", json!(at_risk)),
    ])
}

fn tail(lines: &[Line]) -> Value {
    let mut bytes = 0;
    let newest = lines.iter().rev().take_while(|line| {
        bytes += line.line.len();
        bytes <= LOG_BYTES_MAX
    });
    let mut texts: Vec<&str> = newest.map(|line| line.line.as_str()).collect();
    texts.reverse();
    json!(texts)
}

/// Masks secrets in every text of the status. Not in the status as one text: there a secret with a
/// quotation mark would be spelled differently.
pub fn redact(status: &mut Value, redactor: &Redactor) {
    match status {
        Value::String(text) => *text = redactor.redact(text).into_owned(),
        Value::Array(values) => values.iter_mut().for_each(|it| redact(it, redactor)),
        Value::Object(fields) => fields.values_mut().for_each(|it| redact(it, redactor)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// An object of those fields that are there.
fn object<const N: usize>(fields: [(&str, Value); N]) -> Value {
    let there = fields.into_iter().filter(|(_, value)| !value.is_null());
    Value::Object(there.map(|(key, value)| (key.to_owned(), value)).collect())
}
