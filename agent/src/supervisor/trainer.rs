//! The trainer's process as the supervisor sees it: restore, start, stalls, how it ended, restarts.

use std::time::Duration;

use protocol::ExitCode;

use super::{ending, say};
use crate::clock::Moment;
use crate::state::{
    Action, Call, Cause, Exit, Fault, Lease, LeaseMode, Level, Reason, Restored, Risk, Signal,
    State, Stop, StopReason, Trainer, backoff,
};

const RESTORE_RETRY_FIRST: Duration = Duration::from_secs(1);
const RESTORE_RETRY_MAX: Duration = Duration::from_secs(30);

pub(super) fn advance(state: &mut State, now: Moment, todo: &mut Vec<Action>) {
    let may_train = state.ending.is_none() && has_safe_lease(state, now);
    let behind = state.checkpoints.local < state.checkpoints.published;
    match &mut state.trainer {
        Trainer::Absent {
            not_before,
            restore,
        } => {
            if !may_train || now < *not_before {
                return;
            }
            if *restore || behind {
                todo.push(Action::Restore);
                state.trainer = Trainer::Restoring {
                    call: Call::InFlight { failures: 0 },
                    since: now,
                };
            } else {
                start(state, now, todo);
            }
        }
        Trainer::Restoring { call, .. } => {
            if may_train && call.take(now) {
                todo.push(Action::Restore);
            }
        }
        Trainer::Running { stop: None, .. } => stop_if_stalled(state, now, todo),
        Trainer::Running {
            stop: Some(stop), ..
        } => {
            if !stop.killed && now >= stop.kill_at {
                stop.killed = true;
                say(
                    todo,
                    Level::Warning,
                    "the trainer did not end in time; killing it",
                );
                todo.push(Action::KillGroup);
            }
        }
    }
}

/// Whether the lease is ours for long enough to begin something.
fn has_safe_lease(state: &State, now: Moment) -> bool {
    match &state.lease {
        Lease::Held(_) if state.settings.lease == LeaseMode::Off => true,
        Lease::Held(held) => {
            held.risk < Risk::Unpublished
                && state
                    .valid_until()
                    .is_some_and(|until| now + state.settings.kill_budget < until)
        }
        _ => false,
    }
}

fn start(state: &mut State, now: Moment, todo: &mut Vec<Action>) {
    state.counts.attempts += 1;
    state.progress.begin_process(now);
    state.trainer = Trainer::Running {
        since: now,
        stop: None,
    };
    todo.push(Action::Start {
        attempt: state.counts.attempts,
    });
}

fn stop_if_stalled(state: &mut State, now: Moment, todo: &mut Vec<Action>) {
    let Trainer::Running { since, stop } = &mut state.trainer else {
        return;
    };
    let silent = now.since(state.progress.moved.unwrap_or(*since));
    let settings = &state.settings;
    let stall = settings.limits.stall.unwrap_or(Duration::MAX);
    let patience = state.progress.patience(settings.start_patience, stall);
    if silent < patience {
        return;
    }
    *stop = Some(Stop {
        why: StopReason::Stalled,
        kill_at: now + settings.save_patience,
        killed: false,
    });
    let text = format!(
        "no progress for {} s: stopping the trainer",
        silent.as_secs()
    );
    say(todo, Level::Warning, text);
    todo.push(Action::Signal(Signal::Terminate));
}

/// Whether the trainer was killed because another agent has the job, and this one stands by.
pub(super) fn is_lost(state: &State) -> bool {
    let stop = match &state.trainer {
        Trainer::Running { stop, .. } => stop.as_ref(),
        Trainer::Absent { .. } | Trainer::Restoring { .. } => None,
    };
    stop.is_some_and(|stop| stop.why == StopReason::Ending) && state.ending.is_none()
}

/// Kills the trainer's group now, if there is one.
pub(super) fn kill(state: &mut State, why: StopReason, now: Moment, todo: &mut Vec<Action>) {
    let Trainer::Running { stop, .. } = &mut state.trainer else {
        return;
    };
    let already = stop.as_ref().is_some_and(|stop| stop.killed);
    // The weightier reason stays: an ending is not undone by a lease that lapses meanwhile.
    let why = match stop {
        Some(Stop {
            why: StopReason::Ending,
            ..
        }) => StopReason::Ending,
        _ => why,
    };
    *stop = Some(Stop {
        why,
        kill_at: now,
        killed: true,
    });
    if !already {
        if why == StopReason::LeaseAtRisk {
            state.counts.preemptions += 1;
            let text = "the lease runs out before a beat gets through: killing the trainer";
            say(todo, Level::Warning, text);
        }
        todo.push(Action::KillGroup);
    }
}

