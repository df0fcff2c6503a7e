//! What computes: a model's parameters, its gradients and its optimizer on one device.
//!
//! The training loop speaks to [`Engine`] alone. Every engine keeps nanoGPT's parameter names and
//! writes the same state, so a checkpoint of one continues on any other.

use crate::data::Batch;
use crate::error::Result;
use crate::model::ModelConfig;

/// A named fp32 tensor on the host, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    pub name: String,
    pub shape: Vec<usize>,
    pub data: Vec<f32>,
}

/// Everything an engine holds that a checkpoint needs. The three lists have the same names and
/// shapes in the same order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EngineState {
    pub parameters: Vec<NamedTensor>,
    /// First moments of AdamW.
    pub exp_avg: Vec<NamedTensor>,
    /// Second moments of AdamW.
    pub exp_avg_sq: Vec<NamedTensor>,
    /// Updates made: the exponent of AdamW's bias correction.
    pub updates: u64,
}

/// What one update reports.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UpdateStats {
    /// Mean loss over the micro-steps, nats per token.
    pub loss: f64,
    /// Global L2 norm of the gradient before clipping.
    pub grad_norm: f64,
}

/// Where a micro-step stands in the run: the counter that its dropout masks follow from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MicroStep {
    /// Updates made before it.
    pub step: u64,
    /// Its index within the accumulation, from 0.
    pub micro: u64,
}

/// A model with its optimizer on one device.
pub trait Engine {
    fn model(&self) -> &ModelConfig;

    /// Adds the gradient of one micro-batch, weighted 1/`gradient_accumulation_steps`.
    fn forward_backward(&mut self, batch: &Batch, at: MicroStep) -> Result<()>;

    /// Clips, makes one AdamW step with this learning rate and clears the gradients. A gradient
    /// that is not finite is reported and discarded: the parameters stay as they were.
    fn update(&mut self, learning_rate: f64) -> Result<UpdateStats>;

    /// Mean loss of a batch without dropout and without touching any state.
    fn loss(&mut self, batch: &Batch) -> Result<f64>;

    /// Logits after the last of `tokens`, `(vocab_size)`. `tokens` holds 1 to `block_size` ids.
    /// Where it continues the sequence of the call before, what is known of that is reused.
    fn logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>>;

    /// A copy of parameters and moments.
    fn state(&self) -> Result<EngineState>;

    /// Replaces parameters and moments.
    ///
    /// # Errors
    /// [`crate::Error::Data`] naming the first tensor that is missing, unknown or of another shape.
    fn load_state(&mut self, state: &EngineState) -> Result<()>;
}
