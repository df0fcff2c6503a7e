//! A run from its first step to its last: what it prints, records and leaves behind.

use std::fs;

use protocol::{Event, Phase, Record, RunDir};

use crate::support::Scene;

#[test]
fn a_run_prints_nanogpts_lines_and_ends_with_the_loss_that_is_possible() {
    let scene = Scene::new();
    let run = scene.train(&[]).expect_code(0);
    let lines: Vec<&str> = run.stdout.lines().collect();
    assert!(
        lines.contains(&"tokens per iteration will be: 128"),
        "{}",
        run.stdout
    );
    assert!(
        lines.contains(&"number of parameters: 0.01M"),
        "{}",
        run.stdout
    );
    assert!(
        lines.contains(&"Initializing a new model from scratch"),
        "{}",
        run.stdout
    );
    let iterations: Vec<&&str> = lines
        .iter()
        .filter(|line| line.starts_with("iter "))
        .collect();
    assert_eq!(iterations.len(), 20);
    for (i, line) in iterations.iter().enumerate() {
        assert!(is_iteration_line(line, i), "{line}");
    }
    assert!(iterations[4].ends_with("mfu -100.00%"), "{}", iterations[4]);
    let evaluations: Vec<&&str> = lines
        .iter()
        .filter(|line| line.starts_with("step "))
        .collect();
    assert_eq!(evaluations.len(), 3);
    for (line, step) in evaluations.iter().zip(["0", "10", "20"]) {
        let rest = line
            .strip_prefix(&format!("step {step}: train loss "))
            .unwrap();
        let (train, val) = rest.split_once(", val loss ").unwrap();
        assert!(has_decimals(train, 4) && has_decimals(val, 4), "{line}");
    }
    let end = lines
        .iter()
        .find(|line| line.contains("possible (entropy of the corpus)"));
    let words: Vec<&str> = end.unwrap().split_whitespace().collect();
    let (reached, possible): (f64, f64) = (words[2].parse().unwrap(), words[4].parse().unwrap());
    assert!(possible > 0.1 && reached > possible, "{end:?}");
    assert_eq!(run.stderr, "");
}

fn has_decimals(number: &str, decimals: usize) -> bool {
    let fraction = number.split_once('.').map_or("", |(_, fraction)| fraction);
    number.parse::<f64>().is_ok() && fraction.len() == decimals
}

/// `iter {i}: loss {:.4f}, time {:.2f}ms, mfu {:.2f}%`
fn is_iteration_line(line: &str, i: usize) -> bool {
    let parse = || {
        let rest = line.strip_prefix(&format!("iter {i}: loss "))?;
        let (loss, rest) = rest.split_once(", time ")?;
        let (time, mfu) = rest.split_once("ms, mfu ")?;
        let mfu = mfu.strip_suffix('%')?;
        Some(has_decimals(loss, 4) && has_decimals(time, 2) && has_decimals(mfu, 2))
    };
    parse() == Some(true)
}

#[test]
fn the_event_file_tells_the_whole_run() {
    let scene = Scene::new();
    // A key without effect here makes a warning, so that every kind of event appears.
    let words = ["--sample_tokens=20", "--wandb_log=True"];
    scene.train(&words).expect_code(0);
    let text = fs::read_to_string(scene.run_dir().events()).unwrap();
    let read = |line| Record::parse(line).unwrap_or_else(|| panic!("{line}"));
    let records: Vec<Record> = text.lines().map(read).collect();
    assert!(records.is_sorted_by(|a, b| a.elapsed_s <= b.elapsed_s && a.time <= b.time));
    let events: Vec<Event> = records.into_iter().map(|record| record.event).collect();

    check_start(&events);
    check_steps(&events);
    let steps_of = |step: fn(&Event) -> Option<u64>| events.iter().filter_map(step).collect();
    let evaluated: Vec<u64> = steps_of(eval_step);
    assert_eq!(evaluated, [0, 10, 20]);
    let written: Vec<u64> = steps_of(checkpoint_step);
    assert_eq!(written, [10, 20]);
    for event in &events {
        if let Event::Checkpoint {
            step, path, bytes, ..
        } = event
        {
            let folder = scene.run_dir().root().join(path);
            assert!(folder.join(RunDir::MANIFEST).exists());
            assert_eq!(*bytes, scene.manifest(*step).bytes());
        }
    }
    let is_sample = |event: &&Event| match event {
        Event::Sample { step: 20, text } => text.chars().count() == 20,
        _ => false,
    };
    assert_eq!(events.iter().filter(is_sample).count(), 1);
    let reason = "all iterations are done".to_owned();
    assert_eq!(
        events.last(),
        Some(&Event::Finished {
            reason,
            exit_code: 0,
            step: 20
        })
    );
}

