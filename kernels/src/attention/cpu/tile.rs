//! Tiles of 64 queries by 64 keys: how they lie in memory, how rows get there, and the arithmetic
//! of vectors, for `forward`, `backward` and `decode`.
//!
//! A matrix of R rows is a row of panels 16 columns wide: element `(r, n)` is lane `n % 16` of
//! vector `n / 16 * R + r`. So every operand is read in order, rows and columns can both be the
//! summed dimension, and a panel's vector is one register of AVX-512, two of AVX2, four of NEON.

use multiversion::multiversion;

use crate::simd;

/// Queries and keys in a tile.
pub(super) const TILE: usize = 64;
/// Columns of a panel.
pub(super) const WIDTH: usize = 16;
/// Panels that cover the keys of a tile.
pub(super) const PANELS: usize = TILE / WIDTH;
/// Rows that the products take at a time.
pub(super) const GROUP: usize = 8;

/// One row of a panel.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Vector(pub(super) [f32; WIDTH]);

pub(super) const ZERO: Vector = Vector([0.0; WIDTH]);

/// Repeats a block for the constant `$i` = 0, 1, … below `$n` <= 8. The registers that hold the
/// sums of a product stay registers only if no loop indexes them.
macro_rules! unroll {
    ($i:ident < $n:expr, $body:block) => {
        unroll!(@ $i $n, $body, 0 1 2 3 4 5 6 7)
    };
    (@ $i:ident $n:expr, $body:block, $($value:literal)*) => {
        $({
            const $i: usize = $value;
            if $i < $n $body
        })*
    };
}

/// Rows of one head in a packed tensor.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    /// The tensor from the first row's first element on.
    pub(super) from: &'a [f32],
    /// Elements from one row to the next.
    pub(super) stride: usize,
    /// Rows that there are, at most a tile's.
    pub(super) count: usize,
    pub(super) head_size: usize,
}

impl Rows<'_> {
    /// Lanes `16 * panel..` of a row; zero beyond the last row and the last column.
    #[inline(always)]
    pub(super) fn vector(&self, row: usize, panel: usize) -> Vector {
        if row >= self.count {
            return ZERO;
        }
        let lanes = &self.from[row * self.stride..][..self.head_size][panel * WIDTH..];
        lanes
            .first_chunk()
            .map_or_else(|| partial(lanes), |lanes| Vector(*lanes))
    }
}

/// A vector of which only the first lanes exist. Not inlined: else this and a whole vector become
/// one copy of variable length, a call.
#[cold]
#[inline(never)]
fn partial(lanes: &[f32]) -> Vector {
    let mut vector = ZERO;
    vector.0[..lanes.len()].copy_from_slice(lanes);
    vector
}

/// Zeros, by one `memset`, which `fill` of a slice of vectors does not become.
pub(super) fn clear(x: &mut [Vector]) {
    for x in x {
        x.0 = [0.0; WIDTH];
    }
}

/// Copies rows into the panels `(64, 16 * panels)`, times `scale`.
#[multiversion(targets(
    "x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma",
    "x86_64+avx2+fma",
    "aarch64+neon"
))]
pub(super) fn pack(rows: Rows, to: &mut [Vector], panels: usize, scale: f32) {
    for row in 0..rows.count {
        let from = &rows.from[row * rows.stride..][..rows.head_size];
        let (whole, rest) = from.as_chunks();
        for (panel, lanes) in whole.iter().enumerate() {
            to[panel * TILE + row] = scaled(Vector(*lanes), scale);
        }
        if !rest.is_empty() {
            to[whole.len() * TILE + row] = scaled(partial(rest), scale);
        }
    }
    for panel in 0..panels {
        clear(&mut to[panel * TILE + rows.count..(panel + 1) * TILE]);
    }
}

/// `to` = rows of the tiles `from` `(64, hs)` times `scale`, or += if `accumulate`.
#[multiversion(targets(
    "x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma",
    "x86_64+avx2+fma",
    "aarch64+neon"
))]
pub(super) fn unpack(
    to: &mut [&mut [f32]],
    from: &[Vector],
    panels: usize,
    scale: f32,
    accumulate: bool,
) {
    for (row, to) in to.iter_mut().enumerate() {
        let from = &from[row / TILE * panels * TILE + row % TILE..];
        let (whole, rest) = to.as_chunks_mut();
        for (panel, to) in whole.iter_mut().enumerate() {
            let from = scaled(from[panel * TILE], scale);
            *to = if accumulate {
                add(from, Vector(*to)).0
            } else {
                from.0
            };
        }
        if !rest.is_empty() {
            let from = scaled(from[whole.len() * TILE], scale);
            for (to, from) in rest.iter_mut().zip(from.0) {
                *to = if accumulate { *to + from } else { from };
            }
        }
    }
}

/// Copies the transpose of rows into the panels `(16 * panels, 64)`; `spare` is as long as `to`.
///
/// Four perfect shuffles of 16 vectors transpose them. Each goes through memory: in one piece,
/// they would be compiled to gathers.
#[multiversion(targets(
    "x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma",
    "x86_64+avx2+fma",
    "aarch64+neon"
))]
pub(super) fn pack_transposed(rows: Rows, to: &mut [Vector], spare: &mut [Vector], panels: usize) {
    for (square, spare) in spare.chunks_exact_mut(WIDTH).enumerate() {
        let (group, panel) = (square / panels, square % panels);
        for i in 0..WIDTH / 2 {
            let a = rows.vector(group * WIDTH + i, panel);
            let b = rows.vector(group * WIDTH + i + 8, panel);
            spare[2 * i] = interleave::<0>(a, b);
            spare[2 * i + 1] = interleave::<8>(a, b);
        }
    }
    shuffle(to, spare);
    shuffle(spare, to);
    shuffle(to, spare);
}

