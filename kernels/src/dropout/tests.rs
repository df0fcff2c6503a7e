//! Dropout against its convention, an element at a time, and the same bits for any threads.

use proptest::prelude::*;

use super::{Dropout, cpu};
use crate::philox::{Philox, Stream};
use crate::simd::tests::{random, with_any_threads};

fn dropout(p: f64) -> Dropout {
    Dropout {
        p,
        philox: Philox::new(1337, Stream::Dropout),
        place: 5,
        at: [77, 2],
    }
}

/// The convention, an element at a time.
fn factor(dropout: &Dropout, i: usize) -> f32 {
    let [step, rest] = dropout.at;
    let words = dropout
        .philox
        .block([(i / 4) as u32, dropout.place, step, rest]);
    if words[i % 4] >= (dropout.p * 4_294_967_296.0) as u32 {
        (1.0 / (1.0 - dropout.p)) as f32
    } else {
        0.0
    }
}

proptest! {
    #[test]
    fn factors_follow_the_convention(
        first in prop_oneof![0usize..200, (1usize << 34) - 900..(1 << 34) - 600],
        n in 0usize..600,
        p in 0.0f64..1.0,
    ) {
        let dropout = dropout(p);
        let mut factors = vec![f32::NAN; n];
        dropout.factors(first, &mut factors);
        let expected: Vec<f32> = (first..first + n).map(|i| factor(&dropout, i)).collect();
        prop_assert_eq!(factors, expected);
    }

    #[test]
    fn everything_multiplies_by_the_factors(n in 0usize..40_000, p in 0.0f64..1.0) {
        let (dropout, residual, branch) = (dropout(p), random(n, 1), random(n, 2));
        let dropped: Vec<f32> = (0..n).map(|i| branch[i] * factor(&dropout, i)).collect();
        let mut x = branch.clone();
        cpu::forward(&mut x, &dropout);
        prop_assert_eq!(&x, &dropped);

        let mut dx = vec![f32::NAN; n];
        cpu::backward(&mut dx, &branch, &dropout);
        prop_assert_eq!(&dx, &dropped);

        let mut out = vec![f32::NAN; n];
        cpu::residual_add(&mut out, &residual, &branch, Some(&dropout));
        let expected: Vec<f32> = (0..n).map(|i| residual[i] + dropped[i]).collect();
        prop_assert_eq!(&out, &expected);

        cpu::residual_add(&mut out, &residual, &branch, None);
        let expected: Vec<f32> = (0..n).map(|i| residual[i] + branch[i]).collect();
        prop_assert_eq!(&out, &expected);
    }
}

#[test]
fn a_fifth_is_dropped_and_the_mean_stays() {
    let mut x = vec![1.0; 1 << 20];
    cpu::forward(&mut x, &dropout(0.2));
    let n = x.len() as f64;
    let dropped = x.iter().filter(|&&x| x == 0.0).count() as f64 / n;
    let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    // Five standard deviations of the share of 2^20 draws.
    assert!((dropped - 0.2).abs() < 0.002, "{dropped}");
    assert!((mean - 1.0).abs() < 0.0025, "{mean}");
}

#[test]
fn threads_do_not_change_a_bit() {
    let x = random(100_003, 4);
    with_any_threads(|| {
        let mut out = x.clone();
        cpu::forward(&mut out, &dropout(0.1));
        out
    });
}
