//! AdamW on a device. Called by engines that run there, once a step, after the step controller has
//! prepared the update: learning rate, clipping and bias corrections come from its state.

use half::bf16;

use crate::cuda::{Arg, Buffer, CudaError, Float, Grid, Stream};
use crate::philox::Philox;

const THREADS: u32 = 256;
/// Blocks beyond which a thread takes more than one vector.
const BLOCKS_MAX: usize = 65_536;

/// What stays the same over a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Constants {
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    /// Parameters that are decayed: the first ones.
    pub decayed: usize,
}

/// The moments and the gradients of n parameters.
#[derive(Debug)]
pub struct Gradients<'a> {
    pub exp_avg: &'a mut Buffer<f32>,    // (n)
    pub exp_avg_sq: &'a mut Buffer<f32>, // (n)
    pub gradients: &'a Buffer<f32>,      // (n)
}

/// Updates fp32 parameters.
pub fn step(
    stream: &Stream,
    parameters: &mut Buffer<f32>, // (n)
    gradients: &mut Gradients<'_>,
    state: &Buffer<u32>,
    constants: &Constants,
) -> Result<(), CudaError> {
    let n = parameters.len();
    let mut args = vec![parameters.arg_mut()];
    args.extend(common_args(gradients, state, constants, n));
    launch(stream, "adamw_step_f32", n, 4, &args)
}

/// Updates fp32 master weights and writes their copy in 16 bits.
pub fn step_with_copy<T: Float>(
    stream: &Stream,
    parameters: &mut Buffer<f32>, // (n)
    copy: &mut Buffer<T>,         // (n)
    gradients: &mut Gradients<'_>,
    state: &Buffer<u32>,
    constants: &Constants,
) -> Result<(), CudaError> {
    let n = parameters.len();
    assert!(copy.len() == n && size_of::<T>() == 2);
    let mut args = vec![parameters.arg_mut(), copy.arg_mut()];
    args.extend(common_args(gradients, state, constants, n));
    launch(stream, &T::kernel("adamw_step"), n, 8, &args)
}

/// Updates bf16 parameters that have no fp32 master: each result is rounded up or down at random,
/// so that its mean is right and steps below half a unit in the last place are not lost.
pub fn step_stochastic(
    stream: &Stream,
    parameters: &mut Buffer<bf16>, // (n)
    gradients: &mut Gradients<'_>,
    state: &Buffer<u32>,
    constants: &Constants,
    philox: &Philox,
) -> Result<(), CudaError> {
    let n = parameters.len();
    let mut args = vec![parameters.arg_mut()];
    args.extend(common_args(gradients, state, constants, n));
    args.extend(philox.key().map(Arg::from));
    launch(stream, "adamw_step_stochastic_bf16", n, 8, &args)
}

fn common_args(
    gradients: &mut Gradients<'_>,
    state: &Buffer<u32>,
    constants: &Constants,
    n: usize,
) -> [Arg; 10] {
    let Gradients {
        exp_avg,
        exp_avg_sq,
        gradients,
    } = gradients;
    assert!(exp_avg.len() == n && exp_avg_sq.len() == n && gradients.len() == n);
    assert!(constants.decayed <= n);
    [
        exp_avg.arg_mut(),
        exp_avg_sq.arg_mut(),
        gradients.arg(),
        state.arg(),
        (n as u64).into(),
        (constants.decayed as u64).into(),
        ((1.0 - constants.beta1) as f32).into(),
        (constants.beta2 as f32).into(),
        ((1.0 - constants.beta2) as f32).into(),
        (constants.eps as f32).into(),
    ]
}

/// `vector`: parameters of a thread.
fn launch(
    stream: &Stream,
    kernel: &str,
    n: usize,
    vector: usize,
    args: &[Arg],
) -> Result<(), CudaError> {
    if n == 0 {
        return Ok(());
    }
    let blocks = n.div_ceil(vector * THREADS as usize).min(BLOCKS_MAX);
    #[expect(unsafe_code, reason = "the launch of the kernels")]
    // SAFETY: the kernels touch n elements of buffers of n elements (asserted above), and the
    // state's words.
    unsafe {
        stream.launch(kernel, Grid::linear(blocks, THREADS), args)
    }
}
