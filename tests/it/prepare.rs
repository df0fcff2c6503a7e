//! `trainer prepare` over documents: folders, a bucket, shards of llm.c, and what cannot be read.

use std::fs;
use std::path::Path;

use crate::bucket::{Bucket, JOB};
use crate::support::{Scene, TINY};

/// Lines of JSON with these numbers in their texts.
fn lines(numbers: std::ops::Range<u32>) -> Vec<u8> {
    numbers
        .flat_map(|i| format!("{{\"id\": {i}, \"text\": \"story number {i}\"}}\n").into_bytes())
        .collect()
}

/// A folder of two files of lines and a text.
fn put_documents(dir: &Path) -> Vec<(&'static str, Vec<u8>)> {
    let files = vec![
        ("a/1.jsonl", lines(0..700)),
        ("a/2.ndjson", lines(700..900)),
        ("b.txt", b"A text of its own.\n".repeat(20)),
    ];
    for (name, bytes) in &files {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    files
}

/// What a dataset holds, apart from its name and where it came from.
fn tokens(dir: &Path) -> [Vec<u8>; 2] {
    ["train.bin", "val.bin"].map(|name| fs::read(dir.join(name)).unwrap())
}

#[test]
fn a_folder_becomes_a_dataset_whatever_the_threads_and_is_trained_on() {
    let scene = Scene::new();
    put_documents(&scene.path().join("stories"));
    for threads in ["1", "3"] {
        let out = format!("--out=out{threads}");
        let threads = format!("--threads={threads}");
        let run = scene.trainer(&["prepare", "stories", "--val_fraction=0.1", &out, &threads]);
        let run = run.expect_code(0);
        assert!(run.stdout.starts_with("stories: "), "{}", run.stdout);
        assert!(
            run.stdout.contains("vocabulary 50257 (gpt2)"),
            "{}",
            run.stdout
        );
    }
    let [train, val] = tokens(&scene.path().join("out1"));
    assert!([train.clone(), val.clone()] == tokens(&scene.path().join("out3")));
    let ids = |bytes: &[u8]| -> Vec<u16> {
        let pairs = bytes.chunks_exact(2);
        pairs
            .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
            .collect()
    };
    let ends = [&train, &val].map(|bytes| ids(bytes).iter().filter(|id| **id == 50_256).count());
    assert_eq!(ends[0] + ends[1], 901);
    assert!((60..=120).contains(&ends[1]), "{ends:?}");
    assert_eq!(ids(&train).last(), Some(&50_256));
    scene
        .train(&["--dataset=out1", "--data_dir=.", "--max_iters=2"])
        .expect_code(0);

    // Named one by one, in the same order, they are the same documents.
    let names = ["stories/a/1.jsonl", "stories/a/2.ndjson", "stories/b.txt"];
    let words = [
        "prepare",
        names[0],
        names[1],
        names[2],
        "--val_fraction=0.1",
        "--out=named",
    ];
    scene.trainer(&words).expect_code(0);
    assert!(tokens(&scene.path().join("named")) == [train, val]);
}

#[test]
fn a_bucket_gives_what_its_folder_gives() {
    let bucket = Bucket::new();
    let scene = Scene::new();
    for (name, bytes) in put_documents(&scene.path().join("stories")) {
        bucket.put(&format!("stories/{name}"), &bytes);
    }
    bucket.put("other.txt", b"not asked for");
    let endpoint = format!("http://{}", bucket.address);
    let prepare = |words: &[&str], secret: &str| {
        let mut command = scene.command(&["prepare", "--val_fraction=0.1"]);
        command
            .args(words)
            .env("AWS_ENDPOINT_URL", &endpoint)
            .env("AWS_ACCESS_KEY_ID", &bucket.access_key)
            .env("AWS_SECRET_ACCESS_KEY", secret)
            .env("NO_PROXY", "*");
        command.output().unwrap()
    };
    let local = scene.trainer(&["prepare", "stories", "--val_fraction=0.1", "--out=local"]);
    local.expect_code(0);
    let place = format!("{}/{JOB}/stories", bucket.location());
    let done = prepare(&[&place, "--out=remote"], &bucket.secret_key);
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    assert!(tokens(&scene.path().join("remote")) == tokens(&scene.path().join("local")));

    let glob = format!("{place}/a/*.ndjson");
    let done = prepare(&[&glob, "--out=glob"], &bucket.secret_key);
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    let one = format!("{place}/a/2.ndjson");
    let done = prepare(&[&one, "--out=one"], &bucket.secret_key);
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    assert!(tokens(&scene.path().join("glob")) == tokens(&scene.path().join("one")));

    for what in [&place, &one] {
        let refused = prepare(&[what, "--out=refused"], "another secret");
        let message = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(65), "{message}");
        assert!(message.contains("HTTP 403"), "{message}");
        assert!(message.contains("hint: AWS_ACCESS_KEY_ID"), "{message}");
        assert!(message.contains(what.as_str()), "{message}");
        assert!(!message.contains("X-Amz"), "{message}");
    }
    assert!(!scene.path().join("refused").exists());
}

