//! Attention on a device against the f64 loop.

use half::{bf16, f16};

use super::tests::{dims, dropout, reference, reference_gradient};
use super::{Dims, cpu, cuda};
use crate::cuda::testing::{assert_near, for_each_device, random, widen};
use crate::cuda::{Buffer, Device, Float};
use crate::dropout::Dropout;

/// Weights and their gradients are rounded to T before the second product, results once more:
/// errors of independent sign, so the norm of their sum stays below two roundings. f32: sums of up
/// to 200 products, and exponentials of approximate functions.
fn tolerance<T: Float>() -> f64 {
    2.0 * T::ROUNDOFF + 5e-6
}

struct Case<T> {
    dims: Dims,
    dropout: Option<Dropout>,
    qkv: Vec<T>,
}

impl<T: Float> Case<T> {
    fn new(dims: Dims, dropout: Option<Dropout>, seed: u64) -> Self {
        let len = dims.batch * dims.time * dims.channels();
        let qkv = random(3 * len, 2.0, seed);
        Self { dims, dropout, qkv }
    }

    /// `qkv` on the device, behind `skipped` elements that make its rows unaligned.
    fn upload(&self, device: &Device, skipped: usize) -> Buffer<T> {
        let mut all = vec![T::from_f64(f64::NAN); skipped];
        all.extend(&self.qkv);
        device.upload(&all).unwrap().slice(skipped..all.len())
    }

    /// out and lse.
    fn forward(&self, device: &Device, skipped: usize) -> (Vec<T>, Vec<f32>) {
        let Dims {
            batch, time, heads, ..
        } = self.dims;
        let stream = device.stream().unwrap();
        let len = self.qkv.len() / 3;
        let mut out = device
            .alloc::<T>(len + skipped)
            .unwrap()
            .slice(skipped..len + skipped);
        let mut lse = device.alloc(batch * heads * time).unwrap();
        let at = self
            .dropout
            .map(|dropout| device.upload(&dropout.at).unwrap());
        let dropout = self.dropout.as_ref().zip(at.as_ref());
        let qkv = self.upload(device, skipped);
        cuda::forward(&stream, &mut out, &mut lse, &qkv, self.dims, dropout).unwrap();
        (out.download().unwrap(), lse.download().unwrap())
    }

    /// dqkv of `dout`.
    fn backward(&self, device: &Device, dout: &[T], skipped: usize) -> Vec<T> {
        let (out, lse) = self.forward(device, 0);
        let stream = device.stream().unwrap();
        let len = self.qkv.len();
        let mut dqkv = device
            .alloc::<T>(len + skipped)
            .unwrap()
            .slice(skipped..len + skipped);
        let mut scratch = device.alloc(cuda::scratch_len(self.dims)).unwrap();
        let at = self
            .dropout
            .map(|dropout| device.upload(&dropout.at).unwrap());
        let dropout = self.dropout.as_ref().zip(at.as_ref());
        let qkv = self.upload(device, skipped);
        let [dout, out] = [dout, &out].map(|x| device.upload(x).unwrap());
        let lse = device.upload(&lse).unwrap();
        cuda::backward(
            &stream,
            &mut dqkv,
            &dout,
            &qkv,
            &out,
            &lse,
            self.dims,
            dropout,
            &mut scratch,
        )
        .unwrap();
        dqkv.download().unwrap()
    }

    fn check_backward(&self, device: &Device, skipped: usize) {
        let dout = random::<T>(self.qkv.len() / 3, 1.0, 99);
        let (wide, dropout) = (widen(&self.qkv), self.dropout.as_ref());
        let expected = reference_gradient(&widen(&dout), &wide, self.dims, dropout);
        let dqkv = self.backward(device, &dout, skipped);
        // Each of dq, dk and dv by itself, for they differ in size.
        let channels = self.dims.channels();
        for (i, part) in ["dq", "dk", "dv"].into_iter().enumerate() {
            let pick = |row: usize| {
                row * 3 * channels + i * channels..row * 3 * channels + (i + 1) * channels
            };
            let rows = 0..self.qkv.len() / (3 * channels);
            let got: Vec<T> = rows
                .clone()
                .flat_map(|row| dqkv[pick(row)].to_vec())
                .collect();
            let expected: Vec<f64> = rows.flat_map(|row| expected[pick(row)].to_vec()).collect();
            let what = format!("{part}, {}", self.what(device));
            assert_near(&what, &got, &expected, tolerance::<T>());
        }
    }

