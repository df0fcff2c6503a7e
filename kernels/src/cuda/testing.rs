//! What the tests of kernels share: devices, random data, the comparison with f64.

use super::{Device, Element, Float, Order, Schedule};
use crate::philox::{Philox, Stream as RandomStream};

/// Set to `cuda`, it makes the tests of a build with the feature `cuda` run on GPU 0.
const DEVICE_VARIABLE: &str = "ANNEAL_TEST_DEVICE";
/// A number of schedules, for builds in which each takes long.
const SCHEDULES_VARIABLE: &str = "ANNEAL_TEST_SCHEDULES";

/// Runs `test` on the emulator under schedules that differ in everything CUDA leaves open; on the
/// GPU instead with ANNEAL_TEST_DEVICE=cuda, where it fails if there is none.
pub fn for_each_device(mut test: impl FnMut(&Device)) {
    match std::env::var(DEVICE_VARIABLE).as_deref() {
        Err(_) | Ok("" | "emulator") => {}
        Ok("cuda") => return test(&gpu()),
        Ok(other) => panic!("{DEVICE_VARIABLE}: expected emulator or cuda, got `{other}`"),
    }
    let schedule = |order, seed, late, wave| Schedule {
        order,
        seed,
        late,
        wave,
        threads: 1,
    };
    let schedules = [
        schedule(Order::Random, 1, 1, 2),
        schedule(Order::Reverse, 1, 0, 2),
        schedule(Order::Forward, 1, 1, 1),
        schedule(Order::Random, 2, 0, 1),
    ];
    let wanted = std::env::var(SCHEDULES_VARIABLE).map_or(schedules.len(), |wanted| {
        let wanted = wanted.parse().ok();
        let wanted = wanted.filter(|n| (1..=schedules.len()).contains(n));
        wanted.unwrap_or_else(|| panic!("{SCHEDULES_VARIABLE}: expected 1 to {}", schedules.len()))
    });
    for schedule in schedules.into_iter().take(wanted) {
        test(&Device::emulator(schedule));
    }
}

/// GPU 0, its new memory poisoned as the emulator's.
#[cfg(feature = "cuda")]
fn gpu() -> Device {
    Device::open(0, true).unwrap_or_else(|error| panic!("{DEVICE_VARIABLE}=cuda: {error}"))
}

#[cfg(not(feature = "cuda"))]
fn gpu() -> Device {
    panic!("{DEVICE_VARIABLE}=cuda: the tests were built without the feature cuda")
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
