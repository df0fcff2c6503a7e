//! TensorBoard's event files of a run that is killed, resumed and begun anew, by the real program;
//! read by the reader that the trainer's own tests have.

use std::collections::BTreeMap;
use std::fs;

use protocol::Event;

use crate::support::Scene;

#[path = "../../trainer/src/metrics/board/reader.rs"]
mod reader;

use reader::{Told, What};

const KILLS: usize = 4;

/// What is shown of each tag, by step; a step twice is a fault.
fn scalars(scene: &Scene) -> BTreeMap<(String, u64), f32> {
    let mut scalars = BTreeMap::new();
    for Told { step, what, .. } in reader::shown(&scene.run_dir().tensorboard()) {
        if let What::Scalar(tag, value) = what {
            let before = scalars.insert((tag.clone(), step), value);
            assert_eq!(before, None, "{tag} of step {step} is shown twice");
        }
    }
    scalars
}

/// Asserts that TensorBoard shows the losses that `events.jsonl` tells, all of them, once each.
fn assert_shows_the_run(scene: &Scene, steps: u64, evaluations: &[u64]) {
    let shown = scalars(scene);
    let losses = scene.losses();
    assert_eq!(losses.len() as u64, steps);
    let of = |tag: &str, step: u64| shown.get(&(tag.to_owned(), step)).copied();
    for (step, loss) in losses {
        assert_eq!(of("loss/iteration", step), Some(loss as f32), "step {step}");
        assert!(of("learning_rate", step).is_some() && of("grad_norm", step).is_some());
    }
    let iterations = shown.keys().filter(|(tag, _)| tag == "loss/iteration");
    assert_eq!(iterations.count() as u64, steps);
    let mut told = BTreeMap::new();
    for event in scene.events() {
        if let Event::Eval { step, val_loss, .. } = event {
            told.insert(step, val_loss as f32);
        }
    }
    for tag in ["loss/train", "loss/val"] {
        let steps = shown.keys().filter(|(other, _)| other == tag);
        let steps: Vec<u64> = steps.map(|(_, step)| *step).collect();
        assert_eq!(steps, evaluations, "{tag}");
    }
    for step in evaluations {
        assert_eq!(of("loss/val", *step), Some(told[step]), "step {step}");
    }
}

#[test]
fn kills_and_resumes_leave_one_picture_of_the_run() {
    let scene = Scene::new();
    let words = [
        "--tensorboard_log",
        "--resume=auto",
        "--checkpoint_interval=1",
        "--max_iters=1000000",
    ];
    for kill in 0..KILLS {
        scene.kill_after_events(&words, 8 + kill * 5, 3);
    }
    // An end between two evaluations, and one after the next of them.
    let first = scene.checkpoints().last().unwrap() / 10 * 10 + 15;
    let second = first + 10;
    let ends = [first, second].map(|end| format!("--max_iters={end}"));
    let evaluations = |last: u64| (0..last).step_by(10).collect::<Vec<u64>>();
    scene
        .train(&[&words[..], &[&ends[0]]].concat())
        .expect_code(0);
    assert_shows_the_run(&scene, first, &[evaluations(first), vec![first]].concat());

    // The first end is evaluated because it is the last step; the run that goes on does not do so
    // again.
    let longer = [&words[..], &[&ends[1], "--sample_tokens=4"]].concat();
    scene.train(&longer).expect_code(0);
    let mut evaluations = evaluations(second);
    evaluations.insert(evaluations.len() - 1, first);
    evaluations.push(second);
    assert_shows_the_run(&scene, second, &evaluations);
    let folder = scene.run_dir().tensorboard();
    let texts = |of: &str| {
        let told = reader::shown(&folder).into_iter();
        let texts = told.filter_map(|Told { step, what, .. }| match what {
            What::Text(tag, text) if tag == of => Some((step, text)),
            _ => None,
        });
        texts.collect::<Vec<_>>()
    };
    let samples = texts("sample");
    assert_eq!((samples.len(), samples[0].0), (1, second));
    let (step, config) = texts("config").pop().unwrap();
    assert!(
        step == first && config.contains(&format!("max_iters = {second}\n")),
        "{config}"
    );

    let files = reader::files(&folder);
    let starts = scene.events().into_iter();
    let starts = starts.filter(|event| matches!(event, Event::Started { .. }));
    // A kill may fall between the event and the file.
    assert!(files.len() > KILLS && files.len() <= starts.count());
    for file in &files {
        let told = reader::read(file);
        let version = What::Version("brain.Event:2".to_owned());
        assert!(told.is_empty() || told[0].what == version);
        assert!(told.len() < 2 || told[1].what == What::Start);
    }

    // The export shows the same.
    let words = ["export", "out", "board", "--format=tensorboard"];
    scene.trainer(&words).expect_code(0);
    let mut exported = BTreeMap::new();
    for Told { step, what, .. } in reader::shown(&scene.path().join("board")) {
        if let What::Scalar(tag, value) = what {
            exported.insert((tag, step), value);
        }
    }
    assert_eq!(exported, scalars(&scene));
}

#[test]
fn a_new_run_in_the_place_of_an_old_one_has_its_own_picture() {
    let scene = Scene::new();
    scene
        .train(&["--max_iters=3", "--tensorboard_log"])
        .expect_code(0);
    let folder = scene.run_dir().tensorboard();
    let before = reader::files(&folder);
    scene
        .train(&["--max_iters=2", "--tensorboard_log", "--overwrite"])
        .expect_code(0);
    assert_eq!(reader::files(&folder).len(), 1);
    assert_eq!(before.len(), 1);
    assert_shows_the_run_of(&scene, 2);
    // Without the key there is no picture, and none of the run before.
    scene
        .train(&["--max_iters=2", "--overwrite"])
        .expect_code(0);
    assert!(reader::files(&folder).is_empty());

    // What cannot be written is a warning, and the run goes on.
    fs::remove_dir(&folder).unwrap();
    fs::write(&folder, "").unwrap();
    let run = scene.train(&["--max_iters=2", "--tensorboard_log", "--overwrite"]);
    let run = run.expect_code(0);
    let warnings = run.stdout.matches("warning: ").count();
    assert!(
        warnings == 1 && run.stdout.contains("event file"),
        "{}",
        run.stdout
    );
}

fn assert_shows_the_run_of(scene: &Scene, steps: u64) {
    let shown = scalars(scene);
    let iterations = shown.keys().filter(|(tag, _)| tag == "loss/iteration");
    assert_eq!(iterations.count() as u64, steps);
}
