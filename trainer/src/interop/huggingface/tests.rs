//! A GPT-2 of transformers': what it computes, and what it becomes when it goes back.

use std::path::PathBuf;

use super::*;
use crate::config::Config;
use crate::data::Batch;
use crate::engine::{self, Engine, Place};
use crate::interop::export;

fn golden() -> PathBuf {
    let root = std::env::var("ANNEAL_GOLDEN");
    let here = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/golden");
    Path::new(root.as_deref().unwrap_or(here)).join("hf_gpt2")
}

fn engine(imported: &Imported, kind: &str) -> Box<dyn Engine> {
    let mut words = vec![format!("--engine={kind}"), "--batch_size=2".to_owned()];
    words.extend(
        imported
            .config
            .iter()
            .map(|(key, value)| format!("--{key}={value}")),
    );
    let config = Config::resolve(None, &words).unwrap().config;
    let mut engine = engine::build(&Place::Cpu, &config, &imported.model).unwrap();
    engine.load_parameters(&imported.engine.parameters).unwrap();
    engine
}

#[test]
fn logits_and_loss_are_those_of_transformers() {
    let text = fs::read_to_string(golden().join("expected.json")).unwrap();
    let expected: Value = serde_json::from_str(&text).unwrap();
    let rows: Vec<Vec<u32>> = serde_json::from_value(expected["tokens"].clone()).unwrap();
    let logits: Vec<Vec<f32>> = serde_json::from_value(expected["last_logits"].clone()).unwrap();
    let imported = read(&golden()).unwrap();
    assert_eq!(imported.model.gelu, Gelu::Tanh);
    for kind in ["candle", "fused"] {
        let mut engine = engine(&imported, kind);
        for (row, logits) in rows.iter().zip(&logits) {
            let got = engine.logits(row).unwrap();
            assert_eq!(got.len(), logits.len());
            for (got, expected) in got.iter().zip(logits) {
                assert!((got - expected).abs() < 1e-5, "{kind}: {got} {expected}");
            }
        }
        // All but the last position have a target.
        let t = rows[0].len() - 1;
        let batch = Batch::of_tokens(
            rows.iter().flat_map(|row| &row[..t]).copied().collect(),
            rows.iter().flat_map(|row| &row[1..]).copied().collect(),
            2,
            t,
        );
        let mut cropped = imported.clone();
        cropped.crop(t);
        let config = Config::resolve(
            None,
            &[
                format!("--engine={kind}"),
                "--batch_size=2".to_owned(),
                format!("--block_size={t}"),
            ],
        )
        .unwrap()
        .config;
        let mut engine = engine::build(&Place::Cpu, &config, &cropped.model).unwrap();
        engine.load_parameters(&cropped.engine.parameters).unwrap();
        let loss = engine.loss(&batch).unwrap();
        let expected = expected["loss"].as_f64().unwrap();
        assert!((loss - expected).abs() < 1e-5, "{kind}: {loss} {expected}");
    }
}

#[test]
fn what_goes_back_is_what_came() {
    let dir = tempfile::tempdir().unwrap();
    let imported = read(&golden()).unwrap();
    let write = |model: &ModelConfig, parameters: &[NamedTensor]| {
        export::hugging_face(model, parameters, None, dir.path()).unwrap();
    };
    write(&imported.model, &imported.engine.parameters);
    assert_eq!(read(dir.path()).unwrap(), imported);
    let theirs = fs::read(golden().join(WEIGHTS)).unwrap();
    let ours = fs::read(dir.path().join(WEIGHTS)).unwrap();
    let (theirs, ours) = (
        SafeTensors::deserialize(&theirs).unwrap(),
        SafeTensors::deserialize(&ours).unwrap(),
    );
    for name in theirs.names() {
        if name != HEAD {
            assert_eq!(
                theirs.tensor(name).unwrap(),
                ours.tensor(name).unwrap(),
                "{name}"
            );
        }
    }

    // nanoGPT's form, and no biases: they come back as zeros.
    let bare = ModelConfig {
        bias: false,
        gelu: Gelu::Erf,
        ..imported.model.clone()
    };
    write(&bare, &bare.initialise(7));
    let back = read(dir.path()).unwrap();
    assert!(back.model.bias && back.model.gelu == Gelu::Erf);
    for tensor in &back.engine.parameters {
        if tensor.name.ends_with(".bias") {
            assert!(tensor.data.iter().all(|x| *x == 0.0), "{}", tensor.name);
        }
    }
    let tokens = [1, 5, 2, 96];
    let with = engine(&back, "fused").logits(&tokens).unwrap();
    let without = Imported {
        config: bare
            .settings()
            .map(|(key, value)| (key.to_owned(), value))
            .to_vec(),
        engine: weights(bare.initialise(7)),
        model: bare,
        ..back
    };
    assert_eq!(engine(&without, "fused").logits(&tokens).unwrap(), with);
}

#[test]
fn other_models_and_damage_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let text = fs::read_to_string(golden().join(CONFIG)).unwrap();
    let weights = fs::read(golden().join(WEIGHTS)).unwrap();
    let refusal = |config: &str, weights: &[u8]| {
        fs::write(path.join(CONFIG), config).unwrap();
        fs::write(path.join(WEIGHTS), weights).unwrap();
        match read(path).unwrap_err() {
            Error::Data(message) => message,
            other => panic!("expected a data error, got {other:?}"),
        }
    };
    for (from, to, expected) in [
        ("\"gpt2\"", "\"llama\"", "model_type: expected \"gpt2\""),
        ("\"gelu_new\"", "\"relu\"", "activation_function"),
        ("\"n_inner\": null", "\"n_inner\": 100", "n_inner"),
        (
            "\"n_layer\": 2",
            "\"n_layer\": 3",
            "transformer.h.2.ln_1.weight is missing",
        ),
        ("\"n_layer\": 2", "\"n_layer\": 1", "is none of GPT-2's"),
        (
            "\"vocab_size\": 97",
            "\"vocab_size\": 98",
            "expected shape [98, 48], got [97, 48]",
        ),
        (
            "\"vocab_size\": 97",
            "\"vocab_size\": -1",
            "vocab_size: expected a whole number",
        ),
        (
            "\"tie_word_embeddings\": true",
            "\"tie_word_embeddings\": false",
            "tie_word",
        ),
        ("1e-05", "1e-06", "layer_norm_epsilon"),
    ] {
        assert!(text.contains(from), "{from}");
        let message = refusal(&text.replace(from, to), &weights);
        assert!(message.contains(expected), "{expected:?} in {message}");
    }
    for len in [0, 4, 100, weights.len() - 1] {
        assert!(refusal(&text, &weights[..len]).contains(WEIGHTS));
    }
    let mut lying = weights.clone();
    lying[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(refusal(&text, &lying).contains(WEIGHTS));
}
