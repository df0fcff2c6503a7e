//! Models in and out: nanoGPT's checkpoints and Hugging Face's folders, by the real program.

use std::fs;
use std::path::{Path, PathBuf};

use protocol::RunDir;
use serde_json::Value;

use crate::support::Scene;

fn golden(case: &str) -> PathBuf {
    let root = std::env::var("ANNEAL_GOLDEN");
    let here = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/golden");
    Path::new(root.as_deref().unwrap_or(here)).join(case)
}

fn info(scene: &Scene, path: &str) -> Value {
    let shown = scene.trainer(&["info", path, "--json"]).expect_code(0);
    serde_json::from_str(&shown.stdout).unwrap()
}

/// A folder as nanoGPT prepares one: tokens of 65 characters without a header, and `meta.pkl`.
fn nanogpt_data(dir: &Path) {
    fs::create_dir_all(dir).unwrap();
    let tokens = |len: u32| -> Vec<u8> {
        (0..len)
            .flat_map(|i| ((i * i % 65) as u16).to_le_bytes())
            .collect()
    };
    fs::write(dir.join("train.bin"), tokens(5000)).unwrap();
    fs::write(dir.join("val.bin"), tokens(1000)).unwrap();
    // `pickle.dumps({"vocab_size": 65, "itos": {0: " ", …}, "stoi": {" ": 0, …}}, 2)`.
    let text = |text: &str| {
        let len = (text.len() as u32).to_le_bytes();
        [b"X", &len[..], text.as_bytes()].concat()
    };
    let chars: Vec<String> = (0..65u8)
        .map(|i| char::from(b' ' + i).to_string())
        .collect();
    let mut pickle = b"\x80\x02}(".to_vec();
    pickle.extend(
        [
            text("vocab_size"),
            b"K\x41".to_vec(),
            text("itos"),
            b"}(".to_vec(),
        ]
        .concat(),
    );
    for (id, char) in chars.iter().enumerate() {
        pickle.extend([b"K", &[id as u8][..], &text(char)].concat());
    }
    pickle.extend([b"u".to_vec(), text("stoi"), b"}(".to_vec()].concat());
    for (id, char) in chars.iter().enumerate() {
        pickle.extend([&text(char)[..], b"K", &[id as u8]].concat());
    }
    pickle.extend(b"uu.");
    fs::write(dir.join("meta.pkl"), pickle).unwrap();
}

#[test]
fn a_nanogpt_checkpoint_is_imported_trained_sampled_and_exported() {
    let scene = Scene::new();
    nanogpt_data(&scene.path().join("data/golden"));
    let checkpoint = golden("nobias").join("ckpt.pt");
    let checkpoint = checkpoint.to_str().unwrap();
    let said = scene.trainer(&["import", checkpoint]).expect_code(0).stdout;
    assert!(said.contains("tokenizer: characters"), "{said}");
    let before = info(&scene, "out");
    assert_eq!(before["step"], 30);
    assert_eq!(before["updates"], 30);
    assert_eq!(before["model"]["vocab_size"], 65);
    assert_eq!(before["verified"], true);
    assert_eq!(before["config_beside_defaults"]["dataset"], "golden");

    // nanoGPT's own words go on with it.
    let words = [
        "--init_from=resume",
        "--out_dir=out",
        "--max_iters=34",
        "--eval_iters=2",
    ];
    let said = scene.trainer(&words).expect_code(0);
    let said = said.stdout + &said.stderr;
    assert!(
        said.contains("Resuming training from out at step 30"),
        "{said}"
    );
    assert_eq!(scene.losses().len(), 4);
    let after = info(&scene, "out");
    assert_eq!(
        (&after["step"], &after["updates"]),
        (&34.into(), &34.into())
    );
    assert_eq!(after["dataset"]["tokenizer"], "char");
    assert_ne!(after["dataset"]["fingerprint"], "");
    let words = ["sample", "--out_dir=out", "--start=A", "--num_samples=1"];
    scene.trainer(&words).expect_code(0);

    scene.trainer(&["export", "out", "hf"]).expect_code(0);
    let exported = info(&scene, "hf");
    assert_eq!(exported["kind"], "Hugging Face model");
    assert_eq!(exported["model"]["gelu"], "erf");
    assert_eq!(exported["tokenizer"]["vocab_size"], 65);

    // And back: the same dataset finetunes it.
    let words = [
        "--init_from=./hf",
        "--out_dir=tuned",
        "--dataset=golden",
        "--block_size=8",
        "--batch_size=2",
        "--gradient_accumulation_steps=1",
        "--max_iters=3",
        "--eval_iters=1",
        "--warmup_iters=0",
    ];
    let said = scene.trainer(&words).expect_code(0);
    let said = said.stdout + &said.stderr;
    assert!(
        said.contains("Initializing from GPT-2 weights: ./hf"),
        "{said}"
    );
    let tuned = info(&scene, "tuned");
    assert_eq!(tuned["model"]["block_size"], 8);
    assert_eq!(tuned["model"]["bias"], true);
    let words = ["--resume", "--out_dir=tuned", "--max_iters=5"];
    scene.trainer(&words).expect_code(0);
    assert_eq!(info(&scene, "tuned")["step"], 5);
}

