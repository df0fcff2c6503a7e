//! `trainer export`: a checkpoint as a folder of another program's format.

use std::path::{Path, PathBuf};

use protocol::{ExitCode, RunDir};

use super::{load_model, print};
use crate::checkpoint;
use crate::error::Result;
use crate::interop::export;
use crate::machine::human_count;
use crate::tokenizer::Tokenizer;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Run directory, or one checkpoint in it.
    source: PathBuf,
    /// Folder to write.
    folder: PathBuf,
    /// What reads it: hf is Hugging Face's transformers.
    #[arg(long, default_value = "hf", value_parser = ["hf"])]
    format: String,
    /// Of a run directory: best, latest, or a step.
    #[arg(long, default_value = "best")]
    checkpoint: String,
}

pub(super) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let Arguments { source, folder, .. } = arguments;
    let loaded = if source.join(RunDir::MANIFEST).exists() {
        checkpoint::load_model_only(source)?
    } else {
        load_model(&RunDir::new(source), &arguments.checkpoint)?
    };
    let tokenizer = match &loaded.tokenizer {
        Some((name, bytes)) => Some(Tokenizer::from_bytes(name, bytes)?),
        None => None,
    };
    let model = &loaded.state.model;
    let parameters = &loaded.engine.parameters;
    export::hugging_face(model, parameters, tokenizer.as_ref(), folder)?;
    let mut lines = vec![format!(
        "{}: step {}, {} parameters",
        folder.display(),
        loaded.state.step,
        human_count(model.parameter_count())
    )];
    if tokenizer.is_none() {
        lines.push("without a tokenizer: the checkpoint carries none".to_owned());
    }
    lines.push(reading(folder));
    print(&lines.join("\n"))
}

/// How Python reads it.
fn reading(folder: &Path) -> String {
    format!(
        "AutoModelForCausalLM.from_pretrained({:?}) reads it",
        folder.display().to_string()
    )
}
