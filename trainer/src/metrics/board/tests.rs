//! The event file through starts, rollbacks and failures, by a reader of its own.

use super::reader::{self, Told, What, read, shown};
use super::*;
use crate::metrics::Metrics;
use std::time::Instant;

/// A run directory and its metrics, as a new process has them.
fn process(run: &RunDir) -> Metrics {
    Metrics::new(Some(run), "lines", Instant::now()).unwrap()
}

fn started(from: Option<u64>) -> Event {
    Event::Started {
        version: "0".to_owned(),
        pid: 1,
        config: "c".to_owned(),
        config_hash: "h".to_owned(),
        engine: "e".to_owned(),
        device: "cpu".to_owned(),
        threads: 1,
        parameters: 1,
        tokens_per_iteration: 1,
        max_iters: 9,
        resumed_from: from,
        startup_ms: Vec::new(),
    }
}

fn step(step: u64, loss: f64) -> Event {
    Event::Step {
        step,
        loss,
        lr: 0.5,
        grad_norm: 2.0,
        step_ms: 1.0,
        tokens_per_second: 10.0,
        mfu: None,
    }
}

fn eval(step: u64, val_loss: f64) -> Event {
    Event::Eval {
        step,
        train_loss: 1.0,
        val_loss,
        best: true,
        eval_ms: 1.0,
    }
}

fn sample(step: u64, text: &str) -> Event {
    Event::Sample {
        step,
        text: text.to_owned(),
    }
}

/// Starts a process at a step and lets it tell these events.
fn tell(run: &RunDir, from: Option<u64>, events: &[Event]) -> Metrics {
    let mut metrics = process(run);
    metrics.record(started(from));
    metrics.open_board(run, from.unwrap_or(0), "seed = 1\n");
    for event in events {
        metrics.record(event.clone());
    }
    metrics
}

/// Values shown of a tag, by step.
fn scalars(run: &RunDir, of: &str) -> Vec<(u64, f32)> {
    let told = shown(&run.tensorboard()).into_iter();
    told.filter_map(|Told { step, what, .. }| match what {
        What::Scalar(tag, value) if tag == of => Some((step, value)),
        _ => None,
    })
    .collect()
}

fn texts(run: &RunDir, of: &str) -> Vec<(u64, String)> {
    let told = shown(&run.tensorboard()).into_iter();
    told.filter_map(|Told { step, what, .. }| match what {
        What::Text(tag, text) if tag == of => Some((step, text)),
        _ => None,
    })
    .collect()
}

#[test]
fn a_file_begins_with_its_version_and_its_start() {
    let dir = tempfile::tempdir().unwrap();
    let run = RunDir::new(dir.path());
    let events = [eval(0, 4.0), step(0, 3.5), sample(1, "to be")];
    drop(tell(&run, None, &events));
    let files = reader::files(&run.tensorboard());
    let told = read(&files[0]);
    assert_eq!(told[0].what, What::Version("brain.Event:2".to_owned()));
    assert_eq!((&told[1].what, told[1].step), (&What::Start, 0));
    let config = "```\nseed = 1\n```".to_owned();
    assert_eq!(told[2].what, What::Text("config".to_owned(), config));
    let said: Vec<(u64, What)> = told[3..].iter().map(|t| (t.step, t.what.clone())).collect();
    let scalar = |step, tag: &str, value| (step, What::Scalar(tag.to_owned(), value));
    let sampled = What::Text("sample".to_owned(), "```\nto be\n```".to_owned());
    assert_eq!(
        said,
        [
            scalar(0, "loss/train", 1.0),
            scalar(0, "loss/val", 4.0),
            scalar(0, "loss/iteration", 3.5),
            scalar(0, "learning_rate", 0.5),
            scalar(0, "grad_norm", 2.0),
            scalar(0, "tokens_per_second", 10.0),
            (1, sampled),
        ]
    );
    let log = fs::read_to_string(run.events()).unwrap();
    let log: Vec<Record> = log
        .lines()
        .map(|line| Record::parse(line).unwrap())
        .collect();
    let time: f64 = seconds(log[1].time.parse().unwrap());
    assert!(
        (told[3].time - time).abs() < 0.002,
        "{} {time}",
        told[3].time
    );
}