/// In each 16 vectors, the first half interleaved, lane by lane, with the second half.
#[inline(always)]
fn shuffle(to: &mut [Vector], from: &[Vector]) {
    for (to, from) in to.chunks_exact_mut(WIDTH).zip(from.chunks_exact(WIDTH)) {
        for i in 0..WIDTH / 2 {
            to[2 * i] = interleave::<0>(from[i], from[i + 8]);
            to[2 * i + 1] = interleave::<8>(from[i], from[i + 8]);
        }
    }
}

#[inline(always)]
pub(super) fn window<const N: usize>(x: &[Vector]) -> &[Vector; N] {
    x.first_chunk()
        .expect("an operand has as many rows as its shape says")
}

#[inline(always)]
pub(super) fn window_mut<const N: usize>(x: &mut [Vector]) -> &mut [Vector; N] {
    x.first_chunk_mut()
        .expect("a result has as many rows as its shape says")
}

/// Lanes `FROM..FROM + 8` of two vectors in turn.
#[inline(always)]
fn interleave<const FROM: usize>(a: Vector, b: Vector) -> Vector {
    let mut both = ZERO;
    for lane in 0..WIDTH / 2 {
        both.0[2 * lane] = a.0[FROM + lane];
        both.0[2 * lane + 1] = b.0[FROM + lane];
    }
    both
}

// The lanes' arithmetic is spelt out: closures given to a common function are not always inlined,
// and then run as compiled for the oldest machine.

/// x b + c
#[inline(always)]
pub(super) fn multiply_add<const FMA: bool>(x: f32, b: &Vector, mut c: Vector) -> Vector {
    for lane in 0..WIDTH {
        c.0[lane] = if FMA {
            x.mul_add(b.0[lane], c.0[lane])
        } else {
            x * b.0[lane] + c.0[lane]
        };
    }
    c
}

/// a + b
#[inline(always)]
pub(super) fn add(mut a: Vector, b: Vector) -> Vector {
    for lane in 0..WIDTH {
        a.0[lane] += b.0[lane];
    }
    a
}

/// a * b
#[inline(always)]
pub(super) fn times(mut a: Vector, b: Vector) -> Vector {
    for lane in 0..WIDTH {
        a.0[lane] *= b.0[lane];
    }
    a
}

/// a - b
#[inline(always)]
pub(super) fn subtract(mut a: Vector, b: Vector) -> Vector {
    for lane in 0..WIDTH {
        a.0[lane] -= b.0[lane];
    }
    a
}

/// x - y
#[inline(always)]
pub(super) fn minus(mut x: Vector, y: f32) -> Vector {
    for lane in 0..WIDTH {
        x.0[lane] -= y;
    }
    x
}

/// x * factor
#[inline(always)]
pub(super) fn scaled(mut x: Vector, factor: f32) -> Vector {
    for lane in 0..WIDTH {
        x.0[lane] *= factor;
    }
    x
}

/// e^x
#[inline(always)]
pub(super) fn exp(mut x: Vector) -> Vector {
    for lane in 0..WIDTH {
        x.0[lane] = simd::exp(x.0[lane]);
    }
    x
}

/// The larger of each lane; that of `b` if one is NaN.
#[inline(always)]
pub(super) fn larger(mut a: Vector, b: Vector) -> Vector {
    for lane in 0..WIDTH {
        a.0[lane] = larger_lane(a.0[lane], b.0[lane]);
    }
    a
}

#[inline(always)]
pub(super) fn larger_lane(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// Hides from a row of scores of a tile on the diagonal what lies after it, in the last panel that
/// its group of rows sees.
#[inline(always)]
pub(super) fn hide(scores: &mut [Vector], row: usize) {
    let last = &mut scores[row / WIDTH * TILE + row];
    *last = hide_after(*last, row % WIDTH);
}

/// The lanes up to `last`, and minus infinity after it.
#[inline(always)]
pub(super) fn hide_after(mut x: Vector, last: usize) -> Vector {
    for lane in 0..WIDTH {
        let hidden = lane as u32 > last as u32;
        x.0[lane] = if hidden { f32::NEG_INFINITY } else { x.0[lane] };
    }
    x
}

/// The sums of the lanes of 16 vectors: that of vector `i` is in lane `i`.
#[inline(always)]
pub(super) fn sums(mut x: [Vector; WIDTH]) -> Vector {
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            let (a, b) = (x[i], x[i + half]);
            x[i] = add(interleave::<0>(a, b), interleave::<8>(a, b));
        }
    }
    x[0]
}

/// The largest of the lanes of 16 vectors: that of vector `i` is in lane `i`.
#[inline(always)]
pub(super) fn maxima(mut x: [Vector; WIDTH]) -> Vector {
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            let (a, b) = (x[i], x[i + half]);
            x[i] = larger(interleave::<0>(a, b), interleave::<8>(a, b));
        }
    }
    x[0]
}

/// The sum of the lanes.
#[inline(always)]
pub(super) fn sum(x: Vector) -> f32 {
    let mut x = x.0;
    for lane in 0..8 {
        x[lane] += x[lane + 8];
    }
    for lane in 0..4 {
        x[lane] += x[lane + 4];
    }
    (x[0] + x[2]) + (x[1] + x[3])
}

/// The largest of the lanes.
#[inline(always)]
pub(super) fn largest(x: Vector) -> f32 {
    let mut x = x.0;
    for lane in 0..8 {
        x[lane] = larger_lane(x[lane], x[lane + 8]);
    }
    for lane in 0..4 {
        x[lane] = larger_lane(x[lane], x[lane + 4]);
    }
    larger_lane(larger_lane(x[0], x[2]), larger_lane(x[1], x[3]))
}
