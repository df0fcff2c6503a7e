//! Forward for one chunk of queries of one head: the softmax is computed online, tile of keys
//! after tile of keys. `cpu::forward` calls it.

use multiversion::multiversion;

use super::mask::Mask;
use super::product;
use super::tile::{self, GROUP, PANELS, TILE, Vector, WIDTH, ZERO};
use super::{CHUNK, Head, Part, panels};
use crate::attention::Dims;

const TILES: usize = CHUNK / TILE;

/// Vectors of scratch that `chunk` needs.
pub(super) fn scratch_len(dims: Dims) -> usize {
    let tile = panels(dims) * TILE; // (64, hs)
    let chunk = TILES * tile;
    2 * chunk + 3 * tile + 2 * PANELS * TILE + CHUNK
}

/// Queries `start..start + out.len()`: rows of `out`, elements of `lse`.
pub(super) fn chunk(
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
    let (spare, scratch) = scratch.split_at_mut(tile);
    let (factors, scratch) = scratch.split_at_mut(PANELS * TILE); // (64, 64)
    let (weights, totals) = scratch.split_at_mut(PANELS * TILE); // (64, 64), (256)
    let mut maxima = [Vector([f32::NEG_INFINITY; WIDTH]); CHUNK / WIDTH];
    let mask = Mask::new(head);

    let end = start + out.len();
    for (queries, first) in queries
        .chunks_exact_mut(tile)
        .zip((start..end).step_by(TILE))
    {
        tile::pack(head.rows(Part::Query, first), queries, panels, head.scale());
    }
    let tiles = out.len().div_ceil(TILE);
    tile::clear(&mut sums[..tiles * tile]);
    tile::clear(&mut totals[..tiles * TILE]);
    for key in (0..end).step_by(TILE) {
        tile::pack_transposed(head.rows(Part::Key, key), keys, spare, panels);
        tile::pack(head.rows(Part::Value, key), values, panels, 1.0);
        for query in (start.max(key)..end).step_by(TILE) {
            let at = query - start;
            let rows = (end - query).min(TILE);
            let queries = &queries[at / TILE * tile..][..tile];
            let sums = &mut sums[at / TILE * tile..][..tile];
            let diagonal = query == key;
            product::scores(weights, queries, keys, rows, diagonal);
            soften(
                weights,
                sums,
                &mut maxima[at / WIDTH..][..PANELS],
                &mut totals[at..at + rows],
                rows,
                diagonal,
            );
            if let Some(mask) = mask {
                mask.apply(weights, factors, query, key, rows);
            }
            product::add_weighted(sums, weights, values, rows, diagonal);
        }
    }
    finish(out, lse, sums, &maxima, totals, panels);
}

/// `out` = sums relative to their totals; `lse` = logarithms of the totals.
#[multiversion(targets(
    "x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma",
    "x86_64+avx2+fma",
    "aarch64+neon"
))]
fn finish(
    out: &mut [&mut [f32]],
    lse: &mut [f32],
    sums: &mut [Vector],
    maxima: &[Vector],
    totals: &[Vector],
    panels: usize,
) {
    for (tile, lse) in lse.chunks_mut(TILE).enumerate() {
        let sums = &mut sums[tile * panels * TILE..][..panels * TILE];
        for (row, lse) in lse.iter_mut().enumerate() {
            let at = tile * TILE + row;
            let total = tile::sum(totals[at]);
            *lse = maxima[at / WIDTH].0[at % WIDTH] + total.ln();
            for panel in 0..panels {
                let sum = &mut sums[panel * TILE + row];
                *sum = tile::scaled(*sum, 1.0 / total);
            }
        }
    }
    tile::unpack(out, sums, panels, 1.0, false);
}

/// Turns the scores of the first `rows` rows into exponentials relative to the row's maximum so
/// far, and adds them to its total. Sums made relative to an earlier maximum are corrected.
///
/// `maxima` and `totals` have an element for each row of the tile.
#[multiversion(targets(
    "x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma",
    "x86_64+avx2+fma",
    "aarch64+neon"
))]
fn soften(
    scores: &mut [Vector],
    sums: &mut [Vector],
    maxima: &mut [Vector],
    totals: &mut [Vector],
    rows: usize,
    diagonal: bool,
) {
    let panels = sums.len() / TILE;
    for (group, maxima) in maxima.iter_mut().enumerate().take(rows.div_ceil(WIDTH)) {
        let first = group * WIDTH;
        let visible = product::visible(first + GROUP, diagonal);
        let mut largest = [ZERO; WIDTH];
        for (row, largest) in (first..).zip(&mut largest) {
            if diagonal {
                tile::hide(scores, row);
            }
            let mut maximum = scores[row];
            for panel in 1..visible {
                maximum = tile::larger(scores[panel * TILE + row], maximum);
            }
            *largest = maximum;
        }
        let before = *maxima;
        *maxima = tile::larger(tile::maxima(largest), before);
        let shrink = tile::exp(tile::subtract(before, *maxima));
        let end = rows.min(first + WIDTH);
        for ((row, maximum), shrink) in (first..end).zip(maxima.0).zip(shrink.0) {
            let mut total = tile::scaled(totals[row], shrink);
            for at in (0..visible).map(|panel| panel * TILE + row) {
                scores[at] = tile::exp(tile::minus(scores[at], maximum));
                total = tile::add(total, scores[at]);
            }
            totals[row] = total;
            for panel in 0..panels {
                let at = panel * TILE + row;
                sums[at] = tile::scaled(sums[at], shrink);
            }
        }
    }
}
