//! Products on machines with AMX, whose tiles multiply numbers of 16 bits sixteen times as fast as
//! AVX-512 multiplies those of 32. `tile.rs` hands over those that are large enough.
//!
//! An f32 is the exact sum of three bf16, x = x1 + x2 + x3 (8 bits of the significand each), so
//! x · y = x1 y1 + (x1 y2 + x2 y1) + (x1 y3 + x2 y2 + x3 y1) but for parts of 2⁻²⁴ and less: six
//! products of bf16, which are exact in f32 and summed in f32 (Henry, Tang and Heinecke,
//! "Leveraging the bfloat16 artificial intelligence datatype for higher-precision computations",
//! 2019). What is lost is less than what rounding the sums loses anyway.
//!
//! A block of b, cut into its three parts, is shared by all tasks; each task cuts up its rows of a
//! and passes them by the block, 32 x 32 elements of the result at a time. Each element is summed
//! by one task in one order, and the cut depends on the sizes alone.
#![expect(unsafe_code, reason = "tile and vector instructions on pointers")]

mod kernel;
mod pack;

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::sync::LazyLock;

use rayon::prelude::*;

use self::kernel::{Room, SIDE, Sums, Tiles};
use self::pack::{Line, Operand, Packed, STEP, STEP_LINES};
use super::tile::{Block, Epilogue, Output, Product};
use crate::buffer::Buffer;

/// Fewer rows or columns do not pay for cutting up the other operand.
const LEAST: usize = 48;

/// Nor does a product of fewer operations.
const FLOPS_LEAST: usize = 20_000_000;

/// Depth that is done at once.
const DEPTH: usize = 768;

/// Elements of a block of b that is shared: 6 bytes each.
const SHARED: usize = 1 << 19;

/// Elements of a task's own part of a, or of both: they stay in the second cache beside the rest.
const OWN: usize = 1 << 17;

/// Tasks that a product is cut into at least, if each keeps `FLOPS_MIN` operations.
const TASKS: usize = 8;
const FLOPS_MIN: usize = 12_000_000;

/// Bytes of a large page.
const LARGE_PAGE: usize = 2 << 20;

/// Elements that one task cuts up at least.
const PIECE: usize = 1 << 14;

/// Rows and columns of the largest rectangle of a sum over rows.
const SQUARE: usize = 512;

/// Least depth of a part of a sum over rows.
const PART_DEPTH: usize = 192;

thread_local! {
    /// A task's parts of a and of b.
    static OWN_PARTS: RefCell<[Buffer; 2]> = RefCell::default();
    /// The shared block of b.
    static SHARED_PARTS: Cell<Buffer> = Cell::default();
    /// The parts of sums over rows.
    static PARTIAL: Cell<Buffer> = Cell::default();
}

/// Whether the product is large enough for this to be the fastest way.
pub(super) fn pays(product: &Product<'_>) -> bool {
    let Product {
        rows, cols, depth, ..
    } = *product;
    rows.min(cols) >= LEAST && 2 * rows * cols * depth >= FLOPS_LEAST
}

/// Whether the machine has AMX and AVX-512, and the operating system lets this process use them.
pub(super) fn is_there() -> bool {
    static IS_THERE: LazyLock<bool> = LazyLock::new(|| {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && kernel::permitted()
    });
    *IS_THERE
}

/// Most bytes that are kept: both operands of each thread, a block of b, and parts of sums.
pub(super) fn workspace_max(threads: usize) -> usize {
    let own = packed_bytes(OWN).max(LARGE_PAGE);
    let partial = TASKS * SQUARE * SQUARE * size_of::<f32>();
    threads * 2 * own + packed_bytes(SHARED).max(LARGE_PAGE) + partial
}

/// Bytes of packed elements: those at the end of a block are rounded up.
fn packed_bytes(elements: usize) -> usize {
    elements * 3 * size_of::<u16>() * 5 / 4
}

