//! The heart of the agent: [`step`], from what happened to what is to be done. Called by the loop
//! in `run` and by the simulator.
//!
//! It is pure and total: no clock, no store, no process; any event in any state has an answer. An
//! event first changes what is known; then each part looks at all that is known and asks for what
//! is due. A part never waits for an event that must come: everything has a moment after which the
//! supervisor goes on without it.

mod checkpoints;
mod ending;
mod lease;
mod mirror;
mod trainer;

use crate::clock::Moment;
use crate::state::{Action, Command, Event, Level, Reason, Signal, State, Trainer};

/// Takes one event in and says what to do.
pub fn step(state: &mut State, event: Event, now: Moment) -> Vec<Action> {
    let mut todo = Vec::new();
    if state.exited.is_some() {
        return todo;
    }
    if !matches!(
        event,
        Event::Tick | Event::StatusWritten(_) | Event::LogsWritten(_)
    ) {
        state.status.changed = true;
    }
    match event {
        Event::Tick => {}
        Event::Probed(verdict) => lease::probed(state, verdict, now, &mut todo),
        Event::Looked { asked, sight } => lease::looked(state, asked, sight, now, &mut todo),
        Event::Claimed { asked, claim } => lease::claimed(state, asked, claim, now, &mut todo),
        Event::BeatAnswered { epoch, asked, beat } => {
            lease::beat_answered(state, epoch, asked, beat, now, &mut todo);
        }
        Event::Restored(result) => trainer::restored(state, result, now, &mut todo),
        Event::Started(result) => trainer::started(state, result, now, &mut todo),
        Event::Exited(exit) => trainer::exited(state, &exit, now, &mut todo),
        Event::Record(record) => state.progress.record(&record, now),
        Event::CheckpointFound { step } => checkpoints::found(state, step),
        Event::PublishEnded {
            epoch,
            step,
            result,
        } => checkpoints::publish_ended(state, (epoch, step), result, now, &mut todo),
        Event::Pruned(result) => checkpoints::pruned(state, result, &mut todo),
        Event::StatusWritten(result) => mirror::status_written(state, result, now, &mut todo),
        Event::LogsWritten(result) => mirror::logs_written(state, result, now, &mut todo),
        Event::FinalWritten(result) => ending::final_written(state, result, now, &mut todo),
        Event::Released(result) => ending::released(state, result, now, &mut todo),
        Event::Notice { source, grace } => ending::notice(state, source, grace, now, &mut todo),
        Event::Command(command) => obey(state, command, now, &mut todo),
        Event::Broken(detail) => ending::end(state, Reason::Broken(detail), now, &mut todo),
    }
    lease::advance(state, now, &mut todo);
    trainer::advance(state, now, &mut todo);
    ending::advance(state, now, &mut todo);
    if state.exited.is_none() {
        checkpoints::advance(state, now, &mut todo);
        mirror::advance(state, now, &mut todo);
    }
    todo
}

fn obey(state: &mut State, command: Command, now: Moment, todo: &mut Vec<Action>) {
    match command {
        Command::Stop(order) => {
            ending::end(state, Reason::Stopped, now, todo);
            if order.now {
                ending::hurry(state, now, todo);
            }
        }
        Command::Save => ask_to_save(state, todo),
        Command::Limits(_) | Command::KeepAlive(_) | Command::Yield | Command::Drill(_) => say(
            todo,
            Level::Warning,
            "the orchestrator asks for something that this agent cannot do yet",
        ),
        Command::Unknown(kind) => say(
            todo,
            Level::Warning,
            format!("the orchestrator asks for {kind:?}, which this agent does not know"),
        ),
    }
}

/// SIGUSR1, once the trainer is known to handle it: before, it would be death.
fn ask_to_save(state: &State, todo: &mut Vec<Action>) {
    let running = matches!(state.trainer, Trainer::Running { stop: None, .. });
    if running && state.progress.started {
        todo.push(Action::Signal(Signal::Save));
    }
}

fn say(todo: &mut Vec<Action>, level: Level, text: impl Into<String>) {
    todo.push(Action::Say(level, text.into()));
}

#[cfg(test)]
mod tests;
