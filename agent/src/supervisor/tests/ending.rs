//! Signals, the grace, and the order of the end.

use super::*;

#[test]
fn a_signal_saves_publishes_and_leaves_a_job_that_can_be_resumed() {
    let mut bench = Bench::training(settings(), None);
    bench.notice(30);
    assert!(bench.has(&Action::Signal(Signal::Terminate)));
    bench.pass(3.0);
    bench.exit(75, Some(77));
    assert!(bench.has(&Action::Publish { epoch: 1, step: 77 }));
    bench.published(77);
    assert!(bench.has(&Action::Release));
    assert_eq!(bench.exited(), Some(ExitStatus::Resumable));
    assert!(
        bench
            .position(|a| matches!(a, Action::WriteFinal(_)))
            .is_none()
    );
    assert_eq!(bench.state.counts.preemptions, 1);
    assert_eq!(bench.state.counts.crashes, 0);
}

#[test]
fn the_grace_is_divided_by_what_saving_and_uploading_took() {
    // Uploads take 12 s, so a trainer that does not end is killed in time for one.
    let mut bench = Bench::training(settings(), None);
    bench.state.checkpoints.upload_time = Some(Duration::from_secs(12));
    bench.notice(30);
    bench.pass(12.0);
    assert!(!bench.has(&Action::KillGroup));
    bench.pass(2.0);
    assert!(bench.has(&Action::KillGroup));
    bench.exit(137, Some(50));
    assert!(bench.has(&Action::Publish { epoch: 1, step: 50 }));
    bench.pass(14.5);
    assert!(bench.has(&Action::CancelPublish), "{:?}", bench.done);
    bench.give(Event::PublishEnded {
        epoch: 1,
        step: 50,
        result: Err(fault()),
    });
    assert_eq!(bench.exited(), Some(ExitStatus::Resumable));
    assert!(bench.has(&Action::Release));
}

#[test]
fn in_the_last_seconds_an_older_upload_gives_way_only_if_the_newest_gets_through() {
    for (left, cancelled) in [(20, true), (60, false), (8, false)] {
        let mut bench = Bench::training(settings(), None);
        bench.give(Event::CheckpointFound { step: 10 });
        bench.state.checkpoints.upload_time = Some(Duration::from_secs(12));
        bench.notice(left);
        bench.exit(75, Some(20));
        bench.pass(0.5);
        assert_eq!(bench.has(&Action::CancelPublish), cancelled, "{left} s");
    }
}

#[test]
fn a_second_signal_ends_at_once() {
    let mut bench = Bench::training(settings(), None);
    bench.notice(30);
    bench.pass(2.0);
    bench.notice(30);
    assert!(bench.has(&Action::KillGroup));
    bench.exit(137, Some(77));
    assert!(
        bench
            .position(|a| matches!(a, Action::Publish { .. }))
            .is_none()
    );
    assert_eq!(bench.exited(), Some(ExitStatus::Resumable));
    assert!(bench.has(&Action::Release));
}

#[test]
fn signals_that_come_together_are_one() {
    let mut bench = Bench::training(settings(), None);
    bench.notice(30);
    bench.notice(30);
    bench.pass(1.0);
    bench.notice(10);
    assert!(!bench.has(&Action::KillGroup));
    bench.exit(75, Some(77));
    bench.published(77);
    assert_eq!(bench.exited(), Some(ExitStatus::Resumable));

    // The shortest grace counts, and one that comes later means now.
    let mut bench = Bench::training(settings(), None);
    bench.notice(30);
    bench.notice(10);
    bench.pass(7.5);
    assert!(bench.has(&Action::KillGroup));

    let mut bench = Bench::training(settings(), None);
    bench.notice(30);
    bench.notice(30);
    bench.pass(1.25);
    assert!(!bench.has(&Action::KillGroup));
    bench.notice(30);
    assert!(bench.has(&Action::KillGroup));
}

#[test]
fn nothing_outlives_the_grace() {
    // The trainer cannot be killed, the store does not answer.
    let mut bench = Bench::training(settings(), None);
    bench.store_up = false;
    bench.notice(20);
    bench.pass(19.0);
    assert_eq!(bench.exited(), None);
    bench.pass(1.5);
    assert_eq!(bench.exited(), Some(ExitStatus::Resumable));
}

#[test]
fn a_run_that_finishes_under_a_signal_is_completed_if_its_upload_is_verified_in_time() {
    let mut bench = Bench::training(settings(), None);
    bench.notice(30);
    bench.exit(0, Some(100));
    bench.published(100);
    assert_eq!(bench.exited(), Some(ExitStatus::Completed));

    let mut bench = Bench::training(settings(), None);
    bench.exit(0, Some(100));
    bench.notice(10);
    bench.pass(11.0);
    assert_eq!(bench.exited(), Some(ExitStatus::Resumable));
    assert!(
        bench
            .position(|a| matches!(a, Action::WriteFinal(_)))
            .is_none()
    );
}
