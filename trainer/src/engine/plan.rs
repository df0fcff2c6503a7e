//! The plan of a step: every operation in order, every buffer with its place in one arena.
//!
//! Written once for every device. An engine builds a plan for its shapes before step 0 and then
//! only runs it: nothing is allocated, and the memory is known beforehand. Operations are in their
//! fused forms; what forward saves and what backward recomputes is decided here.

mod arena;
mod build;
mod together;

use std::ops::Range;

use crate::model::{ModelConfig, Parameter};

pub use self::build::{PlanRequest, Target};
pub use self::together::Together;

/// What backward computes again instead of keeping it from forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recompute {
    /// Nothing: fastest where memory is no concern.
    None,
    /// The outputs of GELU and LayerNorm, from what went into them: 6C of 16C per token and layer
    /// for element-wise work.
    Gelu,
    /// Whole blocks, from their inputs: C per token and layer for a second forward pass.
    Block,
}

impl Recompute {
    /// The value of the key `recompute`.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gelu => "gelu",
            Self::Block => "block",
        }
    }
}

/// Type of a buffer's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    F32,
    BF16,
    F16,
}

/// A buffer of the plan, by its index in [`Plan::buffers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BufferId(pub usize);

/// A parameter, by its index in [`ModelConfig::parameters`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParameterId(pub usize);

/// A weight and its bias, if the model has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Module {
    pub weight: ParameterId,
    pub bias: Option<ParameterId>,
}

/// The modules of a block, in the order of [`ModelConfig::parameters`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Ln1,
    CAttn,
    AttnCProj,
    Ln2,
    CFc,
    MlpCProj,
}

impl Module {
    pub fn of(model: &ModelConfig, layer: usize, part: Part) -> Self {
        Self::after_embeddings(model, 6 * layer + part as usize)
    }

    /// The last LayerNorm.
    pub fn ln_f(model: &ModelConfig) -> Self {
        Self::after_embeddings(model, 6 * model.n_layer)
    }

    /// The parameters of the `index`-th module after the two embeddings.
    fn after_embeddings(model: &ModelConfig, index: usize) -> Self {
        if model.bias {
            let weight = 2 + 2 * index;
            Self {
                weight: ParameterId(weight),
                bias: Some(ParameterId(weight + 1)),
            }
        } else {
            Self {
                weight: ParameterId(2 + index),
                bias: None,
            }
        }
    }
}

/// Memory for one tensor, for as long as the plan needs it.
#[derive(Clone, Debug, PartialEq)]
pub struct Buffer {
    /// What it holds, for the table of memory and for error messages.
    pub name: &'static str,
    pub elements: usize,
    pub dtype: Dtype,
    /// Bytes of the arena that are its own between its first and its last operation.
    pub place: Range<usize>,
    /// Indices of the first and the last operation that touch it.
    pub life: (usize, usize),
}

impl Buffer {
    pub fn bytes(&self) -> usize {
        self.elements * self.dtype.bytes()
    }
}

/// A LayerNorm's output with the statistics that backward needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Normed {
    pub out: BufferId,  // (M, C)
    pub mean: BufferId, // (M)
    pub rstd: BufferId, // (M)
}

