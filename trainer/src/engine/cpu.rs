//! The fused engine on the CPU: runs the plan over one arena with the operations of the crate
//! `kernels`. The default where there is no GPU.

mod awake;
mod decode;
mod run;

use std::time::Instant;

use kernels::adamw::AdamW;
use kernels::buffer::Buffer;
use kernels::{adamw, global_norm, matmul};

use self::awake::in_pool;
use self::decode::Decoder;
use self::run::{Context, run};
use super::plan::{Dtype, Layout, Plan, PlanRequest, Recompute, Target};
use super::{
    Engine, EngineState, Hyperparameters, Memory, MicroStep, Profile, Shape, UpdateStats, in_order,
    measured_peak,
};
use crate::data::Batch;
use crate::error::Result;
use crate::machine;
use crate::model::{ModelConfig, NamedTensor};
use crate::philox::{Philox, Stream};

/// A model on the CPU with its AdamW state, all in flat buffers.
pub struct CpuEngine {
    model: ModelConfig,
    hyper: Hyperparameters,
    layout: Layout,
    parameters: Buffer,
    gradients: Buffer,
    exp_avg: Buffer,
    exp_avg_sq: Buffer,
    updates: u64,
    training: Plan,
    evaluation: Plan,
    recompute: Recompute,
    /// Memory of whichever plan runs.
    arena: Buffer,
    dropout: Philox,
    loss_sum: f64,
    micro_steps: u64,
    decoder: Decoder,
    profile: Profile,
}

impl CpuEngine {
    /// An engine with freshly initialised parameters for batches of this shape.
    pub fn new(model: &ModelConfig, hyper: Hyperparameters, shape: Shape) -> Self {
        let layout = Layout::of(model);
        let (training, evaluation) = plans(model, hyper.dropout > 0.0, shape);
        let zeros = || Buffer::zeros(layout.elements);
        let mut parameters = zeros();
        for (tensor, place) in model.initialise(hyper.seed).iter().zip(&layout.places) {
            parameters[place.clone()].copy_from_slice(&tensor.data);
        }
        machine::release_freed_memory();
        Self {
            model: model.clone(),
            hyper,
            parameters,
            gradients: zeros(),
            exp_avg: zeros(),
            exp_avg_sq: zeros(),
            updates: 0,
            arena: Buffer::zeros(
                training.arena_bytes.max(evaluation.arena_bytes) / size_of::<f32>(),
            ),
            training,
            evaluation,
            recompute: shape.recompute,
            dropout: Philox::new(hyper.seed, Stream::Dropout),
            loss_sum: 0.0,
            micro_steps: 0,
            decoder: Decoder::default(),
            profile: Profile::default(),
            layout,
        }
    }

    /// The gradients accumulated since the last update, in the order of the parameters.
    pub fn gradients(&self) -> Vec<NamedTensor> {
        self.named(&self.gradients)
    }

    /// Runs forward of the evaluation plan and returns the mean loss.
    fn forward(&mut self, batch: &Batch) -> f64 {
        let context = Context {
            plan: &self.evaluation,
            layout: &self.layout,
            parameters: &self.parameters,
            tokens: &batch.inputs,
            targets: &batch.targets,
            loss_scale: 0.0,
            dropout: None,
        };
        run(&context, &mut self.arena, &mut [], &mut self.profile);
        mean_loss(&self.evaluation, &self.arena)
    }

    fn named(&self, flat: &[f32]) -> Vec<NamedTensor> {
        let pairs = self.layout.parameters.iter().zip(&self.layout.places);
        pairs
            .map(|(parameter, place)| NamedTensor {
                name: parameter.name.clone(),
                shape: parameter.shape.clone(),
                data: flat[place.clone()].to_vec(),
            })
            .collect()
    }

    fn flat(&self, tensors: &[&NamedTensor]) -> Buffer {
        let mut flat = Buffer::zeros(self.layout.elements);
        for (tensor, place) in tensors.iter().zip(&self.layout.places) {
            flat[place.clone()].copy_from_slice(&tensor.data);
        }
        flat
    }

    fn clear_gradients(&mut self) {
        self.gradients.fill(0.0);
        self.loss_sum = 0.0;
        self.micro_steps = 0;
    }

    fn check(&self, batch: &Batch) {
        let expected = (self.training.batch_size, self.training.block_size);
        assert_eq!(
            (batch.batch_size, batch.block_size),
            expected,
            "the plan's shape"
        );
        let limit = self.model.vocab_size as u32;
        assert!(
            batch
                .inputs
                .iter()
                .chain(&batch.targets)
                .all(|&id| id < limit),
            "ids are checked when a dataset is opened"
        );
    }
}

/// The plans of a step and of an evaluation.
pub(super) fn plans(model: &ModelConfig, dropout: bool, shape: Shape) -> (Plan, Plan) {
    let dims = run::attention_dims(model, shape.batch_size, shape.block_size);
    let training = PlanRequest {
        model,
        batch_size: shape.batch_size,
        block_size: shape.block_size,
        backward: true,
        dropout,
        recompute: shape.recompute,
        losses: true,
        target: target(model, kernels::attention::cpu::backward_scratch_len(dims)),
    };
    let evaluation = PlanRequest {
        backward: false,
        dropout: false,
        recompute: Recompute::None,
        target: target(model, 0),
        ..training.clone()
    };
    (training.build(), evaluation.build())
}

/// What a plan must know of a CPU.
fn target(model: &ModelConfig, attention_scratch: usize) -> Target {
    Target {
        dtype: Dtype::F32,
        // A cache line.
        alignment: 64,
        logits_stride: model.vocab_size,
        // 256 MiB.
        logits_elements_max: 1 << 26,
        attention_scratch,
    }
}

