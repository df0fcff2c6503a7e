//! Attention on the CPU: tiles of 64 queries by 64 keys, in parallel over batch, heads and chunks
//! of 256 rows; tiles above the diagonal are skipped. The engines call it.
//!
//! Every chunk is computed by one thread in one order, and chunks are added in their order, so
//! results do not depend on the number of threads.

#[macro_use]
mod tile;
mod product;
mod mask;
mod forward;
mod backward;
mod decode;

use std::cell::RefCell;

use rayon::prelude::*;

pub use decode::{CacheDims, decode, key_cache_len, store, value_cache_len};
use tile::{Rows, TILE, Vector, WIDTH, ZERO};

use super::Dims;
use crate::dropout::Dropout;

/// Rows of one piece of work.
const CHUNK: usize = 256;

/// With fewer heads in a batch than this, a head's chunks of keys are computed in parallel, too.
const HEADS_ENOUGH: usize = 64;

/// `out` `(B, T, C)` = attention of `qkv` `(B, T, 3C)`; saves `lse` `(B, H, T)` for `backward`.
///
/// `dropout` drops attention weights; weight `(b, h, q, k)` is element
/// `((b * H + h) * T + q) * T + k`. Panics if a length does not fit `dims`.
pub fn forward(
    out: &mut [f32],
    lse: &mut [f32],
    qkv: &[f32],
    dims: Dims,
    dropout: Option<&Dropout>,
) {
    let Dims {
        time,
        heads,
        head_size,
        ..
    } = dims;
    let channels = dims.channels();
    assert_eq!(out.len(), dims.batch * time * channels, "out is (B, T, C)");
    assert_eq!(lse.len(), dims.batch * heads * time, "lse is (B, H, T)");
    assert_eq!(qkv.len(), 3 * out.len(), "qkv is (B, T, 3C)");
    if out.is_empty() {
        return;
    }
    out.par_chunks_exact_mut(time * channels)
        .zip(lse.par_chunks_exact_mut(heads * time))
        .zip(qkv.par_chunks_exact(time * 3 * channels))
        .enumerate()
        .for_each(|(batch, ((out, lse), qkv))| {
            rows_by_head(out, heads, head_size)
                .into_par_iter()
                .zip(lse.par_chunks_exact_mut(time))
                .enumerate()
                .for_each(|(head, (mut out, lse))| {
                    out.par_chunks_mut(CHUNK)
                        .zip(lse.par_chunks_mut(CHUNK))
                        .enumerate()
                        .for_each(|(chunk, (out, lse))| {
                            let head = Head {
                                qkv,
                                dims,
                                dropout,
                                batch,
                                head,
                            };
                            with_scratch(forward::scratch_len(dims), |scratch| {
                                forward::chunk(head, chunk * CHUNK, out, lse, scratch);
                            });
                        });
                });
        });
}

/// `dqkv` `(B, T, 3C)` = gradient of the inputs of `forward` from `dout` `(B, T, C)`, the gradient
/// of its output, given its input `qkv`, its output `out` and `lse`, with the same `dropout`.
///
/// `scratch` is of `backward_scratch_len(dims)`; what it holds before and after means nothing.
/// Panics if a length does not fit `dims`.
#[expect(
    clippy::too_many_arguments,
    reason = "the operation has as many operands"
)]
pub fn backward(
    dqkv: &mut [f32],
    dout: &[f32],
    qkv: &[f32],
    out: &[f32],
    lse: &[f32],
    dims: Dims,
    dropout: Option<&Dropout>,
    scratch: &mut [f32],
) {
    let Dims {
        time,
        heads,
        head_size,
        ..
    } = dims;
    let channels = dims.channels();
    assert_eq!(out.len(), dims.batch * time * channels, "out is (B, T, C)");
    assert_eq!(dout.len(), out.len(), "dout is (B, T, C)");
    assert_eq!(lse.len(), dims.batch * heads * time, "lse is (B, H, T)");
    assert_eq!(qkv.len(), 3 * out.len(), "qkv is (B, T, 3C)");
    assert_eq!(dqkv.len(), qkv.len(), "dqkv is (B, T, 3C)");
    assert_eq!(
        scratch.len(),
        backward_scratch_len(dims),
        "scratch is of backward_scratch_len"
    );
    if out.is_empty() {
        return;
    }
    let (tokens, packed) = (time * channels, 3 * time * channels);
    dqkv.par_chunks_exact_mut(packed)
        .zip(parts(scratch, dims.batch))
        .enumerate()
        .for_each(|(batch, (dqkv, scratch))| {
            let mut gradients = rows_by_head(dqkv, 3 * heads, head_size);
            let dv = gradients.split_off(2 * heads);
            let dk = gradients.split_off(heads);
            gradients
                .into_par_iter()
                .zip(dk)
                .zip(dv)
                .zip(parts(scratch, heads))
                .enumerate()
                .for_each(|(head, (((dq, dk), dv), partials))| {
                    let head = Head {
                        qkv: &qkv[batch * packed..][..packed],
                        dims,
                        dropout,
                        batch,
                        head,
                    };
                    let saved = backward::Saved {
                        dout: &dout[batch * tokens..][..tokens],
                        out: &out[batch * tokens..][..tokens],
                        lse: &lse[(batch * heads + head.head) * time..][..time],
                    };
                    backward_head(head, saved, dq, dk, dv, partials);
                });
        });
}