#[test]
fn shards_of_llmc_are_trained_on_as_they_are() {
    let scene = Scene::new();
    let dir = scene.path().join("data/fineweb10B");
    fs::create_dir_all(&dir).unwrap();
    for (name, first) in [
        ("fineweb_val_000000.bin", 0),
        ("fineweb_train_000001.bin", 100),
        ("fineweb_train_000002.bin", 200),
    ] {
        let mut header = [0i32; 256];
        header[..3].copy_from_slice(&[20_240_520, 1, 100]);
        let header = header.iter().flat_map(|number| number.to_le_bytes());
        let ids = (first..first + 100).flat_map(|id: u16| id.to_le_bytes());
        fs::write(dir.join(name), header.chain(ids).collect::<Vec<u8>>()).unwrap();
    }
    let run = [TINY, &["--dataset=fineweb10B", "--max_iters=2"]].concat();
    scene.trainer(&run).expect_code(0);

    let path = dir.join("fineweb_train_000002.bin");
    let mut bytes = fs::read(&path).unwrap();
    bytes.pop();
    fs::write(&path, bytes).unwrap();
    let run = scene.trainer(&[&run[..], &["--overwrite"]].concat());
    let run = run.expect_code(65);
    let expected = "fineweb_train_000002.bin: expected 1224 bytes for 100 tokens";
    assert!(run.stderr.contains(expected), "{}", run.stderr);
}

/// A file of llm.c's of 500 tokens.
fn llmc_shard(first: u16) -> Vec<u8> {
    let mut header = [0i32; 256];
    header[..3].copy_from_slice(&[20_240_520, 1, 500]);
    let header = header.iter().flat_map(|number| number.to_le_bytes());
    let ids = (first..first + 500).flat_map(|id: u16| id.to_le_bytes());
    header.chain(ids).collect()
}

/// A scene with three of them in `shards`, one for validation, and one beside.
fn llmc_scene() -> Scene {
    let scene = Scene::new();
    let shards = scene.path().join("shards");
    fs::create_dir_all(&shards).unwrap();
    for (name, first) in [("a_1.bin", 0), ("a_2.bin", 500), ("a_val.bin", 1000)] {
        fs::write(shards.join(name), llmc_shard(first)).unwrap();
    }
    fs::write(scene.path().join("x.bin"), llmc_shard(0)).unwrap();
    scene
}

