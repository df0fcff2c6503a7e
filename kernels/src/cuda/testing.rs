//! What the tests of kernels share: devices, random data, the comparison with f64.

use super::{Device, Element, Float, Order, Schedule};
use crate::philox::{Philox, Stream as RandomStream};

/// Runs `test` on the emulator under schedules that differ in everything CUDA leaves open.
pub fn for_each_device(mut test: impl FnMut(&Device)) {
    let schedule = |order, seed, late, wave| Schedule {
        order,
        seed,
        late,
        wave,
        threads: 1,
    };
    for schedule in [
        schedule(Order::Forward, 1, 1, 1),
        schedule(Order::Reverse, 1, 0, 2),
        schedule(Order::Random, 1, 1, 2),
        schedule(Order::Random, 2, 0, 1),
    ] {
        test(&Device::emulator(schedule));
    }
}

/// `n` values between -`scale` and `scale` that depend on `seed`.
pub fn random<T: Float>(n: usize, scale: f64, seed: u64) -> Vec<T> {
    let mut sequence = Philox::new(seed, RandomStream::Init).sequence([0; 3]);
    (0..n)
        .map(|_| T::from_f64(scale * (2.0 * sequence.next_f64() - 1.0)))
        .collect()
}

pub fn widen<T: Float>(x: &[T]) -> Vec<f64> {
    x.iter().map(|x| x.to_f64()).collect()
}

/// Fails unless `|actual - expected| <= tolerance |expected|`, norms over all elements. An element
/// that is not finite fails: outputs start as NaN, so each must have been written.
pub fn assert_near<T: Float>(what: &str, actual: &[T], expected: &[f64], tolerance: f64) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    let (mut error, mut norm) = (0.0, 0.0);
    for (i, (actual, &expected)) in actual.iter().zip(expected).enumerate() {
        let actual = actual.to_f64();
        assert!(
            actual.is_finite(),
            "{what}: element {i}: expected {expected:e}, got {actual}"
        );
        error += (actual - expected).powi(2);
        norm += expected.powi(2);
    }
    let relative = error.sqrt() / norm.sqrt().max(f64::MIN_POSITIVE);
    assert!(
        error == 0.0 || relative <= tolerance,
        "{what}: relative error {relative:.3e}, allowed {tolerance:.3e}"
    );
}

/// The bytes of a result, to compare two runs bit for bit.
pub fn assert_same<T: Element + PartialEq>(what: &str, actual: &[T], expected: &[T]) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    for (i, (actual, expected)) in actual.iter().zip(expected).enumerate() {
        assert!(
            actual == expected,
            "{what}: element {i}: expected {expected:?}, got {actual:?}"
        );
    }
}
