//! The transpose of a block of a matrix, which `tile.rs` takes where a product's operand lies the
//! wrong way round: a square as wide as a register at a time.
#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "vector instructions on pointers")
)]

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// Writes the transpose of `from` (rows, cols) to `to` (cols, rows), each with its stride.
pub(super) fn transpose(
    to: &mut [f32],
    to_stride: usize,
    from: &[f32],
    from_stride: usize,
    size: [usize; 2],
) {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            check(to, to_stride, from, from_stride, size);
            // SAFETY: the instruction set is there; both blocks are inside by the line above.
            return unsafe {
                squares::<16>((to, to_stride), (from, from_stride), size, |to, from| {
                    square_16(to, from)
                })
            };
        }
        if is_x86_feature_detected!("avx2") {
            return avx2(to, to_stride, from, from_stride, size);
        }
    }
    plain(to, to_stride, from, from_stride, size);
}

/// `transpose` on a machine with AVX2.
#[cfg(target_arch = "x86_64")]
pub(super) fn avx2(
    to: &mut [f32],
    to_stride: usize,
    from: &[f32],
    from_stride: usize,
    size: [usize; 2],
) {
    assert!(is_x86_feature_detected!("avx2"));
    check(to, to_stride, from, from_stride, size);
    // SAFETY: the instruction set is there; both blocks are inside by the lines above.
    unsafe {
        squares::<8>((to, to_stride), (from, from_stride), size, |to, from| {
            square_8(to, from)
        });
    }
}

/// `transpose` on any machine.
pub(super) fn plain(
    to: &mut [f32],
    to_stride: usize,
    from: &[f32],
    from_stride: usize,
    [rows, cols]: [usize; 2],
) {
    // Near on both sides: a few rows at a time.
    for first in (0..rows).step_by(8) {
        for j in 0..cols {
            for i in first..rows.min(first + 8) {
                to[j * to_stride + i] = from[i * from_stride + j];
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn check(to: &[f32], to_stride: usize, from: &[f32], from_stride: usize, [rows, cols]: [usize; 2]) {
    assert!(rows > 0 && cols > 0, "an empty block");
    assert!(
        (cols - 1) * to_stride + rows <= to.len(),
        "to: {cols} x {rows}"
    );
    assert!(
        (rows - 1) * from_stride + cols <= from.len(),
        "from: {rows} x {cols}"
    );
}

/// Transposes by squares of side N, and the rest one by one.
///
/// # Safety
/// `square` may be called; both blocks, given with their strides, are inside their buffers.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn squares<const N: usize>(
    (to, to_stride): (&mut [f32], usize),
    (from, from_stride): (&[f32], usize),
    [rows, cols]: [usize; 2],
    square: impl Fn((*mut f32, usize), (*const f32, usize)),
) {
    for i in (0..rows).step_by(N) {
        for j in (0..cols).step_by(N) {
            let (height, width) = (N.min(rows - i), N.min(cols - j));
            // SAFETY: rows i.. and columns j.. are inside by the caller's promise; a fetch touches
            // nothing.
            unsafe {
                let to = to.as_mut_ptr().add(j * to_stride + i);
                let from = from.as_ptr().add(i * from_stride + j);
                if height == N && width == N {
                    for next in N..2 * N {
                        _mm_prefetch::<_MM_HINT_T1>(from.wrapping_add(next * from_stride).cast());
                    }
                    square((to, to_stride), (from, from_stride));
                } else {
                    for (i, j) in (0..height).flat_map(|i| (0..width).map(move |j| (i, j))) {
                        *to.add(j * to_stride + i) = *from.add(i * from_stride + j);
                    }
                }
            }
        }
    }
}

/// A square of 16.
///
/// # Safety
/// Both squares are inside their buffers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn square_16(
    (to, to_stride): (*mut f32, usize),
    (from, stride): (*const f32, usize),
) {
    // SAFETY: the caller's promise.
    let r: [__m512; 16] = std::array::from_fn(|i| unsafe { _mm512_loadu_ps(from.add(i * stride)) });
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
        let low_even = _mm512_shuffle_f32x4::<0x88>(fours[c], fours[c + 4]);
        let high_even = _mm512_shuffle_f32x4::<0x88>(fours[c + 8], fours[c + 12]);
        let low_odd = _mm512_shuffle_f32x4::<0xdd>(fours[c], fours[c + 4]);
        let high_odd = _mm512_shuffle_f32x4::<0xdd>(fours[c + 8], fours[c + 12]);
        for (column, row) in [
            (c, _mm512_shuffle_f32x4::<0x88>(low_even, high_even)),
            (c + 4, _mm512_shuffle_f32x4::<0x88>(low_odd, high_odd)),
            (c + 8, _mm512_shuffle_f32x4::<0xdd>(low_even, high_even)),
            (c + 12, _mm512_shuffle_f32x4::<0xdd>(low_odd, high_odd)),
        ] {
            // SAFETY: the caller's promise.
            unsafe { _mm512_storeu_ps(to.add(column * to_stride), row) };
        }
    }
}

/// A square of 8.
///
/// # Safety
/// Both squares are inside their buffers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn square_8((to, to_stride): (*mut f32, usize), (from, stride): (*const f32, usize)) {
    // Register i of a half of the columns holds rows i and i + 4.
    for half in 0..2 {
        let r: [__m256; 4] = std::array::from_fn(|i| {
            // SAFETY: the caller's promise.
            let [low, high] =
                [i, i + 4].map(|i| unsafe { _mm_loadu_ps(from.add(i * stride + 4 * half)) });
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
            // SAFETY: the caller's promise.
            unsafe { _mm256_storeu_ps(to.add((4 * half + c) * to_stride), row) };
        }
    }
}
