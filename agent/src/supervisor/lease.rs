//! The lease as the supervisor sees it: seek, hold, notice the loss. All times are moments of our
//! own boot clock.
//!
//! Three rules make "valid" mean something whatever a request's delay: a holder counts a beat only
//! if its answer came while the lease was still valid; a watcher takes over only after a look that
//! it *asked for* when the patience was over already; and a lease that lapsed, or whose creation we
//! did not hear of in time, is never revived: we claim the next epoch like everybody else.

use std::time::Duration;

use super::{ask_to_save, ending, say, trainer};
use crate::clock::Moment;
use crate::state::{
    Action, Beat, Call, Claim, Fault, Held, Lease, LeaseMode, Level, OnLost, Reason, Risk, Seeking,
    Settings, Sight, State, StopReason, Trainer, Verdict, Watched,
};

const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(10);
/// How soon a look is repeated that found our own last upload still in the air.
const SOON: Duration = Duration::from_millis(100);
/// Commits of a lease that needs no beats may be created for so long: for ever.
const EVER: Duration = Duration::from_secs(100 * 365 * 86_400);

pub(super) fn probed(
    state: &mut State,
    verdict: Result<Verdict, Fault>,
    now: Moment,
    todo: &mut Vec<Action>,
) {
    let Lease::Probing(call) = &mut state.lease else {
        return;
    };
    match verdict {
        Ok(Verdict::Sound) => state.lease = seek(now, None),
        Ok(Verdict::NoLeases(why)) if state.settings.lease == LeaseMode::Off => {
            say(
                todo,
                Level::Warning,
                format!("{why}; --lease off: going on"),
            );
            state.lease = seek(now, None);
        }
        Ok(Verdict::NoLeases(why)) => {
            let why = format!("{why}\nhint: --lease off, if there is never a second container");
            ending::end(state, Reason::StoreRefused(why), now, todo);
        }
        Err(fault) => {
            call.failed(now, RETRY_FIRST, RETRY_MAX);
            let since = state.began;
            unreachable(state, fault, since, now, todo);
        }
    }
}

fn seek(now: Moment, lapsed: Option<u64>) -> Lease {
    Lease::Seeking(Seeking {
        call: Call::due(now),
        claiming: false,
        watch: None,
        lapsed,
        since: now,
    })
}

/// A store that does not answer is waited for; one that refuses us is not, unless we had the lease
/// from it already.
fn unreachable(
    state: &mut State,
    fault: Fault,
    since: Moment,
    now: Moment,
    todo: &mut Vec<Action>,
) {
    let had_it = matches!(&state.lease, Lease::Seeking(s) if s.lapsed.is_some());
    let waited = now.since(since);
    if !fault.transient && !had_it {
        ending::end(state, Reason::StoreRefused(fault.text), now, todo);
    } else if waited >= state.settings.store_patience && !state.has_trainer() {
        ending::end(state, Reason::StoreUnavailable(fault.text), now, todo);
    } else {
        say(
            todo,
            Level::Warning,
            format!("{}; trying again", fault.text),
        );
    }
}

pub(super) fn looked(
    state: &mut State,
    asked: Moment,
    sight: Result<Sight, Fault>,
    now: Moment,
    todo: &mut Vec<Action>,
) {
    let Lease::Seeking(seeking) = &mut state.lease else {
        return;
    };
    let sight = match sight {
        Ok(sight) => sight,
        Err(fault) => {
            seeking.call.failed(now, RETRY_FIRST, RETRY_MAX);
            let since = seeking.since;
            return unreachable(state, fault, since, now, todo);
        }
    };
    let epoch = sight.epoch();
    if matches!(sight, Sight::Held { dead: true, .. }) && seeking.lapsed.is_some() {
        // A claim of ours that we did not hear of.
        seeking.lapsed = Some(epoch);
    }
    if seeking.lapsed.is_some_and(|own| own != epoch) {
        // Somebody has claimed since. Whatever became of it, our training is void.
        let holder = sight.holder();
        let revoked = matches!(sight, Sight::Revoked { .. });
        return lose(state, holder, revoked, now, todo);
    }
    let may_claim = match sight {
        Sight::Free { .. } => true,
        Sight::Revoked { .. } => return ending::end(state, Reason::Revoked, now, todo),
        Sight::Done { .. } if state.settings.again => true,
        Sight::Done { status, .. } => {
            return ending::end(state, Reason::AlreadyDone { status }, now, todo);
        }
        Sight::Held { .. } if seeking.lapsed.is_some() => true,
        Sight::Held { .. } if state.settings.lease == LeaseMode::Off => true,
        Sight::Held { dead: true, .. } => true,
        Sight::Held {
            tag,
            patience,
            holder,
            ..
        } => match watch(seeking, (epoch, tag), asked, now) {
            Watching::First => {
                let text = format!("epoch {epoch} is held by {holder}; watching its beat");
                say(todo, Level::Info, text);
                false
            }
            Watching::Unchanged(silent) => silent >= patience,
            Watching::Changed if state.settings.on_lost == OnLost::Exit => {
                return ending::end(state, Reason::HeldElsewhere { holder }, now, todo);
            }
            Watching::Changed => false,
        },
    };
    if may_claim && state.checkpoints.upload.is_none() {
        seeking.call = Call::InFlight { failures: 0 };
        seeking.claiming = true;
        todo.push(Action::Claim { after: epoch });
    } else {
        let pause = if may_claim {
            SOON
        } else {
            look_every(&state.settings)
        };
        seeking.call = Call::due(now + pause);
    }
}

