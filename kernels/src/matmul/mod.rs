//! The linear layer: out = x · weightᵀ (+ bias) (+ residual), and its three products.
//!
//! A layer of K inputs and N outputs over M rows keeps nanoGPT's layouts, all row-major:
//! x (M, K), weight (N, K), bias (N), out (M, N). Backward needs x, weight and dout; nothing
//! else is saved, but for the GELU fused into `forward_gelu`, which saves its argument `pre`.
//! - forward `=`: out = x · weightᵀ (+ bias) (+ residual), or pre = x · weightᵀ + bias and
//!   out = gelu(pre);
//! - backward to the input `=` or `+=`: dx = dout · weight, or (dout · weight) ⊙ gelu'(pre);
//! - backward to the parameters `+=`: dweight += doutᵀ · x, dbias += column sums of dout.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub mod cpu;
mod tile;
mod transpose;
#[cfg(any(test, feature = "device"))]
pub mod cuda;

#[cfg(test)]
mod cuda_tests;
#[cfg(test)]
mod tests;

/// The sizes of one linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Dims {
    /// M: rows of x and of out, B·T in training.
    pub m: usize,
    /// K: inputs, columns of x and of weight.
    pub k: usize,
    /// N: outputs, rows of weight and columns of out.
    pub n: usize,
}

impl Dims {
    /// Floating-point operations of any one of the layer's three products.
    pub fn flops(self) -> u64 {
        2 * self.m as u64 * self.k as u64 * self.n as u64
    }
}