/// One operation on buffers and parameters. Gradients of parameters are always added to, so that
/// micro-steps accumulate; gradients of activations are assigned unless the name says `Add`.
/// `M` = B·T rows; `place` numbers the dropouts of the model.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// out = wte\[token\] + wpe\[position\], dropped out at place 0.
    Embedding { out: BufferId },
    /// out = LN(x), with the statistics saved.
    LayerNorm {
        normed: Normed,
        x: BufferId,
        module: Module,
    },
    /// x_out = x + dropout(branch); out = LN(x_out).
    ResidualLayerNorm {
        x_out: BufferId,
        normed: Normed,
        x: BufferId,
        branch: BufferId,
        module: Module,
        place: u32,
    },
    /// out = residual + dropout(branch).
    DropoutResidual {
        out: BufferId,
        residual: BufferId,
        branch: BufferId,
        place: u32,
    },
    /// out = x · Wᵀ + bias + residual.
    Linear {
        out: BufferId,
        x: BufferId,
        module: Module,
        residual: Option<BufferId>,
    },
    /// pre = x · Wᵀ + bias; out = GELU(pre). `pre` is `out` where no backward needs it.
    LinearGelu {
        pre: BufferId,
        out: BufferId,
        x: BufferId,
        module: Module,
    },
    /// out = softmax(q·kᵀ/√hs, causal, dropped out) · v, with the log-sum-exp saved.
    Attention {
        out: BufferId,
        lse: BufferId,
        qkv: BufferId,
        place: u32,
    },
    /// out = GELU(pre), again.
    Gelu { out: BufferId, pre: BufferId },
    /// Logits of some rows: logits = x\[rows\] · wteᵀ.
    Head {
        logits: BufferId,
        x: BufferId,
        rows: Range<usize>,
    },
    /// Losses of some rows; with `backward`, logits become their gradients in place.
    Classifier {
        logits: BufferId,
        losses: BufferId,
        rows: Range<usize>,
        backward: bool,
    },
    /// dx\[rows\] = dlogits · wte; dwte += dlogitsᵀ · x\[rows\].
    HeadBackward {
        dx: BufferId,
        dlogits: BufferId,
        x: BufferId,
        rows: Range<usize>,
    },
    /// dx = dout · W.
    LinearBackwardInput {
        dx: BufferId,
        dout: BufferId,
        module: Module,
    },
    /// dpre = (dout · W) ⊙ GELU'(pre).
    LinearGeluBackwardInput {
        dpre: BufferId,
        dout: BufferId,
        pre: BufferId,
        module: Module,
    },
    /// dW += doutᵀ · x; dbias += column sums of dout.
    LinearBackwardWeight {
        dout: BufferId,
        x: BufferId,
        module: Module,
    },
    /// dx = or += the gradient through LN; the module's gradients are added to.
    LayerNormBackward {
        dx: BufferId,
        dout: BufferId,
        x: BufferId,
        normed: Normed,
        module: Module,
        assign: bool,
    },
    /// dqkv from dout, with the probabilities computed again.
    AttentionBackward {
        dqkv: BufferId,
        dout: BufferId,
        qkv: BufferId,
        out: BufferId,
        lse: BufferId,
        scratch: BufferId,
        place: u32,
    },
    /// dbranch = dropout mask ⊙ dout.
    DropoutBackward {
        dbranch: BufferId,
        dout: BufferId,
        place: u32,
    },
    /// dwte and dwpe from the gradient of the embedded tokens.
    EmbeddingBackward { dout: BufferId },
}

/// A plan: operations in order, the buffers they touch, the size of the arena that holds them.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub model: ModelConfig,
    pub batch_size: usize,
    pub block_size: usize,
    pub ops: Vec<Op>,
    pub buffers: Vec<Buffer>,
    pub arena_bytes: usize,
    /// Elements of a row of logits: the vocabulary, and padding where the device wants it.
    pub logits_stride: usize,
    /// (M): the loss of every token.
    pub losses: BufferId,
    /// (M, C): what the head reads.
    pub hidden: BufferId,
    /// (M, 3C) of each layer, where forward leaves keys and values.
    pub qkv: Vec<BufferId>,
}

impl Plan {
    /// B·T
    pub fn rows(&self) -> usize {
        self.batch_size * self.block_size
    }
}

impl Dtype {
    /// As the key `dtype` has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::BF16 => "bfloat16",
            Self::F16 => "float16",
        }
    }

    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::BF16 | Self::F16 => 2,
        }
    }
}

