//! LayerNorm on a device. Called by engines that run there.

use crate::cuda::{Arg, Buffer, CudaError, Float, Grid, Stream};
use crate::dropout::Dropout;

const THREADS: u32 = 256;
const ROWS_OF_A_BLOCK: usize = THREADS as usize / 32;
/// Vectors of a lane for which there is a forward kernel.
const VECTORS_OF_A_LANE: [usize; 4] = [1, 2, 4, 8];
/// Threads of a block of the backward kernels, and columns of a thread without vectors.
const BACKWARD_THREADS_MAX: usize = 512;
const COLUMNS_OF_A_THREAD: usize = 8;
/// Blocks of the backward kernels, each with partial sums of 3 C floats.
const BACKWARD_BLOCKS_MAX: usize = 512;
/// Rows that a block of the backward kernels takes before another is worth its partial sums.
const BACKWARD_ROWS: usize = 8;

/// The most channels that the backward kernels take.
pub const CHANNELS_MAX: usize = BACKWARD_THREADS_MAX * COLUMNS_OF_A_THREAD;

/// The output of LayerNorm with the statistics that backward needs.
#[derive(Debug)]
pub struct Normed<'a, T> {
    pub out: &'a mut Buffer<T>,    // (M, C)
    pub mean: &'a mut Buffer<f32>, // (M)
    pub rstd: &'a mut Buffer<f32>, // (M)
}

/// The parameters of one LayerNorm.
#[derive(Clone, Copy, Debug)]
pub struct Parameters<'a, T> {
    pub weight: &'a Buffer<T>,       // (C)
    pub bias: Option<&'a Buffer<T>>, // (C)
}

/// x + dropout(branch), which the LayerNorm after it reads.
#[derive(Debug)]
pub struct Residual<'a, T> {
    pub x_out: &'a mut Buffer<T>, // (M, C)
    pub x: &'a Buffer<T>,         // (M, C)
    pub branch: &'a Buffer<T>,    // (M, C)
    /// With the two words of the counter in device memory.
    pub dropout: Option<(&'a Dropout, &'a Buffer<u32>)>,
}

/// Where the gradients of one backward pass go. All but `dx` are added to.
#[derive(Debug)]
pub struct Gradients<'a, T> {
    pub dx: &'a mut Buffer<T>, // (M, C)
    /// Whether `dx` is assigned, or added to.
    pub assign: bool,
    pub dweight: &'a mut Buffer<f32>,       // (C)
    pub dbias: Option<&'a mut Buffer<f32>>, // (C)
    /// Column sums of `dx` as it is then: the bias gradient of the projection whose output was
    /// added to the residual stream before this LayerNorm.
    pub dx_sums: Option<&'a mut Buffer<f32>>, // (C)
    /// `scratch_len` elements.
    pub scratch: &'a mut Buffer<f32>,
}

/// out = LN(x); saves the statistics of each row.
pub fn forward<T: Float>(
    stream: &Stream,
    normed: &mut Normed<'_, T>,
    x: &Buffer<T>, // (M, C)
    parameters: Parameters<'_, T>,
) -> Result<(), CudaError> {
    let (rows, c) = check(normed, parameters);
    assert_eq!(x.len(), rows * c);
    let aligned = normed.out.is_aligned(16) && x.is_aligned(16) && parameters.are_aligned();
    let mut args = normed.args_mut();
    args.push(x.arg());
    args.extend(parameters.args());
    args.extend([(rows as i32).into(), (c as i32).into()]);
    launch_forward::<T>(stream, "layernorm_forward", rows, c, aligned, &args)
}

/// x_out = x + dropout(branch), out = LN(x_out); saves the statistics of each row of `x_out`.
pub fn residual_forward<T: Float>(
    stream: &Stream,
    residual: &mut Residual<'_, T>,
    normed: &mut Normed<'_, T>,
    parameters: Parameters<'_, T>,
) -> Result<(), CudaError> {
    let (rows, c) = check(normed, parameters);
    let Residual {
        x_out,
        x,
        branch,
        dropout,
    } = residual;
    assert!(x_out.len() == rows * c && x.len() == rows * c && branch.len() == rows * c);
    let aligned = normed.out.is_aligned(16)
        && x_out.is_aligned(16)
        && x.is_aligned(16)
        && branch.is_aligned(16)
        && parameters.are_aligned();
    let mut args = vec![x_out.arg_mut()];
    args.extend(normed.args_mut());
    args.extend([x.arg(), branch.arg()]);
    args.extend(parameters.args());
    args.extend([(rows as i32).into(), (c as i32).into()]);
    args.extend(dropout.map_or_else(Dropout::none, |(dropout, at)| dropout.args(at)));
    launch_forward::<T>(
        stream,
        "layernorm_residual_forward",
        rows,
        c,
        aligned,
        &args,
    )
}

/// Elements of scratch that [`backward`] wants.
pub fn scratch_len(rows: usize, c: usize) -> usize {
    3 * backward_blocks(rows) * c
}

