//! The shape of a model: what a checkpoint must agree on.

use serde::{Deserialize, Serialize};

/// The shape of a GPT, in nanoGPT's names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelConfig {
    pub n_layer: usize,
    pub n_head: usize,
    pub n_embd: usize,
    pub block_size: usize,
    pub vocab_size: usize,
    /// Biases in the linear layers and LayerNorms.
    pub bias: bool,
}
