//! Attention on a device. Called by engines that run there.

use super::Dims;
use crate::cuda::{Arg, Buffer, CudaError, Float, Grid, Stream};
use crate::dropout::Dropout;

/// The largest head of all kernels.
pub const HEAD_SIZE_MAX: usize = 256;
/// The most attention weights, B H T², that a dropout has random words for.
pub const DROPPED_WEIGHTS_MAX: usize = 1 << 34;
/// The largest head of the kernels on tensor cores.
const TENSOR_CORE_HEAD_SIZE_MAX: usize = 128;
/// Threads of a block on the general path, and rows that it computes.
const GENERAL_THREADS: u32 = 256;
const GENERAL_ROWS: usize = 64;
/// Threads of a block, in the kernels on tensor cores.
const THREADS: u32 = 128;
/// Threads of a block, and rows that it sums.
const DELTA_THREADS: u32 = 256;
const DELTA_ROWS: usize = 32;

/// `out` `(B, T, C)` = attention of `qkv` `(B, T, 3C)`; saves `lse` `(B, H, T)` for `backward`.
///
/// `dropout` drops attention weights, with the mask of `cpu::forward`; its second part, in device
/// memory, stands for the dropout's `at`. Panics if a length does not fit `dims`.
#[expect(unsafe_code, reason = "the launch of the kernels")]
pub fn forward<T: Float>(
    stream: &Stream,
    out: &mut Buffer<T>,
    lse: &mut Buffer<f32>,
    qkv: &Buffer<T>,
    dims: Dims,
    dropout: Option<(&Dropout, &Buffer<u32>)>,
) -> Result<(), CudaError> {
    check(dims, dropout.is_some());
    let tokens = dims.batch * dims.time;
    assert_eq!(out.len(), tokens * dims.channels(), "out is (B, T, C)");
    assert_eq!(lse.len(), tokens * dims.heads, "lse is (B, H, T)");
    assert_eq!(qkv.len(), 3 * out.len(), "qkv is (B, T, 3C)");
    if out.is_empty() {
        return Ok(());
    }
    let mut args = vec![out.arg_mut(), lse.arg_mut(), qkv.arg()];
    args.extend(dims_args(dims));
    let (kernel, grid) = if let Some(head_size) = tensor_core_size::<T>(stream, dims) {
        let tiles = forward_tiles(head_size);
        let (kernel, grid, stages) = tiles.launch(stream, "forward", dims, dropout.is_some());
        args.push(stages.into());
        (kernel, grid)
    } else {
        general("forward", dims)
    };
    args.extend(dropout_args(dropout));
    let kernel = T::kernel(&kernel);
    // SAFETY: the kernel reads and writes tokens 0..T of B sequences of H heads, and the buffers
    // are of that many.
    unsafe { stream.launch(&kernel, grid, &args) }
}

/// `dqkv` `(B, T, 3C)` = gradient of the inputs of `forward` from `dout` `(B, T, C)`, the gradient
/// of its output, given its input `qkv`, its output `out` and `lse`, with the same `dropout`.
///
/// `scratch` is of `scratch_len(dims)`; what it holds before and after means nothing.
/// Panics if a length does not fit `dims`.
#[expect(
    clippy::too_many_arguments,
    reason = "the operation has as many operands"
)]
#[expect(unsafe_code, reason = "the launches of the kernels")]
pub fn backward<T: Float>(
    stream: &Stream,
    dqkv: &mut Buffer<T>,
    dout: &Buffer<T>,
    qkv: &Buffer<T>,
    out: &Buffer<T>,
    lse: &Buffer<f32>,
    dims: Dims,
    dropout: Option<(&Dropout, &Buffer<u32>)>,
    scratch: &mut Buffer<f32>,
) -> Result<(), CudaError> {
    check(dims, dropout.is_some());
    let rows = dims.batch * dims.time * dims.heads;
    assert_eq!(out.len(), rows * dims.head_size, "out is (B, T, C)");
    assert_eq!(dout.len(), out.len(), "dout is (B, T, C)");
    assert_eq!(lse.len(), rows, "lse is (B, H, T)");
    assert_eq!(qkv.len(), 3 * out.len(), "qkv is (B, T, 3C)");
    assert_eq!(dqkv.len(), qkv.len(), "dqkv is (B, T, 3C)");
    assert_eq!(
        scratch.len(),
        scratch_len(dims),
        "scratch is of scratch_len"
    );
    if out.is_empty() {
        return Ok(());
    }
    let [time, heads, head_size, _] = dims_args(dims);
    let grid = Grid::linear(rows.div_ceil(DELTA_ROWS), DELTA_THREADS);
    let mut args = vec![scratch.arg_mut(), dout.arg(), out.arg()];
    args.extend([time, heads, head_size, (rows as u64).into()]);
    // SAFETY: the kernel reads and writes B T H rows, of hs elements and of one, and the buffers
    // are of that many.
    unsafe { stream.launch(&T::kernel("attention_delta"), grid, &args)? };
    for (stem, keys) in [("backward_keys", true), ("backward_queries", false)] {
        let mut args = vec![dqkv.arg_mut(), dout.arg(), qkv.arg()];
        args.extend([lse.arg(), scratch.arg()]);
        args.extend(dims_args(dims));
        let (kernel, grid) = if let Some(head_size) = tensor_core_size::<T>(stream, dims) {
            let tiles = backward_tiles(head_size, keys);
            let (kernel, grid, stages) = tiles.launch(stream, stem, dims, dropout.is_some());
            args.push(stages.into());
            (kernel, grid)
        } else {
            general(stem, dims)
        };
        args.extend(dropout_args(dropout));
        let kernel = T::kernel(&kernel);
        // SAFETY: as in `forward`; the two kernels write to different columns of dqkv.
        unsafe { stream.launch(&kernel, grid, &args)? };
    }
    Ok(())
}

