//! The linear layer on the CPU: each function states one product and what follows it.
//!
//! The engine's plan calls these, from inside the thread pool if it can (a call from outside wakes
//! a worker first). `tile.rs` computes.

use rayon::prelude::*;

use super::Dims;
use super::tile::{Epilogue, Output, Product, View};
use crate::simd;

/// Rows of dout that are added up by one task.
const SUM_ROWS: usize = 128;

/// out (M, N) = x (M, K) · weight (N, K)ᵀ (+ bias (N)) (+ residual (M, N)).
pub fn forward(
    out: &mut [f32],
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    residual: Option<&[f32]>,
    dims: Dims,
) {
    let Dims { m, k, n } = dims;
    check("x", x, m, k);
    check("weight", weight, n, k);
    bias.inspect(|bias| check("bias", bias, 1, n));
    residual.inspect(|residual| check("residual", residual, m, n));
    let product = forward_product(x, weight, dims);
    match (bias, residual) {
        (None, None) => product.run(out, &Nothing),
        (bias, residual) => product.run(out, &Add { bias, residual, n }),
    }
}

/// pre (M, N) = x (M, K) · weight (N, K)ᵀ (+ bias (N)), out (M, N) = gelu(pre), the exact GELU.
pub fn forward_gelu(
    pre: &mut [f32],
    out: &mut [f32],
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    dims: Dims,
) {
    let Dims { m, n, .. } = dims;
    bias.inspect(|bias| check("bias", bias, 1, n));
    check("out", out, m, n);
    let epilogue = Gelu {
        bias,
        out: Output::new(out),
        n,
    };
    forward_product(x, weight, dims).run(pre, &epilogue);
}

/// dx (M, K) = dout (M, N) · weight (N, K), or `+=` if `accumulate`.
pub fn backward_input(dx: &mut [f32], dout: &[f32], weight: &[f32], accumulate: bool, dims: Dims) {
    backward_input_product(dout, weight, accumulate, dims).run(dx, &Nothing);
}

/// dpre (M, K) = (dout (M, N) · weight (N, K)) ⊙ gelu'(pre (M, K)): backward of a layer whose input
/// was gelu(pre), to `pre`.
pub fn backward_input_gelu(
    dpre: &mut [f32],
    dout: &[f32],
    weight: &[f32],
    pre: &[f32],
    dims: Dims,
) {
    let Dims { m, k, .. } = dims;
    check("pre", pre, m, k);
    backward_input_product(dout, weight, false, dims).run(dpre, &GeluBackward { pre, k });
}

/// dweight (N, K) += dout (M, N)ᵀ · x (M, K), and dbias (N) += the column sums of dout.
pub fn backward_weight(
    dweight: &mut [f32],
    dbias: Option<&mut [f32]>,
    dout: &[f32],
    x: &[f32],
    dims: Dims,
) {
    let Dims { m, k, n } = dims;
    check("dout", dout, m, n);
    check("x", x, m, k);
    let product = Product {
        a: View::transposed(dout, n),
        b: View::rows(x, k),
        rows: n,
        cols: k,
        depth: m,
        accumulate: true,
    };
    product.run(dweight, &Nothing);
    if let Some(dbias) = dbias {
        check("dbias", dbias, 1, n);
        let mut partials = vec![0.0; m.div_ceil(SUM_ROWS) * n];
        partials
            .par_chunks_exact_mut(n)
            .zip(dout.par_chunks(SUM_ROWS * n))
            .for_each(|(sums, rows)| rows.chunks_exact(n).for_each(|row| add(sums, row)));
        partials.chunks_exact(n).for_each(|sums| add(dbias, sums));
    }
}

fn forward_product<'a>(x: &'a [f32], weight: &'a [f32], dims: Dims) -> Product<'a> {
    let Dims { m, k, n } = dims;
    check("x", x, m, k);
    check("weight", weight, n, k);
    Product {
        a: View::rows(x, k),
        b: View::transposed(weight, k),
        rows: m,
        cols: n,
        depth: k,
        accumulate: false,
    }
}

fn backward_input_product<'a>(
    dout: &'a [f32],
    weight: &'a [f32],
    accumulate: bool,
    dims: Dims,
) -> Product<'a> {
    let Dims { m, k, n } = dims;
    check("dout", dout, m, n);
    check("weight", weight, n, k);
    Product {
        a: View::rows(dout, n),
        b: View::rows(weight, k),
        rows: m,
        cols: k,
        depth: n,
        accumulate,
    }
}

#[track_caller]
fn check(name: &str, data: &[f32], rows: usize, cols: usize) {
    assert_eq!(data.len(), rows * cols, "{name}: expected {rows} x {cols}");
}

struct Nothing;

impl Epilogue for Nothing {
    fn apply(&self, _i: usize, _j: usize, _row: &mut [f32]) {}
}

struct Add<'a> {
    bias: Option<&'a [f32]>,
    residual: Option<&'a [f32]>,
    n: usize,
}

impl Epilogue for Add<'_> {
    fn apply(&self, i: usize, j: usize, row: &mut [f32]) {
        if let Some(bias) = self.bias {
            add(row, &bias[j..j + row.len()]);
        }
        if let Some(residual) = self.residual {
            let start = i * self.n + j;
            add(row, &residual[start..start + row.len()]);
        }
    }
}

struct Gelu<'a> {
    bias: Option<&'a [f32]>,
    out: Output<'a>,
    n: usize,
}

impl Epilogue for Gelu<'_> {
    fn apply(&self, i: usize, j: usize, row: &mut [f32]) {
        if let Some(bias) = self.bias {
            add(row, &bias[j..j + row.len()]);
        }
        #[expect(unsafe_code, reason = "a second result is written by several tasks")]
        // SAFETY: no two calls of an epilogue share an element, and this buffer has its shape.
        let out = unsafe { self.out.segment(i * self.n + j, row.len()) };
        gelu(out, row);
    }
}

struct GeluBackward<'a> {
    pre: &'a [f32],
    k: usize,
}

impl Epilogue for GeluBackward<'_> {
    fn apply(&self, i: usize, j: usize, row: &mut [f32]) {
        let start = i * self.k + j;
        gelu_backward(row, &self.pre[start..start + row.len()]);
    }
}

#[multiversion::multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512dq+avx512vl",
    "x86_64+avx2+fma"
))]
fn add(row: &mut [f32], other: &[f32]) {
    assert_eq!(row.len(), other.len());
    for (a, b) in row.iter_mut().zip(other) {
        *a += b;
    }
}

#[multiversion::multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512dq+avx512vl",
    "x86_64+avx2+fma"
))]
fn gelu(out: &mut [f32], x: &[f32]) {
    for (out, &x) in out.iter_mut().zip(x) {
        *out = x * simd::normal(x).0;
    }
}

/// Multiplies a gradient by the derivative of GELU at `x`.
#[multiversion::multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512dq+avx512vl",
    "x86_64+avx2+fma"
))]
fn gelu_backward(d: &mut [f32], x: &[f32]) {
    for (d, &x) in d.iter_mut().zip(x) {
        let (cdf, density) = simd::normal(x);
        *d *= x.mul_add(density, cdf);
    }
}