pub(super) fn restored(
    state: &mut State,
    result: Result<Restored, Fault>,
    now: Moment,
    todo: &mut Vec<Action>,
) {
    let Trainer::Restoring { call, since } = &mut state.trainer else {
        return;
    };
    let (call, since) = (*call, *since);
    let absent = |restore| Trainer::Absent {
        not_before: now,
        restore,
    };
    // Cancelled, or for a tenure that is over.
    if state.ending.is_some() || !matches!(state.lease, Lease::Held(_)) {
        state.trainer = absent(true);
        return;
    }
    match result {
        Ok(restored) => {
            for bad in &restored.bad {
                say(
                    todo,
                    Level::Warning,
                    format!("passing over a checkpoint: {bad}"),
                );
            }
            let text = match restored.step {
                Some(step) => format!("goes on from step {step}"),
                None => "there is no checkpoint: a fresh start".to_owned(),
            };
            say(todo, Level::Info, text);
            state.checkpoints.local = restored.step;
            state.checkpoints.published = restored.published;
            state.trainer = absent(false);
        }
        Err(fault) if fault.transient && now.since(since) < state.settings.store_patience => {
            let mut call = call;
            call.failed(now, RESTORE_RETRY_FIRST, RESTORE_RETRY_MAX);
            say(
                todo,
                Level::Warning,
                format!("restore: {}; trying again", fault.text),
            );
            state.trainer = Trainer::Restoring { call, since };
        }
        Err(fault) => {
            state.trainer = absent(true);
            let text = format!("restore: {}", fault.text);
            ending::end(state, Reason::StoreUnavailable(text), now, todo);
        }
    }
}

pub(super) fn started(
    state: &mut State,
    result: Result<u32, Fault>,
    now: Moment,
    todo: &mut Vec<Action>,
) {
    match result {
        Ok(pid) => {
            let text = format!("the trainer is process {pid}");
            say(todo, Level::Info, text);
        }
        Err(fault) => {
            state.trainer = Trainer::Absent {
                not_before: now,
                restore: true,
            };
            ending::end(state, Reason::CannotStart(fault.text), now, todo);
        }
    }
}

pub(super) fn exited(state: &mut State, exit: &Exit, now: Moment, todo: &mut Vec<Action>) {
    let Trainer::Running { stop, .. } = &state.trainer else {
        return;
    };
    let why = stop.as_ref().map(|stop| stop.why);
    let lost = is_lost(state);
    state.checkpoints.local = exit.local.filter(|_| !lost);
    state.trainer = Trainer::Absent {
        not_before: now,
        restore: lost,
    };
    if lost {
        return; // standing by: this run was no longer ours
    }
    let code = exit.code.and_then(ExitCode::from_code);
    if code == Some(ExitCode::Finished) {
        // Even where we asked it to stop: there is nothing left to do.
        return ending::finished(state, now, todo);
    }
    if state.ending.is_some() {
        return;
    }
    match (why, code) {
        (Some(StopReason::LeaseAtRisk | StopReason::Ending), _) => {}
        (Some(StopReason::Stalled), _) => crashed(state, Cause::Stalled, exit, now, todo),
        (None, Some(code @ (ExitCode::Config | ExitCode::Data | ExitCode::Diverged))) => {
            let reason = Reason::TrainerRefuses { code: code.code() };
            ending::end(state, reason, now, todo);
        }
        (None, Some(ExitCode::Stopped)) => {
            // Somebody else told it to: no crash, but not for ever either.
            state.counts.preemptions += 1;
            state.counts.crashes = state.counts.crashes.saturating_sub(1);
            crashed(state, Cause::Crash, exit, now, todo);
        }
        (None, _) if exit.out_of_memory => {
            crashed(state, Cause::OutOfMemory, exit, now, todo);
        }
        (None, Some(ExitCode::Device)) => crashed(state, Cause::NoDevice, exit, now, todo),
        (None, Some(ExitCode::CannotWrite)) => {
            crashed(state, Cause::CannotWrite, exit, now, todo);
        }
        (None, _) => crashed(state, Cause::Crash, exit, now, todo),
    }
}

/// Another try after a back-off, or the end after too many without a new checkpoint.
fn crashed(state: &mut State, cause: Cause, exit: &Exit, now: Moment, todo: &mut Vec<Action>) {
    let counts = &mut state.counts;
    counts.crashes += 1;
    counts.crashes_in_a_row = if exit.local > counts.checkpoint_at_crash {
        1
    } else {
        counts.crashes_in_a_row + 1
    };
    counts.checkpoint_at_crash = counts.checkpoint_at_crash.max(exit.local);
    let in_a_row = counts.crashes_in_a_row;
    let detail = describe(cause, exit);
    if in_a_row > state.settings.restarts_max {
        return ending::end(state, Reason::Crashed { cause, detail }, now, todo);
    }
    let settings = &state.settings;
    let wait = backoff(in_a_row - 1, settings.backoff_first, settings.backoff_max);
    let of = settings.restarts_max;
    let text = format!(
        "{detail}; restart {in_a_row} of {of} in {:.1} s",
        wait.as_secs_f64()
    );
    say(todo, Level::Warning, text);
    state.trainer = Trainer::Absent {
        not_before: now + wait,
        restore: false,
    };
}

fn describe(cause: Cause, exit: &Exit) -> String {
    let how = match (exit.code, exit.signal) {
        (Some(code), _) => match ExitCode::from_code(code) {
            Some(known) => format!("the trainer exited with {known}"),
            None => format!("the trainer exited with {code}"),
        },
        (None, Some(signal)) => format!("the trainer was ended by signal {signal}"),
        (None, None) => "the trainer ended in an unknown way".to_owned(),
    };
    match cause {
        Cause::OutOfMemory => format!("out of memory: {how}"),
        Cause::Stalled => format!("stalled: {how}"),
        Cause::Crash | Cause::NoDevice | Cause::CannotWrite => how,
    }
}
