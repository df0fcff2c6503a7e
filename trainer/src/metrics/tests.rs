//! The event file across processes, and throughput.

use std::fs;

use super::*;

#[test]
fn events_follow_a_torn_line_without_being_lost_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let run = RunDir::new(dir.path());
    let first = Metrics::new(Some(&run), "lines", Instant::now());
    first.unwrap().phase(Phase::Loading);
    let torn = fs::read_to_string(run.events()).unwrap() + r#"{"time":"2026-01-02T03:"#;
    fs::write(run.events(), torn).unwrap();
    Metrics::new(Some(&run), "lines", Instant::now())
        .unwrap()
        .phase(Phase::Training);

    let text = fs::read_to_string(run.events()).unwrap();
    let events: Vec<Option<Record>> = text.lines().map(Record::parse).collect();
    assert_eq!(events.len(), 3);
    assert_eq!(
        events[0].as_ref().unwrap().event,
        Event::Phase {
            phase: Phase::Loading
        }
    );
    assert_eq!(events[1], None);
    let last = events[2].as_ref().unwrap();
    assert_eq!(
        last.event,
        Event::Phase {
            phase: Phase::Training
        }
    );
    assert!(last.time.parse::<Timestamp>().is_ok(), "{}", last.time);
}

#[test]
fn throughput_is_the_mean_since_the_last_line_and_mfu_waits_for_five_iterations() {
    let scale = Scale {
        tokens_per_iteration: 100,
        flops_per_token: 1e6,
        peak_flops: Some(1e9),
    };
    let mut throughput = Throughput {
        scale: Some(scale),
        ..Throughput::default()
    };
    for seconds in [0.1, 0.3, 0.2] {
        throughput.add(seconds);
    }
    let rate = throughput.take();
    assert!((rate.step_ms - 200.0).abs() < 1e-9 && (rate.tokens_per_second - 500.0).abs() < 1e-9);
    assert_eq!(rate.mfu, None);
    for _ in 0..3 {
        throughput.add(0.2);
    }
    // 500 tokens/s at 1 MFLOP each on a device of 1 GFLOP/s.
    assert!((throughput.take().mfu.unwrap() - 0.5).abs() < 1e-9);
    throughput.add(0.1);
    assert!((throughput.take().mfu.unwrap() - 0.55).abs() < 1e-9);
}

#[test]
fn an_event_file_that_cannot_be_opened_is_one_clear_error() {
    let dir = tempfile::tempdir().unwrap();
    let run = RunDir::new(dir.path().join("missing"));
    let error = Metrics::new(Some(&run), "lines", Instant::now())
        .err()
        .unwrap();
    assert!(error.to_string().starts_with("cannot write "), "{error}");
}
