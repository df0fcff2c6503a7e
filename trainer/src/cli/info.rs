//! `trainer info`: everything that a checkpoint, a run or a foreign model knows, for people or as
//! JSON.

use std::fs;
use std::path::{Path, PathBuf};

use protocol::{Event, ExitCode, Manifest, Record, RunDir};
use serde_json::{Map, Value, json};

use super::print;
use crate::checkpoint::{self, Listed, Loaded};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::interop::{Imported, huggingface, nanogpt};
use crate::machine::{human_bytes, human_count};
use crate::model::ModelConfig;
use crate::tokenizer::Tokenizer;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Run directory, a checkpoint in it, nanoGPT's ckpt.pt, or a folder of Hugging Face's.
    path: PathBuf,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let report = report(&arguments.path)?;
    let text = if arguments.json {
        serde_json::to_string_pretty(&report).expect("a value is valid JSON")
    } else {
        let mut lines = Vec::new();
        flatten(&report, "", &mut lines);
        let width = lines.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
        let line = |(key, value): &(String, String)| format!("{key:width$}  {value}");
        lines.iter().map(line).collect::<Vec<_>>().join("\n")
    };
    print(&text)?;
    Ok(if report["verified"] == json!(false) {
        ExitCode::Data
    } else {
        ExitCode::Finished
    })
}

/// What is known of what lies at `path`.
fn report(path: &Path) -> Result<Value> {
    if path.join(RunDir::MANIFEST).exists() {
        return checkpoint(path);
    }
    let run = RunDir::new(path);
    let listed = checkpoint::list(&run)?;
    if !listed.is_empty() || run.events().exists() {
        return whole_run(&run, &listed);
    }
    let inside = path.join(nanogpt::FILE);
    if let Some(file) = [path, &inside].into_iter().find(|path| path.is_file()) {
        let imported = nanogpt::read(file, false)?;
        let bytes = fs::metadata(file).map_err(Error::read(file))?.len();
        return Ok(foreign("nanoGPT checkpoint", file, &imported, bytes));
    }
    if path.join(huggingface::CONFIG).exists() {
        let imported = huggingface::read(path)?;
        let mut report = foreign("Hugging Face model", path, &imported, size_of_folder(path)?);
        let tokenizer = huggingface::tokenizer(path, &imported.model)?;
        report["tokenizer"] = of_tokenizer(tokenizer.as_ref());
        return Ok(report);
    }
    Err(Error::Data(format!(
        "{}: expected a run directory, a checkpoint, nanoGPT's {} or a folder with {}",
        path.display(),
        nanogpt::FILE,
        huggingface::CONFIG
    )))
}

/// One checkpoint of ours; every checksum is looked at.
fn checkpoint(folder: &Path) -> Result<Value> {
    let mut report = json!({
        "kind": "checkpoint",
        "path": folder.display().to_string(),
    });
    let name = folder.join(RunDir::MANIFEST);
    let text = fs::read_to_string(&name).map_err(Error::read(&name))?;
    if let Ok(manifest) = Manifest::parse(&text) {
        of_manifest(&manifest, &mut report);
    }
    match checkpoint::load(folder) {
        Ok(loaded) => {
            of_loaded(&loaded, &mut report)?;
            report["verified"] = json!(true);
        }
        Err(error) => {
            report["verified"] = json!(false);
            report["fault"] = json!(error.to_string());
        }
    }
    Ok(report)
}

fn of_manifest(manifest: &Manifest, report: &mut Value) {
    let bytes: u64 = manifest.files.values().map(|file| file.bytes).sum();
    report["step"] = json!(manifest.step);
    report["val_loss"] = json!(manifest.val_loss);
    report["written"] = json!(manifest.time);
    report["bytes"] = json!(bytes);
    report["files"] = json!(manifest.files);
    report["config_hash"] = json!(manifest.config_hash);
}

fn of_loaded(loaded: &Loaded, report: &mut Value) -> Result<()> {
    let state = &loaded.state;
    for (key, value) in [
        ("best_val_loss", json!(state.best_val_loss)),
        ("train_loss_mean", json!(state.loss_mean)),
        ("tokens", json!(state.tokens)),
        ("updates", json!(loaded.engine.updates)),
        ("seed", json!(state.seed)),
        ("rollbacks", json!(state.rollbacks)),
        ("data_offset", json!(state.data_offset)),
        ("trainer_version", json!(state.trainer_version)),
        ("dtype", json!("float32")),
        ("model", of_model(&state.model)),
        ("dataset", json!(state.dataset)),
        (
            "loss_scale",
            json!(loaded.engine.loss_scale.map(|scale| scale.scale)),
        ),
    ] {
        report[key] = value;
    }
    let tokenizer = match &loaded.tokenizer {
        Some((name, bytes)) => Some(Tokenizer::from_bytes(name, bytes)?),
        None => None,
    };
    report["tokenizer"] = of_tokenizer(tokenizer.as_ref());
    let config = Config::from_toml_str(&state.config)?;
    let changed = Config::default().differences(&config);
    let changed: Map<String, Value> = changed
        .into_iter()
        .map(|change| (change.key.to_owned(), from_toml(&change.new)))
        .collect();
    report["config_beside_defaults"] = Value::Object(changed);
    Ok(())
}

