//! The linear layer on the CPU: each function states one product and what follows it.
//!
//! The engine's plan calls these, from inside the thread pool if it can (a call from outside wakes
//! a worker first). `tile.rs` computes.

use super::Dims;
use super::tile::{Epilogue, Product, View};

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

/// dx (M, K) = dout (M, N) · weight (N, K), or `+=` if `accumulate`.
pub fn backward_input(dx: &mut [f32], dout: &[f32], weight: &[f32], accumulate: bool, dims: Dims) {
    backward_input_product(dout, weight, accumulate, dims).run(dx, &Nothing);
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
        for row in dout.chunks_exact(n) {
            for (sum, d) in dbias.iter_mut().zip(row) {
                *sum += d;
            }
        }
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
    #[inline(always)]
    fn apply(&self, _i: usize, _j: usize, _row: &mut [f32]) {}
}

struct Add<'a> {
    bias: Option<&'a [f32]>,
    residual: Option<&'a [f32]>,
    n: usize,
}

impl Epilogue for Add<'_> {
    #[inline(always)]
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

#[inline(always)]
fn add(row: &mut [f32], other: &[f32]) {
    for (a, b) in row.iter_mut().zip(other) {
        *a += b;
    }
}
