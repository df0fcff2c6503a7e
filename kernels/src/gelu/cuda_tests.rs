//! GELU on a device against f64, and its derivative against differences of the forward pass.

use half::{bf16, f16};

use super::cuda;
use super::tests::{exact, slope, tanh_form};
use crate::cuda::testing::{assert_near, for_each_device, random, widen};
use crate::cuda::{Buffer, CudaError, Float, Stream};

type Launcher<T> = fn(&Stream, &mut Buffer<T>, &Buffer<T>) -> Result<(), CudaError>;

/// No element, one, less than a vector, whole vectors, a tail, and more than one block.
const LENGTHS: [usize; 6] = [0, 1, 3, 64, 509, 4099];

fn check<T: Float>(gelu: fn(f64) -> f64, forward: Launcher<T>, backward: Launcher<T>) {
    // Computed in f32, to some units in its last place, and rounded once to T.
    let tolerance = T::ROUNDOFF + 2e-6;
    for_each_device(|device| {
        let stream = device.stream().unwrap();
        for (seed, n) in LENGTHS.into_iter().enumerate() {
            let x = random::<T>(n, 8.0, seed as u64);
            let dout = random::<T>(n, 1.0, seed as u64 + 100);
            // Once from the start of the memory and once from an element that is not aligned.
            for first in [0, n.min(1)] {
                let len = n - first;
                let x_device = device.upload(&x).unwrap().slice(first..n);
                let mut out = device.alloc::<T>(n).unwrap().slice(first..n);
                forward(&stream, &mut out, &x_device).unwrap();
                let expected: Vec<f64> = widen(&x[first..]).into_iter().map(gelu).collect();
                let what = format!("forward, {len} of {}, {}", T::NAME, device.name());
                assert_near(&what, &out.download().unwrap(), &expected, tolerance);

                let mut dx = device.upload(&dout).unwrap().slice(first..n);
                backward(&stream, &mut dx, &x_device).unwrap();
                let terms = widen(&x[first..]).into_iter().zip(widen(&dout[first..]));
                let expected: Vec<f64> = terms.map(|(x, dout)| slope(gelu, x) * dout).collect();
                let what = format!("backward, {len} of {}, {}", T::NAME, device.name());
                assert_near(&what, &dx.download().unwrap(), &expected, tolerance);
            }
        }
    });
}

#[test]
fn exact_form_matches_f64() {
    check::<f32>(exact, cuda::forward, cuda::backward);
    check::<bf16>(exact, cuda::forward, cuda::backward);
    check::<f16>(exact, cuda::forward, cuda::backward);
}

#[test]
fn tanh_form_matches_f64() {
    check::<f32>(tanh_form, cuda::forward_tanh, cuda::backward_tanh);
    check::<bf16>(tanh_form, cuda::forward_tanh, cuda::backward_tanh);
    check::<f16>(tanh_form, cuda::forward_tanh, cuda::backward_tanh);
}

/// The kernel's own forward pass, differenced in f32 with a step that balances truncation (h²/6)
/// against rounding (2^-24/h): about 2e-5 of values near 1.
#[test]
fn backward_is_the_derivative_of_the_kernels_forward() {
    const STEP: f32 = 1.0 / 128.0;
    for_each_device(|device| {
        let stream = device.stream().unwrap();
        let x: Vec<f32> = random(333, 3.0, 7);
        let forward = |shift: f32| {
            let moved: Vec<f32> = x.iter().map(|x| x + shift).collect();
            let mut out = device.alloc(x.len()).unwrap();
            cuda::forward(&stream, &mut out, &device.upload(&moved).unwrap()).unwrap();
            widen(&out.download().unwrap())
        };
        let pairs = forward(STEP).into_iter().zip(forward(-STEP));
        let expected: Vec<f64> = pairs
            .map(|(up, down)| (up - down) / (2.0 * f64::from(STEP)))
            .collect();
        let mut dx = device.upload(&vec![1.0; x.len()]).unwrap();
        cuda::backward(&stream, &mut dx, &device.upload(&x).unwrap()).unwrap();
        assert_near(device.name(), &dx.download().unwrap(), &expected, 1e-4);
    });
}
