//! `trainer eval`: both losses of a checkpoint.

use std::time::Instant;

use protocol::{ExitCode, RunDir};

use super::{Words, configure, load_model, print};
use crate::checkpoint;
use crate::engine::{self, Place};
use crate::error::{Error, Result};
use crate::eval;
use crate::metrics::Metrics;
use crate::train;

pub(super) fn run(mut words: Words, started: Instant) -> Result<ExitCode> {
    let which = words
        .take("checkpoint")?
        .unwrap_or_else(|| "latest".to_owned());
    let resolved = words.resolve_saved()?;
    let config = &resolved.config;
    let place = Place::open(&config.device)?;
    configure(config);
    let run = RunDir::new(&config.out_dir);
    let mut metrics = Metrics::new(None, &config.progress, started)?;
    let loaded = load_model(&run, &which)?;
    let (dataset, _) = train::open_data(config, &mut metrics)?;
    let identity = train::identity(&dataset);
    checkpoint::compatible(&loaded.state, &loaded.state.model, &identity)?;
    let resident = engine::resident_bytes(&place, &dataset);
    let config = &engine::fitted(&place, config, &loaded.state.model, resident)?;
    let loader = train::open_loader(config, &dataset)?;
    let mut engine = engine::build_for(&place, config, &loaded.state.model, &dataset)?;
    engine.load_parameters(&loaded.engine.parameters)?;
    let losses = eval::losses(engine.as_mut(), &loader, config.eval_iters, &|| false)?;
    let losses = losses.ok_or(Error::Stopped)?;
    print(&format!(
        "step {}: train loss {:.4}, val loss {:.4}",
        loaded.state.step, losses.train, losses.val
    ))
}
