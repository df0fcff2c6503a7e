//! One matrix product, cut into tiles of the result that any thread may compute.
//!
//! `cpu.rs` states each product of the layer as a `Product` and what is done to its elements as an
//! `Epilogue`. The cut depends on the sizes alone, and each element of the result is summed by one
//! task in one order, so the bits are the same for any number of threads.
#![expect(
    unsafe_code,
    reason = "tiles of one buffer are written by several threads"
)]

use std::cell::RefCell;

use gemm::Parallelism;
use rayon::prelude::*;

use super::transpose::transpose;
#[cfg(target_arch = "x86_64")]
use super::{amx, avx512};

/// Rows and columns of the largest tile.
const TILE: [usize; 2] = [1024, 384];

/// Rows of the largest tile where a is transposed, and depth of a block that is.
const TRANSPOSED: [usize; 2] = [384, 512];

/// Tasks that a product is cut into at least, if each keeps `FLOPS_MIN` operations.
const TASKS: usize = 8;
const FLOPS_MIN: usize = 24_000_000;

/// Least depth of a part of a long sum.
const PART_DEPTH: usize = 1024;

/// Rows from which on transposing b pays.
const FEW: usize = 16;

/// Rows after which a costly epilogue follows.
const SOON: usize = 96;

/// Columns that the kernels take at a time.
const WIDE: usize = 64;

/// Elements of a cache line.
const LINE: usize = 16;

thread_local! {
    /// A transposed block.
    static BLOCK: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    /// The parts of long sums.
    static PARTIAL: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

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
    /// Whether it costs enough to be worth doing soon after the product, on few rows at a time.
    const IS_COSTLY: bool;

    /// No two calls share an element.
    fn apply(&self, block: Block<'_>);

    /// What it adds first, of the result's shape, where that can be done with the last sum.
    #[cfg(target_arch = "x86_64")]
    fn addend(&self) -> Option<&[f32]> {
        None
    }

    /// Another buffer of the result's shape that `apply` reads or writes, fetched before.
    #[cfg(target_arch = "x86_64")]
    fn beside(&self) -> *const f32 {
        std::ptr::null()
    }

    /// What is left to do where the addend was added.
    #[cfg(target_arch = "x86_64")]
    fn apply_after_addend(&self, block: Block<'_>) {
        self.apply(block);
    }
}

/// No epilogue.
pub(super) struct Nothing;

impl Epilogue for Nothing {
    const IS_COSTLY: bool = false;

    fn apply(&self, _block: Block<'_>) {}
}

/// A rectangle of the result that belongs to whoever holds this.
pub(super) struct Block<'a> {
    /// The whole result, rows of `stride` elements.
    pub(super) out: Output<'a>,
    pub(super) stride: usize,
    pub(super) row: usize,
    pub(super) rows: usize,
    pub(super) col: usize,
    pub(super) cols: usize,
}

impl Block<'_> {
    /// Where row `i` of the rectangle begins in the whole result.
    #[inline(always)]
    pub(super) fn start(&self, i: usize) -> usize {
        (self.row + i) * self.stride + self.col
    }

    /// Row `i` of the rectangle.
    #[inline(always)]
    pub(super) fn row(&mut self, i: usize) -> &mut [f32] {
        assert!(i < self.rows && self.col + self.cols <= self.stride);
        // SAFETY: the rectangle is the holder's, who lends its rows one at a time.
        unsafe { self.out.segment(self.start(i), self.cols) }
    }
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

/// Who computes a product.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Way {
    #[cfg(target_arch = "x86_64")]
    Amx,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    Gemm,
}

#[cfg(test)]
thread_local! {
    /// The way that tests want wherever it can be gone.
    pub(super) static FORCED: std::cell::Cell<Option<Way>> = const { std::cell::Cell::new(None) };
}

/// A rectangle of the result, and the part of the sums that a task computes.
struct Tile {
    row: usize,
    rows: usize,
    col: usize,
    cols: usize,
    start: usize,
    depth: usize,
}

/// How a product is cut: pieces of each side, the last ones smaller.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Cut {
    rows: usize,
    cols: usize,
    depth: usize,
}