/// Elements of the scratch that `backward` needs: a sum for each row of `out`.
pub fn scratch_len(dims: Dims) -> usize {
    dims.batch * dims.heads * dims.time
}

/// How a kernel on tensor cores cuts a head, as its `KERNEL` line says.
#[derive(Clone, Copy)]
struct Tiles {
    /// D: the columns of a tile.
    head_size: usize,
    /// Rows that a block computes.
    rows: usize,
    /// Bytes of shared memory that stay the whole time, and of each stage.
    fixed_bytes: usize,
    stage_bytes: usize,
}

fn forward_tiles(head_size: usize) -> Tiles {
    let keys = if head_size == 128 { 32 } else { 64 };
    Tiles {
        head_size,
        rows: 128,
        fixed_bytes: 128 * head_size * 2,
        stage_bytes: 2 * keys * head_size * 2,
    }
}

/// The tiles of the kernel for keys and values (`keys`) or the one for queries.
fn backward_tiles(head_size: usize, keys: bool) -> Tiles {
    let columns = match (head_size, keys) {
        (128, true) => 16,
        (128, false) | (_, true) => 32,
        (_, false) => 64,
    };
    // Rows, and what a stage has of the other side, with two numbers a query.
    let (rows, statistics) = (64, if keys { 2 * columns * 4 } else { 0 });
    Tiles {
        head_size,
        rows,
        fixed_bytes: 2 * rows * head_size * 2,
        stage_bytes: 2 * columns * head_size * 2 + statistics,
    }
}

impl Tiles {
    /// Kernel, shape and stages of a launch. Without asynchronous copies (sm_75) a second stage
    /// would only take shared memory from a second block.
    fn launch(self, stream: &Stream, stem: &str, dims: Dims, drops: bool) -> (String, Grid, i32) {
        let properties = stream.device().properties();
        let stages = if properties.compute_capability >= (8, 0) {
            2
        } else {
            1
        };
        let bytes = self.fixed_bytes + stages * self.stage_bytes;
        assert!(bytes <= properties.shared_bytes_max as usize);
        let drops = if drops { "_dropout" } else { "" };
        let kernel = format!("attention_{stem}{drops}_{}", self.head_size);
        let grid = Grid::linear(blocks(dims, self.rows), THREADS).with_shared(bytes as u32);
        (kernel, grid, stages as i32)
    }
}

/// Kernel and shape of a launch on the general path. f16 comes here with large heads only.
fn general(stem: &str, dims: Dims) -> (String, Grid) {
    let head_size = dims.head_size.next_power_of_two().max(64);
    let kernel = format!("attention_general_{stem}_{head_size}");
    (
        kernel,
        Grid::linear(blocks(dims, GENERAL_ROWS), GENERAL_THREADS),
    )
}

fn blocks(dims: Dims, rows: usize) -> usize {
    dims.batch * dims.heads * dims.time.div_ceil(rows)
}

/// The head size of the kernel on tensor cores for heads of this size, if there is one.
fn tensor_core_size<T: Float>(stream: &Stream, dims: Dims) -> Option<usize> {
    let multiplies = match T::NAME {
        "f16" => true,
        "bf16" => stream.device().properties().compute_capability >= (8, 0),
        _ => false,
    };
    let head_size = dims.head_size.next_power_of_two().max(32);
    (multiplies && head_size <= TENSOR_CORE_HEAD_SIZE_MAX).then_some(head_size)
}

fn check(dims: Dims, drops: bool) {
    let Dims {
        batch,
        time,
        heads,
        head_size,
    } = dims;
    assert!(
        head_size <= HEAD_SIZE_MAX,
        "heads have at most {HEAD_SIZE_MAX} elements"
    );
    assert!(
        !drops || batch * heads * time * time <= DROPPED_WEIGHTS_MAX,
        "there are more attention weights than a dropout has random words"
    );
    let counts = [3 * heads * head_size, batch * time * heads];
    assert!(
        counts.iter().all(|&n| i32::try_from(n).is_ok()),
        "3C and B T H are of 32 bits in the kernels"
    );
}

/// `int time, int heads, int head_size, float scale`
fn dims_args(dims: Dims) -> [Arg; 4] {
    let scale = (1.0 / (dims.head_size as f64).sqrt()) as f32;
    [
        (dims.time as i32).into(),
        (dims.heads as i32).into(),
        (dims.head_size as i32).into(),
        scale.into(),
    ]
}

fn dropout_args(dropout: Option<(&Dropout, &Buffer<u32>)>) -> [Arg; 6] {
    dropout.map_or_else(Dropout::none, |(dropout, at)| dropout.args(at))
}
