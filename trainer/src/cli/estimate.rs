//! `trainer estimate`: the memory of a run before it starts, and the batch sizes that would fit.

use protocol::ExitCode;

use super::{Words, configure, model_of, print};
use crate::config::Config;
use crate::engine::{Needs, Place, Recompute, Shape, fitted};
use crate::error::{Error, Result};

/// More sequences than that at once are of no use to anybody.
const BATCH_SIZE_MAX: usize = 1 << 16;

pub(super) fn run(mut words: Words) -> Result<ExitCode> {
    let source = words.take("config")?;
    let available = words.take("available")?.map(|gib| gibibytes(&gib));
    let available = available.transpose()?;
    let resolved = Config::resolve(source.as_deref(), &words.words)?;
    let config = &resolved.config;
    let place = Place::open(&config.device)?;
    configure(config);
    let model = model_of(config);
    let config = &fitted(&place, config, &model)?;
    let Some(mut needs) = Needs::of(&place, config, &model)? else {
        return Err(Error::config(
            "engine=candle: does not know its memory beforehand\nhint: --engine=fused",
        ));
    };
    if let Some(available) = available {
        needs = needs.with_available(available);
    }
    print(&table(&needs, needs.shape(config)))
}

fn gibibytes(word: &str) -> Result<u64> {
    match word.parse::<f64>() {
        Ok(gib) if gib > 0.0 && gib < 1e6 => Ok((gib * f64::from(1 << 30)) as u64),
        _ => Err(Error::config(format!(
            "--available: expected a number of GiB, got {word:?}"
        ))),
    }
}

fn table(needs: &Needs<'_>, shape: Shape) -> String {
    let mut lines = needs.table(shape);
    match needs.available {
        Some(_) => {
            for recompute in [Recompute::None, Recompute::Gelu, Recompute::Block] {
                let shape = Shape { recompute, ..shape };
                let largest = needs.largest(shape, BATCH_SIZE_MAX);
                let word = recompute.name();
                lines.push(match largest {
                    0 => format!("with recompute={word} nothing fits"),
                    _ => format!("with recompute={word} fits batch_size={largest}"),
                });
            }
        }
        None => lines.push("how much is available is unknown: --available=GIB says it".to_owned()),
    }
    lines.join("\n")
}
