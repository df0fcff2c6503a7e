//! The golden cases: nanoGPT's own numbers, computed by PyTorch in float32, for every engine.
//!
//! Logits and gradients are compared relative to the largest element of their tensor.

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use super::*;
use crate::schedule;

/// Which engine, and how it recomputes.
#[derive(Clone, Copy)]
enum Kind {
    Candle,
    Fused(Recompute),
    Cuda(Recompute),
}

/// An engine that shows all of its logits.
trait Logits: Probe {
    /// `(B, T, V)` flattened.
    fn all_logits(&mut self, batch: &Batch) -> Vec<f32> {
        // Token by token; gradients show that all at once is right as well.
        let mut logits = Vec::new();
        for row in batch.inputs.chunks(batch.block_size) {
            for end in 1..=row.len() {
                logits.extend(self.logits(&row[..end]).unwrap());
            }
        }
        logits
    }
}

impl Logits for CandleEngine {
    fn all_logits(&mut self, batch: &Batch) -> Vec<f32> {
        Self::all_logits(self, batch).unwrap()
    }
}

impl Logits for CpuEngine {}

impl Logits for CudaEngine<f32> {}

struct Golden {
    dir: PathBuf,
    expected: Value,
    model: ModelConfig,
    config: Config,
    /// [step, micro-step, batch, block_size + 1]
    tokens: Vec<u32>,
}

