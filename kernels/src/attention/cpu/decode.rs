//! Attention of one new token to all before it, for sampling, and the cache that holds those.
//!
//! Keys lie in panels of 16 tokens, `(H, ceil(block_size / 16), hs, 16)`, so that scores are sums
//! of whole vectors; values as rows, `(H, block_size, hs rounded up to 16)`.

use multiversion::{multiversion, target::target_cfg_f};
use rayon::prelude::*;

use super::tile::{self, Vector, WIDTH, ZERO};
use super::with_scratch;

/// Below so many cached elements, one thread is faster than several.
const ELEMENTS_PARALLEL: usize = 1 << 16;

/// Elements of the cache of keys of one layer for `block_size` tokens.
pub fn key_cache_len(heads: usize, head_size: usize, block_size: usize) -> usize {
    heads * block_size.next_multiple_of(WIDTH) * head_size
}

/// Elements of the cache of values of one layer for `block_size` tokens.
pub fn value_cache_len(heads: usize, head_size: usize, block_size: usize) -> usize {
    heads * block_size * head_size.next_multiple_of(WIDTH)
}

/// Puts the keys and values of `qkv` `(T, 3C)` into the caches as tokens `start..start + T`.
///
/// The caches are of `key_cache_len` and `value_cache_len`, and zero before the first call.
pub fn store(keys: &mut [f32], values: &mut [f32], qkv: &[f32], cache: CacheDims, start: usize) {
    let CacheDims {
        heads,
        head_size,
        block_size,
    } = cache;
    let channels = heads * head_size;
    assert!(
        keys.len() == key_cache_len(heads, head_size, block_size)
            && values.len() == value_cache_len(heads, head_size, block_size),
        "the caches are of key_cache_len and value_cache_len"
    );
    assert_eq!(qkv.len() % (3 * channels), 0, "qkv is (T, 3C)");
    let tokens = qkv.len() / (3 * channels);
    assert!(
        start + tokens <= block_size,
        "the caches hold block_size tokens"
    );
    for (token, qkv) in (start..).zip(qkv.chunks_exact(3 * channels)) {
        let k = qkv[channels..2 * channels].chunks_exact(head_size);
        let v = qkv[2 * channels..].chunks_exact(head_size);
        for ((k, v), (keys, values)) in k.zip(v).zip(
            keys.chunks_exact_mut(keys_of_head(cache))
                .zip(values.chunks_exact_mut(values_of_head(cache))),
        ) {
            let panel = &mut keys[token / WIDTH * WIDTH * head_size..];
            for (column, k) in panel.chunks_exact_mut(WIDTH).zip(k) {
                column[token % WIDTH] = *k;
            }
            values[token * head_size.next_multiple_of(WIDTH)..][..head_size].copy_from_slice(v);
        }
    }
}

/// The shape of the caches of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheDims {
    /// H
    pub heads: usize,
    /// hs
    pub head_size: usize,
    /// Tokens that the caches have room for.
    pub block_size: usize,
}

/// `out` `(C)` = attention of the token `qkv` `(3C)` to the `length` tokens in the caches and to
/// itself; stores it there as token `length`. Needs `length < block_size`.
pub fn decode(
    out: &mut [f32],
    keys: &mut [f32],
    values: &mut [f32],
    qkv: &[f32],
    cache: CacheDims,
    length: usize,
) {
    let channels = cache.heads * cache.head_size;
    assert_eq!(out.len(), channels, "out is (C)");
    assert_eq!(qkv.len(), 3 * channels, "qkv is (3C)");
    store(keys, values, qkv, cache, length);
    let count = length + 1;
    let together = if count * channels < ELEMENTS_PARALLEL {
        cache.heads
    } else {
        1
    };
    out.par_chunks_exact_mut(cache.head_size)
        .zip(qkv.par_chunks_exact(cache.head_size))
        .zip(keys.par_chunks_exact(keys_of_head(cache)))
        .zip(values.par_chunks_exact(values_of_head(cache)))
        .with_min_len(together)
        .for_each(|(((out, q), keys), values)| {
            with_scratch(count.div_ceil(WIDTH), |scores| {
                head(out, q, keys, values, scores, count);
            });
        });
}

fn keys_of_head(cache: CacheDims) -> usize {
    key_cache_len(1, cache.head_size, cache.block_size)
}

