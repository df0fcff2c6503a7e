//! The pure step, event by event, on a bench that answers what it asks for.

mod ending;
mod lease;
mod limits;

use std::time::Duration;

use protocol::{Event as TrainerEvent, Phase, Record};

use super::*;
use crate::error::ExitStatus;
use crate::limits::{Age, Limits};
use crate::provider::PowerOff;
use crate::state::{
    Beat, Cause, Claim, Exit, Fault, LeaseMode, OnLost, Published, Restored, Settings, Sight,
    Verdict,
};

const TTL: Duration = Duration::from_secs(60);

/// Only stalls are looked after.
const LIMITS: Limits = Limits {
    wall: None,
    idle: None,
    stall: Some(Duration::from_secs(100)),
    boot: None,
    claim: None,
    restore: None,
    fetch: None,
    first_step: None,
    budget_usd: None,
    standby_usd: None,
    keepalive: None,
    provider: None,
};

fn settings() -> Settings {
    Settings {
        lease: LeaseMode::Strict,
        on_lost: OnLost::Exit,
        takes_keys: false,
        again: false,
        ttl: TTL,
        kill_budget: Duration::from_secs(5),
        rho: 0.01,
        restarts_max: 3,
        backoff_first: Duration::from_secs(1),
        backoff_max: Duration::from_secs(60),
        start_patience: Duration::from_secs(300),
        save_patience: Duration::from_secs(30),
        store_patience: Duration::from_secs(600),
        status_every: Duration::from_secs(5),
        logs_every: Duration::from_secs(30),
        limits: LIMITS,
        age: Age::default(),
        price: None,
        power_off: PowerOff::None,
    }
}

/// An agent under the hands of a test: time passes only when it says so.
struct Bench {
    state: State,
    now: Moment,
    /// Everything asked for since the last look.
    done: Vec<Action>,
    /// Whether beats, statuses and logs get through.
    store_up: bool,
    provider_up: bool,
}

impl Bench {
    fn new(settings: Settings) -> Self {
        let now = Moment::since_boot(Duration::from_secs(1000));
        Self {
            state: State::new(settings, now),
            now,
            done: Vec::new(),
            store_up: true,
            provider_up: true,
        }
    }

    /// With a lease, and the trainer at work on a job whose newest checkpoint is `base`.
    fn training(settings: Settings, base: Option<u64>) -> Self {
        let mut bench = Self::new(settings);
        bench.give(Event::Tick);
        bench.give(Event::Probed(Ok(Verdict::Sound)));
        bench.look(Sight::Free { epoch: 0 });
        bench.claim(1, base);
        bench.restored(base);
        bench.give(Event::Started(Ok(42)));
        bench.record(started());
        bench.done.clear();
        bench
    }

    fn give(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for action in step(&mut self.state, event, self.now) {
                let answer = self.answer(&action);
                self.done.push(action);
                events.extend(answer);
            }
        }
    }

    /// What the store says at once to what is asked of it all the time.
    fn answer(&self, action: &Action) -> Option<Event> {
        let result = if self.store_up { Ok(()) } else { Err(fault()) };
        match action {
            Action::Beat => Some(Event::BeatAnswered {
                epoch: self.state.epoch().unwrap(),
                asked: self.now,
                beat: result.map(|()| Beat::Held),
            }),
            Action::WriteStatus => Some(Event::StatusWritten(result)),
            Action::WriteLogs { .. } => Some(Event::LogsWritten(result)),
            Action::WriteFinal(_) => Some(Event::FinalWritten(result)),
            Action::Release => Some(Event::Released(result)),
            Action::PowerOff(_) => Some(Event::PoweredOff(if self.provider_up {
                Ok(())
            } else {
                Err(fault())
            })),
            Action::Prune => Some(Event::Pruned(result)),
            _ => None,
        }
    }

    fn pass(&mut self, seconds: f64) {
        let quarter = Duration::from_millis(250);
        for _ in 0..(seconds * 4.0) as u64 {
            self.now = self.now + quarter;
            self.give(Event::Tick);
        }
    }

    fn look(&mut self, sight: Sight) {
        self.give(Event::Looked {
            asked: self.now,
            sight: Ok(sight),
        });
    }

    fn claim(&mut self, epoch: u64, base: Option<u64>) {
        self.give(Event::Claimed {
            asked: self.now,
            claim: Ok(Claim::Ours { epoch, base }),
        });
    }

    fn restored(&mut self, step: Option<u64>) {
        self.give(Event::Restored(Ok(Restored {
            step,
            published: step,
            bad: Vec::new(),
        })));
    }

    fn record(&mut self, event: TrainerEvent) {
        let time = "2026-01-02T03:04:05Z".to_owned();
        self.give(Event::Record(Record {
            time,
            elapsed_s: 0.0,
            event,
        }));
    }

    fn published(&mut self, step: u64) {
        self.give(Event::PublishEnded {
            epoch: self.state.epoch().unwrap(),
            step,
            result: Ok(Published {
                bytes: 1,
                took: Duration::from_secs(4),
            }),
        });
    }

    fn exit(&mut self, code: i32, local: Option<u64>) {
        self.give(Event::Exited(Exit {
            code: Some(code),
            signal: None,
            out_of_memory: false,
            local,
        }));
    }

    fn notice(&mut self, seconds: u64) {
        self.give(Event::Notice {
            source: "SIGTERM".to_owned(),
            grace: Duration::from_secs(seconds),
        });
    }

    fn has(&self, action: &Action) -> bool {
        self.done.contains(action)
    }

    fn position(&self, wanted: impl Fn(&Action) -> bool) -> Option<usize> {
        self.done.iter().position(wanted)
    }

    fn exited(&self) -> Option<ExitStatus> {
        self.state.exited
    }
}