/// Computes the product into `out` (rows, cols) and applies the epilogue. Operands have the
/// lengths that `Product` says.
pub(super) fn product(product: &Product<'_>, out: &Output<'_>, epilogue: &impl Epilogue) {
    assert!(is_there());
    let (a, b) = (Operand::left(product), Operand::right(product));
    if a.is_deep() {
        by_rows(product, [&a, &b], out, epilogue);
    } else {
        by_depth(product, [&a, &b], out, epilogue);
    }
}

/// Rows of a lie along the depth: each task packs some of them, and all share blocks of b.
fn by_rows(
    product: &Product<'_>,
    [a, b]: [&Operand<'_>; 2],
    out: &Output<'_>,
    epilogue: &impl Epilogue,
) {
    let Product {
        rows,
        cols,
        depth,
        accumulate,
        ..
    } = *product;
    let deep = even(depth, DEPTH, STEP);
    let wide = even(cols, SHARED / deep, 2 * SIDE);
    let mut buffer = SHARED_PARTS.take();
    for col in (0..cols).step_by(wide) {
        for from in (0..depth).step_by(deep) {
            let depth = [from, depth.min(from + deep)];
            let across = [col, cols.min(col + wide)];
            let b = share(b, across, depth, &mut buffer);
            let sums = Rectangles {
                out,
                stride: cols,
                accumulates: accumulate || from > 0,
                addend: epilogue.addend().filter(|_| from == 0),
                epilogue: (depth[1] == product.depth).then_some(epilogue),
            };
            let most = OWN / (depth[1] - depth[0]);
            cut(rows, across, depth, most).for_each(|rectangle| {
                OWN_PARTS.with_borrow_mut(|[own, _]| {
                    let a = a.packed(rectangle.rows, depth, own);
                    let b = b.from((rectangle.cols[0] - col) / SIDE);
                    sums.compute(a, b, rectangle);
                });
            });
        }
    }
    SHARED_PARTS.set(buffer);
}

/// Packs a block of b, some steps of all strips at a time.
fn share<'a>(
    b: &Operand<'_>,
    cols: [usize; 2],
    [from, to]: [usize; 2],
    buffer: &'a mut Buffer,
) -> Packed<'a> {
    let strips = strips(cols);
    let lines = room_for(strips * steps([from, to]) * STEP_LINES, buffer);
    let steps = (PIECE / (strips * SIDE * STEP)).max(b.steps_least());
    lines
        .par_chunks_mut(steps * strips * STEP_LINES)
        .with_max_len(1)
        .enumerate()
        .for_each(|(i, lines)| {
            let from = from + i * steps * STEP;
            b.pack(lines, cols, [from, to.min(from + steps * STEP)]);
        });
    Packed { lines, strips }
}

/// Cuts the rows, and the columns if there are few rows, into tasks of at most `most` rows.
fn cut(
    rows: usize,
    [first, end]: [usize; 2],
    depth: [usize; 2],
    most: usize,
) -> impl ParallelIterator<Item = Rectangle> {
    let (deep, wide) = (depth[1] - depth[0], end - first);
    let tasks = (2 * rows * wide * deep / FLOPS_MIN).clamp(1, TASKS);
    let high = even(rows, most.min(rows.div_ceil(tasks)), 2 * SIDE);
    let down = rows.div_ceil(high);
    let width = even(wide, wide.div_ceil(tasks.div_ceil(down)), 2 * SIDE);
    let across = wide.div_ceil(width);
    let tasks = (0..down * across).into_par_iter().with_max_len(1);
    tasks.map(move |task| {
        let (row, col) = (task / across * high, first + task % across * width);
        Rectangle {
            rows: [row, rows.min(row + high)],
            cols: [col, end.min(col + width)],
        }
    })
}

