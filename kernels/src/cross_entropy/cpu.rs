//! Cross entropy on the CPU. Called by the plan.

use multiversion::multiversion;
use rayon::prelude::*;

use crate::simd::{self, PIECE, exp, sum_of};

/// Logits whose maximum is taken before their exponentials, while they are in the nearest cache.
const TILE: usize = 2048;

/// The loss of each row; its gradient replaces the logits.
pub fn forward_backward(
    logits: &mut [f32], // (M, V)
    losses: &mut [f32], // (M)
    targets: &[u32],    // (M)
    scale: f32,
) {
    let v = vocab_size(logits.len(), losses, targets);
    let rows = (PIECE / v).max(1);
    let pieces = logits
        .par_chunks_mut(rows * v)
        .zip(losses.par_chunks_mut(rows))
        .zip(targets.par_chunks(rows));
    pieces.for_each(|((logits, losses), targets)| {
        forward_backward_rows(logits, losses, targets, scale);
    });
}

/// The loss of each row.
pub fn forward(
    losses: &mut [f32], // (M)
    logits: &[f32],     // (M, V)
    targets: &[u32],    // (M)
) {
    let v = vocab_size(logits.len(), losses, targets);
    let rows = (PIECE / v).max(1);
    let pieces = losses
        .par_chunks_mut(rows)
        .zip(logits.par_chunks(rows * v))
        .zip(targets.par_chunks(rows));
    pieces.for_each(|((losses, logits), targets)| forward_rows(losses, logits, targets));
}

/// V, at least 1. Every target must be below it.
fn vocab_size(logits: usize, losses: &[f32], targets: &[u32]) -> usize {
    let m = losses.len();
    assert!(targets.len() == m && logits.is_multiple_of(m.max(1)));
    let v = logits.checked_div(m).unwrap_or(1);
    assert!(targets.iter().all(|&target| (target as usize) < v));
    v
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn forward_backward_rows(logits: &mut [f32], losses: &mut [f32], targets: &[u32], scale: f32) {
    let v = logits.len() / losses.len();
    for ((logits, loss), &target) in logits.chunks_exact_mut(v).zip(losses).zip(targets) {
        let target = target as usize;
        let (highest, sum) = highest_and_sum(logits);
        *loss = sum.ln() - (logits[target] - highest);
        let factor = scale / sum;
        for logit in logits.iter_mut() {
            *logit = factor * exp(*logit - highest);
        }
        logits[target] -= scale;
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn forward_rows(losses: &mut [f32], logits: &[f32], targets: &[u32]) {
    let v = logits.len() / losses.len();
    for ((logits, loss), &target) in logits.chunks_exact(v).zip(losses).zip(targets) {
        let (highest, sum) = highest_and_sum(logits);
        *loss = sum.ln() - (logits[target as usize] - highest);
    }
}

/// The greatest logit h, and Σ e^(logit - h). One pass over memory.
#[inline(always)]
fn highest_and_sum(logits: &[f32]) -> (f32, f32) {
    let (mut highest, mut sum) = (f32::NEG_INFINITY, 0.0);
    for tile in logits.chunks(TILE) {
        let highest_here = simd::max(tile);
        if highest_here > highest {
            sum *= exp(highest - highest_here);
            highest = highest_here;
        }
        sum += sum_of([tile], |[logit]| exp(logit - highest));
    }
    (highest, sum)
}
