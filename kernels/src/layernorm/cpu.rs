//! LayerNorm on the CPU. Called by the plan.

use multiversion::multiversion;
use rayon::prelude::*;

use crate::dropout::{self, Dropout};
use crate::simd::{PIECE, sum_of};

const EPS: f32 = 1e-5;

/// Most pieces that the backward pass cuts the rows into. Each has partial sums of 2 C floats.
const BACKWARD_PIECES_MAX: usize = 64;

/// Columns of the partial sums that one task adds up.
const COLUMNS: usize = 256;

/// out = LN(x); saves the statistics of each row.
pub fn forward(
    out: &mut [f32],      // (M, C)
    mean: &mut [f32],     // (M)
    rstd: &mut [f32],     // (M)
    x: &[f32],            // (M, C)
    weight: &[f32],       // (C)
    bias: Option<&[f32]>, // (C)
) {
    let (m, c) = (mean.len(), weight.len());
    assert!(c > 0 && x.len() == m * c && out.len() == m * c && rstd.len() == m);
    assert!(bias.is_none_or(|bias| bias.len() == c));
    let rows = rows_in_piece(c);
    let pieces = out
        .par_chunks_mut(rows * c)
        .zip(mean.par_chunks_mut(rows))
        .zip(rstd.par_chunks_mut(rows))
        .zip(x.par_chunks(rows * c));
    pieces.for_each(|(((out, mean), rstd), x)| forward_rows(out, mean, rstd, x, weight, bias));
}

/// x_out = x + dropout(branch), out = LN(x_out); saves the statistics of each row of `x_out`.
#[expect(
    clippy::too_many_arguments,
    reason = "the tensors of two fused operations"
)]
pub fn residual_forward(
    x_out: &mut [f32], // (M, C)
    out: &mut [f32],   // (M, C)
    mean: &mut [f32],  // (M)
    rstd: &mut [f32],  // (M)
    x: &[f32],         // (M, C)
    branch: &[f32],    // (M, C)
    dropout: Option<&Dropout>,
    weight: &[f32],       // (C)
    bias: Option<&[f32]>, // (C)
) {
    let (m, c) = (mean.len(), weight.len());
    assert!(c > 0 && x_out.len() == m * c && out.len() == m * c && rstd.len() == m);
    assert!(x.len() == m * c && branch.len() == m * c);
    assert!(bias.is_none_or(|bias| bias.len() == c));
    let rows = rows_in_piece(c);
    let pieces = x_out
        .par_chunks_mut(rows * c)
        .zip(out.par_chunks_mut(rows * c))
        .zip(mean.par_chunks_mut(rows))
        .zip(rstd.par_chunks_mut(rows))
        .zip(x.par_chunks(rows * c))
        .zip(branch.par_chunks(rows * c));
    pieces
        .enumerate()
        .for_each(|(i, (((((x_out, out), mean), rstd), x), branch))| {
            // A few rows at a time: they are normalised while they are in the nearest cache.
            let few = (2048 / c).max(1);
            let first = i * rows * c;
            for row in (0..mean.len()).step_by(few) {
                let rows = row..(row + few).min(mean.len());
                let elements = rows.start * c..rows.end * c;
                let x_out = &mut x_out[elements.clone()];
                let (x, branch) = (&x[elements.clone()], &branch[elements.clone()]);
                dropout::cpu::add(x_out, x, branch, first + elements.start, dropout);
                let (mean, rstd) = (&mut mean[rows.clone()], &mut rstd[rows]);
                forward_rows(&mut out[elements], mean, rstd, x_out, weight, bias);
            }
        });
}

