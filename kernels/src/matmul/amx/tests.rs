//! What cutting numbers up must not change: errors stay those of sums in f32, NaN stays NaN.

use super::is_there;
use crate::matmul::tile::{FORCED, Way};
use crate::matmul::{Dims, cpu};

/// Numbers of all sizes from 2⁻¹² to 2¹², both signs, from a seed.
fn random(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).max(1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    };
    (0..len)
        .map(|_| {
            let significand = 1.0 + (next() >> 9) as f32 / (1 << 23) as f32;
            let sign = if next() & 1 == 0 { 1.0 } else { -1.0 };
            sign * significand * 2_f32.powi((next() % 24) as i32 - 12)
        })
        .collect()
}

fn forward(way: Way, x: &[f32], weight: &[f32], dims: Dims) -> Vec<f32> {
    FORCED.set(Some(way));
    let mut out = vec![f32::NAN; dims.m * dims.n];
    cpu::forward(&mut out, x, weight, None, None, dims);
    FORCED.set(None);
    out
}

#[test]
fn errors_are_not_larger_than_those_of_sums_in_f32() {
    if !is_there() {
        return;
    }
    let dims = Dims {
        m: 64,
        k: 768,
        n: 96,
    };
    let (x, weight) = (random(dims.m * dims.k, 1), random(dims.n * dims.k, 2));
    // Root of the mean square of the error in units of the sum of the terms' sizes.
    let error = |out: &[f32]| {
        let mut sum = 0.0;
        for (at, &out) in out.iter().enumerate() {
            let (i, j) = (at / dims.n, at % dims.n);
            let terms = (0..dims.k)
                .map(|l| f64::from(x[i * dims.k + l]) * f64::from(weight[j * dims.k + l]));
            let (exact, size) = terms.fold((0.0, 0.0), |(sum, size), term| {
                (sum + term, size + term.abs())
            });
            sum += ((f64::from(out) - exact) / size).powi(2);
        }
        (sum / out.len() as f64).sqrt()
    };
    let [tiles, plain] = [Way::Amx, Way::Gemm].map(|way| error(&forward(way, &x, &weight, dims)));
    assert!(tiles <= plain, "expected at most {plain:e}, got {tiles:e}");
}

#[test]
fn integers_of_24_bits_are_cut_up_without_a_rest() {
    if !is_there() {
        return;
    }
    // One term, so that nothing is rounded: the product with 1 is the number itself.
    let dims = Dims { m: 48, k: 1, n: 48 };
    let x: Vec<f32> = (0..48)
        .map(|i| (16_777_215 - i * 349_525) as f32 * 0.5_f32.powi(i % 7))
        .collect();
    let out = forward(Way::Amx, &x, &[1.0; 48], dims);
    for (i, row) in out.chunks(48).enumerate() {
        assert_eq!(row, [x[i]; 48], "row {i}");
    }
}

#[test]
fn what_is_not_a_number_stays_so_and_stays_in_its_row() {
    if !is_there() {
        return;
    }
    let dims = Dims {
        m: 50,
        k: 40,
        n: 60,
    };
    let weight = random(dims.n * dims.k, 3);
    for bits in [
        0x7fc0_0000,
        0x7fff_ffff,
        0xffff_ffff,
        0x7f80_0001,
        0x7f80_0000,
    ] {
        let mut x = random(dims.m * dims.k, 4);
        x[7 * dims.k + 21] = f32::from_bits(bits);
        let out = forward(Way::Amx, &x, &weight, dims);
        for (i, row) in out.chunks(dims.n).enumerate() {
            // Infinity becomes NaN: what is left of it after its first part is none.
            assert!(
                row.iter().all(|y| y.is_nan() == (i == 7)),
                "{bits:x}: row {i}"
            );
        }
    }
}
