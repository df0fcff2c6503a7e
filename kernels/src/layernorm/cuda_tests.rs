//! LayerNorm on a device against f64, its gradients against the formula's own derivative and
//! against differences of the kernel's forward pass.

use half::{bf16, f16};

use super::cuda::{self, Gradients, Normed, Parameters, Residual};
use super::tests::reference;
use crate::cuda::testing::{assert_near, assert_same, for_each_device, random, widen};
use crate::cuda::{Buffer, Device, Float, Stream};
use crate::dropout::{self, Dropout};
use crate::philox::{Philox, Stream as RandomStream};

/// Rows and channels: one vector of a lane, a tail of lanes, two, four and eight vectors, odd
/// channels, more than 16 blocks' rows, a wide row that no lane holds.
const SHAPES: [(usize, usize); 8] = [
    (1, 8),
    (9, 72),
    (5, 384),
    (3, 768),
    (2, 1600),
    (7, 33),
    (131, 24),
    (2, 2056),
];

struct Inputs<T> {
    x: Vec<T>,
    weight: Vec<T>,
    bias: Vec<T>,
    dout: Vec<T>,
}

fn inputs<T: Float>(m: usize, c: usize, seed: u64) -> Inputs<T> {
    let shift = |x: Vec<T>, by: f64| x.iter().map(|x| T::from_f64(x.to_f64() + by)).collect();
    Inputs {
        x: shift(random(m * c, 2.0, seed), 0.5),
        weight: shift(random(c, 0.3, seed + 1), 1.0),
        bias: random(c, 1.0, seed + 2),
        dout: random(m * c, 1.0, seed + 3),
    }
}

/// out, mean, rstd.
type Forward<T> = (Buffer<T>, Buffer<f32>, Buffer<f32>);

fn forward<T: Float>(
    device: &Device,
    stream: &Stream,
    x: &Buffer<T>,
    weight: &Buffer<T>,
    bias: Option<&Buffer<T>>,
) -> Forward<T> {
    let m = x.len() / weight.len();
    let (mut out, mut mean, mut rstd) = (
        device.alloc(x.len()).unwrap(),
        device.alloc(m).unwrap(),
        device.alloc(m).unwrap(),
    );
    let mut normed = Normed {
        out: &mut out,
        mean: &mut mean,
        rstd: &mut rstd,
    };
    cuda::forward(stream, &mut normed, x, Parameters { weight, bias }).unwrap();
    (out, mean, rstd)
}

/// d/dx, d/dweight and d/dbias of Σ out dout, in f64.
fn gradients(x: &[f64], weight: &[f64], dout: &[f64]) -> [Vec<f64>; 3] {
    let c = weight.len();
    let xhat = reference(x, &vec![1.0; c], None);
    let (mut dx, mut dweight, mut dbias) = (Vec::new(), vec![0.0; c], vec![0.0; c]);
    let rows = x.chunks(c).zip(xhat.chunks(c)).zip(dout.chunks(c));
    for ((x, xhat), dout) in rows {
        let mean = x.iter().sum::<f64>() / c as f64;
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / c as f64;
        let dxhat: Vec<f64> = dout.iter().zip(weight).map(|(d, w)| d * w).collect();
        let sum = dxhat.iter().sum::<f64>() / c as f64;
        let dot = dxhat.iter().zip(xhat).map(|(d, x)| d * x).sum::<f64>() / c as f64;
        for i in 0..c {
            dx.push((dxhat[i] - sum - xhat[i] * dot) / (variance + 1e-5).sqrt());
            dweight[i] += dout[i] * xhat[i];
            dbias[i] += dout[i];
        }
    }
    [dx, dweight, dbias]
}

