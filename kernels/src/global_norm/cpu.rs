//! The sum of squares on the CPU. Called by the plan once a step.

use multiversion::multiversion;
use rayon::prelude::*;

use crate::simd::{PIECE, sum_lanes};

/// Partial sums of a piece: as many as two accumulators of eight vectors hold.
const LANES: usize = 64;

/// Σ g^2 in f64, in an order that depends on the length alone.
pub fn sum_of_squares(gradients: &[f32]) -> f64 {
    let partials: Vec<f64> = gradients.par_chunks(PIECE).map(piece).collect();
    partials.iter().sum()
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn piece(gradients: &[f32]) -> f64 {
    let mut lanes = [0.0; LANES];
    for chunk in gradients.chunks(LANES) {
        for (lane, &g) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(g) * f64::from(g);
        }
    }
    sum_lanes(lanes)
}
