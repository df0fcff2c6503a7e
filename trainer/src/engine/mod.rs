//! What computes: a model's parameters, its gradients and its optimizer on one device.
//!
//! The training loop speaks to [`Engine`] alone. Every engine keeps nanoGPT's parameter names and
//! writes the same state, so a checkpoint of one continues on any other.

pub mod plan;
pub mod profile;
pub mod device;
pub mod cpu;
pub mod candle;
#[cfg(any(test, feature = "device"))]
pub mod cuda;
pub mod fit;

use std::time::{Duration, Instant};

use crate::config::Config;
use crate::data::{Batch, Dataset};
use crate::error::{Error, Result};
pub use crate::model::NamedTensor;
use crate::model::{ModelConfig, Parameter};
pub use device::Place;
pub use fit::{Needs, fitted, memory_table, resident_bytes};
pub use plan::Recompute;
pub use profile::Profile;

/// A model with its optimizer on one device.
pub trait Engine {
    fn model(&self) -> &ModelConfig;

    /// The key `engine` that selects it.
    fn name(&self) -> &'static str;

    /// Where it computes: `cpu`, `cuda:0`, …
    fn device(&self) -> String;

    /// What weights and activations are held in: `float32`, `bfloat16` or `float16`.
    fn dtype(&self) -> &'static str {
        "float32"
    }

    /// Peak rate in FLOP/s for MFU, from the data sheet or measured; `None` if nobody knows.
    fn peak_flops(&self) -> Result<Option<f64>>;

    /// What people should know of how it computes, a line each; `verbose`: in detail.
    fn notes(&self, _verbose: bool) -> Vec<String> {
        Vec::new()
    }

    /// Memory that training takes, known beforehand; `None` where it is not.
    fn memory(&self) -> Option<Memory>;

    /// Adds the gradient of one micro-batch, weighted 1/`gradient_accumulation_steps`.
    fn forward_backward(&mut self, batch: &Batch, at: MicroStep) -> Result<()>;

    /// Clips, makes one AdamW step with this learning rate and clears the gradients. Where loss or
    /// gradient is not finite, they are reported and discarded: the parameters stay as they were.
    ///
    /// A device may still be at work on it: then the result is that of the update before, if that
    /// was not told yet, and [`Self::finish`] or the next update tells this one's.
    fn submit_update(&mut self, learning_rate: f64) -> Result<Option<UpdateStats>>;

    /// Waits for the update whose result has not been told, if there is one.
    fn finish(&mut self) -> Result<Option<UpdateStats>> {
        Ok(None)
    }

    /// Makes an update and waits for it; results not told before are dropped.
    fn update(&mut self, learning_rate: f64) -> Result<UpdateStats> {
        self.finish()?;
        let done = match self.submit_update(learning_rate)? {
            None => self.finish()?,
            done => done,
        };
        Ok(done.expect("an update has a result"))
    }

    /// Mean loss of a batch without dropout and without touching any state.
    fn loss(&mut self, batch: &Batch) -> Result<f64>;

    /// Mean of [`Self::loss`] over batches; `None` if `stop` said so in between.
    fn mean_loss(
        &mut self,
        batches: &mut dyn Iterator<Item = Batch>,
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<f64>> {
        let (mut sum, mut count) = (0.0, 0);
        for batch in batches {
            if stop() {
                return Ok(None);
            }
            sum += self.loss(&batch)?;
            count += 1;
        }
        Ok(Some(sum / f64::from(count)))
    }

    /// Logits after the last of `tokens`, `(vocab_size)`. `tokens` holds 1 to `block_size` ids.
    /// Where it continues the sequence of the call before, what is known of that is reused.
    fn logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>>;

    /// A copy of parameters and moments.
    fn state(&self) -> Result<EngineState>;

    /// The same copy, which a device may still be making when training goes on: whoever calls what
    /// is returned, on whatever thread, waits for it. Waits itself for the snapshot before, until
    /// that was taken or dropped.
    fn snapshot(&mut self) -> Result<PendingState> {
        let state = self.state()?;
        Ok(Box::new(|| Ok(state)))
    }

    /// Keeps a dataset where it computes, so that batches need not be brought there. Every batch
    /// with windows is one of this dataset from then on.
    fn keep_dataset(&mut self, _dataset: &Dataset) -> Result<()> {
        Ok(())
    }

    /// Has the memory for snapshots made ready while other things go on: for runs that will take
    /// some.
    fn prepare_snapshots(&mut self) {}

    /// What people should know since the last call, a line each.
    fn take_warnings(&mut self) -> Vec<String> {
        Vec::new()
    }

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

    /// From now on rooms are timed, at whatever cost.
    fn start_profile(&mut self) {}

    /// Time by room since the last call; empty where an engine does not tell.
    fn take_profile(&mut self) -> Profile {
        Profile::default()
    }
}

/// Waits for a copy of an engine's state.
pub type PendingState = Box<dyn FnOnce() -> Result<EngineState> + Send>;

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
    /// In fp16; `None` in other precisions.
    pub loss_scale: Option<LossScale>,
}

/// The factor of the loss that keeps small gradients above fp16's smallest numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossScale {
    pub scale: f32,
    /// Updates without overflow since it last changed.
    pub good_steps: u32,
}

