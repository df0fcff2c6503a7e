//! `trainer prepare`: tokenise a dataset ahead of training.

use std::path::{Path, PathBuf};
use std::time::Instant;

use protocol::ExitCode;

use super::print;
use crate::data::locate::{Places, Request, prepare_named_or_path};
use crate::data::prepare::TokenizerChoice;
use crate::error::Result;
use crate::machine::{self, human_count};
use crate::metrics::Metrics;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// A known name (shakespeare_char, shakespeare, quickstart), a text file, or a URL.
    source: String,
    /// Name of the dataset [default: the known name, or the file's stem].
    #[arg(long)]
    name: Option<String>,
    /// char, gpt2, or the path of a tokenizer.json [default: what the name says, else char].
    #[arg(long)]
    tokenizer: Option<String>,
    /// Share of the text, from its end, that becomes the validation split [default: 0.1].
    #[arg(long = "val_fraction", alias = "val-fraction")]
    val_fraction: Option<f64>,
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
        what: &arguments.source,
        name: arguments.name.as_deref(),
        tokenizer: arguments
            .tokenizer
            .as_deref()
            .map(TokenizerChoice::parse)
            .transpose()?,
        val_fraction: arguments.val_fraction,
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