/// dx += …, dweight += …, dbias += …
#[expect(clippy::too_many_arguments, reason = "the tensors of the operation")]
pub fn backward(
    dx: &mut [f32],            // (M, C)
    dweight: &mut [f32],       // (C)
    dbias: Option<&mut [f32]>, // (C)
    dout: &[f32],              // (M, C)
    x: &[f32],                 // (M, C)
    mean: &[f32],              // (M)
    rstd: &[f32],              // (M)
    weight: &[f32],            // (C)
) {
    let (m, c) = (mean.len(), weight.len());
    assert!(c > 0 && x.len() == m * c && dx.len() == m * c && dout.len() == m * c);
    assert!(rstd.len() == m && dweight.len() == c);
    assert!(dbias.as_ref().is_none_or(|dbias| dbias.len() == c));
    let rows = rows_in_piece(c).max(m.div_ceil(BACKWARD_PIECES_MAX));
    let mut partials = vec![0.0; m.div_ceil(rows) * 2 * c];
    let pieces = partials
        .par_chunks_mut(2 * c)
        .zip(dx.par_chunks_mut(rows * c))
        .zip(dout.par_chunks(rows * c))
        .zip(x.par_chunks(rows * c))
        .zip(mean.par_chunks(rows).zip(rstd.par_chunks(rows)));
    pieces.for_each(|((((partial, dx), dout), x), (mean, rstd))| {
        let (dweight, dbias) = partial.split_at_mut(c);
        backward_rows(dx, dweight, dbias, dout, x, mean, rstd, weight);
    });
    let add_partials = |sum: &mut [f32], offset: usize| {
        let columns = sum.par_chunks_mut(COLUMNS).enumerate();
        columns.for_each(|(i, sum)| {
            for partial in partials.chunks_exact(2 * c) {
                let partial = &partial[offset + i * COLUMNS..][..sum.len()];
                sum.iter_mut()
                    .zip(partial)
                    .for_each(|(sum, term)| *sum += term);
            }
        });
    };
    add_partials(dweight, 0);
    if let Some(dbias) = dbias {
        add_partials(dbias, c);
    }
}

fn rows_in_piece(c: usize) -> usize {
    (PIECE / c).max(1)
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn forward_rows(
    out: &mut [f32],
    mean: &mut [f32],
    rstd: &mut [f32],
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
) {
    let c = weight.len();
    let statistics = mean.iter_mut().zip(rstd);
    for ((out, x), (mean, rstd)) in out
        .chunks_exact_mut(c)
        .zip(x.chunks_exact(c))
        .zip(statistics)
    {
        let m = sum_of([x], |[x]| x) / c as f32;
        let variance = sum_of([x], |[x]| (x - m) * (x - m)) / c as f32;
        let r = 1.0 / (variance + EPS).sqrt();
        (*mean, *rstd) = (m, r);
        let terms = out.iter_mut().zip(x).zip(weight);
        match bias {
            Some(bias) => {
                for (((out, x), weight), bias) in terms.zip(bias) {
                    *out = ((x - m) * r).mul_add(*weight, *bias);
                }
            }
            None => {
                for ((out, x), weight) in terms {
                    *out = (x - m) * r * weight;
                }
            }
        }
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
#[expect(clippy::too_many_arguments, reason = "the tensors of the operation")]
fn backward_rows(
    dx: &mut [f32],
    dweight: &mut [f32],
    dbias: &mut [f32],
    dout: &[f32],
    x: &[f32],
    mean: &[f32],
    rstd: &[f32],
    weight: &[f32],
) {
    let c = weight.len();
    let rows = dx
        .chunks_exact_mut(c)
        .zip(dout.chunks_exact(c))
        .zip(x.chunks_exact(c));
    for (((dx, dout), x), (&mean, &rstd)) in rows.zip(mean.iter().zip(rstd)) {
        let (dweight, dbias) = (&mut dweight[..c], &mut dbias[..c]);
        let sum = sum_of([dout, weight], |[dout, weight]| dout * weight) / c as f32;
        let dot = sum_of([dout, weight, x], |[dout, weight, x]| {
            dout * weight * (x - mean)
        });
        let dot = dot * rstd / c as f32;
        for i in 0..c {
            let xhat = (x[i] - mean) * rstd;
            dweight[i] += dout[i] * xhat;
            dbias[i] += dout[i];
            dx[i] += rstd * (dout[i] * weight[i] - sum - xhat * dot);
        }
    }
}
