//! The GPT of nanoGPT in candle: pre-LayerNorm blocks, learned positions, tied head, GELU.

use candle_core::{D, Device, Tensor};
use candle_nn::{Embedding, Linear, Module, ops};
use rayon::prelude::*;

use crate::engine::MicroStep;
use crate::error::Result;
use crate::model::{Gelu, ModelConfig};
use crate::philox::Philox;

/// PyTorch's default, which nanoGPT keeps.
const LAYER_NORM_EPS: f64 = 1e-5;

pub(super) struct Gpt {
    n_head: usize,
    gelu: Gelu,
    wte: Tensor, // (V, C), also the head
    wpe: Tensor, // (block_size, C)
    blocks: Vec<Block>,
    ln_f: LayerNorm,
}

struct Block {
    ln_1: LayerNorm,
    c_attn: Linear, // C -> 3C
    attn_c_proj: Linear,
    ln_2: LayerNorm,
    c_fc: Linear, // C -> 4C
    mlp_c_proj: Linear,
}

struct LayerNorm {
    weight: Tensor, // (C)
    bias: Option<Tensor>,
}

impl Gpt {
    /// Takes the tensors in the order of [`ModelConfig::parameters`].
    pub(super) fn new(
        model: &ModelConfig,
        mut tensors: impl Iterator<Item = Tensor>,
    ) -> Result<Self> {
        let mut module = |with_bias: bool| {
            let weight = tensors
                .next()
                .expect("as many tensors as the model has parameters");
            let bias = with_bias.then(|| tensors.next().expect("a bias follows its weight"));
            (weight, bias)
        };
        let (wte, _) = module(false);
        let (wpe, _) = module(false);
        let norm = |(weight, bias)| LayerNorm { weight, bias };
        let linear = |(weight, bias)| Linear::new(weight, bias);
        let blocks = (0..model.n_layer)
            .map(|_| Block {
                ln_1: norm(module(model.bias)),
                c_attn: linear(module(model.bias)),
                attn_c_proj: linear(module(model.bias)),
                ln_2: norm(module(model.bias)),
                c_fc: linear(module(model.bias)),
                mlp_c_proj: linear(module(model.bias)),
            })
            .collect();
        let ln_f = norm(module(model.bias));
        Ok(Self {
            n_head: model.n_head,
            gelu: model.gelu,
            wte,
            wpe,
            blocks,
            ln_f,
        })
    }

    /// Hidden states after the last LayerNorm, `(B, T, C)`, for `tokens` `(B, T)`. With a cache,
    /// `tokens` continue the sequence in it, and it grows by them.
    pub(super) fn hidden(
        &self,
        tokens: &Tensor,
        dropout: Option<&Dropout<'_>>,
        mut cache: Option<&mut KeyValueCache>,
    ) -> Result<Tensor> {
        let (_, t) = tokens.dims2()?;
        let start = cache.as_ref().map_or(0, |cache| cache.tokens.len());
        let c = self.wte.dim(1)?;
        let token_embedding = Embedding::new(self.wte.clone(), c).forward(tokens)?; // (B, T, C)
        let position_embedding = self.wpe.narrow(0, start, t)?; // (T, C)
        let x = token_embedding.broadcast_add(&position_embedding)?;
        let mut x = Dropout::apply(dropout, x, 0)?;
        let mask = causal_mask(start, t)?; // (T, start + T)
        for (layer, block) in self.blocks.iter().enumerate() {
            let places = 1 + 3 * layer as u32;
            let cached = cache.as_deref_mut().map(|cache| cache.layer(layer));
            let y = self.attention(
                block,
                &block.ln_1.forward(&x)?,
                &mask,
                dropout,
                places,
                cached,
            )?;
            x = (x + Dropout::apply(dropout, y, places + 1)?)?;
            let y = block.c_fc.forward(&block.ln_2.forward(&x)?)?;
            let y = match self.gelu {
                Gelu::Erf => y.gelu_erf()?,
                Gelu::Tanh => y.gelu()?,
            }; // (B, T, 4C)
            let y = block.mlp_c_proj.forward(&y)?;
            x = (x + Dropout::apply(dropout, y, places + 2)?)?;
        }
        self.ln_f.forward(&x)
    }

    /// Logits `(B, T, V)` of hidden states `(B, T, C)`.
    pub(super) fn head(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(Linear::new(self.wte.clone(), None).forward(hidden)?)
    }

