//! Generation's operations on a device. Called by engines that run there, token by token.

use crate::cuda::{Arg, Buffer, CudaError, Element, Float, Grid, Properties, Stream};

const THREADS: usize = 256;
const WARPS: usize = THREADS / 32;
/// Blocks of a product beyond which a warp takes more than one row of the weights: the input is
/// brought to shared memory once for all of them.
const BLOCKS_PER_MULTIPROCESSOR: usize = 8;
/// Dynamic shared memory that every GPU gives without being asked, less what the kernels have.
const SHARED_BYTES_MAX: usize = 40 << 10;

/// The shape of an attention with its cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheDims {
    /// H
    pub heads: usize,
    /// D
    pub head_size: usize,
    /// Positions that there is room for.
    pub block_size: usize,
}

impl CacheDims {
    /// Elements of the keys, or of the values, of a layer.
    pub fn len(self) -> usize {
        self.heads * self.head_size * self.block_size
    }

    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    fn args(self) -> [Arg; 3] {
        [self.heads, self.head_size, self.block_size].map(|n| int(n).into())
    }
}

/// Whether the kernels take a model: `inputs` is the longest row of its weights.
pub fn is_supported(dims: CacheDims, inputs: usize) -> bool {
    let shared = inputs.max(dims.block_size) * size_of::<f32>();
    (1..=THREADS).contains(&dims.head_size) && shared <= SHARED_BYTES_MAX
}

/// A row of weights for each output, and what goes with it.
#[derive(Clone, Copy, Debug)]
pub struct Linear<'a, T> {
    /// LayerNorm's weight and bias, where the input is to be normalised.
    pub norm: Option<(&'a Buffer<T>, Option<&'a Buffer<T>>)>, // (K)
    pub weight: &'a Buffer<T>,           // (N, K)
    pub bias: Option<&'a Buffer<T>>,     // (N)
    pub residual: Option<&'a Buffer<T>>, // (N)
}

/// x = wte[token] + wpe[position]. Both must be within the tables.
pub fn embed<T: Float>(
    stream: &Stream,
    x: &mut Buffer<T>, // (C)
    at: &Buffer<i32>,  // token, position
    wte: &Buffer<T>,   // (V, C)
    wpe: &Buffer<T>,   // (block, C)
) -> Result<(), CudaError> {
    let c = x.len();
    assert!(at.len() == 2 && wte.len().is_multiple_of(c) && wpe.len().is_multiple_of(c));
    let args = [x.arg_mut(), at.arg(), wte.arg(), wpe.arg(), int(c).into()];
    let grid = Grid::linear(c.div_ceil(THREADS), THREADS as u32);
    launch(stream, &T::kernel("decode_embed"), grid, &args)
}

/// out = W norm?(x) + bias + residual.
pub fn linear<T: Float>(
    stream: &Stream,
    out: &mut Buffer<T>, // (N)
    x: &Buffer<T>,       // (K)
    linear: Linear<'_, T>,
) -> Result<(), CudaError> {
    launch_linear(stream, &T::kernel("decode_linear"), out, x, linear)
}

/// out = gelu(W norm?(x) + bias) + residual, the form with erf.
pub fn linear_gelu<T: Float>(
    stream: &Stream,
    out: &mut Buffer<T>, // (N)
    x: &Buffer<T>,       // (K)
    linear: Linear<'_, T>,
) -> Result<(), CudaError> {
    launch_linear(stream, &T::kernel("decode_linear_gelu"), out, x, linear)
}

/// As [`linear`], in fp32.
pub fn logits<T: Float>(
    stream: &Stream,
    out: &mut Buffer<f32>, // (N)
    x: &Buffer<T>,         // (K)
    linear: Linear<'_, T>,
) -> Result<(), CudaError> {
    launch_linear(stream, &T::kernel("decode_logits"), out, x, linear)
}