#[test]
fn a_folder_that_holds_only_nanogpts_checkpoint_is_resumed() {
    let scene = Scene::new();
    nanogpt_data(&scene.path().join("data/golden"));
    fs::create_dir(scene.path().join("out")).unwrap();
    let here = scene.path().join("out/ckpt.pt");
    fs::copy(golden("nobias").join("ckpt.pt"), &here).unwrap();
    assert_eq!(info(&scene, "out")["kind"], "nanoGPT checkpoint");
    let words = ["--resume", "--max_iters=32", "--eval_iters=2"];
    scene.trainer(&words).expect_code(0);
    assert_eq!(info(&scene, "out")["step"], 32);
    assert!(here.exists());
    let again = scene.trainer(&["import", "out/ckpt.pt"]).expect_code(64);
    assert!(again.stderr.contains("--overwrite"), "{}", again.stderr);
    scene
        .trainer(&["import", "out/ckpt.pt", "--overwrite"])
        .expect_code(0);
    assert_eq!(info(&scene, "out")["step"], 30);
}

#[test]
fn weights_that_a_supervised_run_begins_with_are_not_lost_by_auto() {
    let scene = Scene::new();
    nanogpt_data(&scene.path().join("data/golden"));
    let model = golden("hf_gpt2");
    let from = format!("--init_from={}", model.display());
    let words = [
        &from,
        "--resume=auto",
        "--dataset=golden",
        "--block_size=16",
        "--batch_size=2",
        "--gradient_accumulation_steps=1",
        "--max_iters=2",
        "--eval_iters=1",
    ];
    scene.trainer(&words).expect_code(0);
    let first = info(&scene, "out");
    assert_eq!(first["model"]["gelu"], "tanh");
    assert_eq!(first["model"]["vocab_size"], 97);
    let longer = [&words[..], &["--max_iters=4"]].concat();
    scene.trainer(&longer).expect_code(0);
    assert_eq!(info(&scene, "out")["step"], 4);
}

#[test]
fn damage_is_shown_and_said_by_the_exit_code() {
    let scene = Scene::new();
    scene.train(&["--max_iters=2"]).expect_code(0);
    let text = scene.trainer(&["info", "out"]).expect_code(0).stdout;
    assert!(
        text.lines().any(|line| line.starts_with("model.n_layer ")),
        "{text}"
    );
    let folder = scene.run_dir().checkpoint(2);
    let weights = folder.join(RunDir::MODEL);
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, bytes).unwrap();
    let folder = folder.to_str().unwrap();
    let shown = scene.trainer(&["info", folder, "--json"]).expect_code(65);
    let shown: Value = serde_json::from_str(&shown.stdout).unwrap();
    assert_eq!(
        (&shown["verified"], &shown["step"]),
        (&false.into(), &2.into())
    );
    assert!(shown["fault"].as_str().unwrap().contains(RunDir::MODEL));
}

#[test]
fn what_is_no_model_is_refused_in_a_line() {
    let scene = Scene::new();
    fs::write(scene.path().join("ckpt.pt"), "cposix\nsystem\n").unwrap();
    for words in [
        &["import", "ckpt.pt"][..],
        &["info", "ckpt.pt"],
        &["info", "absent"],
        &["export", "absent", "hf"],
        &["--init_from=./absent", "--dataset=quickstart"],
    ] {
        let said = scene.trainer(words).expect_code(65).stderr;
        let lines: Vec<&str> = said
            .lines()
            .filter(|line| !line.contains("hint:"))
            .collect();
        assert_eq!(lines.len(), 1, "{words:?}: {said}");
    }
}

#[test]
fn what_a_run_measured_is_drawn_and_written_for_others() {
    let scene = Scene::new();
    scene
        .train(&["--max_iters=12", "--sample_tokens=5"])
        .expect_code(0);
    let drawn = scene
        .trainer(&["plot", "out", "--out=losses.svg"])
        .expect_code(0);
    assert!(
        drawn.stdout.contains("out: validation: "),
        "{}",
        drawn.stdout
    );
    let svg = fs::read_to_string(scene.path().join("losses.svg")).unwrap();
    assert!(svg.contains("<polyline") && svg.contains("out: training"));
    let words = ["plot", "out", "out", "--out=losses.png", "--log"];
    scene.trainer(&words).expect_code(0);
    let png = fs::read(scene.path().join("losses.png")).unwrap();
    assert!(png.starts_with(b"\x89PNG\r\n\x1a\n") && png.len() > 10_000);
    let other = scene.trainer(&["plot", "out", "--out=losses.pdf"]);
    let other = other.expect_code(64).stderr;
    assert!(other.contains("ends in .svg or .png"), "{other}");
    scene
        .trainer(&["export", "out", "losses.csv", "--format=csv"])
        .expect_code(0);
    let csv = fs::read_to_string(scene.path().join("losses.csv")).unwrap();
    // A heading, iterations 0 to 11, and the evaluation after the last of them.
    assert_eq!(csv.lines().count(), 14, "{csv}");
    assert_eq!(csv.lines().nth(1).unwrap().split(',').count(), 8);
    scene
        .trainer(&["export", "out", "board", "--format=tensorboard"])
        .expect_code(0);
    let board = scene.path().join("board/events.out.tfevents.0.anneal");
    assert!(fs::metadata(board).unwrap().len() > 500);
    scene.trainer(&["plot", "absent"]).expect_code(65);
}
