//! nanoGPT's `ckpt.pt`: weights, AdamW's moments, where the run stood and its settings. Called by
//! `trainer import` and by a resume in a folder that holds nothing else.
//!
//! What its `train.py` saves: `model`, `optimizer`, `model_args`, `iter_num`, `best_val_loss`,
//! `config`.

use std::collections::BTreeMap;
use std::path::Path;

use super::Imported;
use super::torch::TorchFile;
use crate::config::Config;
use crate::engine::{EngineState, NamedTensor};
use crate::error::Result;
use crate::model::{Gelu, ModelConfig, Parameter};
use crate::pickle::{Id, Value};

/// The name of the checkpoint in nanoGPT's `out_dir`.
pub const FILE: &str = "ckpt.pt";

/// What `torch.compile` puts before every name.
const COMPILED: &str = "_orig_mod.";
/// What `DistributedDataParallel` puts there.
const DISTRIBUTED: &str = "module.";
const HEAD: &str = "lm_head.weight";
const TOKEN_EMBEDDING: &str = "transformer.wte.weight";
/// Settings that are the machine's or the invocation's and not the run's.
const NOT_TAKEN: [&str; 11] = [
    "out_dir",
    "init_from",
    "eval_only",
    "device",
    "dtype",
    "backend",
    "compile",
    "wandb_log",
    "wandb_project",
    "wandb_run_name",
    "vocab_size",
];
const WITHOUT_OPTIMIZER: &str = "\nhint: --weights_only imports the model without its optimizer";
/// Larger sizes than this are in no model.
const SIZE_MAX: i64 = 1 << 31;

/// Reads a checkpoint; `weights_only` leaves the optimizer out and begins at step 0.
///
/// # Errors
/// [`crate::Error::Data`] if the file is damaged, is no checkpoint of nanoGPT's, or holds anything
/// but data.
pub fn read(path: &Path, weights_only: bool) -> Result<Imported> {
    let mut file = TorchFile::open(path)?;
    let root = file.pickle.root();
    let part = |name: &str| {
        file.pickle.entry(root, name).ok_or_else(|| {
            file.fault(format!(
                "expected nanoGPT's checkpoint with the entry {name:?}, got none"
            ))
        })
    };
    let (weights, arguments, optimizer) = (part("model")?, part("model_args")?, part("optimizer")?);
    let (iter_num, best) = (part("iter_num")?, file.pickle.entry(root, "best_val_loss"));
    let weights = named(&file, weights)?;
    let model = model_config(&file, arguments, weights.len())?;
    let parameters = parameters(&mut file, &model, weights)?;
    let mut notes = Vec::new();
    let config = settings(&file, &model, &mut notes);
    let val_loss = match best {
        Some(id) => number(&mut file, id, "best_val_loss")?,
        None => None,
    };
    let step = match file.pickle.get(iter_num) {
        Value::Int(step) if *step >= 0 => *step as u64,
        _ => return Err(file.fault("iter_num: expected a whole number, 0 or more")),
    };
    let (engine, step) = if weights_only {
        (super::weights(parameters), 0)
    } else {
        (moments(&mut file, &model, parameters, optimizer)?, step)
    };
    Ok(Imported {
        model,
        engine,
        step,
        val_loss: val_loss.filter(|loss| loss.is_finite() && !weights_only),
        config,
        notes,
    })
}

/// The entries of the state dictionary, without what wrappers put before their names.
fn named(file: &TorchFile, weights: Id) -> Result<BTreeMap<String, Id>> {
    let Value::Dict(entries) = file.pickle.get(weights) else {
        return Err(file.fault("model: expected a dictionary of tensors"));
    };
    let mut named = BTreeMap::new();
    for (name, tensor) in entries {
        let Value::Text(name) = file.pickle.get(*name) else {
            return Err(file.fault("model: expected names of tensors"));
        };
        let mut name = name.as_str();
        for prefix in [DISTRIBUTED, COMPILED, DISTRIBUTED] {
            name = name.strip_prefix(prefix).unwrap_or(name);
        }
        // The causal mask of versions without flash attention.
        if !name.ends_with(".attn.bias") {
            named.insert(name.to_owned(), *tensor);
        }
    }
    Ok(named)
}

