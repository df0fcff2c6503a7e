//! Writes a checkpoint as Hugging Face's GPT-2: `transformers` loads the folder with its
//! `AutoModelForCausalLM` and `AutoTokenizer`. Called by `trainer export`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use serde_json::{Value, json};

use super::huggingface::{CONFIG, TOKENIZER, WEIGHTS, is_transposed, transposed};
use crate::checkpoint::atomic_write;
use crate::engine::NamedTensor;
use crate::error::{Error, Result};
use crate::model::{Gelu, ModelConfig};
use crate::tokenizer::Tokenizer;

const END_OF_TEXT: &str = "<|endoftext|>";

/// Writes model and tokenizer into `folder`, the weights last.
///
/// # Errors
/// [`Error::Write`] if the disk refuses.
pub fn hugging_face(
    model: &ModelConfig,
    parameters: &[NamedTensor],
    tokenizer: Option<&Tokenizer>,
    folder: &Path,
) -> Result<()> {
    fs::create_dir_all(folder).map_err(Error::write(folder))?;
    let end = tokenizer.and_then(|tokenizer| tokenizer.special_id(END_OF_TEXT));
    let write = |name: &str, value: &Value| {
        let text = serde_json::to_string_pretty(value).expect("a value is valid JSON");
        atomic_write(&folder.join(name), format!("{text}\n").as_bytes())
    };
    write(CONFIG, &config(model, end))?;
    let generation = json!({
        "_from_model_config": true,
        "bos_token_id": end,
        "eos_token_id": end,
    });
    write("generation_config.json", &generation)?;
    if let Some(tokenizer) = tokenizer {
        let text = match tokenizer {
            Tokenizer::Char(chars) => {
                let value = of_characters(chars.chars());
                serde_json::to_vec(&value).expect("a value is valid JSON")
            }
            Tokenizer::Subword(_) => tokenizer.to_bytes(),
        };
        atomic_write(&folder.join(TOKENIZER), &text)?;
        write("tokenizer_config.json", &tokenizer_config(model, end))?;
    }
    write_weights(model, parameters, &folder.join(WEIGHTS))
}

fn config(model: &ModelConfig, end: Option<u32>) -> Value {
    json!({
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": match model.gelu {
            Gelu::Erf => "gelu",
            Gelu::Tanh => "gelu_new",
        },
        "n_layer": model.n_layer,
        "n_head": model.n_head,
        "n_embd": model.n_embd,
        "n_inner": null,
        "n_positions": model.block_size,
        "n_ctx": model.block_size,
        "vocab_size": model.vocab_size,
        "layer_norm_epsilon": 1e-5,
        "scale_attn_weights": true,
        "scale_attn_by_inverse_layer_idx": false,
        "reorder_and_upcast_attn": false,
        "tie_word_embeddings": true,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "initializer_range": 0.02,
        "bos_token_id": end,
        "eos_token_id": end,
        "torch_dtype": "float32",
        "use_cache": true,
    })
}

fn tokenizer_config(model: &ModelConfig, end: Option<u32>) -> Value {
    let mut config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.block_size,
        "clean_up_tokenization_spaces": false,
    });
    if end.is_some() {
        for key in ["bos_token", "eos_token", "unk_token"] {
            config[key] = json!(END_OF_TEXT);
        }
    }
    config
}

/// A vocabulary of characters as a byte-pair encoding that never merges: every character stays a
/// token of its own, whatever stands beside it.
fn of_characters(chars: &[char]) -> Value {
    let vocab: BTreeMap<String, usize> = chars.iter().map(char::to_string).zip(0..).collect();
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": null,
        "post_processor": null,
        "decoder": {"type": "Fuse"},
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": false,
            "vocab": vocab,
            "merges": [],
        },
    })
}

/// The weights in GPT-2's layout: linear layers transposed, and biases of zero where there are
/// none. A file of safetensors: length of the header, header, tensors in its order.
fn write_weights(model: &ModelConfig, parameters: &[NamedTensor], path: &Path) -> Result<()> {
    let with_bias = ModelConfig {
        bias: true,
        ..model.clone()
    };
    let all = with_bias.parameters();
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    let mut at = 0;
    for parameter in &all {
        let mut shape = parameter.shape.clone();
        if is_transposed(&parameter.name) {
            shape.reverse();
        }
        let end = at + 4 * parameter.elements();
        header.insert(
            parameter.name.clone(),
            json!({"dtype": "F32", "shape": shape, "data_offsets": [at, end]}),
        );
        at = end;
    }
    let mut header = serde_json::to_vec(&header).expect("a value is valid JSON");
    header.resize(header.len().next_multiple_of(8), b' ');

    let temporary = path.with_extension("part");
    let file = File::create(&temporary).map_err(Error::write(&temporary))?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    let mut put = |bytes: &[u8]| out.write_all(bytes).map_err(Error::write(&temporary));
    put(&(header.len() as u64).to_le_bytes())?;
    put(&header)?;
    for parameter in &all {
        let found = parameters.iter().find(|found| found.name == parameter.name);
        let data = match found {
            Some(tensor) if is_transposed(&tensor.name) => {
                let stored = [tensor.shape[1], tensor.shape[0]];
                transposed(&tensor.data, &stored)
            }
            Some(tensor) => tensor.data.clone(),
            None => vec![0.0; parameter.elements()],
        };
        assert_eq!(data.len(), parameter.elements(), "{}", parameter.name);
        put(bytemuck::cast_slice(&data))?;
    }
    let file = out
        .into_inner()
        .map_err(|error| Error::write(&temporary)(error.into_error()))?;
    file.sync_all().map_err(Error::write(&temporary))?;
    fs::rename(&temporary, path).map_err(Error::write(path))
}
