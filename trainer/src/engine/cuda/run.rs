//! Running a plan on a device: each operation handed to its room with its buffers.

use std::ops::Range;

use kernels::cuda::{Buffer, CudaError, Stream};
use kernels::dropout::Dropout;
use kernels::matmul::cuda::products::Products;
use kernels::{attention, cross_entropy, dropout, embedding, gelu, layernorm, matmul};

use super::hazards::Streams;
use super::memory::{Parameters, Precision, Workspace};
use crate::engine::plan::{BufferId, Module, Normed, Op, ParameterId, Plan};
use crate::model::Gelu;
use crate::philox::Philox;

/// What a plan runs on.
pub(super) struct Context<'a, T> {
    pub(super) plan: &'a Plan,
    pub(super) arena: &'a Buffer<u8>,
    pub(super) parameters: &'a Parameters<T>,
    pub(super) workspace: &'a Workspace,
    pub(super) products: &'a Products<T>,
    pub(super) inputs: Buffer<i32>,  // (B, T)
    pub(super) targets: Buffer<i32>, // (B, T)
    /// The controller's, whose loss scale multiplies `loss_scale`.
    pub(super) state: &'a Buffer<u32>,
    /// Factor of every token's loss in the gradients: 1 / (tokens of the whole iteration).
    pub(super) loss_scale: f32,
    /// Probability, generator, and the counter of the micro-step at hand.
    pub(super) dropout: Option<(f64, Philox, Buffer<u32>)>,
}

