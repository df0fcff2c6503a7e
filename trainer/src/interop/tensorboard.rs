//! A run's whole history as one of TensorBoard's event files. Called by
//! `trainer export --format tensorboard`.

use std::fs;
use std::path::{Path, PathBuf};

use super::history::History;
use crate::checkpoint::atomic_write;
use crate::error::{Error, Result};
use crate::metrics::tensorboard::{
    PREFIX, SUFFIX, config as config_record, evaluation, iteration, sample, version,
};

/// Writes the whole history as one event file in `folder`, replacing the one of the export before.
///
/// # Errors
/// [`Error::Write`].
pub fn write(history: &History, config: &str, folder: &Path) -> Result<PathBuf> {
    let begin = history.steps.values().map(|step| step.time);
    let begin = begin.fold(f64::INFINITY, f64::min);
    let begin = if begin.is_finite() { begin } else { 0.0 };
    let mut out = version(begin);
    out.extend(config_record(begin, 0, config));
    for (&step, made) in &history.steps {
        let measured = [
            Some(made.loss),
            Some(made.learning_rate),
            Some(made.grad_norm),
            Some(made.tokens_per_second),
            made.mfu,
        ];
        out.extend(iteration(made.time, step, measured));
    }
    for (&step, seen) in &history.evaluations {
        out.extend(evaluation(seen.time, step, seen.train, seen.val));
    }
    for (&step, (time, text)) in &history.samples {
        out.extend(sample(*time, step, text));
    }
    fs::create_dir_all(folder).map_err(Error::write(folder))?;
    let path = folder.join(format!("{PREFIX}0{SUFFIX}"));
    atomic_write(&path, &out)?;
    Ok(path)
}
