//! Running a plan: each operation handed to its room with its buffers.

use std::ops::Range;
use std::time::Instant;

use kernels::dropout::Dropout;
use kernels::{attention, cross_entropy, dropout, embedding, gelu, layernorm, matmul};

use super::awake::in_pool;
use crate::engine::Profile;
use crate::engine::plan::{BufferId, Layout, Module, Op, Plan};
use crate::model::{Gelu, ModelConfig};
use crate::philox::Philox;

/// What a plan runs on besides the arena and the gradients.
pub(super) struct Context<'a> {
    pub(super) plan: &'a Plan,
    pub(super) layout: &'a Layout,
    pub(super) parameters: &'a [f32],
    pub(super) tokens: &'a [u32],  // (B, T)
    pub(super) targets: &'a [u32], // (B, T)
    /// Factor of every token's loss in the gradients: 1 / (tokens of the whole iteration).
    pub(super) loss_scale: f32,
    /// Probability, generator and counter; `None` = nothing is dropped.
    pub(super) dropout: Option<(f64, Philox, [u32; 2])>,
}

/// Runs every operation in order. Without backward `gradients` may be empty.
pub(super) fn run(
    context: &Context<'_>,
    arena: &mut [f32],
    gradients: &mut [f32],
    profile: &mut Profile,
) {
    let plan = context.plan;
    in_pool(|| {
        for op in &plan.ops {
            let begin = Instant::now();
            match op {
                Op::Embedding { .. }
                | Op::LayerNorm { .. }
                | Op::ResidualLayerNorm { .. }
                | Op::DropoutResidual { .. }
                | Op::Linear { .. }
                | Op::LinearGelu { .. }
                | Op::Attention { .. }
                | Op::Gelu { .. }
                | Op::Head { .. }
                | Op::Classifier { .. } => context.forward(op, arena),
                _ => context.backward(op, arena, gradients),
            }
            profile.add(op.room(), begin.elapsed(), op.flops(plan), op.bytes(plan));
        }
    });
}

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

/// Where a buffer lies in the arena, in elements of fp32.
pub(super) fn elements(plan: &Plan, id: BufferId) -> Range<usize> {
    let place = &plan.buffers[id.0].place;
    place.start / size_of::<f32>()..place.end / size_of::<f32>()
}

