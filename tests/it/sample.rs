//! `sample` and `eval` on a real run's checkpoints.

use std::fs;
use std::sync::OnceLock;

use crate::support::Scene;

/// One trained run for all tests here.
fn trained() -> &'static Scene {
    static TRAINED: OnceLock<Scene> = OnceLock::new();
    TRAINED.get_or_init(|| {
        let scene = Scene::new();
        scene.train(&[]).expect_code(0);
        scene
    })
}

fn sample(words: &[&str]) -> String {
    let base = [
        "sample",
        "--out_dir=out",
        "--num_samples=1",
        "--max_new_tokens=40",
    ];
    trained()
        .trainer(&[&base, words].concat())
        .expect_code(0)
        .stdout
}

#[test]
fn samples_begin_with_the_prompt_end_with_the_ruler_and_follow_from_the_seed() {
    let text = sample(&["--start=the "]);
    assert!(
        text.starts_with("the ") && text.ends_with("\n---------------\n"),
        "{text:?}"
    );
    assert_eq!(
        text.chars().count(),
        "the ".len() + 40 + "\n---------------\n".len()
    );
    assert_eq!(text, sample(&["--start", "the "]));
    assert_ne!(text, sample(&["--start=the ", "--seed=2"]));
    let greedy = sample(&["--start=the ", "--temperature=0"]);
    assert_eq!(
        greedy,
        sample(&["--start=the ", "--temperature=0", "--seed=2"])
    );
    assert_eq!(greedy, sample(&["--start=the ", "--top_k=1", "--seed=3"]));
    assert_eq!(greedy, sample(&["--start=the ", "--top_p=0.0001"]));
}

#[test]
fn timing_is_told_on_standard_error_and_leaves_the_text_alone() {
    let words = [
        "sample",
        "--out_dir=out",
        "--num_samples=2",
        "--max_new_tokens=5",
    ];
    let plain = trained().trainer(&words).expect_code(0);
    assert_eq!(plain.stderr, "");
    let timed = trained()
        .trainer(&[&words[..], &["--timing"]].concat())
        .expect_code(0);
    assert_eq!(timed.stdout, plain.stdout);
    let lines: Vec<&str> = timed.stderr.lines().collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    for line in lines {
        assert!(line.starts_with("timing: first token "), "{line}");
        assert!(line.contains(" s, 4 more "), "{line}");
    }
}

#[test]
fn several_samples_differ_and_a_prompt_comes_from_a_file() {
    fs::write(trained().path().join("prompt.txt"), "a ").unwrap();
    let text = sample(&["--start=FILE:prompt.txt", "--num_samples=3"]);
    let samples: Vec<&str> = text.split_terminator("\n---------------\n").collect();
    assert_eq!(samples.len(), 3);
    assert!(
        samples.iter().all(|sample| sample.starts_with("a ")),
        "{text}"
    );
    assert!(
        samples[0] != samples[1] && samples[1] != samples[2],
        "{text}"
    );
}

#[test]
fn a_stop_text_ends_a_sample() {
    let whole = sample(&["--start=the "]);
    let inner: Vec<char> = whole["the ".len()..].chars().collect();
    let stop: String = inner[10..13].iter().collect();
    let cut = sample(&["--start=the ", &format!("--stop={stop}")]);
    let body = cut.strip_suffix("\n---------------\n").unwrap();
    assert!(!body["the ".len()..].contains(&stop), "{cut:?}");
    assert!(
        whole.starts_with(body) && body.len() < whole.len(),
        "{cut:?} {whole:?}"
    );
}

#[test]
fn characters_outside_the_vocabulary_and_bad_options_are_named() {
    let words = ["sample", "--out_dir=out", "--start=caf\u{e9}"];
    let run = trained().trainer(&words).expect_code(65);
    assert!(run.stderr.contains("U+00E9"), "{}", run.stderr);
    let words = ["sample", "--out_dir=out", "--temperature=-1", "--top_p=0"];
    let run = trained().trainer(&words).expect_code(64);
    assert!(
        run.stderr.contains("temperature") && run.stderr.contains("top_p"),
        "{}",
        run.stderr
    );
    let run = trained()
        .trainer(&["sample", "--out_dir=nothing"])
        .expect_code(65);
    assert!(run.stderr.contains("nothing"), "{}", run.stderr);
    let words = ["sample", "--out_dir=out", "--checkpoint=7"];
    let run = trained().trainer(&words).expect_code(65);
    assert!(
        run.stderr.contains("no checkpoint 7; there are 20, 10"),
        "{}",
        run.stderr
    );
}

#[test]
fn eval_prints_the_losses_that_training_printed() {
    let run = trained().trainer(&["eval", "--out_dir=out"]).expect_code(0);
    let last = trained()
        .events()
        .into_iter()
        .rev()
        .find_map(|event| match event {
            protocol::Event::Eval {
                step,
                train_loss,
                val_loss,
                ..
            } => Some((step, train_loss, val_loss)),
            _ => None,
        });
    let (step, train, val) = last.unwrap();
    let expected = format!("step {step}: train loss {train:.4}, val loss {val:.4}\n");
    assert_eq!(run.stdout, expected);
    let run = trained()
        .trainer(&["eval", "--out_dir=out", "--checkpoint=10"])
        .expect_code(0);
    assert!(run.stdout.starts_with("step 10: "), "{}", run.stdout);
}

#[test]
fn help_lists_every_key_and_the_version_is_told() {
    let run = trained().trainer(&["--help"]).expect_code(0);
    for word in [
        "gradient_accumulation_steps",
        "on_divergence",
        "prepare",
        "sample",
        "bench",
    ] {
        assert!(run.stdout.contains(word), "{word}: {}", run.stdout);
    }
    let run = trained()
        .trainer(&["--config", "quickstart", "--help"])
        .expect_code(0);
    assert!(run.stdout.contains("learning_rate"));
    assert!(
        trained()
            .trainer(&["--version"])
            .expect_code(0)
            .stdout
            .starts_with("trainer ")
    );
    let run = trained()
        .trainer(&["sample", "--no_such_option"])
        .expect_code(64);
    assert!(run.stderr.contains("no_such_option"), "{}", run.stderr);
}
