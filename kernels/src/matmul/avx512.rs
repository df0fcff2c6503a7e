//! Products on machines with AVX-512: tiles of 14 by 32 sums in registers, `tile.rs` calls it.
//!
//! b is copied, a panel of 32 columns and 256 of depth at a time, to where a register's width of it
//! lies together; a panel stays in the nearest cache while every row of a passes. a is read where
//! it lies. Each element of the result is summed by one task in the order of the depth.
#![expect(unsafe_code, reason = "vector instructions on pointers")]

use std::arch::x86_64::*;
use std::cell::RefCell;

use rayon::prelude::*;

use super::tile::{Block, Epilogue, Output, Product};
use super::transpose::transpose;

/// Rows and columns of the sums in registers: 28 registers, two for b and one for a.
const ROWS: usize = 14;
const COLS: usize = 2 * LANES;

/// Elements of a register.
const LANES: usize = 16;

/// Depth of a panel of b: 32 KiB.
const DEPTH: usize = 128;

/// Most panels of a task: 384 KiB of packed b.
const PANELS_MAX: usize = 12;

/// Tasks that a product is cut into at least, if each keeps `FLOPS_MIN` operations.
const TASKS: usize = 8;
const FLOPS_MIN: usize = 4_000_000;

thread_local! {
    /// Packed panels of b, and a row of tiles of a where it is packed.
    static PACKED: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// A cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; LANES]);

/// Greatest depth at which this is the faster way: that of one panel.
const DEPTH_MAX: usize = DEPTH;

/// Whether `product` is the way to compute this: what follows the product is costly and finds the
/// sums in the nearest cache, b has to be turned anyway, and this machine has the instructions.
pub(super) fn wants<E: Epilogue>(product: &Product<'_>, _: &E) -> bool {
    let is_shape = product.rows >= ROWS && product.depth <= DEPTH_MAX && product.b.col != 1;
    E::IS_COSTLY && is_shape && is_x86_feature_detected!("avx512f")
}

/// Computes the product into `out` (rows, cols) and applies the epilogue. Operands have the
/// lengths that `Product` says.
pub(super) fn product(product: &Product<'_>, out: &Output<'_>, epilogue: &impl Epilogue) {
    assert!(is_x86_feature_detected!("avx512f"));
    let [rows, cols] = cut(product);
    let [down, across] = [product.rows.div_ceil(rows), product.cols.div_ceil(cols)];
    (0..down * across)
        .into_par_iter()
        .with_max_len(1)
        .for_each(|task| {
            let (row, col) = (task % down * rows, task / down * cols);
            let task = Task {
                product,
                row,
                end_row: (row + rows).min(product.rows),
                col,
                end_col: (col + cols).min(product.cols),
            };
            PACKED.with_borrow_mut(|packed| task.run(out, epilogue, packed));
        });
}

/// Rows and columns of a task: all rows, so that b is packed once, unless columns are few.
fn cut(product: &Product<'_>) -> [usize; 2] {
    let Product {
        rows, cols, depth, ..
    } = *product;
    let panels = cols.div_ceil(COLS);
    let tasks = (2 * rows * cols * depth / FLOPS_MIN).clamp(1, TASKS);
    let across = panels.div_ceil(PANELS_MAX).max(tasks.min(panels));
    let cols = panels.div_ceil(across) * COLS;
    let down = tasks.div_ceil(panels).min(rows.div_ceil(ROWS));
    [rows.div_ceil(down).next_multiple_of(ROWS), cols]
}

/// A rectangle of the result.
struct Task<'a> {
    product: &'a Product<'a>,
    row: usize,
    end_row: usize,
    col: usize,
    end_col: usize,
}

