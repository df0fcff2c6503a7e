//! A tile of a product by a register tile of our own, which `x86.rs` fills in for AVX-512 and AVX2.
//!
//! For each block of the depth, the tile's part of b is packed into panels as wide as the register
//! tile and a's part into strips as high; a panel then stays in the first cache and the strips in
//! the second. `tile.rs` calls `Isa::tile` through `compute`.
#![expect(unsafe_code, reason = "inner loops on pointers into packed operands")]

use std::cell::RefCell;

use super::tile::{Epilogue, Output, Product, TILE_COLS, TILE_ROWS, Tile};

/// Depth of a block: a panel of 32 columns then takes 32 KiB.
const DEPTH: usize = 384;

/// Distance of two rows in a strip of a: not a multiple of a page, whose lines would share a set.
pub(super) const LEFT_STRIDE: usize = DEPTH + 16;

/// Rows x columns of the largest register tile.
const REGISTER_TILE: usize = 12 * 32;

/// A strip of a: register-tile rows at `LEFT_STRIDE`, or columns one after another.
#[derive(Clone, Copy)]
pub(super) enum Left {
    Rows(*const f32),
    Columns(*const f32),
}

/// A register.
///
/// # Safety
/// Of all functions: the machine has the instruction set, and pointers are to `LANES` elements
/// (`splat`: one).
pub(super) trait Vector: Copy {
    const LANES: usize;
    unsafe fn splat(x: *const f32) -> Self;
    unsafe fn load(x: *const f32) -> Self;
    unsafe fn store(self, x: *mut f32);
    unsafe fn multiply_add(self, b: Self, c: Self) -> Self;
    unsafe fn add(self, b: Self) -> Self;
    unsafe fn prefetch(x: *mut f32);
}

/// An instruction set.
///
/// # Safety
/// Of all functions: the machine has the instruction set.
pub(super) trait Isa {
    type Vector: Vector;
    /// Rows of the register tile, which is two vectors wide.
    const ROWS: usize;
    const COLS: usize = 2 * Self::Vector::LANES;

    /// Multiplies a strip by a panel; computes at least `rows` x `vectors` of the register tile.
    ///
    /// # Safety
    /// `left` and the panel are packed for the step's depth; `out` has room for a whole register
    /// tile, or exactly `ROWS` x 2 vectors are asked for and fit.
    unsafe fn multiply(rows: usize, vectors: usize, left: Left, step: Step);

    /// Transposes a square of `LANES` x `LANES`.
    ///
    /// # Safety
    /// Both squares lie within their buffers.
    unsafe fn transpose(x: *const f32, stride: usize, out: *mut f32, out_stride: usize);
}

/// What a register tile reads, but for the strip, and writes.
#[derive(Clone, Copy)]
pub(super) struct Step {
    pub(super) right: *const f32,
    pub(super) depth: usize,
    pub(super) out: *mut f32,
    pub(super) stride: usize,
    pub(super) accumulate: bool,
}

impl Step {
    /// The body of `Isa::multiply` for register tiles of R1 < R2 < R3 rows; element (i, l) of the
    /// strip lies at `i * ROW + l * COL`.
    ///
    /// # Safety
    /// That of `Isa::multiply`.
    #[inline(always)]
    pub(super) unsafe fn multiply<
        T: Vector,
        const R1: usize,
        const R2: usize,
        const R3: usize,
        const ROW: usize,
        const COL: usize,
    >(
        self,
        rows: usize,
        vectors: usize,
        left: *const f32,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            match (rows, vectors) {
                (rows, 1) if rows <= R1 => self.tile::<T, R1, 1, ROW, COL>(left),
                (rows, 1) if rows <= R2 => self.tile::<T, R2, 1, ROW, COL>(left),
                (_, 1) => self.tile::<T, R3, 1, ROW, COL>(left),
                (rows, _) if rows <= R1 => self.tile::<T, R1, 2, ROW, COL>(left),
                (rows, _) if rows <= R2 => self.tile::<T, R2, 2, ROW, COL>(left),
                (_, _) => self.tile::<T, R3, 2, ROW, COL>(left),
            }
        }
    }

    /// R rows of V vectors.
    ///
    /// # Safety
    /// That of `Isa::multiply`.
    #[inline(always)]
    unsafe fn tile<
        T: Vector,
        const R: usize,
        const V: usize,
        const ROW: usize,
        const COL: usize,
    >(
        self,
        left: *const f32,
    ) {
        // SAFETY: by the caller's promise, strip and panel hold `depth` steps and out the tile.
        unsafe {
            for i in 0..R {
                for v in 0..V {
                    T::prefetch(self.out.add(i * self.stride + v * T::LANES));
                }
            }
            let mut sums = [[T::splat(&0.0); V]; R];
            for l in 0..self.depth {
                let mut b = [T::splat(&0.0); V];
                for (v, b) in b.iter_mut().enumerate() {
                    *b = T::load(self.right.add((l * 2 + v) * T::LANES));
                }
                for (i, sums) in sums.iter_mut().enumerate() {
                    let a = T::splat(left.add(i * ROW + l * COL));
                    for (sum, b) in sums.iter_mut().zip(b) {
                        *sum = a.multiply_add(b, *sum);
                    }
                }
            }
            for (i, sums) in sums.into_iter().enumerate() {
                for (v, sum) in sums.into_iter().enumerate() {
                    let out = self.out.add(i * self.stride + v * T::LANES);
                    let sum = if self.accumulate {
                        T::load(out).add(sum)
                    } else {
                        sum
                    };
                    sum.store(out);
                }
            }
        }
    }
}

