//! Opening a run: the directory, the data, the model, and the checkpoint it goes on from.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;
use std::{fs, io};

use protocol::{Event, ExitCode, Phase, RunDir};

use super::startup::Startup;
use super::{Ending, Trainer, report};
use crate::checkpoint::{
    self, Checkpoints, DatasetIdentity, Loaded, RunLock, TrainState, atomic_write,
};
use crate::config::{Config, Resolved};
use crate::data::{self, Dataset, Loader, Sampling};
use crate::engine::{self, Engine};
use crate::error::{Error, Result};
use crate::interop::{self, Imported};
use crate::metrics::{self, Metrics, Scale};
use crate::model::{Gelu, ModelConfig};
use crate::signals::Signals;
use crate::tokenizer::Tokenizer;

/// Trains as the config says, from its first step or its newest checkpoint to the end or a stop.
/// `started` is when the process began.
///
/// # Errors
/// Each kind of trouble has its variant of [`Error`] and so its exit code; the last line of
/// `events.jsonl` tells it too, once the run directory is ours.
pub fn train(resolved: &Resolved, signals: &Signals, started: Instant) -> Result<ExitCode> {
    let config = &resolved.config;
    let mut startup = Startup::since(started);
    let place = engine::Place::open(&config.device)?;
    startup.done("device");
    let run = RunDir::new(&config.out_dir);
    fs::create_dir_all(run.root()).map_err(Error::write(run.root()))?;
    let _lock = RunLock::acquire(&run)?;
    let resume = claim_directory(config, &run)?;

    let mut metrics = Metrics::new(Some(&run), &config.progress, started)?;
    let mut step = 0;
    let opening = Opening {
        resolved,
        place,
        run: run.clone(),
        resume,
        signals,
        startup,
    };
    let result = Trainer::open(opening, &mut metrics).and_then(|mut trainer| {
        let ending = trainer.run();
        step = trainer.state.step;
        trainer.metrics.end();
        let ending = ending?;
        report::end(&mut trainer, ending)?;
        Ok(ending)
    });
    let (reason, exit_code) = match &result {
        Ok(Ending::Finished) => ("all iterations are done".to_owned(), 0),
        Ok(Ending::Evaluated) => ("evaluated, as eval_only asks".to_owned(), 0),
        Ok(Ending::Stopped) => ("stopped on request".to_owned(), ExitCode::Stopped.code()),
        // A fault of ours ends like a crash.
        Err(error) => (
            error.to_string(),
            error.exit_code().map_or(1, ExitCode::code),
        ),
    };
    metrics.record(Event::Finished {
        reason,
        exit_code,
        step,
    });
    result.map(Ending::exit_code)
}

/// Whether the run goes on from a checkpoint. Never writes over a run that it was not told to.
fn claim_directory(config: &Config, run: &RunDir) -> Result<bool> {
    let exists = !checkpoint::list(run)?.is_empty();
    match (config.init_from.as_str(), exists) {
        ("resume" | "auto", true) => Ok(true),
        ("auto", false) => Ok(false),
        ("resume", false) => Err(Error::Data(format!(
            "init_from=resume: {} holds no checkpoint\n\
             hint: check --out_dir; --resume=auto starts afresh where there is none",
            run.root().display()
        ))),
        (_, false) => Ok(false),
        (_, true) if config.overwrite && !config.eval_only => {
            discard(config, run)?;
            Ok(false)
        }
        (_, true) => Err(Error::config(format!(
            "out_dir={} holds checkpoints of another run, which a new one would replace\n\
             hint: --resume goes on with it, --out_dir=DIR starts elsewhere, \
             --overwrite discards it",
            run.root().display()
        ))),
    }
}

/// Removes what a run left, but for files that are not a trainer's.
fn discard(config: &Config, run: &RunDir) -> Result<()> {
    Checkpoints::open(run.clone(), config.keep_last)?.clear()?;
    metrics::discard_boards(run)?;
    match fs::remove_file(run.events()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::write(&run.events())(error))
        }
        _ => Ok(()),
    }
}

/// What a run is opened from.
struct Opening<'a> {
    resolved: &'a Resolved,
    place: engine::Place,
    run: RunDir,
    /// From its newest checkpoint.
    resume: bool,
    signals: &'a Signals,
    startup: Startup,
}

