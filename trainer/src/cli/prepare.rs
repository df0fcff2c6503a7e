//! `trainer prepare`: tokenise a dataset ahead of training.

use std::path::{Path, PathBuf};
use std::time::Instant;

use protocol::ExitCode;

use super::print;
use crate::data::locate::{Places, Request, prepare_named_or_path};
use crate::data::prepare::{Collection, TokenizerChoice};
use crate::error::Result;
use crate::machine::{self, human_count};
use crate::metrics::Metrics;

/// Turns texts into a dataset.
///
/// A single text is split by characters. Anything else is documents: a line of .jsonl or .ndjson,
/// a row of .parquet, a .txt of a folder. Each is followed by <|endoftext|>, or by a line feed
/// where tokens are characters.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Files, folders or globs of .txt, .jsonl, .ndjson, .parquet (also .gz, .zst), here or at
    /// https://, s3://BUCKET/PREFIX, hf://datasets/OWNER/NAME/PATH; or a name: shakespeare_char,
    /// shakespeare, quickstart, openwebtext, fineweb, fineweb-10B, fineweb-edu.
    #[arg(required = true, value_name = "SOURCE")]
    sources: Vec<String>,
    /// Name of the dataset [default: the known name, or the first file's stem].
    #[arg(long)]
    name: Option<String>,
    /// char, gpt2, or the path of a tokenizer.json [default: what the name says, else gpt2 for
    /// documents and char for a text].
    #[arg(long)]
    tokenizer: Option<String>,
    /// Field of a line of JSON, or column, that holds a document; dots lead into objects.
    #[arg(long, default_value = "text")]
    field: String,
    /// Share that becomes the validation split: of a text its end, of documents some, chosen by
    /// number and seed [default: 0.1 of a text, 0.0005 of documents].
    #[arg(long = "val_fraction", alias = "val-fraction")]
    val_fraction: Option<f64>,
    /// Which documents become the validation split.
    #[arg(long, default_value_t = Collection::SEED)]
    seed: u64,
    /// Folder to write; training finds it by --dataset=NAME below --data_dir.
    #[arg(
        long,
        value_name = "DIR",
        help = "Folder to write [default: data/NAME]"
    )]
    out: Option<PathBuf>,
    /// Replace the folder if it exists.
    #[arg(long)]
    overwrite: bool,
    /// A mirror to fetch a known dataset from: http(s):// or file://.
    #[arg(long = "data_url", alias = "data-url", default_value = "")]
    data_url: String,
    /// Threads; 0 = all cores.
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

pub(super) fn run(arguments: &Arguments, started: Instant) -> Result<ExitCode> {
    machine::configure(machine::threads(arguments.threads));
    let metrics = Metrics::new(None, "auto", started)?;
    let bar = metrics.prepare_bar();
    let request = Request {
        sources: arguments.sources.clone(),
        name: arguments.name.as_deref(),
        tokenizer: arguments
            .tokenizer
            .as_deref()
            .map(TokenizerChoice::parse)
            .transpose()?,
        val_fraction: arguments.val_fraction,
        field: &arguments.field,
        seed: arguments.seed,
        out_dir: arguments.out.as_deref(),
        overwrite: arguments.overwrite,
    };
    let places = Places::new(Path::new(""), &arguments.data_url);
    let (dir, info) = prepare_named_or_path(&request, &places, &|p| bar.update(p))?;
    drop(bar);
    print(&format!(
        "{}: {} training tokens, {} validation tokens, vocabulary {} ({}), in {}\n\
         trainer --dataset={} --data_dir={} trains on it",
        info.name,
        human_count(info.train_tokens),
        human_count(info.val_tokens),
        info.vocab_size,
        info.tokenizer,
        dir.display(),
        info.name,
        dir.display()
    ))
}
