//! Backward for one chunk of keys of one head: the probabilities are computed again, tile by
//! tile, from the saved logarithms. `cpu::backward` calls it.

use multiversion::multiversion;

use super::mask::Mask;
use super::product;
use super::tile::{self, PANELS, Rows, TILE, Vector, WIDTH, ZERO};
use super::{CHUNK, Head, Part, panels};
use crate::attention::Dims;

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
    (5 * TILES + 4) * tile + 3 * PANELS * TILE
}

/// Keys `start..start + dk.len()`: rows of `dk` and `dv`, and what they give to the rows of `dq`
/// from `start` on, which is added to them if `add`.
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
    every_pair(&mut keys, head, saved, dq, add);
    tile::unpack(dk, keys.dk, keys.panels, 1.0, false);
    tile::unpack(dv, keys.dv, keys.panels, 1.0, false);
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
    /// (64, 64): of dropout
    factors: &'a mut [Vector],
    /// (64, 64): scores, then weights after dropout
    weights: &'a mut [Vector],
    /// (64, 64): gradients of the weights, then of the scores
    dscores: &'a mut [Vector],
}

impl<'a> Keys<'a> {
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
        let (spare, scratch) = scratch.split_at_mut(tile);
        let (dq, scratch) = scratch.split_at_mut(tile);
        let (factors, scratch) = scratch.split_at_mut(PANELS * TILE);
        let (weights, dscores) = scratch.split_at_mut(PANELS * TILE);
        let end = start + count;
        for (i, key) in (start..end).step_by(TILE).enumerate() {
            let rows = head.rows(Part::Key, key);
            tile::pack(rows, &mut k[i * tile..][..tile], panels, 1.0);
            tile::pack_transposed(rows, &mut k_transposed[i * tile..][..tile], spare, panels);
            let rows = head.rows(Part::Value, key);
            tile::pack_transposed(rows, &mut v_transposed[i * tile..][..tile], spare, panels);
        }
        let tiles = count.div_ceil(TILE);
        tile::clear(&mut dk[..tiles * tile]);
        tile::clear(&mut dv[..tiles * tile]);
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
            factors,
            weights,
            dscores,
        }
    }
}

/// Every tile of queries with every tile of the chunk's keys that it sees.
fn every_pair(
    keys: &mut Keys<'_>,
    head: Head<'_>,
    saved: Saved<'_>,
    dq: &mut [&mut [f32]],
    add: bool,
) {
    let (time, channels) = (head.dims.time, head.dims.channels());
    let mask = Mask::new(head);
    for (query, dq) in (keys.start..time).step_by(TILE).zip(dq.chunks_mut(TILE)) {
        tile::pack(
            head.rows(Part::Query, query),
            keys.q,
            keys.panels,
            head.scale(),
        );
        let dout = head.rows_of(saved.dout, channels, 0, query);
        tile::pack(dout, keys.dout, keys.panels, 1.0);
        let out = head.rows_of(saved.out, channels, 0, query);
        let dots = dots(dout, out);
        tile::clear(keys.dq);
        for key in (keys.start..keys.end.min(query + 1)).step_by(TILE) {
            let lse = &saved.lse[query..][..dq.len()];
            pair(keys, query, key, lse, &dots, mask);
        }
        tile::unpack(dq, keys.dq, keys.panels, head.scale(), add);
    }
}

/// One tile of queries, whose `q` and `dout` are packed, with one of keys. `lse` has an element
/// for each query that exists; `dots` are the products of `dout` and `out`.
fn pair(
    keys: &mut Keys<'_>,
    query: usize,
    key: usize,
    lse: &[f32],
    dots: &[Vector; PANELS],
    mask: Option<Mask<'_>>,
) {
    let rows = lse.len();
    let tile = (key - keys.start) / TILE * keys.tile;
    let diagonal = query == key;
    let (weights, dscores) = (&mut *keys.weights, &mut *keys.dscores);
    let tile = tile..tile + keys.tile;
    let k_transposed = &keys.k_transposed[tile.clone()];
    let v_transposed = &keys.v_transposed[tile.clone()];
    product::scores(weights, keys.q, k_transposed, rows, diagonal);
    product::scores(dscores, keys.dout, v_transposed, rows, diagonal);
    if let Some(mask) = mask {
        mask.fill(keys.factors, query, key, rows);
        differentiate(weights, dscores, lse, dots, Some(keys.factors), diagonal);
    } else {
        differentiate(weights, dscores, lse, dots, None, diagonal);
    }
    product::add_weighted(keys.dq, dscores, &keys.k[tile.clone()], rows, diagonal);
    product::add_transposed(&mut keys.dk[tile.clone()], dscores, keys.q, rows, diagonal);
    product::add_transposed(&mut keys.dv[tile], weights, keys.dout, rows, diagonal);
}

/// Turns scores into weights after dropout, and the gradients of those into the gradients of the
/// scores, for each row that has an element in `lse`.
#[multiversion(targets(
    "x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma",
    "x86_64+avx2+fma",
    "aarch64+neon"
))]
fn differentiate(
    weights: &mut [Vector],
    dscores: &mut [Vector],
    lse: &[f32],
    dots: &[Vector; PANELS],
    factors: Option<&mut [Vector]>,
    diagonal: bool,
) {
    let dots = dots.iter().flat_map(|dots| dots.0);
    for (row, (lse, dot)) in lse.iter().zip(dots).enumerate() {
        let visible = product::visible(row, diagonal);
        if diagonal {
            tile::hide(weights, row);
        }
        for at in (0..visible).map(|panel| panel * TILE + row) {
            let probability = tile::exp(tile::minus(weights[at], *lse));
            let (mut weight, mut dweight) = (probability, dscores[at]);
            if let Some(factors) = &factors {
                weight = tile::times(weight, factors[at]);
                dweight = tile::times(dweight, factors[at]);
            }
            weights[at] = weight;
            dscores[at] = tile::times(probability, tile::minus(dweight, dot));
        }
    }
}

/// The product of each row of `a` with the same row of `b`.
#[multiversion(targets(
    "x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma",
    "x86_64+avx2+fma",
    "aarch64+neon"
))]
fn dots(a: Rows, b: Rows) -> [Vector; PANELS] {
    let mut dots = [ZERO; PANELS];
    for (group, dots) in dots.iter_mut().enumerate() {
        let mut products = [ZERO; WIDTH];
        let first = group * WIDTH;
        for (row, sum) in (first..a.count).zip(&mut products) {
            for panel in 0..a.head_size.div_ceil(WIDTH) {
                let product = tile::times(a.vector(row, panel), b.vector(row, panel));
                *sum = tile::add(*sum, product);
            }
        }
        *dots = tile::sums(products);
    }
    dots
}
