//! Batches on a device. Called by engines that run there, before each micro-step.

use crate::cuda::{Arg, Buffer, CudaError, Element, Grid, Stream};
use crate::philox::Philox;

const THREADS: usize = 256;
const BLOCKS_MAX: usize = 4096;

/// Token ids as a dataset holds them: nanoGPT's 16 bits, or 32.
pub trait TokenId: Element {
    const GATHER: &'static str;
}

impl TokenId for u16 {
    const GATHER: &'static str = "batch_gather_u16";
}

impl TokenId for u32 {
    const GATHER: &'static str = "batch_gather_u32";
}

/// Draws the start of each window, any of the `len - time` of a dataset being equally likely.
/// `state` is that of the step controller; `philox` is the stream of the training data.
pub fn random_starts(
    stream: &Stream,
    starts: &mut Buffer<u64>, // (B)
    state: &Buffer<u32>,
    philox: &Philox,
    len: usize,
    time: usize,
) -> Result<(), CudaError> {
    let batch = starts.len();
    assert!(len > time && batch > 0 && batch <= i32::MAX as usize);
    let [key_0, key_1] = philox.key();
    let args = [
        starts.arg_mut(),
        state.arg(),
        ((len - time) as u64).into(),
        key_0.into(),
        key_1.into(),
        (batch as i32).into(),
    ];
    let blocks = batch.div_ceil(THREADS);
    launch(stream, "batch_random_starts_u64", blocks, &args)
}

/// Copies the windows at `starts`, and the same windows moved on by one token. Every start must be
/// below `tokens.len() - T`.
pub fn gather<Id: TokenId>(
    stream: &Stream,
    inputs: &mut Buffer<i32>,  // (B, T)
    targets: &mut Buffer<i32>, // (B, T)
    tokens: &Buffer<Id>,
    starts: &Buffer<u64>, // (B)
) -> Result<(), CudaError> {
    let (n, batch) = (inputs.len(), starts.len());
    assert!(n > 0 && targets.len() == n && batch > 0 && n.is_multiple_of(batch));
    let time = n / batch;
    assert!(tokens.len() > time && n <= i32::MAX as usize);
    let args = [
        inputs.arg_mut(),
        targets.arg_mut(),
        tokens.arg(),
        starts.arg(),
        (batch as i32).into(),
        (time as i32).into(),
    ];
    let blocks = n.div_ceil(THREADS).min(BLOCKS_MAX);
    launch(stream, Id::GATHER, blocks, &args)
}

fn launch(stream: &Stream, kernel: &str, blocks: usize, args: &[Arg]) -> Result<(), CudaError> {
    #[expect(unsafe_code, reason = "the launch of the kernels")]
    // SAFETY: lengths were checked; a start is drawn below the number of windows, or is the
    // caller's promise.
    unsafe {
        stream.launch(kernel, Grid::linear(blocks, THREADS as u32), args)
    }
}
