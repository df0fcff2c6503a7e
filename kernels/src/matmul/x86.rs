//! What AVX-512 and AVX2 do for `panel.rs`: the register tile and the transposition of a square.
#![expect(unsafe_code, reason = "vector instructions on pointers")]

use std::arch::x86_64::*;

use super::panel::{Isa, LEFT_STRIDE, Left, Step, Vector};

/// 12 x 32 sums in 24 of 32 registers.
pub(super) struct Avx512;

/// 6 x 16 sums in 12 of 16 registers.
pub(super) struct Avx2;

impl Vector for __m512 {
    const LANES: usize = 16;

    #[inline(always)]
    unsafe fn splat(x: *const f32) -> Self {
        // SAFETY: `Vector`'s contract.
        unsafe { _mm512_set1_ps(*x) }
    }

    #[inline(always)]
    unsafe fn load(x: *const f32) -> Self {
        // SAFETY: `Vector`'s contract.
        unsafe { _mm512_loadu_ps(x) }
    }

    #[inline(always)]
    unsafe fn store(self, x: *mut f32) {
        // SAFETY: `Vector`'s contract.
        unsafe { _mm512_storeu_ps(x, self) }
    }

    #[inline(always)]
    unsafe fn multiply_add(self, b: Self, c: Self) -> Self {
        // SAFETY: `Vector`'s contract.
        unsafe { _mm512_fmadd_ps(self, b, c) }
    }

    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        // SAFETY: `Vector`'s contract.
        unsafe { _mm512_add_ps(self, b) }
    }

    #[inline(always)]
    unsafe fn prefetch(x: *mut f32) {
        // SAFETY: a hint, which touches no memory.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(x.cast()) }
    }
}

impl Vector for __m256 {
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn splat(x: *const f32) -> Self {
        // SAFETY: `Vector`'s contract.
        unsafe { _mm256_set1_ps(*x) }
    }

    #[inline(always)]
    unsafe fn load(x: *const f32) -> Self {
        // SAFETY: `Vector`'s contract.
        unsafe { _mm256_loadu_ps(x) }
    }

    #[inline(always)]
    unsafe fn store(self, x: *mut f32) {
        // SAFETY: `Vector`'s contract.
        unsafe { _mm256_storeu_ps(x, self) }
    }

    #[inline(always)]
    unsafe fn multiply_add(self, b: Self, c: Self) -> Self {
        // SAFETY: `Vector`'s contract.
        unsafe { _mm256_fmadd_ps(self, b, c) }
    }

    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        // SAFETY: `Vector`'s contract.
        unsafe { _mm256_add_ps(self, b) }
    }

    #[inline(always)]
    unsafe fn prefetch(x: *mut f32) {
        // SAFETY: a hint, which touches no memory.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(x.cast()) }
    }
}

impl Isa for Avx512 {
    type Vector = __m512;
    const ROWS: usize = 12;

    #[target_feature(enable = "avx512f")]
    unsafe fn multiply(rows: usize, vectors: usize, left: Left, step: Step) {
        // SAFETY: `Isa`'s contract.
        unsafe {
            match left {
                Left::Rows(a) => {
                    step.multiply::<__m512, 4, 8, 12, LEFT_STRIDE, 1>(rows, vectors, a);
                }
                Left::Columns(a) => {
                    step.multiply::<__m512, 4, 8, 12, 1, 12>(rows, vectors, a);
                }
            }
        }
    }

    #[target_feature(enable = "avx512f")]
    unsafe fn transpose(x: *const f32, stride: usize, out: *mut f32, out_stride: usize) {
        // SAFETY: `Isa`'s contract: 16 rows of 16 elements on both sides.
        unsafe {
            let r: [__m512; 16] = std::array::from_fn(|i| _mm512_loadu_ps(x.add(i * stride)));
            // Pairs of rows, then fours, within each quarter of the registers.
            let pairs: [__m512; 16] = std::array::from_fn(|i| match i % 2 {
                0 => _mm512_unpacklo_ps(r[i], r[i + 1]),
                _ => _mm512_unpackhi_ps(r[i - 1], r[i]),
            });
            let fours: [__m512; 16] = std::array::from_fn(|i| {
                let first = i / 4 * 4 + i % 4 / 2;
                let [a, b] = [first, first + 2].map(|i| _mm512_castps_pd(pairs[i]));
                _mm512_castpd_ps(match i % 2 {
                    0 => _mm512_unpacklo_pd(a, b),
                    _ => _mm512_unpackhi_pd(a, b),
                })
            });
            // Then the quarters: column 4 q + c of the square is quarter q of fours[c + 4 i].
            for c in 0..4 {
                let low = _mm512_shuffle_f32x4::<0x88>(fours[c], fours[c + 4]);
                let high = _mm512_shuffle_f32x4::<0x88>(fours[c + 8], fours[c + 12]);
                let low_odd = _mm512_shuffle_f32x4::<0xdd>(fours[c], fours[c + 4]);
                let high_odd = _mm512_shuffle_f32x4::<0xdd>(fours[c + 8], fours[c + 12]);
                for (column, row) in [
                    (c, _mm512_shuffle_f32x4::<0x88>(low, high)),
                    (c + 4, _mm512_shuffle_f32x4::<0x88>(low_odd, high_odd)),
                    (c + 8, _mm512_shuffle_f32x4::<0xdd>(low, high)),
                    (c + 12, _mm512_shuffle_f32x4::<0xdd>(low_odd, high_odd)),
                ] {
                    _mm512_storeu_ps(out.add(column * out_stride), row);
                }
            }
        }
    }
}

impl Isa for Avx2 {
    type Vector = __m256;
    const ROWS: usize = 6;

    #[target_feature(enable = "avx2,fma")]
    unsafe fn multiply(rows: usize, vectors: usize, left: Left, step: Step) {
        // SAFETY: `Isa`'s contract.
        unsafe {
            match left {
                Left::Rows(a) => {
                    step.multiply::<__m256, 2, 4, 6, LEFT_STRIDE, 1>(rows, vectors, a);
                }
                Left::Columns(a) => {
                    step.multiply::<__m256, 2, 4, 6, 1, 6>(rows, vectors, a);
                }
            }
        }
    }

    #[target_feature(enable = "avx2,fma")]
    unsafe fn transpose(x: *const f32, stride: usize, out: *mut f32, out_stride: usize) {
        // SAFETY: `Isa`'s contract: 8 rows of 8 elements on both sides.
        unsafe {
            // Row i of the first four registers: rows i and i + 4 of a half of the square.
            for half in 0..2 {
                let r: [__m256; 4] = std::array::from_fn(|i| {
                    let [low, high] =
                        [i, i + 4].map(|i| _mm_loadu_ps(x.add(i * stride + 4 * half)));
                    _mm256_set_m128(high, low)
                });
                let pairs = [
                    _mm256_unpacklo_ps(r[0], r[1]),
                    _mm256_unpacklo_ps(r[2], r[3]),
                    _mm256_unpackhi_ps(r[0], r[1]),
                    _mm256_unpackhi_ps(r[2], r[3]),
                ];
                for c in 0..4 {
                    let (a, b) = (pairs[c / 2 * 2], pairs[c / 2 * 2 + 1]);
                    let row = match c % 2 {
                        0 => _mm256_shuffle_ps::<0x44>(a, b),
                        _ => _mm256_shuffle_ps::<0xee>(a, b),
                    };
                    _mm256_storeu_ps(out.add((4 * half + c) * out_stride), row);
                }
            }
        }
    }
}
