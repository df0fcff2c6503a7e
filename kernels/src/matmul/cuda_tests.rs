//! Every product and what follows it on a device against an f64 loop.

use half::{bf16, f16};

use super::Dims;
use super::cuda::{self, Form, Write};
use super::tests::gelu;
use crate::cuda::testing::{assert_near, assert_same, for_each_device, random, widen};
use crate::cuda::{Buffer, Device, Float};

mod products;
mod witnesses;

const fn dims(m: usize, k: usize, n: usize) -> Dims {
    Dims { m, k, n }
}

/// One element; less than a vector; rows that start at no multiple of 16 bytes, in more than one
/// small tile; vectors with tails of tiles and of steps; several large tiles of several steps.
const SHAPES: [Dims; 5] = [
    dims(1, 1, 1),
    dims(3, 5, 7),
    dims(70, 67, 33),
    dims(40, 72, 104),
    dims(200, 136, 248),
];

/// Sums are in f32 (errors of random sign: some 2^-24 √depth), rounded once to the result's type.
fn tolerance<O: Float>() -> f64 {
    O::ROUNDOFF + 2e-6
}

/// The operands of a layer and its products in f64.
struct Layer<T> {
    dims: Dims,
    x: Vec<T>,
    weight: Vec<T>,
    bias: Vec<T>,
    dout: Vec<T>,
}

impl<T: Float> Layer<T> {
    fn new(dims: Dims) -> Self {
        let Dims { m, k, n } = dims;
        Self {
            dims,
            x: random(m * k, 1.0, 1),
            weight: random(n * k, 1.0, 2),
            bias: random(n, 1.0, 3),
            dout: random(m * n, 1.0, 4),
        }
    }

    /// x · weightᵀ (+ bias)
    fn forward(&self, bias: bool) -> Vec<f64> {
        let Dims { m, k, n } = self.dims;
        let (x, weight) = (widen(&self.x), widen(&self.weight));
        let mut out = product(m, n, k, |i, l| x[i * k + l], |l, j| weight[j * k + l]);
        if bias {
            let bias = widen(&self.bias);
            (0..m * n).for_each(|i| out[i] += bias[i % n]);
        }
        out
    }

    /// dout · weight
    fn backward_input(&self) -> Vec<f64> {
        let Dims { m, k, n } = self.dims;
        let (dout, weight) = (widen(&self.dout), widen(&self.weight));
        product(m, k, n, |i, l| dout[i * n + l], |l, j| weight[l * k + j])
    }

    /// doutᵀ · x
    fn backward_weight(&self) -> Vec<f64> {
        let Dims { m, k, n } = self.dims;
        let (dout, x) = (widen(&self.dout), widen(&self.x));
        product(n, k, m, |i, l| dout[l * n + i], |l, j| x[l * k + j])
    }

    fn what(&self, case: &str, device: &Device) -> String {
        format!("{case}, {:?}, {}, {}", self.dims, T::NAME, device.name())
    }
}

/// (rows, depth) · (depth, cols) of operands given as functions of their indices.
fn product(
    rows: usize,
    cols: usize,
    depth: usize,
    a: impl Fn(usize, usize) -> f64,
    b: impl Fn(usize, usize) -> f64,
) -> Vec<f64> {
    let mut out = vec![0.0; rows * cols];
    for (i, row) in out.chunks_exact_mut(cols).enumerate() {
        for l in 0..depth {
            let a = a(i, l);
            row.iter_mut()
                .enumerate()
                .for_each(|(j, sum)| *sum += a * b(l, j));
        }
    }
    out
}

fn plus<T: Float>(a: &[f64], b: &[T]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b.to_f64()).collect()
}

/// Without anything, with a bias, and with a bias and a residual.
fn check_forward<T: Float, O: Float>() {
    for dims in SHAPES {
        let layer = Layer::<T>::new(dims);
        let residual: Vec<O> = random(dims.m * dims.n, 1.0, 5);
        let (plain, biased) = (layer.forward(false), layer.forward(true));
        let cases = [
            ("product", false, false, plain),
            ("bias", true, false, biased.clone()),
            ("bias and residual", true, true, plus(&biased, &residual)),
        ];
        for_each_device(|device| {
            let stream = device.stream().unwrap();
            let x = device.upload(&layer.x).unwrap();
            let weight = device.upload(&layer.weight).unwrap();
            let bias = device.upload(&layer.bias).unwrap();
            let residual = device.upload(&residual).unwrap();
            for (case, has_bias, has_residual, expected) in &cases {
                let mut out = device.alloc::<O>(dims.m * dims.n).unwrap();
                let bias = has_bias.then_some(&bias);
                let residual = has_residual.then_some(&residual);
                cuda::forward(&stream, &mut out, &x, &weight, bias, residual, dims).unwrap();
                let what = layer.what(case, device);
                assert_near(&what, &out.download().unwrap(), expected, tolerance::<O>());
            }
        });
    }
}

