//! Generation: logits of the next token, with the keys and values of the sequence so far kept on
//! the device.

use kernels::cuda::{Buffer, CudaError, Device, HostBuffer, Stream};
use kernels::decode::cuda::{self as decode, CacheDims, Linear};
use kernels::gelu;

use super::memory::{Parameters, Precision, cache_dims, padded_vocab_size};
use crate::engine::plan::{Module, Part};
use crate::model::{Gelu, ModelConfig};

/// The sequence seen last, and what is known of it.
pub(super) struct Decoder<T> {
    dims: CacheDims,
    /// A layer's keys and values.
    caches: Vec<[Buffer<T>; 2]>, // (H, block, D)
    /// The token and its position.
    at: Buffer<i32>, // (2)
    buffers: Buffers<T>,
    logits: Buffer<f32>, // (padded V)
    /// The tokens whose keys and values the caches hold.
    tokens: Vec<u32>,
    at_host: HostBuffer<i32>,
    logits_host: HostBuffer<f32>,
}

/// Of one token.
struct Buffers<T> {
    x: Buffer<T>,         // (C)
    middle: Buffer<T>,    // (C)
    qkv: Buffer<T>,       // (3C)
    attention: Buffer<T>, // (C)
    /// What GELU with tanh, which is an operation of its own, is taken of.
    pre: Option<Buffer<T>>, // (4C)
    act: Buffer<T>,       // (4C)
}

impl<T: Precision> Decoder<T> {
    /// `None` for models that the kernels do not take.
    pub(super) fn new(device: &Device, model: &ModelConfig) -> Result<Option<Self>, CudaError> {
        let Some(dims) = cache_dims(model) else {
            return Ok(None);
        };
        let c = model.n_embd;
        let cache = || Ok([device.alloc(dims.len())?, device.alloc(dims.len())?]);
        let padded = padded_vocab_size(model);
        Ok(Some(Self {
            dims,
            caches: (0..model.n_layer)
                .map(|_| cache())
                .collect::<Result<_, CudaError>>()?,
            at: device.alloc(2)?,
            buffers: Buffers {
                x: device.alloc(c)?,
                middle: device.alloc(c)?,
                qkv: device.alloc(3 * c)?,
                attention: device.alloc(c)?,
                pre: match model.gelu {
                    Gelu::Erf => None,
                    Gelu::Tanh => Some(device.alloc(4 * c)?),
                },
                act: device.alloc(4 * c)?,
            },
            logits: device.alloc(padded)?,
            tokens: Vec::new(),
            at_host: device.host_buffer(&[0; 2])?,
            logits_host: device.host_buffer(&vec![0.0; padded])?,
        }))
    }

    /// Forgets the sequence: the parameters have changed.
    pub(super) fn forget(&mut self) {
        self.tokens.clear();
    }

    /// How many of `tokens` need not be computed again: all of the sequence seen last, where they
    /// continue it. Positions are absolute, so a shifted window shares nothing.
    pub(super) fn known(&self, tokens: &[u32]) -> usize {
        let continues = tokens.len() > self.tokens.len() && tokens.starts_with(&self.tokens);
        if continues { self.tokens.len() } else { 0 }
    }

    /// The caches hold these tokens.
    pub(super) fn holds(&mut self, tokens: &[u32]) {
        self.tokens = tokens.to_vec();
    }

    /// Adds the copy of the next token and its position to the device, which must be done with the
    /// one before.
    pub(super) fn send(
        &mut self,
        stream: &Stream,
        token: u32,
        position: usize,
    ) -> Result<(), CudaError> {
        self.at_host.write(&[token as i32, position as i32]);
        stream.upload(&mut self.at, &self.at_host)
    }

    /// Logits of `vocab_size` tokens after the token that was sent last.
    pub(super) fn read(
        &mut self,
        stream: &Stream,
        vocab_size: usize,
    ) -> Result<Vec<f32>, CudaError> {
        stream.download(&mut self.logits_host, &self.logits)?;
        stream.synchronize()?;
        let mut logits = self.logits_host.read();
        logits.truncate(vocab_size);
        Ok(logits)
    }

    /// Adds that the caches hold a prompt, of which each layer left `qkv`.
    pub(super) fn add_store(
        &mut self,
        stream: &Stream,
        qkv: &[Buffer<T>], // (T, 3C) each
    ) -> Result<(), CudaError> {
        for ([keys, values], qkv) in self.caches.iter_mut().zip(qkv) {
            decode::store(stream, [keys, values], qkv, self.dims)?;
        }
        Ok(())
    }

    /// Adds the model's forward pass on the token that was sent.
    pub(super) fn add_step(
        &mut self,
        stream: &Stream,
        model: &ModelConfig,
        parameters: &Parameters<T>,
    ) -> Result<(), CudaError> {
        let Buffers {
            x,
            middle,
            qkv,
            attention,
            pre,
            act,
        } = &mut self.buffers;
        let [wte, wpe] = parameters.embeddings();
        decode::embed(stream, x, &self.at, &wte, &wpe)?;
        for (layer, [keys, values]) in self.caches.iter_mut().enumerate() {
            let of = |part| parameters.module(Module::of(model, layer, part));
            let (ln_1, c_attn) = (of(Part::Ln1), of(Part::CAttn));
            decode::linear(stream, qkv, x, linear(&c_attn, Some(&ln_1), None))?;
            let dims = self.dims;
            decode::attention(stream, attention, [keys, values], qkv, &self.at, dims)?;
            let c_proj = of(Part::AttnCProj);
            decode::linear(stream, middle, attention, linear(&c_proj, None, Some(x)))?;
            let (ln_2, c_fc) = (of(Part::Ln2), of(Part::CFc));
            let c_fc = linear(&c_fc, Some(&ln_2), None);
            if let Some(pre) = pre {
                decode::linear(stream, pre, middle, c_fc)?;
                gelu::cuda::forward_tanh(stream, act, pre)?;
            } else {
                decode::linear_gelu(stream, act, middle, c_fc)?;
            }
            let c_proj = of(Part::MlpCProj);
            decode::linear(stream, x, act, linear(&c_proj, None, Some(middle)))?;
        }
        let ln_f = parameters.module(Module::ln_f(model));
        let head = (parameters.padded_wte(), None);
        decode::logits(
            stream,
            &mut self.logits,
            x,
            linear(&head, Some(&ln_f), None),
        )
    }
}

/// A weight and its bias.
type Pair<T> = (Buffer<T>, Option<Buffer<T>>);

fn linear<'a, T>(
    (weight, bias): &'a Pair<T>,
    norm: Option<&'a Pair<T>>,
    residual: Option<&'a Buffer<T>>,
) -> Linear<'a, T> {
    Linear {
        norm: norm.map(|(weight, bias)| (weight, bias.as_ref())),
        weight,
        bias: bias.as_ref(),
        residual,
    }
}
