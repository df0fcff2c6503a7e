//! The linear layer on the CPU: each function states one product and what follows it.
//!
//! The engine's plan calls these, from inside the thread pool if it can (a call from outside wakes
//! a worker first). `tile.rs` computes.

use rayon::prelude::*;

use super::tile::{Block, Epilogue, Nothing, Output, Product, View};
use super::{Dims, tile};
use crate::gelu::{Form, cpu as element};

/// Rows of dout that are added up by one task.
const SUM_ROWS: usize = 128;

/// Whether products go through AMX's tiles of bf16: the processor has them, and the system lets
/// this process use them.
pub fn has_amx() -> bool {
    #[cfg(target_arch = "x86_64")]
    return super::amx::is_there();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Most bytes that the products of a layer keep for packed operands and parts of sums.
pub fn workspace_max(threads: usize) -> usize {
    tile::workspace_max(threads)
}

/// out (M, N) = x (M, K) · weight (N, K)ᵀ (+ bias (N)) (+ residual (M, N)).
pub fn forward(
    out: &mut [f32],
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    residual: Option<&[f32]>,
    dims: Dims,
) {
    let Dims { m, k, n } = dims;
    check("x", x, m, k);
    check("weight", weight, n, k);
    bias.inspect(|bias| check("bias", bias, 1, n));
    residual.inspect(|residual| check("residual", residual, m, n));
    let product = forward_product(x, weight, dims);
    match (bias, residual) {
        (None, None) => product.run(out, &Nothing),
        (bias, residual) => product.run(out, &Add { bias, residual }),
    }
}

/// pre (M, N) = x (M, K) · weight (N, K)ᵀ (+ bias (N)), out (M, N) = gelu(pre).
pub fn forward_gelu(
    form: Form,
    pre: &mut [f32],
    out: &mut [f32],
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    dims: Dims,
) {
    let Dims { m, n, .. } = dims;
    bias.inspect(|bias| check("bias", bias, 1, n));
    check("out", out, m, n);
    let epilogue = Gelu {
        form,
        bias,
        out: Output::new(out),
    };
    forward_product(x, weight, dims).run(pre, &epilogue);
}

/// out (M, N) = gelu(x (M, K) · weight (N, K)ᵀ (+ bias (N))), where no backward follows.
pub fn forward_gelu_alone(
    form: Form,
    out: &mut [f32],
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    dims: Dims,
) {
    bias.inspect(|bias| check("bias", bias, 1, dims.n));
    forward_product(x, weight, dims).run(out, &GeluAlone { form, bias });
}

/// dx (M, K) = dout (M, N) · weight (N, K), or `+=` if `accumulate`.
pub fn backward_input(dx: &mut [f32], dout: &[f32], weight: &[f32], accumulate: bool, dims: Dims) {
    backward_input_product(dout, weight, accumulate, dims).run(dx, &Nothing);
}

/// dpre (M, K) = (dout (M, N) · weight (N, K)) ⊙ gelu'(pre (M, K)): backward of a layer whose input
/// was gelu(pre), to `pre`.
pub fn backward_input_gelu(
    form: Form,
    dpre: &mut [f32],
    dout: &[f32],
    weight: &[f32],
    pre: &[f32],
    dims: Dims,
) {
    let Dims { m, k, .. } = dims;
    check("pre", pre, m, k);
    backward_input_product(dout, weight, false, dims).run(dpre, &GeluBackward { form, pre });
}

/// dweight (N, K) += dout (M, N)ᵀ · x (M, K), and dbias (N) += the column sums of dout.
pub fn backward_weight(
    dweight: &mut [f32],
    dbias: Option<&mut [f32]>,
    dout: &[f32],
    x: &[f32],
    dims: Dims,
) {
    let Dims { m, k, n } = dims;
    check("dout", dout, m, n);
    check("x", x, m, k);
    let product = Product {
        a: View::transposed(dout, n),
        b: View::rows(x, k),
        rows: n,
        cols: k,
        depth: m,
        accumulate: true,
    };
    product.run(dweight, &Nothing);
    if let Some(dbias) = dbias {
        check("dbias", dbias, 1, n);
        let mut partials = vec![0.0; m.div_ceil(SUM_ROWS) * n];
        partials
            .par_chunks_exact_mut(n)
            .zip(dout.par_chunks(SUM_ROWS * n))
            .for_each(|(sums, rows)| add_rows(sums, rows));
        add_rows(dbias, &partials);
    }
}

fn forward_product<'a>(x: &'a [f32], weight: &'a [f32], dims: Dims) -> Product<'a> {
    let Dims { m, k, n } = dims;
    check("x", x, m, k);
    check("weight", weight, n, k);
    Product {
        a: View::rows(x, k),
        b: View::transposed(weight, k),
        rows: m,
        cols: n,
        depth: k,
        accumulate: false,
    }
}

fn backward_input_product<'a>(
    dout: &'a [f32],
    weight: &'a [f32],
    accumulate: bool,
    dims: Dims,
) -> Product<'a> {
    let Dims { m, k, n } = dims;
    check("dout", dout, m, n);
    check("weight", weight, n, k);
    Product {
        a: View::rows(dout, n),
        b: View::rows(weight, k),
        rows: m,
        cols: k,
        depth: n,
        accumulate,
    }
}

