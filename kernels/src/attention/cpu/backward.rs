//! Backward for one chunk of keys of one head: the probabilities are computed again, tile by
//! tile, from the saved logarithms. `cpu::backward` calls it.

use multiversion::{multiversion, target::target_cfg_f};

use super::mask::Mask;
use super::tile::{self, GROUP, PANELS, Rows, TILE, Vector, WIDTH, ZERO};
use super::{CHUNK, Head, Part, panels};
use crate::attention::Dims;
use crate::simd::exp;

const TILES: usize = CHUNK / TILE;

/// What backward reads besides the inputs of forward, for one element of the batch.
#[derive(Clone, Copy)]
pub(super) struct Saved<'a> {
    /// (T, C)
    pub(super) dout: &'a [f32],
    /// (T, C)
    pub(super) out: &'a [f32],
    /// (T), of one head.
    pub(super) lse: &'a [f32],
}

/// Vectors of scratch that `chunk` needs.
pub(super) fn scratch_len(dims: Dims) -> usize {
    let tile = panels(dims) * TILE; // (64, hs)
    (5 * TILES + 3) * tile + 2 * PANELS * TILE
}

/// Keys `start..start + dk.len()`: rows of `dk` and `dv`, and what they give to the rows of `dq`
/// from `start` on, which is added to them if `add`.
#[multiversion(targets(
    "x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma",
    "x86_64+avx2+fma",
    "aarch64+neon"
))]
#[expect(
    clippy::too_many_arguments,
    reason = "the operation has as many operands"
)]
pub(super) fn chunk(
    head: Head,
    saved: Saved,
    start: usize,
    dq: &mut [&mut [f32]],
    add: bool,
    dk: &mut [&mut [f32]],
    dv: &mut [&mut [f32]],
    scratch: &mut [Vector],
) {
    let mut keys = Keys::new(head, start, dk.len(), scratch);
    if target_cfg_f!(target_feature = "avx512f") {
        chunk_on::<true, true>(&mut keys, head, saved, dq, add);
    } else if target_cfg_f!(any(target_feature = "fma", target_arch = "aarch64")) {
        chunk_on::<false, true>(&mut keys, head, saved, dq, add);
    } else {
        chunk_on::<false, false>(&mut keys, head, saved, dq, add);
    }
    write(dk, keys.dk, keys.tile, 1.0, false);
    write(dv, keys.dv, keys.tile, 1.0, false);
}

/// The scratch of a chunk: its keys and values as the products want them, the gradients that it
/// sums, and the tile of queries at hand.
struct Keys<'a> {
    start: usize,
    end: usize,
    panels: usize,
    /// Vectors in a tile (64, hs).
    tile: usize,
    /// Tiles (64, hs) of the chunk.
    k: &'a mut [Vector],
    /// Tiles (hs, 64) of the chunk.
    k_transposed: &'a mut [Vector],
    /// Tiles (hs, 64) of the chunk.
    v_transposed: &'a mut [Vector],
    /// Tiles (64, hs) of the chunk.
    dk: &'a mut [Vector],
    /// Tiles (64, hs) of the chunk.
    dv: &'a mut [Vector],
    /// (64, hs), times 1 / sqrt(hs)
    q: &'a mut [Vector],
    /// (64, hs)
    dout: &'a mut [Vector],
    /// (64, hs)
    dq: &'a mut [Vector],
    /// (64, 64): scores, then weights after dropout
    weights: &'a mut [Vector],
    /// (64, 64): gradients of the weights, then of the scores
    dscores: &'a mut [Vector],
}

impl<'a> Keys<'a> {
    #[inline(always)]
    fn new(head: Head<'_>, start: usize, count: usize, scratch: &'a mut [Vector]) -> Self {
        let panels = panels(head.dims);
        let tile = panels * TILE;
        let (k, scratch) = scratch.split_at_mut(TILES * tile);
        let (k_transposed, scratch) = scratch.split_at_mut(TILES * tile);
        let (v_transposed, scratch) = scratch.split_at_mut(TILES * tile);
        let (dk, scratch) = scratch.split_at_mut(TILES * tile);
        let (dv, scratch) = scratch.split_at_mut(TILES * tile);
        let (q, scratch) = scratch.split_at_mut(tile);
        let (dout, scratch) = scratch.split_at_mut(tile);
        let (dq, scratch) = scratch.split_at_mut(tile);
        let (weights, dscores) = scratch.split_at_mut(PANELS * TILE);
        let end = start + count;
        for (i, key) in (start..end).step_by(TILE).enumerate() {
            let rows = head.rows(Part::Key, key);
            rows.pack(&mut k[i * tile..][..tile], panels, 1.0);
            rows.pack_transposed(&mut k_transposed[i * tile..][..tile], panels);
            let rows = head.rows(Part::Value, key);
            rows.pack_transposed(&mut v_transposed[i * tile..][..tile], panels);
        }
        dk.fill(ZERO);
        dv.fill(ZERO);
        Self {
            start,
            end,
            panels,
            tile,
            k,
            k_transposed,
            v_transposed,
            dk,
            dv,
            q,
            dout,
            dq,
            weights,
            dscores,
        }
    }
}

