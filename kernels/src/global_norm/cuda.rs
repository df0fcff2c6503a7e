//! The sum of squares on a device: the first stage; the room controller adds the partial sums up.

use crate::cuda::{Buffer, CudaError, Grid, Stream};

const THREADS: u32 = 256;
/// Elements that a thread takes before another block is worth its partial sum.
const ELEMENTS_OF_A_THREAD: usize = 16;
const BLOCKS_MAX: usize = 1024;

/// Partial sums of `n` gradients. Depends on `n` alone, so that every device adds in one order.
pub fn partials_len(n: usize) -> usize {
    let block = THREADS as usize * ELEMENTS_OF_A_THREAD;
    n.div_ceil(block).clamp(1, BLOCKS_MAX)
}

/// Writes the partial sums of g² (bits of f64) and the numbers of gradients that are not finite,
/// `partials_len(n)` of each.
pub fn partials(
    stream: &Stream,
    partials: &mut Buffer<u64>,
    nonfinite: &mut Buffer<u32>,
    gradients: &Buffer<f32>, // (n)
) -> Result<(), CudaError> {
    let n = gradients.len();
    let blocks = partials_len(n);
    assert!(partials.len() == blocks && nonfinite.len() == blocks);
    let args = [
        partials.arg_mut(),
        nonfinite.arg_mut(),
        gradients.arg(),
        (n as u64).into(),
    ];
    #[expect(unsafe_code, reason = "the launch of the kernel")]
    // SAFETY: the kernel reads n gradients and writes one element of each result for each block.
    unsafe {
        stream.launch(
            "global_norm_partials_f32",
            Grid::linear(blocks, THREADS),
            &args,
        )
    }
}
