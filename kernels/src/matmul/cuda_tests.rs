//! Every product and what follows it on a device against an f64 loop.

use half::{bf16, f16};

use super::Dims;
use super::cuda::{self, Form, Write};
use super::tests::{gelu, gelu_slope};
use crate::cuda::testing::{assert_near, assert_same, for_each_device, random, widen};
use crate::cuda::{Buffer, Device, Float, Stream};

const fn dims(m: usize, k: usize, n: usize) -> Dims {
    Dims { m, k, n }
}

/// One element; less than a vector; rows that start at no multiple of 16 bytes, in more than one
/// small tile; vectors with tails of tiles and of steps; several large tiles of several steps.
const SHAPES: [Dims; 5] = [
    dims(1, 1, 1),
    dims(3, 5, 7),
    dims(70, 67, 33),
    dims(40, 72, 104),
    dims(200, 136, 248),
];

/// Sums are in f32 (errors of random sign: some 2^-24 √depth) and rounded once to the result's type.
fn tolerance<O: Float>() -> f64 {
    O::ROUNDOFF + 2e-6
}

/// The operands of a layer and its products in f64.
struct Layer<T> {
    dims: Dims,
    x: Vec<T>,
    weight: Vec<T>,
    bias: Vec<T>,
    dout: Vec<T>,
}

impl<T: Float> Layer<T> {
    fn new(dims: Dims) -> Self {
        let Dims { m, k, n } = dims;
        Self {
            dims,
            x: random(m * k, 1.0, 1),
            weight: random(n * k, 1.0, 2),
            bias: random(n, 1.0, 3),
            dout: random(m * n, 1.0, 4),
        }
    }

    /// x · weightᵀ (+ bias)
    fn forward(&self, bias: bool) -> Vec<f64> {
        let Dims { m, k, n } = self.dims;
        let (x, weight) = (widen(&self.x), widen(&self.weight));
        let mut out = product(m, n, k, |i, l| x[i * k + l], |l, j| weight[j * k + l]);
        if bias {
            let bias = widen(&self.bias);
            (0..m * n).for_each(|i| out[i] += bias[i % n]);
        }
        out
    }

    /// dout · weight
    fn backward_input(&self) -> Vec<f64> {
        let Dims { m, k, n } = self.dims;
        let (dout, weight) = (widen(&self.dout), widen(&self.weight));
        product(m, k, n, |i, l| dout[i * n + l], |l, j| weight[l * k + j])
    }

    /// doutᵀ · x
    fn backward_weight(&self) -> Vec<f64> {
        let Dims { m, k, n } = self.dims;
        let (dout, x) = (widen(&self.dout), widen(&self.x));
        product(n, k, m, |i, l| dout[l * n + i], |l, j| x[l * k + j])
    }

    fn what(&self, case: &str, device: &Device) -> String {
        format!("{case}, {:?}, {}, {}", self.dims, T::NAME, device.name())
    }
}

/// (rows, depth) · (depth, cols) of operands given as functions of their indices.
fn product(
    rows: usize,
    cols: usize,
    depth: usize,
    a: impl Fn(usize, usize) -> f64,
    b: impl Fn(usize, usize) -> f64,
) -> Vec<f64> {
    let mut out = vec![0.0; rows * cols];
    for (i, row) in out.chunks_exact_mut(cols).enumerate() {
        for l in 0..depth {
            let a = a(i, l);
            row.iter_mut()
                .enumerate()
                .for_each(|(j, sum)| *sum += a * b(l, j));
        }
    }
    out
}

fn plus<T: Float>(a: &[f64], b: &[T]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b.to_f64()).collect()
}

fn check_forward<T: Float, O: Float>() {
    for dims in SHAPES {
        let layer = Layer::<T>::new(dims);
        let residual: Vec<O> = random(dims.m * dims.n, 1.0, 5);
        let (plain, biased) = (layer.forward(false), layer.forward(true));
        let cases = [
            ("product", false, false, plain),
            ("bias", true, false, biased.clone()),
            ("bias and residual", true, true, plus(&biased, &residual)),
        ];
        for_each_device(|device| {
            let stream = device.stream().unwrap();
            let x = device.upload(&layer.x).unwrap();
            let weight = device.upload(&layer.weight).unwrap();
            let bias = device.upload(&layer.bias).unwrap();
            let residual = device.upload(&residual).unwrap();
            for (case, has_bias, has_residual, expected) in &cases {
                let mut out = device.alloc::<O>(dims.m * dims.n).unwrap();
                let bias = has_bias.then_some(&bias);
                let residual = has_residual.then_some(&residual);
                cuda::forward(&stream, &mut out, &x, &weight, bias, residual, dims).unwrap();
                let what = layer.what(case, device);
                assert_near(&what, &out.download().unwrap(), expected, tolerance::<O>());
            }
        });
    }
}

#[test]
fn forward_matches_f64() {
    check_forward::<bf16, bf16>();
    check_forward::<f16, f16>();
    check_forward::<bf16, f32>();
    check_forward::<f16, f32>();
}
