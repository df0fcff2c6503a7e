//! Tests of `checkpoint`: what is shared, the round trip, the background and what is compatible.

mod damage;
mod disk;
pub(super) mod kill;
mod retain;

use std::fs;
use std::path::Path;
use std::process::Command;

use expect_test::expect;
use proptest::prelude::*;
use protocol::{ExitCode, RunDir};
use safetensors::SafeTensors;

use super::*;
use crate::engine::{LossScale, NamedTensor};

/// Parameters of a tiny model, in another order than that of their names, with values that follow
/// from `seed`; everything else is set too.
fn snapshot(step: u64, seed: u32) -> Snapshot {
    let mut next = seed;
    let mut tensor = |name: &str, shape: &[usize]| {
        let float = |_| {
            next = next.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f32::from_bits(next & 0xbfff_ffff) // never NaN or infinite
        };
        NamedTensor {
            name: name.to_owned(),
            shape: shape.to_vec(),
            data: (0..shape.iter().product()).map(float).collect(),
        }
    };
    let mut group = || {
        vec![
            tensor("transformer.wte.weight", &[7, 4]),
            tensor("transformer.h.0.ln_1.weight", &[4]),
            tensor("lm_head.bias", &[7]),
        ]
    };
    Snapshot {
        state: TrainState {
            step,
            best_val_loss: Some(0.1 + f64::from(seed)),
            seed: 1337,
            tokens: u64::MAX,
            data_offset: 3,
            rollbacks: 1,
            loss_mean: Some(1.0 / 3.0),
            model: ModelConfig {
                n_layer: 1,
                n_head: 2,
                n_embd: 4,
                block_size: 8,
                vocab_size: 7,
                bias: false,
                gelu: crate::model::Gelu::Erf,
            },
            dataset: DatasetIdentity {
                name: "shakespeare_char".to_owned(),
                tokenizer: "char".to_owned(),
                vocab_size: 7,
                fingerprint: "86c4".to_owned(),
            },
            trainer_version: "0.0.0".to_owned(),
            config: "# \"quoted\", ünïcode\nn_layer = 1\n".to_owned(),
        },
        engine: EngineState {
            parameters: group(),
            exp_avg: group(),
            exp_avg_sq: group(),
            updates: step + 1,
            loss_scale: None,
        },
        tokenizer: Some((RunDir::VOCAB.to_owned(), vec![0, 1, 255])),
        config_hash: "c0ffee".to_owned(),
        val_loss: None,
    }
}

/// A run in a folder of its own, which goes with the first value.
fn run() -> (tempfile::TempDir, RunDir) {
    let folder = tempfile::tempdir().unwrap();
    let run = RunDir::new(folder.path().join("run"));
    (folder, run)
}

/// Hands a snapshot to the background.
fn hand_over(checkpoints: &mut Checkpoints, snapshot: Snapshot) {
    let step = snapshot.state.step;
    checkpoints.save(step, || Ok(snapshot)).unwrap();
}

/// Saves and insists that it worked.
fn save(run: &RunDir, keep_last: u64, snapshot: &Snapshot) {
    let mut checkpoints = Checkpoints::open(run.clone(), keep_last).unwrap();
    hand_over(&mut checkpoints, snapshot.clone());
    let outcomes = checkpoints.finish();
    assert!(
        matches!(outcomes.as_slice(), [SaveOutcome::Written { .. }]),
        "{outcomes:?}"
    );
}

fn newest(run: &RunDir) -> Option<Loaded> {
    load_newest(run, &mut |warning| panic!("{warning}")).unwrap()
}

/// Every bit of a snapshot, in an order that the way through a checkpoint does not change.
fn bits(engine: &EngineState) -> Vec<(String, Vec<usize>, Vec<u32>)> {
    let mut all = Vec::new();
    for (kind, group) in [
        ("w", &engine.parameters),
        ("m", &engine.exp_avg),
        ("v", &engine.exp_avg_sq),
    ] {
        for tensor in group {
            let bits = tensor.data.iter().map(|value| value.to_bits()).collect();
            all.push((
                format!("{kind} {}", tensor.name),
                tensor.shape.clone(),
                bits,
            ));
        }
    }
    all.sort();
    all
}

fn is_same(loaded: &Loaded, snapshot: &Snapshot) -> bool {
    bits(&loaded.engine) == bits(&snapshot.engine)
        && loaded.engine.updates == snapshot.engine.updates
        && loaded.engine.loss_scale == snapshot.engine.loss_scale
        && loaded.state == snapshot.state
        && loaded.tokenizer == snapshot.tokenizer
        && loaded.manifest.config_hash == snapshot.config_hash
        && loaded.manifest.val_loss == snapshot.val_loss
        && loaded.manifest.step == snapshot.state.step
}

