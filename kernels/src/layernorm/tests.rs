//! LayerNorm against f64, its gradients against differences, and the same bits for any threads.

use proptest::prelude::*;

use super::cpu;
use crate::dropout::{self, Dropout};
use crate::philox::{Philox, Stream};
use crate::simd::tests::{assert_close, gradient, random, widen, with_any_threads};

/// Sums of up to 300 products of numbers near 1, in f32.
const TOLERANCE: f64 = 5e-6;

pub(super) fn reference(x: &[f64], weight: &[f64], bias: Option<&[f64]>) -> Vec<f64> {
    let c = weight.len();
    let mut out = Vec::new();
    for row in x.chunks(c) {
        let mean = row.iter().sum::<f64>() / c as f64;
        let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / c as f64;
        for i in 0..c {
            let xhat = (row[i] - mean) / (variance + 1e-5).sqrt();
            out.push(xhat * weight[i] + bias.map_or(0.0, |bias| bias[i]));
        }
    }
    out
}

/// Inputs of M rows of C channels: x, weight, bias, dout.
fn inputs(m: usize, c: usize, seed: u64) -> [Vec<f32>; 4] {
    let x = random(m * c, seed).iter().map(|x| 2.0 * x + 0.5).collect();
    let weight = random(c, seed + 1).iter().map(|w| 1.0 + 0.3 * w).collect();
    [x, weight, random(c, seed + 2), random(m * c, seed + 3)]
}

struct Forward {
    out: Vec<f32>,
    mean: Vec<f32>,
    rstd: Vec<f32>,
}

fn forward(x: &[f32], weight: &[f32], bias: Option<&[f32]>) -> Forward {
    let m = x.len() / weight.len();
    let mut forward = Forward {
        out: vec![f32::NAN; x.len()],
        mean: vec![f32::NAN; m],
        rstd: vec![f32::NAN; m],
    };
    let Forward { out, mean, rstd } = &mut forward;
    cpu::forward(out, mean, rstd, x, weight, bias);
    forward
}

proptest! {
    #[test]
    fn forward_matches_f64(m in 0usize..40, c in 1usize..300, seed in 0u64..1000) {
        let [x, weight, bias, _] = inputs(m, c, seed);
        for bias in [None, Some(&bias[..])] {
            let bias64 = bias.map(widen);
            let expected = reference(&widen(&x), &widen(&weight), bias64.as_deref());
            // A row of one channel, or nearly constant, multiplies the rounding of x by up to
            // 1 / sqrt(1e-5).
            let tolerance = if c < 4 { 2e-4 } else { TOLERANCE };
            assert_close(&forward(&x, &weight, bias).out, &expected, tolerance);
        }
    }

    #[test]
    fn backward_adds_the_gradient(m in 1usize..6, c in 4usize..140, seed in 0u64..1000) {
        let [x, weight, bias, dout] = inputs(m, c, seed);
        let Forward { mean, rstd, .. } = forward(&x, &weight, Some(&bias));
        let (mut dx, mut dweight, mut dbias) =
            (random(m * c, seed + 4), random(c, seed + 5), random(c, seed + 6));
        let before = [widen(&dx), widen(&dweight), widen(&dbias)];
        let mut dx_no_bias = dx.clone();
        let mut dweight_no_bias = dweight.clone();
        cpu::backward(&mut dx, &mut dweight, Some(&mut dbias), &dout, &x, &mean, &rstd, &weight);
        cpu::backward(
            &mut dx_no_bias, &mut dweight_no_bias, None, &dout, &x, &mean, &rstd, &weight,
        );
        prop_assert_eq!(&dx, &dx_no_bias);
        prop_assert_eq!(&dweight, &dweight_no_bias);

        let [x, weight, bias, dout] = [&x, &weight, &bias, &dout].map(|x| widen(x));
        let loss = |x: &[f64], weight: &[f64], bias: &[f64]| -> f64 {
            reference(x, weight, Some(bias)).iter().zip(&dout).map(|(o, d)| o * d).sum()
        };
        let gradients = [
            gradient(&x, |x| loss(x, &weight, &bias)),
            gradient(&weight, |weight| loss(&x, weight, &bias)),
            gradient(&bias, |bias| loss(&x, &weight, bias)),
        ];
        for ((actual, before), gradient) in [dx, dweight, dbias].iter().zip(before).zip(gradients) {
            let expected: Vec<f64> = before.iter().zip(gradient).map(|(b, g)| b + g).collect();
            // A row of few channels may have a small variance, and its rstd scales every error.
            assert_close(actual, &expected, 3e-5);
        }
    }

    #[test]
    fn residual_forward_is_its_two_parts(m in 1usize..40, c in 1usize..300, p in 0.0f64..0.9) {
        let [x, weight, bias, branch] = inputs(m, c, 9);
        let dropout = Dropout {
            p,
            philox: Philox::new(1, Stream::Dropout),
            place: 3,
            at: [5, 1],
        };
        for dropout in [None, Some(&dropout)] {
            let mut sum = vec![f32::NAN; m * c];
            dropout::cpu::residual_add(&mut sum, &x, &branch, dropout);
            let expected = forward(&sum, &weight, Some(&bias));
            let (mut x_out, mut out) = (vec![f32::NAN; m * c], vec![f32::NAN; m * c]);
            let (mut mean, mut rstd) = (vec![f32::NAN; m], vec![f32::NAN; m]);
            cpu::residual_forward(
                &mut x_out, &mut out, &mut mean, &mut rstd, &x, &branch, dropout, &weight,
                Some(&bias),
            );
            prop_assert_eq!(&x_out, &sum);
            prop_assert_eq!(&out, &expected.out);
            prop_assert_eq!((mean, rstd), (expected.mean, expected.rstd));
        }
    }
}

#[test]
fn gains_of_wide_rows_are_summed_over_all_pieces() {
    let (m, c) = (70, 600);
    let [x, weight, bias, dout] = inputs(m, c, 12);
    let Forward { mean, rstd, .. } = forward(&x, &weight, Some(&bias));
    let (mut dx, mut dweight, mut dbias) = (vec![0.0; m * c], vec![0.0; c], vec![0.0; c]);
    let dbias_some = Some(&mut dbias[..]);
    cpu::backward(
        &mut dx,
        &mut dweight,
        dbias_some,
        &dout,
        &x,
        &mean,
        &rstd,
        &weight,
    );
    let xhat = reference(&widen(&x), &vec![1.0; c], None);
    let (mut expected_weight, mut expected_bias) = (vec![0.0; c], vec![0.0; c]);
    for (i, (xhat, dout)) in xhat.iter().zip(widen(&dout)).enumerate() {
        expected_weight[i % c] += xhat * dout;
        expected_bias[i % c] += dout;
    }
    assert_close(&dweight, &expected_weight, TOLERANCE);
    assert_close(&dbias, &expected_bias, TOLERANCE);
}

#[test]
fn threads_do_not_change_a_bit() {
    let (m, c) = (1001, 300);
    let [x, weight, bias, dout] = inputs(m, c, 11);
    with_any_threads(|| {
        let Forward {
            mut out,
            mean,
            rstd,
        } = forward(&x, &weight, Some(&bias));
        let (mut dweight, mut dbias) = (vec![0.0; c], vec![0.0; c]);
        let dbias_some = Some(&mut dbias[..]);
        cpu::backward(
            &mut out,
            &mut dweight,
            dbias_some,
            &dout,
            &x,
            &mean,
            &rstd,
            &weight,
        );
        [out, dweight, dbias].concat()
    });
}