impl Golden {
    fn open(case: &str) -> Self {
        // Another folder where the tests run on another machine than they were built on.
        let root = std::env::var("ANNEAL_GOLDEN");
        let here = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/golden");
        let dir = Path::new(root.as_deref().unwrap_or(here)).join(case);
        let text = fs::read_to_string(dir.join("expected.json"))
            .unwrap_or_else(|e| panic!("{}: {e}: the tests need the golden cases", dir.display()));
        let expected: Value = serde_json::from_str(&text).unwrap();
        let size = |key: &str| expected["model"][key].as_u64().unwrap() as usize;
        let model = ModelConfig {
            n_layer: size("n_layer"),
            n_head: size("n_head"),
            n_embd: size("n_embd"),
            block_size: size("block_size"),
            vocab_size: size("vocab_size"),
            bias: expected["model"]["bias"].as_bool().unwrap(),
            gelu: crate::model::Gelu::Erf,
        };
        let mut words = Vec::new();
        for (key, value) in expected["optimizer"].as_object().unwrap() {
            words.push(format!("--{key}={value}"));
        }
        for key in ["batch_size", "gradient_accumulation_steps"] {
            words.push(format!("--{key}={}", expected[key]));
        }
        for key in ["n_layer", "n_head", "n_embd", "block_size"] {
            words.push(format!("--{key}={}", expected["model"][key]));
        }
        let config = Config::resolve(None, &words).unwrap().config;
        let bytes = fs::read(dir.join("tokens.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let view = file.tensor("tokens").unwrap();
        assert_eq!(view.dtype(), Dtype::I32);
        let words = view.data().chunks_exact(4);
        let tokens = words
            .map(|b| u32::from_le_bytes(b.try_into().unwrap()))
            .collect();
        Self {
            dir,
            expected,
            model,
            config,
            tokens,
        }
    }

    fn batch(&self, step: usize, micro: usize) -> Batch {
        let (b, width) = (self.config.batch_size, self.config.block_size + 1);
        let micro_steps = self.config.gradient_accumulation_steps as usize;
        let start = (step * micro_steps + micro) * b * width;
        let rows = self.tokens[start..start + b * width].chunks(width);
        let inputs = rows.clone().flat_map(|row| &row[..width - 1]);
        let targets = rows.flat_map(|row| &row[1..]);
        let (inputs, targets) = (inputs.copied().collect(), targets.copied().collect());
        Batch::of_tokens(inputs, targets, b, width - 1)
    }

    fn tensors(&self, file: &str) -> Vec<NamedTensor> {
        let bytes = fs::read(self.dir.join(file)).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let read = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
            assert_eq!(view.dtype(), Dtype::F32);
            let words = view.data().chunks_exact(4);
            NamedTensor {
                name,
                shape: view.shape().to_vec(),
                data: words
                    .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
                    .collect(),
            }
        };
        file.tensors().into_iter().map(read).collect()
    }

    /// An engine with the golden initial parameters.
    fn engine(&self, kind: Kind) -> Box<dyn Logits> {
        let hyper = Hyperparameters::of(&self.config);
        let shape = |recompute| Shape {
            batch_size: self.config.batch_size,
            block_size: self.config.block_size,
            recompute,
        };
        let mut engine: Box<dyn Logits> = match kind {
            Kind::Candle => Box::new(CandleEngine::new(&self.model, hyper).unwrap()),
            Kind::Fused(recompute) => {
                Box::new(CpuEngine::new(&self.model, hyper, shape(recompute)))
            }
            Kind::Cuda(recompute) => {
                let (device, shape) = (super::device(Order::Random), shape(recompute));
                let engine = CudaEngine::<f32>::new(
                    &device,
                    &self.model,
                    hyper,
                    shape,
                    Launch::Graphs,
                    &Selection::off(),
                );
                Box::new(engine.unwrap())
            }
        };
        let parameters = self.tensors("init.safetensors");
        let zeros = |tensor: &NamedTensor| NamedTensor {
            data: vec![0.0; tensor.data.len()],
            ..tensor.clone()
        };
        let moments: Vec<NamedTensor> = parameters.iter().map(zeros).collect();
        let state = EngineState {
            parameters,
            exp_avg: moments.clone(),
            exp_avg_sq: moments,
            updates: 0,
            loss_scale: None,
        };
        engine.load_state(&state).unwrap();
        engine
    }

    fn accumulate(&self, engine: &mut dyn Logits, step: usize) {
        for micro in 0..self.config.gradient_accumulation_steps {
            let at = MicroStep {
                step: step as u64,
                micro,
            };
            engine
                .forward_backward(&self.batch(step, micro as usize), at)
                .unwrap();
        }
    }

    fn train(&self, engine: &mut dyn Logits, mut each: impl FnMut(usize, f64, f64)) {
        for step in 0..self.expected["steps"].as_array().unwrap().len() {
            self.accumulate(engine, step);
            let lr = schedule::learning_rate(&self.config, step as u64);
            let stats = engine.update(lr).unwrap();
            each(step, stats.loss, stats.grad_norm);
        }
    }
}

/// Largest difference relative to the largest element of `expected`.
fn relative_error(got: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(got.len(), expected.len());
    let largest = expected.iter().fold(0f32, |max, x| max.max(x.abs()));
    let difference = got
        .iter()
        .zip(expected)
        .fold(0f32, |max, (a, b)| max.max((a - b).abs()));
    assert!(got.iter().all(|x| x.is_finite()) && largest > 0.0);
    difference / largest
}

fn by_name<'a>(tensors: &'a [NamedTensor], name: &str) -> &'a NamedTensor {
    let found = tensors.iter().find(|tensor| tensor.name == name);
    found.unwrap_or_else(|| panic!("no tensor {name}"))
}

fn check_parameters(golden: &Golden) {
    let parameters = golden.model.parameters();
    let decayed: Vec<&str> = parameters
        .iter()
        .filter(|p| p.decays())
        .map(|p| p.name.as_str())
        .collect();
    let mut expected: Vec<&str> = golden.expected["decayed"]
        .as_array()
        .unwrap()
        .iter()
        .map(|name| name.as_str().unwrap())
        .collect();
    expected.retain(|name| *name != "lm_head.weight");
    let sorted = |mut list: Vec<&str>| {
        list.sort_unstable();
        list.join(" ")
    };
    assert_eq!(sorted(decayed), sorted(expected));
    assert_eq!(
        golden.model.parameter_count(),
        golden.expected["parameters"].as_u64().unwrap()
    );
    let initial = golden.tensors("init.safetensors");
    assert_eq!(initial.len(), parameters.len());
    for Parameter { name, shape, .. } in &parameters {
        assert_eq!(&by_name(&initial, name).shape, shape, "{name}");
    }
}

