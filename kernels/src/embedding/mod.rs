//! Token and position embeddings, the first operation of the model, with its dropout.
//!
//! ```text
//! forward    out[b, t]   = (wte[tokens[b, t]] + wpe[start + t]) factor        (B, T, C)
//! backward   dout       *= factor                                             in place
//!            dwte[v]    += Σ dout[b, t] over the b, t whose token is v         (V, C)
//!            dwpe[t]    += Σ_b dout[b, t]                                      (block, C)
//! ```
//!
//! `start` is the position of the first token, for sampling with a cache; training starts at 0.
//! Nothing is saved. Every sum runs in the order of the batch.

pub mod cpu;
#[cfg(any(test, feature = "device"))]
pub mod cuda;
#[cfg(test)]
mod cuda_tests;
#[cfg(test)]
mod tests;
