//! The products on a device against the slopes of their forward pass and against the CPU.

use super::{Layer, dims};
use crate::cuda::Buffer;
use crate::cuda::testing::{assert_near, for_each_device, widen};
use crate::matmul::cuda::{self, Form, Write};
use crate::matmul::{Dims, cpu};

/// The slope of `loss` in each element of `x`, by central differences.
fn differences(x: &[f32], step: f32, mut loss: impl FnMut(&[f32]) -> f64) -> Vec<f64> {
    let mut moved = x.to_vec();
    (0..x.len())
        .map(|i| {
            moved[i] = x[i] + step;
            let up = loss(&moved);
            moved[i] = x[i] - step;
            let down = loss(&moved);
            moved[i] = x[i];
            (up - down) / (2.0 * f64::from(step))
        })
        .collect()
}

/// The product is linear in each operand, so a large step has no error but of rounding. For GELU
/// the step balances truncation (h²/6) against rounding (2^-24/h): about 2e-5 of values near 1.
#[test]
fn backward_is_the_derivative_of_the_kernels_forward() {
    let dims = dims(5, 6, 7);
    let Dims { m, k, n } = dims;
    let layer = Layer::<f32>::new(dims);
    for_each_device(|device| {
        let stream = device.stream().unwrap();
        let dout = device.upload(&layer.dout).unwrap();
        let weight = device.upload(&layer.weight).unwrap();
        let x = device.upload(&layer.x).unwrap();
        let loss = |x: &Buffer<f32>, weight: &Buffer<f32>| -> f64 {
            let mut out = device.alloc::<f32>(m * n).unwrap();
            cuda::forward(&stream, &mut out, x, weight, None, None, dims).unwrap();
            let terms = out.download().unwrap().into_iter().zip(&layer.dout);
            terms
                .map(|(out, dout)| f64::from(out) * f64::from(*dout))
                .sum()
        };

        let expected = differences(&layer.x, 0.5, |x| loss(&device.upload(x).unwrap(), &weight));
        let mut dx = device.alloc(m * k).unwrap();
        cuda::backward_input(&stream, &mut dx, &dout, &weight, Write::SET, dims).unwrap();
        assert_near(
            &layer.what("dx", device),
            &dx.download().unwrap(),
            &expected,
            1e-5,
        );

        let expected = differences(&layer.weight, 0.5, |w| loss(&x, &device.upload(w).unwrap()));
        let mut dweight = device.alloc(n * k).unwrap();
        let mut scratch = device
            .alloc(cuda::scratch_len(dims, device.properties()))
            .unwrap();
        let write = Write::SET;
        cuda::backward_weight(&stream, &mut dweight, &dout, &x, &mut scratch, write, dims).unwrap();
        let what = layer.what("dweight", device);
        assert_near(&what, &dweight.download().unwrap(), &expected, 1e-5);

        for (form, gelu) in [
            (
                Form::Erf,
                crate::gelu::cuda::forward as fn(&_, &mut _, &_) -> _,
            ),
            (Form::Tanh, crate::gelu::cuda::forward_tanh),
        ] {
            let expected = differences(&layer.x, 1.0 / 128.0, |pre| {
                let mut x = device.alloc(m * k).unwrap();
                gelu(&stream, &mut x, &device.upload(pre).unwrap()).unwrap();
                loss(&x, &weight)
            });
            let mut dpre = device.alloc(m * k).unwrap();
            cuda::backward_input_gelu(&stream, form, &mut dpre, &dout, &weight, &x, dims).unwrap();
            let what = layer.what(&format!("dpre, {form:?}"), device);
            assert_near(&what, &dpre.download().unwrap(), &expected, 1e-4);
        }
    });
}

/// The CPU's code of the same room, in f32: both are within some 2^-24 √depth of the exact sums.
#[test]
fn f32_agrees_with_the_cpu() {
    let dims = dims(70, 45, 66);
    let Dims { m, k, n } = dims;
    let layer = Layer::<f32>::new(dims);
    let (x, weight, dout) = (&layer.x, &layer.weight, &layer.dout);
    let [mut out, mut dx, mut dweight, mut dbias] =
        [m * n, m * k, n * k, n].map(|len| vec![0.0; len]);
    cpu::forward(&mut out, x, weight, Some(&layer.bias), None, dims);
    cpu::backward_input(&mut dx, dout, weight, false, dims);
    cpu::backward_weight(&mut dweight, Some(&mut dbias), dout, x, dims);
    for_each_device(|device| {
        let stream = device.stream().unwrap();
        let upload = |data: &[f32]| device.upload(data).unwrap();
        let (x, weight, dout) = (upload(x), upload(weight), upload(dout));
        let near = |case: &str, result: Buffer<f32>, expected: &[f32]| {
            let (what, result) = (layer.what(case, device), result.download().unwrap());
            assert_near(&what, &result, &widen(expected), 2e-6);
        };
        let mut result = device.alloc(m * n).unwrap();
        let bias = upload(&layer.bias);
        cuda::forward(&stream, &mut result, &x, &weight, Some(&bias), None, dims).unwrap();
        near("out", result, &out);
        let mut result = device.alloc(m * k).unwrap();
        cuda::backward_input(&stream, &mut result, &dout, &weight, Write::SET, dims).unwrap();
        near("dx", result, &dx);
        let mut scratch = device
            .alloc(cuda::scratch_len(dims, device.properties()))
            .unwrap();
        let mut result = device.alloc(n * k).unwrap();
        let write = Write::SET;
        cuda::backward_weight(&stream, &mut result, &dout, &x, &mut scratch, write, dims).unwrap();
        near("dweight", result, &dweight);
        let mut result = device.alloc(n).unwrap();
        cuda::backward_bias(&stream, &mut result, &dout, &mut scratch, false, dims).unwrap();
        near("dbias", result, &dbias);
    });
}
