//! The partial sums of squares on a device against f64.

use super::{cpu, cuda};
use crate::cuda::testing::{for_each_device, random};

/// No gradient, one, a tail, whole vectors, more than one block, more than a thread's sixteen.
const LENGTHS: [usize; 6] = [0, 1, 7, 4096, 4099, 20_001];

#[test]
fn partial_sums_add_up_to_the_hosts() {
    for_each_device(|device| {
        let stream = device.stream().unwrap();
        for (seed, n) in LENGTHS.into_iter().enumerate() {
            let gradients: Vec<f32> = random(n, 3.0, seed as u64);
            // Once from the start of the memory and once from an element that is not aligned.
            for first in [0, n.min(1)] {
                let device_gradients = device.upload(&gradients).unwrap().slice(first..n);
                let blocks = cuda::partials_len(n - first);
                let mut partials = device.alloc(blocks).unwrap();
                let mut nonfinite = device.alloc(blocks).unwrap();
                cuda::partials(&stream, &mut partials, &mut nonfinite, &device_gradients).unwrap();
                let partials = partials.download().unwrap().into_iter().map(f64::from_bits);
                let (actual, expected) = (
                    partials.sum::<f64>(),
                    cpu::sum_of_squares(&gradients[first..]),
                );
                // Three roundings in f32 of each sum of four squares.
                assert!(
                    (actual - expected).abs() <= 2e-7 * expected,
                    "{n} from {first}: expected {expected}, got {actual}"
                );
                assert!(
                    nonfinite
                        .download()
                        .unwrap()
                        .iter()
                        .all(|&count| count == 0)
                );
            }
        }
    });
}

#[test]
fn what_is_not_finite_is_counted() {
    for_each_device(|device| {
        let stream = device.stream().unwrap();
        let mut gradients: Vec<f32> = random(9001, 3.0, 4);
        for (i, value) in [(0, f32::NAN), (4, f32::INFINITY), (9000, f32::NEG_INFINITY)] {
            gradients[i] = value;
        }
        gradients[5] = f32::MAX; // finite, though its square is not
        let blocks = cuda::partials_len(gradients.len());
        let mut partials = device.alloc(blocks).unwrap();
        let mut nonfinite = device.alloc(blocks).unwrap();
        let gradients = device.upload(&gradients).unwrap();
        cuda::partials(&stream, &mut partials, &mut nonfinite, &gradients).unwrap();
        assert_eq!(nonfinite.download().unwrap().iter().sum::<u32>(), 3);
    });
}

#[test]
fn the_number_of_partial_sums_depends_on_the_length_alone() {
    assert_eq!([1, 4096, 4097].map(cuda::partials_len), [1, 1, 2]);
    assert_eq!(cuda::partials_len(0), 1);
    assert_eq!(cuda::partials_len(1_500_000_000), 1024);
}