/// How often a held lease is looked at: soon enough to see the first beats of a holder that began
/// together with us; a standby has time.
fn look_every(settings: &Settings) -> Duration {
    match settings.on_lost {
        OnLost::Exit => settings.ttl / 30,
        OnLost::Standby => settings.ttl / 8,
    }
}

enum Watching {
    First,
    /// For how long, as of the moment the last look was asked for.
    Unchanged(Duration),
    Changed,
}

fn watch(
    seeking: &mut Seeking,
    (epoch, tag): (u64, String),
    asked: Moment,
    now: Moment,
) -> Watching {
    let seen = Watched {
        epoch,
        tag,
        since: now,
    };
    match &seeking.watch {
        Some(known) if (known.epoch, &known.tag) == (epoch, &seen.tag) => {
            Watching::Unchanged(asked.since(known.since))
        }
        Some(_) => {
            seeking.watch = Some(seen);
            Watching::Changed
        }
        None => {
            seeking.watch = Some(seen);
            Watching::First
        }
    }
}

pub(super) fn claimed(
    state: &mut State,
    asked: Moment,
    claim: Result<Claim, Fault>,
    now: Moment,
    todo: &mut Vec<Action>,
) {
    let Lease::Seeking(seeking) = &mut state.lease else {
        return;
    };
    seeking.claiming = false;
    let lapsed = seeking.lapsed.is_some();
    match claim {
        Ok(Claim::Ours { epoch, base }) => {
            state.lease = Lease::Held(Held {
                epoch,
                base,
                claimed: now,
                sent: asked,
                beat: Call::due(now),
                risk: Risk::None,
            });
            state.checkpoints.published = base;
            state.checkpoints.retry_at = None;
            todo.push(Action::CommitUntil(commit_until(state)));
            let from = base.map_or("no checkpoint".to_owned(), |step| format!("step {step}"));
            say(
                todo,
                Level::Info,
                format!("has the lease: epoch {epoch}, from {from}"),
            );
        }
        Ok(Claim::Taken) if lapsed => {
            lose(state, "another agent".to_owned(), false, now, todo);
        }
        Ok(Claim::Taken)
            if state.settings.on_lost == OnLost::Exit && state.settings.lease != LeaseMode::Off =>
        {
            let holder = "another agent, which was faster".to_owned();
            ending::end(state, Reason::HeldElsewhere { holder }, now, todo);
        }
        Ok(Claim::Taken) => {
            seeking.watch = None;
            seeking.call = Call::due(now + RETRY_FIRST);
        }
        Err(fault) => {
            seeking.call.failed(now, RETRY_FIRST, RETRY_MAX);
            let since = seeking.since;
            unreachable(state, fault, since, now, todo);
        }
    }
}

pub(super) fn beat_answered(
    state: &mut State,
    epoch: u64,
    asked: Moment,
    beat: Result<Beat, Fault>,
    now: Moment,
    todo: &mut Vec<Action>,
) {
    let valid_until = state.valid_until();
    let ttl = state.settings.ttl;
    let off = state.settings.lease == LeaseMode::Off;
    let Lease::Held(held) = &mut state.lease else {
        return;
    };
    if held.epoch != epoch {
        return;
    }
    match beat {
        Ok(Beat::Superseded { holder, revoked }) => lose(state, holder, revoked, now, todo),
        Ok(Beat::Held) => {
            if valid_until.is_some_and(|until| now < until) || off {
                if held.risk > Risk::None {
                    say(todo, Level::Info, "the lease is safe again");
                }
                held.sent = asked;
                held.risk = Risk::None;
            }
            // The first beats come fast, so that others that start now see soon that we live.
            let age = now.since(held.claimed);
            let pause = age.clamp(ttl / 60, ttl / 4);
            held.beat = Call::due(asked + pause);
            todo.push(Action::CommitUntil(commit_until(state)));
            super::checkpoints::settle(state);
        }
        Err(_) => held.beat.failed(now, ttl / 60, ttl / 16),
    }
}

