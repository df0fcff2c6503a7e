//! Every product against a plain f64 loop on random shapes, and the same bits for any threads.

use proptest::prelude::*;

use super::tile::{FORCED, Way};
use super::{Dims, cpu, transpose};
use crate::gelu::Form;

/// Numbers in [-1, 1) from a seed, by a linear congruential generator.
fn random(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut next = || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// (rows, depth) · (depth, cols) in f64, of operands given as functions of their indices.
fn product(
    rows: usize,
    cols: usize,
    depth: usize,
    a: impl Fn(usize, usize) -> f32,
    b: impl Fn(usize, usize) -> f32,
) -> Vec<f64> {
    let mut out = vec![0.0; rows * cols];
    for i in 0..rows {
        for j in 0..cols {
            out[i * cols + j] = (0..depth)
                .map(|l| f64::from(a(i, l)) * f64::from(b(l, j)))
                .sum();
        }
    }
    out
}

/// Terms are below 1 and an f32 sum of n of them is off by at most about n · 2⁻²⁴ times the sum of
/// their sizes; rounding errors of random sign stay far below: a few √n · 2⁻²⁴ · √n.
fn tolerance(depth: usize) -> f64 {
    4.0 * f64::from(f32::EPSILON) * (depth as f64 + 4.0)
}

fn assert_close(got: &[f32], expected: &[f64], depth: usize) {
    assert_eq!(got.len(), expected.len());
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (f64::from(*got) - expected).abs();
        assert!(
            error <= tolerance(depth),
            "element {i}: expected {expected}, got {got}"
        );
    }
}

/// The exact GELU: x times the normal distribution, integrated by Simpson's rule from 0.
pub(super) fn gelu(x: f64) -> f64 {
    let density = |t: f64| (-t * t / 2.0).exp() / std::f64::consts::TAU.sqrt();
    let end = x.clamp(-9.0, 9.0);
    let step = end / 200.0;
    let sum: f64 = (0..=200)
        .map(|i| {
            let weight = [2.0, 4.0][i % 2] - if i % 200 == 0 { 1.0 } else { 0.0 };
            weight * density(step * i as f64)
        })
        .sum();
    x * (0.5 + sum * step / 3.0)
}

/// Its derivative, by central differences.
fn gelu_slope(x: f64) -> f64 {
    (gelu(x + 1e-4) - gelu(x - 1e-4)) / 2e-4
}

fn check(dims: Dims, seed: u64) {
    let Dims { m, k, n } = dims;
    let x = random(m * k, seed);
    let weight = random(n * k, seed + 1);
    let bias = random(n, seed + 2);
    let residual = random(m * n, seed + 3);
    let dout = random(m * n, seed + 4);

    let expected = product(m, n, k, |i, l| x[i * k + l], |l, j| weight[j * k + l]);
    let mut out = vec![f32::NAN; m * n];
    cpu::forward(&mut out, &x, &weight, None, None, dims);
    assert_close(&out, &expected, k);
    cpu::forward(&mut out, &x, &weight, Some(&bias), None, dims);
    let biased: Vec<_> = expected
        .iter()
        .enumerate()
        .map(|(i, e)| e + f64::from(bias[i % n]))
        .collect();
    assert_close(&out, &biased, k);
    cpu::forward(&mut out, &x, &weight, Some(&bias), Some(&residual), dims);
    let added: Vec<_> = biased
        .iter()
        .zip(&residual)
        .map(|(e, r)| e + f64::from(*r))
        .collect();
    assert_close(&out, &added, k);

    let mut pre = vec![f32::NAN; m * n];
    cpu::forward_gelu(
        Form::Erf,
        &mut pre,
        &mut out,
        &x,
        &weight,
        Some(&bias),
        dims,
    );
    assert_close(&pre, &biased, k);
    assert_close(
        &out,
        &biased.iter().map(|x| gelu(*x)).collect::<Vec<_>>(),
        k,
    );
    let kept = out.clone();
    cpu::forward_gelu_alone(Form::Erf, &mut out, &x, &weight, Some(&bias), dims);
    assert_eq!(out, kept, "the same with and without its argument saved");
    cpu::forward_gelu(Form::Erf, &mut pre, &mut out, &x, &weight, None, dims);
    assert_close(
        &out,
        &expected.iter().map(|x| gelu(*x)).collect::<Vec<_>>(),
        k,
    );

    let expected = product(m, k, n, |i, l| dout[i * n + l], |l, j| weight[l * k + j]);
    let mut dx = vec![f32::NAN; m * k];
    cpu::backward_input(&mut dx, &dout, &weight, false, dims);
    assert_close(&dx, &expected, n);
    let mut dx = x.clone();
    cpu::backward_input(&mut dx, &dout, &weight, true, dims);
    let added: Vec<_> = expected
        .iter()
        .zip(&x)
        .map(|(e, x)| e + f64::from(*x))
        .collect();
    assert_close(&dx, &added, n);

    let mut dpre = vec![f32::NAN; m * k];
    cpu::backward_input_gelu(Form::Erf, &mut dpre, &dout, &weight, &x, dims);
    let slopes = expected
        .iter()
        .zip(&x)
        .map(|(e, x)| e * gelu_slope(f64::from(*x)));
    assert_close(&dpre, &slopes.collect::<Vec<_>>(), n);

    // The form with tanh, by its own room.
    let mut activated = vec![f32::NAN; m * n];
    cpu::forward_gelu(
        Form::Tanh,
        &mut pre,
        &mut out,
        &x,
        &weight,
        Some(&bias),
        dims,
    );
    crate::gelu::cpu::forward_tanh(&mut activated, &pre);
    assert_eq!(out, activated);
    cpu::forward_gelu_alone(Form::Tanh, &mut out, &x, &weight, Some(&bias), dims);
    assert_eq!(out, activated);
    let mut by_room = vec![f32::NAN; m * k];
    cpu::backward_input(&mut by_room, &dout, &weight, false, dims);
    crate::gelu::cpu::backward_tanh(&mut by_room, &x);
    cpu::backward_input_gelu(Form::Tanh, &mut dpre, &dout, &weight, &x, dims);
    let by_room: Vec<f64> = by_room.iter().map(|x| f64::from(*x)).collect();
    assert_close(&dpre, &by_room, n);

    let mut expected = product(n, k, m, |i, l| dout[l * n + i], |l, j| x[l * k + j]);
    expected
        .iter_mut()
        .zip(&weight)
        .for_each(|(e, w)| *e += f64::from(*w));
    let mut dweight = weight.clone();
    let mut dbias = bias.clone();
    cpu::backward_weight(&mut dweight, Some(&mut dbias), &dout, &x, dims);
    assert_close(&dweight, &expected, m);
    let mut expected: Vec<_> = bias.iter().map(|b| f64::from(*b)).collect();
    dout.iter()
        .enumerate()
        .for_each(|(i, d)| expected[i % n] += f64::from(*d));
    assert_close(&dbias, &expected, m);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn products_equal_an_f64_loop(
        m in 1usize..70, k in 1usize..150, n in 1usize..150, seed in 0u64..1000,
    ) {
        by_every_way(|| check(Dims { m, k, n }, seed));
    }
}

