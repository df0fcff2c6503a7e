//! AdamW over plain slices, with PyTorch's order of operations, and the global gradient norm.
//!
//! Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019; Kingma and Ba,
//! "Adam", ICLR 2015, algorithm 1.

use rayon::prelude::*;

/// Hyper-parameters of one update of one tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    pub learning_rate: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    /// 0 for gains and biases.
    pub weight_decay: f64,
    /// Updates made before this one, plus one.
    pub update: u64,
    /// Factor on the gradient: below 1 where the global norm is clipped.
    pub gradient_scale: f32,
}

/// Elements handled by one task: large enough to pay for it, and a fixed size, so that the result
/// does not depend on the number of threads.
const CHUNK: usize = 1 << 14;

impl AdamW {
    /// Updates `parameter`, `exp_avg` and `exp_avg_sq` in place; all slices have the same length.
    pub fn apply(
        &self,
        parameter: &mut [f32],
        gradient: &[f32],
        exp_avg: &mut [f32],
        exp_avg_sq: &mut [f32],
    ) {
        let n = parameter.len();
        assert!(gradient.len() == n && exp_avg.len() == n && exp_avg_sq.len() == n);
        let exponent = i32::try_from(self.update).unwrap_or(i32::MAX);
        let correction1 = 1.0 - self.beta1.powi(exponent);
        let correction2 = 1.0 - self.beta2.powi(exponent);
        let decay = (1.0 - self.learning_rate * self.weight_decay) as f32;
        let step_size = (self.learning_rate / correction1) as f32;
        let root_correction2 = correction2.sqrt() as f32;
        let (weight1, beta2) = ((1.0 - self.beta1) as f32, self.beta2 as f32);
        let (weight2, eps) = ((1.0 - self.beta2) as f32, self.eps as f32);
        let scale = self.gradient_scale;

        let chunks = parameter
            .par_chunks_mut(CHUNK)
            .zip(gradient.par_chunks(CHUNK))
            .zip(exp_avg.par_chunks_mut(CHUNK))
            .zip(exp_avg_sq.par_chunks_mut(CHUNK));
        chunks.for_each(|(((parameter, gradient), exp_avg), exp_avg_sq)| {
            for i in 0..parameter.len() {
                let g = gradient[i] * scale;
                exp_avg[i] += weight1 * (g - exp_avg[i]);
                exp_avg_sq[i] = beta2 * exp_avg_sq[i] + weight2 * g * g;
                let denominator = exp_avg_sq[i].sqrt() / root_correction2 + eps;
                parameter[i] = parameter[i] * decay - step_size * (exp_avg[i] / denominator);
            }
        });
    }
}

/// Global L2 norm over all gradients, in f64. The order of the sum is fixed.
pub fn global_norm(gradients: &[Vec<f32>]) -> f64 {
    let sum_of_squares = |chunk: &[f32]| chunk.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>();
    let mut total = 0.0;
    for gradient in gradients {
        let partial: Vec<f64> = gradient.par_chunks(CHUNK).map(sum_of_squares).collect();
        total += partial.iter().sum::<f64>();
    }
    total.sqrt()
}

/// PyTorch's `clip_grad_norm_`: the factor that brings a gradient of this norm to `grad_clip`;
/// 1 where it is short enough, or where `grad_clip` is 0 (off).
pub fn clip_factor(grad_norm: f64, grad_clip: f64) -> f32 {
    if grad_clip == 0.0 {
        return 1.0;
    }
    (grad_clip / (grad_norm + 1e-6)).min(1.0) as f32
}

#[cfg(test)]
mod tests;
