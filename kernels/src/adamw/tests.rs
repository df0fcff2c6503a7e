//! AdamW against the paper's algorithm in f64, its rounding, and the same bits for any threads.

use proptest::prelude::*;

use super::{AdamW, cpu};
use crate::simd::PIECE;
use crate::simd::tests::{random, with_any_threads};

const ADAMW: AdamW = AdamW {
    learning_rate: 1e-2,
    beta1: 0.9,
    beta2: 0.95,
    eps: 1e-8,
    weight_decay: 0.1,
    update: 1,
    gradient_scale: 0.7,
};

/// Updates in f64, straight from the paper's algorithm.
fn reference(mut p: f64, gradients: &[f64], weight_decay: f64) -> f64 {
    let (mut m, mut v) = (0.0f64, 0.0f64);
    for (exponent, &gradient) in (1..).zip(gradients) {
        let g = gradient * f64::from(ADAMW.gradient_scale);
        m = ADAMW.beta1 * m + (1.0 - ADAMW.beta1) * g;
        v = ADAMW.beta2 * v + (1.0 - ADAMW.beta2) * g * g;
        let m_hat = m / (1.0 - ADAMW.beta1.powi(exponent));
        let v_hat = v / (1.0 - ADAMW.beta2.powi(exponent));
        p -= ADAMW.learning_rate * weight_decay * p;
        p -= ADAMW.learning_rate * m_hat / (v_hat.sqrt() + ADAMW.eps);
    }
    p
}

/// Three updates of random parameters; the parameters, then the gradients of each update.
fn updates(n: usize, decayed: usize, seed: u64) -> (Vec<f32>, [Vec<f32>; 3]) {
    let mut p = random(n, seed);
    let gradients = [1, 2, 3].map(|i| random(n, seed + i));
    let (mut m, mut v) = (vec![0.0; n], vec![0.0; n]);
    for (update, gradients) in (1..).zip(&gradients) {
        let adamw = AdamW { update, ..ADAMW };
        cpu::step(&mut p, gradients, &mut m, &mut v, decayed, &adamw);
    }
    (p, gradients)
}

fn check(n: usize, decayed: usize, seed: u64) {
    let (p, gradients) = updates(n, decayed, seed);
    for (i, before) in random(n, seed).into_iter().enumerate() {
        let gradients = [0, 1, 2].map(|t| f64::from(gradients[t][i]));
        let weight_decay = if i < decayed { ADAMW.weight_decay } else { 0.0 };
        let expected = reference(f64::from(before), &gradients, weight_decay);
        // A parameter below 1 is rounded three times, by at most 2^-24 twice each.
        let error = (f64::from(p[i]) - expected).abs();
        assert!(
            error < 4e-7,
            "element {i}: expected {expected}, got {}",
            p[i]
        );
    }
}

proptest! {
    #[test]
    fn follows_the_formula_with_and_without_decay(
        (n, decayed) in (0usize..300).prop_flat_map(|n| (Just(n), 0..=n)),
        seed in 0u64..1000,
    ) {
        check(n, decayed, seed);
    }
}

#[test]
fn more_than_a_piece() {
    check(3 * PIECE + 5, PIECE + 3, 1);
}

#[test]
fn a_step_rounds_in_the_documented_order() {
    let (p, g, m, v) = (0.3f32, -0.017f32, 0.004f32, 0.000_3f32);
    let (mut p_out, mut m_out, mut v_out) = ([p; 17], [m; 17], [v; 17]);
    let adamw = AdamW { update: 9, ..ADAMW };
    cpu::step(&mut p_out, &[g; 17], &mut m_out, &mut v_out, 17, &adamw);
    let g = g * 0.7;
    let m = m + (1.0 - 0.9f64) as f32 * (g - m);
    let v = 0.95 * v + (1.0 - 0.95f64) as f32 * g * g;
    let root_correction2 = (1.0 - 0.95f64.powi(9)).sqrt() as f32;
    let step_size = (1e-2 / (1.0 - 0.9f64.powi(9))) as f32;
    let p =
        p * (1.0 - 1e-2 * 0.1f64) as f32 - step_size * (m / (v.sqrt() / root_correction2 + 1e-8));
    assert_eq!((p_out, m_out, v_out), ([p; 17], [m; 17], [v; 17]));
}

#[test]
fn threads_do_not_change_a_bit() {
    with_any_threads(|| updates(100_001, 77_777, 5).0);
}
