//! Forward for one chunk of queries of one head: the softmax is computed online, tile of keys
//! after tile of keys. `cpu::forward` calls it.

use multiversion::{multiversion, target::target_cfg_f};

use super::mask::Mask;
use super::tile::{self, GROUP, PANELS, TILE, Vector, WIDTH, ZERO};
use super::{CHUNK, Head, Part, panels};
use crate::attention::Dims;
use crate::simd::exp;

const TILES: usize = CHUNK / TILE;

/// Vectors of scratch that `chunk` needs.
pub(super) fn scratch_len(dims: Dims) -> usize {
    let tile = panels(dims) * TILE; // (64, hs)
    let chunk = TILES * tile;
    2 * chunk + 2 * tile + PANELS * TILE + CHUNK
}

/// Queries `start..start + out.len()`: rows of `out`, elements of `lse`.
#[multiversion(targets(
    "x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma",
    "x86_64+avx2+fma",
    "aarch64+neon"
))]
pub(super) fn chunk(
    head: Head,
    start: usize,
    out: &mut [&mut [f32]],
    lse: &mut [f32],
    scratch: &mut [Vector],
) {
    if target_cfg_f!(target_feature = "avx512f") {
        chunk_on::<true, true>(head, start, out, lse, scratch);
    } else if target_cfg_f!(any(target_feature = "fma", target_arch = "aarch64")) {
        chunk_on::<false, true>(head, start, out, lse, scratch);
    } else {
        chunk_on::<false, false>(head, start, out, lse, scratch);
    }
}

#[inline(always)]
fn chunk_on<const WIDE: bool, const FMA: bool>(
    head: Head<'_>,
    start: usize,
    out: &mut [&mut [f32]],
    lse: &mut [f32],
    scratch: &mut [Vector],
) {
    let panels = panels(head.dims);
    let tile = panels * TILE;
    let (queries, scratch) = scratch.split_at_mut(TILES * tile); // (4, 64, hs)
    let (sums, scratch) = scratch.split_at_mut(TILES * tile); // (4, 64, hs)
    let (keys, scratch) = scratch.split_at_mut(tile); // (hs, 64)
    let (values, scratch) = scratch.split_at_mut(tile); // (64, hs)
    let (weights, totals) = scratch.split_at_mut(PANELS * TILE); // (64, 64), (256)
    let mut maxima = [f32::NEG_INFINITY; CHUNK];
    let mut mask = head.dropout.map(|dropout| Mask::new(head, dropout));

    let end = start + out.len();
    for (queries, first) in queries
        .chunks_exact_mut(tile)
        .zip((start..end).step_by(TILE))
    {
        head.rows(Part::Query, first)
            .pack(queries, panels, head.scale());
    }
    sums.fill(ZERO);
    totals.fill(ZERO);
    for key in (0..end).step_by(TILE) {
        head.rows(Part::Key, key).pack_transposed(keys, panels);
        head.rows(Part::Value, key).pack(values, panels, 1.0);
        for query in (start.max(key)..end).step_by(TILE) {
            let at = query - start;
            let rows = (end - query).min(TILE);
            let queries = &queries[at / TILE * tile..][..tile];
            let sums = &mut sums[at / TILE * tile..][..tile];
            let visible = |row: usize| {
                if query == key {
                    (row + GROUP).div_ceil(WIDTH)
                } else {
                    PANELS
                }
            };
            tile::multiply::<WIDE, FMA, false>(
                weights,
                queries,
                keys,
                panels * WIDTH,
                rows,
                |row| tile::Part {
                    panels: visible(row),
                    depth: panels,
                },
            );
            for row in 0..rows {
                let visible = visible(row / GROUP * GROUP);
                if query == key {
                    tile::hide_after(&mut weights[(visible - 1) * TILE + row], row % WIDTH);
                }
                let shrink = soften(
                    &mut weights[row..],
                    visible,
                    &mut maxima[at + row],
                    &mut totals[at + row],
                );
                for panel in 0..panels {
                    for sum in &mut sums[panel * TILE + row].0 {
                        *sum *= shrink;
                    }
                }
                if let Some(mask) = &mut mask {
                    let factors = mask.factors(query + row, key, visible);
                    for (panel, factors) in factors.chunks_exact(WIDTH).enumerate() {
                        let weights = &mut weights[panel * TILE + row].0;
                        for (weight, factor) in weights.iter_mut().zip(factors) {
                            *weight *= factor;
                        }
                    }
                }
            }
            tile::multiply::<WIDE, FMA, true>(sums, weights, values, TILE, rows, |row| {
                tile::Part {
                    panels,
                    depth: visible(row),
                }
            });
        }
    }
    for (row, (out, lse)) in out.iter_mut().zip(lse).enumerate() {
        let total = tile::sum(&totals[row]);
        *lse = maxima[row] + total.ln();
        let sums = &sums[row / TILE * tile + row % TILE..];
        let factor = 1.0 / total;
        for (sums, out) in sums.iter().step_by(TILE).zip(out.chunks_mut(WIDTH)) {
            for (sum, out) in sums.0.iter().zip(out) {
                *out = sum * factor;
            }
        }
    }
}

/// Turns the scores of a row into exponentials relative to the row's maximum, and adds them to
/// its total. Returns by what the row's earlier sums have to be multiplied.
#[inline(always)]
fn soften(scores: &mut [Vector], panels: usize, maximum: &mut f32, total: &mut Vector) -> f32 {
    let mut largest = scores[0];
    for panel in 1..panels {
        for (largest, score) in largest.0.iter_mut().zip(scores[panel * TILE].0) {
            *largest = if score > *largest { score } else { *largest };
        }
    }
    let largest = tile::largest(&largest).max(*maximum);
    let shrink = exp(*maximum - largest);
    *maximum = largest;
    for total in &mut total.0 {
        *total *= shrink;
    }
    for panel in 0..panels {
        let scores = &mut scores[panel * TILE].0;
        for (score, total) in scores.iter_mut().zip(&mut total.0) {
            *score = exp(*score - largest);
            *total += *score;
        }
    }
    shrink
}
