//! AdamW over all parameters at once, with PyTorch's order of operations.
//!
//! ```text
//! g  = gradient × gradient_scale
//! m += (1 - β1) (g - m)                                    exp_avg
//! v  = β2 v + (1 - β2) g g                                 exp_avg_sq
//! p  = p (1 - lr weight_decay) - lr / (1 - β1^t) × (m / (sqrt(v) / sqrt(1 - β2^t) + eps))
//! ```
//!
//! Parameters, gradients and both moments are flat buffers of one layout, [decayed | not decayed].
//! Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019; Kingma and Ba,
//! "Adam", ICLR 2015, algorithm 1.

pub mod cpu;
#[cfg(any(test, feature = "device"))]
pub mod cuda;
#[cfg(test)]
mod cuda_tests;
#[cfg(test)]
mod tests;

/// Hyper-parameters of one update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    pub learning_rate: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    /// Of the decayed parameters. Gains and biases are not decayed.
    pub weight_decay: f64,
    /// Updates made before this one, plus one.
    pub update: u64,
    /// Factor on the gradient: below 1 where the global norm is clipped.
    pub gradient_scale: f32,
}
