//! What the engine plans on a device: a step, an evaluation, a prompt, and the memory that they
//! take. Asked by the engine, and by those who want to know before there is one.

use half::{bf16, f16};
use kernels::attention;
use kernels::cuda::{Device, Properties};

use super::autotune::Selection;
use super::gpu;
use super::memory::{self, Precision, padded_vocab_size};
use crate::config::Config;
use crate::engine::plan::{Dtype, Plan, PlanRequest, Target, Together};
use crate::engine::{Memory, Recompute, Shape};
use crate::error::Result;
use crate::model::ModelConfig;

/// Bytes that buffers of the arena begin at a multiple of.
const ALIGNMENT: usize = 256;
/// Logits beyond this many elements are computed in chunks of rows: 1 GiB in 16 bits.
const LOGITS_ELEMENTS_MAX: usize = 1 << 29;
pub(super) fn attention_dims(
    model: &ModelConfig,
    batch_size: usize,
    block_size: usize,
) -> attention::Dims {
    attention::Dims {
        batch: batch_size,
        time: block_size,
        heads: model.n_head,
        head_size: model.n_embd / model.n_head,
    }
}

/// The plans of a step, of an evaluation and of a prompt.
pub(super) fn plans<T: Precision>(model: &ModelConfig, dropout: bool, shape: Shape) -> [Plan; 3] {
    requests::<T>(model, dropout, shape).map(|request| request.build())
}

/// An evaluation's `count` batches, as many in a pass as fit the arena of these plans.
pub(super) fn together<T: Precision>(
    plans: [&Plan; 3],
    shape: Shape,
    count: u64,
) -> Option<Together> {
    let [training, ..] = plans;
    let arena_bytes = plans.map(|plan| plan.arena_bytes).into_iter().max();
    let [_, evaluation, _] = requests::<T>(&training.model, false, shape);
    evaluation.together(count, arena_bytes.unwrap_or(0))
}

fn requests<T: Precision>(
    model: &ModelConfig,
    dropout: bool,
    shape: Shape,
) -> [PlanRequest<'_>; 3] {
    let dims = attention_dims(model, shape.batch_size, shape.block_size);
    let target = Target {
        dtype: T::DTYPE,
        alignment: ALIGNMENT,
        logits_stride: padded_vocab_size(model),
        logits_elements_max: LOGITS_ELEMENTS_MAX,
        attention_scratch: attention::cuda::scratch_len(dims),
    };
    let training = PlanRequest {
        model,
        batch_size: shape.batch_size,
        block_size: shape.block_size,
        backward: true,
        dropout,
        recompute: shape.recompute,
        losses: true,
        target,
    };
    let evaluation = PlanRequest {
        backward: false,
        dropout: false,
        recompute: Recompute::None,
        ..training.clone()
    };
    let generation = PlanRequest {
        batch_size: 1,
        block_size: model.block_size,
        losses: false,
        ..evaluation.clone()
    };
    [training, evaluation, generation]
}

/// A function of a run's shape.
type OfShape<'a, R> = Box<dyn Fn(Shape) -> R + 'a>;

/// What a run of any shape takes on a device in the precision that the config asks for, and its
/// step's plan.
///
/// # Errors
/// [`Error::Config`] where the device does not have the precision, [`Error::Gpu`] where it fails.
pub(in crate::engine) fn needs<'a>(
    device: &Device,
    config: &Config,
    model: &'a ModelConfig,
    dropout: bool,
) -> Result<(OfShape<'a, Memory>, OfShape<'a, Plan>)> {
    fn of<'a, T: Precision>(
        properties: Properties,
        model: &'a ModelConfig,
        dropout: bool,
        library: bool,
    ) -> (OfShape<'a, Memory>, OfShape<'a, Plan>) {
        let plan = move |shape| {
            let [training, ..] = plans::<T>(model, dropout, shape);
            training
        };
        let needed = move |shape| memory::<T>(model, dropout, shape, &properties, library);
        (Box::new(needed), Box::new(plan))
    }
    // Whether it is there is not known yet.
    let library = Selection::of(config).wants_library(device)?;
    let properties = device.properties().clone();
    Ok(match gpu::precision(&properties, &config.dtype)? {
        Dtype::F32 => of::<f32>(properties, model, dropout, library),
        Dtype::BF16 => of::<bf16>(properties, model, dropout, library),
        Dtype::F16 => of::<f16>(properties, model, dropout, library),
    })
}

/// What a run of this shape takes on a device.
pub(in crate::engine) fn memory<T: Precision>(
    model: &ModelConfig,
    dropout: bool,
    shape: Shape,
    properties: &Properties,
    library: bool,
) -> Memory {
    let plans = plans::<T>(model, dropout, shape);
    memory::memory::<T>(
        &plans.each_ref(),
        &memory::layout(model),
        properties,
        shape.recompute,
        library,
    )
}