fn check_start(events: &[Event]) {
    let is_start = |event: &Event| matches!(event, Event::Started { .. });
    let at = events.iter().position(is_start).unwrap();
    let Event::Started {
        device,
        engine,
        parameters,
        max_iters,
        resumed_from,
        ..
    } = &events[at]
    else {
        unreachable!()
    };
    assert_eq!(
        (device.as_str(), *max_iters, *resumed_from),
        ("cpu", 20, None)
    );
    assert!(!engine.is_empty() && *parameters > 1000);
    let before = &events[..at];
    for phase in [Phase::Preparing, Phase::Loading] {
        assert!(before.contains(&Event::Phase { phase }), "{phase:?}");
    }
    assert!(
        before
            .iter()
            .any(|event| matches!(event, Event::Warning { .. }))
    );
    for phase in [Phase::Training, Phase::Evaluating, Phase::Checkpointing] {
        assert!(events.contains(&Event::Phase { phase }), "{phase:?}");
    }
}

fn check_steps(events: &[Event]) {
    let mut steps = 0;
    for event in events {
        let Event::Step {
            step,
            loss,
            lr,
            grad_norm,
            step_ms,
            tokens_per_second,
            mfu,
        } = event
        else {
            continue;
        };
        assert_eq!(*step, steps);
        assert!(*loss > 0.0 && *lr > 0.0 && *grad_norm > 0.0 && *step_ms > 0.0);
        assert!((tokens_per_second * step_ms / 1e3 - 128.0).abs() < 1e-6);
        assert_eq!(mfu.is_some(), *step >= 5);
        steps += 1;
    }
    assert_eq!(steps, 20);
}

fn eval_step(event: &Event) -> Option<u64> {
    match event {
        Event::Eval { step, .. } => Some(*step),
        _ => None,
    }
}

fn checkpoint_step(event: &Event) -> Option<u64> {
    match event {
        Event::Checkpoint { step, .. } => Some(*step),
        _ => None,
    }
}

#[test]
fn evaluating_more_often_does_not_change_training() {
    let (seldom, often) = (Scene::new(), Scene::new());
    seldom.train(&["--eval_interval=20"]).expect_code(0);
    often
        .train(&["--eval_interval=1", "--eval_iters=3"])
        .expect_code(0);
    assert_eq!(seldom.losses(), often.losses());
}

#[test]
fn another_seed_is_another_run_and_the_same_seed_the_same() {
    let losses = |seed: &str| {
        let scene = Scene::new();
        scene.train(&["--max_iters=3", seed]).expect_code(0);
        scene.losses()
    };
    assert_eq!(losses("--seed=1"), losses("--seed=1"));
    assert_ne!(losses("--seed=1"), losses("--seed=2"));
}

#[test]
fn checkpoints_follow_their_keys() {
    let scene = Scene::new();
    let words = [
        "--checkpoint_interval=3",
        "--keep_last=2",
        "--always_save_checkpoint=False",
    ];
    scene.train(&words).expect_code(0);
    let kept = scene.checkpoints();
    assert!(kept.ends_with(&[18, 20]) && kept.len() <= 3, "{kept:?}");
    let best = scene.events().into_iter().filter_map(|event| match event {
        Event::Eval { step, val_loss, .. } if step > 0 => Some((step, val_loss)),
        _ => None,
    });
    let best = best.min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    assert!(kept.contains(&best.0), "{kept:?} {best:?}");
    assert_eq!(scene.manifest(best.0).val_loss, Some(best.1));
}

#[test]
fn eval_only_evaluates_and_leaves_no_checkpoint() {
    let scene = Scene::new();
    let run = scene.train(&["--eval_only=True"]).expect_code(0);
    assert_eq!(
        run.stdout
            .lines()
            .filter(|line| line.starts_with("step 0: "))
            .count(),
        1
    );
    assert!(scene.checkpoints().is_empty() && scene.losses().is_empty());
}

#[test]
fn eval_only_evaluates_a_resumed_run_at_whatever_step_it_stands() {
    let scene = Scene::new();
    scene.train(&["--max_iters=7"]).expect_code(0);
    let run = scene
        .train(&["--resume", "--eval_only=True"])
        .expect_code(0);
    assert!(
        run.stdout.contains("\nstep 7: train loss"),
        "{}",
        run.stdout
    );
    assert_eq!((scene.checkpoints(), scene.losses().len()), (vec![7], 7));
}

#[test]
fn a_run_of_a_config_by_nanogpt_is_read_as_it_is() {
    let scene = Scene::new();
    let config = "# a nanoGPT config\nout_dir = 'mine'\neval_interval = 5 # often\n\
                  max_iters = 5\nlearning_rate = 1e-3\ndevice = 'cpu'\n";
    fs::write(scene.path().join("train_mine.py"), config).unwrap();
    let words = [crate::support::TINY, &["--config", "./train_mine.py"]].concat();
    scene.trainer(&words).expect_code(0);
    assert!(
        scene
            .path()
            .join("mine/checkpoints/step_0000000020")
            .exists()
    );
}

#[test]
fn an_epoch_of_sampling_without_replacement_trains_too() {
    let scene = Scene::new();
    scene
        .train(&["--sampling=epoch", "--max_iters=3"])
        .expect_code(0);
    assert_eq!(scene.losses().len(), 3);
}
