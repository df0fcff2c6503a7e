//! GELU on a device. Called by engines that run there.

use crate::cuda::{Buffer, CudaError, Float, Grid, Stream};

const THREADS: u32 = 256;
/// Blocks beyond which a thread takes more than one vector.
const BLOCKS_MAX: usize = 4096;

/// out = gelu(x).
pub fn forward<T: Float>(
    stream: &Stream,
    out: &mut Buffer<T>,
    x: &Buffer<T>,
) -> Result<(), CudaError> {
    launch(stream, "gelu_forward", out, x)
}

/// dx *= gelu'(x), where `dx` holds `dout` on entry.
pub fn backward<T: Float>(
    stream: &Stream,
    dx: &mut Buffer<T>,
    x: &Buffer<T>,
) -> Result<(), CudaError> {
    launch(stream, "gelu_backward", dx, x)
}

/// out = gelu(x) in the form with tanh.
pub fn forward_tanh<T: Float>(
    stream: &Stream,
    out: &mut Buffer<T>,
    x: &Buffer<T>,
) -> Result<(), CudaError> {
    launch(stream, "gelu_forward_tanh", out, x)
}

/// dx *= gelu'(x) in the form with tanh.
pub fn backward_tanh<T: Float>(
    stream: &Stream,
    dx: &mut Buffer<T>,
    x: &Buffer<T>,
) -> Result<(), CudaError> {
    launch(stream, "gelu_backward_tanh", dx, x)
}

#[expect(unsafe_code, reason = "the launch of the kernels")]
fn launch<T: Float>(
    stream: &Stream,
    kernel: &str,
    out: &mut Buffer<T>,
    x: &Buffer<T>,
) -> Result<(), CudaError> {
    let n = x.len();
    assert_eq!(out.len(), n);
    if n == 0 {
        return Ok(());
    }
    let vectors = (n * size_of::<T>()).div_ceil(16);
    let grid = Grid::linear(vectors.div_ceil(THREADS as usize).min(BLOCKS_MAX), THREADS);
    let args = [out.arg_mut(), x.arg(), (n as u64).into()];
    // SAFETY: the kernels read and write the first n elements of two buffers of n elements.
    unsafe { stream.launch(&T::kernel(kernel), grid, &args) }
}
