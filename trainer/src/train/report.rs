//! What a person reads at the start and at the end of a run.

use protocol::Event;

use super::{Ending, Trainer};
use crate::checkpoint::TrainState;
use crate::config::{Config, Resolved};
use crate::error::Result;
use crate::machine::{self, human_bytes, human_count};
use crate::metrics::Metrics;
use crate::model::Parameter;
use crate::sample::{self, SampleOptions};

/// Weight, gradient and two moments, each fp32.
const BYTES_PER_PARAMETER: u64 = 16;

/// Model, data and machine, with nanoGPT's lines where it has one.
pub(super) fn start(trainer: &Trainer<'_>, resolved: &Resolved) -> Vec<String> {
    let (config, state, info) = (&trainer.config, &trainer.state, &trainer.dataset.info);
    let model = &state.model;
    let mut lines = vec![format!(
        "config {}, run directory {}",
        resolved.name,
        trainer.run.root().display()
    )];
    lines.push(format!(
        "dataset {}: {} training tokens, {} validation tokens (in {})",
        info.name,
        human_count(info.train_tokens),
        human_count(info.val_tokens),
        trainer.dataset.dir.display()
    ));
    lines.push(format!(
        "found vocab_size = {} ({} tokenizer)",
        info.vocab_size, info.tokenizer
    ));
    lines.push(match trainer.saved {
        Some((step, _)) => {
            format!(
                "Resuming training from {} at step {step}",
                trainer.run.root().display()
            )
        }
        None if config.is_pretrained() => {
            format!("Initializing from GPT-2 weights: {}", config.init_from)
        }
        None => "Initializing a new model from scratch".to_owned(),
    });
    lines.push(format!(
        "model: {} layers, {} heads, {} channels, context {}, vocabulary {}",
        model.n_layer, model.n_head, model.n_embd, model.block_size, model.vocab_size
    ));
    let count = model.parameter_count_without_positions();
    lines.push(format!("number of parameters: {:.2}M", count as f64 / 1e6));
    let (decayed, others): (Vec<_>, Vec<_>) =
        model.parameters().into_iter().partition(Parameter::decays);
    for (what, list) in [("decayed", decayed), ("non-decayed", others)] {
        let elements = list.iter().map(|p| p.elements() as u64).sum();
        lines.push(format!(
            "num {what} parameter tensors: {}, with {} parameters",
            list.len(),
            human_count(elements)
        ));
    }
    lines.push(format!(
        "tokens per iteration will be: {}",
        human_count(config.tokens_per_iteration())
    ));
    lines.push(format!(
        "device {}, engine {} in {}, {} threads",
        trainer.engine.device(),
        trainer.engine.name(),
        trainer.engine.dtype(),
        machine::threads(config.threads),
    ));
    lines.push(memory_line(trainer));
    lines
}

/// What the run takes and what the machine has.
fn memory_line(trainer: &Trainer<'_>) -> String {
    let available = machine::memory_available().map_or_else(|| "unknown".to_owned(), human_bytes);
    match trainer.engine.memory() {
        Some(memory) => format!(
            "memory: {} = {} for weights, gradients and moments + {} for activations \
             (recompute {}){}; {available} available",
            human_bytes(memory.total()),
            human_bytes(memory.weights + memory.gradients + memory.moments),
            human_bytes(memory.activations + memory.workspace),
            memory.recompute.name(),
            match memory.dataset {
                0 => String::new(),
                bytes => format!(" + {} for the dataset", human_bytes(bytes)),
            },
        ),
        None => format!(
            "memory: {} for weights, gradients and moments, and what the activations take; \
             {available} available",
            human_bytes(trainer.state.model.parameter_count() * BYTES_PER_PARAMETER),
        ),
    }
}

/// The event that tells programs the same.
pub(super) fn started_event(trainer: &Trainer<'_>, resolved: &Resolved) -> Event {
    let config = &trainer.config;
    Event::Started {
        version: trainer.state.trainer_version.clone(),
        pid: std::process::id(),
        config: resolved.name.clone(),
        config_hash: config.hash(),
        engine: trainer.engine.name().to_owned(),
        device: trainer.engine.device(),
        threads: machine::threads(config.threads) as u32,
        parameters: trainer.state.model.parameter_count_without_positions(),
        tokens_per_iteration: config.tokens_per_iteration(),
        max_iters: config.max_iters,
        resumed_from: trainer.saved.map(|(step, _)| step),
        startup_ms: trainer.startup.milliseconds(),
    }
}

/// Which keys differ from those that the checkpoint was made with.
pub(super) fn changed_keys(
    config: &Config,
    saved: &TrainState,
    metrics: &mut Metrics,
) -> Result<()> {
    let old = Config::from_toml_str(&saved.config)?;
    for difference in old.differences(config) {
        metrics.note(&format!(
            "changed since the checkpoint: {} = {} (was {})",
            difference.key, difference.new, difference.old
        ));
    }
    Ok(())
}

/// The result, a sample, and what to do next.
pub(super) fn end(trainer: &mut Trainer<'_>, ending: Ending) -> Result<()> {
    let step = trainer.state.step;
    let out_dir = trainer.run.root().display().to_string();
    if ending == Ending::Stopped && !trainer.config.eval_only {
        trainer.metrics.note(&format!(
            "stopped at step {step} with a checkpoint in {out_dir}; --resume goes on from there"
        ));
    }
    if ending != Ending::Finished {
        return Ok(());
    }
    let val = trainer.last_losses.map_or(f64::NAN, |losses| losses.val);
    trainer
        .metrics
        .note(&match trainer.dataset.info.entropy_per_token {
            Some(entropy) => format!(
                "validation loss {val:.4} reached, {entropy:.4} possible (entropy of the corpus)"
            ),
            None => {
                let best = trainer.state.best_val_loss.unwrap_or(val);
                format!("validation loss {val:.4} reached, {best:.4} at its best")
            }
        });
    if let Some(peak) = machine::peak_memory() {
        trainer
            .metrics
            .note(&format!("peak memory {}", human_bytes(peak)));
    }
    if trainer.config.sample_tokens > 0 {
        let text = sample(trainer)?;
        trainer.metrics.note(&format!(
            "a sample:\n---------------\n{text}\n---------------"
        ));
        trainer.metrics.record(Event::Sample { step, text });
    }
    let program = machine::program();
    trainer.metrics.note("what next:");
    for (words, what) in [
        (format!("sample --out_dir={out_dir}"), "more of its text"),
        (format!("eval --out_dir={out_dir}"), "both losses again"),
        (
            "--config shakespeare_char".to_owned(),
            "the same on Shakespeare",
        ),
    ] {
        trainer
            .metrics
            .note(&format!("  {program} {words:<52} # {what}"));
    }
    Ok(())
}

fn sample(trainer: &mut Trainer<'_>) -> Result<String> {
    let config = &trainer.config;
    let options = SampleOptions {
        temperature: config.temperature,
        top_k: config.top_k as usize,
        top_p: config.top_p,
        max_new_tokens: config.sample_tokens,
        seed: config.seed,
        stop: Vec::new(),
    };
    // nanoGPT's default prompt; a vocabulary without line breaks starts from its first token.
    let prompt = trainer.tokenizer.encode("\n").unwrap_or_else(|_| vec![0]);
    let mut text = String::new();
    sample::generate(
        trainer.engine.as_mut(),
        &trainer.tokenizer,
        &prompt,
        &options,
        0,
        |piece| {
            text.push_str(piece);
            Ok(())
        },
    )?;
    Ok(text)
}
