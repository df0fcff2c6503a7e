//! Generation: logits of the next token, with the keys and values of the sequence so far kept.

use kernels::attention::cpu::{CacheDims, decode, key_cache_len, store, value_cache_len};
use kernels::buffer::Buffer;
use kernels::{embedding, layernorm, matmul};

use super::run::{Context, elements, run};
use crate::engine::Profile;
use crate::engine::plan::{Layout, Module, Part, PlanRequest, Recompute};
use crate::model::ModelConfig;

/// The sequence seen last, and what is known of it.
#[derive(Default)]
pub(super) struct Decoder {
    tokens: Vec<u32>,
    /// A layer's keys and values.
    caches: Vec<(Buffer, Buffer)>,
    arena: Buffer,
}

impl Decoder {
    /// Forgets the sequence: the parameters have changed.
    pub(super) fn forget(&mut self) {
        self.tokens.clear();
    }

    /// Logits `(V)` after the last of `tokens`. Computes only what the cache does not know: new
    /// tokens at the end of the sequence, or all of another one. Positions are absolute, so a
    /// shifted window shares nothing.
    pub(super) fn logits(
        &mut self,
        model: &ModelConfig,
        layout: &Layout,
        parameters: &[f32],
        tokens: &[u32],
    ) -> Vec<f32> {
        let weights = Weights {
            model,
            layout,
            parameters,
        };
        if self.caches.is_empty() {
            let head_size = model.n_embd / model.n_head;
            let keys = key_cache_len(model.n_head, head_size, model.block_size);
            let values = value_cache_len(model.n_head, head_size, model.block_size);
            self.caches = (0..model.n_layer)
                .map(|_| (Buffer::zeros(keys), Buffer::zeros(values)))
                .collect();
        }
        let continues = tokens.len() > self.tokens.len() && tokens.starts_with(&self.tokens);
        let hidden = if continues && !self.tokens.is_empty() {
            let mut hidden = Vec::new();
            for (position, &token) in tokens.iter().enumerate().skip(self.tokens.len()) {
                hidden = self.step(&weights, token, position);
            }
            hidden
        } else {
            self.prefill(&weights, tokens)
        };
        self.tokens = tokens.to_vec();
        let mut logits = vec![0.0; model.vocab_size];
        let dims = matmul::Dims {
            m: 1,
            k: model.n_embd,
            n: model.vocab_size,
        };
        matmul::cpu::forward(&mut logits, &hidden, weights.parameter(0), None, None, dims);
        logits
    }

    /// Hidden state `(C)` of the last of several tokens at once; fills the caches.
    fn prefill(&mut self, weights: &Weights<'_>, tokens: &[u32]) -> Vec<f32> {
        let model = weights.model;
        let plan = PlanRequest {
            model,
            batch_size: 1,
            block_size: tokens.len(),
            backward: false,
            dropout: false,
            recompute: Recompute::None,
            losses: false,
            target: super::target(model, 0),
        }
        .build();
        if size_of_val(&*self.arena) < plan.arena_bytes {
            self.arena = Buffer::zeros(plan.arena_bytes / size_of::<f32>());
        }
        let context = Context {
            plan: &plan,
            layout: weights.layout,
            parameters: weights.parameters,
            tokens,
            targets: &[],
            loss_scale: 0.0,
            dropout: None,
        };
        run(&context, &mut self.arena, &mut [], &mut Profile::default());
        for (qkv, (keys, values)) in plan.qkv.iter().zip(&mut self.caches) {
            let qkv = &self.arena[elements(&plan, *qkv)];
            store(keys, values, qkv, weights.cache_dims(), 0);
        }
        let hidden = &self.arena[elements(&plan, plan.hidden)];
        hidden[hidden.len() - model.n_embd..].to_vec()
    }

    /// Hidden state `(C)` of one token at `position`; adds it to the caches.
    fn step(&mut self, weights: &Weights<'_>, token: u32, position: usize) -> Vec<f32> {
        let c = weights.model.n_embd;
        let (wte, wpe) = (weights.parameter(0), weights.parameter(1));
        let mut x = vec![0.0; c];
        embedding::cpu::forward(&mut x, &[token], wte, wpe, 1, c, position, None);
        let (mut normed, mut attention) = (vec![0.0; c], vec![0.0; c]);
        let (mut qkv, mut act) = (vec![0.0; 3 * c], vec![0.0; 4 * c]);
        let mut out = vec![0.0; c];
        for (layer, (keys, values)) in self.caches.iter_mut().enumerate() {
            let module = |part| Module::of(weights.model, layer, part);
            weights.norm(&mut normed, &x, module(Part::Ln1));
            weights.linear(&mut qkv, &normed, module(Part::CAttn), None);
            decode(
                &mut attention,
                keys,
                values,
                &qkv,
                weights.cache_dims(),
                position,
            );
            weights.linear(&mut out, &attention, module(Part::AttnCProj), Some(&x));
            weights.norm(&mut normed, &out, module(Part::Ln2));
            let (weight, bias, dims) = weights.module(module(Part::CFc));
            matmul::cpu::forward_gelu_alone(
                weights.model.gelu.form(),
                &mut act,
                &normed,
                weight,
                bias,
                dims,
            );
            weights.linear(&mut x, &act, module(Part::MlpCProj), Some(&out));
        }
        weights.norm(&mut normed, &x, Module::ln_f(weights.model));
        normed
    }
}

/// The parameters by module, for one row.
struct Weights<'a> {
    model: &'a ModelConfig,
    layout: &'a Layout,
    parameters: &'a [f32],
}

impl Weights<'_> {
    fn parameter(&self, index: usize) -> &[f32] {
        &self.parameters[self.layout.places[index].clone()]
    }

    /// Weight, bias and dimensions of a module.
    fn module(&self, module: Module) -> (&[f32], Option<&[f32]>, matmul::Dims) {
        let weight = module.weight.0;
        let bias = module.bias.map(|bias| self.parameter(bias.0));
        let shape = &self.layout.parameters[weight].shape;
        let dims = matmul::Dims {
            m: 1,
            k: *shape.last().expect("a shape"),
            n: shape[0],
        };
        (self.parameter(weight), bias, dims)
    }

    fn norm(&self, out: &mut [f32], x: &[f32], module: Module) {
        let (weight, bias, _) = self.module(module);
        layernorm::cpu::forward(out, &mut [0.0], &mut [0.0], x, weight, bias);
    }

    fn linear(&self, out: &mut [f32], x: &[f32], module: Module, residual: Option<&[f32]>) {
        let (weight, bias, dims) = self.module(module);
        matmul::cpu::forward(out, x, weight, bias, residual, dims);
    }

    fn cache_dims(&self) -> CacheDims {
        CacheDims {
            heads: self.model.n_head,
            head_size: self.model.n_embd / self.model.n_head,
            block_size: self.model.block_size,
        }
    }
}