    fn what(&self, device: &Device) -> String {
        let drops = self.dropout.is_some();
        format!(
            "{:?}, dropout {drops}, {}, {}",
            self.dims,
            T::NAME,
            device.name()
        )
    }

    fn check_forward(&self, device: &Device, skipped: usize) {
        let expected = reference(&widen(&self.qkv), self.dims, self.dropout.as_ref());
        let (out, lse) = self.forward(device, skipped);
        let what = self.what(device);
        assert_near(
            &format!("out, {what}"),
            &out,
            &expected.out,
            tolerance::<T>(),
        );
        assert_near(&format!("lse, {what}"), &lse, &expected.lse, 2e-6);
    }
}

#[test]
fn forward_matches_f64() {
    for_each_device(|device| {
        for (dims, drops) in [
            (dims(1, 150, 2, 64), true),
            (dims(2, 67, 1, 64), false),
            (dims(1, 70, 1, 32), true),
            (dims(1, 101, 1, 128), false),
        ] {
            let dropout = drops.then(|| dropout(1));
            Case::<bf16>::new(dims, dropout, 1).check_forward(device, 0);
            Case::<f16>::new(dims, dropout, 2).check_forward(device, 0);
        }
        for (head_size, time) in [(17, 70), (64, 40), (100, 66), (200, 33)] {
            let dropout = (time != 40).then(|| dropout(1));
            Case::<f32>::new(dims(2, time, 2, head_size), dropout, 6).check_forward(device, 0);
        }
        Case::<bf16>::new(dims(1, 20, 2, 160), None, 7).check_forward(device, 0);
        Case::<f16>::new(dims(1, 20, 2, 160), None, 7).check_forward(device, 0);
        // Padded heads, and rows that are not aligned.
        Case::<f16>::new(dims(1, 33, 2, 80), None, 3).check_forward(device, 0);
        Case::<bf16>::new(dims(1, 20, 2, 23), Some(dropout(1)), 4).check_forward(device, 0);
        Case::<bf16>::new(dims(1, 36, 2, 64), Some(dropout(1)), 5).check_forward(device, 1);
    });
}

#[test]
fn backward_matches_f64() {
    for_each_device(|device| {
        for (dims, drops) in [
            (dims(1, 84, 2, 64), true),
            (dims(2, 67, 1, 64), false),
            (dims(1, 70, 1, 32), true),
            (dims(1, 101, 1, 128), false),
        ] {
            let dropout = drops.then(|| dropout(1));
            Case::<bf16>::new(dims, dropout, 1).check_backward(device, 0);
            Case::<f16>::new(dims, dropout, 2).check_backward(device, 0);
        }
        for (head_size, time) in [(17, 70), (64, 40), (100, 66), (200, 33)] {
            let dropout = (time != 40).then(|| dropout(1));
            Case::<f32>::new(dims(1, time, 2, head_size), dropout, 6).check_backward(device, 0);
        }
        Case::<bf16>::new(dims(1, 20, 2, 160), None, 7).check_backward(device, 0);
        Case::<f16>::new(dims(1, 20, 2, 160), None, 7).check_backward(device, 0);
        Case::<f16>::new(dims(1, 33, 2, 80), None, 3).check_backward(device, 0);
        Case::<bf16>::new(dims(1, 20, 2, 23), Some(dropout(1)), 4).check_backward(device, 0);
        Case::<bf16>::new(dims(1, 36, 2, 64), Some(dropout(1)), 5).check_backward(device, 1);
    });
}