fn check_logits_and_gradients(golden: &Golden, kind: Kind) {
    let mut engine = golden.engine(kind);
    let logits = engine.all_logits(&golden.batch(0, 0));
    let expected = golden.tensors("logits0.safetensors");
    let error = relative_error(&logits, &by_name(&expected, "logits").data);
    assert!(error < 1e-5, "logits: {error}");

    golden.accumulate(engine.as_mut(), 0);
    let gradients = engine.gradients();
    let expected = golden.tensors("grads0.safetensors");
    assert_eq!(gradients.len(), expected.len());
    for gradient in &gradients {
        let error = relative_error(&gradient.data, &by_name(&expected, &gradient.name).data);
        assert!(error < 1e-5, "gradient of {}: {error}", gradient.name);
    }
}

fn check_training(golden: &Golden, kind: Kind) {
    let mut engine = golden.engine(kind);
    golden.train(engine.as_mut(), |step, loss, grad_norm| {
        let expected = &golden.expected["steps"][step];
        let lr = schedule::learning_rate(&golden.config, step as u64);
        assert!(
            (lr - expected["lr"].as_f64().unwrap()).abs() < 1e-12,
            "lr of step {step}"
        );
        let difference = (loss - expected["loss"].as_f64().unwrap()).abs();
        assert!(
            difference < 1e-5 * loss,
            "loss of step {step}: off by {difference}"
        );
        let norm = expected["grad_norm"].as_f64().unwrap();
        assert!(
            (grad_norm - norm).abs() < 1e-4 * norm,
            "norm of step {step}: {grad_norm} {norm}"
        );
    });
    let state = engine.state().unwrap();
    let expected = golden.tensors("final.safetensors");
    for tensor in &state.parameters {
        let other = &by_name(&expected, &tensor.name).data;
        let pairs = tensor.data.iter().zip(other);
        let worst = pairs.fold(0f32, |max, (a, b)| max.max((a - b).abs()));
        assert!(
            worst < 1e-4,
            "{} after training: off by {worst}",
            tensor.name
        );
    }
}

fn check_greedy(golden: &Golden, kind: Kind) {
    let mut engine = golden.engine(kind);
    golden.train(engine.as_mut(), |_, _, _| ());
    let mut tokens = golden.tokens[..4].to_vec();
    let expected: Vec<u64> = golden.expected["greedy"]
        .as_array()
        .unwrap()
        .iter()
        .map(|id| id.as_u64().unwrap())
        .collect();
    while tokens.len() < expected.len() {
        let start = tokens.len().saturating_sub(golden.model.block_size);
        let logits = engine.logits(&tokens[start..]).unwrap();
        let best = (0..logits.len())
            .max_by(|&a, &b| logits[a].total_cmp(&logits[b]))
            .unwrap();
        tokens.push(best as u32);
    }
    let got: Vec<u64> = tokens.iter().map(|&id| u64::from(id)).collect();
    assert_eq!(got, expected);
}

macro_rules! golden {
    ($($case:ident $engine:ident $kind:expr;)*) => {$(
        mod $engine {
            use super::*;

            #[test]
            fn names_shapes_and_decay_are_nanogpts() {
                check_parameters(&Golden::open(stringify!($case)));
            }

            #[test]
            fn logits_and_gradients_are_pytorchs() {
                check_logits_and_gradients(&Golden::open(stringify!($case)), $kind);
            }

            #[test]
            fn thirty_steps_are_pytorchs() {
                check_training(&Golden::open(stringify!($case)), $kind);
            }

            #[test]
            fn greedy_decoding_is_nanogpts() {
                check_greedy(&Golden::open(stringify!($case)), $kind);
            }
        }
    )*};
}

golden! {
    nobias nobias_candle Kind::Candle;
    bias bias_candle Kind::Candle;
    nobias nobias_fused Kind::Fused(Recompute::None);
    bias bias_fused Kind::Fused(Recompute::None);
    nobias nobias_fused_recompute_gelu Kind::Fused(Recompute::Gelu);
    bias bias_fused_recompute_gelu Kind::Fused(Recompute::Gelu);
    nobias nobias_fused_recompute_block Kind::Fused(Recompute::Block);
    bias bias_fused_recompute_block Kind::Fused(Recompute::Block);
    nobias nobias_cuda Kind::Cuda(Recompute::None);
    bias bias_cuda Kind::Cuda(Recompute::Gelu);
}