/// The names in `checkpoints/`, sorted.
fn names(run: &RunDir) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(run.checkpoints())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// This test binary again, for one test that works in `folder`.
fn child(test: &str, folder: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", &format!("checkpoint::tests::{test}")])
        .args(["--nocapture", "--test-threads=1"])
        .env("ANNEAL_TEST_FOLDER", folder);
    command
}

/// Where [`child`] is to work; `None` in the process that runs all tests.
fn child_folder() -> Option<std::path::PathBuf> {
    std::env::var_os("ANNEAL_TEST_FOLDER").map(Into::into)
}

fn float() -> impl Strategy<Value = f32> {
    let special = prop::sample::select(vec![
        0.0,
        -0.0,
        f32::MIN,
        f32::MAX,
        f32::MIN_POSITIVE,
        f32::from_bits(1),
        f32::INFINITY,
        f32::NEG_INFINITY,
    ]);
    let any = any::<u32>().prop_map(f32::from_bits);
    prop_oneof![1 => special, 4 => any.prop_filter("NaN", |value| !value.is_nan())]
}

fn group(shapes: Vec<Vec<usize>>) -> impl Strategy<Value = Vec<NamedTensor>> {
    let tensor = |(index, shape): (usize, Vec<usize>)| {
        let size: usize = shape.iter().product();
        prop::collection::vec(float(), size).prop_map(move |data| NamedTensor {
            name: format!("transformer.h.{index}.weight"),
            shape: shape.clone(),
            data,
        })
    };
    let tensors: Vec<_> = shapes.into_iter().enumerate().map(tensor).collect();
    tensors
}

fn engine() -> impl Strategy<Value = EngineState> {
    let shapes = prop::collection::vec(prop::collection::vec(0_usize..4, 0..4), 0..13);
    shapes.prop_flat_map(|shapes| {
        let groups = (group(shapes.clone()), group(shapes.clone()), group(shapes));
        let scale = prop::option::of((1f32..1e9, any::<u32>()));
        (groups, any::<u64>(), scale).prop_map(
            |((parameters, exp_avg, exp_avg_sq), updates, scale)| EngineState {
                parameters,
                exp_avg,
                exp_avg_sq,
                updates,
                loss_scale: scale.map(|(scale, good_steps)| LossScale { scale, good_steps }),
            },
        )
    })
}

