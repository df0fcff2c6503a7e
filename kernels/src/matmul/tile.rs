//! One matrix product, cut into tiles of the result that any thread may compute.
//!
//! `cpu.rs` states each product of the layer as a `Product` and what is done to its elements as an
//! `Epilogue`. The cut depends on the sizes alone, and each element of the result is summed by one
//! task in one order, so the bits are the same for any number of threads.
#![expect(
    unsafe_code,
    reason = "tiles of one buffer are written by several threads"
)]

use gemm::Parallelism;
use rayon::prelude::*;

#[cfg(target_arch = "x86_64")]
use super::{
    panel::{Packed, compute, with_packed},
    x86::{Avx2, Avx512},
};

/// Rows of the largest tile: a multiple of every register tile's.
pub(super) const TILE_ROWS: usize = 384;

/// Columns of the largest tile: a multiple of every register tile's.
pub(super) const TILE_COLS: usize = 384;

/// A matrix seen through strides: element (i, j) lies at `i * row + j * col`.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) data: &'a [f32],
    pub(super) row: usize,
    pub(super) col: usize,
}

impl<'a> View<'a> {
    /// A row-major matrix of `columns` columns.
    pub(super) fn rows(data: &'a [f32], columns: usize) -> Self {
        Self {
            data,
            row: columns,
            col: 1,
        }
    }

    /// The transpose of a row-major matrix of `columns` columns.
    pub(super) fn transposed(data: &'a [f32], columns: usize) -> Self {
        Self {
            data,
            row: 1,
            col: columns,
        }
    }
}

/// A row-major buffer that several tasks write, each its own elements.
#[derive(Clone, Copy)]
pub(super) struct Output<'a> {
    data: *mut f32,
    len: usize,
    borrow: std::marker::PhantomData<&'a mut [f32]>,
}

// SAFETY: an `Output` stands for a `&mut [f32]`, which is `Send`; whoever takes elements out of it
// promises to keep tasks apart.
unsafe impl Send for Output<'_> {}
// SAFETY: as above.
unsafe impl Sync for Output<'_> {}

impl<'a> Output<'a> {
    pub(super) fn new(data: &'a mut [f32]) -> Self {
        Self {
            data: data.as_mut_ptr(),
            len: data.len(),
            borrow: std::marker::PhantomData,
        }
    }

    /// Where element `start` lies.
    pub(super) fn pointer(&self, start: usize) -> *mut f32 {
        assert!(start < self.len, "element {start} of {}", self.len);
        // SAFETY: inside the buffer by the line above.
        unsafe { self.data.add(start) }
    }

    /// The elements `start..start + len`.
    ///
    /// # Safety
    /// Nobody else may read or write these elements while the slice lives.
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "the caller keeps the segments apart")]
    pub(super) unsafe fn segment(&self, start: usize, len: usize) -> &mut [f32] {
        assert!(
            start + len <= self.len,
            "{start} + {len} elements of {}",
            self.len
        );
        // SAFETY: inside the buffer by the line above, unaliased by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(start), len) }
    }
}

/// What is done to finished elements while they are in cache.
pub(super) trait Epilogue: Sync {
    /// `row` holds the elements from column `j` on of row `i`; no two calls share an element.
    fn apply(&self, i: usize, j: usize, row: &mut [f32]);
}

/// `out (rows, cols) = a (rows, depth) · b (depth, cols)`, or `+=`.
pub(super) struct Product<'a> {
    pub(super) a: View<'a>,
    pub(super) b: View<'a>,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) depth: usize,
    pub(super) accumulate: bool,
}

/// A rectangle of the result, at most `TILE_ROWS` x `TILE_COLS`.
pub(super) struct Tile {
    pub(super) row: usize,
    pub(super) rows: usize,
    pub(super) col: usize,
    pub(super) cols: usize,
}