impl<T: Precision> Context<'_, T> {
    /// Adds every operation in order; at the end the main stream has waited for the other.
    pub(super) fn run(&self, streams: &mut Streams<'_>) -> Result<(), CudaError> {
        let mut ops = self.plan.ops.iter().peekable();
        while let Some(op) = ops.next() {
            streams.before(self.plan, op)?;
            if let (Op::Embedding { out }, Some(next @ Op::LayerNorm { normed, x, module })) =
                (op, ops.peek())
                && x == out
            {
                streams.before(self.plan, next)?;
                streams.op(op.room(), self.cost(op), |streams| {
                    self.embedding_layernorm(streams.main, *out, *normed, *module)
                })?;
                ops.next();
                continue;
            }
            streams.op(op.room(), self.cost(op), |streams| match op {
                Op::HeadBackward { .. }
                | Op::LinearBackwardInput { .. }
                | Op::LinearGeluBackwardInput { .. }
                | Op::LinearBackwardWeight { .. }
                | Op::LayerNormBackward { .. }
                | Op::AttentionBackward { .. }
                | Op::DropoutBackward { .. }
                | Op::EmbeddingBackward { .. } => self.backward(streams, op),
                _ => self.forward(streams.main, op),
            })?;
        }
        streams.join()
    }

    /// Floating-point operations of an operation's products, and the bytes that it has to move.
    fn cost(&self, op: &Op) -> (f64, f64) {
        (op.flops(self.plan), op.bytes(self.plan))
    }

    fn forward(&self, stream: &Stream, op: &Op) -> Result<(), CudaError> {
        match op {
            Op::Embedding { out } => {
                let (drop, dims) = (self.drop(0), self.embedding_dims());
                let mut out = self.buffer(*out);
                let at = drop.as_ref().map(|(drop, at)| (drop, *at));
                with_tables(self, |tables| {
                    embedding::cuda::forward(stream, &mut out, &self.inputs, tables, dims, at)
                })
            }
            Op::LayerNorm { normed, x, module } => {
                self.normed(*normed, *module, |normed, parameters| {
                    layernorm::cuda::forward(stream, normed, &self.buffer(*x), parameters)
                })
            }
            Op::ResidualLayerNorm {
                x_out,
                normed,
                x,
                branch,
                module,
                place,
            } => {
                let drop = self.drop(*place);
                let mut residual = layernorm::cuda::Residual {
                    x_out: &mut self.buffer(*x_out),
                    x: &self.buffer(*x),
                    branch: &self.buffer(*branch),
                    dropout: drop.as_ref().map(|(drop, at)| (drop, *at)),
                };
                self.normed(*normed, *module, |normed, parameters| {
                    layernorm::cuda::residual_forward(stream, &mut residual, normed, parameters)
                })
            }
            Op::DropoutResidual {
                out,
                residual,
                branch,
                place,
            } => {
                let (residual, branch) = (self.buffer(*residual), self.buffer(*branch));
                let drop = self.drop(*place);
                let drop = drop.as_ref().map(|(drop, at)| (drop, *at));
                let mut out = self.buffer::<T>(*out);
                dropout::cuda::residual_add(stream, &mut out, &residual, &branch, drop)
            }
            Op::Linear {
                out,
                x,
                module,
                residual,
            } => {
                let (weight, bias) = self.weights(*module);
                let (mut out, x) = (self.buffer::<T>(*out), self.buffer(*x));
                let residual = residual.map(|residual| self.buffer(residual));
                let (bias, residual, dims) = (bias.as_ref(), residual.as_ref(), self.dims(*module));
                let products = self.products;
                products.forward(stream, &mut out, &x, &weight, bias, residual, dims)
            }
            Op::LinearGelu {
                pre,
                out,
                x,
                module,
            } => {
                let (weight, bias) = self.weights(*module);
                let mut kept = (pre != out).then(|| self.buffer(*pre));
                let (mut out, x) = (self.buffer(*out), self.buffer(*x));
                let (pre, bias, dims) = (kept.as_mut(), bias.as_ref(), self.dims(*module));
                let form = self.plan.model.gelu.form();
                let products = self.products;
                products.forward_gelu(stream, form, pre, &mut out, &x, &weight, bias, dims)
            }
            Op::Attention {
                out,
                lse,
                qkv,
                place,
            } => {
                let (mut out, mut lse) = (self.buffer(*out), self.buffer(*lse));
                let (qkv, drop) = (self.buffer::<T>(*qkv), self.drop(*place));
                let drop = drop.as_ref().map(|(drop, at)| (drop, *at));
                let dims = self.attention_dims();
                attention::cuda::forward(stream, &mut out, &mut lse, &qkv, dims, drop)
            }
            Op::Gelu { out, pre } => {
                let (mut out, pre) = (self.buffer::<T>(*out), self.buffer(*pre));
                match self.plan.model.gelu {
                    Gelu::Erf => gelu::cuda::forward(stream, &mut out, &pre),
                    Gelu::Tanh => gelu::cuda::forward_tanh(stream, &mut out, &pre),
                }
            }
            Op::Head { logits, x, rows } => {
                let dims = self.head_dims(rows.len());
                let mut logits = self.buffer::<T>(*logits).slice(0..dims.m * dims.n);
                let x = self.rows(*x, rows);
                let (products, wte) = (self.products, self.wte());
                products.forward(stream, &mut logits, &x, &wte, None, None, dims)
            }
            Op::Classifier { rows, .. } => self.classifier(stream, op, rows),
            other => unreachable!("{} is not of the forward pass", other.room()),
        }
    }

    /// The first two operations of a forward pass in one.
    fn embedding_layernorm(
        &self,
        stream: &Stream,
        out: BufferId,
        normed: Normed,
        module: Module,
    ) -> Result<(), CudaError> {
        let (drop, dims) = (self.drop(0), self.embedding_dims());
        let at = drop.as_ref().map(|(drop, at)| (drop, *at));
        let (mut x, tokens) = (self.buffer(out), &self.inputs);
        with_tables(self, |tables| {
            self.normed(normed, module, |normed, parameters| {
                embedding::cuda::layernorm_forward(
                    stream, &mut x, normed, tokens, tables, parameters, dims, at,
                )
            })
        })
    }

    fn classifier(&self, stream: &Stream, op: &Op, rows: &Range<usize>) -> Result<(), CudaError> {
        let Op::Classifier {
            logits,
            losses,
            backward,
            ..
        } = op
        else {
            unreachable!("called for the classifier")
        };
        let dims = cross_entropy::cuda::Dims {
            rows: rows.len(),
            vocab_size: self.plan.model.vocab_size,
            stride: self.plan.logits_stride,
        };
        let mut logits = self.buffer::<T>(*logits).slice(0..dims.rows * dims.stride);
        let mut losses = self.buffer::<f32>(*losses).slice(rows.clone());
        let targets = self.targets.slice(rows.clone());
        if *backward {
            let (state, scale) = (Some(self.state), self.loss_scale);
            cross_entropy::cuda::forward_backward(
                stream,
                &mut logits,
                &mut losses,
                &targets,
                state,
                scale,
                dims,
            )
        } else {
            cross_entropy::cuda::forward(stream, &mut losses, &logits, &targets, dims)
        }
    }

    fn backward(&self, streams: &mut Streams<'_>, op: &Op) -> Result<(), CudaError> {
        let stream = streams.main;
        match op {
            Op::HeadBackward {
                dx,
                dlogits,
                x,
                rows,
            } => {
                let dims = self.head_dims(rows.len());
                let dout = self.buffer::<T>(*dlogits).slice(0..dims.m * dims.n);
                let of_rows = self.rows(*x, rows);
                streams.beside(self.plan, [*dlogits, *x], ParameterId(0), |side| {
                    let place = self.parameters.layout.padded_wte.clone();
                    self.backward_weight(side, place, None, &dout, &of_rows, dims)
                })?;
                let mut dx = self.rows(*dx, rows);
                let (products, wte) = (self.products, self.wte());
                products.backward_input(stream, &mut dx, &dout, &wte, dims)
            }
            Op::LinearBackwardInput { dx, dout, module } => {
                let (mut dx, dout) = (self.buffer::<T>(*dx), self.buffer(*dout));
                let ((weight, _), dims) = (self.weights(*module), self.dims(*module));
                self.products
                    .backward_input(stream, &mut dx, &dout, &weight, dims)
            }
            Op::LinearGeluBackwardInput {
                dpre,
                dout,
                pre,
                module,
            } => {
                let (mut dpre, dout) = (self.buffer::<T>(*dpre), self.buffer(*dout));
                let ((weight, _), dims) = (self.weights(*module), self.dims(*module));
                let (pre, form) = (self.buffer(*pre), self.plan.model.gelu.form());
                let products = self.products;
                products.backward_input_gelu(stream, form, &mut dpre, &dout, &weight, &pre, dims)
            }
            Op::LinearBackwardWeight { dout, x, module } => {
                let reads = [*dout, *x];
                streams.beside(self.plan, reads, module.weight, |side| {
                    let [dout, x] = reads.map(|id| self.buffer::<T>(id));
                    let place = self.place(module.weight);
                    let dims = self.dims(*module);
                    let bias = module.bias.map(|bias| self.place(bias));
                    self.backward_weight(side, place, bias, &dout, &x, dims)
                })
            }
            Op::LayerNormBackward { .. } => self.layernorm_backward(stream, op),
            Op::AttentionBackward { .. } => self.attention_backward(stream, op),
            Op::DropoutBackward {
                dbranch,
                dout,
                place,
            } => {
                let (mut dbranch, dout) = (self.buffer::<T>(*dbranch), self.buffer(*dout));
                let (drop, at) = self
                    .drop(*place)
                    .expect("only planned where something is dropped");
                dropout::cuda::backward(stream, &mut dbranch, &dout, &drop, at)
            }
            Op::EmbeddingBackward { dout } => self.embedding_backward(stream, *dout),
            other => unreachable!("{} is not of the backward pass", other.room()),
        }
    }

    fn backward_weight(
        &self,
        stream: &Stream,
        weight: Range<usize>,
        bias: Option<Range<usize>>,
        dout: &Buffer<T>,
        x: &Buffer<T>,
        dims: matmul::Dims,
    ) -> Result<(), CudaError> {
        let gradient = |place| self.parameters.gradients.slice(place);
        let (mut dweight, mut dbias) = (gradient(weight), bias.map(gradient));
        let (dbias, mut scratch) = (dbias.as_mut(), self.workspace.weights.clone());
        let products = self.products;
        products.backward_weight(stream, &mut dweight, dbias, dout, x, &mut scratch, dims)
    }

    fn layernorm_backward(&self, stream: &Stream, op: &Op) -> Result<(), CudaError> {
        let Op::LayerNormBackward {
            dx,
            dout,
            x,
            normed,
            module,
            assign,
        } = op
        else {
            unreachable!("called for LayerNorm")
        };
        let gradient = |id| self.parameters.gradients.slice(self.place(id));
        let mut dbias = module.bias.map(gradient);
        let mut gradients = layernorm::cuda::Gradients {
            dx: &mut self.buffer::<T>(*dx),
            assign: *assign,
            dweight: &mut gradient(module.weight),
            dbias: dbias.as_mut(),
            dx_sums: None,
            scratch: &mut self.workspace.layernorm.clone(),
        };
        let (dout, x) = (self.buffer(*dout), self.buffer(*x));
        let (mean, rstd) = (self.buffer(normed.mean), self.buffer(normed.rstd));
        let (weight, _) = self.weights(*module);
        layernorm::cuda::backward(stream, &mut gradients, &dout, &x, &mean, &rstd, &weight)
    }

    fn attention_backward(&self, stream: &Stream, op: &Op) -> Result<(), CudaError> {
        let Op::AttentionBackward {
            dqkv,
            dout,
            qkv,
            out,
            lse,
            scratch,
            place,
        } = op
        else {
            unreachable!("called for attention")
        };
        let drop = self.drop(*place);
        let (mut dqkv, dout) = (self.buffer::<T>(*dqkv), self.buffer(*dout));
        let (qkv, out, lse) = (self.buffer(*qkv), self.buffer(*out), self.buffer(*lse));
        attention::cuda::backward(
            stream,
            &mut dqkv,
            &dout,
            &qkv,
            &out,
            &lse,
            self.attention_dims(),
            drop.as_ref().map(|(drop, at)| (drop, *at)),
            &mut self.buffer(*scratch),
        )
    }

    fn embedding_backward(&self, stream: &Stream, dout: BufferId) -> Result<(), CudaError> {
        let gradient = |id| self.parameters.gradients.slice(self.place(ParameterId(id)));
        let scratch = &self.workspace.embedding;
        let mut scratch = embedding::cuda::Scratch {
            sorted: scratch.sorted.clone(),
            counts: scratch.counts.clone(),
            partials: scratch.partials.clone(),
        };
        let drop = self.drop(0);
        embedding::cuda::backward(
            stream,
            &mut gradient(0),
            &mut gradient(1),
            &self.buffer::<T>(dout),
            &self.inputs,
            &mut scratch,
            self.embedding_dims(),
            drop.as_ref().map(|(drop, at)| (drop, *at)),
        )
    }

    /// A buffer of the plan; `U` is the type that it was planned with.
    fn buffer<U: Precision>(&self, id: BufferId) -> Buffer<U> {
        let buffer = &self.plan.buffers[id.0];
        assert_eq!(buffer.dtype, U::DTYPE, "{}", buffer.name);
        self.arena.view(buffer.place.clone())
    }

    /// Some rows of a buffer of C columns.
    fn rows(&self, id: BufferId, rows: &Range<usize>) -> Buffer<T> {
        let c = self.plan.model.n_embd;
        self.buffer(id).slice(rows.start * c..rows.end * c)
    }

    fn normed(
        &self,
        normed: Normed,
        module: Module,
        work: impl FnOnce(
            &mut layernorm::cuda::Normed<'_, T>,
            layernorm::cuda::Parameters<'_, T>,
        ) -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        let (weight, bias) = self.weights(module);
        let mut normed = layernorm::cuda::Normed {
            out: &mut self.buffer(normed.out),
            mean: &mut self.buffer(normed.mean),
            rstd: &mut self.buffer(normed.rstd),
        };
        let parameters = layernorm::cuda::Parameters {
            weight: &weight,
            bias: bias.as_ref(),
        };
        work(&mut normed, parameters)
    }

    fn place(&self, id: ParameterId) -> Range<usize> {
        self.parameters.layout.places[id.0].clone()
    }

    fn weights(&self, module: Module) -> (Buffer<T>, Option<Buffer<T>>) {
        self.parameters.module(module)
    }

    /// The head's weight: the token embeddings with their padding.
    fn wte(&self) -> Buffer<T> {
        self.parameters.padded_wte()
    }

    fn drop(&self, place: u32) -> Option<(Dropout, &Buffer<u32>)> {
        let (p, philox, at) = self.dropout.as_ref()?;
        let drop = Dropout {
            p: *p,
            philox: *philox,
            place,
            // Read from device memory.
            at: [0; 2],
        };
        Some((drop, at))
    }

    fn dims(&self, module: Module) -> matmul::Dims {
        let shape = &self.parameters.layout.parameters[module.weight.0].shape;
        matmul::Dims {
            m: self.plan.rows(),
            k: shape[1],
            n: shape[0],
        }
    }

    fn head_dims(&self, rows: usize) -> matmul::Dims {
        matmul::Dims {
            m: rows,
            k: self.plan.model.n_embd,
            n: self.plan.logits_stride,
        }
    }

    fn attention_dims(&self) -> attention::Dims {
        let Plan {
            model,
            batch_size,
            block_size,
            ..
        } = self.plan;
        super::plans::attention_dims(model, *batch_size, *block_size)
    }

    fn embedding_dims(&self) -> embedding::cuda::Dims {
        embedding::cuda::Dims {
            batch: self.plan.batch_size,
            time: self.plan.block_size,
            channels: self.plan.model.n_embd,
            start: 0,
        }
    }
}

fn with_tables<T: Precision, R>(
    context: &Context<'_, T>,
    work: impl FnOnce(embedding::cuda::Tables<'_, T>) -> R,
) -> R {
    let [wte, wpe] = context.parameters.embeddings();
    work(embedding::cuda::Tables {
        wte: &wte,
        wpe: &wpe,
    })
}
