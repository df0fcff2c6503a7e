//! The step controller: what changes from step to step, kept and decided on the device.
//!
//! ```text
//! begin_step       micro_step = 0, loss_sum = 0, `at` of the first micro-step
//! end_micro_step   loss_sum += Σ losses / M, `at` of the next micro-step
//! prepare_update   norm  = sqrt(Σ partials) / loss_scale, loss = loss_sum / micro_steps
//!                  skip  = loss, norm or any gradient is not finite
//!                  lr    = nanoGPT's schedule of the step: warm-up, cosine, min_lr
//!                  gradient_scale = clip(norm) / loss_scale, AdamW's factors for update t
//!                  a report goes to the ring; loss_scale halves after a skip, doubles after
//!                  `growth_steps` good steps in a row
//! end_step         step += 1, also where the update was skipped
//! ```
//!
//! The host reads the ring when it likes and is never waited for. Dynamic loss scaling:
//! Micikevicius et al., "Mixed precision training", ICLR 2018, section 3.2; its factors and the
//! growth interval are those of PyTorch's `GradScaler`.

pub mod cuda;
#[cfg(test)]
mod cuda_tests;

/// What stays the same over a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    pub learning_rate: f64,
    pub min_lr: f64,
    pub warmup_iters: u64,
    /// `None`: the learning rate is constant, as with nanoGPT's `decay_lr=False`.
    pub lr_decay_iters: Option<u64>,
    pub beta1: f64,
    pub beta2: f64,
    pub weight_decay: f64,
    /// 0: gradients are not clipped.
    pub grad_clip: f64,
    /// Micro-steps of an iteration.
    pub micro_steps: u64,
    /// `None`: the loss scale stays what it is, as bf16 and fp32 want it.
    pub loss_scaling: Option<LossScaling>,
}

/// How the loss scale moves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossScaling {
    /// Steps without overflow after which it doubles.
    pub growth_steps: u32,
    /// What it never passes.
    pub max: f32,
}

impl Default for LossScaling {
    /// PyTorch's growth interval; the scale stays far from what overflows in fp32.
    fn default() -> Self {
        Self {
            growth_steps: 2000,
            max: 16_777_216.0, // 2^24
        }
    }
}

/// What changes from step to step, as the host sets it before the first and may read it after any.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepState {
    /// Index of the iteration, from 0.
    pub step: u64,
    /// Added to `step` for what is drawn: batches and dropout.
    pub data_offset: u64,
    /// AdamW's updates so far.
    pub updates: u32,
    /// 1 where the loss is not scaled.
    pub loss_scale: f32,
    /// Steps without overflow since the loss scale last changed.
    pub good_steps: u32,
    /// Reports written to the ring so far.
    pub reports: u32,
}

/// What one iteration came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Report {
    pub step: u64,
    /// Mean over the micro-steps, nats per token.
    pub loss: f32,
    /// Before clipping, without the loss scale.
    pub grad_norm: f32,
    pub learning_rate: f32,
    /// That this step's gradients were multiplied by.
    pub loss_scale: f32,
    /// Whether nothing was updated, because something was not finite.
    pub skipped: bool,
    /// Gradients that were not finite.
    pub nonfinite: u32,
}