/// A run: its newest checkpoint that verifies, and what its events tell.
fn whole_run(run: &RunDir, listed: &[Listed]) -> Result<Value> {
    let mut checkpoints = Vec::new();
    let mut newest = None;
    for Listed { path, step, .. } in listed {
        let mut report = checkpoint(path)?;
        let mut short = json!({"step": step});
        for key in ["val_loss", "bytes", "written", "verified", "fault"] {
            if let Some(value) = report.get(key) {
                short[key] = value.clone();
            }
        }
        checkpoints.push(short);
        if newest.is_none() && report["verified"] == json!(true) {
            report["checkpoint"] = report["path"].clone();
            newest = Some(report);
        }
    }
    let verified = newest.is_some() || listed.is_empty();
    let mut report = newest.unwrap_or_else(|| json!({}));
    report["kind"] = json!("run");
    report["path"] = json!(run.root().display().to_string());
    report["checkpoints"] = json!(checkpoints);
    report["verified"] = json!(verified);
    report["last"] = last_events(run)?;
    Ok(report)
}

/// The last event of each kind that says how far a run came.
fn last_events(run: &RunDir) -> Result<Value> {
    let path = run.events();
    if !path.exists() {
        return Ok(Value::Null);
    }
    let text = fs::read_to_string(&path).map_err(Error::read(&path))?;
    let mut last = Map::new();
    for Record { time, event, .. } in text.lines().filter_map(Record::parse) {
        let kind = match &event {
            Event::Started { .. } => "started",
            Event::Step { .. } => "iteration",
            Event::Eval { .. } => "evaluation",
            Event::Finished { .. } => "finished",
            _ => continue,
        };
        if kind == "started" {
            // What ended before is not the end any more.
            last.remove("finished");
        }
        let mut value = serde_json::to_value(event).expect("events are valid JSON");
        value["time"] = json!(time);
        last.insert(kind.to_owned(), value);
    }
    Ok(Value::Object(last))
}

fn foreign(kind: &str, path: &Path, imported: &Imported, bytes: u64) -> Value {
    let config: Map<String, Value> = imported
        .config
        .iter()
        .map(|(key, value)| (key.clone(), from_toml(value)))
        .collect();
    json!({
        "kind": kind,
        "path": path.display().to_string(),
        "step": imported.step,
        "val_loss": imported.val_loss,
        "updates": imported.engine.updates,
        "model": of_model(&imported.model),
        "config": config,
        "left_out": imported.notes,
        "bytes": bytes,
        // It has no checksums of its own; that it could be read whole is all that is known.
        "verified": Value::Null,
    })
}

fn of_model(model: &ModelConfig) -> Value {
    let mut value = json!(model);
    value["parameters"] = json!(model.parameter_count());
    value["parameters_without_positions"] = json!(model.parameter_count_without_positions());
    value
}

fn of_tokenizer(tokenizer: Option<&Tokenizer>) -> Value {
    match tokenizer {
        None => Value::Null,
        Some(tokenizer) => json!({
            "kind": match tokenizer {
                Tokenizer::Char(_) => "char",
                Tokenizer::Subword(_) => "subword",
            },
            "vocab_size": tokenizer.vocab_size(),
        }),
    }
}

/// A value of a config as TOML writes it.
fn from_toml(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| json!(text))
}

fn size_of_folder(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder).map_err(Error::read(folder))? {
        let path = entry.map_err(Error::read(folder))?.path();
        bytes += fs::metadata(&path).map_err(Error::read(&path))?.len();
    }
    Ok(bytes)
}

/// Lines of key and value; keys within keys with a dot.
fn flatten(value: &Value, key: &str, lines: &mut Vec<(String, String)>) {
    let shown = match value {
        Value::Object(map) => {
            // What is short comes first.
            let (parts, plain): (Vec<_>, Vec<_>) = map
                .iter()
                .partition(|(_, value)| value.is_object() || value.is_array());
            for (name, value) in plain.into_iter().chain(parts) {
                let below = if key.is_empty() {
                    name.clone()
                } else {
                    format!("{key}.{name}")
                };
                flatten(value, &below, lines);
            }
            return;
        }
        Value::Array(list) => {
            for (index, value) in list.iter().enumerate() {
                flatten(value, &format!("{key}.{index}"), lines);
            }
            return;
        }
        Value::Null => "unknown".to_owned(),
        Value::Bool(bool) => if *bool { "yes" } else { "no" }.to_owned(),
        Value::String(text) => text.replace('\n', "; "),
        Value::Number(number) => match (number.as_u64(), key.rsplit('.').next()) {
            (Some(bytes), Some("bytes")) => human_bytes(bytes),
            (Some(count), Some("parameters" | "tokens" | "parameters_without_positions")) => {
                human_count(count)
            }
            _ => number.to_string(),
        },
    };
    lines.push((key.to_owned(), shown));
}
