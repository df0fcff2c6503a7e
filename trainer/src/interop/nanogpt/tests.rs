//! Real checkpoints of nanoGPT's, changed ones, and ones that mean harm.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::PathBuf;

use safetensors::SafeTensors;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use super::*;
use crate::data::Batch;
use crate::engine::{self, MicroStep, Place};
use crate::error::Error;
use crate::schedule;

fn golden(case: &str) -> PathBuf {
    let root = std::env::var("ANNEAL_GOLDEN");
    let here = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/golden");
    Path::new(root.as_deref().unwrap_or(here)).join(case)
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn refusal(path: &Path) -> String {
    match read(path, false).unwrap_err() {
        Error::Data(message) => message,
        other => panic!("expected a data error, got {other:?}"),
    }
}

type Entries = Vec<(String, Vec<u8>)>;

/// The entries of a checkpoint, the pickle among them.
fn entries(case: &str) -> Entries {
    let file = File::open(golden(case).join(FILE)).unwrap();
    let mut archive = ZipArchive::new(file).unwrap();
    let mut entries = Vec::new();
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        entries.push((entry.name().unwrap().into_owned(), bytes));
    }
    entries
}

fn write(dir: &Path, entries: &Entries) -> PathBuf {
    let path = dir.join(FILE);
    let mut archive = ZipWriter::new(File::create(&path).unwrap());
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for (name, bytes) in entries {
        archive.start_file(name.as_str(), options).unwrap();
        archive.write_all(bytes).unwrap();
    }
    archive.finish().unwrap();
    path
}

fn pickle_of(entries: &mut Entries) -> &mut Vec<u8> {
    let found = entries
        .iter_mut()
        .find(|(name, _)| name.ends_with("/data.pkl"));
    &mut found.unwrap().1
}

/// Replaces every text of the pickle that begins with `from` by what `to` makes of it.
fn rename(pickle: &mut Vec<u8>, from: &str, to: impl Fn(&str) -> String) {
    let mut at = 0;
    while at + 5 < pickle.len() {
        let len = u32::from_le_bytes(pickle[at + 1..at + 5].try_into().unwrap()) as usize;
        let end = at + 5 + len;
        if pickle[at] == b'X' && len < 200 && pickle[at + 5..].starts_with(from.as_bytes()) {
            let text = to(std::str::from_utf8(&pickle[at + 5..end]).unwrap());
            let mut spelled = vec![b'X'];
            spelled.extend((text.len() as u32).to_le_bytes());
            spelled.extend(text.as_bytes());
            let after = at + spelled.len();
            pickle.splice(at..end, spelled);
            at = after;
        } else {
            at += 1;
        }
    }
}

fn replace(bytes: &mut Vec<u8>, from: &[u8], to: &[u8]) {
    let at = bytes.windows(from.len()).position(|window| window == from);
    let at = at.expect("what is replaced is there");
    bytes.splice(at..at + from.len(), to.iter().copied());
}

#[test]
fn everything_that_a_checkpoint_holds_is_read() {
    for (case, layers, bias) in [("nobias", 2, false), ("bias", 3, true)] {
        let imported = read(&golden(case).join(FILE), false).unwrap();
        assert_eq!(
            (imported.model.n_layer, imported.model.bias),
            (layers, bias)
        );
        assert_eq!((imported.step, imported.engine.updates), (30, 30));
        let bytes = fs::read(golden(case).join("final.safetensors")).unwrap();
        let expected = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(expected.len(), imported.engine.parameters.len());
        for tensor in &imported.engine.parameters {
            let view = expected.tensor(&tensor.name).unwrap();
            assert_eq!(view.shape(), tensor.shape, "{}", tensor.name);
            assert!(view.data() == bytemuck::cast_slice::<f32, u8>(&tensor.data));
        }
        let has = |key: &str, value: &str| {
            let pair = (key.to_owned(), value.to_owned());
            assert!(imported.config.contains(&pair), "{pair:?}: {imported:?}");
        };
        has("n_layer", &layers.to_string());
        has("dataset", "golden");
        has("weight_decay", "0.1");
        assert_eq!(imported.notes, Vec::<String>::new());
    }
}