/// Adds the token's key and value to the caches, out = attention over all positions up to its own.
pub fn attention<T: Float>(
    stream: &Stream,
    out: &mut Buffer<T>,                 // (C)
    [keys, values]: [&mut Buffer<T>; 2], // (H, block, D)
    qkv: &Buffer<T>,                     // (3C)
    at: &Buffer<i32>,                    // token, position
    dims: CacheDims,
) -> Result<(), CudaError> {
    let c = dims.heads * dims.head_size;
    assert!(is_supported(dims, 0) && at.len() == 2);
    assert!(out.len() == c && qkv.len() == 3 * c);
    assert!(keys.len() == dims.len() && values.len() == dims.len());
    let mut args = vec![
        out.arg_mut(),
        keys.arg_mut(),
        values.arg_mut(),
        qkv.arg(),
        at.arg(),
    ];
    args.extend(dims.args());
    args.push((1.0 / (dims.head_size as f32).sqrt()).into());
    let shared = dims.block_size * size_of::<f32>();
    let grid = Grid::linear(dims.heads, THREADS as u32).with_shared(shared as u32);
    launch(stream, &T::kernel("decode_attention"), grid, &args)
}

/// Brings the keys and values of a prompt's first tokens to the caches.
pub fn store<T: Float>(
    stream: &Stream,
    [keys, values]: [&mut Buffer<T>; 2], // (H, block, D)
    qkv: &Buffer<T>,                     // (T, 3C)
    dims: CacheDims,
) -> Result<(), CudaError> {
    let row = 3 * dims.heads * dims.head_size;
    let tokens = qkv.len() / row;
    assert!(qkv.len().is_multiple_of(row) && tokens <= dims.block_size);
    assert!(keys.len() == dims.len() && values.len() == dims.len());
    if tokens == 0 {
        return Ok(());
    }
    let mut args = vec![keys.arg_mut(), values.arg_mut(), qkv.arg()];
    args.extend(dims.args());
    let grid = Grid::linear(tokens, THREADS as u32);
    launch(stream, &T::kernel("decode_store"), grid, &args)
}

fn launch_linear<T: Float, Out: Element>(
    stream: &Stream,
    kernel: &str,
    out: &mut Buffer<Out>,
    x: &Buffer<T>,
    linear: Linear<'_, T>,
) -> Result<(), CudaError> {
    let (n, k) = (out.len(), x.len());
    let Linear {
        norm,
        weight,
        bias,
        residual,
    } = linear;
    let norm_bias = norm.and_then(|(_, bias)| bias);
    assert!(norm.is_none_or(|(weight, _)| weight.len() == k));
    assert!(norm_bias.is_none_or(|bias| bias.len() == k));
    assert!(weight.len() == n * k && bias.is_none_or(|bias| bias.len() == n));
    assert!(residual.is_none_or(|residual| residual.len() == n));
    let shared = k * size_of::<f32>();
    assert!(shared <= SHARED_BYTES_MAX, "ask is_supported first");
    let optional = |buffer: Option<&Buffer<T>>| buffer.map_or_else(Arg::null, Buffer::arg);
    let args = [
        out.arg_mut(),
        x.arg(),
        optional(norm.map(|(weight, _)| weight)),
        optional(norm_bias),
        weight.arg(),
        optional(bias),
        optional(residual),
        int(n).into(),
        int(k).into(),
    ];
    let blocks = n
        .div_ceil(WARPS)
        .min(blocks_max(stream.device().properties()));
    let grid = Grid::linear(blocks, THREADS as u32).with_shared(shared as u32);
    launch(stream, kernel, grid, &args)
}

fn blocks_max(properties: &Properties) -> usize {
    properties.multiprocessors as usize * BLOCKS_PER_MULTIPROCESSOR
}

fn int(n: usize) -> i32 {
    i32::try_from(n).expect("dimensions of a model are below 2^31")
}

#[expect(unsafe_code, reason = "the launch of the kernels")]
fn launch(stream: &Stream, kernel: &str, grid: Grid, args: &[Arg]) -> Result<(), CudaError> {
    // SAFETY: the callers have compared every buffer's length with the shape; token and position
    // are within the tables and caches by their contract.
    unsafe { stream.launch(kernel, grid, args) }
}
