//! Limits of time and money, commands, and the machine at the end.

use super::*;
use crate::limits::Timer;
use crate::provider::{Price, PriceSource};
use crate::state::{Call, Change, Drill, Lease, LimitsChange};

fn minutes(n: u64) -> Option<Duration> {
    Some(Duration::from_secs(n * 60))
}

fn limited(limits: Limits) -> Settings {
    Settings {
        limits,
        power_off: PowerOff::Destroy,
        ..settings()
    }
}

/// A dollar a minute.
fn price() -> Option<Price> {
    Some(Price {
        per_hour: 54.0,
        storage_per_hour: 6.0,
        source: PriceSource::Job,
    })
}

fn reason(bench: &Bench) -> Option<&'static str> {
    bench.state.ending.as_ref().map(|it| it.reason.code())
}

fn asked_off(bench: &Bench) -> bool {
    bench.has(&Action::PowerOff(PowerOff::Destroy))
}

/// The trainer trains on for so many seconds.
fn train(bench: &mut Bench, seconds: u64) {
    for _ in 0..seconds {
        bench.record(training());
        bench.pass(1.0);
    }
}

/// One step, as a trainer reports it.
fn a_step() -> TrainerEvent {
    TrainerEvent::Step {
        step: 7,
        loss: 1.0,
        lr: 1.0,
        grad_norm: 1.0,
        step_ms: 1.0,
        tokens_per_second: 1.0,
        mfu: None,
    }
}

#[test]
fn the_wall_clock_counts_from_the_containers_start_and_leaves_time_to_save_and_upload() {
    let mut settings = limited(Limits {
        wall: minutes(20),
        ..LIMITS
    });
    settings.age = Age {
        wall: Duration::from_secs(300),
        paid: Duration::ZERO,
    };
    let mut bench = Bench::training(settings, None);
    bench.record(TrainerEvent::Checkpoint {
        step: 5,
        path: String::new(),
        bytes: 1,
        stall_ms: 1_000.0,
        write_ms: 15_000.0,
    });
    bench.give(Event::CheckpointFound { step: 5 });
    bench.give(Event::PublishEnded {
        epoch: 1,
        step: 5,
        result: Ok(Published {
            bytes: 1,
            took: Duration::from_secs(32),
        }),
    });
    bench.done.clear();
    // 900 s are left; 16 s and 32 s with a quarter on top and 15 s for the rest are not.
    train(&mut bench, 900 - 75 - 2);
    assert_eq!(reason(&bench), None);
    train(&mut bench, 3);
    assert_eq!(reason(&bench), Some("max_duration_exceeded"));
    assert!(bench.has(&Action::Signal(Signal::Terminate)));
    assert!(!bench.has(&Action::KillGroup));
    bench.pass(18.0);
    bench.give(Event::CheckpointFound { step: 9 });
    bench.exit(75, Some(9));
    bench.pass(30.0);
    assert_eq!(bench.exited(), None, "the upload is waited for");
    bench.published(9);
    bench.pass(1.0);
    assert!(bench.has(&Action::Release) && asked_off(&bench));
    assert_eq!(bench.exited(), Some(ExitStatus::Limit));
}

#[test]
fn at_the_hard_limit_the_machine_goes_whatever_is_undone() {
    let mut bench = Bench::training(
        limited(Limits {
            wall: minutes(10),
            ..LIMITS
        }),
        None,
    );
    bench.record(a_step());
    bench.store_up = false;
    train(&mut bench, 540);
    assert_eq!(reason(&bench), Some("max_duration_exceeded"));
    // The trainer does not save, and the store does not answer.
    bench.pass(58.0);
    assert!(bench.has(&Action::KillGroup) && asked_off(&bench));
    assert_eq!(bench.exited(), Some(ExitStatus::Limit));
}

#[test]
fn an_end_for_another_reason_has_no_more_time_than_the_limit() {
    let mut bench = Bench::training(
        limited(Limits {
            wall: minutes(10),
            ..LIMITS
        }),
        None,
    );
    train(&mut bench, 300);
    bench.give(Event::CheckpointFound { step: 9 });
    bench.exit(0, Some(9));
    assert_eq!(reason(&bench), Some("succeeded"));
    // Its last upload would be waited for as long as the store is.
    bench.pass(290.0);
    assert!(!asked_off(&bench));
    bench.pass(10.0);
    assert!(asked_off(&bench));
    assert_eq!(bench.exited(), Some(ExitStatus::Retryable));
}

