//! `trainer bench`: times whole steps on random tokens, for a comparison with a peer.

use std::time::Instant;

use protocol::ExitCode;
use serde_json::json;

use super::{Words, configure, print};
use crate::config::Config;
use crate::data::Batch;
use crate::engine::{self, Engine, MicroStep};
use crate::error::{Error, Result};
use crate::machine;
use crate::model::ModelConfig;
use crate::philox::{Philox, Stream};

/// GPT-2's vocabulary, padded as nanoGPT does.
const DEFAULT_VOCAB_SIZE: usize = 50304;

pub(super) fn run(mut words: Words) -> Result<ExitCode> {
    let source = words.take("config")?;
    let steps = words.take_number("steps", 20)?.max(1);
    let warmup_steps = words.take_number("warmup_steps", 3)?;
    let mode = words.take("mode")?.unwrap_or_else(|| "train".to_owned());
    if mode != "train" && mode != "eval" {
        return Err(Error::config(format!(
            "--mode: expected train or eval, got {mode:?}"
        )));
    }
    let resolved = Config::resolve(source.as_deref(), &words.words)?;
    let config = &resolved.config;
    engine::check_device(&config.device)?;
    configure(config);
    let model = ModelConfig {
        n_layer: config.n_layer,
        n_head: config.n_head,
        n_embd: config.n_embd,
        block_size: config.block_size,
        vocab_size: if config.vocab_size == 0 {
            DEFAULT_VOCAB_SIZE
        } else {
            config.vocab_size
        },
        bias: config.bias,
    };
    let mut engine = engine::build(config, &model)?;
    let mut times = Vec::new();
    let mut losses = Vec::new();
    for step in 0..warmup_steps + steps {
        let begin = Instant::now();
        let loss = if mode == "train" {
            train_step(engine.as_mut(), config, &model, step)?
        } else {
            engine.loss(&random_batch(config, &model, step, 0))?
        };
        if step >= warmup_steps {
            times.push(begin.elapsed().as_secs_f64() * 1e3);
        }
        losses.push(loss);
    }
    let mut sorted = times.clone();
    sorted.sort_by(f64::total_cmp);
    let median = sorted[sorted.len() / 2];
    let tokens = match mode.as_str() {
        "train" => config.tokens_per_iteration(),
        _ => (config.batch_size * config.block_size) as u64,
    };
    let peak_flops = engine.peak_flops()?;
    let flops_per_second = tokens as f64 * model.flops_per_token() / (median / 1e3);
    let report = json!({
        "peer": "anneal",
        "engine": engine.name(),
        "device": engine.device(),
        "threads": machine::threads(config.threads),
        "mode": mode,
        "config": model,
        "batch_size": config.batch_size,
        "ms_per_iteration": median,
        "ms_all": times,
        "tokens_per_second": tokens as f64 / (median / 1e3),
        "mfu": peak_flops.filter(|_| mode == "train").map(|peak| flops_per_second / peak),
        "loss_first": losses.first(),
        "loss_last": losses.last(),
        "peak_rss_mib": machine::peak_memory().map(|bytes| bytes as f64 / f64::from(1 << 20)),
    });
    print(&report.to_string())
}

/// One optimizer step, as the training loop makes it.
fn train_step(
    engine: &mut dyn Engine,
    config: &Config,
    model: &ModelConfig,
    step: u64,
) -> Result<f64> {
    for micro in 0..config.gradient_accumulation_steps {
        let batch = random_batch(config, model, step, micro);
        engine.forward_backward(&batch, MicroStep { step, micro })?;
    }
    Ok(engine.update(config.learning_rate)?.loss)
}

fn random_batch(config: &Config, model: &ModelConfig, step: u64, micro: u64) -> Batch {
    let place = [step as u32, micro as u32, 0];
    let mut random = Philox::new(config.seed, Stream::TrainData).sequence(place);
    let elements = config.batch_size * config.block_size;
    let mut draw = || -> Vec<u32> {
        (0..elements)
            .map(|_| random.below(model.vocab_size as u64) as u32)
            .collect()
    };
    Batch {
        inputs: draw(),
        targets: draw(),
        batch_size: config.batch_size,
        block_size: config.block_size,
    }
}