#[track_caller]
fn check(name: &str, data: &[f32], rows: usize, cols: usize) {
    assert_eq!(data.len(), rows * cols, "{name}: expected {rows} x {cols}");
}

/// Adds a bias (N) and a residual (M, N).
struct Add<'a> {
    bias: Option<&'a [f32]>,
    residual: Option<&'a [f32]>,
}

impl Epilogue for Add<'_> {
    const IS_COSTLY: bool = false;

    fn apply(&self, mut block: Block<'_>) {
        add_to(&mut block, self.bias, self.residual);
    }

    #[cfg(target_arch = "x86_64")]
    fn addend(&self) -> Option<&[f32]> {
        self.residual
    }

    #[cfg(target_arch = "x86_64")]
    fn apply_after_addend(&self, mut block: Block<'_>) {
        if self.bias.is_some() {
            add_to(&mut block, self.bias, None);
        }
    }
}

/// Adds a bias (N) and writes the GELU to `out` (M, N).
struct Gelu<'a> {
    form: Form,
    bias: Option<&'a [f32]>,
    out: Output<'a>,
}

impl Epilogue for Gelu<'_> {
    const IS_COSTLY: bool = true;

    fn apply(&self, mut block: Block<'_>) {
        if self.bias.is_some() {
            add_to(&mut block, self.bias, None);
        }
        match self.form {
            Form::Erf => gelu(&mut block, &self.out),
            Form::Tanh => gelu_tanh(&mut block, &self.out),
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn beside(&self) -> *const f32 {
        self.out.pointer(0)
    }
}

/// Adds a bias (N) and takes the GELU.
struct GeluAlone<'a> {
    form: Form,
    bias: Option<&'a [f32]>,
}

impl Epilogue for GeluAlone<'_> {
    const IS_COSTLY: bool = true;

    fn apply(&self, mut block: Block<'_>) {
        if self.bias.is_some() {
            add_to(&mut block, self.bias, None);
        }
        match self.form {
            Form::Erf => gelu_alone(&mut block),
            Form::Tanh => gelu_alone_tanh(&mut block),
        }
    }
}

/// Multiplies by the derivative of GELU at `pre` (M, K).
struct GeluBackward<'a> {
    form: Form,
    pre: &'a [f32],
}

impl Epilogue for GeluBackward<'_> {
    const IS_COSTLY: bool = true;

    fn apply(&self, mut block: Block<'_>) {
        match self.form {
            Form::Erf => gelu_backward(&mut block, self.pre),
            Form::Tanh => gelu_backward_tanh(&mut block, self.pre),
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn beside(&self) -> *const f32 {
        self.pre.as_ptr()
    }
}

// Rows of a block are short: the loops below are over whole registers, which stay whole if the
// compiler sees their length.
const LANES: usize = 16;

#[multiversion::multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512dq+avx512vl",
    "x86_64+avx2+fma"
))]
fn add_to(block: &mut Block, bias: Option<&[f32]>, residual: Option<&[f32]>) {
    for i in 0..block.rows {
        let (start, col) = (block.start(i), block.col);
        let row = block.row(i);
        if let Some(bias) = bias {
            add(row, &bias[col..][..row.len()]);
        }
        if let Some(residual) = residual {
            add(row, &residual[start..][..row.len()]);
        }
    }
}

