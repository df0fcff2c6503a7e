//! Causal multi-head attention, `(B, T, 3C) -> (B, T, C)`, called by the engines for each layer.
//!
//! Forward: for every head, `out = dropout(softmax(q kᵀ / sqrt(hs), causal)) v`; `out` is `=`.
//! `q`, `k`, `v` lie packed in `qkv` `(B, T, 3C)`, head `h` of `q` at columns `h * hs`. It saves
//! for backward `lse` `(B, H, T)`: the logarithm of the sum of the exponentials of a row's scores.
//! Backward computes the probabilities again from `lse`, a tile at a time; `dqkv` is `=`.
//! Decode: one new token against cached keys and values.

pub mod cpu;
#[cfg(any(test, feature = "device"))]
pub mod cuda;
#[cfg(test)]
mod cuda_tests;
#[cfg(test)]
mod tests;

/// The shape of one attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dims {
    /// B
    pub batch: usize,
    /// T
    pub time: usize,
    /// H
    pub heads: usize,
    /// hs = C / H
    pub head_size: usize,
}

impl Dims {
    /// C
    pub fn channels(&self) -> usize {
        self.heads * self.head_size
    }
}

/// Floating-point operations of the matrix products of `forward` that lie on or below the
/// diagonal: two products, two operations for each pair of a query and a key and each column.
pub fn forward_flops(dims: Dims) -> f64 {
    4.0 * pairs(dims) * dims.head_size as f64
}

/// The same of `backward`, which has five products.
pub fn backward_flops(dims: Dims) -> f64 {
    10.0 * pairs(dims) * dims.head_size as f64
}

/// Pairs of a query and a key that it sees, over batch and heads.
fn pairs(dims: Dims) -> f64 {
    let time = dims.time as f64;
    (dims.batch * dims.heads) as f64 * time * (time + 1.0) / 2.0
}
