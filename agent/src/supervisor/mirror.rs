//! What the store is told besides checkpoints, by the holder only: the status and the output.

use super::say;
use crate::clock::Moment;
use crate::state::{Action, Fault, Lease, Level, Risk, Stage, State};

pub(super) fn advance(state: &mut State, now: Moment, todo: &mut Vec<Action>) {
    let safe = matches!(&state.lease, Lease::Held(held) if held.risk < Risk::Unpublished);
    if !safe
        || state
            .ending
            .as_ref()
            .is_some_and(|e| e.stage >= Stage::Logs)
    {
        return; // the end writes its own
    }
    let due = |written: Option<Moment>, every| written.is_none_or(|w| now.since(w) >= every);
    let status = &mut state.status;
    if status.changed && !status.in_flight && due(status.written, state.settings.status_every) {
        status.changed = false;
        status.in_flight = true;
        status.written = Some(now);
        todo.push(Action::WriteStatus);
    }
    let logs = &mut state.logs;
    if !logs.in_flight && due(logs.written, state.settings.logs_every) {
        logs.in_flight = true;
        logs.written = Some(now);
        todo.push(Action::WriteLogs { last: false });
    }
}

pub(super) fn status_written(
    state: &mut State,
    result: Result<(), Fault>,
    now: Moment,
    todo: &mut Vec<Action>,
) {
    state.status.in_flight = false;
    if result.is_err() {
        state.status.changed = true;
    }
    super::ending::stage_answered(state, Stage::Status, result, now, todo);
}

pub(super) fn logs_written(
    state: &mut State,
    result: Result<(), Fault>,
    now: Moment,
    todo: &mut Vec<Action>,
) {
    state.logs.in_flight = false;
    if let Err(fault) = &result {
        say(
            todo,
            Level::Warning,
            format!("output to the store: {}", fault.text),
        );
    }
    super::ending::stage_answered(state, Stage::Logs, result, now, todo);
}