/// Gradients through LN, from `dout` and what forward saved.
pub fn backward<T: Float>(
    stream: &Stream,
    gradients: &mut Gradients<'_, T>,
    dout: &Buffer<T>,   // (M, C)
    x: &Buffer<T>,      // (M, C)
    mean: &Buffer<f32>, // (M)
    rstd: &Buffer<f32>, // (M)
    weight: &Buffer<T>, // (C)
) -> Result<(), CudaError> {
    let (rows, c) = (mean.len(), weight.len());
    let n = rows * c;
    assert!(c > 0 && gradients.dx.len() == n && dout.len() == n && x.len() == n);
    assert!(rstd.len() == rows && gradients.dweight.len() == c);
    assert!(gradients.scratch.len() >= scratch_len(rows, c) && rows <= i32::MAX as usize);
    assert!(c <= CHANNELS_MAX, "LayerNorm of {c} channels");
    if rows == 0 {
        return Ok(());
    }
    let aligned = [gradients.dx.is_aligned(16), dout.is_aligned(16)]
        .into_iter()
        .chain([x.is_aligned(16), weight.is_aligned(16)])
        .all(|aligned| aligned);
    let size = 16 / size_of::<T>();
    let vectors = c / size;
    let (kernel, threads) = if aligned && c.is_multiple_of(size) && vectors <= BACKWARD_THREADS_MAX
    {
        ("layernorm_backward", vectors)
    } else {
        ("layernorm_backward_any", c.min(BACKWARD_THREADS_MAX))
    };
    let (blocks, threads) = (backward_blocks(rows), threads.next_multiple_of(32) as u32);
    let args = [
        gradients.dx.arg_mut(),
        gradients.scratch.arg_mut(),
        dout.arg(),
        x.arg(),
        mean.arg(),
        rstd.arg(),
        weight.arg(),
        (rows as i32).into(),
        (c as i32).into(),
        i32::from(gradients.assign).into(),
        i32::from(gradients.dx_sums.is_some()).into(),
    ];
    #[expect(unsafe_code, reason = "the launch of the kernel")]
    // SAFETY: tensors of rows × c elements, statistics of `rows`, scratch of 3 × blocks × c.
    unsafe {
        stream.launch(&T::kernel(kernel), Grid::linear(blocks, threads), &args)?;
    }
    let sums = [
        Some(&mut *gradients.dweight),
        gradients.dbias.as_deref_mut(),
        gradients.dx_sums.as_deref_mut(),
    ];
    for (i, sum) in sums.into_iter().enumerate() {
        let Some(sum) = sum else { continue };
        let partials = blocks * c;
        let partials = gradients.scratch.slice(i * partials..(i + 1) * partials);
        reduce(stream, sum, &partials, blocks)?;
    }
    Ok(())
}

/// sum += the partial sums of `blocks` blocks, in their order.
fn reduce(
    stream: &Stream,
    sum: &mut Buffer<f32>,  // (C)
    partials: &Buffer<f32>, // (blocks, C)
    blocks: usize,
) -> Result<(), CudaError> {
    let c = sum.len();
    assert_eq!(partials.len(), blocks * c);
    let args = [
        sum.arg_mut(),
        partials.arg(),
        (blocks as i32).into(),
        (c as i32).into(),
    ];
    let grid = Grid::linear(c.div_ceil(32), THREADS);
    #[expect(unsafe_code, reason = "the launch of the kernel")]
    // SAFETY: a sum of c elements, partial sums of blocks × c.
    unsafe {
        stream.launch("layernorm_reduce_f32", grid, &args)
    }
}

fn backward_blocks(rows: usize) -> usize {
    rows.div_ceil(BACKWARD_ROWS).min(BACKWARD_BLOCKS_MAX)
}

/// M and C.
fn check<T: Float>(normed: &Normed<'_, T>, parameters: Parameters<'_, T>) -> (usize, usize) {
    let (rows, c) = (normed.mean.len(), parameters.weight.len());
    assert!(c > 0 && normed.out.len() == rows * c && normed.rstd.len() == rows);
    assert!(parameters.bias.is_none_or(|bias| bias.len() == c));
    assert!(rows <= i32::MAX as usize && c <= i32::MAX as usize);
    (rows, c)
}

/// The kernel for rows of C elements: `stem_N` with N vectors of a lane, or `stem_any`.
pub(crate) fn row_kernel<T: Float>(stem: &str, c: usize, aligned: bool) -> String {
    let size = 16 / size_of::<T>();
    let fits = |&n: &usize| c <= n * 32 * size;
    let vectors = VECTORS_OF_A_LANE.into_iter().find(fits);
    match vectors.filter(|_| aligned && c.is_multiple_of(size)) {
        Some(n) => T::kernel(&format!("{stem}_{n}")),
        None => T::kernel(&format!("{stem}_any")),
    }
}

/// The shape of a launch of a warp for each row.
pub(crate) fn row_grid(rows: usize) -> Grid {
    Grid::linear(rows.div_ceil(ROWS_OF_A_BLOCK), THREADS)
}

fn launch_forward<T: Float>(
    stream: &Stream,
    stem: &str,
    rows: usize,
    c: usize,
    aligned: bool,
    args: &[Arg],
) -> Result<(), CudaError> {
    if rows == 0 {
        return Ok(());
    }
    let kernel = row_kernel::<T>(stem, c, aligned);
    #[expect(unsafe_code, reason = "the launch of the kernels")]
    // SAFETY: the callers have checked that tensors have rows × c elements, statistics `rows`,
    // parameters c; and `row_kernel` that vectors are aligned.
    unsafe {
        stream.launch(&kernel, row_grid(rows), args)
    }
}

impl<T: Float> Normed<'_, T> {
    fn args_mut(&mut self) -> Vec<Arg> {
        vec![self.out.arg_mut(), self.mean.arg_mut(), self.rstd.arg_mut()]
    }
}

impl<T: Float> Parameters<'_, T> {
    fn args(self) -> [Arg; 2] {
        [
            self.weight.arg(),
            self.bias.map_or_else(Arg::null, Buffer::arg),
        ]
    }

    fn are_aligned(self) -> bool {
        self.weight.is_aligned(16) && self.bias.is_none_or(|bias| bias.is_aligned(16))
    }
}
