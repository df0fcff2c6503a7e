//! All that the engine has on a device, and the pieces of work that graphs record.

use kernels::controller::cuda::Controller;
use kernels::controller::{LossScaling, Settings, StepState};
use kernels::cuda::{Buffer, CudaError, Device, Stream};
use kernels::{global_norm, matmul};

use super::autotune::{self, Selected, Selection};
use super::dataset::Resident;
use super::decode::Decoder;
use super::feed::Inputs;
use super::hazards::Streams;
use super::memory::{Parameters, Precision, Workspace, layout};
use super::plans::{plans, together};
use super::run::Context;
use crate::engine::plan::{BufferId, Dtype, Plan};
use crate::engine::{Hyperparameters, Recompute, Shape};
use crate::error::Result;
use crate::model::ModelConfig;
use crate::philox::{Philox, Stream as RandomStream};

/// Reports that the device keeps; the host fetches each after its update.
const REPORTS: usize = 4;
/// What fp16's loss scale starts with: PyTorch's `GradScaler`.
const LOSS_SCALE: f32 = 65_536.0;

/// Everything that work is done on.
pub(super) struct Core<T> {
    pub(super) model: ModelConfig,
    pub(super) hyper: Hyperparameters,
    pub(super) recompute: Recompute,
    pub(super) device: Device,
    pub(super) parameters: Parameters<T>,
    pub(super) controller: Controller,
    pub(super) workspace: Workspace,
    pub(super) selected: Selected<T>,
    pub(super) training: Plan,
    pub(super) evaluation: Plan,
    pub(super) generation: Plan,
    /// Memory of whichever plan runs.
    pub(super) arena: Buffer<u8>,
    /// Where an evaluation's batches come in passes of several.
    pub(super) together: Option<Wide>,
    /// Of a step, and of a batch that is evaluated.
    pub(super) inputs: Inputs,
    /// Where it is kept on the device.
    pub(super) dataset: Option<Resident>,
    pub(super) prompt: Buffer<i32>, // (1, block_size)
    /// `None` where the kernels do not take the model.
    pub(super) decoder: Option<Decoder<T>>,
}

/// Batches that are evaluated in one pass.
pub(super) struct Wide {
    pub(super) batches: usize,
    pub(super) plan: Plan,
    pub(super) inputs: Inputs,
}

/// A piece of work that is repeated as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    FirstMicroStep,
    MicroStep,
    Update,
    Evaluation,
    /// Several batches of it in one pass.
    Together,
    /// A prompt.
    Generation,
    /// The token after it.
    Decoding,
}

impl Work {
    pub(super) const COUNT: usize = Self::Decoding as usize + 1;
}

impl<T: Precision> Core<T> {
    /// Freshly initialised.
    pub(super) fn new(
        device: &Device,
        model: &ModelConfig,
        hyper: Hyperparameters,
        shape: Shape,
        selection: &Selection,
    ) -> Result<Self> {
        let [training, evaluation, generation] = plans::<T>(model, hyper.dropout > 0.0, shape);
        // First of all: timing takes memory, and gives it back.
        let (measured, layout) = ([&training, &evaluation], layout(model));
        let mut selected = autotune::select(device, selection, &measured, &layout)?;
        let plans = [&training, &evaluation, &generation];
        let arena_bytes = plans.map(|plan| plan.arena_bytes).into_iter().max();
        let mut wide = None;
        if let Some(together) = together::<T>(plans, shape, hyper.eval_iters) {
            let (batches, plan) = (together.batches, together.plan);
            autotune::follow(&mut selected.products, &plan, &evaluation, &layout)?;
            wide = Some(Wide {
                inputs: Inputs::new(device, plan.batch_size, plan.rows())?,
                batches,
                plan,
            });
        }
        let parameters = Parameters::new(device, model, hyper.seed)?;
        let (settings, state) = (settings::<T>(&hyper), fresh_state::<T>());
        Ok(Self {
            controller: Controller::new(device, &settings, &state, REPORTS)?,
            workspace: Workspace::new(device, &training, &parameters.layout)?,
            selected,
            arena: device.alloc(arena_bytes.unwrap_or(0))?,
            together: wide,
            inputs: Inputs::new(device, training.batch_size, training.rows())?,
            dataset: None,
            prompt: device.alloc(model.block_size)?,
            decoder: Decoder::new(device, model)?,
            model: model.clone(),
            device: device.clone(),
            hyper,
            recompute: shape.recompute,
            parameters,
            training,
            evaluation,
            generation,
        })
    }