/// Every tile of queries with every tile of the chunk's keys that it sees.
#[inline(always)]
fn chunk_on<const WIDE: bool, const FMA: bool>(
    keys: &mut Keys<'_>,
    head: Head<'_>,
    saved: Saved<'_>,
    dq: &mut [&mut [f32]],
    add: bool,
) {
    let (time, channels) = (head.dims.time, head.dims.channels());
    let mut mask = head.dropout.map(|dropout| Mask::new(head, dropout));
    for (query, dq) in (keys.start..time).step_by(TILE).zip(dq.chunks_mut(TILE)) {
        head.rows(Part::Query, query)
            .pack(keys.q, keys.panels, head.scale());
        let dout = head.rows_of(saved.dout, channels, 0, query);
        dout.pack(keys.dout, keys.panels, 1.0);
        let out = head.rows_of(saved.out, channels, 0, query);
        let dots = dots(dout, out);
        keys.dq.fill(ZERO);
        for key in (keys.start..keys.end.min(query + 1)).step_by(TILE) {
            let lse = &saved.lse[query..][..dq.len()];
            pair::<WIDE, FMA>(keys, query, key, lse, &dots, mask.as_mut());
        }
        write(dq, keys.dq, keys.tile, head.scale(), add);
    }
}

/// One tile of queries, whose `q` and `dout` are packed, with one of keys. `lse` has an element
/// for each query that exists; `dots` are the products of `dout` and `out`.
#[inline(always)]
fn pair<const WIDE: bool, const FMA: bool>(
    keys: &mut Keys<'_>,
    query: usize,
    key: usize,
    lse: &[f32],
    dots: &[f32; TILE],
    mut mask: Option<&mut Mask<'_>>,
) {
    let panels = keys.panels;
    let rows = lse.len();
    let tile = (key - keys.start) / TILE * keys.tile..;
    let diagonal = query == key;
    let visible = |row: usize| {
        if diagonal {
            (row + GROUP).div_ceil(WIDTH)
        } else {
            PANELS
        }
    };
    let scores = |row| tile::Part {
        panels: visible(row),
        depth: panels,
    };
    let (k_transposed, v_transposed) = (
        &keys.k_transposed[tile.clone()],
        &keys.v_transposed[tile.clone()],
    );
    let (weights, dscores) = (&mut *keys.weights, &mut *keys.dscores);
    tile::multiply::<WIDE, FMA, false>(weights, keys.q, k_transposed, panels * WIDTH, rows, scores);
    tile::multiply::<WIDE, FMA, false>(
        dscores,
        keys.dout,
        v_transposed,
        panels * WIDTH,
        rows,
        scores,
    );
    for row in 0..rows {
        let visible = visible(row / GROUP * GROUP);
        if diagonal {
            tile::hide_after(&mut weights[(visible - 1) * TILE + row], row % WIDTH);
        }
        let factors = mask
            .as_mut()
            .map(|mask| mask.factors(query + row, key, visible));
        for panel in 0..visible {
            let weights = &mut weights[panel * TILE + row].0;
            let dscores = &mut dscores[panel * TILE + row].0;
            for (lane, (weight, dscore)) in weights.iter_mut().zip(dscores).enumerate() {
                let probability = exp(*weight - lse[row]);
                let factor = factors.map_or(1.0, |factors| factors[panel * WIDTH + lane]);
                *dscore = probability * (*dscore * factor - dots[row]);
                *weight = probability * factor;
            }
        }
    }
    let k = &keys.k[tile.clone()];
    tile::multiply::<WIDE, FMA, true>(keys.dq, dscores, k, TILE, rows, |row| tile::Part {
        panels,
        depth: visible(row),
    });
    let first = |row: usize| if diagonal { row } else { 0 };
    let (dk, dv) = (&mut keys.dk[tile.clone()], &mut keys.dv[tile]);
    tile::multiply_transposed::<WIDE, FMA>(dk, dscores, keys.q, panels, rows, first);
    tile::multiply_transposed::<WIDE, FMA>(dv, weights, keys.dout, panels, rows, first);
}

/// The product of each row of `a` with the same row of `b`.
#[inline(always)]
fn dots(a: Rows<'_>, b: Rows<'_>) -> [f32; TILE] {
    let mut dots = [0.0; TILE];
    for (row, dot) in dots.iter_mut().enumerate().take(a.count) {
        let mut products = ZERO;
        for panel in 0..a.head_size.div_ceil(WIDTH) {
            let (a, b) = (a.vector(row, panel), b.vector(row, panel));
            for (product, (a, b)) in products.0.iter_mut().zip(a.0.iter().zip(b.0)) {
                *product += a * b;
            }
        }
        *dot = tile::sum(&products);
    }
    dots
}

/// Rows = tiles (64, hs) times `factor`, or += if `add`.
#[inline(always)]
fn write(rows: &mut [&mut [f32]], tiles: &[Vector], tile: usize, factor: f32, add: bool) {
    for (row, to) in rows.iter_mut().enumerate() {
        let from = &tiles[row / TILE * tile + row % TILE..];
        for (from, to) in from.iter().step_by(TILE).zip(to.chunks_mut(WIDTH)) {
            for (from, to) in from.0.iter().zip(to) {
                let before = if add { *to } else { 0.0 };
                *to = before + from * factor;
            }
        }
    }
}