fn model_config(file: &TorchFile, arguments: Id, tensors: usize) -> Result<ModelConfig> {
    let size = |key: &str| {
        let found = file.pickle.entry(arguments, key);
        match found.map(|id| file.pickle.get(id)) {
            Some(Value::Int(size)) if (1..SIZE_MAX).contains(size) => Ok(*size as usize),
            Some(_) => Err(file.fault(format!(
                "model_args: {key}: expected a whole number of 1 to {}",
                SIZE_MAX - 1
            ))),
            None => Err(file.fault(format!("model_args: expected the entry {key:?}, got none"))),
        }
    };
    // Before nanoGPT had the key, there were biases.
    let bias = file.pickle.entry(arguments, "bias");
    let bias = bias.is_none_or(|id| file.pickle.get(id) == &Value::Bool(true));
    let model = ModelConfig {
        n_layer: size("n_layer")?,
        n_head: size("n_head")?,
        n_embd: size("n_embd")?,
        block_size: size("block_size")?,
        vocab_size: size("vocab_size")?,
        bias,
        gelu: Gelu::Erf,
    };
    if model.n_layer > tensors || !model.n_embd.is_multiple_of(model.n_head) {
        return Err(file.fault(format!(
            "model_args: {} layers, {} heads and {} channels do not fit {tensors} tensors",
            model.n_layer, model.n_head, model.n_embd
        )));
    }
    Ok(model)
}

/// The parameters in our order, which is nanoGPT's.
fn parameters(
    file: &mut TorchFile,
    model: &ModelConfig,
    mut weights: BTreeMap<String, Id>,
) -> Result<Vec<NamedTensor>> {
    let mut parameters = Vec::new();
    for Parameter { name, shape, .. } in model.parameters() {
        let Some(id) = weights.remove(&name) else {
            return Err(file.fault(format!("model: tensor {name} is missing")));
        };
        let tensor = shaped(file, id, &name, &shape)?;
        if name == TOKEN_EMBEDDING
            && let Some(head) = weights.remove(HEAD)
            && file.storage_key(head) != file.storage_key(id)
            && shaped(file, head, HEAD, &shape)?.data != tensor.data
        {
            return Err(file.fault(format!(
                "model: {HEAD} differs from {TOKEN_EMBEDDING}; expected them tied, as nanoGPT \
                 ties them"
            )));
        }
        parameters.push(tensor);
    }
    match weights.keys().next() {
        Some(name) => Err(file.fault(format!("model: tensor {name} is none of nanoGPT's GPT"))),
        None => Ok(parameters),
    }
}

fn shaped(file: &mut TorchFile, id: Id, name: &str, shape: &[usize]) -> Result<NamedTensor> {
    let tensor = file.tensor(id, name)?;
    if tensor.shape != shape {
        return Err(file.fault(format!(
            "tensor {name}: expected shape {shape:?}, got {:?}",
            tensor.shape
        )));
    }
    Ok(NamedTensor {
        name: name.to_owned(),
        shape: tensor.shape,
        data: tensor.data,
    })
}

/// AdamW's state. PyTorch numbers the parameters through its groups: in nanoGPT first those that
/// decay, then the others, each in the order of the model.
fn moments(
    file: &mut TorchFile,
    model: &ModelConfig,
    parameters: Vec<NamedTensor>,
    optimizer: Id,
) -> Result<EngineState> {
    let (decayed, others): (Vec<_>, Vec<_>) =
        model.parameters().into_iter().partition(Parameter::decays);
    check_groups(file, optimizer, [decayed.len(), others.len()])?;
    let hint = WITHOUT_OPTIMIZER;
    let numbered: BTreeMap<String, usize> = decayed
        .into_iter()
        .chain(others)
        .map(|parameter| parameter.name)
        .zip(0..)
        .collect();
    let states = by_number(file, optimizer);
    let mut engine = EngineState::default();
    let mut updates = None;
    for NamedTensor { name, shape, .. } in &parameters {
        let index = numbered[name];
        let state = states.get(&(index as i64)).copied();
        let part = |file: &TorchFile, key: &str| {
            let found = state.and_then(|state| file.pickle.entry(state, key));
            found.ok_or_else(|| {
                file.fault(format!(
                    "optimizer: state {index} ({name}) has no {key}{hint}"
                ))
            })
        };
        for (key, moments) in [
            ("exp_avg", &mut engine.exp_avg),
            ("exp_avg_sq", &mut engine.exp_avg_sq),
        ] {
            let id = part(file, key)?;
            let tensor = shaped(file, id, &format!("{key} of {name}"), shape)?;
            moments.push(NamedTensor {
                name: name.clone(),
                ..tensor
            });
        }
        let id = part(file, "step")?;
        let step = number(file, id, "step of the optimizer")?.unwrap_or(-1.0);
        if !(0.0..9e15).contains(&step) || step.fract() != 0.0 {
            return Err(file.fault(format!("optimizer: a step of {step}{hint}")));
        }
        let step = step as u64;
        if *updates.get_or_insert(step) != step {
            return Err(file.fault(format!(
                "optimizer: expected as many steps for every tensor, got {step} for {name}{hint}"
            )));
        }
    }
    Ok(EngineState {
        parameters,
        updates: updates.unwrap_or(0),
        ..engine
    })
}