impl Product<'_> {
    /// Computes the product into `out` (rows, cols) and applies the epilogue.
    pub(super) fn run(&self, out: &mut [f32], epilogue: &impl Epilogue) {
        let Self {
            rows, cols, depth, ..
        } = *self;
        assert!(rows > 0 && cols > 0 && depth > 0, "an empty product");
        assert_eq!(out.len(), rows * cols, "out: {rows} x {cols}");
        assert_eq!(self.a.data.len(), rows * depth, "a: {rows} x {depth}");
        assert_eq!(self.b.data.len(), depth * cols, "b: {depth} x {cols}");
        let out = Output::new(out);
        match self.way() {
            #[cfg(target_arch = "x86_64")]
            Way::Amx => amx::product(self, &out, epilogue),
            #[cfg(target_arch = "x86_64")]
            Way::Avx512 => avx512::product(self, &out, epilogue),
            Way::Gemm => self.run_tiles(out, epilogue),
        }
    }

    /// The way that is the fastest for this shape on this machine.
    fn way(&self) -> Way {
        #[cfg(test)]
        if let Some(way) = FORCED.get().filter(|way| self.can(*way)) {
            return way;
        }
        #[cfg(target_arch = "x86_64")]
        if self.can(Way::Amx) && amx::pays(self) {
            return Way::Amx;
        }
        #[cfg(target_arch = "x86_64")]
        if self.can(Way::Avx512) && avx512::pays(self) {
            return Way::Avx512;
        }
        Way::Gemm
    }

    /// Whether this way has what it needs.
    fn can(&self, way: Way) -> bool {
        match way {
            #[cfg(target_arch = "x86_64")]
            Way::Amx => amx::is_there(),
            #[cfg(target_arch = "x86_64")]
            Way::Avx512 => avx512::can(self),
            Way::Gemm => true,
        }
    }

    /// In tiles, by the `gemm` crate.
    fn run_tiles(&self, out: Output<'_>, epilogue: &impl Epilogue) {
        let Self {
            rows, cols, depth, ..
        } = *self;
        let cut = self.cut();
        let [down, across] = [rows.div_ceil(cut.rows), cols.div_ceil(cut.cols)];
        let parts = depth.div_ceil(cut.depth);
        // The first part of the sums goes to the result, the others are added to it in order.
        let mut partial = vec![0.0; (parts - 1) * rows * cols];
        let partials: Vec<_> = partial
            .chunks_exact_mut(rows * cols)
            .map(Output::new)
            .collect();
        (0..down * across * parts)
            .into_par_iter()
            .with_max_len(1)
            .for_each(|t| {
                let (t, part) = (t / parts, t % parts);
                let (row, col) = (t / across * cut.rows, t % across * cut.cols);
                let start = part * cut.depth;
                let tile = Tile {
                    row,
                    rows: cut.rows.min(rows - row),
                    col,
                    cols: cut.cols.min(cols - col),
                    start,
                    depth: cut.depth.min(depth - start),
                };
                let out = if part == 0 { &out } else { &partials[part - 1] };
                let accumulate = part == 0 && self.accumulate;
                if parts == 1 {
                    self.tile(&tile, out, accumulate, epilogue);
                } else {
                    self.tile(&tile, out, accumulate, &Nothing);
                }
            });
        if parts > 1 {
            (0..rows).into_par_iter().with_min_len(16).for_each(|i| {
                // SAFETY: a row is one task's, and the tasks that wrote it are done.
                let row = unsafe { out.segment(i * cols, cols) };
                for partial in &partials[..parts - 1] {
                    // SAFETY: as above.
                    let other = unsafe { partial.segment(i * cols, cols) };
                    row.iter_mut().zip(other).for_each(|(a, b)| *a += *b);
                }
                epilogue.apply(Block {
                    out,
                    stride: cols,
                    row: i,
                    rows: 1,
                    col: 0,
                    cols,
                });
            });
        }
        PARTIAL.set(partial);
    }

    /// Sizes of the pieces.
    fn cut(&self) -> Cut {
        let long = self.a.col != 1 && self.depth >= 2 * PART_DEPTH;
        let rows_max = if self.a.col == 1 {
            TILE[0]
        } else {
            TRANSPOSED[0]
        };
        let [mut down, mut across] = [self.rows.div_ceil(rows_max), self.cols.div_ceil(TILE[1])];
        let mut parts = 1;
        let flops = 2 * self.rows * self.cols * self.depth;
        let tasks = if flops < FLOPS_MIN / 8 {
            1
        } else {
            (flops / FLOPS_MIN).clamp(2, TASKS)
        };
        while down * across * parts < tasks {
            let (rows, cols) = (self.rows / down, self.cols / across);
            if long && self.depth / parts >= 2 * PART_DEPTH {
                parts *= 2;
            } else if match (self.a.col, self.b.col) {
                (1, 1) => rows < 128,
                (1, _) => cols >= 384 || cols >= 128 && rows < TILE[0],
                _ => rows < cols,
            } {
                across *= 2;
            } else {
                down *= 2;
            }
        }
        let cols = self.cols.div_ceil(across);
        Cut {
            rows: self.rows.div_ceil(down).next_multiple_of(LINE),
            // The widest registers compute 64 columns at a time. A little less than a multiple is
            // rounded up, any other width down, so that there are not fewer tasks than threads.
            cols: match cols % WIDE {
                _ if across == 1 || cols < WIDE => cols.next_multiple_of(LINE),
                rest if rest == 0 || rest * 2 > WIDE => cols.next_multiple_of(WIDE),
                rest => cols - rest,
            },
            depth: self.depth.div_ceil(parts).next_multiple_of(LINE),
        }
    }

    /// One tile's part of the sums, and the epilogue.
    fn tile<E: Epilogue>(&self, tile: &Tile, out: &Output<'_>, accumulate: bool, epilogue: &E) {
        let (a, b) = (self.a, self.b);
        let (rows, cols, start, depth) = (tile.rows, tile.cols, tile.start, tile.depth);
        let to = out.pointer(tile.row * self.cols + tile.col);
        let finished = |row: usize, rows: usize| Block {
            out: *out,
            stride: self.cols,
            row: tile.row + row,
            rows,
            col: tile.col,
            cols,
        };
        // A costly epilogue finds its rows in a near cache if all of the depth is done at once.
        let whole = depth <= TRANSPOSED[1];
        let few = if E::IS_COSTLY && whole { SOON } else { rows };
        let from_a = |l: usize| &a.data[tile.row * a.row + l * a.col..];
        let from_b = |l: usize| &b.data[l * b.row + tile.col * b.col..];
        let end = start + depth;
        if b.col != 1 && rows >= FEW || a.col != 1 && depth >= PART_DEPTH && cols >= 192 {
            BLOCK.with_borrow_mut(|block| {
                let block = aligned(block);
                for start in (start..end).step_by(TRANSPOSED[1]) {
                    let depth = TRANSPOSED[1].min(end - start);
                    let accumulate = accumulate || start > tile.start;
                    let (mut a, mut b) =
                        ((from_a(start), a.row, a.col), (from_b(start), b.row, b.col));
                    if b.2 != 1 {
                        let stride = cols.next_multiple_of(LINE);
                        transpose(block, stride, b.0, b.2, [cols, depth]);
                        b = (block, stride, 1);
                    } else {
                        let stride = TRANSPOSED[1] + LINE;
                        transpose(block, stride, a.0, a.2, [depth, rows]);
                        a = (block, stride, 1);
                    }
                    for row in (0..rows).step_by(few) {
                        let here = few.min(rows - row);
                        let (to, a) = (
                            to.wrapping_add(row * self.cols),
                            (&a.0[row * a.1..], a.1, a.2),
                        );
                        // SAFETY: the tile lies inside the result and is this task's.
                        unsafe { multiply([here, cols, depth], to, self.cols, accumulate, a, b) };
                        if whole {
                            epilogue.apply(finished(row, here));
                        }
                    }
                }
            });
            if !whole {
                epilogue.apply(finished(0, rows));
            }
        } else {
            let (a, b) = ((from_a(start), a.row, a.col), (from_b(start), b.row, b.col));
            for row in (0..rows).step_by(few) {
                let here = few.min(rows - row);
                let (to, a) = (
                    to.wrapping_add(row * self.cols),
                    (&a.0[row * a.1..], a.1, a.2),
                );
                // SAFETY: as above.
                unsafe { multiply([here, cols, depth], to, self.cols, accumulate, a, b) };
                epilogue.apply(finished(row, here));
            }
        }
    }
}