/// Runs it by every way that this machine knows.
fn by_every_way(run: impl Fn()) {
    let ways = [
        #[cfg(target_arch = "x86_64")]
        Way::Amx,
        #[cfg(target_arch = "x86_64")]
        Way::Avx512,
        Way::Gemm,
    ];
    for way in ways {
        FORCED.set(Some(way));
        run();
    }
    FORCED.set(None);
}

#[test]
fn products_of_several_tiles_equal_an_f64_loop() {
    // Sums over 2100 rows are long enough for several parts.
    let shapes = [
        [801, 65, 33],
        [17, 777, 419],
        [1, 600, 900],
        [2100, 130, 60],
        [389, 390, 65],
        [65, 33, 1540],
        [97, 1601, 561],
    ];
    for (seed, [m, k, n]) in shapes.into_iter().enumerate() {
        by_every_way(|| check(Dims { m, k, n }, seed as u64));
    }
}

#[test]
fn products_have_the_same_bits_for_any_number_of_threads() {
    let dims = Dims {
        m: 2101,
        k: 391,
        n: 130,
    };
    let Dims { m, k, n } = dims;
    let (x, weight, dout) = (random(m * k, 1), random(n * k, 2), random(m * n, 3));
    let run = |way| {
        FORCED.set(way);
        let mut out = vec![0.0; m * n];
        cpu::forward(&mut out, &x, &weight, Some(&weight[..n]), Some(&dout), dims);
        let mut dx = vec![0.0; m * k];
        cpu::backward_input(&mut dx, &dout, &weight, false, dims);
        let mut dweight = vec![0.0; n * k];
        let mut dbias = vec![0.0; n];
        cpu::backward_weight(&mut dweight, Some(&mut dbias), &dout, &x, dims);
        let mut pre = vec![0.0; m * n];
        let mut after = vec![0.0; m * n];
        cpu::forward_gelu(Form::Erf, &mut pre, &mut after, &x, &weight, None, dims);
        [out, dx, dweight, dbias, pre, after]
    };
    for way in [None, Some(Way::Gemm)] {
        let bits = [1, 2, 3].map(|threads| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(|| run(way))
                .map(|v| v.into_iter().map(f32::to_bits).collect::<Vec<_>>())
        });
        assert!(bits[0] == bits[1] && bits[0] == bits[2], "{way:?}");
    }
}

#[test]
#[should_panic(expected = "weight: expected 3 x 5")]
fn a_wrong_length_is_refused() {
    let dims = Dims { m: 2, k: 5, n: 3 };
    cpu::forward(&mut [0.0; 6], &[0.0; 10], &[0.0; 14], None, None, dims);
}

#[test]
fn flops_count_a_multiplication_and_an_addition_a_term() {
    assert_eq!(Dims { m: 2, k: 3, n: 5 }.flops(), 60);
}

#[test]
fn every_transposition_is_one() {
    for [rows, cols] in [[1, 1], [7, 20], [16, 16], [33, 50], [64, 41]] {
        let (to_stride, from_stride) = (rows + 3, cols + 5);
        let from = random(rows * from_stride, 1);
        let run = |transpose: &dyn Fn(&mut [f32], &[f32])| {
            let mut to = vec![9.0; (cols - 1) * to_stride + rows];
            transpose(&mut to, &from);
            for (i, got) in to.iter().enumerate() {
                let (col, row) = (i / to_stride, i % to_stride);
                let expected = if row < rows {
                    from[row * from_stride + col]
                } else {
                    9.0
                };
                assert_eq!(*got, expected, "{rows} x {cols}: row {row}, column {col}");
            }
        };
        run(&|to, from| transpose::transpose(to, to_stride, from, from_stride, [rows, cols]));
        run(&|to, from| transpose::plain(to, to_stride, from, from_stride, [rows, cols]));
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            run(&|to, from| transpose::avx2(to, to_stride, from, from_stride, [rows, cols]));
        }
    }
}
