//! Who computes each product of a model: the kernels of this room, or cuBLASLt with as much of
//! what follows in its epilogue as pays. Called by engines, which choose once, before they record
//! anything, and then call the products as they would call this room.

mod choose;

use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::Arc;

pub use self::choose::{Measured, Pick};
use super::{Dims, Form, Write};
use crate::cuda::cublaslt::{
    Algorithm, Compute, Epilogue, Library, Operands, Product, WORKSPACE_ALIGNMENT,
};
use crate::cuda::{Arg, Buffer, CudaError, Device, Float, Grid, Stream};
use crate::gelu;

/// One of a layer's products with what follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// As [`super::forward`].
    Forward { bias: bool, residual: bool },
    /// As [`super::forward_gelu`].
    ForwardGelu { form: Form, bias: bool, pre: bool },
    /// As [`super::backward_input`], `=`.
    BackwardInput,
    /// As [`super::backward_input_gelu`].
    BackwardInputGelu { form: Form },
    /// As [`super::backward_weight`], `+=`, and [`super::backward_bias`].
    BackwardWeight { bias: bool },
}

/// A product of these sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Task {
    pub kind: Kind,
    pub dims: Dims,
}

/// How a task is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By the kernels of this room.
    Ours,
    /// By cuBLASLt.
    Library {
        /// All that follows the product is in its epilogue; otherwise GELU and the bias's gradient
        /// are kernels of their own.
        fused: bool,
        algorithm: Algorithm,
    },
}

/// Bytes of each of the two workspaces of cuBLASLt: what NVIDIA recommends for Hopper, and enough
/// for the algorithms of older GPUs that cut their sums.
fn workspace_bytes(compute_capability: (u32, u32)) -> usize {
    if compute_capability >= (9, 0) {
        32 << 20
    } else {
        8 << 20
    }
}

/// What both workspaces take of the device's memory.
pub fn allocated_bytes(compute_capability: (u32, u32)) -> usize {
    2 * (workspace_bytes(compute_capability) + WORKSPACE_ALIGNMENT as usize)
}

/// The products of a model of type T, and who computes each.
#[derive(Debug)]
pub struct Products<T> {
    library: Option<Arc<Library>>,
    compute: Compute,
    /// Tasks that are not here are done by the kernels of this room.
    ways: HashMap<Task, Way>,
    /// Of weights' gradients, which may run beside the rest, and of the rest; each as long as
    /// [`workspace_bytes`], or empty without the library.
    workspaces: [Buffer<u8>; 2],
    /// What operands begin at a multiple of when a way is looked for.
    alignment: u32,
    element: PhantomData<T>,
}

impl Task {
    /// A word for it, the same for the same task: a key in a file, and what people read.
    pub fn name(&self) -> String {
        let word = |has: bool, word: &'static str| if has { word } else { "" };
        let form = |form| match form {
            Form::Erf => " gelu",
            Form::Tanh => " gelu_tanh",
        };
        let what = match self.kind {
            Kind::Forward { bias, residual } => format!(
                "forward{}{}",
                word(bias, " bias"),
                word(residual, " residual")
            ),
            Kind::ForwardGelu { form: f, bias, pre } => format!(
                "forward{}{}{}",
                word(bias, " bias"),
                form(f),
                word(pre, " pre")
            ),
            Kind::BackwardInput => "backward input".to_owned(),
            Kind::BackwardInputGelu { form: f } => format!("backward input{}", form(f)),
            Kind::BackwardWeight { bias } => format!("backward weight{}", word(bias, " bias")),
        };
        let Dims { m, k, n } = self.dims;
        format!("{what} m={m} k={k} n={n}")
    }
}

impl<T: Float> Products<T> {
    /// All by the kernels of this room, until something else is chosen. `tf32`: the library may
    /// round factors of fp32 to TF32.
    pub fn new(
        device: &Device,
        library: Option<Arc<Library>>,
        tf32: bool,
    ) -> Result<Self, CudaError> {
        let bytes = match &library {
            Some(_) => workspace_bytes(device.properties().compute_capability),
            None => 0,
        };
        Ok(Self {
            library,
            compute: if tf32 { Compute::Tf32 } else { Compute::F32 },
            ways: HashMap::new(),
            workspaces: [workspace(device, bytes)?, workspace(device, bytes)?],
            alignment: device.alignment(),
            element: PhantomData,
        })
    }

