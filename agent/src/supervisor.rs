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
pub mod limits;
mod mirror;
mod trainer;

use std::time::Duration;

use crate::clock::Moment;
use crate::state::{
    Action, Answer, Command, Drill, Event, Level, Reason, Signal, State, StopOrder, StopReason,
    Trainer,
};

/// Answers to commands that are kept for the status.
const ANSWERS_MAX: usize = 16;

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
        Event::Reported(report) => state.progress.report(&report, now),
        Event::CheckpointFound { step } => checkpoints::found(state, step),
        Event::PublishEnded {
            epoch,
            step,
            result,
        } => checkpoints::publish_ended(state, (epoch, step), result, now, &mut todo),
        Event::CheckpointGone { epoch, step } => {
            checkpoints::gone(state, (epoch, step), now, &mut todo);
        }
        Event::Pruned(result) => checkpoints::pruned(state, result, &mut todo),
        Event::StatusWritten(result) => mirror::status_written(state, result, now, &mut todo),
        Event::LogsWritten(result) => mirror::logs_written(state, result, now, &mut todo),
        Event::FinalWritten(result) => ending::final_written(state, result, now, &mut todo),
        Event::Released(result) => ending::released(state, result, now, &mut todo),
        Event::Notice { source, grace } => ending::notice(state, source, grace, now, &mut todo),
        Event::Command(command) => obey(state, None, command, now, &mut todo),
        Event::Control { id, command } => obey(state, Some(id), command, now, &mut todo),
        Event::Priced(price) => {
            state.meter.set_price(price, now);
            limits::recount_budget(state, now);
        }
        Event::Spent { total_usd, own_usd } => {
            state.meter.set_former(total_usd, own_usd);
            limits::recount_budget(state, now);
        }
        Event::PoweredOff(result) => ending::powered_off(state, result, now, &mut todo),
        Event::Broken(detail) => ending::end(state, Reason::Broken(detail), now, &mut todo),
    }
    limits::advance(state, now, &mut todo);
    lease::advance(state, now, &mut todo);
    trainer::advance(state, now, &mut todo);
    ending::advance(state, now, &mut todo);
    if state.exited.is_none() {
        checkpoints::advance(state, now, &mut todo);
        mirror::advance(state, now, &mut todo);
    }
    todo
}

/// Does what is asked, says what became of it, and notes that for whoever asked through the store.
fn obey(
    state: &mut State,
    id: Option<String>,
    command: Command,
    now: Moment,
    todo: &mut Vec<Action>,
) {
    state.clocks.idle = Duration::ZERO;
    let kind = command.kind().to_owned();
    let done = match command {
        Command::Stop(order) => stop(state, &order, now, todo),
        Command::Save => ask_to_save(state, todo),
        Command::Limits(change) => limits::change(state, &change, now, todo),
        Command::KeepAlive(ttl) => limits::keep_alive(state, ttl, now),
        Command::Yield => {
            ending::end(state, Reason::Yielded, now, todo);
            Ok(())
        }
        Command::Drill(drill) => rehearse(state, drill, now, todo),
        Command::Renew(_) if !state.settings.takes_keys => {
            Err("credentials: this store is not opened with keys".to_owned())
        }
        Command::Renew(keys) => {
            say(todo, Level::Info, "the store is asked with new keys");
            todo.push(Action::Renew(keys));
            Ok(())
        }
        Command::Unknown(why) => Err(why),
    };
    if let Err(why) = &done {
        let text = format!("refused to obey the orchestrator: {why}");
        say(todo, Level::Warning, text);
    }
    if let Some(id) = id {
        let refused = done.err();
        state.answers.push(Answer { id, kind, refused });
        let old = state.answers.len().saturating_sub(ANSWERS_MAX);
        state.answers.drain(..old);
    }
}

fn stop(
    state: &mut State,
    order: &StopOrder,
    now: Moment,
    todo: &mut Vec<Action>,
) -> Result<(), String> {
    ending::end(state, Reason::Stopped, now, todo);
    ending::set_power_off(state, order.power_off);
    if let Some(grace) = order.grace {
        ending::be_over_by(state, now + grace, now);
    }
    if order.now {
        ending::hurry(state, now, todo);
    } else if !order.checkpoint {
        trainer::kill(state, StopReason::Ending, now, todo);
    }
    Ok(())
}

fn rehearse(
    state: &mut State,
    drill: Drill,
    now: Moment,
    todo: &mut Vec<Action>,
) -> Result<(), String> {
    if state.ending.is_some() {
        return Err("the agent is ending".to_owned());
    }
    say(todo, Level::Warning, format!("drill: {}", drill.name()));
    match drill {
        Drill::Preempt => {
            let grace = state.settings.save_patience;
            ending::notice(state, "a drill".to_owned(), grace, now, todo);
        }
        Drill::Stall if !state.has_trainer() => return Err("no trainer runs".to_owned()),
        Drill::Stall | Drill::StoreOutage | Drill::ClockJump | Drill::DiskFull => {
            todo.push(Action::Drill(drill));
        }
    }
    Ok(())
}

/// SIGUSR1, once the trainer is known to handle it: before, it would be death.
fn ask_to_save(state: &State, todo: &mut Vec<Action>) -> Result<(), String> {
    let running = matches!(state.trainer, Trainer::Running { stop: None, .. });
    if running && state.progress.started {
        todo.push(Action::Signal(Signal::Save));
        return Ok(());
    }
    Err("no trainer runs that could save".to_owned())
}

fn say(todo: &mut Vec<Action>, level: Level, text: impl Into<String>) {
    todo.push(Action::Say(level, text.into()));
}

#[cfg(test)]
mod tests;
