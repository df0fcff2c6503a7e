//! The dropout factors of attention weights, row by row of a tile. `forward` and `backward` call
//! it.

use super::Head;
use super::tile::{TILE, WIDTH};
use crate::dropout::Dropout;

pub(super) struct Mask<'a> {
    head: Head<'a>,
    dropout: &'a Dropout,
    factors: [f32; TILE],
}

impl<'a> Mask<'a> {
    pub(super) fn new(head: Head<'a>, dropout: &'a Dropout) -> Self {
        Self {
            head,
            dropout,
            factors: [0.0; TILE],
        }
    }

    /// The factors of the weights of a query for the keys of `panels` panels from `key` on. Keys
    /// that do not exist have one, too, which means nothing.
    #[inline(always)]
    pub(super) fn factors(&mut self, query: usize, key: usize, panels: usize) -> &[f32] {
        let factors = &mut self.factors[..panels * WIDTH];
        self.dropout
            .factors(self.head.first_weight(query) + key, factors);
        factors
    }
}