fn check<T: Float>() {
    // Sums of up to 2056 products near 1 in f32, and one rounding to T.
    let tolerance = T::ROUNDOFF + 3e-6;
    for_each_device(|device| {
        let stream = device.stream().unwrap();
        for (seed, (m, c)) in SHAPES.into_iter().enumerate() {
            let what = format!("({m}, {c}) {} {}", T::NAME, device.name());
            let inputs = inputs::<T>(m, c, 10 * seed as u64);
            let [x, weight, bias, dout] = [&inputs.x, &inputs.weight, &inputs.bias, &inputs.dout]
                .map(|values| device.upload(values).unwrap());
            let with_bias = seed % 2 == 0;
            let (out, mean, rstd) =
                forward(device, &stream, &x, &weight, with_bias.then_some(&bias));
            let [x64, weight64, bias64, dout64] =
                [&inputs.x, &inputs.weight, &inputs.bias, &inputs.dout].map(|v| widen(v));
            let expected = reference(&x64, &weight64, with_bias.then_some(&bias64));
            assert_near(&what, &out.download().unwrap(), &expected, tolerance);

            let before: Vec<T> = random(m * c, 1.0, 77);
            let sums_before: Vec<f32> = random(c, 1.0, 78);
            let expected = gradients(&x64, &weight64, &dout64);
            for assign in [false, true] {
                let mut dx = device.upload(&before).unwrap();
                let [mut dweight, mut dbias, mut dx_sums] =
                    [0; 3].map(|_| device.upload(&sums_before).unwrap());
                let mut to = Gradients {
                    dx: &mut dx,
                    assign,
                    dweight: &mut dweight,
                    dbias: Some(&mut dbias),
                    dx_sums: assign.then_some(&mut dx_sums),
                    scratch: &mut device.alloc(cuda::scratch_len(m, c)).unwrap(),
                };
                cuda::backward(&stream, &mut to, &dout, &x, &mean, &rstd, &weight).unwrap();
                let added = |before: &[f64], gradient: &[f64]| -> Vec<f64> {
                    before.iter().zip(gradient).map(|(b, g)| b + g).collect()
                };
                let start = if assign {
                    vec![0.0; m * c]
                } else {
                    widen(&before)
                };
                let dx = dx.download().unwrap();
                assert_near(&what, &dx, &added(&start, &expected[0]), tolerance + 1e-5);
                let sums_before = widen(&sums_before);
                let sums = [(&dweight, &expected[1]), (&dbias, &expected[2])];
                for (actual, gradient) in sums {
                    let expected = added(&sums_before, gradient);
                    assert_near(&what, &actual.download().unwrap(), &expected, 1e-5);
                }
                // Of dx as it was rounded.
                let mut columns = vec![0.0; c];
                if assign {
                    for (i, dx) in widen(&dx).into_iter().enumerate() {
                        columns[i % c] += dx;
                    }
                }
                let expected = added(&sums_before, &columns);
                assert_near(&what, &dx_sums.download().unwrap(), &expected, 1e-5);
            }
        }
    });
}

#[test]
fn f32_matches_f64() {
    check::<f32>();
}

#[test]
fn bf16_matches_f64() {
    check::<bf16>();
}

#[test]
fn f16_matches_f64() {
    check::<f16>();
}

