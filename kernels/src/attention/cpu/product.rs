//! The matrix products of a tile. The sums stay in registers: `WIDE` says that there are 32 of
//! 512 bits, `FMA` that `mul_add` is one instruction. `forward` and `backward` call it.
//!
//! Each product is a function of its own, because the compiler keeps the sums in registers only
//! in small functions.

use multiversion::{multiversion, target::target_cfg_f};

use super::tile::{GROUP, PANELS, TILE, Vector, WIDTH, ZERO, multiply_add, window, window_mut};

/// Panels with a key that one of the 8 queries from `row` on sees, on or off the diagonal.
#[inline(always)]
pub(super) fn visible(row: usize, diagonal: bool) -> usize {
    if diagonal {
        (row / GROUP * GROUP + GROUP).div_ceil(WIDTH)
    } else {
        PANELS
    }
}

/// `scores` `(64, 64)` = `queries` `(64, hs)` times `keys` `(hs, 64)`, for the first `rows` rows
/// and what they see.
#[multiversion(targets(
    "x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma",
    "x86_64+avx2+fma",
    "aarch64+neon"
))]
pub(super) fn scores(
    scores: &mut [Vector],
    queries: &[Vector],
    keys: &[Vector],
    rows: usize,
    diagonal: bool,
) {
    let fma = target_cfg_f!(any(target_feature = "fma", target_arch = "aarch64"));
    match (target_cfg_f!(target_feature = "avx512f"), fma) {
        (true, _) => scores_on::<true, true>(scores, queries, keys, rows, diagonal),
        (false, true) => scores_on::<false, true>(scores, queries, keys, rows, diagonal),
        (false, false) => scores_on::<false, false>(scores, queries, keys, rows, diagonal),
    }
}

#[inline(always)]
fn scores_on<const WIDE: bool, const FMA: bool>(
    scores: &mut [Vector],
    queries: &[Vector],
    keys: &[Vector],
    rows: usize,
    diagonal: bool,
) {
    let depth = queries.len() / TILE;
    for row in (0..rows).step_by(GROUP) {
        let panels = visible(row, diagonal);
        group::<WIDE, FMA, false>(scores, queries, keys, row, panels, depth);
    }
}

/// `sums` `(64, hs)` += `weights` `(64, 64)` times `values` `(64, hs)`, for the first `rows` rows
/// and what they see.
#[multiversion(targets(
    "x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma",
    "x86_64+avx2+fma",
    "aarch64+neon"
))]
pub(super) fn add_weighted(
    sums: &mut [Vector],
    weights: &[Vector],
    values: &[Vector],
    rows: usize,
    diagonal: bool,
) {
    let fma = target_cfg_f!(any(target_feature = "fma", target_arch = "aarch64"));
    match (target_cfg_f!(target_feature = "avx512f"), fma) {
        (true, _) => add_weighted_on::<true, true>(sums, weights, values, rows, diagonal),
        (false, true) => add_weighted_on::<false, true>(sums, weights, values, rows, diagonal),
        (false, false) => add_weighted_on::<false, false>(sums, weights, values, rows, diagonal),
    }
}

#[inline(always)]
fn add_weighted_on<const WIDE: bool, const FMA: bool>(
    sums: &mut [Vector],
    weights: &[Vector],
    values: &[Vector],
    rows: usize,
    diagonal: bool,
) {
    let panels = values.len() / TILE;
    for row in (0..rows).step_by(GROUP) {
        let depth = visible(row, diagonal);
        group::<WIDE, FMA, true>(sums, weights, values, row, panels, depth);
    }
}

/// `sums` `(64, hs)` += the transpose of `weights` `(64, 64)` times `values` `(64, hs)`, over the
/// first `queries` rows of both that see the key of a row of `sums`.
#[multiversion(targets(
    "x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma",
    "x86_64+avx2+fma",
    "aarch64+neon"
))]
pub(super) fn add_transposed(
    sums: &mut [Vector],
    weights: &[Vector],
    values: &[Vector],
    queries: usize,
    diagonal: bool,
) {
    let fma = target_cfg_f!(any(target_feature = "fma", target_arch = "aarch64"));
    match (target_cfg_f!(target_feature = "avx512f"), fma) {
        (true, _) => add_transposed_on::<true, true>(sums, weights, values, queries, diagonal),
        (false, true) => add_transposed_on::<false, true>(sums, weights, values, queries, diagonal),
        (false, false) => {
            add_transposed_on::<false, false>(sums, weights, values, queries, diagonal)
        }
    }
}

#[inline(always)]
fn add_transposed_on<const WIDE: bool, const FMA: bool>(
    sums: &mut [Vector],
    weights: &[Vector],
    values: &[Vector],
    queries: usize,
    diagonal: bool,
) {
    let panels = values.len() / TILE;
    for row in (0..TILE).step_by(GROUP) {
        let first = if diagonal { row } else { 0 };
        if first >= queries {
            break;
        }
        let (a, lane) = (&weights[row / WIDTH * TILE..][first..queries], row % WIDTH);
        let mut panel = 0;
        while panel < panels {
            let b = &values[panel * TILE + first..];
            let c = &mut sums[panel * TILE + row..];
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

/// c = a b, or c += a b where `ADD`, for 8 rows and some panels of `c`, over `depth` panels of `a`.
#[inline(always)]
fn group<const WIDE: bool, const FMA: bool, const ADD: bool>(
    c: &mut [Vector],
    a: &[Vector],
    b: &[Vector],
    row: usize,
    panels: usize,
    depth: usize,
) {
    let b_rows = if ADD { TILE } else { depth * WIDTH };
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

/// `ROWS` rows from `row` on and `COLUMNS` panels of `group`, summed in registers.
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
        let mut right: [&[Vector; WIDTH]; COLUMNS] = [&[ZERO; WIDTH]; COLUMNS];
        unroll!(J < COLUMNS, {
            right[J] = window(&b[J * b_rows + step * WIDTH..]);
        });
        #[expect(clippy::needless_range_loop, reason = "the same index for all rows")]
        for k in 0..WIDTH {
            unroll!(I < ROWS, {
                unroll!(J < COLUMNS, {
                    sum[I][J] = multiply_add::<FMA>(a[I].0[k], &right[J][k], sum[I][J]);
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

/// `ROWS` rows and `COLUMNS` panels of `add_transposed`, summed in registers.
#[inline(always)]
fn product_transposed<const FMA: bool, const ROWS: usize, const COLUMNS: usize>(
    c: &mut [Vector],
    a: &[Vector],
    b: &[Vector],
    lane: usize,
) {
    let mut right: [&[Vector]; COLUMNS] = [&[]; COLUMNS];
    unroll!(J < COLUMNS, {
        right[J] = &b[J * TILE..][..a.len()];
    });
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
                sum[I][J] = multiply_add::<FMA>(a[I], &right[J][query], sum[I][J]);
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
