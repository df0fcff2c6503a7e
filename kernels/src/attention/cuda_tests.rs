//! Attention on a device against the f64 loop.

use half::{bf16, f16};

use super::tests::{dims, dropout, reference, reference_gradient};
use super::{Dims, cuda};
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
        Case::<f16>::new(dims(1, 33, 2, 80), None, 3).check_backward(device, 0);
        Case::<bf16>::new(dims(1, 20, 2, 23), Some(dropout(1)), 4).check_backward(device, 0);
        Case::<bf16>::new(dims(1, 36, 2, 64), Some(dropout(1)), 5).check_backward(device, 1);
    });
}
