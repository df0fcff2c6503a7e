//! LayerNorm over rows of C channels, alone or fused with the residual addition before it.
//!
//! ```text
//! mean  = Σ x / C        rstd = 1 / sqrt(Σ (x - mean)^2 / C + 1e-5)         (M), both saved
//! xhat  = (x - mean) rstd
//! forward    out      = xhat weight + bias                                  (M, C)
//! backward   dxhat    = dout weight
//!            dx      += rstd (dxhat - Σ dxhat / C - xhat Σ (dxhat xhat) / C)  (M, C)
//!            dweight += Σ_rows dout xhat,   dbias += Σ_rows dout            (C)
//! residual   x_out    = x + dropout(branch),   out = forward(x_out)
//! ```
//!
//! Without a bias, as nanoGPT's `bias=False`, its terms are left out. Ba, Kiros and Hinton, "Layer
//! normalization", 2016.

pub mod cpu;
#[cfg(any(test, feature = "device"))]
pub mod cuda;
#[cfg(test)]
mod cuda_tests;
#[cfg(test)]
mod tests;
