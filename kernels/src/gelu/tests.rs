//! GELU against f64, its derivative against differences, and the same bits for any threads.

use proptest::prelude::*;

use super::cpu;
use crate::simd::tests::{assert_close, erfc, random, widen, with_any_threads};

/// f32 rounds at each of some twenty operations: a few units in the last place of values near 1.
const TOLERANCE: f64 = 1e-6;

pub(crate) fn exact(x: f64) -> f64 {
    0.5 * x * erfc(-x / std::f64::consts::SQRT_2)
}

pub(super) fn tanh_form(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
}

/// The derivative of `f` at `x`.
pub(super) fn slope(f: fn(f64) -> f64, x: f64) -> f64 {
    const STEP: f64 = 1e-5;
    (f(x + STEP) - f(x - STEP)) / (2.0 * STEP)
}

fn inputs(n: usize, seed: u64) -> Vec<f32> {
    let mut x = random(n, seed);
    x.iter_mut().for_each(|x| *x *= 8.0);
    x
}

fn check(
    gelu: fn(f64) -> f64,
    forward: fn(&mut [f32], &[f32]),
    backward: fn(&mut [f32], &[f32]),
    n: usize,
    seed: u64,
) {
    let (x, dout) = (inputs(n, seed), random(n, seed + 1));
    let mut out = vec![f32::NAN; n];
    forward(&mut out, &x);
    let expected: Vec<f64> = widen(&x).into_iter().map(gelu).collect();
    assert_close(&out, &expected, TOLERANCE);

    let mut dx = dout.clone();
    backward(&mut dx, &x);
    let terms = widen(&x).into_iter().zip(widen(&dout));
    let expected: Vec<f64> = terms.map(|(x, dout)| slope(gelu, x) * dout).collect();
    assert_close(&dx, &expected, TOLERANCE);
}

proptest! {
    #[test]
    fn exact_form_matches_f64(n in 0usize..300, seed in 0u64..1000) {
        check(exact, cpu::forward, cpu::backward, n, seed);
    }

    #[test]
    fn tanh_form_matches_f64(n in 0usize..300, seed in 0u64..1000) {
        check(tanh_form, cpu::forward_tanh, cpu::backward_tanh, n, seed);
    }
}

#[test]
fn far_out_on_the_left_it_keeps_its_digits() {
    let x = [-5.0f32, -8.0, -12.0];
    let mut out = [0.0; 3];
    cpu::forward(&mut out, &x);
    for (x, out) in x.into_iter().zip(out) {
        let expected = exact(f64::from(x));
        assert!(
            (f64::from(out) / expected - 1.0).abs() < 1e-5,
            "{x}: {out:e}"
        );
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let x = inputs(100_001, 3);
    with_any_threads(|| {
        let mut out = vec![0.0; x.len()];
        cpu::forward(&mut out, &x);
        cpu::backward(&mut out, &x);
        out
    });
}
