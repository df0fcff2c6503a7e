//! Checkpoints as the supervisor sees them: at most one upload in flight, the newest waits, and
//! pruning after a publish.

use std::time::Duration;

use super::{ending, say, trainer};
use crate::clock::Moment;
use crate::state::{Action, Fault, Lease, Level, Published, Risk, Stage, State, Upload, backoff};

const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// Whether the run directory holds something that the store does not.
pub(super) fn is_behind(state: &State) -> bool {
    state.checkpoints.local > state.checkpoints.published
}

pub(super) fn advance(state: &mut State, now: Moment, todo: &mut Vec<Action>) {
    make_room(state, now, todo);
    let Lease::Held(held) = &state.lease else {
        return;
    };
    let (epoch, safe) = (held.epoch, held.risk < Risk::Unpublished);
    // While the trainer makes its last checkpoint in limited time, no older one is begun.
    let allowed = match &state.ending {
        None => true,
        Some(ending) => ending.stage == Stage::Publishing,
    };
    let checkpoints = &mut state.checkpoints;
    let due = checkpoints.retry_at.is_none_or(|at| now >= at);
    if allowed
        && safe
        && due
        && checkpoints.upload.is_none()
        && let Some(step) = checkpoints
            .local
            .filter(|&step| Some(step) > checkpoints.published)
    {
        checkpoints.upload = Some(Upload {
            epoch,
            step,
            since: now,
            cancelled: false,
        });
        todo.push(Action::Publish { epoch, step });
    }
    let idle = checkpoints.prune_due && !checkpoints.pruning;
    if idle && safe && state.ending.is_none() {
        checkpoints.prune_due = false;
        checkpoints.pruning = true;
        todo.push(Action::Prune);
    }
}

/// A beat saw no later lease: what was published before it can be relied on, and what it replaced
/// can go.
pub(super) fn settle(state: &mut State) {
    let checkpoints = &mut state.checkpoints;
    if checkpoints.at_beat > checkpoints.settled {
        checkpoints.settled = checkpoints.at_beat;
        checkpoints.prune_due = true;
    }
}

/// A checkpoint is complete in the run directory. What a run saves that was lost to another agent
/// does not belong to the job's history.
pub(super) fn found(state: &mut State, step: u64) {
    if !trainer::is_lost(state) {
        state.checkpoints.local = state.checkpoints.local.max(Some(step));
    }
}

/// In the last minutes: gives up the upload of an older checkpoint where only the newest would
/// still get through, and any upload when its time is up.
fn make_room(state: &mut State, now: Moment, todo: &mut Vec<Action>) {
    let Some(publish_until) = ending::publish_until(state) else {
        return;
    };
    let Some(upload) = &state.checkpoints.upload else {
        return;
    };
    let left = publish_until.since(now);
    let superseded = state.checkpoints.local > Some(upload.step) && !state.has_trainer();
    let whole = state.checkpoints.upload_time;
    let better = whole.is_some_and(|whole| {
        let rest = whole.saturating_sub(now.since(upload.since));
        whole <= left && rest + whole > left
    });
    if left.is_zero() || (superseded && better) {
        cancel(state, todo);
    }
}

/// Gives up the upload in flight, if there is one.
pub(super) fn cancel(state: &mut State, todo: &mut Vec<Action>) {
    if let Some(upload) = &mut state.checkpoints.upload
        && !upload.cancelled
    {
        upload.cancelled = true;
        todo.push(Action::CancelPublish);
    }
}

pub(super) fn publish_ended(
    state: &mut State,
    (epoch, step): (u64, u64),
    result: Result<Published, Fault>,
    now: Moment,
    todo: &mut Vec<Action>,
) {
    let current = state.epoch() == Some(epoch);
    let checkpoints = &mut state.checkpoints;
    let Some(upload) = checkpoints
        .upload
        .take_if(|u| (u.epoch, u.step) == (epoch, step))
    else {
        return;
    };
    match result {
        // A commit of a lease that is not ours any more may or may not count: never rely on it.
        Ok(_) if !current => {}
        Ok(published) => {
            checkpoints.published = checkpoints.published.max(Some(step));
            checkpoints.published_at = Some(now);
            checkpoints.upload_time = checkpoints.upload_time.max(Some(published.took));
            checkpoints.failures = 0;
            checkpoints.retry_at = None;
            let mib = published.bytes as f64 / f64::from(1 << 20);
            let seconds = published.took.as_secs_f64();
            let text = format!("published step {step}: {mib:.1} MiB in {seconds:.1} s");
            say(todo, Level::Info, text);
        }
        Err(_) if upload.cancelled => {}
        Err(fault) => {
            let wait = if fault.transient {
                backoff(checkpoints.failures, RETRY_FIRST, RETRY_MAX)
            } else {
                RETRY_MAX
            };
            checkpoints.failures = checkpoints.failures.saturating_add(1);
            checkpoints.retry_at = Some(now + wait);
            let text = format!("publishing step {step}: {}; trying again", fault.text);
            say(todo, Level::Warning, text);
        }
    }
}

/// A trainer that saves often prunes what was to be published: then a newer checkpoint is there
/// already, or will be found, and waits for nothing. Without a trainer nothing follows: a fault.
pub(super) fn gone(
    state: &mut State,
    (epoch, step): (u64, u64),
    now: Moment,
    todo: &mut Vec<Action>,
) {
    if !state.has_trainer() {
        let text = "no such checkpoint in the run directory".to_owned();
        let fault = Fault {
            transient: true,
            text,
        };
        return publish_ended(state, (epoch, step), Err(fault), now, todo);
    }
    let checkpoints = &mut state.checkpoints;
    let ours = |upload: &mut Upload| (upload.epoch, upload.step) == (epoch, step);
    if checkpoints.upload.take_if(ours).is_some() && checkpoints.local == Some(step) {
        checkpoints.local = checkpoints.published;
    }
}

pub(super) fn pruned(state: &mut State, result: Result<(), Fault>, todo: &mut Vec<Action>) {
    state.checkpoints.pruning = false;
    if let Err(fault) = result {
        say(todo, Level::Warning, format!("pruning: {}", fault.text));
    }
}
