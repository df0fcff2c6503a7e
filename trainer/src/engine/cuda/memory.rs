//! What the engine keeps on the device besides the arena: parameters in their precisions,
//! gradients, moments, and the scratch memory of the rooms.

use kernels::adamw::cuda as adamw;
use kernels::cuda::{Buffer, CudaError, Device, Float, Properties, Stream};
use kernels::decode::cuda::{self as decode, CacheDims};
use kernels::matmul::cuda::products;
use kernels::{embedding, global_norm, layernorm, matmul};

use crate::engine::plan::{Dtype, Layout, Module, Op, ParameterId, Plan};
use crate::engine::{Hyperparameters, Memory, Recompute};
use crate::model::{ModelConfig, NamedTensor};

/// Elements that every parameter begins at a multiple of: 128 bytes of 16-bit weights.
const ALIGNMENT: usize = 64;
/// Tokens that the vocabulary is padded to a multiple of, so that rows of logits are aligned.
const VOCABULARY_MULTIPLE: usize = 64;

/// A type that activations may have.
pub trait Precision: Float {
    const DTYPE: Dtype;
}

impl Precision for f32 {
    const DTYPE: Dtype = Dtype::F32;
}

impl Precision for half::bf16 {
    const DTYPE: Dtype = Dtype::BF16;
}

impl Precision for half::f16 {
    const DTYPE: Dtype = Dtype::F16;
}

/// Where parameters lie on a device.
pub(super) fn layout(model: &ModelConfig) -> Layout {
    Layout::padded(model, ALIGNMENT, padded_vocab_size(model))
}

pub(super) fn padded_vocab_size(model: &ModelConfig) -> usize {
    model.vocab_size.next_multiple_of(VOCABULARY_MULTIPLE)
}

/// The keys or values of a layer that generation keeps; `None` for models that its kernels do not
/// take, where every token is a prompt.
pub(super) fn cache_dims(model: &ModelConfig) -> Option<CacheDims> {
    let dims = CacheDims {
        heads: model.n_head,
        head_size: model.n_embd / model.n_head,
        block_size: model.block_size,
    };
    decode::is_supported(dims, 4 * model.n_embd).then_some(dims)
}

/// What a decoder takes.
fn decoder_bytes<T: Precision>(model: &ModelConfig) -> usize {
    cache_dims(model).map_or(0, |dims| {
        let caches = 2 * model.n_layer * dims.len();
        let token = 10 * model.n_embd;
        (caches + token) * size_of::<T>()
            + 2 * size_of::<i32>()
            + padded_vocab_size(model) * size_of::<f32>()
    })
}

/// Master weights, their copy that the products read, gradients and moments, each of the layout's
/// elements.
pub(super) struct Parameters<T> {
    pub(super) layout: Layout,
    /// In fp32, which AdamW updates.
    pub(super) masters: Buffer<f32>,
    /// What forward and backward read: the masters themselves where `T` is fp32.
    pub(super) weights: Buffer<T>,
    pub(super) gradients: Buffer<f32>,
    pub(super) exp_avg: Buffer<f32>,
    pub(super) exp_avg_sq: Buffer<f32>,
}

impl<T: Precision> Parameters<T> {
    /// Freshly initialised.
    pub(super) fn new(device: &Device, model: &ModelConfig, seed: u64) -> Result<Self, CudaError> {
        let layout = layout(model);
        let n = layout.elements;
        let masters = device.alloc_zeros(n)?;
        let weights = if T::DTYPE == Dtype::F32 {
            masters.view(0..n * size_of::<f32>())
        } else {
            device.alloc(n)?
        };
        let mut parameters = Self {
            layout,
            masters,
            weights,
            gradients: device.alloc_zeros(n)?,
            exp_avg: device.alloc_zeros(n)?,
            exp_avg_sq: device.alloc_zeros(n)?,
        };
        let initial = model.initialise(seed);
        parameters.set_masters(&initial.iter().collect::<Vec<_>>())?;
        Ok(parameters)
    }

    /// What forward and backward read of a module: weight and bias.
    pub(super) fn module(&self, module: Module) -> (Buffer<T>, Option<Buffer<T>>) {
        (
            self.weight(module.weight),
            module.bias.map(|bias| self.weight(bias)),
        )
    }

    /// Of tokens and of positions.
    pub(super) fn embeddings(&self) -> [Buffer<T>; 2] {
        [0, 1].map(|id| self.weight(ParameterId(id)))
    }

    /// The head's weight: the token embeddings with their padding.
    pub(super) fn padded_wte(&self) -> Buffer<T> {
        self.weights.slice(self.layout.padded_wte.clone())
    }

    fn weight(&self, id: ParameterId) -> Buffer<T> {
        self.weights.slice(self.layout.places[id.0].clone())
    }

    /// Replaces the parameters, which are the layout's.
    pub(super) fn set_masters(&mut self, tensors: &[&NamedTensor]) -> Result<(), CudaError> {
        let flat = flat(&self.layout, tensors);
        self.masters.upload(&flat)?;
        if T::DTYPE != Dtype::F32 {
            let rounded: Vec<T> = flat.iter().map(|&x| T::from_f64(x.into())).collect();
            self.weights.upload(&rounded)?;
        }
        Ok(())
    }

    /// Replaces the moments, which are the layout's.
    pub(super) fn set_moments(
        &mut self,
        exp_avg: &[&NamedTensor],
        exp_avg_sq: &[&NamedTensor],
    ) -> Result<(), CudaError> {
        self.exp_avg.upload(&flat(&self.layout, exp_avg))?;
        self.exp_avg_sq.upload(&flat(&self.layout, exp_avg_sq))
    }

