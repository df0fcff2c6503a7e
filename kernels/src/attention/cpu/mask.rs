//! The dropout factors of the attention weights of a tile. `forward` and `backward` call it.

use multiversion::multiversion;

use super::Head;
use super::product;
use super::tile::{self, PANELS, TILE, Vector, WIDTH};
use crate::dropout::Dropout;

#[derive(Clone, Copy)]
pub(super) struct Mask<'a> {
    head: Head<'a>,
    dropout: &'a Dropout,
}

impl<'a> Mask<'a> {
    pub(super) fn new(head: Head<'a>) -> Option<Self> {
        let dropout = head.dropout?;
        Some(Self { head, dropout })
    }

    /// Makes the factors `(64, 64)` of the weights of `rows` queries for the keys from `key` on
    /// that they see.
    pub(super) fn fill(&self, factors: &mut [Vector], query: usize, key: usize, rows: usize) {
        let first = self.head.first_weight(query) + key;
        let time = self.head.dims.time;
        assert!(
            (first + rows * time).div_ceil(4) <= 1 << 32,
            "there are more attention weights than a dropout has random words"
        );
        make(factors, self.dropout, first, time, rows, query == key);
    }

    /// Multiplies weights by their factors, which it makes.
    pub(super) fn apply(
        &self,
        weights: &mut [Vector],
        factors: &mut [Vector],
        query: usize,
        key: usize,
        rows: usize,
    ) {
        self.fill(factors, query, key, rows);
        multiply(weights, factors, rows, query == key);
    }
}

/// `first` is the number of the weight of the first row for the first key; the next row's is
/// `time` further on.
#[multiversion(targets(
    "x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma",
    "x86_64+avx2+fma",
    "aarch64+neon"
))]
fn make(
    factors: &mut [Vector],
    dropout: &Dropout,
    first: usize,
    time: usize,
    rows: usize,
    diagonal: bool,
) {
    let threshold = (dropout.p * (1u64 << 32) as f64) as u32;
    let keep = (1.0 / (1.0 - dropout.p)) as f32;
    let [step, rest] = dropout.at;
    // A row may begin within a block of four words, and then ends within one.
    let mut row_factors = [0.0; TILE + 4];
    for row in 0..rows {
        let visible = product::visible(row, diagonal);
        let first = first + row * time;
        let (block, skip) = ((first / 4) as u32, first % 4);
        let blocks = visible * WIDTH / 4 + usize::from(skip > 0);
        let four = row_factors.as_chunks_mut::<4>().0;
        for (i, four) in (0u32..).zip(&mut four[..blocks]) {
            let counter = [block.wrapping_add(i), dropout.place, step, rest];
            let words = dropout.philox.block(counter);
            for (factor, word) in four.iter_mut().zip(words) {
                *factor = if word >= threshold { keep } else { 0.0 };
            }
        }
        let from = row_factors[skip..].as_chunks().0;
        for (from, to) in from
            .iter()
            .zip(factors[row..].iter_mut().step_by(TILE))
            .take(visible)
        {
            to.0 = *from;
        }
    }
}

#[multiversion(targets(
    "x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma",
    "x86_64+avx2+fma",
    "aarch64+neon"
))]
fn multiply(weights: &mut [Vector], factors: &[Vector], rows: usize, diagonal: bool) {
    for row in 0..rows {
        for at in (row..PANELS * TILE)
            .step_by(TILE)
            .take(product::visible(row, diagonal))
        {
            weights[at] = tile::times(weights[at], factors[at]);
        }
    }
}
