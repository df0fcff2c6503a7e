//! GELU, of which the MLP's projection and the rooms that fuse it into theirs make use.
//!
//! ```text
//! forward    out = x Φ(x)                       Φ: standard normal distribution, exact (erf)
//! backward   dx  = dx (Φ(x) + x φ(x))           in place: `dx` holds `dout` on entry
//! tanh form  out = x σ(2u)                      u = sqrt(2/π) (x + 0.044715 x^3)
//! ```
//!
//! Any shape. The backward pass needs `x`, nothing else is saved. Hendrycks and Gimpel, "Gaussian
//! error linear units", 2016.

pub mod cpu;
#[cfg(any(test, feature = "device"))]
pub mod cuda;
#[cfg(test)]
mod cuda_tests;
#[cfg(test)]
pub(crate) mod tests;

/// The form of GELU: exact with erf, or with tanh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    Erf,
    Tanh,
}