/// The lease belongs to somebody else: stop at once, publish nothing.
fn lose(state: &mut State, holder: String, revoked: bool, now: Moment, todo: &mut Vec<Action>) {
    todo.push(Action::CommitUntil(None));
    trainer::kill(state, StopReason::Ending, now, todo);
    super::checkpoints::cancel(state, todo);
    state.checkpoints.published = None;
    if revoked || state.settings.on_lost == OnLost::Exit || state.ending.is_some() {
        state.lease = Lease::Gone;
        let reason = if revoked {
            Reason::Revoked
        } else {
            Reason::LeaseLost { holder }
        };
        return ending::end(state, reason, now, todo);
    }
    say(
        todo,
        Level::Warning,
        format!("the lease was taken by {holder}; standing by"),
    );
    // The run directory holds a run that does not count: the next restore says what does.
    state.checkpoints.local = None;
    match &mut state.trainer {
        Trainer::Restoring { .. } => todo.push(Action::CancelRestore),
        Trainer::Absent { restore, .. } => *restore = true,
        Trainer::Running { .. } => {}
    }
    state.lease = seek(now, None);
}

/// Until when a commit may be created: while a quarter of the ttl is left for it to land in.
fn commit_until(state: &State) -> Option<Moment> {
    match &state.lease {
        Lease::Held(held) if state.settings.lease == LeaseMode::Off => Some(held.claimed + EVER),
        Lease::Held(held) => Some(held.sent + state.settings.ttl.mul_f64(0.75)),
        _ => None,
    }
}

pub(super) fn advance(state: &mut State, now: Moment, todo: &mut Vec<Action>) {
    let going_on = state.ending.is_none();
    let finishing = ending::wants_lease(state);
    match &mut state.lease {
        Lease::Probing(call) => {
            if going_on && call.take(now) {
                todo.push(Action::Probe);
            }
        }
        Lease::Seeking(seeking) => {
            let wanted = going_on || (finishing && seeking.lapsed.is_some());
            if wanted && seeking.call.take(now) {
                todo.push(Action::Look);
            }
        }
        Lease::Held(_) if state.settings.lease != LeaseMode::Off => guard(state, now, todo),
        Lease::Held(_) | Lease::Gone => {}
    }
    if let Lease::Held(held) = &mut state.lease
        && held.beat.take(now)
    {
        state.checkpoints.at_beat = state.checkpoints.published;
        todo.push(Action::Beat);
    }
}

/// What a holder does as its last beat grows old.
fn guard(state: &mut State, now: Moment, todo: &mut Vec<Action>) {
    let ttl = state.settings.ttl;
    let valid_for = state.settings.valid_for();
    let kill_after = valid_for.saturating_sub(state.settings.kill_budget);
    let Lease::Held(held) = &mut state.lease else {
        return;
    };
    let silent = now.since(held.sent);
    if silent >= ttl / 2 && held.risk < Risk::Warned {
        held.risk = Risk::Warned;
        let text = format!("no beat has reached the store for {} s", silent.as_secs());
        say(todo, Level::Warning, text);
    }
    if silent >= ttl.mul_f64(0.75) && held.risk < Risk::Unpublished {
        held.risk = Risk::Unpublished;
        say(
            todo,
            Level::Warning,
            "the lease is about to run out; nothing is published",
        );
        // Where there is nobody to ask there is nothing to save.
        ask_to_save(state, todo).ok();
    }
    if silent >= kill_after && state.settings.lease == LeaseMode::Strict && state.has_trainer() {
        trainer::kill(state, StopReason::LeaseAtRisk, now, todo);
    }
    if silent >= valid_for {
        let epoch = state.epoch();
        say(
            todo,
            Level::Warning,
            "the lease has lapsed; it must be claimed anew",
        );
        todo.push(Action::CommitUntil(None));
        super::checkpoints::cancel(state, todo);
        state.lease = seek(now, epoch);
        advance(state, now, todo);
    }
}
