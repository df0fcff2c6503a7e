//! The config, its dataset and whether the run fits. Called by the doctor.

use protocol::ExitCode;

use super::{Check, failed};
use crate::config::{Config, Resolved};
use crate::data::locate;
use crate::engine::{Needs, Place};
use crate::machine::{human_bytes, human_count};
use crate::model::{Gelu, ModelConfig};

pub(super) fn config(resolved: &Resolved) -> Check {
    let config = &resolved.config;
    let found = format!(
        "{}: {} iterations of {} tokens",
        resolved.name,
        human_count(config.max_iters),
        human_count(config.tokens_per_iteration())
    );
    if resolved.notes.is_empty() {
        return Check::ok("config", found);
    }
    let notes = resolved.notes.join("; ");
    Check::warning(
        "config",
        format!("{found}; {notes}"),
        "leave these keys out",
    )
}

/// The dataset, and the run's memory where a config was given.
pub(super) fn checks(config: &Config, named: bool) -> Vec<Check> {
    let (dataset, vocab_size) = dataset(config, named);
    let mut checks = vec![dataset];
    if named {
        checks.extend(fit(config, vocab_size));
    }
    checks
}

/// What is there of the dataset, and its vocabulary.
fn dataset(config: &Config, named: bool) -> (Check, Option<usize>) {
    let name = &config.dataset;
    if let Some(found) = locate::find(config) {
        return match found {
            Ok(dataset) => {
                let found = format!(
                    "{name}: {} tokens in {}",
                    human_count(dataset.info.train_tokens),
                    dataset.dir.display()
                );
                (Check::ok("dataset", found), Some(dataset.info.vocab_size))
            }
            Err(error) => (failed("dataset", ExitCode::Data, &error), None),
        };
    }
    let check = match locate::can_make(name) {
        Some(false) => Check::ok("dataset", format!("{name}: will be generated")),
        Some(true) => Check::ok(
            "dataset",
            format!("{name}: not there yet, will be fetched (1.1 MB) when a run starts"),
        ),
        None if named => Check::error(
            "dataset",
            ExitCode::Data,
            format!("{name}: not there"),
            match locate::is_recipe(name) {
                true => format!("trainer prepare {name}, or --data_dir where it is"),
                false => format!("trainer prepare FILE --name {name}, or --data_dir where it is"),
            },
        ),
        None => Check::ok("dataset", "none asked for (--config, --dataset)"),
    };
    (check, None)
}

/// Whether the run fits the memory of its device.
fn fit(config: &Config, vocab_size: Option<usize>) -> Option<Check> {
    let place = Place::open(&config.device).ok()?;
    let model = ModelConfig {
        n_layer: config.n_layer,
        n_head: config.n_head,
        n_embd: config.n_embd,
        block_size: config.block_size,
        // GPT-2's where nobody says: more than any other.
        vocab_size: match config.vocab_size {
            0 => vocab_size.unwrap_or(50_304),
            said => said,
        },
        bias: config.bias,
        gelu: Gelu::of(&config.gelu),
    };
    let needs = match Needs::of(&place, config, &model) {
        Ok(needs) => needs?,
        Err(error) => return Some(failed("run", ExitCode::Config, &error)),
    };
    let shape = needs.shape(config);
    if let Err(error) = needs.check(shape) {
        return Some(failed("run", ExitCode::Config, &error));
    }
    let total = human_bytes(needs.memory(shape).total());
    let available = needs.available.map(human_bytes);
    let available = available.map_or_else(String::new, |bytes| format!(" of {bytes}"));
    Some(Check::ok(
        "run",
        format!(
            "takes {total}{available} with batch_size={}, recompute={}",
            shape.batch_size,
            shape.recompute.name()
        ),
    ))
}