    pub fn library(&self) -> Option<&Arc<Library>> {
        self.library.as_ref()
    }

    /// Whether factors of fp32 are rounded to TF32 where the library computes.
    pub fn uses_tf32(&self) -> bool {
        self.compute == Compute::Tf32 && self.library.is_some()
    }

    /// How a task is done.
    pub fn way(&self, task: &Task) -> Way {
        self.ways.get(task).copied().unwrap_or(Way::Ours)
    }

    /// Has a task done this way from now on, if that can be: whether it can.
    ///
    /// # Errors
    ///
    /// Where the library fails.
    pub fn set(&mut self, task: Task, way: Way) -> Result<bool, CudaError> {
        if let Way::Library { fused, algorithm } = &way {
            let (Some(library), Some(product)) = (&self.library, self.product(&task, *fused))
            else {
                return Ok(false);
            };
            let bytes = self.workspaces[0].len();
            let takes = if writes_f32(&task) {
                library.takes::<T, f32>(&product, algorithm, bytes)?
            } else {
                library.takes::<T, T>(&product, algorithm, bytes)?
            };
            if !takes {
                return Ok(false);
            }
        }
        self.ways.insert(task, way);
        Ok(true)
    }

    /// At most `most` of the library's ways with all that follows in the epilogue, and as many
    /// without, where that differs; the first of each is the library's favourite.
    ///
    /// # Errors
    ///
    /// Where the library fails.
    pub fn library_ways(&self, task: &Task, most: usize) -> Result<Vec<Way>, CudaError> {
        let Some(library) = &self.library else {
            return Ok(Vec::new());
        };
        let mut ways = Vec::new();
        for fused in [true, false] {
            let Some(product) = self.product(task, fused) else {
                continue;
            };
            let bytes = self.workspaces[0].len();
            let algorithms = if writes_f32(task) {
                library.algorithms::<T, f32>(&product, bytes, most)?
            } else {
                library.algorithms::<T, T>(&product, bytes, most)?
            };
            let way = |algorithm| Way::Library { fused, algorithm };
            ways.extend(algorithms.into_iter().map(way));
        }
        Ok(ways)
    }

    /// [`super::forward`].
    #[expect(clippy::too_many_arguments, reason = "the operands of the operation")]
    pub fn forward(
        &self,
        stream: &Stream,
        out: &mut Buffer<T>,
        x: &Buffer<T>,
        weight: &Buffer<T>,
        bias: Option<&Buffer<T>>,
        residual: Option<&Buffer<T>>,
        dims: Dims,
    ) -> Result<(), CudaError> {
        let kind = Kind::Forward {
            bias: bias.is_some(),
            residual: residual.is_some(),
        };
        let operands = [Some(&*out), Some(x), Some(weight), bias, residual];
        let Some(way) = self.chosen(Task { kind, dims }, &operands) else {
            return super::forward(stream, out, x, weight, bias, residual, dims);
        };
        let operands = Operands {
            a: weight,
            b: x,
            c: residual,
            d: out,
            bias,
            aux: None,
            workspace: &self.workspaces[1],
        };
        way.run(stream, &operands)
    }

    /// [`super::forward_gelu`].
    #[expect(clippy::too_many_arguments, reason = "the operands of two operations")]
    pub fn forward_gelu(
        &self,
        stream: &Stream,
        form: Form,
        pre: Option<&mut Buffer<T>>,
        out: &mut Buffer<T>,
        x: &Buffer<T>,
        weight: &Buffer<T>,
        bias: Option<&Buffer<T>>,
        dims: Dims,
    ) -> Result<(), CudaError> {
        let kind = Kind::ForwardGelu {
            form,
            bias: bias.is_some(),
            pre: pre.is_some(),
        };
        let operands = [Some(&*out), pre.as_deref(), Some(x), Some(weight), bias];
        let Some(way) = self.chosen(Task { kind, dims }, &operands) else {
            return super::forward_gelu(stream, form, pre, out, x, weight, bias, dims);
        };
        // Without a place of its own GELU's argument lies where the result will.
        let argument = pre.as_deref().unwrap_or(out).clone();
        let operands = Operands {
            a: weight,
            b: x,
            c: None,
            d: if way.fused { out } else { &argument },
            bias,
            aux: pre.as_deref().filter(|_| way.fused),
            workspace: &self.workspaces[1],
        };
        way.run(stream, &operands)?;
        match form {
            _ if way.fused => Ok(()),
            Form::Erf => gelu::cuda::forward(stream, out, &argument),
            Form::Tanh => gelu::cuda::forward_tanh(stream, out, &argument),
        }
    }