fn values_of_head(cache: CacheDims) -> usize {
    value_cache_len(1, cache.head_size, cache.block_size)
}

/// `out` `(hs)` = attention of the query `q` `(hs)` of one head to the first `count` tokens.
#[multiversion(targets(
    "x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma",
    "x86_64+avx2+fma",
    "aarch64+neon"
))]
fn head(
    out: &mut [f32],
    q: &[f32],
    keys: &[f32],
    values: &[f32],
    scores: &mut [Vector],
    count: usize,
) {
    if target_cfg_f!(any(target_feature = "fma", target_arch = "aarch64")) {
        head_on::<true>(out, q, keys, values, scores, count);
    } else {
        head_on::<false>(out, q, keys, values, scores, count);
    }
}

#[inline(always)]
fn head_on<const FMA: bool>(
    out: &mut [f32],
    q: &[f32],
    keys: &[f32],
    values: &[f32],
    scores: &mut [Vector],
    count: usize,
) {
    let head_size = q.len();
    let scale = (1.0 / (head_size as f64).sqrt()) as f32;
    let mut largest = Vector([f32::NEG_INFINITY; WIDTH]);
    for (score, panel) in scores.iter_mut().zip(keys.chunks_exact(WIDTH * head_size)) {
        *score = tile::scaled(scores_of_panel::<FMA>(q, panel), scale);
    }
    if let Some(last) = scores.last_mut() {
        *last = tile::hide_after(*last, (count - 1) % WIDTH);
    }
    for score in &*scores {
        largest = tile::larger(*score, largest);
    }
    let largest = tile::largest(largest);
    let mut total = ZERO;
    for score in &mut *scores {
        *score = tile::exp(tile::minus(*score, largest));
        total = tile::add(total, *score);
    }
    let factor = 1.0 / tile::sum(total);
    let weights = scores.iter().flat_map(|scores| &scores.0).take(count);
    let row = head_size.next_multiple_of(WIDTH);
    let mut panel = 0;
    while panel * WIDTH < head_size {
        let values = values[panel * WIDTH..].chunks(row);
        let out = &mut out[panel * WIDTH..];
        if row - panel * WIDTH >= 4 * WIDTH {
            weighted_sum::<FMA, 4>(out, weights.clone().zip(values), factor);
            panel += 4;
        } else {
            weighted_sum::<FMA, 1>(out, weights.clone().zip(values), factor);
            panel += 1;
        }
    }
}

/// The products of `q` `(hs)` with the 16 keys of a panel `(hs, 16)`.
#[inline(always)]
fn scores_of_panel<const FMA: bool>(q: &[f32], panel: &[f32]) -> Vector {
    // Four sums, because one alone would wait for itself.
    let mut sums = [ZERO; 4];
    let (columns, _) = panel.as_chunks::<WIDTH>();
    let (q, q_rest) = q.as_chunks::<4>();
    let (columns, columns_rest) = columns.split_at(4 * q.len());
    for (q, columns) in q.iter().zip(columns.as_chunks::<4>().0) {
        unroll!(@ I 4, {
            sums[I] = tile::multiply_add::<FMA>(q[I], &Vector(columns[I]), sums[I]);
        }, 0 1 2 3);
    }
    for (q, column) in q_rest.iter().zip(columns_rest) {
        sums[0] = tile::multiply_add::<FMA>(*q, &Vector(*column), sums[0]);
    }
    tile::add(tile::add(sums[0], sums[1]), tile::add(sums[2], sums[3]))
}

/// The first `PANELS` panels of `out` = `factor` times the sum of weight times value.
#[inline(always)]
fn weighted_sum<'a, const FMA: bool, const PANELS: usize>(
    out: &mut [f32],
    terms: impl Iterator<Item = (&'a f32, &'a [f32])>,
    factor: f32,
) {
    let mut sums = [ZERO; PANELS];
    for (weight, value) in terms {
        let (value, _) = value.as_chunks::<WIDTH>();
        let value: &[_; PANELS] = value
            .first_chunk()
            .expect("a row has the panels that its head size needs");
        unroll!(I < PANELS, {
            sums[I] = tile::multiply_add::<FMA>(*weight, &Vector(value[I]), sums[I]);
        });
    }
    for (sum, out) in sums.iter().zip(out.chunks_mut(WIDTH)) {
        for (sum, out) in sum.0.iter().zip(out) {
            *out = sum * factor;
        }
    }
}
