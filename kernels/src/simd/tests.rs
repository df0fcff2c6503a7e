//! The functions against f64, the reductions, and what the tests of the rooms share.

use super::*;
use crate::philox::{Philox, Stream};

/// Runs `f` with 1, 2 and 3 threads and returns the result, which must be the same bits each time.
pub(crate) fn with_any_threads(f: impl Fn() -> Vec<f32> + Sync) -> Vec<f32> {
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build().unwrap().install(&f)
    };
    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let expected = run(1);
    for threads in [2, 3] {
        assert_eq!(bits(&run(threads)), bits(&expected), "{threads} threads");
    }
    expected
}

/// `n` values between -1 and 1 that depend on `seed`.
pub(crate) fn random(n: usize, seed: u64) -> Vec<f32> {
    let mut sequence = Philox::new(seed, Stream::Init).sequence([0; 3]);
    (0..n)
        .map(|_| (2.0 * sequence.next_f64() - 1.0) as f32)
        .collect()
}

/// Fails where an element is further from the expected one than `tolerance` times
/// `1 + |expected|`.
pub(crate) fn assert_close(actual: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(actual.len(), expected.len());
    for (i, (&actual, &expected)) in actual.iter().zip(expected).enumerate() {
        let error = (f64::from(actual) - expected).abs();
        assert!(
            error <= tolerance * (1.0 + expected.abs()),
            "element {i}: expected {expected:e}, got {actual:e}"
        );
    }
}

/// The derivative of `f` at `x` along each coordinate, by central differences.
pub(crate) fn gradient(x: &[f64], mut f: impl FnMut(&[f64]) -> f64) -> Vec<f64> {
    const STEP: f64 = 1e-5;
    let mut moved = x.to_vec();
    (0..x.len())
        .map(|i| {
            moved[i] = x[i] + STEP;
            let up = f(&moved);
            moved[i] = x[i] - STEP;
            let down = f(&moved);
            moved[i] = x[i];
            (up - down) / (2.0 * STEP)
        })
        .collect()
}

pub(crate) fn widen(x: &[f32]) -> Vec<f64> {
    x.iter().copied().map(f64::from).collect()
}

/// Evenly spaced floats from `low` to `high`, with both ends.
fn floats(low: f32, high: f32) -> impl Iterator<Item = f32> {
    const COUNT: u32 = 400_000;
    let width = f64::from(high) - f64::from(low);
    (0..=COUNT).map(move |i| (f64::from(low) + width * f64::from(i) / f64::from(COUNT)) as f32)
}

/// erfc for f64, by its continued fraction or its series: relative error below 1e-13.
pub(crate) fn erfc(x: f64) -> f64 {
    if x < 0.0 {
        return 2.0 - erfc(-x);
    }
    if x > 2.0 {
        let mut fraction = 0.0;
        for k in (1..=200).rev() {
            fraction = 0.5 * f64::from(k) / (x + fraction);
        }
        return (-x * x).exp() / ((x + fraction) * std::f64::consts::PI.sqrt());
    }
    let (mut term, mut sum) = (x, x);
    for k in 1..100 {
        let k = f64::from(k);
        term *= -x * x / k;
        sum += term / (2.0 * k + 1.0);
    }
    1.0 - 2.0 / std::f64::consts::PI.sqrt() * sum
}

#[test]
fn exp_is_within_two_units_in_the_last_place() {
    for x in floats(-87.29, 88.72) {
        let expected = f64::from(x).exp();
        let error = (f64::from(exp(x)) - expected).abs() / expected;
        assert!(error < 2.0 * f64::from(f32::EPSILON), "{x}: {error:e}");
    }
}

#[test]
fn exp_at_the_ends_of_its_range() {
    assert_eq!(exp(0.0), 1.0);
    assert_eq!(exp(-0.0), 1.0);
    assert_eq!(exp(-88.0), 0.0);
    assert_eq!(exp(f32::NEG_INFINITY), 0.0);
    assert_eq!(exp(f32::MIN), 0.0);
    assert_eq!(exp(89.0), f32::INFINITY);
    assert_eq!(exp(f32::INFINITY), f32::INFINITY);
    assert!(exp(f32::NAN).is_nan());
}

#[test]
fn tanh_is_accurate_near_zero_and_far_from_it() {
    for x in floats(-12.0, 12.0).chain(floats(-1e-3, 1e-3)) {
        let expected = f64::from(x).tanh();
        let error = (f64::from(tanh(x)) - expected).abs();
        assert!(error <= 2e-7 * expected.abs(), "{x}: {error:e}");
    }
    assert_eq!(tanh(100.0), 1.0);
    assert_eq!(tanh(f32::NEG_INFINITY), -1.0);
    assert!(tanh(f32::NAN).is_nan());
}

#[test]
fn erf_is_accurate() {
    for x in floats(-6.0, 6.0) {
        let error = (f64::from(erf(x)) - (1.0 - erfc(f64::from(x)))).abs();
        assert!(error < 3e-7, "{x}: {error:e}");
    }
    assert_eq!(erf(50.0), 1.0);
    assert_eq!(erf(-1e30), -1.0);
    assert!(erf(f32::NAN).is_nan());
}

#[test]
fn normal_is_accurate_relative_to_its_value() {
    for x in floats(-12.0, 12.0) {
        let wide = f64::from(x);
        let (cdf, density) = normal(x);
        let expected = 0.5 * erfc(-wide / std::f64::consts::SQRT_2);
        // The exponent, rounded, is off by up to |x^2 / 2| * 2^-24, which the power makes relative.
        let tolerance = 5e-7 + wide * wide * f64::from(f32::EPSILON) / 4.0;
        let error = (f64::from(cdf) - expected).abs() / expected;
        assert!(error < tolerance, "cdf at {x}: {error:e}");
        let expected = (-wide * wide / 2.0).exp() / std::f64::consts::TAU.sqrt();
        let error = (f64::from(density) - expected).abs() / expected;
        assert!(error < tolerance, "density at {x}: {error:e}");
    }
}

#[test]
fn reductions_see_every_element_once() {
    for n in [0, 1, 15, 63, 64, 65, 127, 128, 200, 1000] {
        // Small integers: exact in any order.
        let x: Vec<f32> = (0..n).map(|i| ((i * 37) % 101) as f32 - 50.0).collect();
        let y: Vec<f32> = (0..n).map(|i| ((i * 13) % 7) as f32).collect();
        assert_eq!(
            sum_of([&x], |[x]| 2.0 * x),
            x.iter().map(|x| 2.0 * x).sum::<f32>()
        );
        let dot: f32 = x.iter().zip(&y).map(|(x, y)| x * y).sum();
        assert_eq!(sum_of([&x, &y], |[x, y]| x * y), dot);
        assert_eq!(max(&x), x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    }
    let negative: Vec<f32> = (1..=70).map(|i| -(i as f32)).collect();
    assert_eq!(max(&negative), -1.0);
}

#[test]
fn sum_lanes_adds_all_lanes() {
    let lanes: [f32; 16] = std::array::from_fn(|i| (1u32 << i) as f32);
    assert_eq!(sum_lanes(lanes), 65_535.0);
}
