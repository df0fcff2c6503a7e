//! `status.json`: what a poller sees of a job, built from what the supervisor knows. Written to the
//! store by the holder and served over HTTP.
//!
//! Optional fields are left out, never null; numbers that are not finite never occur.

mod model;

use serde_json::Value;

use crate::bill;
use crate::clock::Moment;
use crate::logs::Line;
use crate::redact::Redactor;
use crate::state::{Lease, Reason, Risk, Stage, State, StopReason, Trainer};

pub use crate::bill::{JobControl, JobCost, JobDeadline, JobLimits};
pub use model::{
    JobCheckpoint, JobGpu, JobInstance, JobLease, JobProgress, JobStatus, JobTimes, More, STATUSES,
};

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
    pub more: &'a More,
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
    serde_json::to_value(of(state, extra, now)).expect("a status holds only texts and numbers")
}

/// The status as its type.
pub fn of(state: &State, extra: &Extra<'_>, now: Moment) -> JobStatus {
    let Phase { phase, status } = phase(state);
    let over = state
        .ending
        .as_ref()
        .is_some_and(|ending| ending.stage >= Stage::Status);
    let reason = state.ending.as_ref().map(|ending| &ending.reason);
    let exit = reason.map(|reason| reason.exit_status().code());
    let more = extra.more.clone();
    let bill = bill::of(state, now, extra.written_at.parse().unwrap_or_default());
    JobStatus {
        schema_version: SCHEMA_VERSION,
        rev: extra.rev,
        id: extra.job.to_owned(),
        provider: more.provider.unwrap_or_else(|| "local".to_owned()),
        status: status.to_owned(),
        phase: phase.to_owned(),
        progress: progress(state, now),
        logs: tail(extra.lines),
        logs_next: extra.lines.last().map(|last| last.seq),
        cost_so_far: bill.cost_so_far,
        estimated_total: bill.estimated_total,
        cost: bill.cost,
        limits: Some(bill.limits),
        control: bill.control,
        lease: lease(state, extra, now),
        checkpoint: checkpoint(state, now),
        attempt: extra.attempt,
        preemptions: state.counts.preemptions,
        restarts: state.counts.crashes,
        gpu: more.gpu,
        instance: more.instance,
        timestamps: JobTimes {
            started: extra.started_at.to_owned(),
            updated: extra.written_at.to_owned(),
            ended: over.then(|| extra.written_at.to_owned()),
        },
        reason: reason.map(|reason| reason.code().to_owned()),
        message: reason.map(Reason::text),
        resumable: reason.map(|reason| !reason.ends_job()),
        retryable: exit.map(|exit| matches!(exit, 11 | 12)),
        exit,
    }
}

fn progress(state: &State, now: Moment) -> JobProgress {
    let it = &state.progress;
    JobProgress {
        epoch: it.epoch,
        total_epochs: it.total_epochs,
        step: it.step,
        total_steps: it.total_steps,
        tokens: it.tokens,
        loss: it.loss,
        val_loss: it.val_loss,
        lr: finite(it.lr),
        grad_norm: finite(it.grad_norm),
        steps_per_second: finite(it.steps_per_second()),
        tokens_per_second: finite(it.tokens_per_second),
        mfu: finite(it.mfu),
        percent: it.percent(),
        eta_seconds: it.eta().map(|eta| eta.as_secs()),
        updated_at: it.updated_at.clone(),
        age_seconds: it.moved.map(|moved| now.since(moved).as_secs_f64()),
        non_finite: it.non_finite.then_some(true),
    }
}

/// JSON has no other numbers.
fn finite(value: Option<f64>) -> Option<f64> {
    value.filter(|value| value.is_finite())
}

fn lease(state: &State, extra: &Extra<'_>, now: Moment) -> Option<JobLease> {
    let Lease::Held(held) = &state.lease else {
        return None;
    };
    Some(JobLease {
        epoch: held.epoch,
        holder: extra.holder.to_owned(),
        valid_for_seconds: state.valid_until().map(|until| until.since(now).as_secs()),
        at_risk: (held.risk > Risk::None).then_some(true),
    })
}

fn checkpoint(state: &State, now: Moment) -> JobCheckpoint {
    let it = &state.checkpoints;
    let at_risk = |step: u64| step.saturating_sub(it.published.unwrap_or(0));
    JobCheckpoint {
        step: it.published,
        age_seconds: it.published_at.map(|at| now.since(at).as_secs_f64()),
        local_step: it.local,
        uploading_step: it.upload.as_ref().map(|upload| upload.step),
        steps_at_risk: state.progress.step.map(at_risk),
    }
}

/// The texts of the newest lines that fit.
pub fn tail(lines: &[Line]) -> Vec<String> {
    let mut bytes = 0;
    let newest = lines.iter().rev().take_while(|line| {
        bytes += line.line.len();
        bytes <= LOG_BYTES_MAX
    });
    let mut texts: Vec<String> = newest.map(|line| line.line.clone()).collect();
    texts.reverse();
    texts
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
