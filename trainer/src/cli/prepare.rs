//! `trainer prepare`: tokenise a dataset ahead of training.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use protocol::ExitCode;

use super::print;
use crate::data::locate::{Places, Request, prepare_named_or_path};
use crate::data::prepare::{Collection, Progress, Stage, TokenizerChoice};
use crate::error::Result;
use crate::machine::{self, human_bytes, human_count};
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
    #[arg(value_name = "SOURCE")]
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
    let log = Log::new();
    let (dir, info) = prepare_named_or_path(&request, &places, &|progress| {
        bar.update(progress);
        log.update(progress);
    })?;
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

/// How often a log hears of progress.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Lines on standard error, where nobody sees a bar.
struct Log {
    /// When the last line was written; `None` where a person watches.
    last: Option<Mutex<Instant>>,
}

impl Log {
    fn new() -> Self {
        let is_watched = io::stdout().is_terminal() && io::stderr().is_terminal();
        Self {
            last: (!is_watched).then(|| Mutex::new(Instant::now())),
        }
    }

    fn update(&self, Progress { stage, done, total }: Progress) {
        let Some(last) = &self.last else { return };
        let mut last = last.lock().expect("nothing panics with the lock");
        if last.elapsed() < LOG_INTERVAL {
            return;
        }
        *last = Instant::now();
        let what = match stage {
            Stage::Fetching => "fetching",
            Stage::Scanning => "reading",
            Stage::Encoding => "encoding",
        };
        let done = human_bytes(done);
        // A reader that has gone away must not end the work.
        match total.map(human_bytes) {
            Some(total) => writeln!(io::stderr(), "{what}: {done} of {total}").ok(),
            None => writeln!(io::stderr(), "{what}: {done}").ok(),
        };
    }
}
