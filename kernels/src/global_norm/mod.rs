//! The L2 norm over all gradients, and the factor that clips it.
//!
//! ```text
//! sum_of_squares = Σ g^2                           over one flat buffer, in f64
//! clip_factor    = min(1, grad_clip / (norm + 1e-6))
//! ```
//!
//! Sums of separate buffers may be added before the root is taken.

pub mod cpu;
#[cfg(any(test, feature = "device"))]
pub mod cuda;
#[cfg(test)]
mod cuda_tests;
#[cfg(test)]
mod tests;

/// PyTorch's `clip_grad_norm_`: the factor that brings a gradient of this norm to `grad_clip`;
/// 1 where it is short enough, or where `grad_clip` is 0 (off).
pub fn clip_factor(grad_norm: f64, grad_clip: f64) -> f32 {
    if grad_clip == 0.0 {
        return 1.0;
    }
    (grad_clip / (grad_norm + 1e-6)).min(1.0) as f32
}
