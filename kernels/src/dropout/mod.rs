//! Dropout, alone and added to the residual stream; other rooms fuse it with [`Dropout::factors`].
//!
//! ```text
//! factor[i]      = 1 / (1 - p) where word i mod 4 of Philox block i / 4 is >= p 2^32, else 0
//! forward        x   *= factor                     in place
//! backward       dx   = dout factor                nothing is saved: factors are made again
//! residual_add   out  = residual + branch * factor
//! ```
//!
//! `i` counts the elements of the whole tensor. The counter of the block is (i / 4, place, at), so
//! a mask depends on the seed, the place in the model and the step, never on who computes it.

pub mod cpu;
#[cfg(any(test, feature = "device"))]
pub mod cuda;
#[cfg(test)]
mod cuda_tests;
#[cfg(test)]
mod tests;

use crate::philox::Philox;

/// The dropout of one tensor at one micro-step.
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    /// Probability that an element is dropped, in [0, 1).
    pub p: f64,
    pub philox: Philox,
    /// Which dropout of the model this is.
    pub place: u32,
    /// Step and micro-step, as two words of the counter.
    pub at: [u32; 2],
}

impl Dropout {
    /// The smallest random word that keeps an element.
    pub(crate) fn threshold(&self) -> u32 {
        (self.p * (1u64 << 32) as f64) as u32
    }

    /// The factor of an element that is kept.
    pub(crate) fn keep(&self) -> f32 {
        (1.0 / (1.0 - self.p)) as f32
    }
}
