//! Products on machines with AVX-512 where b lies the wrong way round and sums are short: those of
//! the forward pass of small models. `tile.rs` hands them over.
//!
//! A task computes a rectangle of the result: it turns b into a panel of 32 columns by 384 of depth
//! at a time, which stays in a near cache while the rows of a pass by it, 14 at a time and read
//! where they lie. What follows finds the sums in the nearest cache. Each element is summed by one
//! task in the order of the depth, and the cut depends on the sizes alone.
#![expect(unsafe_code, reason = "vector instructions on pointers")]

mod kernel;

use std::cell::RefCell;

use rayon::prelude::*;

use self::kernel::{COLS, DEPTH, LANES, ROWS, Tile};
use super::tile::{Block, Epilogue, Output, Product};
use super::transpose::transpose;

/// Greatest depth at which this is the faster way: few passes over the result.
const DEPTH_MAX: usize = 512;

/// Fewer rows do not pay for the packing of b.
const ROWS_MIN: usize = 24;

/// Most strips of a that a task takes: they pass by every panel, from the second cache.
const STRIPS_MAX: usize = 36;

/// Tasks that a product is cut into at least, if each keeps `FLOPS_MIN` operations.
const TASKS: usize = 8;
const FLOPS_MIN: usize = 6_000_000;

/// Elements of a packed panel.
const PANEL: usize = DEPTH * COLS;

thread_local! {
    /// A packed panel of b.
    static PACKED: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// A cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; LANES]);

/// Whether the operands lie as they must, and this machine has the instructions.
pub(super) fn can(product: &Product<'_>) -> bool {
    product.a.col == 1 && product.b.row == 1 && is_x86_feature_detected!("avx512f")
}

/// Whether this is faster than what is left.
pub(super) fn pays(product: &Product<'_>) -> bool {
    product.rows >= ROWS_MIN && product.depth <= DEPTH_MAX
}

/// Computes the product into `out` (rows, cols) and applies the epilogue. Operands have the
/// lengths that `Product` says.
pub(super) fn product(product: &Product<'_>, out: &Output<'_>, epilogue: &impl Epilogue) {
    assert!(is_x86_feature_detected!("avx512f"));
    assert_eq!(
        [product.a.col, product.b.row],
        [1, 1],
        "the shape that it is for"
    );
    let [rows, cols] = cut(product);
    let [down, across] = [product.rows.div_ceil(rows), product.cols.div_ceil(cols)];
    (0..down * across)
        .into_par_iter()
        .with_max_len(1)
        .for_each(|task| {
            let (row, col) = (task / across * rows, task % across * cols);
            let task = Task {
                product,
                out,
                row,
                end_row: (row + rows).min(product.rows),
                col,
                end_col: (col + cols).min(product.cols),
            };
            PACKED.with_borrow_mut(|packed| {
                packed.resize(PANEL / LANES, Line([0.0; LANES]));
                let packed = packed.as_mut_ptr().cast::<f32>();
                // SAFETY: lines are arrays of floats without gaps, and there are as many.
                task.run(epilogue, unsafe {
                    std::slice::from_raw_parts_mut(packed, PANEL)
                });
            });
        });
}

/// Rows and columns of a task: those that cost least, were there as many threads as tasks wanted.
fn cut(product: &Product<'_>) -> [usize; 2] {
    let Product {
        rows, cols, depth, ..
    } = *product;
    let tasks = (2 * rows * cols * depth / FLOPS_MIN).clamp(1, TASKS);
    let [strips, panels] = [rows.div_ceil(ROWS), cols.div_ceil(COLS)];
    // What an element of a and of b costs, fetched and packed, in columns and rows that it is
    // multiplied with.
    let [cost_a, cost_b] = [4, 12];
    let mut best = (usize::MAX, [rows, cols]);
    let mut least = strips.div_ceil(STRIPS_MAX);
    if least * panels < tasks {
        least = tasks.div_ceil(panels);
    }
    for down in least..=strips.min(least + tasks) {
        let rows_here = strips.div_ceil(down) * ROWS;
        let down = rows.div_ceil(rows_here);
        for across in tasks.div_ceil(down)..=panels.min(tasks) {
            let cols_here = panels.div_ceil(across) * COLS;
            let across = cols.div_ceil(cols_here);
            let turns = (down * across).div_ceil(tasks);
            let cost = turns * (rows_here * cols_here + cost_a * rows_here + cost_b * cols_here);
            best = best.min((cost, [rows_here, cols_here]));
        }
    }
    best.1
}

/// A rectangle of the result.
struct Task<'a> {
    product: &'a Product<'a>,
    out: &'a Output<'a>,
    row: usize,
    end_row: usize,
    col: usize,
    end_col: usize,
}

impl Task<'_> {
    fn run(&self, epilogue: &impl Epilogue, packed: &mut [f32]) {
        let Product { b, depth, .. } = *self.product;
        let block = depth
            .div_ceil(depth.div_ceil(DEPTH))
            .next_multiple_of(LANES);
        for from in (0..depth).step_by(block) {
            let to = depth.min(from + block);
            for col in (self.col..self.end_col).step_by(COLS) {
                let width = COLS.min(self.end_col - col);
                if width < COLS {
                    packed.fill(0.0);
                }
                let b = (&b.data[from + col * b.col..], b.col);
                transpose(packed, COLS, b.0, b.1, [width, to - from]);
                self.panel(epilogue, packed, [col, width], [from, to]);
            }
        }
    }

    /// The part `from..to` of the sums of all rows and one panel's columns; after the last part,
    /// the epilogue.
    fn panel(
        &self,
        epilogue: &impl Epilogue,
        packed: &[f32],
        [col, width]: [usize; 2],
        [from, to]: [usize; 2],
    ) {
        let Product {
            a,
            rows,
            cols,
            depth,
            accumulate,
            ..
        } = *self.product;
        assert!(packed.len() == PANEL && to - from <= DEPTH && to <= depth);
        assert!(self.end_row <= rows && (1..=COLS).contains(&width) && col + width <= cols);
        let addend = epilogue.addend().filter(|_| from == 0);
        addend.inspect(|addend| assert_eq!(addend.len(), rows * cols, "addend"));
        for row in (self.row..self.end_row).step_by(ROWS) {
            let rows = ROWS.min(self.end_row - row);
            let strip = &a.data[row * a.row + from..];
            assert!((rows - 1) * a.row + to - from <= strip.len(), "a");
            let out = self.out.pointer(row * cols + col);
            let tile = Tile {
                rows,
                width,
                depth: to - from,
                a: strip.as_ptr(),
                a_row: a.row,
                b: packed.as_ptr(),
                out,
                stride: cols,
                before: match addend {
                    Some(addend) => &raw const addend[row * cols + col],
                    None if accumulate || from > 0 => out,
                    None => std::ptr::null(),
                },
            };
            // SAFETY: AVX-512 is there; the strip holds the tile's rows, and the panel is on a
            // cache line and as deep as any; the tile lies inside the result, and inside the addend
            // of the same shape, by the lines above; its elements are this task's.
            unsafe { tile.compute() };
            if to == depth {
                epilogue.apply_after_addend(Block {
                    out: *self.out,
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