#[test]
fn after_a_resume_the_evaluation_of_its_step_is_told_again_once() {
    let dir = tempfile::tempdir().unwrap();
    let run = RunDir::new(dir.path());
    let first = [
        eval(0, 4.0),
        step(0, 3.0),
        step(1, 2.9),
        eval(2, 2.8),
        sample(2, "a"),
    ];
    drop(tell(
        &run,
        None,
        &[&first[..], &[step(2, 9.0), eval(3, 9.0)]].concat(),
    ));
    // This one is not evaluated anew.
    drop(tell(&run, Some(2), &[step(2, 2.7), eval(3, 2.6)]));
    assert_eq!(scalars(&run, "loss/val"), [(0, 4.0), (2, 2.8), (3, 2.6)]);
    assert_eq!(texts(&run, "sample"), [(2, "```\na\n```".to_owned())]);
    assert_eq!(
        scalars(&run, "loss/iteration"),
        [(0, 3.0), (1, 2.9), (2, 2.7)]
    );
    // This one is, with another result, as after a change of eval_iters.
    drop(tell(&run, Some(2), &[eval(2, 2.5), step(2, 2.7)]));
    assert_eq!(scalars(&run, "loss/val"), [(0, 4.0), (2, 2.5)]);
    assert_eq!(texts(&run, "sample").len(), 1);
    assert_eq!(
        texts(&run, "config").len(),
        2,
        "from step 0 and from step 2"
    );
    // Killed before it told anything, and ended without a step.
    drop(tell(&run, Some(2), &[]));
    let end = Event::Finished {
        reason: String::new(),
        exit_code: 0,
        step: 2,
    };
    drop(tell(&run, Some(2), &[end]));
    assert_eq!(scalars(&run, "loss/val"), [(0, 4.0), (2, 2.5)]);
}

#[test]
fn a_rollback_is_a_start_within_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let run = RunDir::new(dir.path());
    let events = [
        step(0, 3.0),
        eval(1, 2.9),
        step(1, 2.8),
        eval(2, 2.7),
        step(2, 2.6),
    ];
    let mut metrics = tell(&run, None, &events);
    metrics.went_back(1);
    for event in [step(1, 2.5), step(2, 2.4)] {
        metrics.record(event);
    }
    assert_eq!(scalars(&run, "loss/val"), [(1, 2.9)]);
    assert_eq!(
        scalars(&run, "loss/iteration"),
        [(0, 3.0), (1, 2.5), (2, 2.4)]
    );
    assert_eq!(reader::files(&run.tensorboard()).len(), 1);
    // What was evaluated at step 2 was another model: nothing of it is told again.
    drop(metrics);
    drop(tell(&run, Some(2), &[step(2, 2.3)]));
    assert_eq!(scalars(&run, "loss/val"), [(1, 2.9)]);
}

#[test]
fn files_are_in_the_order_of_the_starts_whatever_the_clock_says() {
    let dir = tempfile::tempdir().unwrap();
    let run = RunDir::new(dir.path());
    let mut made = Vec::new();
    for now in [
        2_000_000_000.5,
        1_000_000_000.0,
        5.0,
        2_000_000_001.0,
        2_000_000_009.0,
    ] {
        made.push(Board::create(&run, now, 0, "").unwrap().path);
    }
    assert_eq!(reader::files(&run.tensorboard()), made);
    let number = |at: usize| made[at].file_name().unwrap().to_str().unwrap().to_owned();
    assert_eq!(number(0), "events.out.tfevents.2000000000.anneal");
    assert_eq!(number(4), "events.out.tfevents.2000000009.anneal");
    // Another program's stay.
    let other = run
        .tensorboard()
        .join("events.out.tfevents.3000000000.host.1.0");
    fs::write(&other, "").unwrap();
    let after = Board::create(&run, 1.0, 0, "").unwrap().path;
    assert!(after > other);
    discard(&run).unwrap();
    assert_eq!(reader::files(&run.tensorboard()), [other]);
}

#[test]
fn what_cannot_be_written_is_told_once_and_ends_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let run = RunDir::new(dir.path());
    fs::write(run.tensorboard(), "a file where the folder would be").unwrap();
    drop(tell(&run, None, &[step(0, 3.0), step(1, 2.0)]));
    let mut metrics = process(&run);
    // A disk that is full.
    metrics.board = Some(Board {
        path: PathBuf::from("/dev/full"),
        file: OpenOptions::new().write(true).open("/dev/full").unwrap(),
        forgotten: Forgotten::default(),
        events: run.events(),
    });
    metrics.record(step(2, 1.0));
    metrics.record(step(3, 1.0));
    let log = fs::read_to_string(run.events()).unwrap();
    let events: Vec<Event> = log
        .lines()
        .map(|line| Record::parse(line).unwrap().event)
        .collect();
    let warnings: Vec<&String> = events
        .iter()
        .filter_map(|event| match event {
            Event::Warning { message } => Some(message),
            _ => None,
        })
        .collect();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].contains("tensorboard") && warnings[1].contains("/dev/full"));
    let steps = events
        .iter()
        .filter(|event| matches!(event, Event::Step { .. }));
    assert_eq!(steps.count(), 4);
}
