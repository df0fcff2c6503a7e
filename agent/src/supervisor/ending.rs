//! The end, claimed once: the first reason wins, later ones only make it quicker, and only the loss
//! of the lease overrules it.
//!
//! Order: the trainer saves and goes, its last checkpoint is verified in the store, its output, the
//! end of the job, the last status, the lease; then the machine is given back and the agent exits.
//! The grace, where there is one, is divided by what saving and uploading were seen to take.

use std::time::Duration;

use super::{checkpoints, say, trainer};
use crate::clock::Moment;
use crate::limits::Timer;
use crate::provider::PowerOff;
use crate::state::{
    Action, Alert, Call, Ending, Fault, Lease, Level, Reason, Signal, Stage, State, Stop,
    StopReason, Trainer,
};

/// Signals within this of the first are the same one: `timeout`, terminals and containers signal a
/// process and then its group, and so some processes twice.
const SAME_NOTICE: Duration = Duration::from_secs(1);
/// What output, status and release may take of a grace: this, or a fifth of it.
const TAIL_MAX: Duration = Duration::from_secs(2);
/// How long a killed trainer, a cancelled restore or an unanswered claim is waited for.
const STOPPING_MAX: Duration = Duration::from_secs(10);
const LOGS_MAX: Duration = Duration::from_secs(30);
const STATUS_MAX: Duration = Duration::from_secs(5);
const RELEASE_MAX: Duration = Duration::from_secs(10);
/// What an unknown share of a grace is taken to be.
const SAVE_SHARE: f64 = 0.5;
const UPLOAD_SHARE: f64 = 0.25;
/// Measured times are taken with this much on top.
const MARGIN: f64 = 1.25;
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// Begins the end, or notes one more reason for it.
pub(super) fn end(state: &mut State, reason: Reason, now: Moment, todo: &mut Vec<Action>) {
    if let Some(ending) = &mut state.ending {
        if reason.is_loss() && !ending.reason.is_loss() {
            say(todo, Level::Error, reason.text());
            ending.reason = reason;
            enter(ending, Stage::Stopping, now);
            trainer::kill(state, StopReason::Ending, now, todo);
        }
        return;
    }
    let level = match reason {
        Reason::Completed | Reason::Preempted { .. } | Reason::Stopped => Level::Info,
        Reason::HeldElsewhere { .. } | Reason::AlreadyDone { .. } => Level::Info,
        Reason::Yielded => Level::Info,
        Reason::Limit(_) => Level::Warning,
        _ => Level::Error,
    };
    if reason != Reason::Completed {
        say(todo, level, reason.text());
    }
    let gentle = reason.is_gentle();
    let save_time = state.progress.save_time.unwrap_or_default();
    let patience = state.settings.save_patience.max(save_time.mul_f64(MARGIN));
    state.ending = Some(Ending {
        reason,
        since: now,
        deadline: None,
        noticed: None,
        now: false,
        recorded: false,
        power_off: None,
        stage: Stage::Stopping,
        stage_since: now,
        call: Call::due(now),
    });
    match &mut state.trainer {
        Trainer::Running { .. } if !gentle => trainer::kill(state, StopReason::Ending, now, todo),
        Trainer::Running { stop, .. } => {
            // One that is being stopped already was told, and may be dead.
            let (kill_at, killed) = match stop {
                Some(stop) => (stop.kill_at, stop.killed),
                None => (now + patience, false),
            };
            if stop.is_none() {
                todo.push(Action::Signal(Signal::Terminate));
            }
            *stop = Some(Stop {
                why: StopReason::Ending,
                kill_at,
                killed,
            });
        }
        Trainer::Restoring { .. } => todo.push(Action::CancelRestore),
        Trainer::Absent { .. } => {}
    }
}

/// The trainer has finished: completed, unless the lease is lost, whatever else was the reason.
pub(super) fn finished(state: &mut State, now: Moment, todo: &mut Vec<Action>) {
    match &mut state.ending {
        Some(ending) if ending.reason.is_gentle() => {
            ending.reason = Reason::Completed;
        }
        Some(_) => {}
        None => end(state, Reason::Completed, now, todo),
    }
}

