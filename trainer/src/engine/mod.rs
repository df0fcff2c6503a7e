//! What computes: a model's parameters, its gradients and its optimizer on one device.
//!
//! The training loop speaks to [`Engine`] alone. Every engine keeps nanoGPT's parameter names and
//! writes the same state, so a checkpoint of one continues on any other.

pub mod adamw;
pub mod candle;

use crate::config::Config;
use crate::data::Batch;
use crate::error::{Error, Result};
use crate::model::ModelConfig;
pub use crate::model::NamedTensor;

/// A model with its optimizer on one device.
pub trait Engine {
    fn model(&self) -> &ModelConfig;

    /// The key `engine` that selects it.
    fn name(&self) -> &'static str;

    /// Where it computes: `cpu`, `cuda:0`, …
    fn device(&self) -> String;

    /// Peak rate in FLOP/s for MFU, from the data sheet or measured; `None` if nobody knows.
    fn peak_flops(&self) -> Result<Option<f64>>;

    /// Adds the gradient of one micro-batch, weighted 1/`gradient_accumulation_steps`.
    fn forward_backward(&mut self, batch: &Batch, at: MicroStep) -> Result<()>;

    /// Clips, makes one AdamW step with this learning rate and clears the gradients. Where loss or
    /// gradient is not finite, they are reported and discarded: the parameters stay as they were.
    fn update(&mut self, learning_rate: f64) -> Result<UpdateStats>;

    /// Mean loss of a batch without dropout and without touching any state.
    fn loss(&mut self, batch: &Batch) -> Result<f64>;

    /// Logits after the last of `tokens`, `(vocab_size)`. `tokens` holds 1 to `block_size` ids.
    /// Where it continues the sequence of the call before, what is known of that is reused.
    fn logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>>;

    /// A copy of parameters and moments.
    fn state(&self) -> Result<EngineState>;

    /// Replaces the parameters; enough for evaluation and sampling.
    ///
    /// # Errors
    /// [`Error::Data`] naming the first tensor that is missing, unknown or of another shape.
    fn load_parameters(&mut self, parameters: &[NamedTensor]) -> Result<()>;

    /// Replaces parameters and moments.
    ///
    /// # Errors
    /// As [`Self::load_parameters`]; nothing is replaced then.
    fn load_state(&mut self, state: &EngineState) -> Result<()>;
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
    /// Index of the iteration in the data, from 0.
    pub step: u64,
    /// Its index within the accumulation, from 0.
    pub micro: u64,
}

impl MicroStep {
    /// Two words of a Philox counter, different for every micro-step of a run.
    pub fn counter(self) -> [u32; 2] {
        assert!(
            self.micro < 1 << 16 && self.step < 1 << 48,
            "{self:?} is out of range"
        );
        [
            self.step as u32,
            (self.step >> 32) as u32 | (self.micro as u32) << 16,
        ]
    }
}

/// What an engine needs to know of a run besides the model's shape.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hyperparameters {
    pub dropout: f64,
    pub gradient_accumulation_steps: u64,
    pub weight_decay: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub adam_eps: f64,
    /// Largest global gradient norm; 0 = off.
    pub grad_clip: f64,
    pub seed: u64,
}

impl Hyperparameters {
    pub fn of(config: &Config) -> Self {
        Self {
            dropout: config.dropout,
            gradient_accumulation_steps: config.gradient_accumulation_steps,
            weight_decay: config.weight_decay,
            beta1: config.beta1,
            beta2: config.beta2,
            adam_eps: config.adam_eps,
            grad_clip: config.grad_clip,
            seed: config.seed,
        }
    }
}

/// The engine that the config asks for, with freshly initialised parameters.
///
/// # Errors
/// [`Error::Device`] if the device asked for is not usable here.
pub fn build(config: &Config, model: &ModelConfig) -> Result<Box<dyn Engine>> {
    check_device(&config.device)?;
    Ok(Box::new(candle::CandleEngine::new(
        model,
        Hyperparameters::of(config),
    )?))
}

/// Whether this program can compute on a device, before any work is done for it.
///
/// # Errors
/// [`Error::Device`] saying why not and what to do.
pub fn check_device(device: &str) -> Result<()> {
    match device {
        "auto" | "cpu" => Ok(()),
        other => Err(Error::Device(format!(
            "device={other}: not usable: this program is built for the CPU only\n\
             hint: --device=cpu (or auto, the default)"
        ))),
    }
}