impl Task<'_> {
    fn run(&self, out: &Output<'_>, epilogue: &impl Epilogue, packed: &mut Vec<Line>) {
        let Product {
            a,
            depth,
            cols,
            accumulate,
            ..
        } = *self.product;
        let panels = (self.end_col - self.col).div_ceil(COLS);
        packed.resize(
            (panels * DEPTH * COLS + DEPTH * LANES) / LANES,
            Line([0.0; LANES]),
        );
        for start in (0..depth).step_by(DEPTH) {
            let depth_here = DEPTH.min(depth - start);
            let is_last = start + depth_here == depth;
            for panel in 0..panels {
                self.pack(panel, start, depth_here, packed);
            }
            for row in (self.row..self.end_row).step_by(ROWS) {
                let rows = ROWS.min(self.end_row - row);
                let from = &a.data[row * a.row + start * a.col..];
                assert!(
                    (rows - 1) * a.row + (depth_here - 1) * a.col < from.len(),
                    "a"
                );
                for panel in 0..panels {
                    let col = self.col + panel * COLS;
                    let width = COLS.min(self.end_col - col);
                    let to = out.pointer(row * cols + col);
                    let b = &packed[panel * DEPTH * COLS / LANES..][..depth_here * COLS / LANES];
                    let operands = Operands {
                        depth: depth_here,
                        a: from.as_ptr(),
                        a_row: a.row,
                        a_col: a.col,
                        b: b.as_ptr().cast(),
                        out: to,
                        stride: cols,
                        width,
                        accumulate: accumulate || start > 0,
                    };
                    // SAFETY: AVX-512 is there; a and b are inside by the lines above; the sums
                    // are of this task's rectangle.
                    unsafe { operands.sums(rows) };
                    if is_last {
                        epilogue.apply(Block {
                            out: *out,
                            stride: cols,
                            row,
                            rows,
                            col,
                            cols: width,
                        });
                    }
                }
            }
        }
    }

    /// Copies rows `start..start + depth` of a panel of b to its place, zeros beyond the columns.
    fn pack(&self, panel: usize, start: usize, depth: usize, packed: &mut [Line]) {
        let b = self.product.b;
        let col = self.col + panel * COLS;
        let width = COLS.min(self.end_col - col);
        let lines = &mut packed[panel * DEPTH * COLS / LANES..][..depth * COLS / LANES];
        let from = &b.data[start * b.row + col * b.col..];
        if width < COLS {
            lines.fill(Line([0.0; LANES]));
        }
        let lines = lines.as_mut_ptr().cast::<f32>();
        // SAFETY: lines are arrays of floats without gaps.
        let to = unsafe { std::slice::from_raw_parts_mut(lines, depth * COLS) };
        if b.col == 1 {
            for (to, from) in to.chunks_exact_mut(COLS).zip(from.chunks(b.row)) {
                if width == COLS {
                    to.copy_from_slice(&from[..COLS]);
                } else {
                    to[..width].copy_from_slice(&from[..width]);
                }
            }
        } else {
            transpose(to, COLS, from, b.col, [width, depth]);
        }
    }
}

/// One tile: out (rows, width) `=` or `+=` a (rows, depth) · b (depth, 32).
struct Operands {
    depth: usize,
    a: *const f32,
    a_row: usize,
    a_col: usize,
    b: *const f32,
    out: *mut f32,
    stride: usize,
    width: usize,
    accumulate: bool,
}

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

impl Operands {
    /// # Safety
    /// AVX-512 is there, the operands are inside their buffers, and the sums are the caller's.
    unsafe fn sums(&self, rows: usize) {
        macro_rules! dispatch {
            ($($n:literal)*) => {
                match rows {
                    // SAFETY: the caller's promise.
                    $($n => unsafe { self.sums_of::<$n>() },)*
                    _ => unreachable!("a tile has 1 to 14 rows"),
                }
            };
        }
        dispatch!(1 2 3 4 5 6 7 8 9 10 11 12 13 14);
    }

    /// # Safety
    /// As of `sums`.
    #[target_feature(enable = "avx512f")]
    unsafe fn sums_of<const N: usize>(&self) {
        let mut sums = [[_mm512_setzero_ps(); 2]; N];
        // Three rows of a are reached from each of these. The compiler must not learn how they hang
        // together, or it computes each address from the one before, and no load runs ahead.
        let mut a = [0, 1, 2, 3, 4].map(|i| hidden(self.a.wrapping_add(3 * i * self.a_row)));
        let mut b = self.b;
        let (row, col) = (self.a_row, self.a_col);
        // SAFETY: the caller's promise; a row is touched where it is read.
        unsafe {
            unroll!(I < N, {
                let out = self.out.wrapping_add(I * self.stride);
                _mm_prefetch::<_MM_HINT_ET0>(out.cast());
                _mm_prefetch::<_MM_HINT_ET0>(out.wrapping_add(self.width - 1).cast());
            });
            let next = ROWS * row;
            let mut left_over = self.depth;
            while left_over > 0 {
                let steps = left_over.min(LANES);
                left_over -= steps;
                if col == 1 {
                    // The lines of the next rows of a.
                    unroll!(I < N, {
                        _mm_prefetch::<_MM_HINT_T0>(
                            a[I / 3].wrapping_add(I % 3 * row + next).cast(),
                        );
                    });
                }
                for _ in 0..steps {
                    let right = [_mm512_load_ps(b), _mm512_load_ps(b.add(LANES))];
                    unroll!(I < N, {
                        let left = _mm512_set1_ps(*a[I / 3].add(I % 3 * row));
                        sums[I][0] = _mm512_fmadd_ps(left, right[0], sums[I][0]);
                        sums[I][1] = _mm512_fmadd_ps(left, right[1], sums[I][1]);
                    });
                    if row == 1 {
                        _mm_prefetch::<_MM_HINT_T0>(a[0].wrapping_add(2 * ROWS).cast());
                    }
                    for a in &mut a {
                        *a = a.wrapping_add(col);
                    }
                    b = b.add(COLS);
                }
            }
            let mask = u32::MAX >> (COLS - self.width);
            let masks = [mask as u16, (mask >> LANES) as u16];
            unroll!(I < N, {
                for half in 0..2 {
                    let out = self.out.wrapping_add(I * self.stride + half * LANES);
                    let mut sum = sums[I][half];
                    if self.accumulate {
                        sum = _mm512_add_ps(_mm512_maskz_loadu_ps(masks[half], out), sum);
                    }
                    _mm512_mask_storeu_ps(out, masks[half], sum);
                }
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