    fn attention(
        &self,
        block: &Block,
        x: &Tensor,
        mask: &Tensor,
        dropout: Option<&Dropout<'_>>,
        place: u32,
        cached: Option<&mut Option<(Tensor, Tensor)>>,
    ) -> Result<Tensor> {
        let (b, t, c) = x.dims3()?;
        let head_size = c / self.n_head;
        let qkv = block.c_attn.forward(x)?; // (B, T, 3C)
        let split = |index: usize| -> Result<Tensor> {
            let part = qkv
                .narrow(2, index * c, c)?
                .reshape((b, t, self.n_head, head_size))?;
            Ok(part.transpose(1, 2)?.contiguous()?) // (B, H, T, hs)
        };
        let (q, mut k, mut v) = (split(0)?, split(1)?, split(2)?);
        if let Some(cached) = cached {
            if let Some((old_k, old_v)) = cached.take() {
                k = Tensor::cat(&[&old_k, &k], 2)?;
                v = Tensor::cat(&[&old_v, &v], 2)?;
            }
            *cached = Some((k.clone(), v.clone()));
        }
        let scores = (q.matmul(&k.t()?)? * (1.0 / (head_size as f64).sqrt()))?; // (B, H, T, S)
        let never = Tensor::new(f32::NEG_INFINITY, &Device::Cpu)?.broadcast_as(scores.shape())?;
        let scores = mask
            .broadcast_as(scores.shape())?
            .where_cond(&never, &scores)?;
        let weights = Dropout::apply(dropout, ops::softmax(&scores, D::Minus1)?, place)?;
        let y = weights.matmul(&v)?.transpose(1, 2)?.reshape((b, t, c))?;
        Ok(block.attn_c_proj.forward(&y)?)
    }
}

impl LayerNorm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?; // (B, T, 1)
        let normed = centred.broadcast_div(&(variance + LAYER_NORM_EPS)?.sqrt()?)?;
        let scaled = normed.broadcast_mul(&self.weight)?;
        match &self.bias {
            Some(bias) => Ok(scaled.broadcast_add(bias)?),
            None => Ok(scaled),
        }
    }
}

/// Mean cross-entropy of `logits` `(B, T, V)` against `targets` `(B * T)`, nats per token.
pub(super) fn cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    Ok(candle_nn::loss::cross_entropy(
        &logits.flatten_to(1)?,
        targets,
    )?)
}

/// (T, start + T): 1 where position `start + row` must not look at position `column`.
fn causal_mask(start: usize, t: usize) -> Result<Tensor> {
    let width = start + t;
    let mask: Vec<u8> = (0..t * width)
        .map(|i| u8::from(i % width > start + i / width))
        .collect();
    Ok(Tensor::from_vec(mask, (t, width), &Device::Cpu)?)
}

/// Inverted dropout whose masks follow from (seed, step, micro-step, place) and nothing else.
pub(super) struct Dropout<'a> {
    pub(super) p: f64,
    pub(super) philox: &'a Philox,
    pub(super) at: MicroStep,
}

impl Dropout<'_> {
    /// Drops elements of `x`. `place` numbers the dropouts of the model: 0 after the embedding,
    /// then attention weights, attention output and MLP output of each layer.
    fn apply(this: Option<&Self>, x: Tensor, place: u32) -> Result<Tensor> {
        match this {
            Some(dropout) if dropout.p > 0.0 => {
                let mask = dropout.mask(x.elem_count(), place);
                Ok((&x * Tensor::from_vec(mask, x.shape(), &Device::Cpu)?)?)
            }
            _ => Ok(x),
        }
    }

    /// 0 or 1/(1-p) for each element: element i looks at word i mod 4 of block i / 4.
    pub(super) fn mask(&self, elements: usize, place: u32) -> Vec<f32> {
        let threshold = (self.p * (1u64 << 32) as f64) as u32;
        let keep = (1.0 / (1.0 - self.p)) as f32;
        let [step, rest] = self.at.counter();
        let mut mask = vec![0.0; elements];
        mask.par_chunks_mut(4)
            .enumerate()
            .with_min_len(1024)
            .for_each(|(block, chunk)| {
                let words = self.philox.block([block as u32, place, step, rest]);
                for (slot, word) in chunk.iter_mut().zip(words) {
                    *slot = if word >= threshold { keep } else { 0.0 };
                }
            });
        mask
    }
}

/// Keys and values of the tokens seen so far, so that a longer sequence costs only its new tokens.
#[derive(Default)]
pub(super) struct KeyValueCache {
    tokens: Vec<u32>,
    /// A layer's keys and values, each (1, H, S, hs).
    layers: Vec<Option<(Tensor, Tensor)>>,
}

impl KeyValueCache {
    /// How many of `tokens` need not be computed again. Starts over where they do not continue
    /// the sequence in the cache: positions are absolute, so a shifted window shares nothing.
    pub(super) fn reuse(&mut self, tokens: &[u32]) -> usize {
        if tokens.len() <= self.tokens.len() || !tokens.starts_with(&self.tokens) {
            *self = Self::default();
        }
        self.tokens.len()
    }

    pub(super) fn remember(&mut self, tokens: &[u32]) {
        self.tokens = tokens.to_vec();
    }

    fn layer(&mut self, layer: usize) -> &mut Option<(Tensor, Tensor)> {
        if self.layers.len() <= layer {
            self.layers.resize_with(layer + 1, || None);
        }
        &mut self.layers[layer]
    }
}