impl Op {
    /// The room of the crate `kernels` that does it, with a direction: the rows of a profile.
    pub fn room(&self) -> &'static str {
        match self {
            Self::Embedding { .. } => "embedding forward",
            Self::EmbeddingBackward { .. } => "embedding backward",
            Self::LayerNorm { .. } | Self::ResidualLayerNorm { .. } => "layernorm forward",
            Self::LayerNormBackward { .. } => "layernorm backward",
            Self::Linear { .. } => "matmul forward",
            Self::LinearGelu { .. } => "matmul + gelu forward",
            Self::LinearBackwardInput { .. } => "matmul backward input",
            Self::LinearGeluBackwardInput { .. } => "matmul + gelu backward input",
            Self::LinearBackwardWeight { .. } => "matmul backward weight",
            Self::Attention { .. } => "attention forward",
            Self::AttentionBackward { .. } => "attention backward",
            Self::Gelu { .. } => "gelu again",
            Self::Head { .. } => "head forward",
            Self::HeadBackward { .. } => "head backward",
            Self::Classifier { .. } => "cross-entropy",
            Self::DropoutResidual { .. } => "dropout forward",
            Self::DropoutBackward { .. } => "dropout backward",
        }
    }

    /// Every buffer it touches: for lifetimes.
    pub fn buffers(&self) -> Vec<BufferId> {
        match self {
            Self::Embedding { out } => vec![*out],
            Self::LayerNorm { normed, x, .. } => vec![normed.out, normed.mean, normed.rstd, *x],
            Self::ResidualLayerNorm {
                x_out,
                normed,
                x,
                branch,
                ..
            } => {
                vec![*x_out, normed.out, normed.mean, normed.rstd, *x, *branch]
            }
            Self::Linear {
                out, x, residual, ..
            } => [*out, *x].into_iter().chain(*residual).collect(),
            Self::LinearGelu { pre, out, x, .. } if pre == out => vec![*out, *x],
            Self::LinearGelu { pre, out, x, .. } => vec![*pre, *out, *x],
            Self::Attention { out, lse, qkv, .. } => vec![*out, *lse, *qkv],
            Self::Gelu { out, pre } => vec![*out, *pre],
            Self::Head { logits, x, .. } => vec![*logits, *x],
            Self::Classifier { logits, losses, .. } => vec![*logits, *losses],
            Self::HeadBackward { dx, dlogits, x, .. } => vec![*dx, *dlogits, *x],
            Self::LinearBackwardInput { dx, dout, .. } => vec![*dx, *dout],
            Self::LinearGeluBackwardInput {
                dpre, dout, pre, ..
            } => vec![*dpre, *dout, *pre],
            Self::LinearBackwardWeight { dout, x, .. } => vec![*dout, *x],
            Self::LayerNormBackward {
                dx,
                dout,
                x,
                normed,
                ..
            } => {
                vec![*dx, *dout, *x, normed.mean, normed.rstd]
            }
            Self::AttentionBackward {
                dqkv,
                dout,
                qkv,
                out,
                lse,
                scratch,
                ..
            } => {
                vec![*dqkv, *dout, *qkv, *out, *lse, *scratch]
            }
            Self::DropoutResidual {
                out,
                residual,
                branch,
                ..
            } => vec![*out, *residual, *branch],
            Self::DropoutBackward { dbranch, dout, .. } => vec![*dbranch, *dout],
            Self::EmbeddingBackward { dout } => vec![*dout],
        }
    }

    /// The buffers that it changes.
    pub fn writes(&self) -> Vec<BufferId> {
        let normed = |normed: &Normed| [normed.out, normed.mean, normed.rstd];
        match self {
            Self::Embedding { out }
            | Self::DropoutResidual { out, .. }
            | Self::Linear { out, .. }
            | Self::Gelu { out, .. } => vec![*out],
            Self::LayerNorm { normed: n, .. } => normed(n).to_vec(),
            Self::ResidualLayerNorm {
                x_out, normed: n, ..
            } => [*x_out].into_iter().chain(normed(n)).collect(),
            Self::LinearGelu { pre, out, .. } => vec![*pre, *out],
            Self::Attention { out, lse, .. } => vec![*out, *lse],
            Self::Head { logits, .. } => vec![*logits],
            Self::Classifier { logits, losses, .. } => vec![*logits, *losses],
            Self::HeadBackward { dx, .. }
            | Self::LinearBackwardInput { dx, .. }
            | Self::LayerNormBackward { dx, .. } => vec![*dx],
            Self::LinearGeluBackwardInput { dpre, .. } => vec![*dpre],
            Self::AttentionBackward { dqkv, scratch, .. } => vec![*dqkv, *scratch],
            Self::DropoutBackward { dbranch, .. } => vec![*dbranch],
            Self::LinearBackwardWeight { .. } | Self::EmbeddingBackward { .. } => vec![],
        }
    }

    /// Floating-point operations of its matrix products; 0 for what is bound by memory.
    pub fn flops(&self, plan: &Plan) -> f64 {
        let model = &plan.model;
        let (m, c, t) = (
            plan.rows() as f64,
            model.n_embd as f64,
            plan.block_size as f64,
        );
        let parameters = model.parameters();
        let elements = |module: &Module| parameters[module.weight.0].elements() as f64;
        // Pairs of a query and a key that it sees, times channels.
        let seen = m * (t + 1.0) / 2.0 * c;
        match self {
            Self::Linear { module, .. }
            | Self::LinearGelu { module, .. }
            | Self::LinearBackwardInput { module, .. }
            | Self::LinearGeluBackwardInput { module, .. }
            | Self::LinearBackwardWeight { module, .. } => 2.0 * m * elements(module),
            Self::Head { rows, .. } => 2.0 * rows.len() as f64 * c * model.vocab_size as f64,
            Self::HeadBackward { rows, .. } => {
                4.0 * rows.len() as f64 * c * model.vocab_size as f64
            }
            Self::Attention { .. } => 4.0 * seen,
            Self::AttentionBackward { .. } => 10.0 * seen,
            _ => 0.0,
        }
    }

    /// Bytes of the buffers it touches: the least that it moves where they fit no cache.
    pub fn bytes(&self, plan: &Plan) -> f64 {
        let size = |id: BufferId| plan.buffers[id.0].bytes() as f64;
        self.buffers().into_iter().map(size).sum()
    }
}

