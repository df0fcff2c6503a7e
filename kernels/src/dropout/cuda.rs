//! Dropout on a device. Called by engines that run there, and by the rooms that fuse it.

use super::Dropout;
use crate::cuda::{Arg, Buffer, CudaError, Float, Grid, Stream};

const THREADS: u32 = 256;
/// Blocks beyond which a thread takes more than one vector.
const BLOCKS_MAX: usize = 4096;

/// out = residual + branch * factor; without dropout, the factor is 1.
pub fn residual_add<T: Float>(
    stream: &Stream,
    out: &mut Buffer<T>,
    residual: &Buffer<T>,
    branch: &Buffer<T>,
    dropout: Option<(&Dropout, &Buffer<u32>)>,
) -> Result<(), CudaError> {
    let n = out.len();
    assert!(residual.len() == n && branch.len() == n);
    let mut args = vec![out.arg_mut(), residual.arg(), branch.arg()];
    args.push((n as u64).into());
    args.extend(dropout.map_or_else(Dropout::none, |(dropout, at)| dropout.args(at)));
    launch::<T>(stream, "dropout_residual_add", n, &args)
}

/// dx = dout * factor.
pub fn backward<T: Float>(
    stream: &Stream,
    dx: &mut Buffer<T>,
    dout: &Buffer<T>,
    dropout: &Dropout,
    at: &Buffer<u32>,
) -> Result<(), CudaError> {
    let n = dx.len();
    assert_eq!(dout.len(), n);
    let mut args = vec![dx.arg_mut(), dout.arg(), (n as u64).into()];
    args.extend(dropout.args(at));
    launch::<T>(stream, "dropout_backward", n, &args)
}

fn launch<T: Float>(
    stream: &Stream,
    kernel: &str,
    n: usize,
    args: &[Arg],
) -> Result<(), CudaError> {
    if n == 0 {
        return Ok(());
    }
    let vectors = (n * size_of::<T>()).div_ceil(16);
    let blocks = vectors.div_ceil(THREADS as usize).min(BLOCKS_MAX);
    #[expect(unsafe_code, reason = "the launch of the kernels")]
    // SAFETY: the kernels touch n elements of buffers of n elements, and two words of `at`.
    unsafe {
        stream.launch(&T::kernel(kernel), Grid::linear(blocks, THREADS), args)
    }
}

impl Dropout {
    /// The arguments of a kernel that drops: `const unsigned* at, unsigned key_0, unsigned key_1,
    /// unsigned place, unsigned threshold, float keep`. `at` is read when the kernel runs, in place
    /// of `self.at`: two words in device memory, which change from micro-step to micro-step.
    pub fn args(&self, at: &Buffer<u32>) -> [Arg; 6] {
        assert_eq!(at.len(), 2);
        let [key_0, key_1] = self.philox.key();
        [
            at.arg(),
            key_0.into(),
            key_1.into(),
            self.place.into(),
            self.threshold().into(),
            self.keep().into(),
        ]
    }

    /// The arguments for a kernel that shall keep every element.
    pub fn none() -> [Arg; 6] {
        let (zero, one) = (0u32, 1.0f32);
        [
            Arg::null(),
            zero.into(),
            zero.into(),
            zero.into(),
            zero.into(),
            one.into(),
        ]
    }
}