/// What one update reports.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UpdateStats {
    /// Mean loss over the micro-steps, nats per token.
    pub loss: f64,
    /// Global L2 norm of the gradient before clipping.
    pub grad_norm: f64,
    /// In fp16: the scaled gradients overflowed, so that this update was left out and the loss
    /// scale halved. Not a sign of divergence.
    pub overflowed: bool,
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
    /// Batches of an evaluation.
    pub eval_iters: u64,
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
            eval_iters: config.eval_iters,
        }
    }
}

/// The shape of the batches that an engine is built for, and how it trades time for memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// B
    pub batch_size: usize,
    /// T
    pub block_size: usize,
    pub recompute: Recompute,
}

/// Memory that a run takes on its device, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// In fp32 and, where it computes in 16 bits, their copy.
    pub weights: u64,
    pub gradients: u64,
    /// Both of AdamW's.
    pub moments: u64,
    /// Everything that lives within a step.
    pub activations: u64,
    /// What single operations work in.
    pub workspace: u64,
    /// Its tokens, where they are kept on the device.
    pub dataset: u64,
    /// What is computed again so that it is not more.
    pub recompute: Recompute,
}

impl Memory {
    pub fn total(self) -> u64 {
        let state = self.weights + self.gradients + self.moments;
        state + self.activations + self.workspace + self.dataset
    }
}

/// The engine that the config asks for on a device, with freshly initialised parameters.
///
/// # Errors
/// [`Error::Config`] if the run does not fit the memory or the engine, [`Error::Device`] if the
/// device fails.
pub fn build(place: &Place, config: &Config, model: &ModelConfig) -> Result<Box<dyn Engine>> {
    match Needs::of(place, config, model)? {
        Some(needs) => build_in(place, config, model, needs.shape(config), &needs),
        None => candle(config, model),
    }
}

/// The same for batches of one dataset, which is kept on the device where it is small and there is
/// room for it beside everything else.
///
/// # Errors
/// As [`build`].
pub fn build_for(
    place: &Place,
    config: &Config,
    model: &ModelConfig,
    dataset: &Dataset,
) -> Result<Box<dyn Engine>> {
    let Some(needs) = Needs::of(place, config, model)? else {
        return candle(config, model);
    };
    let bytes = resident_bytes(place, dataset);
    let needs = needs.with_dataset(bytes);
    let shape = needs.shape(config);
    if bytes == 0 || needs.check(shape).is_err() {
        return build(place, config, model);
    }
    let mut engine = build_in(place, config, model, shape, &needs)?;
    engine.keep_dataset(dataset)?;
    Ok(engine)
}

fn candle(config: &Config, model: &ModelConfig) -> Result<Box<dyn Engine>> {
    let hyper = Hyperparameters::of(config);
    Ok(Box::new(candle::CandleEngine::new(model, hyper)?))
}

fn build_in(
    place: &Place,
    config: &Config,
    model: &ModelConfig,
    shape: Shape,
    needs: &Needs<'_>,
) -> Result<Box<dyn Engine>> {
    needs.check(shape)?;
    let hyper = Hyperparameters::of(config);
    match place {
        Place::Cpu => Ok(Box::new(cpu::CpuEngine::new(model, hyper, shape))),
        #[cfg(any(test, feature = "device"))]
        Place::Gpu(device) => cuda::build(device, config, model, hyper, shape),
    }
}

/// `found` in the order of `expected`, or the first name or shape that does not agree.
fn in_order<'a>(
    expected: &[Parameter],
    found: &'a [NamedTensor],
    what: &str,
) -> Result<Vec<&'a NamedTensor>> {
    let unknown = |tensor: &&NamedTensor| expected.iter().all(|p| p.name != tensor.name);
    if let Some(tensor) = found.iter().find(unknown) {
        return Err(Error::Data(format!(
            "checkpoint: the model has no {what} {}, but the checkpoint does",
            tensor.name
        )));
    }
    let find = |parameter: &Parameter| {
        let tensor = found.iter().find(|tensor| tensor.name == parameter.name);
        let tensor = tensor.ok_or_else(|| {
            Error::Data(format!("checkpoint: {what} {} is missing", parameter.name))
        })?;
        if tensor.shape != parameter.shape || tensor.data.len() != parameter.elements() {
            return Err(Error::Data(format!(
                "checkpoint: {what} {}: expected shape {:?}, got {:?}",
                parameter.name, parameter.shape, tensor.shape
            )));
        }
        Ok(tensor)
    };
    expected.iter().map(find).collect()
}

/// Rate of a large fp32 matrix product on all threads, in FLOP/s: the best of a few within a tenth
/// of a second. What MFU is measured against where no data sheet says.
fn measured_peak() -> f64 {
    const SIZE: usize = 768;
    const BUDGET: Duration = Duration::from_millis(100);
    let dims = kernels::matmul::Dims {
        m: SIZE,
        k: SIZE,
        n: SIZE,
    };
    let a = vec![0.5f32; SIZE * SIZE];
    let mut out = vec![0.0; SIZE * SIZE];
    let begin = Instant::now();
    let mut best = f64::INFINITY;
    while begin.elapsed() < BUDGET {
        let start = Instant::now();
        kernels::matmul::cpu::forward(&mut out, &a, &a, None, None, dims);
        best = best.min(start.elapsed().as_secs_f64());
    }
    dims.flops() as f64 / best
}

#[cfg(test)]
mod tests;
