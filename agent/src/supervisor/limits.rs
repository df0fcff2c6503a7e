//! Limits of time and money as the supervisor sees them: what they count, when they end the agent,
//! and how they are changed while it runs.
//!
//! A limit with a moment (wall clock, budget, the provider's own) is hard: then the machine is
//! given back, whatever is left undone. So that nothing is, the end begins earlier, by what saving
//! and uploading were seen to take.

use std::time::Duration;

use super::{ending, say};
use crate::clock::Moment;
use crate::cost::ALERTS;
use crate::limits::Timer;
use crate::state::{
    Action, Alert, Change, Lease, Level, LimitsChange, OnLost, Reason, State, Trainer,
};

/// What the end takes besides the save and the upload.
const REST: Duration = Duration::from_secs(15);
/// Before anything was measured.
const SAVE_GUESS: Duration = Duration::from_secs(20);
const UPLOAD_GUESS: Duration = Duration::from_secs(40);
/// Measured times are taken with this much on top.
const MARGIN: f64 = 1.25;
/// A limit is not ended earlier than after this part of it, however slow the store is.
const EARLIEST: f64 = 0.5;
/// The machine is asked to go this long before it must be gone.
const LEAD: Duration = Duration::from_secs(3);
/// Time that passes between two events counts at most this much for what is summed up: a machine
/// that was suspended was not idle.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// The moment that the machine must be off, and by which limit.
pub fn hard(state: &State) -> Option<(Timer, Moment)> {
    let clocks = &state.clocks;
    let hard = [
        (Timer::Wall, clocks.wall),
        (Timer::Provider, clocks.provider),
        (Timer::Budget, clocks.budget),
    ];
    let there = hard
        .into_iter()
        .filter_map(|(timer, at)| Some((timer, at?)));
    there.min_by_key(|&(_, at)| at)
}

/// Every moment that ends the agent if nothing changes; of those that only count while something
/// goes on, the ones that count now.
pub fn deadlines(state: &State, now: Moment) -> Vec<(Timer, Moment)> {
    let (limits, clocks) = (&state.settings.limits, &state.clocks);
    let left = |limit: Option<Duration>, used: Duration, counts: bool| {
        let limit = limit.filter(|_| counts)?;
        Some(now + limit.saturating_sub(used))
    };
    let first_step = clocks.claimed && !clocks.trained;
    let all = [
        (Timer::Wall, clocks.wall),
        (Timer::Provider, clocks.provider),
        (Timer::Budget, clocks.budget),
        (Timer::KeepAlive, clocks.keepalive),
        (
            Timer::FirstStep,
            left(limits.first_step, clocks.untrained, first_step),
        ),
        (
            Timer::Idle,
            left(limits.idle, clocks.idle, !clocks.idle.is_zero()),
        ),
    ];
    let there = all.into_iter().filter_map(|(timer, at)| Some((timer, at?)));
    there.collect()
}

/// When the end begins, so that the last checkpoint is in the store by the hard moment.
pub fn soft(state: &State) -> Option<(Timer, Moment)> {
    let clocks = &state.clocks;
    let began = state.began - state.settings.age.wall;
    let since = [
        (Timer::Wall, clocks.wall, began),
        (Timer::Provider, clocks.provider, state.began),
        (Timer::Budget, clocks.budget, state.meter.since()),
    ];
    let there = since.into_iter().filter_map(|(timer, at, since)| {
        let at = at?;
        let most = at.since(since).mul_f64(1.0 - EARLIEST);
        Some((timer, at - reserve(state).min(most)))
    });
    there.min_by_key(|&(_, at)| at)
}

/// What the last checkpoint and the end take: measured, or guessed.
pub(super) fn reserve(state: &State) -> Duration {
    let measured = |time: Duration| time.mul_f64(MARGIN);
    let save = state.progress.save_time.map_or(SAVE_GUESS, measured);
    let upload = state.checkpoints.upload_time;
    save + upload.map_or(UPLOAD_GUESS, measured) + REST
}

/// Counts, and ends what is over.
pub(super) fn advance(state: &mut State, now: Moment, todo: &mut Vec<Action>) {
    count(state, now);
    alert(state, now, todo);
    if state.ending.is_none()
        && let Some(timer) = expired(state, now)
    {
        ending::end(state, Reason::Limit(timer), now, todo);
        todo.push(Action::Alert(Alert {
            event: timer.reason().to_owned(),
            text: timer.text().to_owned(),
        }));
    }
    // However the end began, it has no more time than that.
    if let Some((_, at)) = hard(state) {
        ending::be_over_by(state, at - LEAD, now);
    }
}

fn count(state: &mut State, now: Moment) {
    let passed = now.since(state.clocks.counted).min(PAUSE_MAX);
    let probing = matches!(state.lease, Lease::Probing(_));
    let held = matches!(state.lease, Lease::Held(_));
    let stands_by = stands_by(state);
    let fetching = is_fetching(state);
    let restoring = matches!(state.trainer, Trainer::Restoring { .. });
    let busy = state.has_trainer() || restoring || state.checkpoints.upload.is_some();
    let clocks = &mut state.clocks;
    clocks.counted = now;
    clocks.booted |= !probing;
    clocks.claimed |= held;
    clocks.trained |= state.progress.tokens_per_second.is_some();
    let add = |sum: &mut Duration, runs: bool| *sum += if runs { passed } else { Duration::ZERO };
    add(
        &mut clocks.claiming,
        clocks.booted && !clocks.claimed && !stands_by,
    );
    add(&mut clocks.standing_by, stands_by);
    add(
        &mut clocks.untrained,
        held && !clocks.trained && !restoring && !fetching,
    );
    let while_so = |sum: Duration, so: bool| if so { sum + passed } else { Duration::ZERO };
    clocks.fetching = while_so(clocks.fetching, fetching);
    clocks.restoring = while_so(clocks.restoring, restoring);
    clocks.idle = while_so(clocks.idle, !busy);
}

