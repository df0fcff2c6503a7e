//! Claiming, holding, losing.

use super::*;

#[test]
fn the_stages_of_an_outage_are_warn_unpublished_kill_and_claim_anew() {
    let mut bench = Bench::training(settings(), None);
    bench.pass(20.0);
    bench.store_up = false;
    bench.done.clear();
    bench.pass(30.0); // of a beat up to 15 s old
    assert!(
        bench
            .position(|a| matches!(a, Action::Say(Level::Warning, _)))
            .is_some()
    );
    assert!(!bench.has(&Action::Signal(Signal::Save)));
    bench.pass(15.0);
    assert!(bench.has(&Action::Signal(Signal::Save)));
    bench.give(Event::CheckpointFound { step: 100 });
    assert!(
        bench
            .position(|a| matches!(a, Action::Publish { .. }))
            .is_none()
    );
    bench.pass(10.0);
    assert!(bench.has(&Action::KillGroup));
    bench.exit(137, Some(100));
    bench.pass(5.0);
    assert!(bench.has(&Action::Look));
    assert_eq!(bench.state.counts.crashes, 0);
    assert_eq!(bench.state.counts.preemptions, 1);
    // The store is back and nobody was faster: on with the same checkpoint.
    bench.store_up = true;
    bench.look(held(1, "b7"));
    assert!(bench.has(&Action::Claim { after: 1 }));
    bench.claim(2, None);
    bench.pass(1.0);
    assert!(bench.has(&Action::Start { attempt: 2 }));
    assert!(bench.has(&Action::Publish {
        epoch: 2,
        step: 100
    }));
}

#[test]
fn a_lenient_agent_goes_on_unpublished_until_it_has_the_lease_again() {
    let lenient = Settings {
        lease: LeaseMode::Lenient,
        ..settings()
    };
    let mut bench = Bench::training(lenient, None);
    bench.store_up = false;
    bench.pass(100.0);
    assert!(!bench.has(&Action::KillGroup));
    bench.done.clear();
    bench.give(Event::CheckpointFound { step: 100 });
    assert!(
        bench
            .position(|a| matches!(a, Action::Publish { .. }))
            .is_none()
    );
    bench.store_up = true;
    bench.look(held(1, "b7"));
    bench.claim(2, None);
    assert!(bench.has(&Action::Publish {
        epoch: 2,
        step: 100
    }));
    assert!(!bench.has(&Action::Start { attempt: 2 }));
}

#[test]
fn a_holder_that_slept_through_a_takeover_kills_at_once_and_publishes_nothing() {
    let mut bench = Bench::training(settings(), None);
    bench.give(Event::CheckpointFound { step: 100 });
    bench.store_up = false;
    bench.now = bench.now + Duration::from_secs(300);
    bench.done.clear();
    // The answer to a beat from before its sleep changes nothing.
    bench.give(Event::BeatAnswered {
        epoch: 1,
        asked: bench.now - Duration::from_secs(300),
        beat: Ok(Beat::Held),
    });
    assert!(bench.has(&Action::KillGroup));
    assert!(bench.has(&Action::CancelPublish));
    assert!(bench.has(&Action::CommitUntil(None)));
    bench.look(held(2, "b1"));
    bench.exit(137, Some(100));
    bench.pass(20.0);
    assert_eq!(bench.exited(), Some(ExitStatus::NotOurs));
    let written = |a: &Action| {
        matches!(
            a,
            Action::Publish { .. } | Action::WriteFinal(_) | Action::Release | Action::WriteStatus
        )
    };
    assert_eq!(bench.position(written), None, "{:?}", bench.done);
}

#[test]
fn a_late_answer_to_a_beat_does_not_revive_a_lease() {
    let mut bench = Bench::training(settings(), None);
    let asked = bench.now + Duration::from_secs(59);
    bench.now = bench.now + Duration::from_secs(60);
    bench.give(Event::BeatAnswered {
        epoch: 1,
        asked,
        beat: Ok(Beat::Held),
    });
    assert_eq!(bench.state.epoch(), None);
    assert!(bench.has(&Action::KillGroup));
}

#[test]
fn a_superseded_holder_stops_and_leaves_or_stands_by() {
    let superseded = |epoch| Event::BeatAnswered {
        epoch,
        asked: Moment::since_boot(Duration::from_secs(1)),
        beat: Ok(Beat::Superseded {
            holder: "other".to_owned(),
            revoked: false,
        }),
    };
    let mut bench = Bench::training(settings(), None);
    bench.give(superseded(1));
    assert!(bench.has(&Action::KillGroup));
    bench.exit(0, Some(9));
    assert_eq!(bench.exited(), Some(ExitStatus::NotOurs));
    assert!(!bench.has(&Action::Release));

    let standby = Settings {
        on_lost: OnLost::Standby,
        ..settings()
    };
    let mut bench = Bench::training(standby, None);
    bench.give(superseded(1));
    assert!(bench.has(&Action::KillGroup));
    bench.exit(137, Some(9));
    bench.look(held(2, "b1"));
    bench.pass(70.0);
    bench.look(held(2, "b1"));
    assert!(bench.has(&Action::Claim { after: 2 }));
    bench.claim(3, Some(4));
    assert!(bench.has(&Action::Restore));
    assert_eq!(bench.state.counts.crashes, 0);
}

