//! Embeddings on the CPU. Called by the plan.

use multiversion::multiversion;
use rayon::prelude::*;

use crate::dropout::{self, Dropout};
use crate::simd::PIECE;

/// Rows of `dwte` in one piece. Frequent tokens lie together, so pieces are small.
const DWTE_ROWS: usize = 16;

/// out = dropout(wte[token] + wpe[position]). `t` is the length of a sequence.
#[expect(
    clippy::too_many_arguments,
    reason = "the tensors of the operation and its shape"
)]
pub fn forward(
    out: &mut [f32], // (B, T, C)
    tokens: &[u32],  // (B, T)
    wte: &[f32],     // (V, C)
    wpe: &[f32],     // (block, C)
    t: usize,
    c: usize,
    start: usize,
    dropout: Option<&Dropout>,
) {
    assert!(t > 0 && c > 0 && tokens.len().is_multiple_of(t));
    assert!(out.len() == tokens.len() * c && wpe.len() >= (start + t) * c);
    assert!(
        tokens
            .iter()
            .all(|&token| (token as usize + 1) * c <= wte.len())
    );
    let rows = (PIECE / c).max(1);
    let pieces = out.par_chunks_mut(rows * c).zip(tokens.par_chunks(rows));
    pieces.enumerate().for_each(|(piece, (out, tokens))| {
        for (i, (out, &token)) in out.chunks_exact_mut(c).zip(tokens).enumerate() {
            let row = piece * rows + i;
            let position = start + row % t;
            let token = &wte[token as usize * c..][..c];
            dropout::cpu::add(out, token, &wpe[position * c..][..c], 0, None);
        }
        if let Some(dropout) = dropout {
            dropout.apply(piece * rows * c, out);
        }
    });
}

/// dwte += …, dwpe += …. Drops elements of `dout` in place first.
pub fn backward(
    dwte: &mut [f32], // (V, C)
    dwpe: &mut [f32], // (block, C)
    dout: &mut [f32], // (B, T, C)
    tokens: &[u32],   // (B, T)
    t: usize,
    c: usize,
    dropout: Option<&Dropout>,
) {
    assert!(t > 0 && c > 0 && tokens.len().is_multiple_of(t));
    assert!(dout.len() == tokens.len() * c && dwpe.len() >= t * c && dwte.len().is_multiple_of(c));
    if let Some(dropout) = dropout {
        dropout::cpu::forward(dout, dropout);
    }
    let dout = &*dout;

    let positions = (PIECE / (c * (tokens.len() / t).max(1))).max(1);
    let pieces = dwpe[..t * c].par_chunks_mut(positions * c);
    pieces.enumerate().for_each(|(piece, dwpe)| {
        for sequence in dout.chunks_exact(t * c) {
            add_row(dwpe, &sequence[piece * positions * c..][..dwpe.len()]);
        }
    });

    let (starts, rows) = rows_of_tokens(tokens, dwte.len() / c);
    let pieces = dwte.par_chunks_mut(DWTE_ROWS * c);
    pieces.enumerate().for_each(|(piece, dwte)| {
        for (i, dwte) in dwte.chunks_exact_mut(c).enumerate() {
            let token = piece * DWTE_ROWS + i;
            for &row in &rows[starts[token] as usize..starts[token + 1] as usize] {
                add_row(dwte, &dout[row as usize * c..][..c]);
            }
        }
    });
}

/// The rows of the batch by token, in order: token v is in `rows[starts[v]..starts[v + 1]]`.
fn rows_of_tokens(tokens: &[u32], vocab_size: usize) -> (Vec<u32>, Vec<u32>) {
    // Counts shifted by two, so that the second loop turns the ends of the tokens before into the
    // starts of their own.
    let mut starts = vec![0; vocab_size + 2];
    for &token in tokens {
        starts[token as usize + 2] += 1;
    }
    for v in 1..starts.len() {
        starts[v] += starts[v - 1];
    }
    let mut rows = vec![0; tokens.len()];
    for (row, &token) in (0..).zip(tokens) {
        let next = &mut starts[token as usize + 1];
        rows[*next as usize] = row;
        *next += 1;
    }
    (starts, rows)
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn add_row(sum: &mut [f32], row: &[f32]) {
    for (sum, x) in sum.iter_mut().zip(row) {
        *sum += x;
    }
}
