//! Hugging Face's GPT-2 folders: `config.json` and `model.safetensors` become a model of ours.
//! Called by `init_from` and `trainer import`; `hub` brings a folder that is not here.
//!
//! transformers' `modeling_gpt2.py` keeps its linear layers as `Conv1D`, transposed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use super::{Imported, weights};
use crate::engine::NamedTensor;
use crate::error::{Error, Result};
use crate::model::{Gelu, ModelConfig, Parameter};
use crate::tokenizer::Tokenizer;

pub const CONFIG: &str = "config.json";
pub const WEIGHTS: &str = "model.safetensors";
/// Says which file holds which tensor, where there are several.
pub const INDEX: &str = "model.safetensors.index.json";
pub const TOKENIZER: &str = "tokenizer.json";

const HEAD: &str = "lm_head.weight";
const PREFIX: &str = "transformer.";
const TOKEN_EMBEDDING: &str = "transformer.wte.weight";
/// The linear layers, which are `Conv1D` there.
const TRANSPOSED: [&str; 4] = [
    ".attn.c_attn.weight",
    ".attn.c_proj.weight",
    ".mlp.c_fc.weight",
    ".mlp.c_proj.weight",
];
/// Larger sizes than this are in no model.
const SIZE_MAX: u64 = 1 << 31;

/// Reads the model in `folder`.
///
/// # Errors
/// [`Error::Data`] if a file is missing or damaged, or the model is not a GPT-2 as we compute it.
pub fn read(folder: &Path) -> Result<Imported> {
    let model = model_config(&folder.join(CONFIG))?;
    let mut parameters: BTreeMap<String, NamedTensor> = BTreeMap::new();
    let expected: BTreeMap<String, Vec<usize>> = model
        .parameters()
        .into_iter()
        .map(|Parameter { name, shape, .. }| (name, shape))
        .collect();
    for path in weight_files(folder)? {
        read_file(&path, &expected, &mut parameters)?;
    }
    let head = parameters.remove(HEAD);
    let mut ordered = Vec::new();
    for Parameter { name, .. } in model.parameters() {
        let Some(tensor) = parameters.remove(&name) else {
            return Err(Error::Data(format!(
                "{}: tensor {name} is missing",
                folder.display()
            )));
        };
        ordered.push(tensor);
    }
    if head.is_some_and(|head| head.data != ordered[0].data) {
        return Err(Error::Data(format!(
            "{}: {HEAD} differs from {TOKEN_EMBEDDING}; expected them tied, as GPT-2's are",
            folder.display()
        )));
    }
    Ok(Imported {
        config: model
            .settings()
            .map(|(key, value)| (key.to_owned(), value))
            .to_vec(),
        model,
        engine: weights(ordered),
        step: 0,
        val_loss: None,
        notes: Vec::new(),
    })
}

/// Adds the tensors of one file, under our names and in our layout.
fn read_file(
    path: &Path,
    expected: &BTreeMap<String, Vec<usize>>,
    parameters: &mut BTreeMap<String, NamedTensor>,
) -> Result<()> {
    let file = File::open(path).map_err(Error::read(path))?;
    #[expect(unsafe_code, reason = "a file of gigabytes is mapped, not copied")]
    // SAFETY: the mapping is read only; what another process does to the file meanwhile can
    // change numbers, which are all that is read from it.
    let map = unsafe { Mmap::map(&file) }.map_err(Error::read(path))?;
    let fault = |what: String| Error::Data(format!("{}: {what}", path.display()));
    let tensors = SafeTensors::deserialize(&map).map_err(|error| fault(error.to_string()))?;
    for (name, view) in tensors.iter().filter(|(name, _)| !is_mask(name)) {
        let ours = if name == HEAD || name.starts_with(PREFIX) {
            name.to_owned()
        } else {
            format!("{PREFIX}{name}")
        };
        let wanted = if ours == HEAD { TOKEN_EMBEDDING } else { &ours };
        let Some(shape) = expected.get(wanted) else {
            return Err(fault(format!("tensor {name} is none of GPT-2's")));
        };
        let mut stored = shape.clone();
        if is_transposed(&ours) {
            stored.reverse();
        }
        if view.shape() != stored {
            return Err(fault(format!(
                "tensor {name}: expected shape {stored:?}, got {:?}",
                view.shape()
            )));
        }
        let mut data = widened(view.dtype(), view.data())
            .ok_or_else(|| fault(format!("tensor {name}: a dtype of {:?}", view.dtype())))?;
        if is_transposed(&ours) {
            data = transposed(&data, shape);
        }
        let tensor = NamedTensor {
            name: ours.clone(),
            shape: shape.clone(),
            data,
        };
        if parameters.insert(ours, tensor).is_some() {
            return Err(fault(format!("tensor {name} occurs twice")));
        }
    }
    Ok(())
}

