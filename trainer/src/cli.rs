//! The command line: which command, its words, and where each goes. `main.rs` calls [`run`].

mod bench;
mod doctor;
mod estimate;
mod evaluate;
mod export;
mod import;
mod info;
mod plot;
mod prepare;
mod sample;

use std::io::{self, Write};
use std::time::Instant;

use clap::{CommandFactory, Parser, Subcommand};
use protocol::{ExitCode, RunDir};

use crate::checkpoint::{self, Listed, Loaded};
use crate::config::{Config, Resolved};
use crate::error::{Error, Result};
use crate::machine;
use crate::model::{Gelu, ModelConfig};
use crate::signals::Signals;
use crate::train;

/// A GPT trainer with nanoGPT's keys, losses and log lines.
#[derive(Debug, Parser)]
#[command(
    name = "trainer",
    version,
    max_term_width = 100,
    override_usage = "trainer [COMMAND] [--config NAME] [--resume[=auto]] [--KEY=VALUE ...]"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train (the default): --config NAME or FILE, --resume[=auto], and any key as --key=value.
    #[command(disable_help_flag = true)]
    Train(Words),
    /// Tokenise a dataset: by name, from a text file, or from a URL.
    #[command(args_override_self = true)]
    Prepare(prepare::Arguments),
    /// Make a checkpoint of nanoGPT's (ckpt.pt) or a GPT-2 of Hugging Face one of ours.
    #[command(args_override_self = true)]
    Import(import::Arguments),
    /// Draw the losses of runs over their steps, as SVG or PNG.
    #[command(args_override_self = true)]
    Plot(plot::Arguments),
    /// Write a checkpoint as Hugging Face's transformers loads it, or what a run has measured for
    /// TensorBoard or as CSV.
    #[command(args_override_self = true)]
    Export(export::Arguments),
    /// Show everything that a run, a checkpoint or a foreign model knows.
    #[command(args_override_self = true)]
    Info(info::Arguments),
    /// Generate text from a checkpoint.
    #[command(args_override_self = true)]
    Sample(sample::Arguments),
    /// Print both losses of a checkpoint: --out_dir=DIR, --checkpoint=latest|best|STEP, any key.
    Eval(Words),
    /// Time training or evaluation steps on random tokens: --config, --mode=train|eval, --steps=N,
    /// --warmup_steps=N, --format=json|table (a line, or time by room), any key.
    Bench(Words),
    /// Foresee a run's memory here, and its time and cost on rented GPUs: --config, --gpu=NAME,
    /// --provider=NAME, --budget=USD, --deadline=TIME, --spot, --on-demand, --mtbf=TIME (between
    /// interruptions), --available=GIB (of another machine), --json, any key.
    Estimate(Words),
    /// Check driver, GPUs, memory, processors, disks, clock and dataset: --config, --json, any key.
    Doctor(Words),
}

#[derive(Debug, clap::Args)]
struct Words {
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "--KEY=VALUE"
    )]
    words: Vec<String>,
}

/// Runs the command that `arguments` (without the program's name) ask for. `started` is when the
/// process began.
///
/// # Errors
/// Whatever the command reports; [`Error::exit_code`] says how the process ends.
pub fn run(arguments: Vec<String>, started: Instant) -> Result<ExitCode> {
    let mut words = vec!["trainer".to_owned()];
    let first = arguments.first().map_or("", String::as_str);
    let named = Cli::command()
        .get_subcommands()
        .any(|command| command.get_name() == first);
    let asks_clap = matches!(first, "-h" | "--help" | "help" | "-V" | "--version");
    if !named && !asks_clap {
        words.push("train".to_owned());
    }
    words.extend(arguments);
    let parsed = Cli::command()
        .after_help(Config::help())
        .try_get_matches_from(words);
    let command = parsed.and_then(|matches| {
        <Cli as clap::FromArgMatches>::from_arg_matches(&matches).map(|cli| cli.command)
    });
    match command {
        Ok(Command::Train(words)) if words.asks_help() => print_help(),
        Ok(Command::Train(words)) => train(words, started),
        Ok(Command::Prepare(arguments)) => prepare::run(&arguments, started),
        Ok(Command::Import(arguments)) => import::run(&arguments),
        Ok(Command::Export(arguments)) => export::run(&arguments),
        Ok(Command::Info(arguments)) => info::run(&arguments),
        Ok(Command::Plot(arguments)) => plot::run(&arguments),
        Ok(Command::Sample(arguments)) => sample::run(&arguments),
        Ok(Command::Eval(words)) => evaluate::run(words, started),
        Ok(Command::Bench(words)) => bench::run(words, started),
        Ok(Command::Estimate(words)) => estimate::run(words),
        Ok(Command::Doctor(words)) => doctor::run(words),
        Err(error) if error.use_stderr() => Err(usage_error(&error)),
        Err(help) => print(&help.render().to_string()),
    }
}

