//! The linear layer on a device: products in tiles on tensor cores, f32 in full f32, with what
//! follows them fused. Called by engines that run there, through `products`, which knows cuBLASLt.
//!
//! Sums are in f32 and their order depends on the sizes and the device alone.

mod tiles;
pub mod products;

use super::Dims;
use crate::cuda::{Arg, Buffer, CudaError, Element, Float, Grid, Properties, Stream};
use tiles::{Choice, Tile};

/// How a result meets what its buffer holds: `out = scale · result`, or `out += ` it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Write {
    pub scale: f32,
    pub accumulate: bool,
}

impl Write {
    /// out = result.
    pub const SET: Self = Self {
        scale: 1.0,
        accumulate: false,
    };
    /// out += result.
    pub const ADD: Self = Self {
        scale: 1.0,
        accumulate: true,
    };
}

pub use crate::gelu::Form;

/// Threads of a block of the kernels that only add up.
const THREADS: u32 = 256;
/// Columns that such a block takes; as `COLUMNS` in sums.cu.
const BIAS_COLUMNS: usize = 256;

/// What the kernels take for what follows a product; as `Kind` in epilogue.cuh.
const ADD: i32 = 0;

impl Form {
    fn forward(self) -> i32 {
        match self {
            Self::Erf => 1,
            Self::Tanh => 2,
        }
    }

    fn backward(self) -> i32 {
        match self {
            Self::Erf => 3,
            Self::Tanh => 4,
        }
    }
}

/// out (M, N) = x (M, K) · weight (N, K)ᵀ (+ bias (N)) (+ residual (M, N)), out and residual of
/// type T or f32.
pub fn forward<T: Float, O: Float>(
    stream: &Stream,
    out: &mut Buffer<O>,
    x: &Buffer<T>,
    weight: &Buffer<T>,
    bias: Option<&Buffer<T>>,
    residual: Option<&Buffer<O>>,
    dims: Dims,
) -> Result<(), CudaError> {
    let Dims { m, n, .. } = dims;
    check("out", out, m, n);
    residual.inspect(|residual| check("residual", residual, m, n));
    let other = residual.map_or(Arg::null(), Buffer::arg);
    let mut product = forward_product(stream, x, weight, bias, dims);
    if O::NAME != T::NAME {
        assert_eq!(
            O::NAME,
            f32::NAME,
            "the type of the result of a product of {}",
            T::NAME
        );
        product.name = "matmul_forward_to_f32";
    }
    product.launch(stream, out.arg_mut(), Arg::null(), other, ADD, 1.0)
}

/// pre (M, N) = x (M, K) · weight (N, K)ᵀ (+ bias (N)), out (M, N) = gelu(pre). `pre` may be left
/// out where backward will not need it.
#[expect(clippy::too_many_arguments, reason = "the operands of two operations")]
pub fn forward_gelu<T: Float>(
    stream: &Stream,
    form: Form,
    pre: Option<&mut Buffer<T>>,
    out: &mut Buffer<T>,
    x: &Buffer<T>,
    weight: &Buffer<T>,
    bias: Option<&Buffer<T>>,
    dims: Dims,
) -> Result<(), CudaError> {
    let Dims { m, n, .. } = dims;
    check("out", out, m, n);
    let pre = pre.map_or(Arg::null(), |pre| {
        check("pre", pre, m, n);
        pre.arg_mut()
    });
    let product = forward_product(stream, x, weight, bias, dims);
    product.launch(stream, out.arg_mut(), pre, Arg::null(), form.forward(), 1.0)
}

/// dx (M, K) = dout (M, N) · weight (N, K), or `+=`.
pub fn backward_input<T: Float>(
    stream: &Stream,
    dx: &mut Buffer<T>,
    dout: &Buffer<T>,
    weight: &Buffer<T>,
    write: Write,
    dims: Dims,
) -> Result<(), CudaError> {
    check("dx", dx, dims.m, dims.k);
    let product = backward_input_product(stream, dout, weight, dims);
    let other = if write.accumulate {
        dx.arg()
    } else {
        Arg::null()
    };
    product.launch(stream, dx.arg_mut(), Arg::null(), other, ADD, write.scale)
}