/// What a run of this shape takes.
pub(super) fn memory(model: &ModelConfig, dropout: bool, shape: Shape) -> Memory {
    let (training, evaluation) = plans(model, dropout, shape);
    memory_of(&Layout::of(model), &training, &evaluation, shape.recompute)
}

fn memory_of(layout: &Layout, training: &Plan, evaluation: &Plan, recompute: Recompute) -> Memory {
    let fp32 = (layout.elements * size_of::<f32>()) as u64;
    Memory {
        weights: fp32,
        gradients: fp32,
        moments: 2 * fp32,
        workspace: matmul::cpu::workspace_max(rayon::current_num_threads()) as u64,
        activations: training.arena_bytes.max(evaluation.arena_bytes) as u64,
        dataset: 0,
        recompute,
    }
}

/// Mean of the losses that a plan left.
fn mean_loss(plan: &Plan, arena: &[f32]) -> f64 {
    let losses = &arena[run::elements(plan, plan.losses)];
    losses.iter().map(|&loss| f64::from(loss)).sum::<f64>() / losses.len() as f64
}

impl Engine for CpuEngine {
    fn model(&self) -> &ModelConfig {
        &self.model
    }

    fn name(&self) -> &'static str {
        "fused"
    }

    fn device(&self) -> String {
        "cpu".to_owned()
    }

    fn peak_flops(&self) -> Result<Option<f64>> {
        Ok(Some(measured_peak()))
    }

    fn memory(&self) -> Option<Memory> {
        Some(memory_of(
            &self.layout,
            &self.training,
            &self.evaluation,
            self.recompute,
        ))
    }

    fn forward_backward(&mut self, batch: &Batch, at: MicroStep) -> Result<()> {
        self.check(batch);
        let tokens = self.training.rows() as u64 * self.hyper.gradient_accumulation_steps;
        let context = Context {
            plan: &self.training,
            layout: &self.layout,
            parameters: &self.parameters,
            tokens: &batch.inputs,
            targets: &batch.targets,
            loss_scale: (1.0 / tokens as f64) as f32,
            dropout: (self.hyper.dropout > 0.0)
                .then(|| (self.hyper.dropout, self.dropout, at.counter())),
        };
        run(
            &context,
            &mut self.arena,
            &mut self.gradients,
            &mut self.profile,
        );
        self.loss_sum += mean_loss(&self.training, &self.arena);
        self.micro_steps += 1;
        Ok(())
    }

    fn submit_update(&mut self, learning_rate: f64) -> Result<Option<UpdateStats>> {
        assert!(self.micro_steps > 0, "an update needs gradients");
        let begin = Instant::now();
        let grad_norm = in_pool(|| global_norm::cpu::sum_of_squares(&self.gradients)).sqrt();
        let stats = UpdateStats {
            loss: self.loss_sum / self.micro_steps as f64,
            grad_norm,
            overflowed: false,
        };
        if stats.loss.is_finite() && grad_norm.is_finite() {
            self.updates += 1;
            let step = AdamW {
                learning_rate,
                beta1: self.hyper.beta1,
                beta2: self.hyper.beta2,
                eps: self.hyper.adam_eps,
                weight_decay: self.hyper.weight_decay,
                update: self.updates,
                gradient_scale: global_norm::clip_factor(grad_norm, self.hyper.grad_clip),
            };
            in_pool(|| {
                adamw::cpu::step(
                    &mut self.parameters,
                    &self.gradients,
                    &mut self.exp_avg,
                    &mut self.exp_avg_sq,
                    self.layout.decayed,
                    &step,
                );
            });
        }
        self.clear_gradients();
        self.decoder.forget();
        let bytes = self.layout.elements as f64 * 4.0 * 9.0;
        self.profile
            .add("adamw and gradient norm", begin.elapsed(), 0.0, bytes);
        Ok(Some(stats))
    }

    fn loss(&mut self, batch: &Batch) -> Result<f64> {
        self.check(batch);
        Ok(self.forward(batch))
    }

    fn logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        let model = &self.model;
        assert!(
            (1..=model.block_size).contains(&tokens.len()),
            "1 to {} tokens, got {}",
            model.block_size,
            tokens.len()
        );
        Ok(self
            .decoder
            .logits(model, &self.layout, &self.parameters, tokens))
    }

    fn state(&self) -> Result<EngineState> {
        Ok(EngineState {
            parameters: self.named(&self.parameters),
            exp_avg: self.named(&self.exp_avg),
            exp_avg_sq: self.named(&self.exp_avg_sq),
            updates: self.updates,
            loss_scale: None,
        })
    }

    fn load_parameters(&mut self, parameters: &[NamedTensor]) -> Result<()> {
        let parameters = in_order(&self.layout.parameters, parameters, "parameter")?;
        self.parameters = self.flat(&parameters);
        self.decoder.forget();
        Ok(())
    }

    fn load_state(&mut self, state: &EngineState) -> Result<()> {
        let expected = &self.layout.parameters;
        let exp_avg = in_order(expected, &state.exp_avg, "first moment of")?;
        let exp_avg_sq = in_order(expected, &state.exp_avg_sq, "second moment of")?;
        let (exp_avg, exp_avg_sq) = (self.flat(&exp_avg), self.flat(&exp_avg_sq));
        self.load_parameters(&state.parameters)?;
        self.exp_avg = exp_avg;
        self.exp_avg_sq = exp_avg_sq;
        self.updates = state.updates;
        self.clear_gradients();
        Ok(())
    }

    fn take_profile(&mut self) -> Profile {
        std::mem::take(&mut self.profile)
    }
}

#[cfg(test)]
mod tests;