#[test]
fn the_machine_is_asked_to_go_until_it_does_and_nothing_is_said_of_the_lease_meanwhile() {
    let mut bench = Bench::training(limited(LIMITS), None);
    bench.provider_up = false;
    bench.give(Event::Command(Command::Stop(StopOrder::new(false))));
    bench.exit(75, None);
    bench.done.clear();
    bench.pass(600.0);
    let asked = |action: &&Action| **action == Action::PowerOff(PowerOff::Destroy);
    let times = bench.done.iter().filter(asked).count();
    assert!((50..80).contains(&times), "{times}");
    assert!(!bench.has(&Action::Beat), "the lease is released");
    assert_eq!(bench.exited(), None);
    bench.provider_up = true;
    bench.pass(11.0);
    assert_eq!(bench.exited(), Some(ExitStatus::Resumable));
}

#[test]
fn a_machine_that_is_refused_for_good_is_told_of() {
    let mut bench = Bench::training(limited(LIMITS), None);
    bench.provider_up = false;
    bench.give(Event::Command(Command::Stop(StopOrder::new(false))));
    bench.exit(75, None);
    bench.pass(1.0);
    bench.give(Event::PoweredOff(Err(Fault {
        transient: false,
        text: "403".to_owned(),
    })));
    bench.pass(20.0);
    // The answer that counts is to the question that is in the air.
    let told =
        |action: &Action| matches!(action, Action::Alert(it) if it.event == "power_off_refused");
    assert!(bench.position(told).is_some());
}

#[test]
fn after_a_notice_nobody_switches_the_machine_off_and_a_loser_does() {
    let mut bench = Bench::training(limited(LIMITS), None);
    bench.notice(30);
    bench.exit(75, None);
    bench.pass(1.0);
    assert_eq!(bench.exited(), Some(ExitStatus::Resumable));
    assert!(!asked_off(&bench));

    let mut bench = Bench::new(limited(LIMITS));
    bench.give(Event::Tick);
    bench.give(Event::Probed(Ok(Verdict::Sound)));
    bench.look(held(1, "a"));
    bench.look(held(1, "b"));
    bench.pass(1.0);
    assert!(asked_off(&bench));
    assert_eq!(bench.exited(), Some(ExitStatus::NotOurs));
}

#[test]
fn a_stop_says_what_becomes_of_the_machine() {
    let order = |power_off| StopOrder {
        power_off: Some(power_off),
        ..StopOrder::new(true)
    };
    let mut bench = Bench::training(limited(LIMITS), None);
    bench.give(Event::Command(Command::Stop(order(false))));
    bench.exit(9, None);
    bench.pass(1.0);
    assert!(bench.exited().is_some() && !asked_off(&bench));

    let mut bench = Bench::training(settings(), None);
    bench.give(Event::Command(Command::Stop(order(true))));
    bench.exit(9, None);
    bench.pass(1.0);
    assert!(bench.exited().is_some() && asked_off(&bench));
}

#[test]
fn money_is_a_limit_and_its_parts_are_told_once() {
    let mut settings = limited(Limits {
        budget_usd: Some(20.0),
        ..LIMITS
    });
    settings.price = price();
    let mut bench = Bench::training(settings, None);
    bench.record(a_step());
    bench.give(Event::Spent {
        total_usd: 5.0,
        own_usd: 0.0,
    });
    let told = |bench: &Bench| -> Vec<String> {
        let alerts = bench.done.iter().filter_map(|action| match action {
            Action::Alert(alert) => Some(alert.event.clone()),
            _ => None,
        });
        alerts.collect()
    };
    train(&mut bench, 299);
    assert_eq!(told(&bench), [""; 0]);
    train(&mut bench, 3);
    assert_eq!(told(&bench), ["budget_50"]);
    // 15 minutes at a dollar each; the last checkpoint is begun before.
    train(&mut bench, 900 - 302 - 80);
    assert_eq!(told(&bench), ["budget_50", "budget_80"]);
    assert_eq!(reason(&bench), None);
    train(&mut bench, 10);
    assert_eq!(reason(&bench), Some("budget_exceeded"));
    bench.pass(75.0);
    let told = told(&bench);
    assert_eq!(told.last().map(String::as_str), Some("budget_95"));
    assert!(asked_off(&bench), "before the last dollar");
    assert_eq!(bench.exited(), Some(ExitStatus::Limit));
}