    pub(super) fn add(&mut self, work: Work, streams: &mut Streams<'_>) -> Result<(), CudaError> {
        let main = streams.main;
        match work {
            Work::FirstMicroStep => {
                self.controller.begin_step(main)?;
                let gradients = &mut self.parameters.gradients;
                let cost = (0.0, bytes_of(gradients));
                streams.op("zero gradients", cost, |streams| {
                    streams.main.zero(gradients)
                })?;
                self.micro_step(streams)
            }
            Work::MicroStep => self.micro_step(streams),
            Work::Update => {
                let Workspace {
                    partials,
                    nonfinite,
                    ..
                } = &mut self.workspace;
                let gradients = &self.parameters.gradients;
                let bytes = bytes_of(gradients);
                streams.op("global norm", (0.0, bytes), |streams| {
                    global_norm::cuda::partials(streams.main, partials, nonfinite, gradients)?;
                    let controller = &mut self.controller;
                    controller.prepare_update(streams.main, partials, nonfinite)
                })?;
                // Gradient, master and both moments are read, the last three written.
                streams.op("adamw", (0.0, 7.0 * bytes), |streams| {
                    let (state, hyper) = (self.controller.state(), &self.hyper);
                    self.parameters.step(streams.main, state, hyper)
                })?;
                self.controller.end_step(main)
            }
            Work::Evaluation => {
                let inputs = &self.inputs.tokens;
                self.context(&self.evaluation, inputs).run(streams)
            }
            Work::Together => {
                let wide = self
                    .together
                    .as_ref()
                    .expect("asked of batches that go together");
                self.context(&wide.plan, &wide.inputs.tokens).run(streams)
            }
            Work::Generation => {
                self.context(&self.generation, &self.prompt).run(streams)?;
                let place = |id: &BufferId| self.generation.buffers[id.0].place.clone();
                let qkv = self
                    .generation
                    .qkv
                    .iter()
                    .map(|id| self.arena.view(place(id)));
                let qkv: Vec<Buffer<T>> = qkv.collect();
                match &mut self.decoder {
                    Some(decoder) => decoder.add_store(main, &qkv),
                    None => Ok(()),
                }
            }
            Work::Decoding => {
                let decoder = self.decoder.as_mut().expect("asked of models it takes");
                decoder.add_step(main, &self.model, &self.parameters)
            }
        }
    }

    fn micro_step(&mut self, streams: &mut Streams<'_>) -> Result<(), CudaError> {
        let mut context = self.context(&self.training, &self.inputs.tokens);
        if self.hyper.dropout > 0.0 {
            let philox = Philox::new(self.hyper.seed, RandomStream::Dropout);
            context.dropout = Some((self.hyper.dropout, philox, self.controller.at()));
        }
        context.run(streams)?;
        let losses = self.losses(&self.training);
        self.controller.end_micro_step(streams.main, &losses)
    }

    fn context<'a>(&'a self, plan: &'a Plan, tokens: &Buffer<i32>) -> Context<'a, T> {
        let rows = plan.rows();
        let tokens_of_iteration = rows as u64 * self.hyper.gradient_accumulation_steps;
        Context {
            plan,
            arena: &self.arena,
            parameters: &self.parameters,
            workspace: &self.workspace,
            products: &self.selected.products,
            inputs: tokens.slice(0..rows),
            targets: tokens.slice(tokens.len() - rows..tokens.len()),
            state: self.controller.state(),
            loss_scale: (1.0 / tokens_of_iteration as f64) as f32,
            dropout: None,
        }
    }

    /// The loss of every token, where a plan leaves it.
    pub(super) fn losses(&self, plan: &Plan) -> Buffer<f32> {
        self.arena.view(plan.buffers[plan.losses.0].place.clone())
    }

    /// Logits `(V)` of one row of what generation left.
    pub(super) fn logits(&self, stream: &Stream, row: usize) -> Result<Vec<f32>, CudaError> {
        let (c, place) = (
            self.model.n_embd,
            &self.generation.buffers[self.generation.hidden.0],
        );
        let hidden: Buffer<T> = self.arena.view(place.place.clone());
        let hidden = hidden.slice(row * c..(row + 1) * c);
        let wte = &self.parameters.layout.padded_wte;
        let weight = self.parameters.weights.slice(wte.clone());
        let dims = matmul::Dims {
            m: 1,
            k: c,
            n: self.generation.logits_stride,
        };
        let mut logits = self.device.alloc::<T>(dims.n)?;
        matmul::cuda::forward(stream, &mut logits, &hidden, &weight, None, None, dims)?;
        let logits = logits.download()?;
        let logits = &logits[..self.model.vocab_size];
        Ok(logits.iter().map(|x| x.to_f64() as f32).collect())
    }
}

/// In fp32.
fn bytes_of(buffer: &Buffer<f32>) -> f64 {
    (buffer.len() * size_of::<f32>()) as f64
}

fn settings<T: Precision>(hyper: &Hyperparameters) -> Settings {
    Settings {
        // The host sets the rate of each step.
        learning_rate: 0.0,
        min_lr: 0.0,
        warmup_iters: 0,
        lr_decay_iters: None,
        beta1: hyper.beta1,
        beta2: hyper.beta2,
        weight_decay: hyper.weight_decay,
        grad_clip: hyper.grad_clip,
        micro_steps: hyper.gradient_accumulation_steps,
        loss_scaling: (T::DTYPE == Dtype::F16).then(LossScaling::default),
    }
}

/// The controller's before the first step.
pub(super) fn fresh_state<T: Precision>() -> StepState {
    StepState {
        step: 0,
        data_offset: 0,
        updates: 0,
        loss_scale: if T::DTYPE == Dtype::F16 {
            LOSS_SCALE
        } else {
            1.0
        },
        good_steps: 0,
        reports: 0,
    }
}
