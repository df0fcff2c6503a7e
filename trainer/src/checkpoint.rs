//! Checkpoints: everything a run needs to go on, whole on disk or not there at all.
//!
//! The training loop hands a [`Snapshot`] to [`Checkpoints`], which writes it in the background;
//! resume, sampling and evaluation read with [`load_newest`] and its relatives. Nothing else
//! writes below `checkpoints/`. The layout is `protocol`'s [`RunDir`]; a checkpoint is whole once
//! its `manifest.json` is in place, and that is written last.
//!
//! [`RunDir`]: protocol::RunDir

mod files;
mod write;
mod read;
mod retain;
mod background;
mod lock;

#[cfg(test)]
mod tests;

use std::fmt::Display;

use serde::{Deserialize, Serialize};

use crate::engine::EngineState;
use crate::error::{Error, Result};
use crate::model::ModelConfig;

pub use background::{Checkpoints, SaveOutcome};
pub use files::atomic_write;
pub use lock::RunLock;
pub use read::{
    Listed, Loaded, best, list, load, load_best, load_model_only, load_newest, load_newest_model,
};

/// `state.json`: where the run stands, beside parameters and moments. The generators have no
/// state: every draw follows from the seed and the step. Numbers come back bit for bit; one that
/// is not finite comes back as `None`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainState {
    /// Updates made.
    pub step: u64,
    /// Lowest validation loss so far, nats per token; `None` before the first evaluation.
    pub best_val_loss: Option<f64>,
    pub seed: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Steps of data that rollbacks skipped.
    pub data_offset: u64,
    /// Rollbacks made.
    pub rollbacks: u64,
    /// Running mean of the training loss, which divergence is judged by.
    pub loss_mean: Option<f64>,
    pub model: ModelConfig,
    pub dataset: DatasetIdentity,
    pub trainer_version: String,
    /// The text of `config.toml`.
    pub config: String,
}

/// What makes two datasets the same to a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetIdentity {
    pub name: String,
    /// `char`, `gpt2` or `json`.
    pub tokenizer: String,
    pub vocab_size: usize,
    /// Differs when text or vocabulary differ. Empty where nobody knows: then any dataset will do.
    pub fingerprint: String,
}

/// The host copy of a run at one step: what a checkpoint is written from.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    pub state: TrainState,
    pub engine: EngineState,
    /// File name (`tokenizer.json` or `vocab.json`) and contents, so that the checkpoint samples
    /// by itself.
    pub tokenizer: Option<(String, Vec<u8>)>,
    /// SHA-256 of the resolved config, lower-case hexadecimal.
    pub config_hash: String,
    /// Validation loss measured at this step, nats per token, if an evaluation fell on it.
    pub val_loss: Option<f64>,
}

/// Whether a run with this model and dataset may go on from a checkpoint.
///
/// # Errors
/// [`Error::Config`] with a line for every difference.
pub fn compatible(
    saved: &TrainState,
    model: &ModelConfig,
    dataset: &DatasetIdentity,
) -> Result<()> {
    let mut faults = Vec::new();
    let mut compare = |key: &str, checkpoint: &dyn Display, config: &dyn Display| {
        let (checkpoint, config) = (checkpoint.to_string(), config.to_string());
        if checkpoint != config {
            faults.push(format!(
                "{key}: checkpoint has {checkpoint}, config says {config}"
            ));
        }
    };
    let ModelConfig {
        n_layer,
        n_head,
        n_embd,
        block_size,
        vocab_size,
        bias,
        gelu,
    } = &saved.model;
    compare("n_layer", n_layer, &model.n_layer);
    compare("n_head", n_head, &model.n_head);
    compare("n_embd", n_embd, &model.n_embd);
    compare("block_size", block_size, &model.block_size);
    compare("vocab_size", vocab_size, &model.vocab_size);
    compare("bias", bias, &model.bias);
    compare("gelu", &gelu.name(), &model.gelu.name());
    let DatasetIdentity {
        name,
        tokenizer,
        vocab_size,
        fingerprint,
    } = &saved.dataset;
    if !fingerprint.is_empty() {
        compare("dataset", name, &dataset.name);
        compare("tokenizer", tokenizer, &dataset.tokenizer);
        compare("dataset's vocabulary", vocab_size, &dataset.vocab_size);
        compare("dataset's fingerprint", fingerprint, &dataset.fingerprint);
    }
    if faults.is_empty() {
        return Ok(());
    }
    faults.push(format!(
        "hint: set these back to go on from step {}, or name another --out_dir to start afresh",
        saved.step
    ));
    Err(Error::Config(faults))
}