/// Where each parameter lies in a flat buffer: those that decay first, so that one pass of AdamW
/// needs one boundary. What lies between two parameters is zero and stays so.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    pub parameters: Vec<Parameter>,
    /// By parameter, in the model's order.
    pub places: Vec<Range<usize>>,
    /// The token embeddings, with rows of zeros up to the padded vocabulary.
    pub padded_wte: Range<usize>,
    /// Elements with weight decay: the front of the buffer.
    pub decayed: usize,
    pub elements: usize,
}

impl Layout {
    /// One after the other.
    pub fn of(model: &ModelConfig) -> Self {
        Self::padded(model, 1, model.vocab_size)
    }

    /// Each from a multiple of `alignment` elements on, with room for `vocab_size` tokens.
    pub fn padded(model: &ModelConfig, alignment: usize, vocab_size: usize) -> Self {
        assert!(vocab_size >= model.vocab_size && alignment > 0);
        let parameters = model.parameters();
        let mut places = vec![0..0; parameters.len()];
        let mut elements: usize = 0;
        let mut decayed = 0;
        for decays in [true, false] {
            for (index, (parameter, place)) in parameters.iter().zip(&mut places).enumerate() {
                if parameter.decays() == decays {
                    let start = elements.next_multiple_of(alignment);
                    *place = start..start + parameter.elements();
                    let is_wte = index == 0;
                    let padding = (vocab_size - model.vocab_size) * model.n_embd;
                    elements = place.end + if is_wte { padding } else { 0 };
                }
            }
            if decays {
                decayed = elements;
            }
        }
        let padded_wte = places[0].start..places[0].start + vocab_size * model.n_embd;
        Self {
            parameters,
            places,
            padded_wte,
            decayed,
            elements,
        }
    }
}

#[cfg(test)]
mod tests;