impl Product<'_> {
    /// Computes the product into `out` (rows, cols) and applies the epilogue.
    pub(super) fn run(&self, out: &mut [f32], epilogue: &impl Epilogue) {
        assert_eq!(
            out.len(),
            self.rows * self.cols,
            "out: {} x {}",
            self.rows,
            self.cols
        );
        assert_eq!(
            self.a.data.len(),
            self.rows * self.depth,
            "a: {} x {}",
            self.rows,
            self.depth
        );
        assert_eq!(
            self.b.data.len(),
            self.depth * self.cols,
            "b: {} x {}",
            self.depth,
            self.cols
        );
        assert!(self.depth > 0, "an empty sum");
        let out = Output::new(out);
        let kernel = kernel();
        let across = self.cols.div_ceil(TILE_COLS);
        let tiles = self.rows.div_ceil(TILE_ROWS) * across;
        (0..tiles).into_par_iter().with_max_len(1).for_each(|t| {
            let (row, col) = (t / across * TILE_ROWS, t % across * TILE_COLS);
            let tile = Tile {
                row,
                rows: TILE_ROWS.min(self.rows - row),
                col,
                cols: TILE_COLS.min(self.cols - col),
            };
            match kernel {
                // SAFETY: `kernel` has found the instruction set; tiles share no element.
                #[cfg(target_arch = "x86_64")]
                Kernel::Avx512 => {
                    with_packed(|packed| unsafe { avx512(self, &tile, &out, epilogue, packed) })
                }
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Kernel::Avx2 => {
                    with_packed(|packed| unsafe { avx2(self, &tile, &out, epilogue, packed) })
                }
                Kernel::Library => self.tile(&tile, &out, epilogue),
            }
        });
    }

    /// One tile by the `gemm` crate.
    fn tile(&self, tile: &Tile, out: &Output<'_>, epilogue: &impl Epilogue) {
        let (a, b) = (self.a, self.b);
        // SAFETY: `run` has checked that the three buffers hold matrices of the product's sizes,
        // and a tile lies inside the result; no two tiles share an element.
        unsafe {
            gemm::gemm(
                tile.rows,
                tile.cols,
                self.depth,
                out.data.add(tile.row * self.cols + tile.col),
                1,
                self.cols as isize,
                self.accumulate,
                a.data.as_ptr().add(tile.row * a.row),
                a.col as isize,
                a.row as isize,
                b.data.as_ptr().add(tile.col * b.col),
                b.col as isize,
                b.row as isize,
                1.0,
                1.0,
                false,
                false,
                false,
                Parallelism::None,
            );
        }
        for i in tile.row..tile.row + tile.rows {
            // SAFETY: no two tiles share an element.
            let row = unsafe { out.segment(i * self.cols + tile.col, tile.cols) };
            epilogue.apply(i, tile.col, row);
        }
    }
}

/// What computes a tile.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kernel {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// The `gemm` crate.
    Library,
}

fn kernel() -> Kernel {
    #[cfg(target_arch = "x86_64")]
    {
        if std::env::var_os("MM").is_some_and(|s| s == "2") {
            return Kernel::Avx2;
        }
        if std::env::var_os("MM").is_some_and(|s| s == "0") {
            return Kernel::Library;
        }
        if is_x86_feature_detected!("avx512f") {
            return Kernel::Avx512;
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return Kernel::Avx2;
        }
    }
    Kernel::Library
}

/// `panel::compute` for AVX-512.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512(
    p: &Product<'_>,
    tile: &Tile,
    out: &Output<'_>,
    epilogue: &impl Epilogue,
    packed: &mut Packed,
) {
    // SAFETY: the caller's promise.
    unsafe { compute::<Avx512>(p, tile, out, epilogue, packed) }
}

/// `panel::compute` for AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2(
    p: &Product<'_>,
    tile: &Tile,
    out: &Output<'_>,
    epilogue: &impl Epilogue,
    packed: &mut Packed,
) {
    // SAFETY: the caller's promise.
    unsafe { compute::<Avx2>(p, tile, out, epilogue, packed) }
}