/// A cache line.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[expect(dead_code, reason = "read through pointers")] [f32; 16]);

/// Packed strips, then packed panels.
pub(super) struct Packed(Vec<Line>);

thread_local! {
    static PACKED: RefCell<Packed> = const { RefCell::new(Packed(Vec::new())) };
}

/// Calls `f` with this thread's buffer, which its first product allocates.
pub(super) fn with_packed(f: impl FnOnce(&mut Packed)) {
    PACKED.with_borrow_mut(|packed| {
        packed
            .0
            .resize((STRIPS + PANELS).div_ceil(16), Line([0.0; 16]));
        f(packed);
    });
}

const STRIPS: usize = (TILE_ROWS + 12) * LEFT_STRIDE;
const PANELS: usize = (TILE_COLS + 32) * DEPTH;

/// Computes one tile of the product and applies the epilogue.
///
/// # Safety
/// The machine has the instruction set; no other task touches the tile's elements of `out`.
#[inline(always)]
pub(super) unsafe fn compute<S: Isa>(
    product: &Product<'_>,
    tile: &Tile,
    out: &Output<'_>,
    epilogue: &impl Epilogue,
    packed: &mut Packed,
) {
    let blocks = product.depth.div_ceil(DEPTH);
    let step = product.depth.div_ceil(blocks);
    // SAFETY: the buffer holds strips and panels of the largest tile (`Tile`'s invariant).
    unsafe {
        let strips = packed.0.as_mut_ptr().cast::<f32>();
        let panels = strips.add(STRIPS);
        for start in (0..product.depth).step_by(step) {
            let depth = step.min(product.depth - start);
            if product.a.col != 1 {
                pack_columns::<S>(product, tile, start, depth, strips);
            }
            pack_right::<S>(product, tile, start, depth, panels);
            let block = Block {
                start,
                depth,
                first: start == 0,
                last: start + depth == product.depth,
            };
            multiply::<S>(product, tile, &block, strips, panels, out, epilogue);
        }
    }
}

struct Block {
    start: usize,
    depth: usize,
    first: bool,
    last: bool,
}

/// Packs a's part of a block where its columns lie together.
#[inline(always)]
unsafe fn pack_columns<S: Isa>(
    product: &Product<'_>,
    tile: &Tile,
    start: usize,
    depth: usize,
    strips: *mut f32,
) {
    let a = product.a;
    // SAFETY: rows and columns lie within a (`Product::run` has checked its size); the strips have
    // room for the tile's rows, rounded up to whole strips, at `LEFT_STRIDE` each.
    unsafe {
        for l in 0..depth {
            let from = &a.data[(start + l) * a.col + tile.row..][..tile.rows];
            for (s, from) in from.chunks(S::ROWS).enumerate() {
                let to = strips.add(s * S::ROWS * LEFT_STRIDE + l * S::ROWS);
                if from.len() == S::ROWS {
                    to.copy_from_nonoverlapping(from.as_ptr(), S::ROWS);
                } else {
                    to.copy_from_nonoverlapping(from.as_ptr(), from.len());
                }
            }
        }
    }
}

