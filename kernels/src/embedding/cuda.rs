//! Embeddings on a device. Called by engines that run there, first and last in a step.

use crate::cuda::{Arg, Buffer, CudaError, Float, Grid, Stream};
use crate::dropout::Dropout;
use crate::layernorm::cuda::{Normed, Parameters, row_grid, row_kernel};

const THREADS: usize = 256;
/// Rows of a tile of the sort and of a piece of the sums, and values of a digit, as in the source.
const TILE: usize = 1024;
const PIECE: usize = 64;
const DIGITS: usize = 256;
const DIGIT_BITS: u32 = DIGITS.trailing_zeros();

/// The embeddings that are looked up.
#[derive(Clone, Copy, Debug)]
pub struct Tables<'a, T> {
    pub wte: &'a Buffer<T>, // (V, C)
    pub wpe: &'a Buffer<T>, // (block, C)
}

/// The shape of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dims {
    /// B
    pub batch: usize,
    /// T
    pub time: usize,
    /// C
    pub channels: usize,
    /// The position of the first token, for sampling with a cache.
    pub start: usize,
}

/// A dropout, with the two words of its counter in device memory.
pub type DropoutAt<'a> = Option<(&'a Dropout, &'a Buffer<u32>)>;

/// out = dropout(wte[token] + wpe[position]). Tokens must be below the vocabulary's size.
pub fn forward<T: Float>(
    stream: &Stream,
    out: &mut Buffer<T>,  // (B, T, C)
    tokens: &Buffer<i32>, // (B, T)
    tables: Tables<'_, T>,
    dims: Dims,
    dropout: DropoutAt<'_>,
) -> Result<(), CudaError> {
    dims.check(out.len(), tokens, tables);
    if dims.rows() == 0 {
        return Ok(());
    }
    let mut args = vec![
        out.arg_mut(),
        tokens.arg(),
        tables.wte.arg(),
        tables.wpe.arg(),
    ];
    args.extend(dims.args());
    args.extend(dropout_args(dropout));
    launch(
        stream,
        &T::kernel("embedding_forward"),
        row_grid(dims.rows()),
        &args,
    )
}

/// x = dropout(wte[token] + wpe[position]), out = LN(x), with its statistics.
#[expect(
    clippy::too_many_arguments,
    reason = "the tensors of two fused operations"
)]
pub fn layernorm_forward<T: Float>(
    stream: &Stream,
    x: &mut Buffer<T>, // (B, T, C)
    normed: &mut Normed<'_, T>,
    tokens: &Buffer<i32>, // (B, T)
    tables: Tables<'_, T>,
    parameters: Parameters<'_, T>,
    dims: Dims,
    dropout: DropoutAt<'_>,
) -> Result<(), CudaError> {
    dims.check(x.len(), tokens, tables);
    let (rows, c) = (dims.rows(), dims.channels);
    assert!(normed.out.len() == rows * c && parameters.weight.len() == c);
    assert!(normed.mean.len() == rows && normed.rstd.len() == rows);
    assert!(parameters.bias.is_none_or(|bias| bias.len() == c));
    if rows == 0 {
        return Ok(());
    }
    let aligned = [&*x, &*normed.out, tables.wte, tables.wpe, parameters.weight]
        .into_iter()
        .chain(parameters.bias)
        .all(|buffer| buffer.is_aligned(16));
    let mut args = vec![
        x.arg_mut(),
        normed.out.arg_mut(),
        normed.mean.arg_mut(),
        normed.rstd.arg_mut(),
        tokens.arg(),
        tables.wte.arg(),
        tables.wpe.arg(),
        parameters.weight.arg(),
        parameters.bias.map_or_else(Arg::null, Buffer::arg),
    ];
    args.extend(dims.args());
    args.extend(dropout_args(dropout));
    let kernel = row_kernel::<T>("embedding_layernorm_forward", c, aligned);
    launch(stream, &kernel, row_grid(rows), &args)
}

/// The memory that [`backward`] works in.
#[derive(Debug)]
pub struct Scratch {
    /// (M) each: rows of the batch, sorted by token.
    pub sorted: [Buffer<i32>; 2],
    /// `counts_len(M)`.
    pub counts: Buffer<i32>,
    /// `partials_len(M, C)`.
    pub partials: Buffer<f32>,
}

/// Elements of [`Scratch::counts`] for `rows` rows.
pub fn counts_len(rows: usize) -> usize {
    DIGITS * rows.div_ceil(TILE)
}

/// Elements of [`Scratch::partials`] for `rows` rows of `channels`.
pub fn partials_len(rows: usize, channels: usize) -> usize {
    rows.div_ceil(PIECE) * 2 * channels
}