impl<'a> Trainer<'a> {
    fn open(opening: Opening<'a>, metrics: &'a mut Metrics) -> Result<Self> {
        let Opening {
            resolved,
            place,
            run,
            resume,
            signals,
            mut startup,
        } = opening;
        for note in &resolved.notes {
            metrics.warning(note);
        }
        metrics.phase(Phase::Preparing);
        let begins_with = pretrained(resolved, metrics)?;
        let resolved = begins_with
            .as_ref()
            .map_or(resolved, |(adapted, _)| adapted);
        let (dataset, tokenizer) = open_data(&resolved.config, metrics)?;
        startup.done("data");
        metrics.phase(Phase::Loading);
        let model = model_config(&resolved.config, &tokenizer)?;
        let resident = engine::resident_bytes(&place, &dataset);
        let fitted = engine::fitted(&place, &resolved.config, &model, resident)?;
        let config = &fitted;
        let loader = open_loader(config, &dataset)?;
        let memory = engine::memory_table(&place, config, &model, resident)?;
        let mut engine = engine::build_for(&place, config, &model, &dataset)?;
        if !config.eval_only {
            engine.prepare_snapshots();
        }
        startup.done("engine");
        let mut state = fresh_state(config, model, &dataset);
        let mut saved = None;
        if let Some((_, imported)) = &begins_with {
            engine.load_parameters(&imported.engine.parameters)?;
            startup.done("weights");
        }
        if resume {
            (state, saved) = go_on(&run, config, state, engine.as_mut(), metrics)?;
            startup.done("checkpoint");
        }
        let checkpoints = Checkpoints::open(run.clone(), config.keep_last)?;
        if !config.eval_only {
            atomic_write(&run.config(), state.config.as_bytes())?;
        }
        let scale = scale(config, &state.model, engine.as_ref())?;
        let mut trainer = Self {
            config: fitted,
            run,
            signals,
            metrics,
            dataset,
            tokenizer,
            loader,
            engine,
            checkpoints,
            state,
            saved,
            saved_at: Instant::now(),
            stalls: BTreeMap::new(),
            save_failure: None,
            last_losses: None,
            submitted: VecDeque::new(),
            timed_from: Instant::now(),
            startup,
        };
        trainer.announce(resolved, scale, memory);
        Ok(trainer)
    }

    /// Says what begins, to people and to programs.
    fn announce(&mut self, resolved: &Resolved, scale: Scale, memory: Vec<String>) {
        let mut lines = report::start(self, resolved);
        lines.extend(memory);
        lines.extend(self.engine.notes(self.config.verbose));
        lines.push(self.startup.line());
        for line in lines {
            self.metrics.note(&line);
        }
        let event = report::started_event(self, resolved);
        self.metrics.record(event);
        let step = self.state.step;
        if self.config.tensorboard_log {
            self.metrics.open_board(&self.run, step, &self.state.config);
        }
        self.metrics.begin(step, self.config.max_iters, scale);
        // From here on a stop saves first; who sees the phase may rely on it.
        self.signals.training_begins();
        self.metrics.phase(Phase::Training);
    }
}

/// Brings the engine to the newest checkpoint: where the run stands, and the checkpoint's step and
/// whether it knows its validation loss.
fn go_on(
    run: &RunDir,
    config: &Config,
    fresh: TrainState,
    engine: &mut dyn Engine,
    metrics: &mut Metrics,
) -> Result<(TrainState, Option<(u64, bool)>)> {
    let loaded = load_newest(run, metrics)?.expect("claimed for its checkpoint");
    checkpoint::compatible(&loaded.state, &fresh.model, &fresh.dataset)?;
    report::changed_keys(config, &loaded.state, metrics)?;
    engine.load_state(&loaded.engine)?;
    let saved = Some((loaded.state.step, loaded.manifest.val_loss.is_some()));
    let state = TrainState {
        seed: fresh.seed,
        trainer_version: fresh.trainer_version,
        config: fresh.config,
        // One that was imported does not know its dataset.
        dataset: fresh.dataset,
        ..loaded.state
    };
    Ok((state, saved))
}

