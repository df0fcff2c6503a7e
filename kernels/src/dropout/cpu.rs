//! Dropout on the CPU. Called by the plan; [`Dropout::factors`] also by the rooms that fuse it.

use multiversion::multiversion;
use rayon::prelude::*;

use super::Dropout;
use crate::simd::PIECE;

/// Elements whose factors are made at once, in a buffer on the stack.
const TILE: usize = 1024;

/// x *= factor.
pub fn forward(x: &mut [f32], dropout: &Dropout) {
    x.par_chunks_mut(PIECE)
        .enumerate()
        .for_each(|(i, x)| dropout.apply(i * PIECE, x));
}

/// dx = dout * factor, where `dout` goes on along the residual stream.
pub fn backward(dx: &mut [f32], dout: &[f32], dropout: &Dropout) {
    assert_eq!(dx.len(), dout.len());
    let pieces = dx.par_chunks_mut(PIECE).zip(dout.par_chunks(PIECE));
    pieces.enumerate().for_each(|(i, (dx, dout))| {
        dropout.factors(i * PIECE, dx);
        for (dx, dout) in dx.iter_mut().zip(dout) {
            *dx *= dout;
        }
    });
}

/// out = residual + branch * factor; without dropout, the factor is 1.
pub fn residual_add(out: &mut [f32], residual: &[f32], branch: &[f32], dropout: Option<&Dropout>) {
    assert!(residual.len() == out.len() && branch.len() == out.len());
    let pieces = out
        .par_chunks_mut(PIECE)
        .zip(residual.par_chunks(PIECE))
        .zip(branch.par_chunks(PIECE));
    pieces
        .enumerate()
        .for_each(|(i, ((out, residual), branch))| {
            add(out, residual, branch, i * PIECE, dropout);
        });
}

impl Dropout {
    /// The factors of the elements from `first` on: 0 or 1 / (1 - p).
    pub fn factors(&self, first: usize, out: &mut [f32]) {
        assert!(
            (first + out.len()).div_ceil(4) <= 1 << 32,
            "a tensor has more elements than its dropout has random words"
        );
        let (threshold, keep) = (self.threshold(), self.keep());
        let (head, body) = out.split_at_mut(out.len().min((4 - first % 4) % 4));
        let partial_block = |block: usize, skip: usize, out: &mut [f32]| {
            let words = self.block(block as u32);
            for (out, word) in out.iter_mut().zip(&words[skip..]) {
                *out = if *word >= threshold { keep } else { 0.0 };
            }
        };
        if !head.is_empty() {
            partial_block(first / 4, first % 4, head);
        }
        let blocks = first.div_ceil(4);
        let (body, tail) = body.split_at_mut(body.len() / 4 * 4);
        whole_blocks(body, self, blocks as u32, threshold, keep);
        if !tail.is_empty() {
            partial_block(blocks + body.len() / 4, 0, tail);
        }
    }

    /// x *= factor, for the elements from `first` on.
    pub(crate) fn apply(&self, first: usize, x: &mut [f32]) {
        let mut factors = [0.0; TILE];
        for (i, x) in x.chunks_mut(TILE).enumerate() {
            let factors = &mut factors[..x.len()];
            self.factors(first + i * TILE, factors);
            for (x, factor) in x.iter_mut().zip(factors) {
                *x *= *factor;
            }
        }
    }

    #[inline(always)]
    fn block(&self, block: u32) -> [u32; 4] {
        let [step, rest] = self.at;
        self.philox.block([block, self.place, step, rest])
    }
}

/// out = residual + branch * factor, for the elements from `first` on.
pub(crate) fn add(
    out: &mut [f32],
    residual: &[f32],
    branch: &[f32],
    first: usize,
    dropout: Option<&Dropout>,
) {
    let Some(dropout) = dropout else {
        return sum(out, residual, branch);
    };
    let mut factors = [0.0; TILE];
    let terms = residual.chunks(TILE).zip(branch.chunks(TILE));
    for (i, (out, (residual, branch))) in out.chunks_mut(TILE).zip(terms).enumerate() {
        let factors = &mut factors[..out.len()];
        dropout.factors(first + i * TILE, factors);
        sum_of_products(out, residual, branch, factors);
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn sum(out: &mut [f32], residual: &[f32], branch: &[f32]) {
    for (out, (residual, branch)) in out.iter_mut().zip(residual.iter().zip(branch)) {
        *out = residual + branch;
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn sum_of_products(out: &mut [f32], residual: &[f32], branch: &[f32], factors: &[f32]) {
    let terms = residual.iter().zip(branch).zip(factors);
    for (out, ((residual, branch), factor)) in out.iter_mut().zip(terms) {
        *out = residual + branch * factor;
    }
}

/// The factors of whole blocks from `first` on. One block for each lane of a vector.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn whole_blocks(out: &mut [f32], dropout: &Dropout, first: u32, threshold: u32, keep: f32) {
    for (i, out) in (0u32..).zip(out.chunks_exact_mut(4)) {
        let words = dropout.block(first.wrapping_add(i));
        for (out, word) in out.iter_mut().zip(words) {
            *out = if word >= threshold { keep } else { 0.0 };
        }
    }
}