/// What PyTorch 2.11 gets when it resumes the golden checkpoints and sees the batches of the
/// first steps again: `bench/interop.py resume shared/golden/CASE`.
const RESUMED: [(&str, [f64; 8]); 2] = [
    (
        "nobias",
        [
            3.8539857864379883,
            3.781222343444824,
            3.7961459159851074,
            3.669853925704956,
            3.8132762908935547,
            3.6414217948913574,
            3.741696834564209,
            3.7282214164733887,
        ],
    ),
    (
        "bias",
        [
            4.172012567520142,
            4.156499624252319,
            4.079597234725952,
            4.119924068450928,
            4.0454060435295105,
            4.091424465179443,
            4.085260987281799,
            4.053400933742523,
        ],
    ),
];

#[test]
fn training_goes_on_with_pytorchs_losses() {
    for (case, expected) in RESUMED {
        let dir = golden(case);
        let imported = read(&dir.join(FILE), false).unwrap();
        let about = json(&dir.join("expected.json"));
        let mut words: Vec<String> = Vec::new();
        for (key, value) in &imported.config {
            words.push(format!("--{key}={value}"));
        }
        // The checkpoint's own settings are all that it takes, but for the size of a step.
        for key in ["batch_size", "gradient_accumulation_steps"] {
            words.push(format!("--{key}={}", about[key]));
        }
        let config = Config::resolve(None, &words).unwrap().config;
        let mut engine = engine::build(&Place::Cpu, &config, &imported.model).unwrap();
        engine.load_state(&imported.engine).unwrap();

        let bytes = fs::read(dir.join("tokens.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let words = file.tensor("tokens").unwrap().data().chunks_exact(4);
        let tokens: Vec<u32> = words
            .map(|word| u32::from_le_bytes(word.try_into().unwrap()))
            .collect();
        let t = config.block_size;
        let mut rows = tokens.chunks_exact(t + 1);
        for (k, expected) in expected.into_iter().enumerate() {
            let step = imported.step + k as u64;
            for micro in 0..config.gradient_accumulation_steps {
                let of_batch: Vec<&[u32]> = rows.by_ref().take(config.batch_size).collect();
                let batch = Batch::of_tokens(
                    of_batch.iter().flat_map(|row| &row[..t]).copied().collect(),
                    of_batch.iter().flat_map(|row| &row[1..]).copied().collect(),
                    config.batch_size,
                    t,
                );
                let at = MicroStep { step, micro };
                engine.forward_backward(&batch, at).unwrap();
            }
            let rate = schedule::learning_rate(&config, step);
            let loss = engine.update(rate).unwrap().loss;
            assert!(
                (loss - expected).abs() < 1e-5 * expected,
                "{case}, step {step}: {loss} instead of {expected}"
            );
        }
    }
}

#[test]
fn compiled_and_distributed_names_are_nanogpts() {
    let dir = tempfile::tempdir().unwrap();
    let plain = read(&golden("bias").join(FILE), false).unwrap();
    for prefix in ["_orig_mod.", "module.", "module._orig_mod."] {
        let mut changed = entries("bias");
        for name in ["transformer.", "lm_head."] {
            rename(pickle_of(&mut changed), name, |text| {
                format!("{prefix}{text}")
            });
        }
        assert_eq!(
            read(&write(dir.path(), &changed), false).unwrap(),
            plain,
            "{prefix}"
        );
    }
}

#[test]
fn halves_are_widened() {
    let dir = tempfile::tempdir().unwrap();
    let plain = read(&golden("nobias").join(FILE), false).unwrap();
    let bf16 = |bytes: &[u8]| half::bf16::from_f32(f32::from_le_bytes(bytes.try_into().unwrap()));
    let f16 = |bytes: &[u8]| half::f16::from_f32(f32::from_le_bytes(bytes.try_into().unwrap()));
    type Round<'a> = &'a dyn Fn(&[u8]) -> [u8; 2];
    let rounds: [(&str, Round<'_>); 2] = [
        ("BFloat16Storage", &|bytes| bf16(bytes).to_le_bytes()),
        ("HalfStorage", &|bytes| f16(bytes).to_le_bytes()),
    ];
    for (class, round) in rounds {
        let mut changed = entries("nobias");
        replace(pickle_of(&mut changed), b"FloatStorage", class.as_bytes());
        for (name, bytes) in &mut changed {
            if name.contains("/data/") {
                *bytes = bytes.chunks_exact(4).flat_map(round).collect();
            }
        }
        let read = read(&write(dir.path(), &changed), false).unwrap();
        assert_eq!(read.engine.updates, 30);
        for (got, exact) in read.engine.parameters.iter().zip(&plain.engine.parameters) {
            for (got, exact) in got.data.iter().zip(&exact.data) {
                assert!((got - exact).abs() <= exact.abs() / 128.0 + 1e-7, "{class}");
            }
        }
    }
}

#[test]
fn weights_alone_begin_afresh() {
    let whole = read(&golden("bias").join(FILE), false).unwrap();
    let alone = read(&golden("bias").join(FILE), true).unwrap();
    assert_eq!(alone.engine.parameters, whole.engine.parameters);
    assert_eq!(
        (alone.step, alone.engine.updates, alone.val_loss),
        (0, 0, None)
    );
    assert!(alone.engine.exp_avg.is_empty());
}

#[test]
fn what_would_run_code_is_named_and_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut changed = entries("nobias");
    let marker = dir.path().join("executed");
    let command = format!("touch {}", marker.display());
    let mut call = b"\x80\x02cposix\nsystem\nX".to_vec();
    call.extend((command.len() as u32).to_le_bytes());
    call.extend(command.as_bytes());
    call.extend(b"\x85R.");
    *pickle_of(&mut changed) = call;
    let message = refusal(&write(dir.path(), &changed));
    assert!(message.contains("\"posix.system\""), "{message}");
    assert_eq!(message.lines().count(), 1);
    assert!(!marker.exists());
}

#[test]
fn what_is_cut_short_or_contradicts_itself_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE);
    let whole = fs::read(golden("nobias").join(FILE)).unwrap();
    for len in [0, 1, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..len]).unwrap();
        let message = refusal(&path);
        assert!(
            message.contains("torch.save") && message.lines().count() <= 2,
            "{message}"
        );
    }
    let changed = |change: &dyn Fn(&mut Entries)| {
        let mut changed = entries("nobias");
        change(&mut changed);
        refusal(&write(dir.path(), &changed))
    };
    let in_pickle = |from: &'static [u8], to: &'static [u8]| {
        changed(&move |entries| replace(pickle_of(entries), from, to))
    };
    // The shape of the token embedding, (65, 32), and the rows of a model that does not end.
    for (message, expected) in [
        (
            in_pickle(b"K\x00K\x41K\x20\x86", b"K\x00K\x42K\x20\x86"),
            "expected 2112 numbers",
        ),
        (
            in_pickle(
                b"K\x00K\x41K\x20\x86",
                b"K\x00J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86",
            ),
            "row-major",
        ),
        (
            in_pickle(b"X\x07\x00\x00\x00n_layer", b"X\x07\x00\x00\x00n_loyer"),
            "n_layer",
        ),
        (
            in_pickle(b"X\x05\x00\x00\x00model", b"X\x05\x00\x00\x00modal"),
            "\"model\"",
        ),
        (
            in_pickle(
                b"X\x16\x00\x00\x00transformer.wpe.weight",
                b"X\x01\x00\x00\x00x",
            ),
            "transformer.wpe.weight is missing",
        ),
        (
            in_pickle(b"X\x07\x00\x00\x00exp_avg", b"X\x07\x00\x00\x00exp_avh"),
            "--weights_only",
        ),
        (
            changed(&|entries| entries.retain(|(name, _)| !name.ends_with("/data/3"))),
            "data/3",
        ),
        (
            changed(&|entries| entries.retain(|(name, _)| !name.ends_with("/data.pkl"))),
            "expected data.pkl",
        ),
    ] {
        assert!(message.contains(expected), "{expected:?} in {message}");
        assert!(
            message.starts_with(&path.display().to_string()),
            "{message}"
        );
    }
}