    /// A flat buffer's tensors by name, after all work of the device is done.
    pub(super) fn named(&self, flat: &Buffer<f32>) -> Result<Vec<NamedTensor>, CudaError> {
        Ok(named(&self.layout, &flat.download()?))
    }

    /// Adds AdamW's step on gradients that the controller has judged.
    pub(super) fn step(
        &mut self,
        stream: &Stream,
        state: &Buffer<u32>,
        hyper: &Hyperparameters,
    ) -> Result<(), CudaError> {
        let constants = adamw::Constants {
            beta1: hyper.beta1,
            beta2: hyper.beta2,
            eps: hyper.adam_eps,
            decayed: self.layout.decayed,
        };
        let mut gradients = adamw::Gradients {
            exp_avg: &mut self.exp_avg,
            exp_avg_sq: &mut self.exp_avg_sq,
            gradients: &self.gradients,
        };
        let (masters, weights) = (&mut self.masters, &mut self.weights);
        if T::DTYPE == Dtype::F32 {
            adamw::step(stream, masters, &mut gradients, state, &constants)
        } else {
            adamw::step_with_copy(stream, masters, weights, &mut gradients, state, &constants)
        }
    }
}

/// The tensors that lie in `flat`, of the layout's elements, by name.
pub(super) fn named(layout: &Layout, flat: &[f32]) -> Vec<NamedTensor> {
    let pairs = layout.parameters.iter().zip(&layout.places);
    pairs
        .map(|(parameter, place)| NamedTensor {
            name: parameter.name.clone(),
            shape: parameter.shape.clone(),
            data: flat[place.clone()].to_vec(),
        })
        .collect()
}

fn flat(layout: &Layout, tensors: &[&NamedTensor]) -> Vec<f32> {
    let mut flat = vec![0.0; layout.elements];
    for (tensor, place) in tensors.iter().zip(&layout.places) {
        flat[place.clone()].copy_from_slice(&tensor.data);
    }
    flat
}

/// Memory that a room works in during one operation.
pub(super) struct Workspace {
    pub(super) layernorm: Buffer<f32>,
    /// Of the products for weights, which run beside everything else.
    pub(super) weights: Buffer<f32>,
    pub(super) embedding: embedding::cuda::Scratch,
    /// Partial sums of the gradient's norm.
    pub(super) partials: Buffer<u64>,
    pub(super) nonfinite: Buffer<u32>,
}

/// Elements of each part of the workspace.
struct WorkspaceSizes {
    layernorm: usize,
    weights: usize,
    rows: usize,
    counts: usize,
    embedding_partials: usize,
    norm_partials: usize,
}

impl WorkspaceSizes {
    fn of(plan: &Plan, layout: &Layout, properties: &Properties) -> Self {
        let (rows, c) = (plan.rows(), plan.model.n_embd);
        let products = plan.ops.iter().filter_map(|op| match op {
            Op::LinearBackwardWeight { module, .. } => {
                let shape = &layout.parameters[module.weight.0].shape;
                Some((rows, shape[1], shape[0]))
            }
            Op::HeadBackward { rows, .. } => Some((rows.len(), c, plan.logits_stride)),
            _ => None,
        });
        let weights = products
            .map(|(m, k, n)| matmul::cuda::scratch_len(matmul::Dims { m, k, n }, properties));
        Self {
            layernorm: layernorm::cuda::scratch_len(rows, c),
            weights: weights.max().unwrap_or(0),
            rows,
            counts: embedding::cuda::counts_len(rows),
            embedding_partials: embedding::cuda::partials_len(rows, c),
            norm_partials: global_norm::cuda::partials_len(layout.elements),
        }
    }

    fn bytes(&self) -> usize {
        let words = self.layernorm
            + self.weights
            + 2 * self.rows
            + self.counts
            + self.embedding_partials
            + self.norm_partials;
        words * size_of::<u32>() + self.norm_partials * size_of::<u64>()
    }
}

impl Workspace {
    pub(super) fn new(device: &Device, plan: &Plan, layout: &Layout) -> Result<Self, CudaError> {
        let sizes = WorkspaceSizes::of(plan, layout, device.properties());
        Ok(Self {
            layernorm: device.alloc(sizes.layernorm)?,
            weights: device.alloc(sizes.weights)?,
            embedding: embedding::cuda::Scratch {
                sorted: [device.alloc(sizes.rows)?, device.alloc(sizes.rows)?],
                counts: device.alloc(sizes.counts)?,
                partials: device.alloc(sizes.embedding_partials)?,
            },
            partials: device.alloc(sizes.norm_partials)?,
            nonfinite: device.alloc(sizes.norm_partials)?,
        })
    }
}

/// What a run takes: `plans` share the arena, the first is the one that trains; `library`: cuBLASLt
/// has its workspaces.
pub(super) fn memory<T: Precision>(
    plans: &[&Plan],
    layout: &Layout,
    properties: &Properties,
    recompute: Recompute,
    library: bool,
) -> Memory {
    let copy = if T::DTYPE == Dtype::F32 {
        0
    } else {
        T::DTYPE.bytes()
    };
    let fp32 = (layout.elements * size_of::<f32>()) as u64;
    let arena = plans.iter().map(|plan| plan.arena_bytes).max();
    let mut workspace = WorkspaceSizes::of(plans[0], layout, properties).bytes();
    if library {
        workspace += products::allocated_bytes(properties.compute_capability);
    }
    Memory {
        weights: fp32 + (layout.elements * copy) as u64,
        gradients: fp32,
        moments: 2 * fp32,
        activations: arena.unwrap_or(0) as u64,
        workspace: (workspace + decoder_bytes::<T>(&plans[0].model)) as u64,
        dataset: 0,
        recompute,
    }
}
