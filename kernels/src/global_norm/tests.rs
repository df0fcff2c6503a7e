//! The sum of squares against a plain loop, clipping, and the same bits for any threads.

use proptest::prelude::*;

use super::{clip_factor, cpu};
use crate::simd::PIECE;
use crate::simd::tests::random;

proptest! {
    #[test]
    fn sum_matches_a_plain_loop(n in 0usize..3 * PIECE, seed in 0u64..1000) {
        let gradients = random(n, seed);
        let expected: f64 = gradients.iter().map(|&g| f64::from(g).powi(2)).sum();
        // Both sums are in f64; they differ in their order.
        let sum = cpu::sum_of_squares(&gradients);
        prop_assert!((sum - expected).abs() <= 1e-12 * expected, "{sum} {expected}");
    }
}

#[test]
fn clipping_brings_the_norm_to_the_limit() {
    let mut gradients = vec![3.0f32; 2 * PIECE];
    gradients.push(4.0);
    let norm = cpu::sum_of_squares(&gradients).sqrt();
    assert!((norm - (9.0 * 2.0 * PIECE as f64 + 16.0).sqrt()).abs() < 1e-9);
    assert!((norm * f64::from(clip_factor(norm, 1.0)) - 1.0).abs() < 1e-5);
    assert_eq!(clip_factor(0.5, 1.0), 1.0);
    assert_eq!(clip_factor(1e9, 0.0), 1.0);
}

#[test]
fn a_nan_or_an_infinity_is_not_hidden() {
    for bad in [f32::NAN, f32::INFINITY] {
        let mut gradients = vec![1.0; 1000];
        gradients[777] = bad;
        assert!(!cpu::sum_of_squares(&gradients).is_finite());
    }
}

#[test]
fn squares_that_overflow_f32_are_summed() {
    assert_eq!(
        cpu::sum_of_squares(&[1e30, 0.0]),
        f64::from(1e30f32).powi(2)
    );
}

#[test]
fn threads_do_not_change_a_bit() {
    let gradients = random(1_000_003, 8);
    let sum = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build()
            .unwrap()
            .install(|| cpu::sum_of_squares(&gradients))
            .to_bits()
    };
    assert!(sum(1) == sum(2) && sum(1) == sum(3));
}