#[inline(always)]
fn add(row: &mut [f32], other: &[f32]) {
    let (row, row_rest) = row.as_chunks_mut::<LANES>();
    let (other, other_rest) = other.as_chunks::<LANES>();
    for (row, other) in row.iter_mut().zip(other) {
        for (a, b) in row.iter_mut().zip(other) {
            *a += b;
        }
    }
    for (a, b) in row_rest.iter_mut().zip(other_rest) {
        *a += b;
    }
}

/// The loops of one form of GELU: with a second result, in place, and backward.
macro_rules! gelu_loops {
    ($forward:ident, $alone:ident, $backward:ident, $value:path, $derivative:path) => {
        #[multiversion::multiversion(targets(
            "x86_64+avx512f+avx512bw+avx512dq+avx512vl",
            "x86_64+avx2+fma"
        ))]
        fn $forward(block: &mut Block, out: &Output) {
            for i in 0..block.rows {
                let start = block.start(i);
                let x = block.row(i);
                #[expect(unsafe_code, reason = "a second result is written by several tasks")]
                // SAFETY: no two calls of an epilogue share an element, and this buffer has its
                // shape.
                let out = unsafe { out.segment(start, x.len()) };
                let (out, out_rest) = out.as_chunks_mut::<LANES>();
                let (x, x_rest) = x.as_chunks::<LANES>();
                for (out, x) in out.iter_mut().zip(x) {
                    for (out, &x) in out.iter_mut().zip(x) {
                        *out = $value(x);
                    }
                }
                for (out, &x) in out_rest.iter_mut().zip(x_rest) {
                    *out = $value(x);
                }
            }
        }

        #[multiversion::multiversion(targets(
            "x86_64+avx512f+avx512bw+avx512dq+avx512vl",
            "x86_64+avx2+fma"
        ))]
        fn $alone(block: &mut Block) {
            for i in 0..block.rows {
                let (x, rest) = block.row(i).as_chunks_mut::<LANES>();
                for x in x {
                    for x in x {
                        *x = $value(*x);
                    }
                }
                for x in rest {
                    *x = $value(*x);
                }
            }
        }

        #[multiversion::multiversion(targets(
            "x86_64+avx512f+avx512bw+avx512dq+avx512vl",
            "x86_64+avx2+fma"
        ))]
        fn $backward(block: &mut Block, pre: &[f32]) {
            for i in 0..block.rows {
                let start = block.start(i);
                let d = block.row(i);
                let x = &pre[start..][..d.len()];
                let (d, d_rest) = d.as_chunks_mut::<LANES>();
                let (x, x_rest) = x.as_chunks::<LANES>();
                for (d, x) in d.iter_mut().zip(x) {
                    for (d, &x) in d.iter_mut().zip(x) {
                        *d *= $derivative(x);
                    }
                }
                for (d, &x) in d_rest.iter_mut().zip(x_rest) {
                    *d *= $derivative(x);
                }
            }
        }
    };
}

gelu_loops!(
    gelu,
    gelu_alone,
    gelu_backward,
    element::gelu,
    element::derivative
);
gelu_loops!(
    gelu_tanh,
    gelu_alone_tanh,
    gelu_backward_tanh,
    element::gelu_tanh,
    element::derivative_tanh
);

/// sums (N) += the column sums of rows (…, N).
#[multiversion::multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512dq+avx512vl",
    "x86_64+avx2+fma"
))]
fn add_rows(sums: &mut [f32], rows: &[f32]) {
    for row in rows.chunks_exact(sums.len()) {
        for (sum, x) in sums.iter_mut().zip(row) {
            *sum += x;
        }
    }
}
