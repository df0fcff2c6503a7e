//! Series keep extremes in bounded memory and forget what was superseded; the history tells each
//! change once.

use protocol::Record;

use super::*;
use crate::state::Beat;

fn made(step: u64, loss: f64) -> Event {
    Event::Record(Record {
        time: "2026-01-02T03:04:05Z".to_owned(),
        elapsed_s: 1.0,
        event: protocol::Event::Step {
            step,
            loss,
            lr: 1e-3,
            grad_norm: 1.0,
            step_ms: 3.0,
            tokens_per_second: 1e4,
            mfu: None,
        },
    })
}

fn started(resumed_from: Option<u64>) -> Event {
    Event::Record(Record {
        time: "2026-01-02T03:04:05Z".to_owned(),
        elapsed_s: 1.0,
        event: protocol::Event::Started {
            version: "1".to_owned(),
            pid: 1,
            config: "c".to_owned(),
            config_hash: "h".to_owned(),
            engine: "fused".to_owned(),
            device: "cpu".to_owned(),
            threads: 1,
            parameters: 1,
            tokens_per_iteration: 8,
            max_iters: 100,
            resumed_from,
            startup_ms: Vec::new(),
        },
    })
}

fn board() -> Board {
    Board::new(Arc::new(Redactor::from_variables([])))
}

#[test]
fn a_long_series_keeps_its_extremes_in_bounded_memory() {
    let mut board = board();
    for step in 0..100_000 {
        let loss = if step == 77_777 { 99.0 } else { 2.0 };
        board.hear(&made(step, loss));
    }
    let view = board.view();
    let points = view.series(|series| series.points("loss", 500)).unwrap();
    assert!((250..=500).contains(&points.len()), "{}", points.len());
    let spike = points.iter().find(|point| point.max > 98.0).unwrap();
    assert!(spike.step >= 77_777 && spike.step < 78_500, "{spike:?}");
    assert!((spike.min - 2.0).abs() < 1e-9);
    assert_eq!(points.last().unwrap().step, 100_000);
    assert!(points.windows(2).all(|two| two[0].step < two[1].step));
    assert_eq!(view.series(|series| series.points("nothing", 5)), None);
    assert_eq!(
        view.series(|series| series.points("val_loss", 5)),
        Some(Vec::new())
    );
}

#[test]
fn steps_after_the_checkpoint_that_a_run_goes_on_from_are_forgotten() {
    let mut board = board();
    (0..100).for_each(|step| board.hear(&made(step, 1.0)));
    board.hear(&started(Some(50)));
    (50..60).for_each(|step| board.hear(&made(step, 2.0)));
    let points = board
        .view()
        .series(|series| series.points("loss", 1000))
        .unwrap();
    assert_eq!(points.len(), 60);
    assert!(points[49].last < 1.5 && points[50].last > 1.5);
    // A loss that is not a number is no point.
    board.hear(&made(60, f64::NAN));
    let again = board
        .view()
        .series(|series| series.points("loss", 1000))
        .unwrap();
    assert_eq!(again, points);
}

#[test]
fn the_history_tells_each_change_once_and_masks_secrets() {
    let secret = [("HF_TOKEN".to_owned(), "very-secret-value".to_owned())];
    let mut board = Board::new(Arc::new(Redactor::from_variables(secret)));
    let at = |seconds| Moment::since_boot(Duration::from_secs(seconds));
    let status = |phase: &str, step| JobStatus {
        phase: phase.to_owned(),
        checkpoint: status::JobCheckpoint {
            step,
            ..Default::default()
        },
        ..JobStatus::default()
    };
    board.show(status("claiming", None), false, false, at(1));
    board.show(status("claiming", None), false, false, at(2));
    board.note(Level::Warning, "key very-secret-value");
    board.show(status("training", Some(10)), false, false, at(3));
    board.show(status("training", Some(10)), false, false, at(4));
    let (entries, more) = board.view().history(|history| history.after(None, 100));
    let told: Vec<_> = entries
        .iter()
        .map(|it| (it.seq, it.kind.as_str()))
        .collect();
    assert_eq!(
        told,
        [
            (0, "state"),
            (1, "message"),
            (2, "state"),
            (3, "checkpoint")
        ]
    );
    assert!(!more);
    assert_eq!(entries[1].message.as_deref(), Some("key [redacted]"));
    let (rest, more) = board.view().history(|history| history.after(Some(1), 1));
    assert_eq!((rest[0].seq, more), (2, true));
}

#[test]
fn what_happens_is_counted_and_shown_when_it_is_due() {
    let mut board = board();
    let at = |ms| Moment::since_boot(Duration::from_millis(ms));
    assert!(board.is_due(at(0)));
    board.show(JobStatus::default(), false, false, at(0));
    board.hear(&Event::Tick);
    assert!(!board.is_due(at(200)));
    board.hear(&started(None));
    board.hear(&made(0, 1.0));
    board.hear(&Event::BeatAnswered {
        epoch: 1,
        asked: at(0),
        beat: Ok(Beat::Held),
    });
    assert!(board.is_due(at(200)));
    board.show(JobStatus::default(), false, false, at(200));
    let shown = board.view().now();
    assert_eq!(shown.counters.steps, 1);
    assert_eq!(shown.counters.tokens, 8);
    assert_eq!(shown.counters.step_seconds.counts[2], 1);
    assert_eq!(shown.counters.renewals["held"], 1);
    assert!(board.is_due(at(200) + SHOW_EVERY));
}

#[test]
fn a_wall_clock_that_jumps_is_counted() {
    let mut board = board();
    let at = |seconds| Moment::since_boot(Duration::from_secs(seconds));
    let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    board.watch_clocks(at(1), wall);
    board.watch_clocks(at(2), wall + Duration::from_secs(1));
    assert_eq!(board.counters.clock_jumps, 0);
    board.watch_clocks(at(3), wall - Duration::from_secs(3600));
    board.watch_clocks(at(4), wall + Duration::from_secs(7200));
    assert_eq!(board.counters.clock_jumps, 2);
}