/// clap's report in our form: one line that says what is wrong, then its tips as hints.
fn usage_error(error: &clap::Error) -> Error {
    let text = error.render().to_string();
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let fault = lines
        .next()
        .unwrap_or("")
        .trim_start_matches("error: ")
        .to_owned();
    let tips = lines.filter_map(|line| Some(format!("hint: {}", line.strip_prefix("tip: ")?)));
    let mut report = vec![fault];
    report.extend(tips);
    report.push("hint: --help lists what there is".to_owned());
    Error::Config(report)
}

/// The model that a config describes, where no dataset says how large its vocabulary is.
fn model_of(config: &Config) -> ModelConfig {
    /// GPT-2's, padded as nanoGPT does.
    const VOCAB_SIZE: usize = 50304;
    ModelConfig {
        n_layer: config.n_layer,
        n_head: config.n_head,
        n_embd: config.n_embd,
        block_size: config.block_size,
        vocab_size: if config.vocab_size == 0 {
            VOCAB_SIZE
        } else {
            config.vocab_size
        },
        bias: config.bias,
        gelu: Gelu::of(&config.gelu),
    }
}

fn train(mut words: Words, started: Instant) -> Result<ExitCode> {
    words.spell_out();
    let source = words.take("config")?;
    let resume = words.take_resume();
    let goes_on =
        resume.is_some() || matches!(words.peek("init_from").as_deref(), Some("resume" | "auto"));
    let imported = if goes_on {
        import::adopt_for_resume(words.peek("out_dir"), words.peek("data_dir"))?
    } else {
        Vec::new()
    };
    let source = match source {
        // A run that goes on has its own config.
        None if goes_on => words.saved_config(),
        source => source,
    };
    let mut resolved = Config::resolve(source.as_deref(), &words.words)?;
    // What is not begun yet begins with the weights that it names.
    let run = RunDir::new(&resolved.config.out_dir);
    let begins_with = resume == Some("auto")
        && resolved.config.is_pretrained()
        && checkpoint::list(&run)?.is_empty();
    if let Some(mode) = resume
        && !begins_with
    {
        words.words.push(format!("--init_from={mode}"));
        resolved = Config::resolve(source.as_deref(), &words.words)?;
    }
    resolved.notes.extend(imported);
    configure(&resolved.config);
    let signals = install_signals()?;
    train::train(&resolved, &signals, started)
}

/// Settings of the whole process, before its first thread.
fn configure(config: &Config) {
    machine::configure(machine::threads(config.threads));
}

fn install_signals() -> Result<Signals> {
    Signals::install().map_err(|e| Error::Device(format!("cannot take over signals: {e}")))
}

impl Words {
    fn asks_help(&self) -> bool {
        self.words
            .iter()
            .any(|word| word == "--help" || word == "-h")
    }

    /// Has short words be what they stand for.
    fn spell_out(&mut self) {
        for word in self.words.iter_mut().filter(|word| *word == "-v") {
            "--verbose=true".clone_into(word);
        }
    }

