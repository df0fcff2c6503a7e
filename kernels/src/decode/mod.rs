//! One token of a sequence whose keys and values are kept: what generation does for each token.
//!
//! ```text
//! embed      x = wte[token] + wpe[position]                                   (C)
//! linear     out = gelu?(W norm?(x) + bias) + residual                        (N), W (N, K)
//! attention  per head: keys[position], values[position] = k, v
//!            out = Σ_t softmax(q · keys[t] / √D)[t] values[t], t <= position   (C)
//! store      keys, values[t] = k[t], v[t] of a prompt                         (H, block, D)
//! ```
//!
//! Token and position are read from device memory, so that one graph serves every token. Sums are
//! in f32 and rounded once; a LayerNorm's result is rounded to the weights' type, as it is where
//! whole prompts are computed. On a CPU the rooms' own functions do it.

pub mod cuda;
#[cfg(test)]
mod cuda_tests;
