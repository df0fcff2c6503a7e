//! Cross entropy on a device. Called by engines that run there, for one chunk of rows at a time.

use crate::cuda::{Arg, Buffer, CudaError, Float, Grid, Stream};

const WARP_THREADS: u32 = 256;
const BLOCK_THREADS: u32 = 512;
/// Rows up to which a lane of a warp has 4 and 32 elements.
const WARP_COLUMNS: [usize; 2] = [4 * 32, 32 * 32];
/// Static shared memory of the block kernels: sums and maxima.
const STATIC_SHARED_BYTES: u32 = 512;

/// Rows of logits: `vocab_size` classes in rows of `stride` elements, the rest being padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dims {
    pub rows: usize,
    pub vocab_size: usize,
    pub stride: usize,
}

/// The loss of each row; its gradient replaces the logits, 0 in the padding. `state` is that of
/// the step controller, whose loss scale multiplies `scale`; `None` for a loss scale of 1. Targets
/// must be below `vocab_size`.
pub fn forward_backward<T: Float>(
    stream: &Stream,
    logits: &mut Buffer<T>,   // (rows, stride)
    losses: &mut Buffer<f32>, // (rows)
    targets: &Buffer<i32>,    // (rows)
    state: Option<&Buffer<u32>>,
    scale: f32,
    dims: Dims,
) -> Result<(), CudaError> {
    check(logits, losses, targets, dims);
    let state = state.map_or_else(Arg::null, Buffer::arg);
    let mut args = vec![
        logits.arg_mut(),
        losses.arg_mut(),
        targets.arg(),
        state,
        scale.into(),
    ];
    args.extend(dims.args());
    let row_bytes = dims.vocab_size.next_multiple_of(16 / size_of::<T>()) * size_of::<T>();
    let free = stream.device().properties().shared_bytes_max - STATIC_SHARED_BYTES;
    let keeps = row_bytes <= free as usize;
    let shared_bytes = if keeps { row_bytes as u32 } else { 0 };
    args.push(match dims.warp() {
        Some(_) => (dims.rows as i32).into(),
        None => i32::from(keeps).into(),
    });
    launch::<T>(
        stream,
        "cross_entropy_forward_backward",
        dims,
        shared_bytes,
        &args,
    )
}

/// The loss of each row. Targets must be below `vocab_size`.
pub fn forward<T: Float>(
    stream: &Stream,
    losses: &mut Buffer<f32>, // (rows)
    logits: &Buffer<T>,       // (rows, stride)
    targets: &Buffer<i32>,    // (rows)
    dims: Dims,
) -> Result<(), CudaError> {
    check(logits, losses, targets, dims);
    let mut args = vec![losses.arg_mut(), logits.arg(), targets.arg()];
    args.extend(dims.args());
    if dims.warp().is_some() {
        args.push((dims.rows as i32).into());
    }
    launch::<T>(stream, "cross_entropy_forward", dims, 0, &args)
}

fn check<T: Float>(logits: &Buffer<T>, losses: &Buffer<f32>, targets: &Buffer<i32>, dims: Dims) {
    assert!(dims.vocab_size >= 1 && dims.stride >= dims.vocab_size);
    assert!(dims.stride <= i32::MAX as usize && dims.rows <= i32::MAX as usize);
    assert_eq!(logits.len(), dims.rows * dims.stride);
    assert!(losses.len() == dims.rows && targets.len() == dims.rows);
}

impl Dims {
    /// Elements of a lane, where a warp takes a row.
    fn warp(self) -> Option<usize> {
        let columns = WARP_COLUMNS.into_iter().find(|&max| self.vocab_size <= max);
        columns.map(|columns| columns / 32)
    }

    fn args(self) -> [Arg; 2] {
        [(self.vocab_size as i32).into(), (self.stride as i32).into()]
    }
}

fn launch<T: Float>(
    stream: &Stream,
    stem: &str,
    dims: Dims,
    shared_bytes: u32,
    args: &[Arg],
) -> Result<(), CudaError> {
    if dims.rows == 0 {
        return Ok(());
    }
    let (kernel, grid) = match dims.warp() {
        Some(elements) => {
            let rows_of_a_block = WARP_THREADS as usize / 32;
            let blocks = dims.rows.div_ceil(rows_of_a_block);
            (
                T::kernel(&format!("{stem}_warp{elements}")),
                Grid::linear(blocks, WARP_THREADS),
            )
        }
        None => (
            T::kernel(stem),
            Grid::linear(dims.rows, BLOCK_THREADS).with_shared(shared_bytes),
        ),
    };
    #[expect(unsafe_code, reason = "the launch of the kernels")]
    // SAFETY: lengths were checked; a target is below the vocabulary's size by the caller's word,
    // and the data that targets are drawn from was checked when it was opened.
    unsafe {
        stream.launch(&kernel, grid, args)
    }
}