#[test]
fn token_files_of_llmc_are_a_dataset_by_their_path() {
    let scene = llmc_scene();
    // Of another program's data: not the tokenizer of a file beside it.
    fs::write(scene.path().join("vocab.json"), r#"{"chars":["a"]}"#).unwrap();
    let run = |words: &[&str]| scene.trainer(&[TINY, &["--max_iters=2"], words].concat());
    for (dataset, out, tokens) in [
        ("x.bin", "one", "450 training tokens, 50 validation tokens"),
        (
            "shards/a_*.bin",
            "glob",
            "1,000 training tokens, 500 validation tokens",
        ),
        (
            "./shards",
            "folder",
            "1,000 training tokens, 500 validation tokens",
        ),
        (
            "shards/a_[12].bin",
            "two",
            "900 training tokens, 100 validation tokens",
        ),
    ] {
        let words = [format!("--dataset={dataset}"), format!("--out_dir={out}")];
        let run = run(&[&words[0], &words[1]]).expect_code(0);
        assert!(run.stdout.contains(tokens), "{dataset}: {}", run.stdout);
    }
    // The tokens count, not their place.
    fs::create_dir(scene.path().join("else")).unwrap();
    fs::rename(scene.path().join("x.bin"), scene.path().join("else/x.bin")).unwrap();
    let words = [
        "--resume",
        "--out_dir=one",
        "--dataset=else/x.bin",
        "--max_iters=3",
    ];
    run(&words).expect_code(0);
    let words = ["--resume", "--out_dir=one", "--dataset=shards/a_2.bin"];
    assert!(run(&words).expect_code(64).stderr.contains("dataset"));
    let checked = scene.trainer(&["doctor", "--dataset=else/x.bin"]);
    assert!(
        checked.stdout.contains("else/x.bin: 450 tokens"),
        "{}",
        checked.stdout
    );
}

#[test]
fn paths_of_what_are_no_token_files_are_refused() {
    let scene = llmc_scene();
    fs::write(scene.path().join("z.bin"), [7; 2000]).unwrap();
    for (dataset, expected) in [
        (
            "z.bin",
            "z.bin: expected a token file of llm.c's for GPT-2 (magic 20240520",
        ),
        (
            "absent.bin",
            "absent.bin: expected a dataset, or token files of llm.c's",
        ),
        (
            "none*.bin",
            "none*.bin: expected token files that end in .bin",
        ),
        ("shards/a_val.bin", "expected tokens to train on"),
    ] {
        let words = [&format!("--dataset={dataset}"), "--out_dir=refused"];
        let refused = scene.trainer(&[TINY, &words].concat()).expect_code(65);
        assert!(refused.stderr.contains(expected), "{}", refused.stderr);
    }
}

#[test]
fn documents_that_cannot_be_read_leave_nothing_behind() {
    let scene = Scene::new();
    let stories = scene.path().join("stories");
    put_documents(&stories);
    let mut bad = lines(0..50);
    bad.extend_from_slice(b"{\"text\": unquoted}\n");
    fs::write(stories.join("a/3.jsonl"), bad).unwrap();
    let check = |words: &[&str], code: i32, needles: &[&str]| {
        let run = scene.trainer(&[&["prepare", "--out=set"], words].concat());
        let run = run.expect_code(code);
        let first = run.stderr.lines().next().unwrap_or_default();
        assert!(first.starts_with("error: "), "{}", run.stderr);
        for needle in needles {
            assert!(run.stderr.contains(needle), "{needle:?}: {}", run.stderr);
        }
        let left = fs::read_dir(scene.path()).unwrap();
        let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.iter().all(|name| name == "stories"), "{left:?}");
    };
    check(
        &["stories"],
        65,
        &["stories/a/3.jsonl: line 51: expected a JSON object"],
    );
    check(&["stories/a/*.jsonl"], 65, &["3.jsonl: line 51"]);
    check(
        &["stories/a/1.jsonl"],
        65,
        &["0 validation tokens", "hint: --val_fraction"],
    );
    check(
        &["stories/a/1.jsonl", "--field=body"],
        65,
        &["line 1: ", "got an object of id, text"],
    );
    check(
        &["stories/b.txt", "stories/nothing.txt"],
        65,
        &["nothing.txt: no such file"],
    );
    check(&[], 64, &["expected a SOURCE to prepare"]);
}