/// dpre (M, K) = (dout (M, N) · weight (N, K)) ⊙ gelu'(pre (M, K)): backward of a layer whose input
/// was gelu(pre), to `pre`.
pub fn backward_input_gelu<T: Float>(
    stream: &Stream,
    form: Form,
    dpre: &mut Buffer<T>,
    dout: &Buffer<T>,
    weight: &Buffer<T>,
    pre: &Buffer<T>,
    dims: Dims,
) -> Result<(), CudaError> {
    check("dpre", dpre, dims.m, dims.k);
    check("pre", pre, dims.m, dims.k);
    let product = backward_input_product(stream, dout, weight, dims);
    product.launch(
        stream,
        dpre.arg_mut(),
        Arg::null(),
        pre.arg(),
        form.backward(),
        1.0,
    )
}

/// Elements of scratch memory that [`backward_weight`] and [`backward_bias`] ask for.
pub fn scratch_len(dims: Dims, properties: &Properties) -> usize {
    let parts = Choice::of(dims.n, dims.k, dims.m, true, properties).parts(dims.m);
    let weight = if parts > 1 {
        parts * dims.n * dims.k
    } else {
        0
    };
    weight.max(bias_parts(dims, properties) * dims.n)
}

/// dweight (N, K) += dout (M, N)ᵀ · x (M, K), or `=`. `scratch` holds [`scratch_len`] elements.
pub fn backward_weight<T: Float>(
    stream: &Stream,
    dweight: &mut Buffer<f32>,
    dout: &Buffer<T>,
    x: &Buffer<T>,
    scratch: &mut Buffer<f32>,
    write: Write,
    dims: Dims,
) -> Result<(), CudaError> {
    let Dims { m, k, n } = dims;
    check("dweight", dweight, n, k);
    check("dout", dout, m, n);
    check("x", x, m, k);
    let product = Product {
        name: "matmul_backward_weight",
        a: dout,
        b: x,
        bias: None,
        rows: n,
        cols: k,
        depth: m,
        choice: Choice::of(n, k, m, true, stream.device().properties()),
    };
    let (null, parts) = (Arg::null(), product.choice.parts(m));
    if parts == 1 {
        let other = if write.accumulate {
            dweight.arg()
        } else {
            Arg::null()
        };
        return product.launch(stream, dweight.arg_mut(), null, other, ADD, write.scale);
    }
    let mut partials = scratch.slice(0..parts * n * k);
    product.launch(
        stream,
        partials.arg_mut(),
        null,
        Arg::null(),
        ADD,
        write.scale,
    )?;
    sum_parts(stream, dweight, &partials, parts, write.accumulate)
}

/// out = or += the sum of `parts` matrices, in their order.
#[expect(unsafe_code, reason = "the launch of a kernel")]
fn sum_parts(
    stream: &Stream,
    out: &mut Buffer<f32>,
    partials: &Buffer<f32>,
    parts: usize,
    accumulate: bool,
) -> Result<(), CudaError> {
    let n = out.len();
    assert_eq!(partials.len(), parts * n);
    let args = [
        out.arg_mut(),
        partials.arg(),
        (n as u64).into(),
        to_i32(parts).into(),
        i32::from(accumulate).into(),
    ];
    let grid = Grid::linear(n.div_ceil(4 * THREADS as usize), THREADS);
    // SAFETY: the kernel reads `parts` times n elements of partials and writes n of out.
    unsafe { stream.launch("matmul_sum_parts_f32", grid, &args) }
}

/// Parts of the rows whose columns [`backward_bias`] sums up apart: two blocks for each
/// multiprocessor, each with at least a row for every warp.
fn bias_parts(dims: Dims, properties: &Properties) -> usize {
    const WARPS: usize = THREADS as usize / 32;
    let blocks = 2 * properties.multiprocessors as usize;
    let parts = blocks.div_ceil(dims.n.div_ceil(BIAS_COLUMNS).max(1));
    parts.min(dims.m.div_ceil(WARPS)).max(1)
}

/// dbias (N) += the column sums of dout (M, N), or `=`. `scratch` holds [`scratch_len`] elements.
#[expect(unsafe_code, reason = "the launch of the kernels")]
pub fn backward_bias<T: Float>(
    stream: &Stream,
    dbias: &mut Buffer<f32>,
    dout: &Buffer<T>,
    scratch: &mut Buffer<f32>,
    accumulate: bool,
    dims: Dims,
) -> Result<(), CudaError> {
    let Dims { m, n, .. } = dims;
    check("dbias", dbias, 1, n);
    check("dout", dout, m, n);
    if n == 0 {
        return Ok(());
    }
    let parts = bias_parts(dims, stream.device().properties());
    let mut partials = scratch.slice(0..parts * n);
    let args = [
        partials.arg_mut(),
        dout.arg(),
        to_i32(m).into(),
        to_i32(n).into(),
        to_i32(m.div_ceil(parts)).into(),
    ];
    let grid = Grid {
        grid: [to_u32(n.div_ceil(BIAS_COLUMNS)), to_u32(parts), 1],
        block: [THREADS, 1, 1],
        shared_bytes: 0,
    };
    // SAFETY: the kernel reads the m · n elements of dout and writes n for each part.
    unsafe { stream.launch(&T::kernel("matmul_backward_bias"), grid, &args)? };
    let args = [
        dbias.arg_mut(),
        partials.arg(),
        to_i32(n).into(),
        to_i32(parts).into(),
        i32::from(accumulate).into(),
    ];
    let grid = Grid::linear(n.div_ceil(32), THREADS);
    // SAFETY: the kernel reads n elements for each part and writes n.
    unsafe { stream.launch("matmul_sum_bias_f32", grid, &args) }
}