fn fault() -> Fault {
    Fault {
        transient: true,
        text: "the store is out".to_owned(),
    }
}

fn started() -> TrainerEvent {
    TrainerEvent::Started {
        version: "1".to_owned(),
        pid: 42,
        config: "c".to_owned(),
        config_hash: "h".to_owned(),
        engine: "fused".to_owned(),
        device: "cpu".to_owned(),
        threads: 1,
        parameters: 10,
        tokens_per_iteration: 8,
        max_iters: 100,
        resumed_from: None,
        startup_ms: Vec::new(),
    }
}

fn training() -> TrainerEvent {
    TrainerEvent::Phase {
        phase: Phase::Training,
    }
}

fn held(epoch: u64, tag: &str) -> Sight {
    Sight::Held {
        epoch,
        tag: tag.to_owned(),
        patience: Duration::from_secs(66),
        holder: "h".to_owned(),
        dead: false,
    }
}

#[test]
fn a_run_completes_only_after_its_last_checkpoint_is_verified() {
    let mut bench = Bench::training(settings(), None);
    bench.give(Event::CheckpointFound { step: 100 });
    assert!(bench.has(&Action::Publish {
        epoch: 1,
        step: 100
    }));
    bench.exit(0, Some(200));
    bench.pass(5.0);
    assert_eq!(bench.exited(), None);
    bench.published(100);
    assert!(bench.has(&Action::Publish {
        epoch: 1,
        step: 200
    }));
    assert!(
        bench
            .position(|a| matches!(a, Action::WriteFinal(_)))
            .is_none()
    );
    bench.published(200);
    let logs = bench.position(|a| *a == Action::WriteLogs { last: true });
    let last = bench.position(|a| *a == Action::WriteFinal(Reason::Completed));
    let release = bench.position(|a| *a == Action::Release);
    assert!(
        logs.is_some() && logs < last && last < release,
        "{:?}",
        bench.done
    );
    assert_eq!(bench.exited(), Some(ExitStatus::Completed));
}

#[test]
fn a_run_whose_last_upload_never_works_is_not_completed() {
    let mut bench = Bench::training(settings(), None);
    bench.exit(0, Some(200));
    for _ in 0..200 {
        bench.give(Event::PublishEnded {
            epoch: 1,
            step: 200,
            result: Err(fault()),
        });
        bench.pass(5.0);
    }
    assert_eq!(bench.exited(), Some(ExitStatus::Retryable));
    assert!(
        bench
            .position(|a| matches!(a, Action::WriteFinal(_)))
            .is_none()
    );
}

#[test]
fn a_checkpoint_that_was_pruned_gives_way_to_the_next_one_at_once() {
    let publish = |step| Action::Publish { epoch: 1, step };
    let mut bench = Bench::training(settings(), Some(5));
    bench.give(Event::CheckpointFound { step: 10 });
    bench.give(Event::CheckpointFound { step: 20 });
    bench.give(Event::CheckpointGone { epoch: 1, step: 10 });
    assert!(bench.has(&publish(20)));
    // Of one after which nothing is known yet, the next is not long in coming.
    bench.give(Event::CheckpointGone { epoch: 1, step: 20 });
    bench.pass(5.0);
    bench.give(Event::CheckpointFound { step: 30 });
    assert!(bench.has(&publish(30)));
    assert!(!bench.done.iter().any(|a| matches!(a, Action::Say(..))));

    // The last one is not given up like that: the job is not complete without it.
    bench.published(30);
    bench.exit(0, Some(40));
    bench.give(Event::CheckpointGone { epoch: 1, step: 40 });
    bench.pass(100.0);
    assert!(!bench.has(&Action::WriteFinal(Reason::Completed)));
    let tries = bench.done.iter().filter(|&a| *a == publish(40));
    assert_eq!(tries.count(), 2);
}

