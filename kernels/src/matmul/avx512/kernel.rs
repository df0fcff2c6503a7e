//! Tiles of the result that AVX-512 sums up in registers: at most 14 rows by 32 columns, over rows
//! of a and a packed panel of b. `avx512.rs` packs and calls.
//!
//! 28 registers hold the sums, two a row of the panel and one an element of a: 28 multiplications
//! and additions for 16 loads, where the processor has two of each in a cycle.

use std::arch::x86_64::*;

/// Elements of a register.
pub(super) const LANES: usize = 16;

/// Most rows and columns of a tile.
pub(super) const ROWS: usize = 14;
pub(super) const COLS: usize = 2 * LANES;

/// Greatest depth of a tile.
pub(super) const DEPTH: usize = 384;

/// Repeats a block for the constant `$i` = 0, 1, … below `$n` <= 14. The sums stay registers only
/// if no loop indexes them.
macro_rules! unroll {
    ($i:ident < $n:expr, $body:block) => {
        unroll!(@ $i $n, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13)
    };
    (@ $i:ident $n:expr, $body:block, $($value:literal)*) => {
        $({
            const $i: usize = $value;
            if $i < $n $body
        })*
    };
}

/// One tile: out (rows, width) `=` or `+=` a (rows, depth) · b (depth, width).
pub(super) struct Tile {
    pub(super) rows: usize,
    pub(super) width: usize,
    pub(super) depth: usize,
    /// Element (i, l) at `i * a_row + l`.
    pub(super) a: *const f32,
    pub(super) a_row: usize,
    /// A panel: element (l, j) at `l * COLS + j`; on a cache line.
    pub(super) b: *const f32,
    /// Element (i, j) at `i * stride + j`.
    pub(super) out: *mut f32,
    pub(super) stride: usize,
    /// What the product is added to, laid out as `out`; null if there is nothing.
    pub(super) before: *const f32,
}

impl Tile {
    /// Computes it.
    ///
    /// # Safety
    /// The machine has AVX-512; a and the panel hold the elements that the tile needs, the panel
    /// all of its 32 columns; those of out are the caller's, those of `before` may be read.
    pub(super) unsafe fn compute(&self) {
        macro_rules! dispatch {
            ($($n:literal)*) => {
                match self.rows {
                    $($n if self.width > LANES => {
                        // SAFETY: the caller's promise.
                        unsafe { self.sums::<$n, 2>() }
                    }
                    $n => {
                        // SAFETY: the caller's promise.
                        unsafe { self.sums::<$n, 1>() }
                    })*
                    _ => unreachable!("a tile has 1 to 14 rows"),
                }
            };
        }
        dispatch!(1 2 3 4 5 6 7 8 9 10 11 12 13 14);
    }

    /// `N` rows by `WIDE` registers.
    ///
    /// # Safety
    /// As of `compute`.
    #[target_feature(enable = "avx512f")]
    unsafe fn sums<const N: usize, const WIDE: usize>(&self) {
        let mut sums = [[_mm512_setzero_ps(); WIDE]; N];
        // Three rows of a are reached from each of these. The compiler must not learn how they hang
        // together, or it computes each address from the one before, and no load runs ahead.
        let a_row = self.a_row;
        let mut a = [0, 1, 2, 3, 4].map(|i| hidden(self.a.wrapping_add(3 * i * a_row)));
        let mut b = self.b;
        // SAFETY: the caller's promise; what is only fetched may lie anywhere.
        unsafe {
            macro_rules! step {
                () => {
                    let mut right = [_mm512_setzero_ps(); WIDE];
                    unroll!(J < WIDE, {
                        right[J] = _mm512_load_ps(b.add(J * LANES));
                    });
                    unroll!(I < N, {
                        let left = _mm512_set1_ps(*a[I / 3].add(I % 3 * a_row));
                        unroll!(J < WIDE, {
                            sums[I][J] = _mm512_fmadd_ps(left, right[J], sums[I][J]);
                        });
                    });
                    for a in &mut a {
                        *a = a.wrapping_add(1);
                    }
                    b = b.add(COLS);
                };
            }
            // The lines of the next rows of a, and of the result, a few at a time: more would wait
            // for each other, and the sums for them.
            let lines = self.depth / LANES;
            let mut row = self.a.wrapping_add(ROWS * a_row);
            let (mut out, mut before) = (self.out.cast_const(), self.before);
            for _ in 0..LANES {
                let mut line = row;
                for _ in 0..lines {
                    _mm_prefetch::<_MM_HINT_T0>(line.cast());
                    line = line.wrapping_add(LANES);
                    step!();
                }
                for line in [out, before] {
                    _mm_prefetch::<_MM_HINT_ET0>(line.cast());
                    _mm_prefetch::<_MM_HINT_ET0>(line.wrapping_add(self.width - 1).cast());
                }
                row = row.wrapping_add(a_row);
                out = out.wrapping_add(self.stride);
                before = before.wrapping_add(self.stride);
            }
            for _ in 0..self.depth % LANES {
                step!();
            }
            let last = u16::MAX >> (WIDE * LANES - self.width);
            unroll!(I < N, {
                unroll!(J < WIDE, {
                    let mask = if J + 1 == WIDE { last } else { u16::MAX };
                    let at = I * self.stride + J * LANES;
                    let mut sum = sums[I][J];
                    if !self.before.is_null() {
                        let before = _mm512_maskz_loadu_ps(mask, self.before.wrapping_add(at));
                        sum = _mm512_add_ps(before, sum);
                    }
                    _mm512_mask_storeu_ps(self.out.wrapping_add(at), mask, sum);
                });
            });
        }
    }
}

/// The same pointer, of which the compiler knows nothing.
#[inline(always)]
fn hidden(mut pointer: *const f32) -> *const f32 {
    // SAFETY: no instruction at all.
    unsafe {
        std::arch::asm!(
            "/* {0} */",
            inout(reg) pointer,
            options(pure, readonly, nostack, preserves_flags)
        );
    }
    pointer
}
