//! Losses against f64, their gradient against differences, and the same bits for any threads.

use proptest::prelude::*;

use super::cpu;
use crate::simd::tests::{assert_close, gradient, random, widen, with_any_threads};

/// Losses are near 10; a sum of 60,000 exponentials in 64 lanes is off by some 1e-6 of itself.
const TOLERANCE: f64 = 3e-6;

pub(super) fn reference(logits: &[f64], targets: &[u32]) -> Vec<f64> {
    let v = logits.len() / targets.len();
    let loss = |(row, &target): (&[f64], &u32)| {
        let highest = row.iter().copied().fold(f64::MIN, f64::max);
        let sum: f64 = row.iter().map(|x| (x - highest).exp()).sum();
        sum.ln() + highest - row[target as usize]
    };
    logits.chunks(v).zip(targets).map(loss).collect()
}

pub(super) fn inputs(m: usize, v: usize, seed: u64) -> (Vec<f32>, Vec<u32>) {
    let logits = random(m * v, seed).iter().map(|x| 9.0 * x).collect();
    let targets = random(m, seed + 1);
    let targets = targets
        .iter()
        .map(|x| (f64::from(x.abs()) * v as f64) as u32);
    (logits, targets.map(|t| t.min(v as u32 - 1)).collect())
}

fn check_losses(m: usize, v: usize, seed: u64) {
    let (mut logits, targets) = inputs(m, v, seed);
    let mut losses = vec![f32::NAN; m];
    cpu::forward(&mut losses, &logits, &targets);
    assert_close(&losses, &reference(&widen(&logits), &targets), TOLERANCE);
    let mut again = vec![f32::NAN; m];
    cpu::forward_backward(&mut logits, &mut again, &targets, 0.25);
    assert_eq!(losses, again);
    // Each row's gradient adds up to nothing.
    for row in logits.chunks(v) {
        assert!(row.iter().map(|&x| f64::from(x)).sum::<f64>().abs() < 1e-6);
    }
}

proptest! {
    #[test]
    fn losses_match_f64(m in 1usize..30, v in 1usize..300, seed in 0u64..1000) {
        check_losses(m, v, seed);
    }

    #[test]
    fn dlogits_are_the_gradient(m in 1usize..6, v in 1usize..80, seed in 0u64..1000) {
        let (logits, targets) = inputs(m, v, seed);
        let (mut dlogits, mut losses) = (logits.clone(), vec![0.0; m]);
        cpu::forward_backward(&mut dlogits, &mut losses, &targets, 0.5);
        let expected = gradient(&widen(&logits), |logits| {
            0.5 * reference(logits, &targets).iter().sum::<f64>()
        });
        assert_close(&dlogits, &expected, 1e-6);
    }
}

#[test]
fn large_vocabularies() {
    for v in [2047, 2048, 2049, 50_257, 60_000] {
        check_losses(3, v, v as u64);
    }
}

#[test]
fn huge_logits_do_not_overflow() {
    let logits = [1e4, -1e4, 9.99e3, -3e38];
    let mut losses = [0.0];
    cpu::forward(&mut losses, &logits, &[2]);
    assert_close(&losses, &[(1.0 + (-10.0f64).exp()).ln() + 10.0], TOLERANCE);
}

#[test]
fn a_nan_is_not_hidden() {
    let mut losses = [0.0];
    cpu::forward(&mut losses, &[0.0, f32::NAN, 1.0], &[0]);
    assert!(losses[0].is_nan());
}

#[test]
fn no_rows() {
    cpu::forward(&mut [], &[], &[]);
    cpu::forward_backward(&mut [], &mut [], &[], 1.0);
}

#[test]
fn threads_do_not_change_a_bit() {
    let (logits, targets) = inputs(700, 97, 5);
    with_any_threads(|| {
        let (mut dlogits, mut losses) = (logits.clone(), vec![0.0; 700]);
        cpu::forward_backward(&mut dlogits, &mut losses, &targets, 0.5);
        [dlogits, losses].concat()
    });
}