/// The tokenizer in `folder`; GPT-2's where the folder has none and the vocabulary its size.
///
/// # Errors
/// [`Error::Data`] if there is one that cannot be read.
pub fn tokenizer(folder: &Path, model: &ModelConfig) -> Result<Option<Tokenizer>> {
    /// As it is, and as nanoGPT pads it.
    const GPT2_VOCAB_SIZES: [usize; 2] = [50_257, 50_304];
    let path = folder.join(TOKENIZER);
    if path.exists() {
        return Tokenizer::from_file(&path).map(Some);
    }
    if GPT2_VOCAB_SIZES.contains(&model.vocab_size) {
        return Tokenizer::gpt2().map(Some);
    }
    Ok(None)
}

/// What `config.json` describes, if our model is able to be it.
fn model_config(path: &Path) -> Result<ModelConfig> {
    let bytes = fs::read(path).map_err(Error::read(path))?;
    let fault = |what: String| Error::Data(format!("{}: {what}", path.display()));
    let config: Value = serde_json::from_slice(&bytes).map_err(|error| fault(error.to_string()))?;
    let get = |key: &str| config.get(key).filter(|value| !value.is_null());
    let kind = get("model_type").and_then(Value::as_str).unwrap_or("none");
    if kind != "gpt2" {
        return Err(fault(format!(
            "model_type: expected \"gpt2\", got {kind:?}"
        )));
    }
    let size = |key: &str| {
        let found = get(key).and_then(Value::as_u64);
        match found.filter(|size| (1..SIZE_MAX).contains(size)) {
            Some(size) => Ok(size as usize),
            None => Err(fault(format!(
                "{key}: expected a whole number of 1 to {}",
                SIZE_MAX - 1
            ))),
        }
    };
    let activation = get("activation_function").and_then(Value::as_str);
    let gelu = match activation.unwrap_or("gelu_new") {
        "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Gelu::Tanh,
        "gelu" | "gelu_python" => Gelu::Erf,
        other => {
            return Err(fault(format!(
                "activation_function: expected gelu_new or gelu, got {other:?}"
            )));
        }
    };
    let model = ModelConfig {
        n_layer: size("n_layer")?,
        n_head: size("n_head")?,
        n_embd: size("n_embd")?,
        block_size: size("n_positions").or_else(|_| size("n_ctx"))?,
        vocab_size: size("vocab_size")?,
        // GPT-2's layers all have one.
        bias: true,
        gelu,
    };
    if !model.n_embd.is_multiple_of(model.n_head) {
        return Err(fault(format!(
            "n_embd: expected a multiple of n_head ({}), got {}",
            model.n_head, model.n_embd
        )));
    }
    match unlike(&config, model.n_embd) {
        Some(what) => Err(fault(format!("{what}; other GPT-2s are not computed here"))),
        None => Ok(model),
    }
}

