//! Softmax and cross entropy over rows of V logits, the last operation of the model.
//!
//! ```text
//! forward    losses  = ln Σ_v e^logits[v] - logits[target]                (M)
//! backward   dlogits = scale (softmax(logits) - onehot(target))           (M, V), in place
//! ```
//!
//! `forward_backward` writes `dlogits` over the logits, so nothing is saved. `scale` is the
//! gradient of the loss with respect to each row's: 1 / (M × micro-steps) for the mean.

pub mod cpu;
#[cfg(any(test, feature = "device"))]
pub mod cuda;
#[cfg(test)]
mod cuda_tests;
#[cfg(test)]
mod tests;
