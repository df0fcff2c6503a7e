//! What a run tells of itself, and how long it may be silent.

use super::*;

const STALL: Duration = Duration::from_secs(60);
const START: Duration = Duration::from_secs(600);

fn at(seconds: u64) -> Moment {
    Moment::since_boot(Duration::from_secs(seconds))
}

fn record(event: Event) -> Record {
    Record {
        time: "2026-01-02T03:04:05Z".to_owned(),
        elapsed_s: 0.0,
        event,
    }
}

fn step(step: u64, loss: f64) -> Record {
    record(Event::Step {
        step,
        loss,
        lr: 1e-3,
        grad_norm: 1.0,
        step_ms: 500.0,
        tokens_per_second: 100.0,
        mfu: None,
    })
}

fn started(resumed_from: Option<u64>) -> Record {
    record(Event::Started {
        version: "1".to_owned(),
        pid: 1,
        config: "c".to_owned(),
        config_hash: "h".to_owned(),
        engine: "fused".to_owned(),
        device: "cpu".to_owned(),
        threads: 1,
        parameters: 10,
        tokens_per_iteration: 8,
        max_iters: 100,
        resumed_from,
        startup_ms: Vec::new(),
    })
}

#[test]
fn a_resumed_run_knows_its_step_tokens_and_time_left() {
    let mut progress = Progress::default();
    progress.begin_process(at(1));
    assert!(!progress.started);
    progress.record(&started(Some(40)), at(2));
    assert!(progress.started);
    assert_eq!((progress.step, progress.tokens), (Some(40), Some(320)));
    progress.record(&step(40, 2.5), at(3));
    assert_eq!((progress.step, progress.loss), (Some(41), Some(2.5)));
    assert_eq!(progress.eta(), Some(Duration::from_millis(500 * 59)));
    assert_eq!(progress.steps_per_second(), Some(2.0));
}

#[test]
fn a_loss_that_is_not_finite_is_flagged_and_never_shown() {
    let mut progress = Progress::default();
    progress.record(&step(0, f64::NAN), at(1));
    assert!(progress.non_finite);
    assert_eq!(progress.loss, None);
    progress.record(&step(1, 2.0), at(2));
    assert!(!progress.non_finite);
}

#[test]
fn patience_is_that_of_the_phase_and_grows_with_slow_steps() {
    let mut progress = Progress::default();
    progress.begin_process(at(0));
    assert_eq!(progress.patience(START, STALL), START);
    progress.record(
        &record(Event::Phase {
            phase: Phase::Training,
        }),
        at(1),
    );
    assert_eq!(progress.patience(START, STALL), STALL);
    progress.record(&step(0, 1.0), at(21));
    assert_eq!(progress.patience(START, STALL), Duration::from_secs(200));
    progress.begin_process(at(30));
    assert_eq!(progress.patience(START, STALL), START);
}
