//! What a run takes of a card's memory, by the plan that the engine for GPUs computes by, and the
//! batch size that fits. Called by the estimate, in every build: the plan needs no GPU.
//!
//! The arena, the weights, gradients and moments are the engine's own to the byte; the scratch
//! memory of its rooms is bounded from above. A test holds both against the engine.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use super::cards::Card;
use crate::config::Config;
use crate::engine::plan::{Dtype, Layout, Op, Plan, PlanRequest, Target};
use crate::engine::{Memory, Recompute, Shape};
use crate::model::ModelConfig;

/// As the engine places things; see `engine::cuda`.
const PARAMETER_ALIGNMENT: usize = 64;
const BUFFER_ALIGNMENT: usize = 256;
const VOCABULARY_MULTIPLE: usize = 64;
const LOGITS_ELEMENTS_MAX: usize = 1 << 29;

/// What the driver takes for itself, the kernels and their stacks.
const CONTEXT_BYTES: u64 = 600 << 20;
/// What cuBLASLt takes: at most two workspaces of 32 MiB, and its own kernels.
const CUBLASLT_BYTES: u64 = (64 + 128) << 20;
/// Of what the driver offers, as `batch_size=auto` fills a GPU.
const FILLED: f64 = 0.95;

/// Limits of the kernels, as the engine checks them.
pub(super) const CHANNELS_MAX: usize = 4096;
pub(super) const HEAD_SIZE_MAX: usize = 256;

/// The plans of a run by shape, each built once.
pub(super) struct Planner<'a> {
    config: &'a Config,
    model: &'a ModelConfig,
    layout: Layout,
    plans: RefCell<BTreeMap<(usize, &'static str), Rc<Planned>>>,
}

/// What the engine plans for one shape.
pub(super) struct Planned {
    pub(super) training: Plan,
    pub(super) evaluation: Plan,
    arena_bytes: u64,
}

/// How a run fits a card.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Fit {
    pub(super) shape: Shape,
    /// So many batches make up the config's tokens.
    pub(super) accumulation: u64,
    pub(super) memory: Memory,
    /// Whether the config's own batch size is another.
    pub(super) is_adapted: bool,
}

impl<'a> Planner<'a> {
    pub(super) fn new(config: &'a Config, model: &'a ModelConfig) -> Self {
        Self {
            config,
            model,
            layout: Layout::padded(model, PARAMETER_ALIGNMENT, padded_vocab_size(model)),
            plans: RefCell::default(),
        }
    }

    /// Elements of all parameters with their padding.
    pub(super) fn elements(&self) -> usize {
        self.layout.elements
    }

    /// Every plan in 16 bits: both such types take the same.
    pub(super) fn planned(&self, batch_size: usize, recompute: Recompute) -> Rc<Planned> {
        let key = (batch_size, recompute.name());
        if let Some(planned) = self.plans.borrow().get(&key) {
            return Rc::clone(planned);
        }
        let planned = Rc::new(self.plan(batch_size, recompute));
        self.plans.borrow_mut().insert(key, Rc::clone(&planned));
        planned
    }