/// Packs b's part of a block: panels of `COLS` columns, row by row.
#[inline(always)]
unsafe fn pack_right<S: Isa>(
    product: &Product<'_>,
    tile: &Tile,
    start: usize,
    depth: usize,
    panels: *mut f32,
) {
    let b = product.b;
    let panel = |j: usize| j / S::COLS * depth * S::COLS + j % S::COLS;
    // SAFETY: rows and columns lie within b (`Product::run` has checked its size); the panels have
    // room for the tile's columns, rounded up to whole panels.
    unsafe {
        if b.col == 1 {
            for l in 0..depth {
                let from = &b.data[(start + l) * b.row + tile.col..][..tile.cols];
                for (p, from) in from.chunks(S::COLS).enumerate() {
                    let to = panels.add((p * depth + l) * S::COLS);
                    if from.len() == S::COLS {
                        to.copy_from_nonoverlapping(from.as_ptr(), S::COLS);
                    } else {
                        to.copy_from_nonoverlapping(from.as_ptr(), from.len());
                    }
                }
            }
            return;
        }
        let lanes = S::Vector::LANES;
        for j in (0..tile.cols).step_by(lanes) {
            let cols = lanes.min(tile.cols - j);
            for l in (0..depth).step_by(lanes) {
                let rows = lanes.min(depth - l);
                let from = b.data.as_ptr().add((tile.col + j) * b.col + start + l);
                let to = panels.add(panel(j) + l * S::COLS);
                if rows == lanes && cols == lanes {
                    S::transpose(from, b.col, to, S::COLS);
                } else {
                    for (row, col) in (0..rows).flat_map(|r| (0..cols).map(move |c| (r, c))) {
                        *to.add(row * S::COLS + col) = *from.add(col * b.col + row);
                    }
                }
            }
        }
    }
}

/// Multiplies the packed strips by the packed panels.
#[inline(always)]
unsafe fn multiply<S: Isa>(
    product: &Product<'_>,
    tile: &Tile,
    block: &Block,
    strips: *mut f32,
    panels: *const f32,
    out: &Output<'_>,
    epilogue: &impl Epilogue,
) {
    let accumulate = product.accumulate || !block.first;
    let stride = product.cols;
    let a = product.a;
    let mut buffer = [0.0f32; REGISTER_TILE];
    for i in (0..tile.rows).step_by(S::ROWS) {
        let rows = S::ROWS.min(tile.rows - i);
        // SAFETY: the strip of row i starts there.
        let left = unsafe {
            if a.col == 1 {
                for r in 0..rows {
                    let from = &a.data[(tile.row + i + r) * a.row + block.start..][..block.depth];
                    strips
                        .add(r * LEFT_STRIDE)
                        .copy_from_nonoverlapping(from.as_ptr(), block.depth);
                }
                Left::Rows(strips)
            } else {
                Left::Columns(strips.add(i * LEFT_STRIDE))
            }
        };
        for j in (0..tile.cols).step_by(S::COLS) {
            let cols = S::COLS.min(tile.cols - j);
            // SAFETY: a whole register tile lies inside the
            // tile, the buffer holds any; the segments are this tile's.
            unsafe {
                let right = panels.add(j * block.depth);
                let start = (tile.row + i) * stride + tile.col + j;
                let step = Step {
                    right,
                    depth: block.depth,
                    out: buffer.as_mut_ptr(),
                    stride,
                    accumulate,
                };
                if rows == S::ROWS && cols == S::COLS {
                    S::multiply(
                        rows,
                        2,
                        left,
                        Step {
                            out: out.pointer(start),
                            ..step
                        },
                    );
                } else {
                    let to = buffer.as_mut_ptr();
                    let step = Step {
                        out: to,
                        stride: S::COLS,
                        accumulate: false,
                        ..step
                    };
                    S::multiply(rows, cols.div_ceil(S::Vector::LANES), left, step);
                    for (r, from) in buffer.chunks(S::COLS).take(rows).enumerate() {
                        let row = out.segment(start + r * stride, cols);
                        for (to, from) in row.iter_mut().zip(from) {
                            *to = if accumulate { *to + from } else { *from };
                        }
                    }
                }
                if block.last {
                    for r in 0..rows {
                        let row = out.segment(start + r * stride, cols);
                        epilogue.apply(tile.row + i + r, tile.col + j, row);
                    }
                }
            }
        }
    }
}