fn check_residual<T: Float + PartialEq>() {
    for_each_device(|device| {
        let stream = device.stream().unwrap();
        for (seed, (m, c)) in SHAPES.into_iter().enumerate() {
            let inputs = inputs::<T>(m, c, 10 * seed as u64);
            let [x, branch, weight, bias] = [&inputs.x, &inputs.dout, &inputs.weight, &inputs.bias]
                .map(|values| device.upload(values).unwrap());
            let dropout = Dropout {
                p: 0.3,
                philox: Philox::new(7, RandomStream::Dropout),
                place: 4,
                at: [9, 1],
            };
            let at = device.upload(&dropout.at).unwrap();
            for dropout in [None, Some((&dropout, &at))] {
                let mut x_out = device.alloc::<T>(m * c).unwrap();
                let mut out = device.alloc::<T>(m * c).unwrap();
                let (mut mean, mut rstd) = (device.alloc(m).unwrap(), device.alloc(m).unwrap());
                let mut residual = Residual {
                    x_out: &mut x_out,
                    x: &x,
                    branch: &branch,
                    dropout,
                };
                let mut normed = Normed {
                    out: &mut out,
                    mean: &mut mean,
                    rstd: &mut rstd,
                };
                let parameters = Parameters {
                    weight: &weight,
                    bias: Some(&bias),
                };
                cuda::residual_forward(&stream, &mut residual, &mut normed, parameters).unwrap();
                // The CPU room's sum, rounded to T; then forward alone, to the bit.
                let [x32, branch32] = [&inputs.x, &inputs.dout]
                    .map(|v| v.iter().map(|v| v.to_f64() as f32).collect::<Vec<f32>>());
                let mut sum = vec![0.0; m * c];
                let on_cpu = dropout.map(|(dropout, _)| dropout);
                dropout::cpu::residual_add(&mut sum, &x32, &branch32, on_cpu);
                let sum: Vec<T> = sum.iter().map(|&x| T::from_f64(f64::from(x))).collect();
                let what = format!("({m}, {c}) {} {}", T::NAME, device.name());
                assert_same(&what, &x_out.download().unwrap(), &sum);
                let sum = device.upload(&sum).unwrap();
                let expected = forward(device, &stream, &sum, &weight, Some(&bias));
                let expected = expected.0.download().unwrap();
                assert_same(&what, &out.download().unwrap(), &expected);
            }
        }
    });
}

#[test]
fn residual_forward_is_its_two_parts() {
    check_residual::<f32>();
    check_residual::<bf16>();
    check_residual::<f16>();
}

#[test]
fn what_is_not_aligned_has_the_same_values() {
    for_each_device(|device| {
        let stream = device.stream().unwrap();
        let inputs = inputs::<bf16>(3, 64, 5);
        let mut moved = vec![bf16::ZERO];
        moved.extend(&inputs.x);
        let x = device.upload(&moved).unwrap().slice(1..moved.len());
        let weight = device.upload(&inputs.weight).unwrap();
        let (out, ..) = forward(device, &stream, &x, &weight, None);
        let expected = reference(&widen(&inputs.x), &widen(&inputs.weight), None);
        assert_near(device.name(), &out.download().unwrap(), &expected, 4e-3);
    });
}

/// The kernel's own forward pass, differenced in f32.
#[test]
fn backward_is_the_derivative_of_the_kernels_forward() {
    const STEP: f32 = 1.0 / 64.0;
    for_each_device(|device| {
        let stream = device.stream().unwrap();
        let c = 40;
        let inputs = inputs::<f32>(1, c, 3);
        let [weight, dout] = [&inputs.weight, &inputs.dout].map(|v| device.upload(v).unwrap());
        let loss = |i: usize, shift: f32| -> f64 {
            let mut x = inputs.x.clone();
            x[i] += shift;
            let x = device.upload(&x).unwrap();
            let (out, ..) = forward(device, &stream, &x, &weight, None);
            let out = widen(&out.download().unwrap());
            out.iter()
                .zip(widen(&inputs.dout))
                .map(|(o, d)| o * d)
                .sum()
        };
        let slope = |i| (loss(i, STEP) - loss(i, -STEP)) / (2.0 * f64::from(STEP));
        let slopes: Vec<f64> = (0..c).map(slope).collect();
        let x = device.upload(&inputs.x).unwrap();
        let (_, mean, rstd) = forward(device, &stream, &x, &weight, None);
        let mut dx = device.alloc(c).unwrap();
        let mut to = Gradients {
            dx: &mut dx,
            assign: true,
            dweight: &mut device.alloc_zeros(c).unwrap(),
            dbias: None,
            dx_sums: None,
            scratch: &mut device.alloc(cuda::scratch_len(1, c)).unwrap(),
        };
        cuda::backward(&stream, &mut to, &dout, &x, &mean, &rstd, &weight).unwrap();
        assert_near(device.name(), &dx.download().unwrap(), &slopes, 1e-3);
    });
}