fn finite() -> impl Strategy<Value = Option<f64>> {
    prop::option::of(
        any::<u64>()
            .prop_map(f64::from_bits)
            .prop_filter("finite", |value| value.is_finite()),
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_bit_comes_back(
        engine in engine(),
        losses in (finite(), finite(), finite()),
        text in any::<String>(),
        tokenizer in prop::option::of(prop::collection::vec(any::<u8>(), 0..2000)),
        step in any::<u64>(),
    ) {
        let (_folder, run) = run();
        let mut snapshot = snapshot(step, 1);
        snapshot.engine = engine;
        (
            snapshot.val_loss,
            snapshot.state.best_val_loss,
            snapshot.state.loss_mean,
        ) = losses;
        snapshot.state.config = text;
        snapshot.tokenizer = tokenizer.map(|bytes| (RunDir::TOKENIZER.to_owned(), bytes));
        save(&run, 1, &snapshot);
        let loaded = newest(&run).unwrap();
        prop_assert!(is_same(&loaded, &snapshot), "{loaded:?}\n{snapshot:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn f64_survive_json_exactly(value in finite()) {
        let mut state = snapshot(1, 1).state;
        state.loss_mean = value;
        let text = serde_json::to_string(&state).unwrap();
        let back: TrainState = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(back.loss_mean.map(f64::to_bits), value.map(f64::to_bits));
    }
}

#[test]
fn equal_snapshots_make_equal_files() {
    let mut contents = Vec::new();
    for _ in 0..2 {
        let (_folder, run) = run();
        save(&run, 1, &snapshot(5, 1));
        contents.push(
            [
                RunDir::MODEL,
                RunDir::OPTIMIZER,
                RunDir::STATE,
                RunDir::VOCAB,
            ]
            .map(|name| fs::read(run.checkpoint(5).join(name)).unwrap()),
        );
    }
    assert_eq!(contents[0], contents[1]);
}

#[test]
fn other_programs_find_names_and_metadata_in_the_files() {
    let (_folder, run) = run();
    save(&run, 1, &snapshot(5, 1));
    let bytes = fs::read(run.checkpoint(5).join(RunDir::MODEL)).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = header.metadata().as_ref().unwrap();
    assert_eq!(metadata["format"], "pt");
    assert_eq!(metadata["step"], "5");
    let mut tensors: Vec<_> = header.tensors().into_iter().collect();
    tensors.sort_by_key(|(_, about)| about.data_offsets);
    let names: Vec<_> = tensors.iter().map(|(name, _)| name.as_str()).collect();
    let sorted = [
        "lm_head.bias",
        "transformer.h.0.ln_1.weight",
        "transformer.wte.weight",
    ];
    assert_eq!(names, sorted);
    let optimizer = fs::read(run.checkpoint(5).join(RunDir::OPTIMIZER)).unwrap();
    let optimizer = SafeTensors::deserialize(&optimizer).unwrap();
    assert_eq!(optimizer.len(), 6);
    assert!(optimizer.tensor("exp_avg_sq.lm_head.bias").is_ok());
}

#[test]
fn sampling_reads_no_optimizer() {
    let (_folder, run) = run();
    save(&run, 1, &snapshot(5, 1));
    fs::remove_file(run.checkpoint(5).join(RunDir::OPTIMIZER)).unwrap();
    let loaded = load_model_only(&run.checkpoint(5)).unwrap();
    let mut expected = snapshot(5, 1).engine.parameters;
    expected.sort_by(|a, b| a.name.cmp(&b.name));
    assert_eq!(loaded.engine.parameters, expected);
    assert!(loaded.engine.exp_avg.is_empty());
    assert_eq!(loaded.tokenizer, snapshot(5, 1).tokenizer);
    assert!(load(&run.checkpoint(5)).is_err());
}

#[test]
fn saves_are_reported_in_order_and_once() {
    let (_folder, run) = run();
    let mut checkpoints = Checkpoints::open(run.clone(), 5).unwrap();
    assert_eq!(checkpoints.poll(), []);
    for step in [1, 2, 3] {
        hand_over(&mut checkpoints, snapshot(step, 1));
    }
    let mut steps = Vec::new();
    for outcome in checkpoints.finish() {
        let SaveOutcome::Written {
            step, path, bytes, ..
        } = outcome
        else {
            panic!("{outcome:?}");
        };
        let manifest = load(&run.root().join(path)).unwrap().manifest;
        assert_eq!((manifest.step, manifest.bytes()), (step, bytes));
        steps.push(step);
    }
    assert_eq!(steps, [1, 2, 3]);
    assert_eq!(checkpoints.finish(), []);
}

#[test]
fn dropping_waits_for_the_save_in_flight() {
    let (_folder, run) = run();
    let mut checkpoints = Checkpoints::open(run.clone(), 1).unwrap();
    hand_over(&mut checkpoints, snapshot(9, 1));
    drop(checkpoints);
    assert!(is_same(&newest(&run).unwrap(), &snapshot(9, 1)));
    assert_eq!(names(&run), ["step_0000000009"]);
}

#[test]
fn a_panic_of_the_writer_is_a_failed_save_and_the_next_one_works() {
    let (_folder, run) = run();
    let mut checkpoints = Checkpoints::open(run.clone(), 1).unwrap();
    let mut wrong = snapshot(1, 1);
    wrong.engine.parameters[0].data.pop();
    hand_over(&mut checkpoints, wrong);
    let outcomes = checkpoints.finish();
    let [SaveOutcome::Failed { step: 1, error }] = outcomes.as_slice() else {
        panic!("{outcomes:?}");
    };
    assert!(error.contains("panicked: "), "{error}");
    assert!(error.contains("transformer.wte.weight"), "{error}");
    hand_over(&mut checkpoints, snapshot(2, 1));
    assert!(matches!(
        checkpoints.finish().as_slice(),
        [SaveOutcome::Written { step: 2, .. }]
    ));
}

#[test]
fn a_run_that_differs_is_refused_with_every_difference() {
    let saved = snapshot(500, 1).state;
    assert!(compatible(&saved, &saved.model, &saved.dataset).is_ok());
    let model = ModelConfig {
        n_layer: 6,
        n_head: 4,
        n_embd: 8,
        block_size: 16,
        vocab_size: 65,
        bias: true,
        gelu: crate::model::Gelu::Erf,
    };
    let dataset = DatasetIdentity {
        name: "shakespeare".to_owned(),
        tokenizer: "gpt2".to_owned(),
        vocab_size: 50257,
        fingerprint: "a1b2".to_owned(),
    };
    let error = compatible(&saved, &model, &dataset).unwrap_err();
    assert_eq!(error.exit_code(), Some(ExitCode::Config));
    expect![[r#"
        n_layer: checkpoint has 1, config says 6
        n_head: checkpoint has 2, config says 4
        n_embd: checkpoint has 4, config says 8
        block_size: checkpoint has 8, config says 16
        vocab_size: checkpoint has 7, config says 65
        bias: checkpoint has false, config says true
        dataset: checkpoint has shakespeare_char, config says shakespeare
        tokenizer: checkpoint has char, config says gpt2
        dataset's vocabulary: checkpoint has 7, config says 50257
        dataset's fingerprint: checkpoint has 86c4, config says a1b2
        hint: set these back to go on from step 500, or name another --out_dir to start afresh"#]]
    .assert_eq(&error.to_string());
}