#[test]
fn limits_are_changed_live_and_one_that_is_passed_still_saves() {
    let mut bench = Bench::training(
        limited(Limits {
            wall: minutes(60),
            ..LIMITS
        }),
        None,
    );
    bench.record(a_step());
    let change = |wall| {
        Command::Limits(LimitsChange {
            wall: Some(wall),
            ..LimitsChange::default()
        })
    };
    let command = change(Change::To(Duration::from_secs(7200)));
    let id = "00000001".to_owned();
    bench.give(Event::Control { id, command });
    train(&mut bench, 3700);
    assert_eq!(reason(&bench), None);
    let command = change(Change::To(Duration::from_secs(60)));
    let id = "00000002".to_owned();
    bench.give(Event::Control { id, command });
    assert_eq!(reason(&bench), Some("max_duration_exceeded"));
    assert!(bench.has(&Action::Signal(Signal::Terminate)) && !bench.has(&Action::KillGroup));
    let answers: Vec<_> = bench
        .state
        .answers
        .iter()
        .map(|it| (&*it.id, &it.refused))
        .collect();
    assert_eq!(answers, [("00000001", &None), ("00000002", &None)]);
}

#[test]
fn a_command_that_cannot_be_obeyed_is_refused_with_its_reason() {
    let mut bench = Bench::training(settings(), None);
    let budget = Command::Limits(LimitsChange {
        wall: Some(Change::Off),
        budget_usd: Some(Change::To(1.0)),
        ..LimitsChange::default()
    });
    let commands = [
        budget,
        Command::Unknown("\"fire\" is not known".to_owned()),
        Command::KeepAlive(Duration::ZERO),
        Command::Save,
    ];
    for (n, command) in commands.into_iter().enumerate() {
        let id = n.to_string();
        bench.give(Event::Control { id, command });
    }
    let refused = bench.state.answers.iter().map(|it| it.refused.is_some());
    assert_eq!(refused.collect::<Vec<_>>(), [true, true, true, false]);
    assert_eq!(reason(&bench), None);
}

#[test]
fn without_a_word_in_time_the_job_is_ended() {
    let mut bench = Bench::training(limited(LIMITS), None);
    bench.record(a_step());
    bench.give(Event::Command(Command::KeepAlive(Duration::from_secs(90))));
    train(&mut bench, 80);
    bench.give(Event::Command(Command::KeepAlive(Duration::from_secs(90))));
    train(&mut bench, 80);
    assert_eq!(reason(&bench), None);
    train(&mut bench, 11);
    assert_eq!(reason(&bench), Some("keepalive_expired"));
    assert!(bench.has(&Action::Signal(Signal::Terminate)));
}

#[test]
fn a_machine_with_nothing_to_do_goes_and_one_that_trains_is_not_idle() {
    let limits = Limits {
        idle: minutes(5),
        ..LIMITS
    };
    let mut bench = Bench::training(limited(limits), None);
    bench.record(a_step());
    train(&mut bench, 1000);
    assert_eq!(reason(&bench), None);

    let mut settings = limited(limits);
    settings.on_lost = OnLost::Standby;
    let mut bench = Bench::new(settings);
    bench.give(Event::Tick);
    bench.give(Event::Probed(Ok(Verdict::Sound)));
    bench.look(held(1, "a"));
    bench.pass(299.0);
    assert_eq!(reason(&bench), None);
    bench.pass(2.0);
    assert_eq!(reason(&bench), Some("idle_exceeded"));
    assert!(asked_off(&bench));
}

#[test]
fn boot_claim_and_standby_end_a_machine_that_gets_no_job() {
    let limits = Limits {
        boot: minutes(2),
        claim: minutes(3),
        standby_usd: Some(1.5),
        ..LIMITS
    };
    let mut bench = Bench::new(limited(limits));
    bench.pass(121.0);
    assert_eq!(reason(&bench), Some("boot_deadline_exceeded"));

    let mut bench = Bench::new(limited(limits));
    bench.give(Event::Tick);
    bench.give(Event::Probed(Ok(Verdict::Sound)));
    bench.pass(170.0);
    assert_eq!(reason(&bench), None);
    bench.pass(11.0);
    assert_eq!(reason(&bench), Some("claim_deadline_exceeded"));
    assert_eq!(bench.exited(), Some(ExitStatus::Limit));

    let mut settings = limited(limits);
    settings.on_lost = OnLost::Standby;
    settings.price = price();
    let mut bench = Bench::new(settings);
    bench.give(Event::Tick);
    bench.give(Event::Probed(Ok(Verdict::Sound)));
    bench.look(held(1, "a"));
    bench.pass(85.0);
    assert_eq!(reason(&bench), None);
    bench.pass(7.0);
    assert_eq!(reason(&bench), Some("standby_budget_exceeded"));
}