/// What of a config our model cannot be, if there is something.
fn unlike(config: &Value, n_embd: usize) -> Option<&'static str> {
    let get = |key: &str| config.get(key).filter(|value| !value.is_null());
    let inner = get("n_inner").map_or(Some(4 * n_embd as u64), Value::as_u64);
    let epsilon = get("layer_norm_epsilon").map_or(Some(1e-5), Value::as_f64);
    let is =
        |key: &str, default: bool| get(key).map_or(default, |value| value == &Value::Bool(true));
    let rules = [
        (
            inner == Some(4 * n_embd as u64),
            "n_inner: expected 4 n_embd",
        ),
        (
            epsilon.is_some_and(|epsilon| (epsilon - 1e-5).abs() < 1e-9),
            "layer_norm_epsilon: expected 1e-5",
        ),
        (
            is("scale_attn_weights", true),
            "scale_attn_weights: expected true",
        ),
        (
            !is("scale_attn_by_inverse_layer_idx", false),
            "scale_attn_by_inverse_layer_idx: expected false",
        ),
        (
            !is("add_cross_attention", false),
            "add_cross_attention: expected false",
        ),
        (
            is("tie_word_embeddings", true),
            "tie_word_embeddings: expected true",
        ),
    ];
    rules
        .into_iter()
        .find(|(holds, _)| !holds)
        .map(|(_, what)| what)
}

/// The files that hold the tensors.
fn weight_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let index = folder.join(INDEX);
    if !index.exists() {
        let path = folder.join(WEIGHTS);
        if !path.exists() {
            return Err(Error::Data(format!(
                "{}: expected {WEIGHTS}, got none\nhint: pytorch_model.bin is not read; \
                 transformers' save_pretrained writes {WEIGHTS}",
                folder.display()
            )));
        }
        return Ok(vec![path]);
    }
    let bytes = fs::read(&index).map_err(Error::read(&index))?;
    let mut names = shards(&bytes)
        .ok_or_else(|| Error::Data(format!("{}: expected a weight_map", index.display())))?;
    names.dedup();
    Ok(names.iter().map(|name| folder.join(name)).collect())
}

/// The files that an index names, sorted; `None` if it is none or names other folders.
pub fn shards(index: &[u8]) -> Option<Vec<String>> {
    let index: Value = serde_json::from_slice(index).ok()?;
    let mut names = Vec::new();
    for name in index.get("weight_map")?.as_object()?.values() {
        let name = name.as_str().filter(|name| !name.contains(['/', '\\']))?;
        names.push(name.to_owned());
    }
    names.sort_unstable();
    names.dedup();
    Some(names)
}

/// The causal mask, which old files hold.
fn is_mask(name: &str) -> bool {
    name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias")
}

fn widened(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    let halves = bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
    match dtype {
        Dtype::F32 => {
            let words = bytes.chunks_exact(4);
            let word = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            Some(words.map(word).collect())
        }
        Dtype::F16 => Some(
            halves
                .map(|b| half::f16::from_le_bytes(b).to_f32())
                .collect(),
        ),
        Dtype::BF16 => Some(
            halves
                .map(|b| half::bf16::from_le_bytes(b).to_f32())
                .collect(),
        ),
        _ => None,
    }
}

/// `data`, of the shape reversed, in `shape` (rows, columns); or the other way round.
pub fn transposed(data: &[f32], shape: &[usize]) -> Vec<f32> {
    let &[rows, columns] = shape else {
        unreachable!("only matrices are transposed");
    };
    let mut out = vec![0.0; data.len()];
    for (row, out) in out.chunks_exact_mut(columns).enumerate() {
        for (column, out) in out.iter_mut().enumerate() {
            *out = data[column * rows + row];
        }
    }
    out
}

/// Whether a parameter is stored transposed.
pub fn is_transposed(name: &str) -> bool {
    TRANSPOSED.iter().any(|end| name.ends_with(end))
}

#[cfg(test)]
mod tests;
