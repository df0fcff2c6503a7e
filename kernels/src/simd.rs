//! Elementary functions and reductions that loops over `f32` slices vectorise, for every `cpu.rs`.
//!
//! A loop is compiled for several instruction sets, one taken at run time, where its function has
//! `#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]`. Both
//! imply FMA; every aarch64 build has NEON. What the loop calls must be `#[inline(always)]`, as
//! all is here, or it is compiled for the oldest machine. There, `mul_add` is a call of the C
//! library, some forty times slower. Sums have the same order with every instruction set.

#[cfg(test)]
pub(crate) mod tests;

use std::ops::Add;

/// Elements of one parallel task: enough to pay for it. Work is cut into pieces of this size, not
/// into one for each thread, so that no result depends on the number of threads.
pub const PIECE: usize = 1 << 14;

/// Partial sums that a reduction keeps. It fixes the order of the sum, whatever the vector width.
pub const LANES: usize = 64;

/// e^x within 2 units in the last place; 0 below -87.3 and infinity above 88.72.
///
/// Cody and Waite's reduction to |r| <= ln(2)/2, then Cephes' polynomial.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Adding it rounds to an integer and leaves that integer in the low bits.
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23
    // ln(2) in two parts; the product of the first with such an integer is exact.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    const LOWEST: f32 = -87.3;
    const HIGHEST: f32 = 88.722_83;

    let rounded = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = n.mul_add(-LN_2[1], n.mul_add(-LN_2[0], x));
    let p = polynomial(
        r,
        [
            0.5,
            0.166_666_65,
            4.166_579_6e-2,
            8.333_452e-3,
            1.398_2e-3,
            1.987_569_1e-4,
        ],
    );
    let p = p.mul_add(r * r, r) + 1.0;
    // 2^n goes straight into the exponent.
    let y = f32::from_bits(p.to_bits().wrapping_add(rounded.to_bits() << 23));
    // In this form, NaN stays NaN.
    let y = if x <= HIGHEST { y } else { x + f32::INFINITY };
    if x < LOWEST { 0.0 } else { y }
}

/// The hyperbolic tangent, within 2e-7 of the true value relative to it.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    // Cephes' polynomial below, where 1 - 2 / (e^2x + 1) loses digits.
    let square = x * x;
    let p = polynomial(
        square,
        [
            -0.333_332_83,
            0.133_314_41,
            -5.373_971_6e-2,
            2.063_909e-2,
            -5.704_988_8e-3,
        ],
    );
    let near = (p * square).mul_add(x, x);
    let far = (1.0 - 2.0 / (exp(2.0 * x.abs()) + 1.0)).copysign(x);
    if x.abs() < 0.625 { near } else { far }
}

/// The error function of a finite `x`, within 3e-7 of the true value.
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    let (cdf, _) = normal(x * std::f32::consts::SQRT_2);
    2.0 * cdf - 1.0
}

/// The standard normal distribution at a finite `x`: its cumulative distribution and its density.
///
/// Both are accurate relative to their value (1e-6 far out on the left), which
/// `(1 + erf(x / sqrt(2))) / 2` is not.
#[inline(always)]
pub fn normal(x: f32) -> (f32, f32) {
    // The tail over e^(-x^2/2), as t times a polynomial of t - 1, t = 1 / (1 + 0.26 |x|): least
    // maximal relative error (2e-8) for |x| <= 13.3, beyond which the exponential is 0.
    const SLOPE: f32 = 0.26;
    const FRAC_1_SQRT_TAU: f32 = 0.398_942_3;
    let distance = SLOPE * x.abs();
    let t = 1.0 / (1.0 + distance);
    let gaussian = exp(-0.5 * x * x);
    let tail = polynomial(
        -distance * t,
        [
            0.5,
            1.034_392_2,
            1.129_419_7,
            0.574_499_13,
            -0.034_708_876,
            -0.142_099_26,
            0.037_376_22,
            0.092_428_94,
            0.030_896_22,
        ],
    ) * t
        * gaussian;
    let cdf = if x < 0.0 { tail } else { 1.0 - tail };
    (cdf, FRAC_1_SQRT_TAU * gaussian)
}

/// c[0] + c[1] x + c[2] x^2 + … by Horner's rule.
#[inline(always)]
fn polynomial<const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
    let mut sum = coefficients[N - 1];
    for i in (0..N - 1).rev() {
        sum = sum.mul_add(x, coefficients[i]);
    }
    sum
}

/// The sum of `f` over the elements of slices of the same length.
#[inline(always)]
pub fn sum_of<const N: usize>(slices: [&[f32]; N], f: impl Fn([f32; N]) -> f32) -> f32 {
    let n = slices[0].len();
    assert!(slices.iter().all(|slice| slice.len() == n));
    let mut lanes = [0.0; LANES];
    let remainder = n % LANES;
    for (i, lane) in lanes[..remainder].iter_mut().enumerate() {
        *lane = f(slices.map(|slice| slice[i]));
    }
    for start in (remainder..n).step_by(LANES) {
        let chunks = slices.map(|slice| &slice[start..start + LANES]);
        for (i, lane) in lanes.iter_mut().enumerate() {
            *lane += f(chunks.map(|chunk| chunk[i]));
        }
    }
    sum_lanes(lanes)
}

/// The greatest element, minus infinity where there is none.
#[inline(always)]
pub fn max(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = x.chunks_exact(LANES);
    for (lane, &x) in lanes.iter_mut().zip(chunks.remainder()) {
        *lane = x;
    }
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            // Not `f32::max`, whose care for NaN costs two more instructions.
            *lane = if x > *lane { x } else { *lane };
        }
    }
    fold_lanes(lanes, |a, b| if a > b { a } else { b })
}

/// Adds up lanes, halving their number each time.
#[inline(always)]
pub fn sum_lanes<T: Copy + Add<Output = T>, const N: usize>(lanes: [T; N]) -> T {
    fold_lanes(lanes, |a, b| a + b)
}

#[inline(always)]
fn fold_lanes<T: Copy, const N: usize>(mut lanes: [T; N], f: impl Fn(T, T) -> T) -> T {
    const { assert!(N.is_power_of_two()) };
    let mut n = N / 2;
    while n > 0 {
        for i in 0..n {
            lanes[i] = f(lanes[i], lanes[i + n]);
        }
        n /= 2;
    }
    lanes[0]
}