#[test]
fn a_winner_that_cannot_train_leaves_the_lease_to_others() {
    let limits = Limits {
        first_step: minutes(10),
        fetch: minutes(20),
        ..LIMITS
    };
    let mut bench = Bench::training(limited(limits), Some(3));
    bench.record(TrainerEvent::Phase {
        phase: Phase::Preparing,
    });
    // Data has its own limit.
    for _ in 0..60 {
        bench.pass(10.0);
        bench.record(TrainerEvent::Phase {
            phase: Phase::Preparing,
        });
    }
    assert_eq!(reason(&bench), None);
    for _ in 0..61 {
        bench.record(TrainerEvent::Phase {
            phase: Phase::Compiling,
        });
        bench.pass(10.0);
    }
    assert_eq!(reason(&bench), Some("first_step_deadline_exceeded"));
    bench.exit(75, Some(3));
    bench.pass(1.0);
    assert!(bench.has(&Action::Release) && asked_off(&bench));
    assert_eq!(bench.exited(), Some(ExitStatus::Retryable));

    let mut bench = Bench::training(limited(limits), Some(3));
    bench.record(TrainerEvent::Phase {
        phase: Phase::Preparing,
    });
    for _ in 0..121 {
        bench.pass(10.0);
        bench.record(TrainerEvent::Phase {
            phase: Phase::Preparing,
        });
    }
    assert_eq!(reason(&bench), Some("fetch_deadline_exceeded"));
}

#[test]
fn a_first_step_ends_the_first_step_deadline() {
    let limits = Limits {
        first_step: minutes(10),
        ..LIMITS
    };
    let mut bench = Bench::training(limited(limits), None);
    bench.record(a_step());
    train(&mut bench, 700);
    assert_eq!(reason(&bench), None);
    let deadlines = super::super::limits::deadlines(&bench.state, bench.now);
    assert!(
        !deadlines
            .iter()
            .any(|(timer, _)| *timer == Timer::FirstStep)
    );
}

#[test]
fn a_yield_saves_publishes_and_releases() {
    let mut bench = Bench::training(limited(LIMITS), None);
    bench.give(Event::Command(Command::Yield));
    assert!(bench.has(&Action::Signal(Signal::Terminate)));
    bench.give(Event::CheckpointFound { step: 9 });
    bench.exit(75, Some(9));
    bench.published(9);
    bench.pass(1.0);
    assert!(bench.has(&Action::Release) && asked_off(&bench));
    assert!(!bench.has(&Action::WriteFinal(Reason::Yielded)));
    assert_eq!(bench.exited(), Some(ExitStatus::Resumable));
}

#[test]
fn a_drill_of_preemption_is_a_preemption() {
    let mut bench = Bench::training(limited(LIMITS), None);
    bench.give(Event::Command(Command::Drill(Drill::Preempt)));
    assert_eq!(reason(&bench), Some("preempted"));
    let mut bench = Bench::training(limited(LIMITS), None);
    for drill in Drill::ALL.into_iter().skip(1) {
        bench.give(Event::Command(Command::Drill(drill)));
        assert!(bench.has(&Action::Drill(drill)));
    }
    assert_eq!(reason(&bench), None);
}

#[test]
fn no_beat_is_asked_for_by_whoever_has_left_the_lease() {
    let settings = limited(Limits {
        wall: minutes(10),
        ..LIMITS
    });
    let mut bench = Bench::training(settings, None);
    bench.record(a_step());
    // The trainer neither saves nor dies, so the lease is held to the hard limit.
    for _ in 0..4 * 605 {
        bench.done.clear();
        if let Lease::Held(held) = &mut bench.state.lease {
            held.beat = Call::due(bench.now);
        }
        bench.pass(0.25);
        if asked_off(&bench) {
            assert!(!bench.has(&Action::Beat));
            return;
        }
        assert!(bench.has(&Action::Beat));
    }
    panic!("the machine stays on");
}
