//! Building a plan: the GPT of nanoGPT, forward and backward, in the order it runs.

use super::{Buffer, BufferId, Dtype, Module, Normed, Op, Part, Plan, Recompute, arena};
use crate::model::ModelConfig;

/// What a plan is wanted for.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanRequest<'a> {
    pub model: &'a ModelConfig,
    pub batch_size: usize,
    /// T, at most the model's.
    pub block_size: usize,
    /// Forward and backward, or forward alone.
    pub backward: bool,
    /// Whether anything is dropped out; never in a plan without backward.
    pub dropout: bool,
    pub recompute: Recompute,
    /// Whether forward ends with the losses, or with the hidden states.
    pub losses: bool,
    pub target: Target,
}

/// What a plan must know of the device that it runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Of activations and their gradients; statistics and losses are in fp32.
    pub dtype: Dtype,
    /// Bytes that every buffer begins at a multiple of.
    pub alignment: usize,
    /// Elements of a row of logits, at least the vocabulary's.
    pub logits_stride: usize,
    /// Logits beyond this many elements are computed in chunks of rows.
    pub logits_elements_max: usize,
    /// Elements of fp32 that the device wants as scratch for attention's backward.
    pub attention_scratch: usize,
}

/// What a block leaves for its backward.
struct BlockSaved {
    x: BufferId,
    ln_1: Normed,
    qkv: BufferId,
    attention: BufferId,
    lse: BufferId,
    x_mid: BufferId,
    ln_2: Normed,
    pre: BufferId,
    act: BufferId,
}

struct Builder<'a> {
    request: &'a PlanRequest<'a>,
    rows: usize,
    ops: Vec<Op>,
    buffers: Vec<Buffer>,
}

impl PlanRequest<'_> {
    /// Builds the plan and places its buffers.
    pub fn build(&self) -> Plan {
        assert!(
            self.block_size <= self.model.block_size,
            "a longer context than the model's"
        );
        assert!(self.backward || !self.dropout, "dropout is for training");
        assert!(self.target.logits_stride >= self.model.vocab_size);
        let mut builder = Builder {
            request: self,
            rows: self.batch_size * self.block_size,
            ops: Vec::new(),
            buffers: Vec::new(),
        };
        let losses = builder.statistics("losses", builder.rows);
        let (saved, x, ln_f, qkv) = builder.forward();
        if self.losses {
            builder.head(x, ln_f, losses, &saved);
        }
        let Builder {
            ops, mut buffers, ..
        } = builder;
        // The results must outlive the last operation that touches them, and keys and values are
        // read after a forward pass for generation.
        let kept: &[BufferId] = if self.losses { &[] } else { &qkv };
        for id in [losses, ln_f.out].iter().chain(kept) {
            buffers[id.0].life = (usize::MAX, ops.len());
        }
        let arena_bytes = arena::place(&mut buffers, &ops, self.target.alignment);
        Plan {
            model: self.model.clone(),
            batch_size: self.batch_size,
            block_size: self.block_size,
            ops,
            buffers,
            arena_bytes,
            logits_stride: self.target.logits_stride,
            losses,
            hidden: ln_f.out,
            qkv,
        }
    }
}