/// Makes sure of the number of tensors in each group.
fn check_groups(file: &TorchFile, optimizer: Id, expected: [usize; 2]) -> Result<()> {
    let groups = file.pickle.entry(optimizer, "param_groups");
    let sizes: Vec<usize> = groups
        .map(|groups| file.pickle.items(groups))
        .unwrap_or_default()
        .iter()
        .map(|group| file.pickle.entry(*group, "params"))
        .map(|params| params.map_or(0, |params| file.pickle.items(params).len()))
        .collect();
    if sizes == expected {
        return Ok(());
    }
    let [decayed, others] = expected;
    Err(file.fault(format!(
        "optimizer: expected nanoGPT's two groups of {decayed} and {others} tensors, got \
         {sizes:?}{WITHOUT_OPTIMIZER}"
    )))
}

/// The optimizer's state of each tensor by its number.
fn by_number(file: &TorchFile, optimizer: Id) -> BTreeMap<i64, Id> {
    let state = file.pickle.entry(optimizer, "state");
    let Some(Value::Dict(entries)) = state.map(|state| file.pickle.get(state)) else {
        return BTreeMap::new();
    };
    let number = |(index, state): &(Id, Id)| match file.pickle.get(*index) {
        Value::Int(index) => Some((*index, *state)),
        _ => None,
    };
    entries.iter().filter_map(number).collect()
}

/// A number, or a tensor of one; `None` for Python's `None`.
fn number(file: &mut TorchFile, id: Id, name: &str) -> Result<Option<f64>> {
    match file.pickle.get(id) {
        Value::None => Ok(None),
        Value::Int(int) => Ok(Some(*int as f64)),
        Value::Float(float) => Ok(Some(*float)),
        _ if file.is_tensor(id) => {
            let tensor = file.tensor(id, name)?;
            match tensor.data[..] {
                [number] => Ok(Some(number.into())),
                _ => Err(file.fault(format!(
                    "{name}: expected one number, got shape {:?}",
                    tensor.shape
                ))),
            }
        }
        _ => Err(file.fault(format!("{name}: expected a number"))),
    }
}

/// The settings of the run that are keys of ours, the model's shape among them.
fn settings(
    file: &TorchFile,
    model: &ModelConfig,
    notes: &mut Vec<String>,
) -> Vec<(String, String)> {
    let mut settings = BTreeMap::new();
    let config = file.pickle.entry(file.pickle.root(), "config");
    if let Some(Value::Dict(entries)) = config.map(|config| file.pickle.get(config)) {
        for (key, value) in entries {
            let Value::Text(key) = file.pickle.get(*key) else {
                continue;
            };
            let value = match file.pickle.get(*value) {
                Value::Bool(bool) => bool.to_string(),
                Value::Int(int) => int.to_string(),
                Value::Float(float) => float.to_string(),
                Value::Text(text) => text.clone(),
                _ => continue,
            };
            if NOT_TAKEN.contains(&key.as_str()) {
                continue;
            }
            if Config::has_key(key) {
                settings.insert(key.clone(), value);
            } else {
                notes.push(format!(
                    "config: {key}={value} is no key here and is left out"
                ));
            }
        }
    }
    for (key, value) in model.settings() {
        settings.insert(key.to_owned(), value);
    }
    settings.into_iter().collect()
}

#[cfg(test)]
mod tests;