/// Most bytes that any way keeps: a block for each thread, and parts of sums that are as large as
/// the tiles of all tasks.
pub(super) fn workspace_max(threads: usize) -> usize {
    let block = TILE[1].max(TRANSPOSED[0]) * (TRANSPOSED[1] + LINE);
    let partial = TASKS * TRANSPOSED[0] * TILE[1];
    let elements = threads * block + partial;
    #[cfg(target_arch = "x86_64")]
    if amx::is_there() {
        return amx::workspace_max(threads) + elements * size_of::<f32>();
    }
    elements * size_of::<f32>()
}

/// The buffer from its first cache line on, with room for the largest block.
fn aligned(block: &mut Vec<f32>) -> &mut [f32] {
    let len = TILE[1].max(TRANSPOSED[0]) * (TRANSPOSED[1] + LINE);
    block.resize(len + LINE, 0.0);
    let start = block.as_ptr().align_offset(LINE * size_of::<f32>());
    &mut block[start..][..len]
}

/// out (rows, cols) `=` or `+=` a · b by the `gemm` crate; operands are (data, row stride, column
/// stride).
///
/// # Safety
/// `out` has `rows` rows of `cols` elements at `stride` which are the caller's.
unsafe fn multiply(
    [rows, cols, depth]: [usize; 3],
    out: *mut f32,
    stride: usize,
    accumulate: bool,
    a: (&[f32], usize, usize),
    b: (&[f32], usize, usize),
) {
    assert!(
        (rows - 1) * a.1 + (depth - 1) * a.2 < a.0.len(),
        "a: {rows} x {depth}"
    );
    assert!(
        (depth - 1) * b.1 + (cols - 1) * b.2 < b.0.len(),
        "b: {depth} x {cols}"
    );
    // SAFETY: the operands are inside their slices by the lines above, out by the caller's promise.
    unsafe {
        gemm::gemm(
            rows,
            cols,
            depth,
            out,
            1,
            stride as isize,
            accumulate,
            a.0.as_ptr(),
            a.2 as isize,
            a.1 as isize,
            b.0.as_ptr(),
            b.2 as isize,
            b.1 as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}