/// The kernels' own forward pass in f32, differenced along one direction at a time: the slope along
/// it is the product of the gradient with it. Its error is that of rounding the loss, 1e-7 of a sum
/// of 600 terms near 1, over the step, and the step squared.
#[test]
fn backward_is_the_derivative_of_the_kernels_forward() {
    const STEP: f32 = 1.0 / 128.0;
    for_each_device(|device| {
        let mut case = Case::<f32>::new(dims(1, 21, 2, 16), Some(dropout(9)), 1);
        let dout = random::<f32>(case.qkv.len() / 3, 1.0, 2);
        let dqkv = case.backward(device, &dout, 0);
        let middle = case.qkv.clone();
        for seed in 0..3 {
            let direction: Vec<f32> = random(middle.len(), 1.0, 10 + seed);
            let mut loss = |step: f32| -> f64 {
                let moved = middle.iter().zip(&direction).map(|(x, d)| x + step * d);
                case.qkv = moved.collect();
                let (out, _) = case.forward(device, 0);
                out.iter()
                    .zip(&dout)
                    .map(|(out, dout)| f64::from(*out) * f64::from(*dout))
                    .sum()
            };
            let slope = (loss(STEP) - loss(-STEP)) / (2.0 * f64::from(STEP));
            let product = |(d, g): (&f32, &f32)| f64::from(*d) * f64::from(*g);
            let expected: f64 = direction.iter().zip(&dqkv).map(product).sum();
            assert!(
                (slope - expected).abs() < 2e-3,
                "{}: {slope} {expected}",
                device.name()
            );
        }
    });
}

/// Queries and keys are zero, so no weight is; the value of key k is 1 in column k alone, so column
/// k of `out` is the weight of key k, and with such a `dout` dv shows the mask of backward. Both
/// must be zero where, and only where, `factors` is.
#[test]
fn masks_are_those_of_the_cpu() {
    fn check<T: Float>(device: &Device, head_size: usize, time: usize) {
        let dims = dims(2, time, 2, head_size);
        let dropout = dropout(11);
        let channels = dims.channels();
        let mut case = Case::<T>::new(dims, Some(dropout), 1);
        // Value of key k: 1 in column k, else 0; so out (q, k) is weight (q, k).
        for (row, qkv) in case.qkv.chunks_exact_mut(3 * channels).enumerate() {
            qkv.fill(T::from_f64(0.0));
            for v in qkv[2 * channels..].chunks_exact_mut(head_size) {
                v[row % time] = T::from_f64(1.0);
            }
        }
        let (out, _) = case.forward(device, 0);
        // Of out = v dropped, the gradient of v tells the mask of backward.
        let dout: Vec<T> = (0..out.len())
            .map(|i| T::from_f64(f64::from(u8::from(i / channels % time == i % head_size))))
            .collect();
        let dqkv = case.backward(device, &dout, 0);
        let mut factors = vec![0.0; time];
        for (b, h) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            for query in 0..time {
                dropout.factors(((b * 2 + h) * time + query) * time, &mut factors);
                for key in 0..=query {
                    let kept = factors[key] != 0.0;
                    let weight = out[(b * time + query) * channels + h * head_size + key];
                    assert_eq!(
                        weight.to_f64() != 0.0,
                        kept,
                        "forward {b} {h} {query} {key}"
                    );
                    let row = (b * time + key) * 3 * channels + 2 * channels;
                    let weight = dqkv[row + h * head_size + query];
                    assert_eq!(
                        weight.to_f64() != 0.0,
                        kept,
                        "backward {b} {h} {query} {key}"
                    );
                }
            }
        }
    }
    for_each_device(|device| {
        check::<bf16>(device, 32, 32);
        check::<f16>(device, 128, 92);
        check::<bf16>(device, 32, 31);
        check::<f32>(device, 24, 23);
    });
}

/// The CPU room as a second witness, of dropout too.
#[test]
fn agrees_with_the_cpu() {
    for_each_device(|device| {
        let dropout = dropout(3);
        let case = Case::<f32>::new(dims(2, 70, 2, 32), Some(dropout), 1);
        let dout = random::<f32>(case.qkv.len() / 3, 1.0, 2);
        let (out, lse) = case.forward(device, 0);
        let mut expected = vec![0.0; out.len()];
        let mut expected_lse = vec![0.0; lse.len()];
        cpu::forward(
            &mut expected,
            &mut expected_lse,
            &case.qkv,
            case.dims,
            Some(&dropout),
        );
        assert_near("out", &out, &widen(&expected), 5e-6);
        assert_near("lse", &lse, &widen(&expected_lse), 2e-6);
        let mut scratch = vec![0.0; cpu::backward_scratch_len(case.dims)];
        let mut expected = vec![0.0; case.qkv.len()];
        cpu::backward(
            &mut expected,
            &dout,
            &case.qkv,
            &out,
            &lse,
            case.dims,
            Some(&dropout),
            &mut scratch,
        );
        let dqkv = case.backward(device, &dout, 0);
        assert_near("dqkv", &dqkv, &widen(&expected), 5e-6);
    });
}
