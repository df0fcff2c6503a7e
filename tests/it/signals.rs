//! Signals and divergence: how a run ends before its end.

use std::fs;
use std::time::{Duration, Instant};

use protocol::Event;
use rustix::process::Signal;

use crate::support::Scene;

/// Long enough that no test sees it end by itself.
const LONG: &[&str] = &[
    "--max_iters=1000000",
    "--lr_decay_iters=1000000",
    "--eval_interval=100000",
];

fn is_step(event: &Event) -> bool {
    matches!(event, Event::Step { .. })
}

#[test]
fn sigterm_and_sigint_save_and_exit_75_and_the_run_goes_on_from_there() {
    for signal in [Signal::TERM, Signal::INT] {
        let scene = Scene::new();
        let mut run = scene.start(LONG);
        scene.wait_for("step", is_step);
        let begin = Instant::now();
        run.signal(signal);
        let finished = run.finish().expect_code(75);
        assert!(
            begin.elapsed() < Duration::from_secs(10),
            "{:?}",
            begin.elapsed()
        );
        assert!(
            finished.stdout.contains("--resume goes on from there"),
            "{}",
            finished.stdout
        );
        let steps = scene.losses().len() as u64;
        assert_eq!(scene.checkpoints(), [steps]);
        let last = scene.events().pop();
        assert!(
            matches!(last, Some(Event::Finished { exit_code: 75, step, .. }) if step == steps),
            "{last:?}"
        );
        let end = format!("--max_iters={}", steps + 2);
        scene.train(&["--resume", &end]).expect_code(0);
        assert_eq!(scene.losses().len() as u64, steps + 2);
    }
}

#[test]
fn a_stop_during_evaluation_does_not_wait_for_its_end() {
    let scene = Scene::new();
    let mut run = scene.start(&["--eval_iters=1000000"]);
    scene.wait_for("evaluation", |event| {
        matches!(
            event,
            Event::Phase {
                phase: protocol::Phase::Evaluating
            }
        )
    });
    run.signal(Signal::TERM);
    run.finish().expect_code(75);
    assert_eq!(scene.checkpoints(), [0]);
    scene.train(&["--resume"]).expect_code(0);
}

#[test]
fn a_second_signal_ends_the_run_at_once() {
    let scene = Scene::new();
    // One iteration of many micro-steps: the first signal cannot be answered for a long time.
    let words = [
        "--gradient_accumulation_steps=60000",
        "--batch_size=16",
        "--eval_iters=1",
    ];
    let mut run = scene.start(&words);
    scene.wait_for("evaluation", |event| matches!(event, Event::Eval { .. }));
    run.signal(Signal::TERM);
    std::thread::sleep(Duration::from_millis(300));
    let begin = Instant::now();
    run.signal(Signal::TERM);
    let finished = run.finish();
    assert_eq!(finished.code, Some(128 + 15));
    assert!(begin.elapsed() < Duration::from_secs(5));
}

#[test]
fn sigusr1_saves_and_the_run_goes_on() {
    let scene = Scene::new();
    let mut run = scene.start(LONG);
    scene.wait_for("step", is_step);
    run.signal(Signal::USR1);
    scene.wait_for("checkpoint", |event| {
        matches!(event, Event::Checkpoint { .. })
    });
    let steps = scene.losses().len();
    let begin = Instant::now();
    while scene.losses().len() <= steps {
        assert!(
            begin.elapsed() < Duration::from_secs(30),
            "no step after the checkpoint"
        );
    }
    run.signal(Signal::TERM);
    run.finish().expect_code(75);
}

#[test]
fn a_diverging_run_stops_with_76_and_its_good_checkpoints() {
    let scene = Scene::new();
    scene.train(&["--max_iters=10"]).expect_code(0);
    let wild = ["--resume", "--learning_rate=1e30", "--decay_lr=False"];
    let run = scene.train(&wild).expect_code(76);
    assert!(run.stderr.contains("iteration 1"), "{}", run.stderr);
    assert!(
        run.stderr.contains("hint: a lower learning_rate"),
        "{}",
        run.stderr
    );
    assert_eq!(scene.checkpoints(), [10]);
    let last = scene.events().pop();
    assert!(
        matches!(last, Some(Event::Finished { exit_code: 76, .. })),
        "{last:?}"
    );

    // Every way back leads to the same place: the number of rollbacks is limited.
    let words = [&wild[..], &["--on_divergence=rollback", "--rollback_max=2"]].concat();
    let run = scene.train(&words).expect_code(76);
    assert!(run.stderr.contains("after 2 rollbacks"), "{}", run.stderr);
}

#[test]
fn a_rollback_skips_the_data_that_led_there_and_the_run_ends_well() {
    let scene = Scene::new();
    // Single windows of noise now and then in an easy text: their loss stands out.
    let mut text = String::new();
    for i in 0..3000 {
        text.push_str("abcabcabcabcabcabcabcabcabcabc");
        if i % 20 == 10 {
            text.push_str("zqxwvutkjhgfdpmnbzyxqwe");
        }
    }
    fs::write(scene.path().join("spiky.txt"), text).unwrap();
    scene
        .trainer(&["prepare", "spiky.txt", "--tokenizer=char"])
        .expect_code(0);
    let words = [
        "--dataset=spiky",
        "--batch_size=1",
        "--gradient_accumulation_steps=1",
        "--learning_rate=1e-2",
        "--max_iters=150",
        "--lr_decay_iters=150",
        "--eval_interval=1000",
        "--checkpoint_interval=5",
        "--dropout=0",
        "--on_divergence=rollback",
        "--divergence_factor=1.8",
        "--rollback_max=1000",
    ];
    let run = scene.train(&words).expect_code(0);
    let rollbacks = scene.events().into_iter().filter(|event| {
        matches!(event, Event::Warning { message } if message.contains("back to the checkpoint"))
    });
    assert!(rollbacks.count() >= 1, "{}", run.stdout);
    let state = scene
        .run_dir()
        .checkpoint(150)
        .join(protocol::RunDir::STATE);
    let state: serde_json::Value = serde_json::from_slice(&fs::read(state).unwrap()).unwrap();
    assert!(state["data_offset"].as_u64().unwrap() >= 1, "{state}");
}
