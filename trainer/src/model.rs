//! The shape of a GPT as nanoGPT defines it: its parameters by name, how they are initialised,
//! which of them decay, and what a token costs. Engines compute; this file only describes.

use kernels::gelu::Form;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::philox::{Philox, Stream};

/// The shape of a GPT, in nanoGPT's names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelConfig {
    pub n_layer: usize,
    pub n_head: usize,
    pub n_embd: usize,
    pub block_size: usize,
    pub vocab_size: usize,
    /// Biases in the linear layers and LayerNorms.
    pub bias: bool,
    /// Checkpoints from before the key have nanoGPT's.
    #[serde(default)]
    pub gelu: Gelu,
}

/// The form of GELU in the MLP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Gelu {
    /// Exact: nanoGPT's.
    #[default]
    Erf,
    /// Through tanh: GPT-2's.
    Tanh,
}

impl Gelu {
    /// The value of the key `gelu`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Erf => "erf",
            Self::Tanh => "tanh",
        }
    }

    /// The form that the key `gelu` names.
    pub fn of(name: &str) -> Self {
        if name == Self::Tanh.name() {
            Self::Tanh
        } else {
            Self::Erf
        }
    }

    /// As the kernels have it.
    pub fn form(self) -> Form {
        match self {
            Self::Erf => Form::Erf,
            Self::Tanh => Form::Tanh,
        }
    }
}

/// A named fp32 tensor on the host, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    pub name: String,
    pub shape: Vec<usize>,
    pub data: Vec<f32>,
}

/// How a parameter starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    Zeros,
    Ones,
    /// N(0, std²).
    Normal {
        std: f64,
    },
}

/// One parameter of the model.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    /// nanoGPT's name. `lm_head.weight` is `transformer.wte.weight` and not listed.
    pub name: String,
    pub shape: Vec<usize>,
    pub init: Init,
}

impl Parameter {
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Weight decay applies to matrices and embeddings, not to gains and biases.
    pub fn decays(&self) -> bool {
        self.shape.len() >= 2
    }
}

impl ModelConfig {
    /// Standard deviation of all weights but the scaled ones.
    const INIT_STD: f64 = 0.02;

    /// Every parameter, in the order of nanoGPT's modules.
    pub fn parameters(&self) -> Vec<Parameter> {
        let c = self.n_embd;
        let normal = Init::Normal {
            std: Self::INIT_STD,
        };
        // The projections back into the residual stream start smaller, so that its variance does
        // not grow with depth (GPT-2, section 2.3).
        let scaled = Init::Normal {
            std: Self::INIT_STD / (2.0 * self.n_layer as f64).sqrt(),
        };
        let mut list = Vec::new();
        let mut add = |name: String, shape: &[usize], init| {
            list.push(Parameter {
                name,
                shape: shape.to_vec(),
                init,
            });
        };
        add(
            "transformer.wte.weight".to_owned(),
            &[self.vocab_size, c],
            normal,
        );
        add(
            "transformer.wpe.weight".to_owned(),
            &[self.block_size, c],
            normal,
        );
        for layer in 0..self.n_layer {
            let mut module = |name: &str, shape: &[usize], init| {
                add(format!("transformer.h.{layer}.{name}.weight"), shape, init);
                if self.bias {
                    add(
                        format!("transformer.h.{layer}.{name}.bias"),
                        &shape[..1],
                        Init::Zeros,
                    );
                }
            };
            module("ln_1", &[c], Init::Ones);
            module("attn.c_attn", &[3 * c, c], normal);
            module("attn.c_proj", &[c, c], scaled);
            module("ln_2", &[c], Init::Ones);
            module("mlp.c_fc", &[4 * c, c], normal);
            module("mlp.c_proj", &[c, 4 * c], scaled);
        }
        add("transformer.ln_f.weight".to_owned(), &[c], Init::Ones);
        if self.bias {
            add("transformer.ln_f.bias".to_owned(), &[c], Init::Zeros);
        }
        list
    }

    /// The keys of a config that describe this model, and their values.
    pub fn settings(&self) -> [(&'static str, String); 7] {
        [
            ("n_layer", self.n_layer.to_string()),
            ("n_head", self.n_head.to_string()),
            ("n_embd", self.n_embd.to_string()),
            ("block_size", self.block_size.to_string()),
            ("vocab_size", self.vocab_size.to_string()),
            ("bias", self.bias.to_string()),
            ("gelu", self.gelu.name().to_owned()),
        ]
    }

    /// All parameters, the tied embedding counted once.
    pub fn parameter_count(&self) -> u64 {
        self.parameters().iter().map(|p| p.elements() as u64).sum()
    }

    /// nanoGPT's count: without the position embedding.
    pub fn parameter_count_without_positions(&self) -> u64 {
        self.parameter_count() - (self.block_size * self.n_embd) as u64
    }

    /// Floating-point operations of forward and backward for one token, nanoGPT's estimate:
    /// 6N + 12·L·H·Q·T (PaLM, appendix B).
    pub fn flops_per_token(&self) -> f64 {
        let attention = 12 * self.n_layer * self.n_embd * self.block_size;
        6.0 * self.parameter_count_without_positions() as f64 + attention as f64
    }

    /// Fresh parameters for a seed. The same on every machine and for any number of threads.
    pub fn initialise(&self, seed: u64) -> Vec<NamedTensor> {
        let philox = Philox::new(seed, Stream::Init);
        let fill = |(index, parameter): (usize, Parameter)| {
            let elements = parameter.elements();
            let data = match parameter.init {
                Init::Zeros => vec![0.0; elements],
                Init::Ones => vec![1.0; elements],
                Init::Normal { std } => normal(&philox, index as u32, elements, std),
            };
            NamedTensor {
                name: parameter.name,
                shape: parameter.shape,
                data,
            }
        };
        self.parameters()
            .into_iter()
            .enumerate()
            .map(fill)
            .collect()
    }
}

/// `elements` draws from N(0, std²): four of each Philox block, by Box and Muller.
fn normal(philox: &Philox, tensor: u32, elements: usize, std: f64) -> Vec<f32> {
    let uniform = |word: u32| (f64::from(word) + 0.5) / (1u64 << 32) as f64;
    let mut data = vec![0.0; elements];
    data.par_chunks_mut(4)
        .enumerate()
        .for_each(|(block, chunk)| {
            let words = philox.block([block as u32, (block as u64 >> 32) as u32, tensor, 0]);
            for (pair, out) in chunk.chunks_mut(2).enumerate() {
                let radius = std * (-2.0 * uniform(words[2 * pair]).ln()).sqrt();
                let angle = 2.0 * std::f64::consts::PI * uniform(words[2 * pair + 1]);
                let draws = [radius * angle.cos(), radius * angle.sin()];
                for (slot, draw) in out.iter_mut().zip(draws) {
                    *slot = draw as f32;
                }
            }
        });
    data
}

#[cfg(test)]
mod tests;
