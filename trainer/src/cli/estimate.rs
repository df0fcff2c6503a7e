//! `trainer estimate`: the memory of a run before it starts, the batch sizes that would fit, and
//! what it would take on rented GPUs.

use protocol::ExitCode;
use serde_json::json;

use super::{Words, configure, model_of, print};
use crate::config::Config;
use crate::data::{corpus, locate};
use crate::engine::{Needs, Place, Recompute, Shape, fitted};
use crate::error::{Error, Result};
use crate::estimate::{self, Filter, Wanted};

/// More sequences than that at once are of no use to anybody.
const BATCH_SIZE_MAX: usize = 1 << 16;

pub(super) fn run(mut words: Words) -> Result<ExitCode> {
    let source = words.take("config")?;
    let available = words.take("available")?.map(|gib| gibibytes(&gib));
    let available = available.transpose()?;
    let (filter, wanted) = (filter(&mut words)?, wanted(&mut words)?);
    let as_json = flag(&mut words, "json");
    let resolved = Config::resolve(source.as_deref(), &words.words)?;
    let config = &with_vocabulary(resolved.config);
    let place = Place::open(&config.device)?;
    configure(config);
    let model = model_of(config);
    // Cards are given the config as it is: each has its own batch size.
    let mut estimate = estimate::estimate(config, &model, &filter)?;
    let asks = wanted.budget_usd.is_some() || wanted.deadline_hours.is_some();
    let pick = (asks || wanted.spot.is_some()).then(|| estimate::pick(&mut estimate, &wanted));
    let config = &fitted(&place, config, &model, 0)?;
    let Some(mut needs) = Needs::of(&place, config, &model)? else {
        return Err(Error::config(
            "engine=candle: does not know its memory beforehand\nhint: --engine=fused",
        ));
    };
    if let Some(available) = available {
        needs = needs.with_available(available);
    }
    let shape = needs.shape(config);
    if as_json {
        let memory = needs.memory(shape);
        let report = json!({
            "config": resolved.name,
            "model": model,
            "here": {
                "batch_size": shape.batch_size,
                "recompute": shape.recompute.name(),
                "weights_bytes": memory.weights,
                "gradients_bytes": memory.gradients,
                "moments_bytes": memory.moments,
                "activations_bytes": memory.activations,
                "workspace_bytes": memory.workspace,
                "total_bytes": memory.total(),
                "available_bytes": needs.available,
            },
            "estimate": estimate,
            "pick": pick,
        });
        print(&report.to_string())?;
    } else {
        let mut lines = vec![table(&needs, shape), String::new()];
        lines.extend(estimate::lines(&estimate));
        if let Some(pick) = pick.as_ref().filter(|pick| pick.offer.is_some()) {
            lines.push(format!("picked: {}", pick.why));
        }
        print(&lines.join("\n"))?;
    }
    match pick {
        Some(pick) if pick.offer.is_none() => Err(Error::config(format!(
            "{}{}",
            pick.why,
            pick.hint
                .map_or_else(String::new, |hint| format!("\nhint: {hint}"))
        ))),
        _ => Ok(ExitCode::Finished),
    }
}

fn filter(words: &mut Words) -> Result<Filter> {
    let between = words.take("mtbf")?;
    Ok(Filter {
        gpu: words.take("gpu")?,
        provider: words.take("provider")?,
        between_s: between.map(|text| seconds("mtbf", &text)).transpose()?,
    })
}

fn wanted(words: &mut Words) -> Result<Wanted> {
    let budget = words.take("budget")?;
    let deadline = words.take("deadline")?;
    let deadline = deadline
        .map(|text| seconds("deadline", &text))
        .transpose()?;
    let budget = budget.map(|text| match text.trim_start_matches('$').parse::<f64>() {
        Ok(usd) if usd.is_finite() && usd >= 0.0 => Ok(usd),
        _ => Err(Error::config(format!(
            "--budget: expected dollars, got {text:?}"
        ))),
    });
    let (spot, on_demand) = (flag(words, "spot"), flag(words, "on_demand"));
    if spot && on_demand {
        return Err(Error::config(
            "--spot and --on-demand: expected one of them, or neither for both",
        ));
    }
    Ok(Wanted {
        budget_usd: budget.transpose()?,
        deadline_hours: deadline.map(|seconds| seconds / 3600.0),
        spot: (spot || on_demand).then_some(spot),
    })
}

/// Takes `--name` out of the words.
fn flag(words: &mut Words, name: &str) -> bool {
    let before = words.words.len();
    words.words.retain(|word| {
        let bare = word.strip_prefix("--").unwrap_or("").replace('-', "_");
        bare != name
    });
    words.words.len() < before
}

/// `90s`, `15m`, `6h`, `2d`.
fn seconds(name: &str, text: &str) -> Result<f64> {
    let units = [("s", 1.0), ("m", 60.0), ("h", 3600.0), ("d", 86_400.0)];
    let time = units.into_iter().find_map(|(unit, scale)| {
        let number: f64 = text.strip_suffix(unit)?.parse().ok()?;
        (number.is_finite() && number > 0.0).then_some(number * scale)
    });
    time.ok_or_else(|| {
        Error::config(format!(
            "--{name}: expected a time such as 90m, 3h or 2d, got {text:?}"
        ))
    })
}

/// The config with the vocabulary of its dataset, where that is known without making it: the head
/// of a small model takes more than all the rest.
fn with_vocabulary(config: Config) -> Config {
    if config.vocab_size > 0 {
        return config;
    }
    let prepared = locate::find(&config).and_then(Result::ok);
    let vocab_size = match prepared {
        // GPT-2's is padded, as `model_of` has it.
        Some(dataset) if dataset.info.tokenizer == "gpt2" => 0,
        Some(dataset) => dataset.info.vocab_size,
        None if config.dataset == "shakespeare_char" => 65,
        None if config.dataset == "quickstart" => {
            let mut chars: Vec<char> = corpus::generate(1 << 16).text.chars().collect();
            chars.sort_unstable();
            chars.dedup();
            chars.len()
        }
        // GPT-2's, as `model_of` has it.
        None => 0,
    };
    Config {
        vocab_size,
        ..config
    }
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
