//! `trainer estimate`: the memory of a run before it starts, and the batch sizes that would fit.

use protocol::ExitCode;

use super::{Words, configure, model_of, print};
use crate::config::Config;
use crate::engine::{Needs, Place, Recompute, Shape, fitted};
use crate::error::{Error, Result};
use crate::machine::human_bytes;

/// More sequences than that at once are of no use to anybody.
const BATCH_SIZE_MAX: usize = 1 << 16;
/// Buffers of the fullest operation that are worth a line.
const LINES_MAX: usize = 8;

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
    let memory = needs.memory(shape);
    let mut lines = vec![format!(
        "memory of a run with batch_size={}, recompute={}",
        shape.batch_size,
        shape.recompute.name()
    )];
    let mut line = |name: &str, bytes: u64, note: &str| {
        lines.push(format!("  {name:<34} {:>12}{note}", human_bytes(bytes)));
    };
    line("weights", memory.weights, "");
    line("gradients", memory.gradients, "");
    line("moments", memory.moments, "");
    line("activations, at their fullest", memory.activations, "");
    for (name, count, bytes) in needs.fullest(shape).into_iter().take(LINES_MAX) {
        line(&format!("  {name}"), bytes, &format!("  in {count}"));
    }
    line("workspace", memory.workspace, "");
    line("total", memory.total(), "");
    match needs.available {
        Some(available) => {
            line("available", available, "");
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