    /// [`super::backward_input`], `=`.
    pub fn backward_input(
        &self,
        stream: &Stream,
        dx: &mut Buffer<T>,
        dout: &Buffer<T>,
        weight: &Buffer<T>,
        dims: Dims,
    ) -> Result<(), CudaError> {
        let kind = Kind::BackwardInput;
        let operands = [Some(&*dx), Some(dout), Some(weight)];
        let Some(way) = self.chosen(Task { kind, dims }, &operands) else {
            return super::backward_input(stream, dx, dout, weight, Write::SET, dims);
        };
        let operands = Operands {
            a: weight,
            b: dout,
            c: None,
            d: dx,
            bias: None,
            aux: None,
            workspace: &self.workspaces[1],
        };
        way.run(stream, &operands)
    }

    /// [`super::backward_input_gelu`].
    #[expect(clippy::too_many_arguments, reason = "the operands of two operations")]
    pub fn backward_input_gelu(
        &self,
        stream: &Stream,
        form: Form,
        dpre: &mut Buffer<T>,
        dout: &Buffer<T>,
        weight: &Buffer<T>,
        pre: &Buffer<T>,
        dims: Dims,
    ) -> Result<(), CudaError> {
        let kind = Kind::BackwardInputGelu { form };
        let operands = [Some(&*dpre), Some(dout), Some(weight), Some(pre)];
        let Some(way) = self.chosen(Task { kind, dims }, &operands) else {
            return super::backward_input_gelu(stream, form, dpre, dout, weight, pre, dims);
        };
        let operands = Operands {
            a: weight,
            b: dout,
            c: None,
            d: dpre,
            bias: None,
            aux: way.fused.then_some(pre),
            workspace: &self.workspaces[1],
        };
        way.run(stream, &operands)?;
        match form {
            _ if way.fused => Ok(()),
            Form::Erf => gelu::cuda::backward(stream, dpre, pre),
            Form::Tanh => gelu::cuda::backward_tanh(stream, dpre, pre),
        }
    }

    /// [`super::backward_weight`], `+=`, and [`super::backward_bias`], `+=`, where there is a bias.
    #[expect(clippy::too_many_arguments, reason = "the operands of two operations")]
    pub fn backward_weight(
        &self,
        stream: &Stream,
        dweight: &mut Buffer<f32>,
        dbias: Option<&mut Buffer<f32>>,
        dout: &Buffer<T>,
        x: &Buffer<T>,
        scratch: &mut Buffer<f32>,
        dims: Dims,
    ) -> Result<(), CudaError> {
        let kind = Kind::BackwardWeight {
            bias: dbias.is_some(),
        };
        let mut way = self.chosen(Task { kind, dims }, &[Some(dout), Some(x)]);
        if !self.is_aligned(dweight) {
            way = None;
        }
        let fused = way.as_ref().is_some_and(|way| way.fused);
        let sums = (fused && dbias.is_some()).then(|| scratch.slice(0..dims.n));
        match way {
            None => super::backward_weight(stream, dweight, dout, x, scratch, Write::ADD, dims)?,
            Some(way) => {
                let operands = Operands {
                    a: x,
                    b: dout,
                    c: Some(&*dweight),
                    d: &*dweight,
                    bias: sums.as_ref(),
                    aux: None,
                    workspace: &self.workspaces[0],
                };
                way.run(stream, &operands)?;
            }
        }
        match (dbias, sums) {
            (None, _) => Ok(()),
            (Some(dbias), Some(sums)) => add_sums(stream, dbias, &sums),
            (Some(dbias), None) => super::backward_bias(stream, dbias, dout, scratch, true, dims),
        }
    }