#[test]
fn crashes_in_a_row_end_the_job_and_a_new_checkpoint_begins_the_count_anew() {
    let mut bench = Bench::training(settings(), None);
    for _ in 0..3 {
        bench.exit(1, None);
        bench.pass(10.0);
    }
    assert_eq!(bench.exited(), None);
    bench.exit(1, Some(5));
    bench.pass(10.0);
    assert_eq!(bench.state.counts.crashes_in_a_row, 1);
    for _ in 0..3 {
        assert_eq!(bench.exited(), None);
        bench.exit(139, Some(5));
        bench.pass(10.0);
    }
    bench.published(5);
    assert_eq!(bench.exited(), Some(ExitStatus::Retryable));
    assert_eq!(bench.state.counts.crashes, 7);
    assert_eq!(bench.state.counts.preemptions, 0);
}

#[test]
fn a_crash_is_followed_by_a_pause_and_restores_only_what_is_not_here() {
    let mut bench = Bench::training(settings(), Some(100));
    bench.exit(1, Some(100));
    bench.pass(0.75);
    assert!(!bench.has(&Action::Start { attempt: 2 }));
    bench.pass(0.5);
    assert!(bench.has(&Action::Start { attempt: 2 }));
    bench.exit(1, None);
    bench.pass(3.0);
    assert!(bench.has(&Action::Restore));
    assert!(!bench.has(&Action::Start { attempt: 3 }));
    bench.restored(Some(100));
    assert!(bench.has(&Action::Start { attempt: 3 }));
}

#[test]
fn faults_of_the_config_and_data_and_divergence_are_never_restarted() {
    for code in [64, 65, 76] {
        let mut bench = Bench::training(settings(), None);
        bench.exit(code, None);
        assert_eq!(bench.exited(), Some(ExitStatus::Failed), "{code}");
        assert!(
            bench
                .position(|a| matches!(a, Action::WriteFinal(_)))
                .is_some()
        );
        assert!(!bench.has(&Action::Start { attempt: 2 }));
    }
}

#[test]
fn an_out_of_memory_kill_is_named() {
    let mut bench = Bench::training(settings(), None);
    for _ in 0..4 {
        bench.give(Event::Exited(Exit {
            code: None,
            signal: Some(9),
            out_of_memory: true,
            local: None,
        }));
        bench.pass(10.0);
    }
    let Some(ending) = &bench.state.ending else {
        panic!("it goes on");
    };
    assert!(
        matches!(
            ending.reason,
            Reason::Crashed {
                cause: Cause::OutOfMemory,
                ..
            }
        ),
        "{:?}",
        ending.reason
    );
}

#[test]
fn a_stalled_trainer_is_asked_then_killed_then_started_anew() {
    let mut bench = Bench::training(settings(), None);
    bench.record(training());
    bench.pass(99.0);
    assert!(!bench.has(&Action::Signal(Signal::Terminate)));
    bench.pass(2.0);
    assert!(bench.has(&Action::Signal(Signal::Terminate)));
    assert!(!bench.has(&Action::KillGroup));
    bench.pass(31.0);
    assert!(bench.has(&Action::KillGroup));
    bench.exit(75, Some(50));
    bench.pass(2.0);
    assert!(bench.has(&Action::Start { attempt: 2 }));
    assert_eq!(bench.state.counts.crashes, 1);
}

#[test]
fn an_error_at_the_restore_is_never_a_fresh_start() {
    let mut bench = Bench::new(settings());
    bench.give(Event::Tick);
    bench.give(Event::Probed(Ok(Verdict::Sound)));
    bench.look(Sight::Free { epoch: 3 });
    bench.claim(4, Some(100));
    for _ in 0..10 {
        bench.give(Event::Restored(Err(fault())));
        bench.pass(31.0);
    }
    assert_eq!(bench.exited(), None);
    assert!(!bench.has(&Action::Start { attempt: 1 }));
    let asked = bench.done.iter().filter(|a| **a == Action::Restore).count();
    assert!(asked > 8, "{asked}");
    for _ in 0..20 {
        bench.give(Event::Restored(Err(fault())));
        bench.pass(31.0);
    }
    assert_eq!(bench.exited(), Some(ExitStatus::Retryable));
    assert!(!bench.has(&Action::Start { attempt: 1 }));
}

#[test]
fn a_save_is_asked_for_only_once_the_trainer_can_take_the_signal() {
    let mut bench = Bench::training(settings(), None);
    bench.exit(1, None);
    bench.pass(2.0);
    bench.give(Event::Command(Command::Save));
    assert!(!bench.has(&Action::Signal(Signal::Save)));
    bench.record(started());
    bench.give(Event::Command(Command::Save));
    assert!(bench.has(&Action::Signal(Signal::Save)));
}