/// The model that `init_from` names, if it names one, and the config with its shape: as in
/// nanoGPT, only `block_size` may be smaller than the model's.
fn pretrained(resolved: &Resolved, metrics: &mut Metrics) -> Result<Option<(Resolved, Imported)>> {
    if !resolved.config.is_pretrained() {
        return Ok(None);
    }
    let bar = metrics.prepare_bar();
    let (folder, mut imported) =
        interop::pretrained(&resolved.config.init_from, &|p| bar.update(p))?;
    drop(bar);
    metrics.note(&format!("pretrained weights: {}", folder.display()));
    let mut adapted = resolved.clone();
    let config = &mut adapted.config;
    if config.block_size > imported.model.block_size {
        metrics.warning(&format!(
            "block_size={}: the model has {} positions, and they are what it gets",
            config.block_size, imported.model.block_size
        ));
        config.block_size = imported.model.block_size;
    }
    imported.crop(config.block_size);
    let model = &imported.model;
    config.n_layer = model.n_layer;
    config.n_head = model.n_head;
    config.n_embd = model.n_embd;
    config.vocab_size = model.vocab_size;
    config.bias = model.bias;
    model.gelu.name().clone_into(&mut config.gelu);
    Ok(Some((adapted, imported)))
}

fn scale(config: &Config, model: &ModelConfig, engine: &dyn engine::Engine) -> Result<Scale> {
    Ok(Scale {
        tokens_per_iteration: config.tokens_per_iteration(),
        flops_per_token: model.flops_per_token(),
        peak_flops: engine.peak_flops()?,
    })
}

/// Where a run stands before its first step.
fn fresh_state(config: &Config, model: ModelConfig, dataset: &Dataset) -> TrainState {
    TrainState {
        step: 0,
        best_val_loss: None,
        seed: config.seed,
        tokens: 0,
        data_offset: 0,
        rollbacks: 0,
        loss_mean: None,
        model,
        dataset: identity(dataset),
        trainer_version: env!("CARGO_PKG_VERSION").to_owned(),
        config: config.to_toml(),
    }
}

/// The dataset that the config names, fetched and tokenised if need be, and its tokenizer.
pub(crate) fn open_data(
    config: &Config,
    metrics: &mut Metrics,
) -> Result<(Arc<Dataset>, Tokenizer)> {
    let bar = metrics.prepare_bar();
    let dataset = data::locate::locate(config, &|p| bar.update(p))?;
    drop(bar);
    // What lies beside token files of GPT-2's is another's.
    let own = match dataset.info.tokenizer.as_str() {
        "gpt2" => None,
        _ => Tokenizer::load(&dataset.dir)?,
    };
    let tokenizer = match own {
        Some(tokenizer) => tokenizer,
        None => Tokenizer::gpt2()?,
    };
    Ok((Arc::new(dataset), tokenizer))
}

/// What a checkpoint remembers of a dataset.
pub(crate) fn identity(dataset: &Dataset) -> DatasetIdentity {
    DatasetIdentity {
        name: dataset.info.name.clone(),
        tokenizer: dataset.info.tokenizer.clone(),
        vocab_size: dataset.info.vocab_size,
        fingerprint: dataset.fingerprint().to_owned(),
    }
}

/// The loader for a dataset as the config samples it.
pub(crate) fn open_loader(config: &Config, dataset: &Arc<Dataset>) -> Result<Loader> {
    let sampling = match config.sampling.as_str() {
        "epoch" => Sampling::Epoch,
        _ => Sampling::Random,
    };
    Loader::new(
        Arc::clone(dataset),
        config.batch_size,
        config.block_size,
        config.gradient_accumulation_steps,
        sampling,
        config.seed,
    )
}

/// The model's shape: the config's keys, and a vocabulary that holds the tokenizer's.
fn model_config(config: &Config, tokenizer: &Tokenizer) -> Result<ModelConfig> {
    let vocab_size = match config.vocab_size {
        0 => tokenizer.padded_vocab_size(),
        n if n >= tokenizer.vocab_size() => n,
        n => {
            let hint = if config.is_pretrained() {
                "a pretrained model goes on with data of its own tokenizer"
            } else {
                "leave it at 0 to take the dataset's"
            };
            return Err(Error::config(format!(
                "vocab_size={n} is smaller than the tokenizer's {}\nhint: {hint}",
                tokenizer.vocab_size()
            )));
        }
    };
    Ok(ModelConfig {
        n_layer: config.n_layer,
        n_head: config.n_head,
        n_embd: config.n_embd,
        block_size: config.block_size,
        vocab_size,
        bias: config.bias,
        gelu: Gelu::of(&config.gelu),
    })
}

/// The newest checkpoint that verifies; each that does not is a warning.
pub(super) fn load_newest(run: &RunDir, metrics: &mut Metrics) -> Result<Option<Loaded>> {
    let mut damaged = Vec::new();
    let loaded = checkpoint::load_newest(run, &mut |message| damaged.push(message));
    for message in damaged {
        metrics.warning(&message);
    }
    loaded
}