    /// The library's way of a task on these operands; `None` where it is done here.
    fn chosen(&self, task: Task, operands: &[Option<&Buffer<T>>]) -> Option<Chosen<'_>> {
        let Some(Way::Library { fused, algorithm }) = self.ways.get(&task) else {
            return None;
        };
        let mut operands = operands.iter().flatten();
        if !operands.all(|operand| self.is_aligned(operand)) {
            return None;
        }
        Some(Chosen {
            library: self.library.as_ref()?,
            product: self.product(&task, *fused)?,
            algorithm,
            fused: *fused,
        })
    }

    /// Whether the operand begins where the ways were looked for.
    fn is_aligned<O: Float>(&self, operand: &Buffer<O>) -> bool {
        operand.is_aligned(self.alignment.into())
    }

    /// The library's product of a task. Row by row, out = x · weightᵀ; column by column, as the
    /// library sees the same memory, outᵀ = weight · xᵀ, with weightᵀ and xᵀ at hand. `None` where
    /// nothing is left out of the epilogue, or cannot be in one.
    fn product(&self, task: &Task, fused: bool) -> Option<Product> {
        let Dims { m, k, n } = task.dims;
        if m == 0 || k == 0 || n == 0 {
            return None;
        }
        let is_tanh = |form| form == Form::Tanh;
        let plain = |bias: bool| if bias { Epilogue::Bias } else { Epilogue::None };
        // Form::Erf is not what the library calls GELU.
        let (sizes, transposed, epilogue) = match task.kind {
            Kind::Forward { bias, .. } if fused => ((n, m, k), [true, false], plain(bias)),
            Kind::ForwardGelu { form, bias, pre } if !fused || is_tanh(form) => {
                let gelu = Epilogue::Gelu { bias, aux: pre };
                let epilogue = if fused { gelu } else { plain(bias) };
                ((n, m, k), [true, false], epilogue)
            }
            Kind::BackwardInput if fused => ((k, m, n), [false, false], Epilogue::None),
            Kind::BackwardInputGelu { form } if !fused || is_tanh(form) => {
                let epilogue = if fused {
                    Epilogue::GeluBackward
                } else {
                    Epilogue::None
                };
                ((k, m, n), [false, false], epilogue)
            }
            Kind::BackwardWeight { bias } if fused || bias => {
                let epilogue = if fused && bias {
                    Epilogue::BiasGradient
                } else {
                    Epilogue::None
                };
                ((k, n, m), [false, true], epilogue)
            }
            _ => return None,
        };
        Some(Product {
            m: sizes.0,
            n: sizes.1,
            k: sizes.2,
            transposed,
            compute: self.compute,
            epilogue,
            alignment: self.alignment,
        })
    }
}

/// The library's way of one task.
struct Chosen<'a> {
    library: &'a Arc<Library>,
    product: Product,
    algorithm: &'a Algorithm,
    fused: bool,
}

impl Chosen<'_> {
    fn run<T: Float, O: Float>(
        &self,
        stream: &Stream,
        operands: &Operands<'_, T, O>,
    ) -> Result<(), CudaError> {
        stream.multiply(self.library, &self.product, self.algorithm, operands)
    }
}

/// Gradients of weights are in fp32.
fn writes_f32(task: &Task) -> bool {
    matches!(task.kind, Kind::BackwardWeight { .. })
}

fn workspace(device: &Device, bytes: usize) -> Result<Buffer<u8>, CudaError> {
    let step = WORKSPACE_ALIGNMENT as usize;
    let whole = device.alloc::<u8>(if bytes == 0 { 0 } else { bytes + step })?;
    let mut parts = (0..step).map(|start| whole.slice(start..(start + bytes).min(whole.len())));
    let aligned = parts.find(|part| bytes == 0 || part.is_aligned(WORKSPACE_ALIGNMENT));
    Ok(aligned.expect("one in as many bytes is a multiple"))
}

/// dbias (N) += sums (N).
#[expect(unsafe_code, reason = "the launch of a kernel")]
fn add_sums(stream: &Stream, dbias: &mut Buffer<f32>, sums: &Buffer<f32>) -> Result<(), CudaError> {
    let n = dbias.len();
    assert_eq!(sums.len(), n);
    let args: [Arg; 5] = [
        dbias.arg_mut(),
        sums.arg(),
        super::to_i32(n).into(),
        1.into(),
        1.into(),
    ];
    let grid = Grid::linear(n.div_ceil(32), super::THREADS);
    // SAFETY: the kernel reads n elements for its one part and writes n.
    unsafe { stream.launch("matmul_sum_bias_f32", grid, &args) }
}