#[test]
fn forward_matches_f64() {
    check_forward::<f32, f32>();
    check_forward::<bf16, bf16>();
    check_forward::<f16, f16>();
}

#[test]
fn forward_to_f32_matches_f64() {
    check_forward::<bf16, f32>();
    check_forward::<f16, f32>();
}

/// gelu(x) and gelu'(x).
fn gelu_of(form: Form, x: f64) -> (f64, f64) {
    match form {
        Form::Erf => {
            let density = (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt();
            let cdf = if x == 0.0 { 0.5 } else { gelu(x) / x };
            (gelu(x), cdf + x * density)
        }
        Form::Tanh => {
            let scale = (2.0 / std::f64::consts::PI).sqrt();
            let tanh = (scale * (x + 0.044715 * x * x * x)).tanh();
            let slope = scale * (1.0 + 3.0 * 0.044715 * x * x) * (1.0 - tanh * tanh);
            (0.5 * x * (1.0 + tanh), 0.5 * (1.0 + tanh) + 0.5 * x * slope)
        }
    }
}

/// Unaligned rows in small tiles, vectors in small tiles, and for dpre and out a large one each.
const GELU_SHAPES: [Dims; 4] = [
    dims(70, 67, 3),
    dims(8, 72, 104),
    dims(136, 16, 136),
    dims(136, 136, 16),
];

fn check_forward_gelu<T: Float + PartialEq>(form: Form) {
    for dims in &GELU_SHAPES[..3] {
        let layer = Layer::<T>::new(*dims);
        let biased = layer.forward(true);
        // All devices give the same bits, so the second function is evaluated for one alone.
        let mut first: Option<(Vec<T>, Vec<f64>)> = None;
        for_each_device(|device| {
            let stream = device.stream().unwrap();
            let x = device.upload(&layer.x).unwrap();
            let weight = device.upload(&layer.weight).unwrap();
            let bias = device.upload(&layer.bias).unwrap();
            let run = |pre: Option<&mut Buffer<T>>| {
                let mut out = device.alloc::<T>(dims.m * dims.n).unwrap();
                cuda::forward_gelu(
                    &stream,
                    form,
                    pre,
                    &mut out,
                    &x,
                    &weight,
                    Some(&bias),
                    *dims,
                )
                .unwrap();
                out.download().unwrap()
            };
            let mut pre = device.alloc::<T>(dims.m * dims.n).unwrap();
            let out = run(Some(&mut pre));
            let pre = pre.download().unwrap();
            assert_near(&layer.what("pre", device), &pre, &biased, tolerance::<T>());
            let (expected_pre, expected) = first.get_or_insert_with(|| {
                let gelu = |x: f64| gelu_of(form, x).0;
                (pre.clone(), widen(&pre).into_iter().map(gelu).collect())
            });
            assert_same(&layer.what("pre", device), &pre, expected_pre);
            assert_near(
                &layer.what("gelu", device),
                &out,
                expected,
                tolerance::<T>(),
            );
            assert_same(&layer.what("without pre", device), &run(None), &out);
        });
    }
}

#[test]
fn forward_gelu_matches_f64() {
    for form in [Form::Erf, Form::Tanh] {
        check_forward_gelu::<f32>(form);
        check_forward_gelu::<bf16>(form);
        check_forward_gelu::<f16>(form);
    }
}

/// `=`, `+=`, and `+=` of a part.
const WRITES: [Write; 3] = [
    Write::SET,
    Write::ADD,
    Write {
        scale: 0.375,
        accumulate: true,
    },
];

/// What `write` leaves where `old` was.
fn written<T: Float>(write: Write, product: &[f64], old: &[T]) -> Vec<f64> {
    let terms = product.iter().zip(old);
    terms
        .map(|(product, old)| {
            let old = if write.accumulate { old.to_f64() } else { 0.0 };
            f64::from(write.scale) * product + old
        })
        .collect()
}

fn check_backward_input<T: Float>() {
    for dims in SHAPES {
        let layer = Layer::<T>::new(dims);
        let product = layer.backward_input();
        let old: Vec<T> = random(dims.m * dims.k, 4.0, 6);
        for_each_device(|device| {
            let stream = device.stream().unwrap();
            let dout = device.upload(&layer.dout).unwrap();
            let weight = device.upload(&layer.weight).unwrap();
            for write in WRITES {
                let mut dx = device.alloc::<T>(old.len()).unwrap();
                if write.accumulate {
                    dx.upload(&old).unwrap();
                }
                cuda::backward_input(&stream, &mut dx, &dout, &weight, write, dims).unwrap();
                let what = layer.what(&format!("dx, {write:?}"), device);
                let expected = written(write, &product, &old);
                assert_near(&what, &dx.download().unwrap(), &expected, tolerance::<T>());
            }
        });
    }
}

#[test]
fn backward_input_matches_f64() {
    check_backward_input::<f32>();
    check_backward_input::<bf16>();
    check_backward_input::<f16>();
}

fn check_backward_input_gelu<T: Float>(form: Form) {
    for dims in [GELU_SHAPES[0], GELU_SHAPES[1], GELU_SHAPES[3]] {
        let layer = Layer::<T>::new(dims);
        let pre: Vec<T> = random(dims.m * dims.k, 5.0, 6);
        let terms = layer.backward_input().into_iter().zip(widen(&pre));
        let expected: Vec<f64> = terms.map(|(d, x)| d * gelu_of(form, x).1).collect();
        for_each_device(|device| {
            let stream = device.stream().unwrap();
            let dout = device.upload(&layer.dout).unwrap();
            let weight = device.upload(&layer.weight).unwrap();
            let pre = device.upload(&pre).unwrap();
            let mut dpre = device.alloc::<T>(pre.len()).unwrap();
            cuda::backward_input_gelu(&stream, form, &mut dpre, &dout, &weight, &pre, dims)
                .unwrap();
            let what = layer.what(&format!("dpre, {form:?}"), device);
            assert_near(
                &what,
                &dpre.download().unwrap(),
                &expected,
                tolerance::<T>(),
            );
        });
    }
}

#[test]
fn backward_input_gelu_matches_f64() {
    for form in [Form::Erf, Form::Tanh] {
        check_backward_input_gelu::<f32>(form);
        check_backward_input_gelu::<bf16>(form);
        check_backward_input_gelu::<f16>(form);
    }
}

/// Sums that are cut in parts: rows of the results in vectors and not.
const DEEP: [Dims; 2] = [dims(1500, 24, 40), dims(1037, 7, 9)];

fn check_backward_weight<T: Float>() {
    for dims in SHAPES.into_iter().chain(DEEP) {
        let Dims { m, k, n } = dims;
        let layer = Layer::<T>::new(dims);
        let product = layer.backward_weight();
        let old: Vec<f32> = random(n * k, 4.0, 6);
        let dout = widen(&layer.dout);
        let sums: Vec<f64> = (0..n)
            .map(|j| (0..m).map(|i| dout[i * n + j]).sum())
            .collect();
        let mut bits = [const { None }; 4];
        for_each_device(|device| {
            let stream = device.stream().unwrap();
            let dout = device.upload(&layer.dout).unwrap();
            let x = device.upload(&layer.x).unwrap();
            let scratch_len = cuda::scratch_len(dims, device.properties());
            assert!(
                !DEEP.contains(&dims) || scratch_len >= 2 * n * k,
                "{dims:?}: in parts"
            );
            let mut scratch = device.alloc(scratch_len).unwrap();
            let mut check = |i: usize, case: &str, result: Buffer<f32>, expected: &[f64]| {
                let (what, result) = (layer.what(case, device), result.download().unwrap());
                assert_near(&what, &result, expected, tolerance::<f32>());
                let first = bits[i].get_or_insert_with(|| result.clone());
                assert_same(&what, &result, first);
            };
            for (i, write) in WRITES.into_iter().enumerate() {
                let mut dweight = device.alloc(n * k).unwrap();
                if write.accumulate {
                    dweight.upload(&old).unwrap();
                }
                cuda::backward_weight(&stream, &mut dweight, &dout, &x, &mut scratch, write, dims)
                    .unwrap();
                let expected = written(write, &product, &old);
                check(i, &format!("dweight, {write:?}"), dweight, &expected);
            }
            let mut dbias = device.upload(&old[..n]).unwrap();
            cuda::backward_bias(&stream, &mut dbias, &dout, &mut scratch, true, dims).unwrap();
            check(3, "dbias", dbias, &written(Write::ADD, &sums, &old));
            let mut dbias = device.alloc(n).unwrap();
            cuda::backward_bias(&stream, &mut dbias, &dout, &mut scratch, false, dims).unwrap();
            let what = layer.what("dbias set", device);
            assert_near(&what, &dbias.download().unwrap(), &sums, tolerance::<f32>());
        });
    }
}

#[test]
fn backward_weight_and_bias_match_f64_with_the_same_bits_under_all_schedules() {
    check_backward_weight::<f32>();
    check_backward_weight::<bf16>();
    check_backward_weight::<f16>();
}

/// Rows of whole vectors, but in memory that starts at an odd element.
fn check_unaligned<T: Float>() {
    let dims = dims(24, 40, 72);
    let Dims { m, k, n } = dims;
    let layer = Layer::<T>::new(dims);
    let shifted = |device: &Device, data: &[T]| {
        let moved: Vec<T> = [&[T::from_f64(9.0)], data].concat();
        device.upload(&moved).unwrap().slice(1..moved.len())
    };
    for_each_device(|device| {
        let stream = device.stream().unwrap();
        for moved in 0..4 {
            let place = |i: usize, data: &[T]| match i == moved {
                true => shifted(device, data),
                false => device.upload(data).unwrap(),
            };
            let x = place(0, &layer.x);
            let weight = place(1, &layer.weight);
            let dout = place(2, &layer.dout);
            let bias = place(3, &layer.bias);
            let out = device.alloc::<T>(m * n + 1).unwrap();
            let mut out = if moved == 3 {
                out.slice(1..m * n + 1)
            } else {
                out.slice(0..m * n)
            };
            cuda::forward(&stream, &mut out, &x, &weight, Some(&bias), None, dims).unwrap();
            let what = layer.what(&format!("out, {moved} moved"), device);
            let expected = layer.forward(true);
            assert_near(&what, &out.download().unwrap(), &expected, tolerance::<T>());
            let mut dx = device.alloc::<T>(m * k).unwrap();
            cuda::backward_input(&stream, &mut dx, &dout, &weight, Write::SET, dims).unwrap();
            let what = layer.what(&format!("dx, {moved} moved"), device);
            let expected = layer.backward_input();
            assert_near(&what, &dx.download().unwrap(), &expected, tolerance::<T>());
            let mut dweight = device.alloc(n * k).unwrap();
            let mut scratch = device
                .alloc(cuda::scratch_len(dims, device.properties()))
                .unwrap();
            cuda::backward_weight(
                &stream,
                &mut dweight,
                &dout,
                &x,
                &mut scratch,
                Write::SET,
                dims,
            )
            .unwrap();
            let what = layer.what(&format!("dweight, {moved} moved"), device);
            let expected = layer.backward_weight();
            assert_near(
                &what,
                &dweight.download().unwrap(),
                &expected,
                tolerance::<f32>(),
            );
        }
    });
}

#[test]
fn operands_may_start_at_any_element() {
    check_unaligned::<f32>();
    check_unaligned::<bf16>();
    check_unaligned::<f16>();
}

#[test]
fn without_terms_the_result_is_the_bias_and_without_rows_nothing_runs() {
    for_each_device(|device| {
        let stream = device.stream().unwrap();
        let bias: Vec<bf16> = random(5, 1.0, 1);
        let empty = device.alloc::<bf16>(0).unwrap();
        let bias_device = device.upload(&bias).unwrap();
        let mut out = device.alloc::<bf16>(15).unwrap();
        let bias_device = Some(&bias_device);
        cuda::forward(
            &stream,
            &mut out,
            &empty,
            &empty,
            bias_device,
            None,
            dims(3, 0, 5),
        )
        .unwrap();
        let expected = [&bias[..], &bias[..], &bias[..]].concat();
        assert_same("bias", &out.download().unwrap(), &expected);

        let mut none = device.alloc::<bf16>(0).unwrap();
        let weight = device.upload(&[bf16::ONE; 10]).unwrap();
        cuda::forward(
            &stream,
            &mut none,
            &empty,
            &weight,
            bias_device,
            None,
            dims(0, 2, 5),
        )
        .unwrap();
        let mut dweight = device.upload(&[3.0f32; 10]).unwrap();
        let dims = dims(0, 2, 5);
        let mut scratch = device
            .alloc(cuda::scratch_len(dims, device.properties()))
            .unwrap();
        cuda::backward_weight(
            &stream,
            &mut dweight,
            &empty,
            &empty,
            &mut scratch,
            Write::ADD,
            dims,
        )
        .unwrap();
        assert_same("dweight", &dweight.download().unwrap(), &[3.0; 10]);
    });
}
