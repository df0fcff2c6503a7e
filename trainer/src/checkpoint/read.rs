//! Reads checkpoints and believes nothing: sizes, checksums, names, types and shapes are checked.
//! Called by `train` to resume, by `sample` and `eval`, and by `retain` to see what there is.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use protocol::manifest::ManifestError;
use protocol::{Manifest, RunDir};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{TrainState, files};
use crate::engine::{EngineState, LossScale, NamedTensor};
use crate::error::{Error, Result};

/// A checkpoint as it was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    pub manifest: Manifest,
    pub state: TrainState,
    /// Tensors sorted by name.
    pub engine: EngineState,
    /// File name and contents.
    pub tokenizer: Option<(String, Vec<u8>)>,
}

/// A checkpoint in its place, looked at but not read.
#[derive(Debug)]
pub struct Listed {
    pub step: u64,
    pub path: PathBuf,
    /// The manifest, if every file it names is there with its size; otherwise what is wrong.
    pub manifest: Result<Manifest>,
}

/// The checkpoints of a run, newest first. None if the directory is not there.
///
/// # Errors
/// [`Error::Data`] if the directory cannot be listed.
pub fn list(run: &RunDir) -> Result<Vec<Listed>> {
    let folder = run.checkpoints();
    let entries = match fs::read_dir(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(Error::read(&folder))?,
    };
    let mut found = BTreeMap::new();
    for entry in entries {
        let entry = entry.map_err(Error::read(&folder))?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if let Some(step) = files::checkpoint_step(name) {
            found.insert(step, entry.path());
        } else if let Some(step) = files::set_aside_step(name) {
            // Counts only while nothing stands in its place.
            found.entry(step).or_insert_with(|| entry.path());
        }
    }
    let look = |(step, path): (u64, PathBuf)| Listed {
        step,
        manifest: examine(&path, step),
        path,
    };
    Ok(found.into_iter().rev().map(look).collect())
}

/// The checkpoint with the lowest validation loss, the first to reach it; `None` if no whole one
/// has a validation loss.
pub fn best(listed: &[Listed]) -> Option<&Listed> {
    let loss = |listed: &Listed| listed.manifest.as_ref().ok()?.val_loss;
    listed
        .iter()
        .filter_map(|listed| Some((loss(listed)?, listed)))
        .min_by(|(a, i), (b, j)| a.total_cmp(b).then(i.step.cmp(&j.step)))
        .map(|(_, listed)| listed)
}

/// Reads a checkpoint and verifies all of it.
///
/// # Errors
/// [`Error::Data`] naming the file and what is wrong with it.
pub fn load(folder: &Path) -> Result<Loaded> {
    let mut loaded = load_model_only(folder)?;
    let bytes = read_verified(folder, RunDir::OPTIMIZER, &loaded.manifest)?;
    let damaged = |what| damaged(folder, RunDir::OPTIMIZER, what);
    let (mut moments, metadata) = tensors(&bytes).map_err(damaged)?;
    drop(bytes);
    let engine = &mut loaded.engine;
    engine.updates = number(&metadata, "updates").map_err(damaged)?;
    if metadata.contains_key("loss_scale") {
        engine.loss_scale = Some(LossScale {
            scale: number(&metadata, "loss_scale").map_err(damaged)?,
            good_steps: number(&metadata, "loss_scale_good_steps").map_err(damaged)?,
        });
    }
    for (prefix, group) in [
        ("exp_avg.", &mut engine.exp_avg),
        ("exp_avg_sq.", &mut engine.exp_avg_sq),
    ] {
        for NamedTensor { name, shape, .. } in &engine.parameters {
            let key = format!("{prefix}{name}");
            let Some(moment) = moments.remove(&key) else {
                return Err(damaged(format!("tensor {key} is missing")));
            };
            if moment.shape != *shape {
                return Err(damaged(format!(
                    "tensor {key}: expected the parameter's shape {shape:?}, got {:?}",
                    moment.shape
                )));
            }
            group.push(NamedTensor {
                name: name.clone(),
                ..moment
            });
        }
    }
    match moments.keys().next() {
        Some(key) => Err(damaged(format!("tensor {key} belongs to no parameter"))),
        None => Ok(loaded),
    }
}

