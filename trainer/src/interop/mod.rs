//! Models in and out in the formats of others: nanoGPT's `ckpt.pt` and Hugging Face's folders.
//! Called by the command line and, for `init_from`, when a run opens.

pub mod torch;
pub mod nanogpt;
pub mod huggingface;
pub mod hub;
pub mod export;
pub mod history;
pub mod tensorboard;

use std::fs;
use std::path::PathBuf;

use protocol::RunDir;

use crate::checkpoint::{
    self, Checkpoints, DatasetIdentity, RunLock, SaveOutcome, Snapshot, TrainState, atomic_write,
};
use crate::config::Config;
use crate::data::prepare::{OnProgress, Progress, Stage};
use crate::engine::{EngineState, NamedTensor};
use crate::error::{Error, Result};
use crate::metrics;
use crate::model::ModelConfig;
use crate::tokenizer::Tokenizer;
use hub::Hub;

const POSITION_EMBEDDING: &str = "transformer.wpe.weight";

/// A model of another program, under our names and in our layout.
#[derive(Clone, Debug, PartialEq)]
pub struct Imported {
    pub model: ModelConfig,
    /// Without an optimizer there are no moments and no updates.
    pub engine: EngineState,
    /// Updates made.
    pub step: u64,
    /// Validation loss of these parameters, nats per token.
    pub val_loss: Option<f64>,
    /// Keys of our config and their values, as that program had them.
    pub config: Vec<(String, String)>,
    /// What was left behind, a line each.
    pub notes: Vec<String>,
}

impl Imported {
    /// Shortens the context, as nanoGPT's `crop_block_size` does; a longer one cannot be had.
    pub fn crop(&mut self, block_size: usize) {
        assert!(block_size <= self.model.block_size, "checked by the caller");
        self.model.block_size = block_size;
        let engine = &mut self.engine;
        for list in [
            &mut engine.parameters,
            &mut engine.exp_avg,
            &mut engine.exp_avg_sq,
        ] {
            for tensor in list.iter_mut() {
                if tensor.name == POSITION_EMBEDDING {
                    tensor.shape[0] = block_size;
                    tensor.data.truncate(block_size * tensor.shape[1]);
                }
            }
        }
    }
}

/// The model that `init_from` names, and the folder that it was read from: a folder, `OWNER/NAME`
/// of the Hugging Face hub, or one of [`hub::NAMES`].
///
/// # Errors
/// As [`hub::Hub::folder`] and [`huggingface::read`].
pub fn pretrained(what: &str, progress: OnProgress<'_>) -> Result<(PathBuf, Imported)> {
    let folder = Hub::from_environment().folder(what, &mut |_, done, total| {
        progress(Progress {
            stage: Stage::Fetching,
            done,
            total,
        });
    })?;
    let imported = huggingface::read(&folder)?;
    Ok((folder, imported))
}

/// A model without an optimizer.
pub fn weights(parameters: Vec<NamedTensor>) -> EngineState {
    EngineState {
        parameters,
        ..EngineState::default()
    }
}

/// The state with moments of zero where it has none: of an optimizer that has not made a step.
fn with_moments(state: EngineState) -> EngineState {
    if !state.exp_avg.is_empty() {
        return state;
    }
    let zeros: Vec<NamedTensor> = state
        .parameters
        .iter()
        .map(|parameter| NamedTensor {
            name: parameter.name.clone(),
            shape: parameter.shape.clone(),
            data: vec![0.0; parameter.data.len()],
        })
        .collect();
    EngineState {
        exp_avg: zeros.clone(),
        exp_avg_sq: zeros,
        ..state
    }
}

/// Makes `imported` the checkpoint of its step in `run`, with its settings as the run's config.
/// The dataset is left open: whatever the run is resumed with becomes it.
///
/// # Errors
/// [`Error::Config`] if the run has checkpoints and `overwrite` does not let go of them, or if the
/// settings make no config; [`Error::Write`] and [`Error::Locked`] as for any run.
pub fn adopt(
    imported: Imported,
    tokenizer: Option<&Tokenizer>,
    run: &RunDir,
    overwrite: bool,
) -> Result<Config> {
    let mut words = vec![format!("--out_dir={}", run.root().display())];
    words.extend(
        imported
            .config
            .iter()
            .map(|(key, value)| format!("--{key}={value}")),
    );
    let config = Config::resolve(None, &words)?.config;
    let _lock = RunLock::acquire(run)?;
    let taken = !checkpoint::list(run)?.is_empty();
    if taken && !overwrite {
        return Err(Error::config(format!(
            "out_dir={} holds checkpoints of another run\n\
             hint: --out_dir=DIR imports elsewhere, --overwrite discards it",
            run.root().display()
        )));
    }
    let mut checkpoints = Checkpoints::open(run.clone(), config.keep_last)?;
    if taken {
        checkpoints.clear()?;
        metrics::discard_boards(run)?;
        let events = run.events();
        if events.exists() {
            fs::remove_file(&events).map_err(Error::write(&events))?;
        }
    }
    atomic_write(&run.config(), config.to_toml().as_bytes())?;
    let step = imported.step;
    let snapshot = Snapshot {
        state: TrainState {
            step,
            best_val_loss: imported.val_loss,
            seed: config.seed,
            tokens: step.saturating_mul(config.tokens_per_iteration()),
            data_offset: 0,
            rollbacks: 0,
            loss_mean: None,
            dataset: DatasetIdentity {
                name: config.dataset.clone(),
                tokenizer: tokenizer_kind(tokenizer).to_owned(),
                vocab_size: imported.model.vocab_size,
                fingerprint: String::new(),
            },
            model: imported.model,
            trainer_version: env!("CARGO_PKG_VERSION").to_owned(),
            config: config.to_toml(),
        },
        engine: with_moments(imported.engine),
        tokenizer: tokenizer
            .map(|tokenizer| (tokenizer.file_name().to_owned(), tokenizer.to_bytes())),
        config_hash: config.hash(),
        val_loss: imported.val_loss,
    };
    checkpoints.save(step, move || Ok(snapshot))?;
    for outcome in checkpoints.finish() {
        if let SaveOutcome::Failed { error, .. } = outcome {
            return Err(Error::NotSaved(format!(
                "the imported checkpoint was not saved: {error}"
            )));
        }
    }
    Ok(config)
}

fn tokenizer_kind(tokenizer: Option<&Tokenizer>) -> &'static str {
    match tokenizer {
        Some(Tokenizer::Char(_)) => "char",
        Some(Tokenizer::Subword(_)) => "json",
        None => "unknown",
    }
}