    fn plan(&self, batch_size: usize, recompute: Recompute) -> Planned {
        let (model, block_size) = (self.model, self.config.block_size);
        let target = |batch_size: usize, block_size: usize| Target {
            dtype: Dtype::BF16,
            alignment: BUFFER_ALIGNMENT,
            logits_stride: padded_vocab_size(model),
            logits_elements_max: LOGITS_ELEMENTS_MAX,
            // A sum for each row of each head.
            attention_scratch: batch_size * model.n_head * block_size,
        };
        let training = PlanRequest {
            model,
            batch_size,
            block_size,
            backward: true,
            dropout: self.config.dropout > 0.0,
            recompute,
            losses: true,
            target: target(batch_size, block_size),
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
        let [training, evaluation, generation] =
            [training, evaluation, generation].map(|request| request.build());
        let arenas = [&training, &evaluation, &generation].map(|plan| plan.arena_bytes);
        let largest = arenas.into_iter().max().unwrap_or(0);
        Planned {
            arena_bytes: largest as u64,
            training,
            evaluation,
        }
    }

    /// What a run of this shape takes on a card, besides the driver's own.
    pub(super) fn memory(
        &self,
        batch_size: usize,
        recompute: Recompute,
        processors: u32,
    ) -> Memory {
        let planned = self.planned(batch_size, recompute);
        let fp32 = (self.layout.elements * size_of::<f32>()) as u64;
        let scratch = self.scratch_words(&planned.training, processors) * size_of::<f32>();
        Memory {
            weights: fp32 + fp32 / 2,
            gradients: fp32,
            moments: 2 * fp32,
            activations: planned.arena_bytes,
            workspace: (scratch + self.decoder_bytes()) as u64,
            dataset: 0,
            recompute,
        }
    }

    /// Words that the rooms work in, at most.
    fn scratch_words(&self, plan: &Plan, processors: u32) -> usize {
        let (rows, c) = (plan.rows(), self.model.n_embd);
        let products = plan.ops.iter().filter_map(|op| match op {
            Op::LinearBackwardWeight { module, .. } => {
                let shape = &self.layout.parameters[module.weight.0].shape;
                Some((rows, shape[1], shape[0]))
            }
            Op::HeadBackward { rows, .. } => Some((rows.len(), c, plan.logits_stride)),
            _ => None,
        });
        let products = products.map(|(m, k, n)| product_scratch(m, k, n, processors));
        let layernorm = 3 * rows.div_ceil(8).min(512) * c;
        let embedding = 2 * rows + 256 * rows.div_ceil(1024) + rows.div_ceil(64) * 2 * c;
        let norm = 3 * 1024;
        products.max().unwrap_or(0) + layernorm + embedding + norm
    }

    /// Keys and values of a sequence that is being generated, a token's activations, its logits.
    fn decoder_bytes(&self) -> usize {
        let model = self.model;
        let caches = 2 * model.n_layer * model.n_embd * model.block_size;
        (caches + 10 * model.n_embd) * 2 + 8 + padded_vocab_size(model) * 4
    }

    /// How the run fits the card: the config's batch size where it does, else what
    /// `batch_size=auto` would choose.
    ///
    /// # Errors
    /// In a line, why it does not.
    pub(super) fn fit(&self, card: &Card) -> Result<Fit, String> {
        let model = self.model;
        let head_size = model.n_embd / model.n_head;
        if !card.is_supported() {
            let (major, minor) = card.compute_capability;
            return Err(format!("no kernels for compute capability {major}.{minor}"));
        }
        if model.n_embd > CHANNELS_MAX || head_size > HEAD_SIZE_MAX {
            return Err(format!(
                "kernels take n_embd to {CHANNELS_MAX}, heads to {HEAD_SIZE_MAX}"
            ));
        }
        let config = self.config;
        let room = Self::room(card);
        let memory = |batch_size, way| self.memory(batch_size, way, card.multiprocessors);
        let fits = |batch_size, way| memory(batch_size, way).total() <= room;
        let sequences = config.batch_size * config.gradient_accumulation_steps as usize;
        let chosen = |batch_size: usize, recompute| Fit {
            shape: Shape {
                batch_size,
                block_size: config.block_size,
                recompute,
            },
            accumulation: (sequences / batch_size) as u64,
            memory: memory(batch_size, recompute),
            is_adapted: batch_size != config.batch_size,
        };
        let ways = ways(config);
        if !config.fit_batch
            && let Some(&way) = ways.iter().find(|&&way| fits(config.batch_size, way))
        {
            return Ok(chosen(config.batch_size, way));
        }
        let largest = |way: Recompute| {
            let mut divisors = (1..=sequences).rev();
            divisors
                .find(|&batch_size| sequences.is_multiple_of(batch_size) && fits(batch_size, way))
        };
        let found = ways.iter().find_map(|&way| Some((largest(way)?, way)));
        found
            .map(|(batch_size, way)| chosen(batch_size, way))
            .ok_or_else(|| {
                let least = ways.last().map_or(0, |&way| memory(1, way).total());
                format!(
                    "needs {:.1} GiB with batch_size=1, has {:.1}",
                    gib(least),
                    gib(room)
                )
            })
    }

    /// Bytes that a run may take on a card.
    pub(super) fn room(card: &Card) -> u64 {
        let offered = card.memory_gib * f64::from(1 << 30);
        (offered * FILLED) as u64 - CONTEXT_BYTES - CUBLASLT_BYTES
    }
}

/// Bytes in GiB.
pub(super) fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

/// What backward may compute again: what the config says, or first nothing.
fn ways(config: &Config) -> Vec<Recompute> {
    match config.recompute.as_str() {
        "none" => vec![Recompute::None],
        "gelu" => vec![Recompute::Gelu],
        "block" => vec![Recompute::Block],
        _ => vec![Recompute::None, Recompute::Gelu, Recompute::Block],
    }
}

fn padded_vocab_size(model: &ModelConfig) -> usize {
    model.vocab_size.next_multiple_of(VOCABULARY_MULTIPLE)
}

/// Words for the partial sums of a weight's gradient (N, K) over M rows, at most: the room cuts
/// the sums where that fills multiprocessors that would idle in the last round of tiles, into up to
/// 16 parts of 256 rows or more, as long as the time gained is more than the parts' own edges and
/// traffic; `kernels::matmul` has the estimate that this bounds.
pub(super) fn product_scratch(m: usize, k: usize, n: usize, processors: u32) -> usize {
    /// A tile's side, and the terms of a sum that its start and end take as long as.
    const SIDE: usize = 128;
    const EDGES: f64 = 128.0;
    /// The same for writing and reading an element of a part: 8 bytes at 15/1024 a term.
    const TRAFFIC: f64 = 8.0 * 1024.0 / 15.0;
    let processors = processors as usize;
    let rounds = (n.div_ceil(SIDE) * k.div_ceil(SIDE)).div_ceil(processors);
    let waste = (rounds * processors * SIDE * SIDE) as f64 / (n * k) as f64;
    let gained = waste * (m as f64 + EDGES) - m as f64;
    let useful = (gained / (EDGES + TRAFFIC)) as usize;
    let parts = (m / 256).min(16).min(useful);
    let weight = if parts > 1 { parts * n * k } else { 0 };
    // A bias's: two blocks of 256 columns for each multiprocessor.
    weight.max(2 * processors * 256 + n)
}