/// Reads a checkpoint without its optimizer: both lists of moments are empty and `updates` is 0.
///
/// # Errors
/// As [`load`].
pub fn load_model_only(folder: &Path) -> Result<Loaded> {
    let manifest = read_manifest(folder)?;
    let state = read_state(folder, &manifest)?;
    let bytes = read_verified(folder, RunDir::MODEL, &manifest)?;
    let damaged = |what| damaged(folder, RunDir::MODEL, what);
    let (parameters, metadata) = tensors(&bytes).map_err(damaged)?;
    drop(bytes);
    let step: u64 = number(&metadata, "step").map_err(damaged)?;
    if step != manifest.step {
        return Err(damaged(differs("step", &manifest.step, &step)));
    }
    let engine = EngineState {
        parameters: parameters.into_values().collect(),
        ..EngineState::default()
    };
    let tokenizer = [RunDir::TOKENIZER, RunDir::VOCAB]
        .into_iter()
        .find(|name| manifest.files.contains_key(*name))
        .map(|name| read_verified(folder, name, &manifest).map(|bytes| (name.to_owned(), bytes)))
        .transpose()?;
    Ok(Loaded {
        manifest,
        state,
        engine,
        tokenizer,
    })
}

/// The newest checkpoint that verifies. Each newer one that does not is told to `warn` in a line.
/// `None` if the run has no checkpoint at all.
///
/// # Errors
/// [`Error::Data`] if there are checkpoints and none is usable, or they cannot be listed.
pub fn load_newest(run: &RunDir, warn: &mut dyn FnMut(String)) -> Result<Option<Loaded>> {
    newest(run, warn, load)
}

/// As [`load_newest`], but without the optimizer, as [`load_model_only`].
///
/// # Errors
/// As [`load_newest`].
pub fn load_newest_model(run: &RunDir, warn: &mut dyn FnMut(String)) -> Result<Option<Loaded>> {
    newest(run, warn, load_model_only)
}

/// The checkpoint with the lowest validation loss; `None` if none has one.
///
/// # Errors
/// [`Error::Data`] if it does not verify.
pub fn load_best(run: &RunDir) -> Result<Option<Loaded>> {
    best(&list(run)?)
        .map(|listed| load(&listed.path))
        .transpose()
}

fn newest(
    run: &RunDir,
    warn: &mut dyn FnMut(String),
    load: fn(&Path) -> Result<Loaded>,
) -> Result<Option<Loaded>> {
    let listed = list(run)?;
    let count = listed.len();
    for (index, Listed { path, manifest, .. }) in listed.into_iter().enumerate() {
        match manifest.and_then(|_| load(&path)) {
            Ok(loaded) => return Ok(Some(loaded)),
            Err(error) if index + 1 < count => warn(format!("{error}; trying the one before")),
            Err(error) => warn(error.to_string()),
        }
    }
    if count == 0 {
        return Ok(None);
    }
    Err(Error::Data(format!(
        "none of the {count} checkpoints in {} is usable\n\
         hint: bring one back from a copy, or name another --out_dir to start afresh",
        run.checkpoints().display()
    )))
}

/// Whether a directory holds the checkpoint of `step`, by its manifest and the sizes of its files.
fn examine(folder: &Path, step: u64) -> Result<Manifest> {
    let manifest = read_manifest(folder)?;
    if manifest.step != step {
        let what = differs("step", &step, &manifest.step);
        return Err(damaged(folder, RunDir::MANIFEST, what));
    }
    for (name, entry) in &manifest.files {
        check_size(folder, name, entry.bytes)?;
    }
    Ok(manifest)
}

fn read_manifest(folder: &Path) -> Result<Manifest> {
    let name = RunDir::MANIFEST;
    let damaged = |what| damaged(folder, name, what);
    let bytes = fs::read(folder.join(name)).map_err(unreadable(folder, name))?;
    let text = String::from_utf8(bytes).map_err(|_| damaged("not UTF-8".to_owned()))?;
    let manifest = Manifest::parse(&text).map_err(|error| match error {
        ManifestError::TooNew { .. } => cannot_be_read(folder, name, &error),
        ManifestError::Malformed(_) => damaged(error.to_string()),
    })?;
    if manifest.format_version != Manifest::FORMAT_VERSION {
        return Err(damaged(differs(
            "format version",
            &Manifest::FORMAT_VERSION,
            &manifest.format_version,
        )));
    }
    let known = [
        RunDir::MODEL,
        RunDir::OPTIMIZER,
        RunDir::STATE,
        RunDir::TOKENIZER,
        RunDir::VOCAB,
    ];
    for name in &known[..3] {
        if !manifest.files.contains_key(*name) {
            return Err(damaged(format!("{name} is not listed")));
        }
    }
    if let Some(name) = manifest.files.keys().find(|n| !known.contains(&n.as_str())) {
        return Err(damaged(format!("unknown file {name:?}")));
    }
    Ok(manifest)
}