fn forward_product<'a, T: Float>(
    stream: &Stream,
    x: &'a Buffer<T>,
    weight: &'a Buffer<T>,
    bias: Option<&'a Buffer<T>>,
    dims: Dims,
) -> Product<'a, T> {
    let Dims { m, k, n } = dims;
    check("x", x, m, k);
    check("weight", weight, n, k);
    bias.inspect(|bias| check("bias", bias, 1, n));
    Product {
        name: "matmul_forward",
        a: x,
        b: weight,
        bias,
        rows: m,
        cols: n,
        depth: k,
        choice: Choice::of(m, n, k, false, stream.device().properties()),
    }
}

fn backward_input_product<'a, T: Float>(
    stream: &Stream,
    dout: &'a Buffer<T>,
    weight: &'a Buffer<T>,
    dims: Dims,
) -> Product<'a, T> {
    let Dims { m, k, n } = dims;
    check("dout", dout, m, n);
    check("weight", weight, n, k);
    Product {
        name: "matmul_backward_input",
        a: dout,
        b: weight,
        bias: None,
        rows: m,
        cols: k,
        depth: n,
        choice: Choice::of(m, k, n, false, stream.device().properties()),
    }
}

/// A product of (rows, depth) by (depth, cols), its operands' sizes checked.
struct Product<'a, T> {
    /// Of the kernel, without what its tile and type add.
    name: &'static str,
    a: &'a Buffer<T>,
    b: &'a Buffer<T>,
    bias: Option<&'a Buffer<T>>,
    rows: usize,
    cols: usize,
    depth: usize,
    choice: Choice,
}

impl<T: Float> Product<'_, T> {
    /// `out`, and `pre` and `other` where they are not null, must have rows · cols elements; `out`
    /// these for each part of the choice.
    #[expect(unsafe_code, reason = "the launch of the kernels")]
    fn launch(
        &self,
        stream: &Stream,
        out: Arg,
        pre: Arg,
        other: Arg,
        kind: i32,
        scale: f32,
    ) -> Result<(), CudaError> {
        let (rows, cols, choice) = (self.rows, self.cols, self.choice);
        if rows == 0 || cols == 0 {
            return Ok(());
        }
        let name = match choice.tile {
            Tile::Large => T::kernel(self.name),
            Tile::Small => T::kernel(&format!("{}_small", self.name)),
        };
        let side = choice.tile.side();
        let is_16_bit = size_of::<T>() == 2;
        let grid = Grid {
            grid: [
                to_u32(rows.div_ceil(side) * cols.div_ceil(side)),
                to_u32(choice.parts(self.depth)),
                1,
            ],
            block: [choice.tile.threads(is_16_bit), 1, 1],
            shared_bytes: choice
                .tile
                .shared_bytes(is_16_bit, stream.device().properties()),
        };
        let args = [
            out,
            pre,
            self.a.arg(),
            self.b.arg(),
            self.bias.map_or(Arg::null(), Buffer::arg),
            other,
            to_i32(rows).into(),
            to_i32(cols).into(),
            to_i32(self.depth).into(),
            to_i32(choice.part_depth).into(),
            kind.into(),
            scale.into(),
        ];
        // SAFETY: the kernels stay within matrices of these sizes; the operands were checked when
        // this was made, the others by the caller.
        unsafe { stream.launch(&name, grid, &args) }
    }
}

#[track_caller]
fn check<T: Element>(name: &str, data: &Buffer<T>, rows: usize, cols: usize) {
    assert_eq!(data.len(), rows * cols, "{name}: expected {rows} x {cols}");
}

fn to_i32(x: usize) -> i32 {
    i32::try_from(x).expect("sizes of a layer are below 2^31")
}

fn to_u32(x: usize) -> u32 {
    u32::try_from(x).expect("a product has fewer than 2^32 tiles")
}