/// Both operands lie across the depth, as for the gradients of weights: each task packs what it
/// needs of both for some of the depth. Parts of the depth are added up at last, in order.
fn by_depth(
    product: &Product<'_>,
    [a, b]: [&Operand<'_>; 2],
    out: &Output<'_>,
    epilogue: &impl Epilogue,
) {
    let Product {
        rows,
        cols,
        depth,
        accumulate,
        ..
    } = *product;
    let [high, wide] = [rows, cols].map(|size| even(size, SQUARE, 2 * SIDE));
    let [down, across] = [rows.div_ceil(high), cols.div_ceil(wide)];
    // Few long parts, and as many for each of two or four threads.
    let tasks: usize = (2 * rows * cols * depth / FLOPS_MIN).clamp(1, TASKS);
    let tasks = 1 << tasks.ilog2();
    let most = usize::div_ceil(tasks, down * across)
        .min(depth.div_ceil(PART_DEPTH))
        .max(1);
    let long = even(depth, depth.div_ceil(most), STEP);
    let parts = depth.div_ceil(long);
    let mut buffer = PARTIAL.take();
    if buffer.len() < (parts - 1) * rows * cols {
        buffer = Buffer::zeros((parts - 1) * rows * cols);
    }
    let partials: Vec<_> = buffer
        .chunks_exact_mut(rows * cols)
        .map(Output::new)
        .collect();
    let deep = even(long, OWN / (high + wide), STEP);
    (0..down * across * parts)
        .into_par_iter()
        .with_max_len(1)
        .for_each(|task| {
            let (part, task) = (task % parts, task / parts);
            let (row, col) = (task / across * high, task % across * wide);
            let rectangle = Rectangle {
                rows: [row, rows.min(row + high)],
                cols: [col, cols.min(col + wide)],
            };
            let [first, end] = [part * long, depth.min((part + 1) * long)];
            for from in (first..end).step_by(deep) {
                let to = end.min(from + deep);
                let sums = Rectangles {
                    out: if part == 0 { out } else { &partials[part - 1] },
                    stride: cols,
                    accumulates: from > first || part == 0 && accumulate,
                    addend: None,
                    epilogue: (parts == 1 && to == depth).then_some(epilogue),
                };
                OWN_PARTS.with_borrow_mut(|[own_a, own_b]| {
                    let a = a.packed(rectangle.rows, [from, to], own_a);
                    let b = b.packed(rectangle.cols, [from, to], own_b);
                    sums.compute(a, b, rectangle);
                });
            }
        });
    if parts > 1 {
        add_up(out, &partials[..parts - 1], [rows, cols], epilogue);
    }
    PARTIAL.set(buffer);
}

/// out (rows, cols) += the partial sums, in order, and the epilogue.
fn add_up(
    out: &Output<'_>,
    partials: &[Output<'_>],
    [rows, cols]: [usize; 2],
    epilogue: &impl Epilogue,
) {
    let each = (PIECE / cols).max(1);
    (0..rows.div_ceil(each)).into_par_iter().for_each(|i| {
        let row = i * each;
        let rows = each.min(rows - row);
        // SAFETY: these rows are one task's, and the tasks that wrote them are done.
        let sums = unsafe { out.segment(row * cols, rows * cols) };
        for partial in partials {
            // SAFETY: as above.
            let other = unsafe { partial.segment(row * cols, rows * cols) };
            sums.iter_mut().zip(other).for_each(|(a, b)| *a += *b);
        }
        epilogue.apply(Block {
            out: *out,
            stride: cols,
            row,
            rows,
            col: 0,
            cols,
        });
    });
}

/// The first lines of a buffer, which is made anew, and large enough for large pages, if it is
/// short.
fn room_for(lines: usize, buffer: &mut Buffer) -> &mut [Line] {
    if buffer.len() / SIDE < lines {
        *buffer = Buffer::zeros(lines.max(LARGE_PAGE / size_of::<Line>()) * SIDE);
    }
    &mut bytemuck::cast_slice_mut(buffer)[..lines]
}

/// Size of the least number of even pieces of at most `most`, a multiple of `unit`.
fn even(size: usize, most: usize, unit: usize) -> usize {
    size.div_ceil(size.div_ceil(most.max(unit)))
        .next_multiple_of(unit)
}

/// Strips of these rows or columns, an even number.
fn strips([from, to]: [usize; 2]) -> usize {
    2 * (to - from).div_ceil(2 * SIDE)
}

/// Steps of a depth.
fn steps([from, to]: [usize; 2]) -> usize {
    (to - from).div_ceil(STEP)
}

/// One task's rows and columns of the result.
#[derive(Clone, Copy)]
struct Rectangle {
    rows: [usize; 2],
    cols: [usize; 2],
}

/// What becomes of the sums of rectangles.
struct Rectangles<'a, E> {
    out: &'a Output<'a>,
    stride: usize,
    /// Whether they are added to what is there.
    accumulates: bool,
    /// What else they are added to.
    addend: Option<&'a [f32]>,
    /// What follows, if these sums are the last.
    epilogue: Option<&'a E>,
}

impl<E: Epilogue> Rectangles<'_, E> {
    /// The sums of a rectangle's packed rows and columns.
    fn compute(&self, a: Packed<'_>, b: Packed<'_>, Rectangle { rows, cols }: Rectangle) {
        let stride = self.stride;
        let end = (rows[1] - 1) * stride + cols[1];
        assert!(cols[1] <= stride && self.addend.is_none_or(|addend| end <= addend.len()));
        let beside = self.epilogue.map_or(std::ptr::null(), E::beside);
        let tiles = Tiles::new();
        let [mut room, mut last_room] = [&mut Room::new(), &mut Room::new()];
        // What follows the sums would wait for them: it is done while the next are computed.
        let mut last: Option<(Sums<'_>, [usize; 2])> = None;
        for col in (cols[0]..cols[1]).step_by(2 * SIDE) {
            for row in (rows[0]..rows[1]).step_by(2 * SIDE) {
                let start = row * stride + col;
                let out = self.out.pointer(start);
                self.out.pointer(end - 1);
                let before = match self.addend {
                    Some(addend) => &raw const addend[start],
                    None if self.accumulates => out,
                    None => std::ptr::null(),
                };
                let sums = Sums {
                    a: a.from((row - rows[0]) / SIDE),
                    b: b.from((col - cols[0]) / SIDE),
                    out,
                    stride,
                    size: [rows[1] - row, cols[1] - col].map(|size| size.min(2 * SIDE)),
                    before,
                    beside: match self.addend {
                        Some(_) => before,
                        None if beside.is_null() => out,
                        None => beside.wrapping_add(start),
                    },
                };
                // SAFETY: the elements lie inside the result by the lines above, inside the addend
                // of the same shape likewise, and are this task's.
                unsafe {
                    sums.compute(&tiles, room, |step, steps| {
                        let Some((last, at)) = &last else {
                            return;
                        };
                        let each = (2 * SIDE).div_ceil(steps);
                        let rows = [step, step + 1].map(|step| last.size[0].min(step * each));
                        self.finish(last, *at, last_room, rows[0]..rows[1]);
                    });
                }
                last = Some((sums, [row, col]));
                std::mem::swap(&mut room, &mut last_room);
            }
        }
        if let Some((last, at)) = &last {
            self.finish(last, *at, last_room, 0..last.size[0]);
        }
    }

    /// What follows some rows of the sums from this row and column on.
    fn finish(&self, sums: &Sums<'_>, [row, col]: [usize; 2], room: &Room, rows: Range<usize>) {
        if rows.is_empty() {
            return;
        }
        // SAFETY: as in `compute`, which made them.
        unsafe { sums.finish(room, rows.clone()) };
        if let Some(epilogue) = self.epilogue {
            epilogue.apply_after_addend(Block {
                out: *self.out,
                stride: self.stride,
                row: row + rows.start,
                rows: rows.len(),
                col,
                cols: sums.size[1],
            });
        }
    }
}

#[cfg(test)]
mod tests;
