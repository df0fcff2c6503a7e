//! `trainer sample`: text from a checkpoint, streamed as it is drawn.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use protocol::{ExitCode, RunDir};

use super::load_model;
use crate::checkpoint::Loaded;
use crate::config::Config;
use crate::engine::{self, Place};
use crate::error::{Error, Result};
use crate::machine;
use crate::sample::{self, Pace, SampleOptions};
use crate::tokenizer::Tokenizer;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Run directory.
    #[arg(long = "out_dir", alias = "out-dir", default_value = "out")]
    out_dir: PathBuf,
    /// best, latest, or a step.
    #[arg(long, default_value = "best")]
    checkpoint: String,
    /// The prompt, or FILE:PATH to read it from a file.
    #[arg(
        long,
        default_value = "\n",
        hide_default_value = true,
        allow_hyphen_values = true
    )]
    start: String,
    #[arg(long = "num_samples", alias = "num-samples", default_value_t = 10)]
    num_samples: u32,
    #[arg(
        long = "max_new_tokens",
        alias = "max-new-tokens",
        default_value_t = 500
    )]
    max_new_tokens: u64,
    /// 0 = greedy.
    #[arg(long, default_value_t = 0.8)]
    temperature: f64,
    /// Draw from the likeliest K tokens only; 0 = all.
    #[arg(long = "top_k", alias = "top-k", default_value_t = 200)]
    top_k: usize,
    /// Draw from the likeliest tokens that reach this probability together; 1 = all.
    #[arg(long = "top_p", alias = "top-p", default_value_t = 1.0)]
    top_p: f64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A text that ends a sample; may be given more than once.
    #[arg(long)]
    stop: Vec<String>,
    #[arg(long, default_value = "auto")]
    device: String,
    /// Threads; 0 = all cores.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Tell on standard error how long each sample took.
    #[arg(long)]
    timing: bool,
}

/// nanoGPT's line after each sample.
const RULER: &str = "---------------";

pub(super) fn run(arguments: &Arguments) -> Result<ExitCode> {
    check(arguments)?;
    let place = Place::open(&arguments.device)?;
    machine::configure(machine::threads(arguments.threads));
    let run = RunDir::new(&arguments.out_dir);
    let loaded = load_model(&run, &arguments.checkpoint)?;
    let tokenizer = tokenizer(&loaded)?;
    let prompt = match arguments.start.strip_prefix("FILE:") {
        Some(path) => fs::read_to_string(path).map_err(Error::read(Path::new(path)))?,
        None => arguments.start.clone(),
    };
    let tokens = tokenizer.encode(&prompt)?;
    let mut config = Config::from_toml_str(&loaded.state.config)?;
    // Training's batches are not needed here, nor is the memory for them.
    config.batch_size = 1;
    let mut engine = engine::build(&place, &config, &loaded.state.model)?;
    engine.load_parameters(&loaded.engine.parameters)?;
    let options = SampleOptions {
        temperature: arguments.temperature,
        top_k: arguments.top_k,
        top_p: arguments.top_p,
        max_new_tokens: arguments.max_new_tokens,
        seed: arguments.seed,
        stop: arguments.stop.clone(),
    };
    let mut out = io::stdout().lock();
    let mut show = |text: &str| -> io::Result<()> {
        out.write_all(text.as_bytes())?;
        out.flush()
    };
    for index in 0..arguments.num_samples {
        let mut open = show(&prompt).is_ok();
        let pace = sample::generate(
            engine.as_mut(),
            &tokenizer,
            &tokens,
            &options,
            index,
            |piece| {
                open = open && show(piece).is_ok();
                if open { Ok(()) } else { Err(Error::Stopped) }
            },
        );
        let pace = match pace {
            Err(error) if open => return Err(error),
            pace => pace.unwrap_or_default(),
        };
        // A reader that went away (`| head`) wants no more.
        if !open || show(&format!("\n{RULER}\n")).is_err() {
            break;
        }
        if arguments.timing && writeln!(io::stderr(), "{}", timing(&pace)).is_err() {
            break;
        }
    }
    Ok(ExitCode::Finished)
}

/// "timing: ...": the prompt and the tokens after the first.
fn timing(pace: &Pace) -> String {
    let first = pace.first.as_secs_f64();
    let more = pace.tokens.saturating_sub(1);
    let each = pace.rest.as_secs_f64() / more.max(1) as f64;
    let rate = if more == 0 { 0.0 } else { 1.0 / each };
    let memory = machine::peak_memory().map_or(0, |bytes| bytes >> 20);
    format!(
        "timing: first token {first:.3} s, {more} more {:.3} ms each ({rate:.1} tokens/s), \
         {memory} MiB at most",
        1e3 * each
    )
}

/// The checkpoint's own tokenizer; GPT-2's where it carries none and the vocabulary is as large.
fn tokenizer(loaded: &Loaded) -> Result<Tokenizer> {
    if let Some((name, bytes)) = &loaded.tokenizer {
        return Tokenizer::from_bytes(name, bytes);
    }
    let gpt2 = Tokenizer::gpt2()?;
    let vocab_size = loaded.state.model.vocab_size;
    if vocab_size < gpt2.vocab_size() {
        return Err(Error::Data(format!(
            "the checkpoint carries no tokenizer, and its vocabulary of {vocab_size} is not \
             GPT-2's\n\
             hint: train on its dataset for a step, or import it with --meta=meta.pkl"
        )));
    }
    Ok(gpt2)
}

/// All faults of the options at once.
fn check(arguments: &Arguments) -> Result<()> {
    let mut faults = Vec::new();
    if !(arguments.temperature >= 0.0 && arguments.temperature.is_finite()) {
        faults.push(format!(
            "--temperature: expected 0 or more, got {}",
            arguments.temperature
        ));
    }
    if !(arguments.top_p > 0.0 && arguments.top_p <= 1.0) {
        faults.push(format!(
            "--top_p: expected above 0 and at most 1, got {}",
            arguments.top_p
        ));
    }
    if faults.is_empty() {
        Ok(())
    } else {
        Err(Error::Config(faults))
    }
}