#[test]
fn what_a_lost_run_left_in_the_run_directory_is_not_published_by_the_next() {
    let standby = Settings {
        on_lost: OnLost::Standby,
        ..settings()
    };
    let mut bench = Bench::training(standby, Some(10));
    bench.give(Event::CheckpointFound { step: 60 });
    assert!(bench.has(&Action::Publish { epoch: 1, step: 60 }));
    bench.give(Event::BeatAnswered {
        epoch: 1,
        asked: bench.now,
        beat: Ok(Beat::Superseded {
            holder: "b".to_owned(),
            revoked: false,
        }),
    });
    bench.give(Event::PublishEnded {
        epoch: 1,
        step: 60,
        result: Err(fault()),
    });
    // Saved while it was being killed.
    bench.give(Event::CheckpointFound { step: 70 });
    bench.give(Event::Exited(Exit {
        code: None,
        signal: Some(9),
        out_of_memory: false,
        local: Some(70),
    }));
    bench.look(Sight::Free { epoch: 2 });
    bench.done.clear();
    bench.claim(3, Some(40));
    bench.pass(5.0);
    assert!(bench.has(&Action::Restore));
    let published = bench
        .done
        .iter()
        .any(|action| matches!(action, Action::Publish { .. }));
    assert!(!published, "{:?}", bench.done);
    bench.restored(Some(40));
    assert!(bench.has(&Action::Start { attempt: 2 }));
}

#[test]
fn a_watcher_leaves_on_a_sign_of_life_and_claims_after_the_patience_only() {
    let ready = |settings| {
        let mut bench = Bench::new(settings);
        bench.give(Event::Tick);
        bench.give(Event::Probed(Ok(Verdict::Sound)));
        bench.look(held(4, "b1"));
        bench
    };
    let mut bench = ready(settings());
    bench.look(held(4, "b2"));
    assert_eq!(bench.exited(), Some(ExitStatus::NotOurs));

    let mut bench = ready(settings());
    let asked = bench.now + Duration::from_secs(65);
    bench.now = bench.now + Duration::from_secs(90);
    // The answer took long: what it saw was before the patience was over.
    bench.give(Event::Looked {
        asked,
        sight: Ok(held(4, "b1")),
    });
    assert!(!bench.has(&Action::Claim { after: 4 }));
    bench.look(held(4, "b1"));
    assert!(bench.has(&Action::Claim { after: 4 }));
}

#[test]
fn a_store_without_leases_is_refused_unless_the_lease_is_off() {
    let verdict = || Event::Probed(Ok(Verdict::NoLeases("it ignores conditions".to_owned())));
    let mut bench = Bench::new(settings());
    bench.give(Event::Tick);
    bench.give(verdict());
    assert_eq!(bench.exited(), Some(ExitStatus::Failed));

    let off = Settings {
        lease: LeaseMode::Off,
        ..settings()
    };
    let mut bench = Bench::new(off);
    bench.give(Event::Tick);
    bench.give(verdict());
    bench.look(held(3, "b1"));
    assert!(bench.has(&Action::Claim { after: 3 }));
    bench.claim(4, None);
    bench.restored(None);
    bench.store_up = false;
    bench.pass(200.0);
    assert!(!bench.has(&Action::KillGroup));
}

#[test]
fn a_commit_of_a_lapsed_epoch_is_never_relied_upon() {
    let mut bench = Bench::training(settings(), None);
    bench.give(Event::CheckpointFound { step: 100 });
    bench.store_up = false;
    bench.pass(61.0);
    bench.give(Event::PublishEnded {
        epoch: 1,
        step: 100,
        result: Ok(Published {
            bytes: 1,
            took: Duration::from_secs(1),
        }),
    });
    assert_eq!(bench.state.checkpoints.published, None);
}

#[test]
fn an_ended_job_is_left_alone_unless_asked_to_go_on() {
    let done = || Sight::Done {
        epoch: 2,
        status: "completed".to_owned(),
    };
    let begin = |settings| {
        let mut bench = Bench::new(settings);
        bench.give(Event::Tick);
        bench.give(Event::Probed(Ok(Verdict::Sound)));
        bench.look(done());
        bench
    };
    assert_eq!(begin(settings()).exited(), Some(ExitStatus::NotOurs));
    let again = Settings {
        again: true,
        ..settings()
    };
    assert!(begin(again).has(&Action::Claim { after: 2 }));
}