/// Somebody wants the machine back after `grace`; asked again, not just twice at once: now.
pub(super) fn notice(
    state: &mut State,
    source: String,
    grace: Duration,
    now: Moment,
    todo: &mut Vec<Action>,
) {
    if state.ending.is_none() {
        state.counts.preemptions += 1;
        end(state, Reason::Preempted { source }, now, todo);
    }
    let Some(ending) = &mut state.ending else {
        return;
    };
    let first = *ending.noticed.get_or_insert(now);
    let deadline = ending
        .deadline
        .map_or(now + grace, |old| old.min(now + grace));
    ending.deadline = Some(deadline);
    if now.since(first) > SAME_NOTICE {
        say(todo, Level::Warning, "asked twice: ending now");
        if ending.stage == Stage::PoweringOff {
            return enter(ending, Stage::Over, now);
        }
        return hurry(state, now, todo);
    }
    let latest = kill_moment(state, now, deadline);
    if let Trainer::Running {
        stop: Some(stop), ..
    } = &mut state.trainer
    {
        stop.kill_at = stop.kill_at.min(latest);
    }
}

/// The end, if it has begun, is over by this moment. An end that a hard limit began leaves the
/// trainer as much of it as the upload does not need.
pub(super) fn be_over_by(state: &mut State, at: Moment, now: Moment) {
    let Some(ending) = &mut state.ending else {
        return;
    };
    if ending.deadline.is_some_and(|old| old <= at) {
        return;
    }
    ending.deadline = Some(at);
    let hard = matches!(
        ending.reason,
        Reason::Limit(Timer::Wall | Timer::Provider | Timer::Budget)
    );
    let latest = kill_moment(state, now, at);
    if let Trainer::Running {
        stop: Some(stop), ..
    } = &mut state.trainer
        && !stop.killed
    {
        stop.kill_at = if hard {
            latest
        } else {
            stop.kill_at.min(latest)
        };
    }
}

/// Whoever asked for the end may have said what becomes of the machine.
pub(super) fn set_power_off(state: &mut State, power_off: Option<bool>) {
    if let Some(ending) = &mut state.ending {
        ending.power_off = power_off.or(ending.power_off);
    }
}

/// How the machine is given back. Not after a notice: then its provider takes it, or a person
/// stands before it.
fn power_off(state: &State) -> PowerOff {
    let usual = state.settings.power_off;
    let Some(ending) = &state.ending else {
        return usual;
    };
    match (ending.power_off, &ending.reason) {
        (Some(false), _) => PowerOff::None,
        (Some(true), _) if usual == PowerOff::None => PowerOff::Destroy,
        (None, Reason::Preempted { .. }) => PowerOff::None,
        _ => usual,
    }
}

/// When a trainer that is saving is given up, so that what it has saved still gets to the store;
/// but the save goes first where there is not time for both.
fn kill_moment(state: &State, now: Moment, deadline: Moment) -> Moment {
    let left = deadline.since(now);
    let usable = left.saturating_sub(tail(left));
    let share = |part: f64| usable.mul_f64(part);
    let measured = |time: Duration| time.mul_f64(MARGIN);
    let save = state.progress.save_time.map_or(share(SAVE_SHARE), measured);
    let upload = state
        .checkpoints
        .upload_time
        .map_or(share(UPLOAD_SHARE), measured);
    let for_saving = usable.saturating_sub(upload).max(save).min(usable);
    now + for_saving
}

fn tail(grace: Duration) -> Duration {
    TAIL_MAX.min(grace / 5)
}

/// Stops waiting for anything.
pub(super) fn hurry(state: &mut State, now: Moment, todo: &mut Vec<Action>) {
    if let Some(ending) = &mut state.ending {
        ending.now = true;
    }
    trainer::kill(state, StopReason::Ending, now, todo);
    checkpoints::cancel(state, todo);
}

/// Until when an upload may go on; `None` = no limit but patience.
pub(super) fn publish_until(state: &State) -> Option<Moment> {
    let ending = state.ending.as_ref()?;
    let deadline = ending.deadline?;
    Some(deadline - tail(deadline.since(ending.since)))
}

/// Whether the end still has something to write that needs the lease.
pub(super) fn wants_lease(state: &State) -> bool {
    state.ending.as_ref().is_some_and(|ending| {
        !ending.now
            && !ending.reason.is_loss()
            && ending.stage < Stage::Releasing
            && (ending.reason.ends_job() || checkpoints::is_behind(state))
    })
}

pub(super) fn advance(state: &mut State, now: Moment, todo: &mut Vec<Action>) {
    leave_lease(state, todo);
    // Each round goes at most one stage on; there are eight.
    for _ in 0..=Stage::Over as u8 {
        let Some(ending) = &state.ending else {
            return;
        };
        let before = ending.stage;
        let in_vain = ending.deadline.is_some_and(|deadline| now >= deadline);
        if in_vain && before < Stage::PoweringOff {
            give_up(state, now, todo);
        }
        advance_stage(state, now, todo);
        if state
            .ending
            .as_ref()
            .is_none_or(|ending| ending.stage == before)
        {
            return;
        }
        leave_lease(state, todo);
    }
}

