//! Stop and resume: the same bits as without, whatever the moment; refusals where it cannot be.

use std::fs;

use protocol::{Event, RunDir};

use crate::support::Scene;

/// After each of 17 numbers of events, twice.
const KILLS: u64 = 34;

/// Asserts that both runs ended with the same bits in parameters, moments and logged losses.
fn assert_same_end(a: &Scene, b: &Scene, step: u64) {
    for file in [RunDir::MODEL, RunDir::OPTIMIZER] {
        let read = |scene: &Scene| fs::read(scene.run_dir().checkpoint(step).join(file)).unwrap();
        assert!(read(a) == read(b), "{file} differs");
    }
    assert_eq!(a.losses(), b.losses());
    assert_eq!(a.losses().len() as u64, step);
}

#[test]
fn two_halves_are_the_same_as_one_run() {
    let (straight, halves) = (Scene::new(), Scene::new());
    straight.train(&[]).expect_code(0);
    halves.train(&["--max_iters=10"]).expect_code(0);
    let run = halves.train(&["--resume"]).expect_code(0);
    assert!(
        run.stdout.contains("Resuming training from out at step 10"),
        "{}",
        run.stdout
    );
    assert!(
        run.stdout.contains("max_iters = 20 (was 10)"),
        "{}",
        run.stdout
    );
    assert_same_end(&straight, &halves, 20);
    let resumed = halves.events().into_iter().filter_map(|event| match event {
        Event::Started { resumed_from, .. } => Some(resumed_from),
        _ => None,
    });
    assert_eq!(resumed.collect::<Vec<_>>(), [None, Some(10)]);
}

#[test]
fn kills_at_any_moment_change_nothing() {
    let (straight, killed) = (Scene::new(), Scene::new());
    // A checkpoint after every step, so that many kills fall into a save. Each try is killed a few
    // events after its start and then some milliseconds: before the first step, in a step, in a
    // save, between them.
    let words = [
        "--resume=auto",
        "--checkpoint_interval=1",
        "--max_iters=1000000",
    ];
    for kill in 0..KILLS {
        killed.kill_after_events(&words, 3 + kill as usize * 5 % 17, kill % 7);
    }
    let last = killed.checkpoints().last().unwrap() + 2;
    let end = format!("--max_iters={last}");
    let words = [&words[..], &[&end]].concat();
    killed.train(&words).expect_code(0);
    straight.train(&words).expect_code(0);
    assert_same_end(&straight, &killed, last);
}

#[test]
fn a_damaged_newest_checkpoint_gives_way_to_the_one_before() {
    let (straight, damaged) = (Scene::new(), Scene::new());
    straight.train(&[]).expect_code(0);
    damaged
        .train(&["--max_iters=15", "--checkpoint_interval=5"])
        .expect_code(0);
    let model = damaged.run_dir().checkpoint(15).join(RunDir::MODEL);
    let mut bytes = fs::read(&model).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs::write(&model, bytes).unwrap();
    let run = damaged.train(&["--resume"]).expect_code(0);
    assert!(run.stdout.contains("at step 10"), "{}", run.stdout);
    let warned = damaged.events().into_iter().any(|event| {
        matches!(event, Event::Warning { message }
            if message.contains("model.safetensors") && message.contains("sha256"))
    });
    assert!(warned, "{}", run.stdout);
    assert_same_end(&straight, &damaged, 20);
}

#[test]
fn with_every_checkpoint_damaged_the_run_is_refused_and_nothing_is_lost() {
    let scene = Scene::new();
    scene.train(&["--max_iters=10"]).expect_code(0);
    let state = scene.run_dir().checkpoint(10).join(RunDir::STATE);
    let half = fs::read(&state).unwrap();
    fs::write(&state, &half[..half.len() / 2]).unwrap();
    let run = scene.train(&["--resume"]).expect_code(65);
    assert!(run.stderr.starts_with("error: "), "{}", run.stderr);
    assert_eq!(scene.checkpoints(), [10]);
    scene.train(&["--resume=auto"]).expect_code(65);
}

#[test]
fn a_changed_shape_or_dataset_is_refused_with_the_difference() {
    let scene = Scene::new();
    scene.train(&["--max_iters=5"]).expect_code(0);
    let words = ["--resume", "--n_layer=3", "--bias=True"];
    let run = scene.train(&words).expect_code(64);
    assert!(
        run.stderr
            .contains("n_layer: checkpoint has 2, config says 3"),
        "{}",
        run.stderr
    );
    assert!(
        run.stderr
            .contains("bias: checkpoint has false, config says true"),
        "{}",
        run.stderr
    );

    fs::write(
        scene.path().join("other.txt"),
        "another text entirely. ".repeat(100),
    )
    .unwrap();
    let prepare = ["prepare", "other.txt", "--tokenizer=char"];
    scene.trainer(&prepare).expect_code(0);
    let run = scene
        .train(&["--resume", "--dataset=other"])
        .expect_code(64);
    assert!(run.stderr.contains("dataset"), "{}", run.stderr);
    assert_eq!(scene.checkpoints(), [5]);
}

#[test]
fn a_new_run_never_replaces_an_old_one_unasked() {
    let scene = Scene::new();
    scene.train(&["--max_iters=5"]).expect_code(0);
    let before = fs::read(scene.run_dir().events()).unwrap();
    let run = scene.train(&["--max_iters=5"]).expect_code(64);
    assert!(run.stderr.contains("--resume") && run.stderr.contains("--overwrite"));
    assert_eq!(fs::read(scene.run_dir().events()).unwrap(), before);
    scene
        .train(&["--max_iters=4", "--overwrite"])
        .expect_code(0);
    assert_eq!(scene.checkpoints(), [4]);
    assert_eq!(scene.losses().len(), 4);
}

#[test]
fn resume_without_a_config_goes_on_with_the_runs_own() {
    let scene = Scene::new();
    scene.train(&["--max_iters=10"]).expect_code(0);
    let run = scene
        .trainer(&["--resume", "--max_iters=12"])
        .expect_code(0);
    assert!(
        run.stdout.contains("max_iters = 12 (was 10)"),
        "{}",
        run.stdout
    );
    assert_eq!(scene.losses().len(), 12);
}

#[test]
fn resume_where_there_is_nothing_is_refused_unless_it_is_auto() {
    let scene = Scene::new();
    let run = scene.train(&["--resume"]).expect_code(65);
    assert!(run.stderr.contains("holds no checkpoint"), "{}", run.stderr);
    scene
        .train(&["--resume=auto", "--max_iters=2"])
        .expect_code(0);
}
