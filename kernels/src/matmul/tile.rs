//! One matrix product, cut into tiles of the result that any thread may compute.
//!
//! `cpu.rs` states each product of the layer as a `Product` and what is done to its elements as an
//! `Epilogue`. The cut depends on the sizes alone, and each element of the result is summed by one
//! task in one order, so the bits are the same for any number of threads.

use gemm::Parallelism;
use rayon::prelude::*;

/// Rows and columns of the largest tile.
const TILE: usize = 384;

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

// SAFETY: an `Output` stands for a `&mut [f32]`, which is `Send`; `segment`, the only way to its
// elements, asks its callers to keep tasks apart.
#[expect(
    unsafe_code,
    reason = "tiles of one buffer are written by several threads"
)]
unsafe impl Send for Output<'_> {}
// SAFETY: as above.
#[expect(
    unsafe_code,
    reason = "tiles of one buffer are written by several threads"
)]
unsafe impl Sync for Output<'_> {}

impl<'a> Output<'a> {
    pub(super) fn new(data: &'a mut [f32]) -> Self {
        Self {
            data: data.as_mut_ptr(),
            len: data.len(),
            borrow: std::marker::PhantomData,
        }
    }

    /// The elements `start..start + len`.
    ///
    /// # Safety
    /// Nobody else may read or write these elements while the slice lives.
    #[inline(always)]
    #[expect(
        unsafe_code,
        reason = "tiles of one buffer are written by several threads"
    )]
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

/// A rectangle of the result.
struct Tile {
    row: usize,
    rows: usize,
    col: usize,
    cols: usize,
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
        let out = Output::new(out);
        let across = self.cols.div_ceil(TILE);
        (0..self.rows.div_ceil(TILE) * across)
            .into_par_iter()
            .with_max_len(1)
            .for_each(|t| {
                let (row, col) = (t / across * TILE, t % across * TILE);
                let tile = Tile {
                    row,
                    rows: TILE.min(self.rows - row),
                    col,
                    cols: TILE.min(self.cols - col),
                };
                self.tile(&tile, &out, epilogue);
            });
    }

    /// One tile by the `gemm` crate.
    fn tile(&self, tile: &Tile, out: &Output<'_>, epilogue: &impl Epilogue) {
        let (a, b) = (self.a, self.b);
        #[expect(unsafe_code, reason = "gemm takes pointers and strides")]
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
            #[expect(unsafe_code, reason = "a row of this task's own tile")]
            // SAFETY: no two tiles share an element.
            let row = unsafe { out.segment(i * self.cols + tile.col, tile.cols) };
            epilogue.apply(i, tile.col, row);
        }
    }
}