impl Context<'_> {
    fn forward(&self, op: &Op, arena: &mut [f32]) {
        match op {
            Op::Embedding { out } => {
                let [out] = self.slices(arena, [*out]);
                let [wte, wpe] = [self.parameter(0), self.parameter(1)];
                let (t, c, drop) = (self.plan.block_size, self.plan.model.n_embd, self.drop(0));
                embedding::cpu::forward(out, self.tokens, wte, wpe, t, c, 0, drop.as_ref());
            }
            Op::LayerNorm { normed, x, module } => {
                let [out, mean, rstd, x] =
                    self.slices(arena, [normed.out, normed.mean, normed.rstd, *x]);
                let (weight, bias) = self.weights(*module);
                layernorm::cpu::forward(out, mean, rstd, x, weight, bias);
            }
            Op::ResidualLayerNorm {
                x_out,
                normed,
                x,
                branch,
                module,
                place,
            } => {
                let ids = [*x_out, normed.out, normed.mean, normed.rstd, *x, *branch];
                let [x_out, out, mean, rstd, x, branch] = self.slices(arena, ids);
                let (weight, bias) = self.weights(*module);
                let drop = self.drop(*place);
                layernorm::cpu::residual_forward(
                    x_out,
                    out,
                    mean,
                    rstd,
                    x,
                    branch,
                    drop.as_ref(),
                    weight,
                    bias,
                );
            }
            Op::DropoutResidual {
                out,
                residual,
                branch,
                place,
            } => {
                let [out, residual, branch] = self.slices(arena, [*out, *residual, *branch]);
                dropout::cpu::residual_add(out, residual, branch, self.drop(*place).as_ref());
            }
            Op::Linear {
                out,
                x,
                module,
                residual,
            } => {
                let (weight, bias) = self.weights(*module);
                let dims = self.dims(*module);
                if let Some(residual) = residual {
                    let [out, x, residual] = self.slices(arena, [*out, *x, *residual]);
                    matmul::cpu::forward(out, x, weight, bias, Some(residual), dims);
                } else {
                    let [out, x] = self.slices(arena, [*out, *x]);
                    matmul::cpu::forward(out, x, weight, bias, None, dims);
                }
            }
            Op::LinearGelu {
                pre,
                out,
                x,
                module,
            } => {
                let (weight, bias) = self.weights(*module);
                let dims = self.dims(*module);
                let form = self.plan.model.gelu.form();
                if pre == out {
                    let [out, x] = self.slices(arena, [*out, *x]);
                    matmul::cpu::forward_gelu_alone(form, out, x, weight, bias, dims);
                } else {
                    let [pre, out, x] = self.slices(arena, [*pre, *out, *x]);
                    matmul::cpu::forward_gelu(form, pre, out, x, weight, bias, dims);
                }
            }
            Op::Attention {
                out,
                lse,
                qkv,
                place,
            } => {
                let [out, lse, qkv] = self.slices(arena, [*out, *lse, *qkv]);
                let dims = self.attention();
                attention::cpu::forward(out, lse, qkv, dims, self.drop(*place).as_ref());
            }
            Op::Gelu { out, pre } => {
                let [out, pre] = self.slices(arena, [*out, *pre]);
                match self.plan.model.gelu {
                    Gelu::Erf => gelu::cpu::forward(out, pre),
                    Gelu::Tanh => gelu::cpu::forward_tanh(out, pre),
                }
            }
            Op::Head { logits, x, rows } => {
                let [logits, x] = self.slices(arena, [*logits, *x]);
                let dims = self.head_dims(rows.len());
                let x = &x[rows.start * dims.k..rows.end * dims.k];
                let logits = &mut logits[..rows.len() * dims.n];
                matmul::cpu::forward(logits, x, self.parameter(0), None, None, dims);
            }
            Op::Classifier {
                logits,
                losses,
                rows,
                backward,
            } => {
                let [logits, losses] = self.slices(arena, [*logits, *losses]);
                let logits = &mut logits[..rows.len() * self.plan.model.vocab_size];
                let losses = &mut losses[rows.clone()];
                let targets = &self.targets[rows.clone()];
                if *backward {
                    let scale = self.loss_scale;
                    cross_entropy::cpu::forward_backward(logits, losses, targets, scale);
                } else {
                    cross_entropy::cpu::forward(losses, logits, targets);
                }
            }
            other => unreachable!("{} is not of the forward pass", other.room()),
        }
    }

    fn backward(&self, op: &Op, arena: &mut [f32], gradients: &mut [f32]) {
        match op {
            Op::HeadBackward {
                dx,
                dlogits,
                x,
                rows,
            } => {
                let [dx, dlogits, x] = self.slices(arena, [*dx, *dlogits, *x]);
                let dims = self.head_dims(rows.len());
                let range = rows.start * dims.k..rows.end * dims.k;
                let dlogits = &dlogits[..rows.len() * dims.n];
                let wte = self.parameter(0);
                matmul::cpu::backward_input(&mut dx[range.clone()], dlogits, wte, false, dims);
                let dwte = &mut gradients[self.layout.places[0].clone()];
                matmul::cpu::backward_weight(dwte, None, dlogits, &x[range], dims);
            }
            Op::LinearBackwardInput { dx, dout, module } => {
                let [dx, dout] = self.slices(arena, [*dx, *dout]);
                let (weight, _) = self.weights(*module);
                matmul::cpu::backward_input(dx, dout, weight, false, self.dims(*module));
            }
            Op::LinearGeluBackwardInput {
                dpre,
                dout,
                pre,
                module,
            } => {
                let [dpre, dout, pre] = self.slices(arena, [*dpre, *dout, *pre]);
                let (weight, _) = self.weights(*module);
                let (form, dims) = (self.plan.model.gelu.form(), self.dims(*module));
                matmul::cpu::backward_input_gelu(form, dpre, dout, weight, pre, dims);
            }
            Op::LinearBackwardWeight { dout, x, module } => {
                let [dout, x] = self.slices(arena, [*dout, *x]);
                let (dweight, dbias) = self.gradient(gradients, *module);
                matmul::cpu::backward_weight(dweight, dbias, dout, x, self.dims(*module));
            }
            Op::LayerNormBackward {
                dx,
                dout,
                x,
                normed,
                module,
                assign,
            } => {
                let [dx, dout, x, mean, rstd] =
                    self.slices(arena, [*dx, *dout, *x, normed.mean, normed.rstd]);
                if *assign {
                    dx.fill(0.0);
                }
                let (weight, _) = self.weights(*module);
                let (dweight, dbias) = self.gradient(gradients, *module);
                layernorm::cpu::backward(dx, dweight, dbias, dout, x, mean, rstd, weight);
            }
            Op::AttentionBackward {
                dqkv,
                dout,
                qkv,
                out,
                lse,
                scratch,
                place,
            } => {
                let ids = [*dqkv, *dout, *qkv, *out, *lse, *scratch];
                let [dqkv, dout, qkv, out, lse, scratch] = self.slices(arena, ids);
                let (dims, drop) = (self.attention(), self.drop(*place));
                attention::cpu::backward(dqkv, dout, qkv, out, lse, dims, drop.as_ref(), scratch);
            }
            Op::DropoutBackward {
                dbranch,
                dout,
                place,
            } => {
                let [dbranch, dout] = self.slices(arena, [*dbranch, *dout]);
                let drop = self
                    .drop(*place)
                    .expect("only planned where something is dropped");
                dropout::cpu::backward(dbranch, dout, &drop);
            }
            Op::EmbeddingBackward { dout } => {
                let [dout] = self.slices(arena, [*dout]);
                let places = [self.layout.places[0].clone(), self.layout.places[1].clone()];
                let [dwte, dwpe] = gradients
                    .get_disjoint_mut(places)
                    .expect("parameters do not overlap");
                let (t, c, drop) = (self.plan.block_size, self.plan.model.n_embd, self.drop(0));
                embedding::cpu::backward(dwte, dwpe, dout, self.tokens, t, c, drop.as_ref());
            }
            other => unreachable!("{} is not of the backward pass", other.room()),
        }
    }

    fn slices<'a, const N: usize>(
        &self,
        arena: &'a mut [f32],
        ids: [BufferId; N],
    ) -> [&'a mut [f32]; N] {
        let places = ids.map(|id| elements(self.plan, id));
        arena
            .get_disjoint_mut(places)
            .expect("buffers of one operation do not share memory")
    }

    fn parameter(&self, index: usize) -> &[f32] {
        &self.parameters[self.layout.places[index].clone()]
    }

    fn weights(&self, module: Module) -> (&[f32], Option<&[f32]>) {
        (
            self.parameter(module.weight.0),
            module.bias.map(|bias| self.parameter(bias.0)),
        )
    }

    fn gradient<'a>(
        &self,
        gradients: &'a mut [f32],
        module: Module,
    ) -> (&'a mut [f32], Option<&'a mut [f32]>) {
        let weight = self.layout.places[module.weight.0].clone();
        let Some(bias) = module.bias else {
            return (&mut gradients[weight], None);
        };
        let places = [weight, self.layout.places[bias.0].clone()];
        let [dweight, dbias] = gradients
            .get_disjoint_mut(places)
            .expect("parameters do not overlap");
        (dweight, Some(dbias))
    }

    fn drop(&self, place: u32) -> Option<Dropout> {
        self.dropout.map(|(p, philox, at)| Dropout {
            p,
            philox,
            place,
            at,
        })
    }

    fn dims(&self, module: Module) -> matmul::Dims {
        let shape = &self.layout.parameters[module.weight.0].shape;
        matmul::Dims {
            m: self.plan.rows(),
            k: shape[1],
            n: shape[0],
        }
    }

    fn head_dims(&self, rows: usize) -> matmul::Dims {
        let model = &self.plan.model;
        matmul::Dims {
            m: rows,
            k: model.n_embd,
            n: model.vocab_size,
        }
    }

    fn attention(&self) -> attention::Dims {
        attention_dims(&self.plan.model, self.plan.batch_size, self.plan.block_size)
    }
}
