//! `trainer export`: a checkpoint as a folder of another program's format.

use std::fs;
use std::path::{Path, PathBuf};

use protocol::{ExitCode, RunDir};

use super::{load_model, print};
use crate::checkpoint::{self, atomic_write};
use crate::error::{Error, Result};
use crate::interop::history::History;
use crate::interop::{export, tensorboard};
use crate::machine::human_count;
use crate::tokenizer::Tokenizer;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Run directory, or one checkpoint in it.
    source: PathBuf,
    /// Folder to write; with csv the file.
    folder: PathBuf,
    /// What reads it: hf is Hugging Face's transformers; tensorboard and csv are what the run
    /// has measured.
    #[arg(long, default_value = "hf", value_parser = ["hf", "tensorboard", "csv"])]
    format: String,
    /// Of a run directory: best, latest, or a step.
    #[arg(long, default_value = "best")]
    checkpoint: String,
}

pub(super) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let Arguments { source, folder, .. } = arguments;
    if arguments.format != "hf" {
        return measurements(arguments);
    }
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

/// What a run has measured.
fn measurements(arguments: &Arguments) -> Result<ExitCode> {
    let Arguments { source, folder, .. } = arguments;
    let run = RunDir::new(source);
    let history = History::read(&run)?;
    let written = if arguments.format == "csv" {
        atomic_write(folder, history.csv().as_bytes())?;
        folder.clone()
    } else {
        let config = run.config();
        let text = fs::read_to_string(&config).map_err(Error::read(&config))?;
        tensorboard::write(&history, &text, folder)?
    };
    print(&format!(
        "{}: {} iterations, {} evaluations",
        written.display(),
        history.steps.len(),
        history.evaluations.len()
    ))
}

/// How Python reads it.
fn reading(folder: &Path) -> String {
    format!(
        "AutoModelForCausalLM.from_pretrained({:?}) reads it",
        folder.display().to_string()
    )
}