/// Elements of the scratch that `backward` needs: the gradients of `q` that come from other
/// chunks of keys than the first, if those are computed in parallel.
pub fn backward_scratch_len(dims: Dims) -> usize {
    if dims.batch * dims.heads >= HEADS_ENOUGH {
        return 0;
    }
    let rows: usize = (CHUNK..dims.time)
        .step_by(CHUNK)
        .map(|start| dims.time - start)
        .sum();
    dims.batch * dims.heads * rows * dims.head_size
}

/// Gradients of one head, chunk of keys after chunk of keys; the rows are those of all T tokens.
fn backward_head<'a>(
    head: Head<'_>,
    saved: backward::Saved<'_>,
    mut dq: Vec<&'a mut [f32]>,
    mut dk: Vec<&mut [f32]>,
    mut dv: Vec<&mut [f32]>,
    partials: &'a mut [f32],
) {
    let Dims {
        time, head_size, ..
    } = head.dims;
    let keys = dk.par_chunks_mut(CHUNK).zip(dv.par_chunks_mut(CHUNK));
    if partials.is_empty() {
        with_scratch(backward::scratch_len(head.dims), |scratch| {
            for (chunk, (dk, dv)) in dk.chunks_mut(CHUNK).zip(dv.chunks_mut(CHUNK)).enumerate() {
                let start = chunk * CHUNK;
                backward::chunk(
                    head,
                    saved,
                    start,
                    &mut dq[start..],
                    start > 0,
                    dk,
                    dv,
                    scratch,
                );
            }
        });
        return;
    }
    // The first chunk writes to dq, each other chunk to a part of the scratch.
    let mut partial_rows = Vec::new();
    let mut rest = partials.chunks_exact_mut(head_size);
    for start in (CHUNK..time).step_by(CHUNK) {
        partial_rows.push(rest.by_ref().take(time - start).collect::<Vec<_>>());
    }
    let mut dq_of_chunks = vec![&mut dq];
    dq_of_chunks.extend(&mut partial_rows);
    keys.zip(dq_of_chunks)
        .enumerate()
        .for_each(|(chunk, ((dk, dv), dq))| {
            with_scratch(backward::scratch_len(head.dims), |scratch| {
                backward::chunk(head, saved, chunk * CHUNK, dq, false, dk, dv, scratch);
            });
        });
    for (start, partial) in (CHUNK..).step_by(CHUNK).zip(&partial_rows) {
        for (dq, partial) in dq[start..].iter_mut().zip(partial) {
            for (dq, partial) in dq.iter_mut().zip(partial.iter()) {
                *dq += partial;
            }
        }
    }
}

/// What the work on one head reads.
#[derive(Clone, Copy)]
struct Head<'a> {
    /// (T, 3C), of this element of the batch.
    qkv: &'a [f32],
    dims: Dims,
    dropout: Option<&'a Dropout>,
    batch: usize,
    head: usize,
}

/// The columns of `qkv` that belong to queries, keys and values.
#[derive(Clone, Copy)]
enum Part {
    Query,
    Key,
    Value,
}

impl<'a> Head<'a> {
    /// A tile of rows of `q`, `k` or `v`.
    #[inline(always)]
    fn rows(&self, part: Part, start: usize) -> Rows<'a> {
        let channels = self.dims.channels();
        self.rows_of(self.qkv, 3 * channels, part as usize * channels, start)
    }

    /// A tile of rows of a tensor `(T, stride)` whose heads begin at `column`.
    #[inline(always)]
    fn rows_of(&self, x: &'a [f32], stride: usize, column: usize, start: usize) -> Rows<'a> {
        Rows {
            from: &x[start * stride + column + self.head * self.dims.head_size..],
            stride,
            count: (self.dims.time - start).min(TILE),
            head_size: self.dims.head_size,
        }
    }

    /// 1 / sqrt(hs)
    fn scale(&self) -> f32 {
        (1.0 / (self.dims.head_size as f64).sqrt()) as f32
    }

    /// The number, among the attention weights, of this query's weight for key 0.
    fn first_weight(&self, query: usize) -> usize {
        let Dims { time, heads, .. } = self.dims;
        ((self.batch * heads + self.head) * time + query) * time
    }
}

/// The panels that cover the columns of a head.
fn panels(dims: Dims) -> usize {
    dims.head_size.div_ceil(WIDTH)
}

/// `x` `(T, heads * hs)` as rows of hs elements, by head and token.
fn rows_by_head(x: &mut [f32], heads: usize, head_size: usize) -> Vec<Vec<&mut [f32]>> {
    let time = x.len() / (heads * head_size);
    let mut rows: Vec<_> = (0..heads).map(|_| Vec::with_capacity(time)).collect();
    for (index, row) in x.chunks_exact_mut(head_size).enumerate() {
        rows[index % heads].push(row);
    }
    rows
}

/// `x` in `count` equal parts, which may be empty.
fn parts(mut x: &mut [f32], count: usize) -> Vec<&mut [f32]> {
    let len = x.len() / count;
    (0..count)
        .map(|_| {
            x.split_off_mut(..len)
                .expect("count parts of len lie within x")
        })
        .collect()
}

/// Lends the thread's scratch, so that it is allocated once a thread.
fn with_scratch(len: usize, work: impl FnOnce(&mut [Vector])) {
    thread_local! {
        static SCRATCH: RefCell<Vec<Vector>> = const { RefCell::new(Vec::new()) };
    }
    SCRATCH.with_borrow_mut(|scratch| {
        if scratch.len() < len {
            scratch.resize(len, ZERO);
        }
        work(&mut scratch[..len]);
    });
}
