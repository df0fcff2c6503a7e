//! AdamW on the CPU. Called by the plan once a step.

use multiversion::multiversion;
use rayon::prelude::*;

use super::AdamW;
use crate::simd::PIECE;

/// Updates parameters and moments. The first `decayed` parameters are decayed, the rest is not.
pub fn step(
    parameters: &mut [f32],
    gradients: &[f32],
    exp_avg: &mut [f32],
    exp_avg_sq: &mut [f32],
    decayed: usize,
    adamw: &AdamW,
) {
    let n = parameters.len();
    assert!(gradients.len() == n && exp_avg.len() == n && exp_avg_sq.len() == n);
    let (parameters, parameters_rest) = parameters.split_at_mut(decayed);
    let (gradients, gradients_rest) = gradients.split_at(decayed);
    let (exp_avg, exp_avg_rest) = exp_avg.split_at_mut(decayed);
    let (exp_avg_sq, exp_avg_sq_rest) = exp_avg_sq.split_at_mut(decayed);
    let decay = Factors::new(adamw, adamw.weight_decay);
    part(parameters, gradients, exp_avg, exp_avg_sq, decay);
    let no_decay = Factors::new(adamw, 0.0);
    part(
        parameters_rest,
        gradients_rest,
        exp_avg_rest,
        exp_avg_sq_rest,
        no_decay,
    );
}

/// What the update multiplies by, in the precision of the parameters.
#[derive(Clone, Copy)]
struct Factors {
    decay: f32,
    step_size: f32,
    root_correction2: f32,
    weight1: f32,
    beta2: f32,
    weight2: f32,
    eps: f32,
    gradient_scale: f32,
}

impl Factors {
    fn new(adamw: &AdamW, weight_decay: f64) -> Self {
        let exponent = i32::try_from(adamw.update).unwrap_or(i32::MAX);
        let correction1 = 1.0 - adamw.beta1.powi(exponent);
        let correction2 = 1.0 - adamw.beta2.powi(exponent);
        Self {
            decay: (1.0 - adamw.learning_rate * weight_decay) as f32,
            step_size: (adamw.learning_rate / correction1) as f32,
            root_correction2: correction2.sqrt() as f32,
            weight1: (1.0 - adamw.beta1) as f32,
            beta2: adamw.beta2 as f32,
            weight2: (1.0 - adamw.beta2) as f32,
            eps: adamw.eps as f32,
            gradient_scale: adamw.gradient_scale,
        }
    }
}

fn part(
    parameters: &mut [f32],
    gradients: &[f32],
    exp_avg: &mut [f32],
    exp_avg_sq: &mut [f32],
    factors: Factors,
) {
    let pieces = parameters
        .par_chunks_mut(PIECE)
        .zip(gradients.par_chunks(PIECE))
        .zip(exp_avg.par_chunks_mut(PIECE))
        .zip(exp_avg_sq.par_chunks_mut(PIECE));
    pieces.for_each(|(((parameters, gradients), exp_avg), exp_avg_sq)| {
        update(parameters, gradients, exp_avg, exp_avg_sq, factors);
    });
}

/// Without fused multiply-add: every machine makes the same rounding errors, and so does PyTorch.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn update(
    parameters: &mut [f32],
    gradients: &[f32],
    exp_avg: &mut [f32],
    exp_avg_sq: &mut [f32],
    factors: Factors,
) {
    let f = factors;
    let moments = exp_avg.iter_mut().zip(exp_avg_sq);
    for ((p, g), (m, v)) in parameters.iter_mut().zip(gradients).zip(moments) {
        let g = g * f.gradient_scale;
        *m += f.weight1 * (g - *m);
        *v = f.beta2 * *v + f.weight2 * g * g;
        let denominator = v.sqrt() / f.root_correction2 + f.eps;
        *p = *p * f.decay - f.step_size * (*m / denominator);
    }
}