/// Whether we only wait for another holder to leave.
fn stands_by(state: &State) -> bool {
    let watching = matches!(&state.lease, Lease::Seeking(seeking) if seeking.watch.is_some());
    watching && state.settings.on_lost == OnLost::Standby
}

fn is_fetching(state: &State) -> bool {
    state.has_trainer() && state.progress.phase == Some(protocol::Phase::Preparing)
}

/// The first limit that is over.
fn expired(state: &State, now: Moment) -> Option<Timer> {
    let (limits, clocks) = (&state.settings.limits, &state.clocks);
    let over = |limit: Option<Duration>, used: Duration| limit.is_some_and(|limit| used >= limit);
    if let Some((timer, at)) = soft(state)
        && now >= at
    {
        return Some(timer);
    }
    // A container that was there long before us is not booting.
    let age = state.settings.age.wall;
    let age = age.min(limits.boot.unwrap_or(age) / 2);
    let booting = if clocks.booted {
        Duration::ZERO
    } else {
        now.since(state.began - age)
    };
    let standby_usd = state.meter.rate() * clocks.standing_by.as_secs_f64() / 3600.0;
    let timers = [
        (
            Timer::KeepAlive,
            clocks.keepalive.is_some_and(|at| now >= at),
        ),
        (Timer::Boot, over(limits.boot, booting)),
        (
            Timer::Claim,
            !clocks.claimed && over(limits.claim, clocks.claiming),
        ),
        (
            Timer::Standby,
            limits.standby_usd.is_some_and(|usd| standby_usd >= usd) && stands_by(state),
        ),
        (Timer::Restore, over(limits.restore, clocks.restoring)),
        (Timer::Fetch, over(limits.fetch, clocks.fetching)),
        (
            Timer::FirstStep,
            !clocks.trained && over(limits.first_step, clocks.untrained),
        ),
        (Timer::Idle, over(limits.idle, clocks.idle)),
    ];
    timers
        .into_iter()
        .find(|(_, so)| *so)
        .map(|(timer, _)| timer)
}

/// Says once of each part of the budget that it is used.
fn alert(state: &mut State, now: Moment, todo: &mut Vec<Action>) {
    let Some(budget) = state.settings.limits.budget_usd else {
        return;
    };
    let total = state.meter.total(now);
    let used = alerts_due(budget, total);
    if used <= state.clocks.alerts {
        return;
    }
    state.clocks.alerts = used;
    let percent = (ALERTS[used - 1] * 100.0).round();
    let text = format!("{percent} % of the budget is used: ${total:.2} of ${budget:.2}");
    say(todo, Level::Warning, text.as_str());
    let event = format!("budget_{percent}");
    todo.push(Action::Alert(Alert { event, text }));
}

/// How many of the alerts a sum is worth.
fn alerts_due(budget: f64, total: f64) -> usize {
    ALERTS
        .iter()
        .filter(|&&part| total >= part * budget)
        .count()
}

/// A new price, or a new sum, moves the moment at which the budget is used up.
pub(super) fn recount_budget(state: &mut State, now: Moment) {
    let budget = state.settings.limits.budget_usd;
    let moment = budget.and_then(|usd| state.meter.reaches(usd, now));
    // What is used up at once would take a trainer's last checkpoint with it; but nobody gets more
    // time than was left before.
    let least = match state.has_trainer() {
        true => (now + reserve(state)).min(state.clocks.budget.unwrap_or(now + reserve(state))),
        false => now,
    };
    state.clocks.budget = moment.map(|at| at.max(least));
}

/// New limits, at once. One that is passed already ends the agent, but not its last checkpoint.
///
/// # Errors
/// If one of them is no limit; then none is changed.
pub(super) fn change(
    state: &mut State,
    change: &LimitsChange,
    now: Moment,
    todo: &mut Vec<Action>,
) -> Result<(), String> {
    if let Some(Change::To(usd)) = change.budget_usd {
        if !usd.is_finite() || usd < 0.0 {
            return Err(format!("budget: expected dollars, got {usd}"));
        }
        if state.meter.price().is_none() {
            return Err("budget: nobody knows what this machine costs".to_owned());
        }
    }
    let limits = &mut state.settings.limits;
    set(&mut limits.wall, change.wall);
    set(&mut limits.idle, change.idle);
    set(&mut limits.stall, change.stall);
    set(&mut limits.budget_usd, change.budget_usd);
    let (wall, budget) = (limits.wall, limits.budget_usd);
    if change.wall.is_some() {
        let began = state.began - state.settings.age.wall;
        let least = now + reserve(state);
        state.clocks.wall = wall.map(|wall| (began + wall).max(least));
    }
    if change.budget_usd.is_some() {
        recount_budget(state, now);
        let total = state.meter.total(now);
        state.clocks.alerts = budget.map_or(0, |usd| alerts_due(usd, total).min(ALERTS.len()));
    }
    say(todo, Level::Info, "limits were changed");
    Ok(())
}

fn set<T: Copy>(limit: &mut Option<T>, change: Option<Change<T>>) {
    match change {
        Some(Change::To(value)) => *limit = Some(value),
        Some(Change::Off) => *limit = None,
        None => {}
    }
}

/// Somebody says that the job is wanted, and will say so again.
pub(super) fn keep_alive(state: &mut State, ttl: Duration, now: Moment) -> Result<(), String> {
    if ttl.is_zero() {
        return Err("keepalive: expected a time above 0".to_owned());
    }
    state.settings.limits.keepalive = Some(ttl);
    state.clocks.keepalive = Some(now + ttl);
    Ok(())
}