/// dwte += …, dwpe += …, from `dout`, which stays as it is.
#[expect(clippy::too_many_arguments, reason = "the tensors of the operation")]
pub fn backward<T: Float>(
    stream: &Stream,
    dwte: &mut Buffer<f32>, // (V, C)
    dwpe: &mut Buffer<f32>, // (block, C)
    dout: &Buffer<T>,       // (B, T, C)
    tokens: &Buffer<i32>,   // (B, T)
    scratch: &mut Scratch,
    dims: Dims,
    dropout: DropoutAt<'_>,
) -> Result<(), CudaError> {
    let (rows, c) = (dims.rows(), dims.channels);
    assert!(c > 0 && dout.len() == rows * c && tokens.len() == rows && dims.start == 0);
    assert!(dwte.len().is_multiple_of(c) && dwpe.len() >= dims.time * c);
    assert!(rows <= i32::MAX as usize / 2 && c <= i32::MAX as usize);
    assert!(scratch.sorted.iter().all(|sorted| sorted.len() >= rows));
    assert!(scratch.counts.len() >= counts_len(rows));
    assert!(scratch.partials.len() >= partials_len(rows, c));
    if rows == 0 {
        return Ok(());
    }
    let vectors = c.is_multiple_of(16 / size_of::<T>())
        && dout.is_aligned(16)
        && [&*dwte, &*dwpe, &scratch.partials]
            .into_iter()
            .all(|buffer| buffer.is_aligned(16));
    let size = if vectors { 16 / size_of::<T>() } else { 1 };
    let threads = THREADS as u32;

    let mut args = vec![dwpe.arg_mut(), dout.arg()];
    args.extend([dims.batch, dims.time, c].map(|x| Arg::from(x as i32)));
    args.push(i32::from(vectors).into());
    args.extend(dropout_args(dropout));
    let blocks = (dims.time * c).div_ceil(size * THREADS);
    let kernel = T::kernel("embedding_backward_positions");
    launch(stream, &kernel, Grid::linear(blocks, threads), &args)?;

    let sorted = sort(stream, scratch, tokens, dwte.len() / c)?;
    let sorted = &scratch.sorted[sorted];
    let pieces = rows.div_ceil(PIECE);
    let mut args = vec![dwte.arg_mut(), scratch.partials.arg_mut(), dout.arg()];
    args.extend([sorted.arg(), tokens.arg()]);
    args.extend([rows as i32, c as i32, i32::from(vectors)].map(Arg::from));
    args.extend(dropout_args(dropout));
    let kernel = T::kernel("embedding_backward_pieces");
    launch(stream, &kernel, columns(pieces, c / size), &args)?;

    let args = [
        dwte.arg_mut(),
        scratch.partials.arg(),
        sorted.arg(),
        tokens.arg(),
        (rows as i32).into(),
        (c as i32).into(),
    ];
    launch(
        stream,
        "embedding_backward_runs_f32",
        columns(pieces, c),
        &args,
    )
}

/// Sorts the rows by token, stably; the index of the result in `scratch.sorted`.
fn sort(
    stream: &Stream,
    scratch: &mut Scratch,
    tokens: &Buffer<i32>,
    vocab_size: usize,
) -> Result<usize, CudaError> {
    let rows = tokens.len();
    let tiles = rows.div_ceil(TILE);
    let [rows, tiles_arg] = [rows, tiles].map(|x| Arg::from(x as i32));
    let bits = usize::BITS - vocab_size.saturating_sub(1).leading_zeros();
    let passes = bits.div_ceil(DIGIT_BITS).max(1);
    for pass in 0..passes {
        let shift = Arg::from((pass * DIGIT_BITS) as i32);
        let to = pass as usize % 2;
        let order = match pass {
            0 => Arg::null(),
            _ => scratch.sorted[1 - to].arg(),
        };
        let args = [
            scratch.counts.arg_mut(),
            order.clone(),
            tokens.arg(),
            rows.clone(),
            tiles_arg.clone(),
            shift.clone(),
        ];
        let grid = Grid::linear(tiles, THREADS as u32);
        launch(stream, "embedding_sort_count_i32", grid, &args)?;
        let args = [scratch.counts.arg_mut(), ((DIGITS * tiles) as i32).into()];
        let grid = Grid::linear(1, THREADS as u32);
        launch(stream, "embedding_sort_scan_i32", grid, &args)?;
        let args = [
            scratch.sorted[to].arg_mut(),
            order,
            tokens.arg(),
            scratch.counts.arg(),
            rows.clone(),
            tiles_arg.clone(),
            shift,
        ];
        launch(
            stream,
            "embedding_sort_place_i32",
            Grid::linear(tiles, 32),
            &args,
        )?;
    }
    Ok((passes as usize + 1) % 2)
}

/// A block for each piece and each 256 threads of columns.
fn columns(pieces: usize, threads: usize) -> Grid {
    let blocks = threads.div_ceil(THREADS);
    Grid {
        grid: [pieces as u32, blocks as u32, 1],
        block: [THREADS.min(threads.next_multiple_of(32)) as u32, 1, 1],
        shared_bytes: 0,
    }
}

fn dropout_args(dropout: DropoutAt<'_>) -> [Arg; 6] {
    dropout.map_or_else(Dropout::none, |(dropout, at)| dropout.args(at))
}

fn launch(stream: &Stream, kernel: &str, grid: Grid, args: &[Arg]) -> Result<(), CudaError> {
    #[expect(unsafe_code, reason = "the launch of the kernels")]
    // SAFETY: the callers have checked every length; a token is below the vocabulary's size by the
    // caller's word, and the data that tokens come from was checked when it was opened.
    unsafe {
        stream.launch(kernel, grid, args)
    }
}

impl Dims {
    fn rows(self) -> usize {
        self.batch * self.time
    }

    fn check<T: Float>(self, out: usize, tokens: &Buffer<i32>, tables: Tables<'_, T>) {
        let c = self.channels;
        assert!(c > 0 && self.time > 0 && out == self.rows() * c && tokens.len() == self.rows());
        assert!(tables.wpe.len() >= (self.start + self.time) * c);
        assert!(tables.wte.len().is_multiple_of(c) && tables.wte.len() >= c);
        assert!(self.rows() <= i32::MAX as usize && c <= i32::MAX as usize);
    }

    fn args(self) -> [Arg; 4] {
        [self.rows(), self.time, self.channels, self.start].map(|x| (x as i32).into())
    }
}
