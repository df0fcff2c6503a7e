//! How long a plan takes: every operation at the rate that bounds it, products and attention by
//! arithmetic, the rest by memory. Called by the estimate.

use super::cards::{Card, Share};
use crate::engine::plan::{Op, Plan};

/// From the end of a kernel to the start of the next in a graph, and its ramp up and down.
const GAP_S: f64 = 3e-6;
/// Of an update, for each parameter: AdamW reads gradient, master and both moments and writes the
/// last three and the copy in 16 bits; the norm reads the gradient, which is zeroed after.
const UPDATE_BYTES: f64 = 16.0 + 14.0 + 4.0 + 4.0;

/// What a device is expected to do in a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rates {
    /// FLOP/s of products.
    pub(super) products: f64,
    /// FLOP/s of attention.
    pub(super) attention: f64,
    /// Bytes read or written.
    pub(super) bytes: f64,
    /// Before each operation.
    pub(super) gap_s: f64,
}

impl Rates {
    /// A share of the data sheet's.
    pub(super) fn of(card: &Card, share: Share) -> Self {
        Self {
            products: card.tflops * 1e12 * share.products,
            attention: card.tflops * 1e12 * share.attention,
            bytes: card.gigabytes_per_second * 1e9 * share.memory,
            gap_s: GAP_S,
        }
    }

    /// Seconds of all operations of a plan, one after the other.
    pub(super) fn plan_s(&self, plan: &Plan) -> f64 {
        let op = |op: &Op| {
            let rate = match op {
                Op::Attention { .. } | Op::AttentionBackward { .. } => self.attention,
                _ => self.products,
            };
            let arithmetic = op.flops(plan) / rate;
            self.gap_s + arithmetic.max(op.bytes(plan) / self.bytes)
        };
        plan.ops.iter().map(op).sum()
    }

    /// Seconds of an update of so many parameters.
    pub(super) fn update_s(&self, parameters: usize) -> f64 {
        3.0 * self.gap_s + parameters as f64 * UPDATE_BYTES / self.bytes
    }
}
