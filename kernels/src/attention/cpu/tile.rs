//! Tiles of 64 queries by 64 keys and the matrix products on them, for `forward` and `backward`.
//!
//! A matrix of R rows is a row of panels 16 columns wide: element `(r, n)` is lane `n % 16` of
//! vector `n / 16 * R + r`. So every operand is read in order, rows and columns can both be the
//! summed dimension, and a panel's vector is one register of AVX-512, two of AVX2, four of NEON.
//!
//! `WIDE` says that there are 32 registers of 512 bits, `FMA` that `mul_add` is one instruction.

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

/// How much of a product a group of rows needs.
#[derive(Clone, Copy)]
pub(super) struct Part {
    /// Panels of the result.
    pub(super) panels: usize,
    /// Panels of the left operand, the sum's length in units of 16.
    pub(super) depth: usize,
}

/// c = a b, or c += a b where `ADD`, for the first `rows` rows of `c`, in whole groups of 8.
///
/// `c` `(64, 16 * panels)`, `a` `(64, 16 * depth)`, `b` `(b_rows, 16 * panels)`; `part` may shorten
/// both for the group that starts at a row.
#[inline(always)]
pub(super) fn multiply<const WIDE: bool, const FMA: bool, const ADD: bool>(
    c: &mut [Vector],
    a: &[Vector],
    b: &[Vector],
    b_rows: usize,
    rows: usize,
    part: impl Fn(usize) -> Part,
) {
    for row in (0..rows).step_by(GROUP) {
        let Part { panels, depth } = part(row);
        let mut panel = 0;
        while panel < panels {
            let b = &b[panel * b_rows..];
            let c = &mut c[panel * TILE..];
            if WIDE && panels - panel >= 4 {
                product::<FMA, ADD, 4, 4>(c, a, b, b_rows, row, depth);
                product::<FMA, ADD, 4, 4>(c, a, b, b_rows, row + 4, depth);
                panel += 4;
            } else if WIDE && panels - panel >= 2 {
                product::<FMA, ADD, 8, 2>(c, a, b, b_rows, row, depth);
                panel += 2;
            } else if WIDE {
                product::<FMA, ADD, 8, 1>(c, a, b, b_rows, row, depth);
                panel += 1;
            } else {
                product::<FMA, ADD, 4, 1>(c, a, b, b_rows, row, depth);
                product::<FMA, ADD, 4, 1>(c, a, b, b_rows, row + 4, depth);
                panel += 1;
            }
        }
    }
}

/// c += aᵀ b, where row `r` of `c` sums over the queries `first(r)..queries` only; `first` is asked
/// for the first row of each group of 8.
///
/// `c` `(64, 16 * panels)`, `a` `(64 queries, 64)`, `b` `(64 queries, 16 * panels)`.
#[inline(always)]
pub(super) fn multiply_transposed<const WIDE: bool, const FMA: bool>(
    c: &mut [Vector],
    a: &[Vector],
    b: &[Vector],
    panels: usize,
    queries: usize,
    first: impl Fn(usize) -> usize,
) {
    for row in (0..TILE).step_by(GROUP) {
        let first = first(row);
        if first >= queries {
            continue;
        }
        let (left, lane) = (row / WIDTH * TILE, row % WIDTH);
        let a = &a[left + first..left + queries];
        let mut panel = 0;
        while panel < panels {
            let b = &b[panel * TILE + first..];
            let c = &mut c[panel * TILE + row..];
            if WIDE && panels - panel >= 4 {
                product_transposed::<FMA, 4, 4>(c, a, b, lane);
                product_transposed::<FMA, 4, 4>(&mut c[4..], a, b, lane + 4);
                panel += 4;
            } else if WIDE && panels - panel >= 2 {
                product_transposed::<FMA, 8, 2>(c, a, b, lane);
                panel += 2;
            } else if WIDE {
                product_transposed::<FMA, 8, 1>(c, a, b, lane);
                panel += 1;
            } else {
                product_transposed::<FMA, 4, 1>(c, a, b, lane);
                product_transposed::<FMA, 4, 1>(&mut c[4..], a, b, lane + 4);
                panel += 1;
            }
        }
    }
}

/// `ROWS` rows from `row` on and `COLUMNS` panels of `multiply`, summed in registers.
#[inline(always)]
fn product<const FMA: bool, const ADD: bool, const ROWS: usize, const COLUMNS: usize>(
    c: &mut [Vector],
    a: &[Vector],
    b: &[Vector],
    b_rows: usize,
    row: usize,
    depth: usize,
) {
    let mut sum = [[ZERO; COLUMNS]; ROWS];
    if ADD {
        unroll!(J < COLUMNS, {
            let c: &[Vector; ROWS] = window(&c[J * TILE + row..]);
            unroll!(I < ROWS, {
                sum[I][J] = c[I];
            });
        });
    }
    for step in 0..depth {
        let a: &[Vector; ROWS] = window(&a[step * TILE + row..]);
        let b: [&[Vector; WIDTH]; COLUMNS] =
            std::array::from_fn(|j| window(&b[j * b_rows + step * WIDTH..]));
        for k in 0..WIDTH {
            unroll!(I < ROWS, {
                unroll!(J < COLUMNS, {
                    sum[I][J] = multiply_add::<FMA>(a[I].0[k], &b[J][k], sum[I][J]);
                });
            });
        }
    }
    unroll!(J < COLUMNS, {
        let c: &mut [Vector; ROWS] = window_mut(&mut c[J * TILE + row..]);
        unroll!(I < ROWS, {
            c[I] = sum[I][J];
        });
    });
}