fn read_state(folder: &Path, manifest: &Manifest) -> Result<TrainState> {
    /// What the manifest says too; only here it is under a checksum.
    #[derive(Deserialize)]
    struct Twice {
        val_loss: Option<f64>,
        config_hash: String,
    }
    let bytes = read_verified(folder, RunDir::STATE, manifest)?;
    let malformed = |error: serde_json::Error| damaged(folder, RunDir::STATE, error.to_string());
    let state: TrainState = serde_json::from_slice(&bytes).map_err(malformed)?;
    let twice: Twice = serde_json::from_slice(&bytes).map_err(malformed)?;
    let what = if manifest.step != state.step {
        differs("step", &state.step, &manifest.step)
    } else if manifest.val_loss != twice.val_loss {
        let show = |loss: Option<f64>| loss.map_or("none".to_owned(), |loss| loss.to_string());
        differs("val_loss", &show(twice.val_loss), &show(manifest.val_loss))
    } else if manifest.config_hash != twice.config_hash {
        differs("config_hash", &twice.config_hash, &manifest.config_hash)
    } else {
        return Ok(state);
    };
    Err(damaged(folder, RunDir::MANIFEST, what))
}

/// A file of the checkpoint, once it has the size and the checksum of the manifest.
fn read_verified(folder: &Path, name: &str, manifest: &Manifest) -> Result<Vec<u8>> {
    let entry = &manifest.files[name];
    // Before reading, so that a wrong file of any size costs nothing.
    check_size(folder, name, entry.bytes)?;
    let bytes = fs::read(folder.join(name)).map_err(unreadable(folder, name))?;
    let sha256 = files::hexadecimal(&Sha256::digest(&bytes));
    if sha256 != entry.sha256 {
        return Err(damaged(
            folder,
            name,
            differs("sha256", &entry.sha256, &sha256),
        ));
    }
    Ok(bytes)
}

fn check_size(folder: &Path, name: &str, expected: u64) -> Result<()> {
    let about = fs::metadata(folder.join(name)).map_err(unreadable(folder, name))?;
    if about.len() != expected {
        return Err(damaged(
            folder,
            name,
            differs("bytes", &expected, &about.len()),
        ));
    }
    Ok(())
}

type Metadata = std::collections::HashMap<String, String>;

/// The tensors of a safetensors file by name, all fp32, and its metadata.
fn tensors(bytes: &[u8]) -> Result<(BTreeMap<String, NamedTensor>, Metadata), String> {
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(|error| error.to_string())?;
    let file = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
    let mut tensors = BTreeMap::new();
    for (name, view) in file.iter() {
        if view.dtype() != Dtype::F32 {
            let what = differs("dtype", &Dtype::F32, &view.dtype());
            return Err(format!("tensor {name}: {what}"));
        }
        let mut data = vec![0.0_f32; view.data().len() / size_of::<f32>()];
        bytemuck::cast_slice_mut(&mut data).copy_from_slice(view.data());
        let tensor = NamedTensor {
            name: name.to_owned(),
            shape: view.shape().to_vec(),
            data,
        };
        tensors.insert(name.to_owned(), tensor);
    }
    Ok((tensors, header.metadata().clone().unwrap_or_default()))
}

fn number<T: FromStr>(metadata: &Metadata, key: &str) -> Result<T, String> {
    let text = metadata
        .get(key)
        .ok_or_else(|| format!("metadata has no {key}"))?;
    text.parse()
        .map_err(|_| format!("metadata {key}: expected a number, got {text:?}"))
}

fn differs(what: &str, expected: &dyn std::fmt::Display, got: &dyn std::fmt::Display) -> String {
    format!("{what} expected {expected} got {got}")
}

fn damaged(folder: &Path, file: &str, what: String) -> Error {
    let folder = folder.display();
    Error::Data(format!("checkpoint {folder} is damaged: {file}: {what}"))
}

fn unreadable(folder: &Path, file: &str) -> impl FnOnce(io::Error) -> Error {
    move |error| match error.kind() {
        io::ErrorKind::NotFound => damaged(folder, file, "is missing".to_owned()),
        _ => cannot_be_read(folder, file, &error),
    }
}

fn cannot_be_read(folder: &Path, file: &str, why: &dyn std::fmt::Display) -> Error {
    let folder = folder.display();
    Error::Data(format!("checkpoint {folder} cannot be read: {file}: {why}"))
}