impl Builder<'_> {
    fn buffer(&mut self, name: &'static str, elements: usize, dtype: Dtype) -> BufferId {
        self.buffers.push(Buffer {
            name,
            elements,
            dtype,
            place: 0..0,
            life: (usize::MAX, 0),
        });
        BufferId(self.buffers.len() - 1)
    }

    /// A buffer of `width` elements for each row.
    fn activation(&mut self, name: &'static str, width: usize) -> BufferId {
        self.buffer(name, self.rows * width, self.request.target.dtype)
    }

    /// A buffer of what must stay exact.
    fn statistics(&mut self, name: &'static str, elements: usize) -> BufferId {
        self.buffer(name, elements, Dtype::F32)
    }

    fn normed(&mut self, name: &'static str) -> Normed {
        let out = self.activation(name, self.request.model.n_embd);
        Normed {
            out,
            mean: self.statistics("layernorm statistics", self.rows),
            rstd: self.statistics("layernorm statistics", self.rows),
        }
    }

    fn part(&self, layer: usize, part: Part) -> Module {
        Module::of(self.request.model, layer, part)
    }

    /// Dropouts are numbered: 0 after the embedding, then attention weights, attention output and
    /// MLP output of each layer.
    fn place(layer: usize, which: u32) -> u32 {
        1 + 3 * layer as u32 + which
    }

    /// Forward through all blocks: what each saved, the last x, its LayerNorm and every qkv.
    fn forward(&mut self) -> (Vec<BlockSaved>, BufferId, Normed, Vec<BufferId>) {
        let n_layer = self.request.model.n_layer;
        let mut x = self.activation("residual stream", self.request.model.n_embd);
        self.ops.push(Op::Embedding { out: x });
        let mut saved = Vec::new();
        for layer in 0..n_layer {
            let block = self.block(layer, x);
            x = self.block_end(layer, &block);
            saved.push(block);
        }
        let ln_f = self.normed("ln_f");
        self.ops.push(Op::LayerNorm {
            normed: ln_f,
            x,
            module: Module::ln_f(self.request.model),
        });
        let qkv = saved.iter().map(|block| block.qkv).collect();
        (saved, x, ln_f, qkv)
    }

    /// One block up to the activations of its MLP.
    fn block(&mut self, layer: usize, x: BufferId) -> BlockSaved {
        let c = self.request.model.n_embd;
        let ln_1 = self.normed("ln_1");
        self.ops.push(Op::LayerNorm {
            normed: ln_1,
            x,
            module: self.part(layer, Part::Ln1),
        });
        let qkv = self.activation("qkv", 3 * c);
        let module = self.part(layer, Part::CAttn);
        self.ops.push(Op::Linear {
            out: qkv,
            x: ln_1.out,
            module,
            residual: None,
        });
        let attention = self.activation("attention", c);
        let lse = self.statistics("log-sum-exp", self.rows * self.request.model.n_head);
        let place = Self::place(layer, 0);
        self.ops.push(Op::Attention {
            out: attention,
            lse,
            qkv,
            place,
        });

        let x_mid = self.activation("residual stream", c);
        let ln_2 = self.normed("ln_2");
        let (c_proj, ln) = (
            self.part(layer, Part::AttnCProj),
            self.part(layer, Part::Ln2),
        );
        if self.request.dropout {
            let branch = self.activation("branch", c);
            self.ops.push(Op::Linear {
                out: branch,
                x: attention,
                module: c_proj,
                residual: None,
            });
            let place = Self::place(layer, 1);
            self.ops.push(Op::ResidualLayerNorm {
                x_out: x_mid,
                normed: ln_2,
                x,
                branch,
                module: ln,
                place,
            });
        } else {
            let residual = Some(x);
            self.ops.push(Op::Linear {
                out: x_mid,
                x: attention,
                module: c_proj,
                residual,
            });
            self.ops.push(Op::LayerNorm {
                normed: ln_2,
                x: x_mid,
                module: ln,
            });
        }

        let act = self.activation("gelu", 4 * c);
        let pre = if self.request.backward {
            self.activation("gelu input", 4 * c)
        } else {
            act
        };
        let module = self.part(layer, Part::CFc);
        self.ops.push(Op::LinearGelu {
            pre,
            out: act,
            x: ln_2.out,
            module,
        });
        BlockSaved {
            x,
            ln_1,
            qkv,
            attention,
            lse,
            x_mid,
            ln_2,
            pre,
            act,
        }
    }

    /// The end of a block, which nothing in its backward needs: its output.
    fn block_end(&mut self, layer: usize, block: &BlockSaved) -> BufferId {
        let BlockSaved { act, x_mid, .. } = *block;
        let out = self.activation("residual stream", self.request.model.n_embd);
        let module = self.part(layer, Part::MlpCProj);
        if self.request.dropout {
            let branch = self.activation("branch", self.request.model.n_embd);
            self.ops.push(Op::Linear {
                out: branch,
                x: act,
                module,
                residual: None,
            });
            let place = Self::place(layer, 2);
            self.ops.push(Op::DropoutResidual {
                out,
                residual: x_mid,
                branch,
                place,
            });
        } else {
            self.ops.push(Op::Linear {
                out,
                x: act,
                module,
                residual: Some(x_mid),
            });
        }
        out
    }

    /// Logits and losses in chunks of rows, and backward from there.
    fn head(&mut self, x: BufferId, ln_f: Normed, losses: BufferId, saved: &[BlockSaved]) {
        let model = self.request.model;
        let backward = self.request.backward;
        let target = self.request.target;
        let chunk = (target.logits_elements_max / target.logits_stride).clamp(1, self.rows);
        let logits = self.buffer("logits", chunk * target.logits_stride, target.dtype);
        let dln_f = backward.then(|| self.activation("gradient of a branch", model.n_embd));
        for start in (0..self.rows).step_by(chunk) {
            let rows = start..(start + chunk).min(self.rows);
            self.ops.push(Op::Head {
                logits,
                x: ln_f.out,
                rows: rows.clone(),
            });
            self.ops.push(Op::Classifier {
                logits,
                losses,
                rows: rows.clone(),
                backward,
            });
            if let Some(dx) = dln_f {
                self.ops.push(Op::HeadBackward {
                    dx,
                    dlogits: logits,
                    x: ln_f.out,
                    rows,
                });
            }
        }
        let Some(dln_f) = dln_f else { return };
        // One gradient of the residual stream, added to on its way down.
        let dx = self.activation("gradient of the residual stream", model.n_embd);
        self.ops.push(Op::LayerNormBackward {
            dx,
            dout: dln_f,
            x,
            normed: ln_f,
            module: Module::ln_f(model),
            assign: true,
        });
        for (layer, block) in saved.iter().enumerate().rev() {
            if self.request.recompute == Recompute::Block {
                let again = self.block(layer, block.x);
                self.block_backward(layer, dx, &again);
            } else {
                self.block_backward(layer, dx, block);
            }
        }
        self.ops.push(Op::EmbeddingBackward { dout: dx });
    }

    /// The gradient of a branch's output: that of the residual stream, dropped out as forward was.
    fn branch_gradient(&mut self, dx: BufferId, place: u32) -> BufferId {
        if !self.request.dropout {
            return dx;
        }
        let dbranch = self.activation("gradient of a branch", self.request.model.n_embd);
        self.ops.push(Op::DropoutBackward {
            dbranch,
            dout: dx,
            place,
        });
        dbranch
    }

    /// The output of a LayerNorm for the weights after it: kept, or computed again.
    fn norm_again(&mut self, x: BufferId, normed: Normed, module: Module) -> BufferId {
        if self.request.recompute != Recompute::Gelu {
            return normed.out;
        }
        let again = self.normed("layernorm again");
        self.ops.push(Op::LayerNorm {
            normed: again,
            x,
            module,
        });
        again.out
    }

    fn block_backward(&mut self, layer: usize, dx: BufferId, block: &BlockSaved) {
        let c = self.request.model.n_embd;
        let BlockSaved {
            x,
            ln_1,
            qkv,
            attention,
            lse,
            x_mid,
            ln_2,
            pre,
            act,
        } = *block;
        let [ln1, c_attn, attn_c_proj, ln2, c_fc, mlp_c_proj] = [
            Part::Ln1,
            Part::CAttn,
            Part::AttnCProj,
            Part::Ln2,
            Part::CFc,
            Part::MlpCProj,
        ]
        .map(|part| self.part(layer, part));

        // MLP
        let dout = self.branch_gradient(dx, Self::place(layer, 2));
        let act = if self.request.recompute == Recompute::Gelu {
            let again = self.activation("gelu", 4 * c);
            self.ops.push(Op::Gelu { out: again, pre });
            again
        } else {
            act
        };
        self.ops.push(Op::LinearBackwardWeight {
            dout,
            x: act,
            module: mlp_c_proj,
        });
        let dpre = self.activation("gradient of the gelu", 4 * c);
        self.ops.push(Op::LinearGeluBackwardInput {
            dpre,
            dout,
            pre,
            module: mlp_c_proj,
        });
        let normed = self.norm_again(x_mid, ln_2, ln2);
        self.ops.push(Op::LinearBackwardWeight {
            dout: dpre,
            x: normed,
            module: c_fc,
        });
        let dln_2 = self.activation("gradient of a branch", c);
        self.ops.push(Op::LinearBackwardInput {
            dx: dln_2,
            dout: dpre,
            module: c_fc,
        });
        self.ops.push(Op::LayerNormBackward {
            dx,
            dout: dln_2,
            x: x_mid,
            normed: ln_2,
            module: ln2,
            assign: false,
        });

        // Attention
        let dout = self.branch_gradient(dx, Self::place(layer, 1));
        self.ops.push(Op::LinearBackwardWeight {
            dout,
            x: attention,
            module: attn_c_proj,
        });
        let dattention = self.activation("gradient of a branch", c);
        self.ops.push(Op::LinearBackwardInput {
            dx: dattention,
            dout,
            module: attn_c_proj,
        });
        let dqkv = self.activation("gradient of the qkv", 3 * c);
        let scratch = self.statistics("attention scratch", self.request.target.attention_scratch);
        self.ops.push(Op::AttentionBackward {
            dqkv,
            dout: dattention,
            qkv,
            out: attention,
            lse,
            scratch,
            place: Self::place(layer, 0),
        });
        let normed = self.norm_again(x, ln_1, ln1);
        self.ops.push(Op::LinearBackwardWeight {
            dout: dqkv,
            x: normed,
            module: c_attn,
        });
        let dln_1 = self.activation("gradient of a branch", c);
        self.ops.push(Op::LinearBackwardInput {
            dx: dln_1,
            dout: dqkv,
            module: c_attn,
        });
        self.ops.push(Op::LayerNormBackward {
            dx,
            dout: dln_1,
            x,
            normed: ln_1,
            module: ln1,
            assign: false,
        });
    }
}