/// While the machine is given back, which may take for ever, somebody else may have the job.
fn leave_lease(state: &mut State, todo: &mut Vec<Action>) {
    let stage = state.ending.as_ref().map(|ending| ending.stage);
    if stage >= Some(Stage::PoweringOff) && state.lease != Lease::Gone {
        state.lease = Lease::Gone;
        // One that was due at this very moment would be of no epoch.
        todo.retain(|action| *action != Action::Beat);
        todo.push(Action::CommitUntil(None));
    }
}

/// The grace is over: whatever is not done stays undone.
fn give_up(state: &mut State, now: Moment, todo: &mut Vec<Action>) {
    trainer::kill(state, StopReason::Ending, now, todo);
    checkpoints::cancel(state, todo);
    settle(state, todo);
    if let Some(ending) = &mut state.ending {
        enter(ending, Stage::PoweringOff, now);
    }
}

/// Completed is only what is verified in the store: anything else can be gone on with.
fn settle(state: &mut State, todo: &mut Vec<Action>) {
    let behind = checkpoints::is_behind(state);
    let Some(ending) = &mut state.ending else {
        return;
    };
    if ending.reason != Reason::Completed || ending.recorded {
        return;
    }
    let what = match state.checkpoints.local.filter(|_| behind) {
        Some(step) => format!("the checkpoint of step {step} is only on this machine"),
        None => "the end of the job could not be written".to_owned(),
    };
    say(todo, Level::Error, what.as_str());
    ending.reason = if ending.now && ending.noticed.is_none() {
        Reason::Stopped
    } else if ending.noticed.is_some() {
        Reason::Preempted {
            source: format!("a signal before the upload was verified; {what}"),
        }
    } else {
        Reason::StoreUnavailable(what)
    };
}

fn advance_stage(state: &mut State, now: Moment, todo: &mut Vec<Action>) {
    let patience = state.settings.store_patience;
    let held = matches!(state.lease, Lease::Held(_));
    let busy = is_busy(state);
    let behind = checkpoints::is_behind(state);
    let time_is_up = publish_until(state).is_some_and(|until| now >= until);
    let wants_lease = wants_lease(state);
    let uploading = state.checkpoints.upload.is_some();
    let how = power_off(state);
    let Some(ending) = &mut state.ending else {
        return;
    };
    let noticed = ending.noticed.is_some();
    let waited = now.since(ending.stage_since);
    let next = match ending.stage {
        Stage::Stopping if busy && waited < stopping_max(&state.trainer, ending, now) => None,
        // Not even SIGKILL ends it, or the store does not answer: nothing more may be promised.
        Stage::Stopping if ending.reason.is_loss() || busy => Some(Stage::PoweringOff),
        Stage::Stopping if ending.now || matches!(ending.reason, Reason::Broken(_)) => {
            settle(state, todo);
            Some(Stage::Releasing)
        }
        Stage::Stopping => {
            state.checkpoints.retry_at = None;
            Some(Stage::Publishing)
        }
        Stage::Publishing if !behind && !uploading && held => Some(Stage::Logs),
        Stage::Publishing if !held && !wants_lease => Some(Stage::Logs),
        Stage::Publishing if ending.now || time_is_up || waited >= patience => {
            checkpoints::cancel(state, todo);
            settle(state, todo);
            (!uploading).then_some(Stage::Logs)
        }
        Stage::Publishing => None,
        Stage::Logs if !held && !wants_lease => Some(Stage::Final),
        Stage::Logs => {
            let action = Action::WriteLogs { last: true };
            if held && !state.logs.in_flight && ending.call.take(now) {
                state.logs.in_flight = true;
                todo.push(action);
            }
            (waited >= LOGS_MAX || ending.now).then_some(Stage::Final)
        }
        Stage::Final if !ending.reason.ends_job() => Some(Stage::Status),
        Stage::Final if ending.now || waited >= patience => {
            settle(state, todo);
            Some(Stage::Status)
        }
        Stage::Final => {
            if held && ending.call.take(now) {
                todo.push(Action::WriteFinal(ending.reason.clone()));
            }
            None
        }
        Stage::Status if !held || ending.now => Some(Stage::Releasing),
        Stage::Status => {
            if !state.status.in_flight && ending.call.take(now) {
                state.status.in_flight = true;
                todo.push(Action::WriteStatus);
            }
            (waited >= STATUS_MAX).then_some(Stage::Releasing)
        }
        Stage::Releasing if !held || waited >= RELEASE_MAX => Some(Stage::PoweringOff),
        Stage::Releasing => {
            if ending.call.take(now) {
                todo.push(Action::CommitUntil(None));
                todo.push(Action::Release);
            }
            None
        }
        Stage::PoweringOff if how == PowerOff::None => Some(Stage::Over),
        // Somebody has said since that the machine goes: it does.
        Stage::PoweringOff if noticed && ending.deadline.is_some_and(|at| now >= at) => {
            Some(Stage::Over)
        }
        Stage::PoweringOff => {
            if ending.call.take(now) {
                todo.push(Action::PowerOff(how));
            }
            None
        }
        Stage::Over if ending.reason == Reason::Completed && !ending.recorded => {
            settle(state, todo);
            return advance_stage(state, now, todo);
        }
        Stage::Over => {
            let status = ending.reason.exit_status();
            if ending.reason == Reason::Completed {
                say(todo, Level::Info, ending.reason.text());
            }
            state.exited = Some(status);
            todo.push(Action::Exit(status));
            None
        }
    };
    if let (Some(next), Some(ending)) = (next, &mut state.ending) {
        enter(ending, next, now);
    }
}