/// `ROWS` rows and `COLUMNS` panels of `multiply_transposed`, summed in registers.
#[inline(always)]
fn product_transposed<const FMA: bool, const ROWS: usize, const COLUMNS: usize>(
    c: &mut [Vector],
    a: &[Vector],
    b: &[Vector],
    lane: usize,
) {
    let b: [&[Vector]; COLUMNS] = std::array::from_fn(|j| &b[j * TILE..][..a.len()]);
    let mut sum = [[ZERO; COLUMNS]; ROWS];
    unroll!(J < COLUMNS, {
        let c: &[Vector; ROWS] = window(&c[J * TILE..]);
        unroll!(I < ROWS, {
            sum[I][J] = c[I];
        });
    });
    for query in 0..a.len() {
        let a: &[f32; ROWS] = a[query].0[lane..]
            .first_chunk()
            .expect("lane + ROWS is at most a panel's width");
        unroll!(I < ROWS, {
            unroll!(J < COLUMNS, {
                sum[I][J] = multiply_add::<FMA>(a[I], &b[J][query], sum[I][J]);
            });
        });
    }
    unroll!(J < COLUMNS, {
        let c: &mut [Vector; ROWS] = window_mut(&mut c[J * TILE..]);
        unroll!(I < ROWS, {
            c[I] = sum[I][J];
        });
    });
}

#[inline(always)]
fn window<const N: usize>(x: &[Vector]) -> &[Vector; N] {
    x.first_chunk()
        .expect("an operand has as many rows as its shape says")
}

#[inline(always)]
fn window_mut<const N: usize>(x: &mut [Vector]) -> &mut [Vector; N] {
    x.first_chunk_mut()
        .expect("a result has as many rows as its shape says")
}

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
        let from = &self.from[row * self.stride..][..self.head_size];
        let from = &from[panel * WIDTH..];
        if let Some(lanes) = from.first_chunk() {
            return Vector(*lanes);
        }
        let mut lanes = ZERO;
        lanes.0[..from.len()].copy_from_slice(from);
        lanes
    }

    /// Copies into the panels `(64, 16 * panels)`, times `scale`.
    #[inline(always)]
    pub(super) fn pack(&self, to: &mut [Vector], panels: usize, scale: f32) {
        for panel in 0..panels {
            let to: &mut [Vector; TILE] = window_mut(&mut to[panel * TILE..]);
            for (row, to) in to.iter_mut().enumerate() {
                let mut vector = self.vector(row, panel);
                for lane in &mut vector.0 {
                    *lane *= scale;
                }
                *to = vector;
            }
        }
    }

    /// Copies the transpose into the panels `(16 * panels, 64)`.
    #[inline(always)]
    pub(super) fn pack_transposed(&self, to: &mut [Vector], panels: usize) {
        for group in 0..PANELS {
            for panel in 0..panels {
                let square = std::array::from_fn(|i| self.vector(group * WIDTH + i, panel));
                let to = &mut to[(group * panels + panel) * WIDTH..];
                *window_mut(to) = transpose(square);
            }
        }
    }
}

/// Four perfect shuffles of 16 vectors transpose them.
#[inline(always)]
fn transpose(mut square: [Vector; WIDTH]) -> [Vector; WIDTH] {
    for _ in 0..4 {
        square = std::array::from_fn(|i| {
            let (a, b) = (square[i / 2], square[i / 2 + WIDTH / 2]);
            let half = i % 2 * (WIDTH / 2);
            Vector(std::array::from_fn(|lane| {
                let from = if lane % 2 == 0 { a } else { b };
                from.0[half + lane / 2]
            }))
        });
    }
    square
}

/// Sets the lanes after `last` to minus infinity.
#[inline(always)]
pub(super) fn hide_after(scores: &mut Vector, last: usize) {
    for (lane, score) in scores.0.iter_mut().enumerate() {
        *score = if lane as u32 > last as u32 {
            f32::NEG_INFINITY
        } else {
            *score
        };
    }
}

#[inline(always)]
pub(super) fn sum(x: &Vector) -> f32 {
    fold(x, |a, b| a + b)
}

/// The largest lane; a NaN is passed over.
#[inline(always)]
pub(super) fn largest(x: &Vector) -> f32 {
    fold(x, |a, b| if a > b { a } else { b })
}

#[inline(always)]
fn fold(x: &Vector, join: impl Fn(f32, f32) -> f32) -> f32 {
    let x: [f32; 8] = std::array::from_fn(|i| join(x.0[i], x.0[i + 8]));
    let x: [f32; 4] = std::array::from_fn(|i| join(x[i], x[i + 4]));
    join(join(x[0], x[2]), join(x[1], x[3]))
}