    /// Takes `--name=value` or `--name value` out of the words; the last one counts.
    fn take(&mut self, name: &str) -> Result<Option<String>> {
        let mut value = None;
        let mut rest = Vec::new();
        let mut words = std::mem::take(&mut self.words).into_iter();
        while let Some(word) = words.next() {
            let body = word.strip_prefix("--").unwrap_or("");
            let (key, inline) = match body.split_once('=') {
                Some((key, value)) => (key, Some(value.to_owned())),
                None => (body, None),
            };
            if key.replace('-', "_") != name {
                rest.push(word);
                continue;
            }
            value = inline.or_else(|| words.next());
            if value.is_none() {
                return Err(Error::config(format!(
                    "--{name}: expected a value, got none"
                )));
            }
        }
        self.words = rest;
        Ok(value)
    }

    /// The value that [`Self::take`] would take; `None` also where it would find a fault.
    fn peek(&self, name: &str) -> Option<String> {
        let mut copy = Self {
            words: self.words.clone(),
        };
        copy.take(name).ok().flatten()
    }

    /// [`Self::take`] for a whole number.
    fn take_number(&mut self, name: &str, default: u64) -> Result<u64> {
        let Some(text) = self.take(name)? else {
            return Ok(default);
        };
        let number = text.parse().ok();
        number.ok_or_else(|| {
            Error::config(format!("--{name}: expected a whole number, got {text:?}"))
        })
    }

    /// Takes `--resume`, `--resume=auto` or `--resume auto` out of the words.
    fn take_resume(&mut self) -> Option<&'static str> {
        let at = self
            .words
            .iter()
            .position(|w| w == "--resume" || w.starts_with("--resume="))?;
        let word = self.words.remove(at);
        let next_is_auto = self.words.get(at).is_some_and(|next| next == "auto");
        if word == "--resume" && next_is_auto {
            self.words.remove(at);
            return Some("auto");
        }
        match word.strip_prefix("--resume=") {
            Some("auto") => Some("auto"),
            None | Some("true" | "True") => Some("resume"),
            Some(_) => {
                // Not ours: the config names the fault with the others.
                self.words.insert(at, word);
                None
            }
        }
    }

    /// The config that the run named by `--out_dir` (or the default) was started with, if it has
    /// one.
    fn saved_config(&self) -> Option<String> {
        let out_dir = self.peek("out_dir").unwrap_or_else(|| "out".to_owned());
        let path = RunDir::new(out_dir).config();
        path.exists().then(|| path.display().to_string())
    }

    /// The config of an existing run, with the words that are left as overrides.
    fn resolve_saved(self) -> Result<Resolved> {
        let source = self.saved_config();
        Config::resolve(source.as_deref(), &self.words)
    }
}

/// The parameters of one checkpoint: `best` (the newest where none knows its validation loss),
/// `latest`, or a step.
fn load_model(run: &RunDir, which: &str) -> Result<Loaded> {
    let listed = checkpoint::list(run)?;
    let whole = |item: &&Listed| item.manifest.is_ok();
    let chosen = match which {
        "latest" => listed.iter().find(whole),
        "best" => checkpoint::best(&listed).or_else(|| listed.iter().find(whole)),
        step => listed.iter().find(|item| item.step.to_string() == step),
    };
    let Some(chosen) = chosen else {
        let steps: Vec<String> = listed.iter().map(|item| item.step.to_string()).collect();
        return Err(Error::Data(format!(
            "{}: no checkpoint {which}; there are {}",
            run.root().display(),
            if steps.is_empty() {
                "none".to_owned()
            } else {
                steps.join(", ")
            }
        )));
    };
    checkpoint::load_model_only(&chosen.path)
}

fn print_help() -> Result<ExitCode> {
    let mut command = Cli::command().after_help(Config::help());
    print(&command.render_help().to_string())
}

/// Text for standard output. A reader that went away is no fault.
fn print(text: &str) -> Result<ExitCode> {
    writeln!(io::stdout(), "{}", text.trim_end()).ok();
    Ok(ExitCode::Finished)
}

#[cfg(test)]
mod tests;