/// What must be over before anything else of the end: the trainer, a restore, a claim in the air.
fn is_busy(state: &State) -> bool {
    let claiming = matches!(&state.lease, Lease::Seeking(s) if s.claiming && s.lapsed.is_none());
    let restoring = matches!(
        state.trainer,
        Trainer::Restoring { call, .. } if call.is_in_flight()
    );
    state.has_trainer() || restoring || claiming
}

/// How long the first stage may last: a trainer that saves has its time, and some to be reaped.
fn stopping_max(trainer: &Trainer, ending: &Ending, now: Moment) -> Duration {
    match trainer {
        Trainer::Running {
            stop: Some(stop), ..
        } => {
            stop.kill_at
                .max(ending.stage_since)
                .since(ending.stage_since)
                + STOPPING_MAX
        }
        Trainer::Running { stop: None, .. } => now.since(ending.stage_since) + STOPPING_MAX,
        Trainer::Absent { .. } | Trainer::Restoring { .. } => STOPPING_MAX,
    }
}

fn enter(ending: &mut Ending, stage: Stage, now: Moment) {
    ending.stage = stage;
    ending.stage_since = now;
    ending.call = Call::due(now);
}

/// The answer to what a stage asked for: on to the next, or again.
pub(super) fn stage_answered(
    state: &mut State,
    stage: Stage,
    result: Result<(), Fault>,
    now: Moment,
    todo: &mut Vec<Action>,
) {
    let Some(ending) = &mut state.ending else {
        return;
    };
    if ending.stage != stage || !ending.call.is_in_flight() {
        return;
    }
    let Err(fault) = result else {
        let next = match stage {
            Stage::Stopping | Stage::Publishing => return,
            Stage::Logs => Stage::Final,
            Stage::Final => Stage::Status,
            Stage::Status => Stage::Releasing,
            Stage::Releasing => Stage::PoweringOff,
            Stage::PoweringOff | Stage::Over => Stage::Over,
        };
        return enter(ending, next, now);
    };
    ending.call.failed(now, RETRY_FIRST, RETRY_MAX);
    say(
        todo,
        Level::Warning,
        format!("{}; trying again", fault.text),
    );
}

pub(super) fn final_written(
    state: &mut State,
    result: Result<(), Fault>,
    now: Moment,
    todo: &mut Vec<Action>,
) {
    if let (Ok(()), Some(ending)) = (&result, &mut state.ending) {
        ending.recorded = true;
    }
    stage_answered(state, Stage::Final, result, now, todo);
}

pub(super) fn released(
    state: &mut State,
    result: Result<(), Fault>,
    now: Moment,
    todo: &mut Vec<Action>,
) {
    stage_answered(state, Stage::Releasing, result, now, todo);
}

/// The machine goes, or it does not: then again, for ever, unless it was refused.
pub(super) fn powered_off(
    state: &mut State,
    result: Result<(), Fault>,
    now: Moment,
    todo: &mut Vec<Action>,
) {
    let refused = match &result {
        Err(fault) if !fault.transient => Some(fault.text.clone()),
        _ => None,
    };
    let Some(why) = refused else {
        return stage_answered(state, Stage::PoweringOff, result, now, todo);
    };
    let text = format!("THE MACHINE GOES ON AND COSTS MONEY: {why}");
    say(todo, Level::Error, text.as_str());
    let event = "power_off_refused".to_owned();
    todo.push(Action::Alert(Alert { event, text }));
    stage_answered(state, Stage::PoweringOff, Ok(()), now, todo);
}
