//! Bad input: one clear line, the right exit code, nothing half-written.

use std::fs;
use std::path::Path;

use crate::support::{Finished, Scene, TINY};

/// Asserts the exit code, that standard error begins with one `error:` line saying all of
/// `needles`, and that no checkpoint appeared.
#[track_caller]
fn refused(scene: &Scene, run: Finished, code: i32, needles: &[&str]) {
    let run = run.expect_code(code);
    let mut lines = run.stderr.lines();
    let first = lines.next().unwrap_or("");
    assert!(first.starts_with("error: "), "{}", run.stderr);
    for needle in needles {
        assert!(first.contains(needle), "{needle:?} is not in {first:?}");
    }
    assert!(
        lines.all(|line| line.starts_with("hint: ")),
        "{}",
        run.stderr
    );
    assert!(scene.checkpoints().is_empty());
}

/// A dataset folder of nanoGPT's form with these files, below `data/mine`.
fn dataset(scene: &Scene, train: &[u8], val: &[u8]) {
    let folder = scene.path().join("data/mine");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("train.bin"), train).unwrap();
    fs::write(folder.join("val.bin"), val).unwrap();
}

fn tokens(count: u16) -> Vec<u8> {
    (0..count).flat_map(|i| (i % 50).to_le_bytes()).collect()
}

#[test]
fn missing_data_names_what_was_looked_for() {
    let scene = Scene::new();
    let run = scene.train(&["--dataset=nowhere"]).expect_code(65);
    assert!(run.stderr.contains("nowhere"), "{}", run.stderr);
    assert!(run.stderr.contains("trainer prepare"), "{}", run.stderr);
    assert!(scene.checkpoints().is_empty());
}

#[test]
fn short_empty_odd_and_foreign_tokens_are_refused() {
    for (train, val, needles) in [
        (tokens(10), tokens(1000), ["train.bin", "17"]),
        (tokens(1000), tokens(10), ["val.bin", "17"]),
        (Vec::new(), tokens(1000), ["train.bin", "empty"]),
        (
            tokens(1000)[1..].to_vec(),
            tokens(1000),
            ["train.bin", "1999"],
        ),
        (
            [tokens(1000), vec![0xff, 0xff]].concat(),
            tokens(1000),
            ["65535", "1000"],
        ),
    ] {
        let scene = Scene::new();
        dataset(&scene, &train, &val);
        let run = scene.train(&["--dataset=mine"]);
        refused(&scene, run, 65, &needles);
    }
}

#[test]
fn a_config_with_many_faults_names_them_all_before_any_work() {
    let scene = Scene::new();
    let words = [
        "--n_embd=17",
        "--learning_rat=1",
        "--dropout=2",
        "--batch_size=many",
    ];
    let run = scene.train(&words).expect_code(64);
    let errors: Vec<&str> = run
        .stderr
        .lines()
        .filter(|l| l.starts_with("error: "))
        .collect();
    for needle in ["n_embd", "learning_rate", "dropout", "batch_size"] {
        assert!(
            errors.iter().any(|line| line.contains(needle)),
            "{needle}: {}",
            run.stderr
        );
    }
    assert!(!scene.run_dir().root().exists());
}

#[test]
fn an_unknown_config_name_is_told_what_there_is() {
    let scene = Scene::new();
    let run = scene
        .trainer(&["--config", "shakespear_char"])
        .expect_code(64);
    assert!(run.stderr.contains("shakespeare_char"), "{}", run.stderr);
}

#[test]
fn a_device_that_is_not_there_is_refused_before_any_work() {
    let scene = Scene::new();
    let run = scene.train(&["--device=cuda"]);
    refused(&scene, run, 69, &["device=cuda"]);
    assert!(!scene.run_dir().root().exists());
    let run = scene.train(&["--device=toaster"]);
    refused(&scene, run, 64, &["toaster"]);
}

#[test]
fn an_out_dir_that_cannot_be_written_is_exit_73() {
    let scene = Scene::new();
    // Holds for root too, whom permissions do not stop.
    for out_dir in ["/proc/anneal-run", "/sys/anneal-run"] {
        if Path::new(out_dir).parent().is_some_and(Path::exists) {
            let run = scene.train(&[&format!("--out_dir={out_dir}")]);
            refused(&scene, run, 73, &["cannot write", out_dir]);
        }
    }
    fs::write(scene.path().join("file"), "in the way").unwrap();
    let run = scene.train(&["--out_dir=file/run"]);
    refused(&scene, run, 73, &["cannot write", "file/run"]);
}

#[test]
fn an_out_dir_in_use_is_exit_73_and_the_first_run_is_not_disturbed() {
    let scene = Scene::new();
    let mut first = scene.start(&["--max_iters=1000000", "--lr_decay_iters=1000000"]);
    scene.wait_for("step", |event| {
        matches!(event, protocol::Event::Step { .. })
    });
    let second = scene.train(&["--resume=auto"]).expect_code(73);
    assert!(second.stderr.contains("in use"), "{}", second.stderr);
    first.signal(rustix::process::Signal::TERM);
    first.finish().expect_code(75);
}

#[test]
fn text_that_is_not_utf_8_is_refused_with_its_place() {
    let scene = Scene::new();
    fs::write(
        scene.path().join("latin1.txt"),
        b"caf\xe9 and more text to come",
    )
    .unwrap();
    let run = scene.trainer(&["prepare", "latin1.txt", "--tokenizer=char"]);
    refused(&scene, run, 65, &["latin1.txt", "UTF-8", "3"]);
    assert!(!scene.path().join("data").join("latin1").exists());
}

#[test]
fn a_failed_fetch_says_what_was_tried_and_the_three_ways_out() {
    let scene = Scene::new();
    let cache = scene.path().join("empty-cache");
    let words = [
        TINY,
        &[
            "--dataset=shakespeare_char",
            "--data_url=file:///no/such/file",
        ],
    ]
    .concat();
    let mut command = scene.command(&words);
    // A proxy that refuses at once stands for a machine without a network.
    for name in ["ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy"] {
        command.env(name, "http://127.0.0.1:9");
    }
    let output = command.env("ANNEAL_CACHE", &cache).output().unwrap();
    assert_eq!(output.status.code(), Some(65));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("/no/such/file"), "{stderr}");
    assert!(stderr.contains("raw.githubusercontent.com"), "{stderr}");
    for way in ["--data_dir", "ANNEAL_DATA", "--data_url"] {
        assert!(stderr.contains(way), "{way}: {stderr}");
    }
}

#[test]
fn shakespeare_from_a_folder_from_the_environment_and_from_a_file_url() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data");
    let url = format!("--data_url=file://{root}/tinyshakespeare/input.txt");
    let folder = format!("--data_dir={root}");
    for (word, variable) in [
        (folder.as_str(), ""),
        ("--seed=1", root),
        (url.as_str(), ""),
    ] {
        let scene = Scene::new();
        let words = [TINY, &["--dataset=shakespeare_char", "--max_iters=1", word]].concat();
        let mut command = scene.command(&words);
        command.env("ANNEAL_CACHE", scene.path().join("cache"));
        if !variable.is_empty() {
            command.env("ANNEAL_DATA", variable);
        }
        let output = command.output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{word} {variable}: {stderr}");
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert!(
            stdout.contains("1,003,854 training tokens, 111,540 validation"),
            "{stdout}"
        );
    }
}
