//! What a run would take on rented GPUs: memory, time, money, before anything is rented. Called by
//! `trainer estimate`.
//!
//! Memory and FLOPs are those of the plan that the engine for GPUs computes by; rates are a share
//! of the data sheets', and every row says what that share rests on.

mod cards;
mod prices;
mod memory;
mod speed;
mod interruptions;
mod choice;
mod table;

use std::time::{Duration, Instant};

use serde::Serialize;

pub use self::cards::{Basis, Card, SHARE_SOURCE};
pub use self::choice::{Offer, Pick, Wanted, mark, pick};
pub use self::interruptions::{BETWEEN_S, Interruptions, RESTART_S};
use self::interruptions::{CHECKPOINT_BYTES_PER_PARAMETER, CHECKPOINT_BYTES_PER_S};
use self::memory::{Fit, Planner, gib};
use self::prices::Price;
use self::speed::Rates;
pub use self::table::lines;
use crate::config::Config;
use crate::engine::plan::Plan;
use crate::engine::{Needs, Place};
use crate::error::{Error, Result};
use crate::model::ModelConfig;

/// A run on one machine at one provider's price.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    pub gpu: &'static str,
    pub provider: String,
    /// The provider's type of machine, where that is what is rented.
    pub machine: Option<String>,
    /// GPUs that the price is for; the run uses one.
    pub gpus: u32,
    /// GiB that a run may take.
    pub room_gib: f64,
    /// Why it does not run there.
    pub unfit: Option<String>,
    #[serde(flatten)]
    pub run: Option<Run>,
    pub on_demand_per_hour: Option<f64>,
    pub spot_per_hour: Option<f64>,
    pub prices_as_of: String,
    pub on_demand_usd: Option<f64>,
    pub spot_usd: Option<f64>,
    /// `cheapest`, `fastest`, `picked`.
    pub marks: Vec<&'static str>,
}

/// How a run would go on a GPU.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Run {
    pub memory_gib: f64,
    pub batch_size: usize,
    pub gradient_accumulation_steps: u64,
    /// Whether the config has another batch size.
    pub needs_batch_size_auto: bool,
    pub recompute: &'static str,
    pub dtype: &'static str,
    pub tokens_per_second: f64,
    /// By nanoGPT's count of FLOPs, of the data sheet's rate.
    pub mfu: f64,
    pub basis: Basis,
    /// Evaluations included.
    pub hours: f64,
    /// The same with the interruptions that are expected of a spot machine.
    pub spot_hours: f64,
}

/// Everything that is known of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Estimate {
    pub parameters: u64,
    pub flops_per_token: f64,
    pub tokens_per_iteration: u64,
    pub iterations: u64,
    pub evaluations: u64,
    pub eval_iters: u64,
    pub rows: Vec<Row>,
    /// This machine's CPU, where the config's engine can tell.
    pub cpu: Option<Run>,
    pub share_source: &'static str,
    /// Of spot machines.
    pub interruptions: Interruptions,
    pub best_checkpoint_interval_s: f64,
}

/// Which rows are wanted.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub gpu: Option<String>,
    pub provider: Option<String>,
    /// Seconds between interruptions of a spot machine, where the user knows.
    pub between_s: Option<f64>,
}

/// How often a run works at what.
struct Work<'a> {
    config: &'a Config,
    iterations: u64,
    evaluations: u64,
}

impl Work<'_> {
    /// As the loop in `train` does: before the first step, every `eval_interval`, at the end.
    fn of(config: &Config) -> Work<'_> {
        let steps = config.max_iters;
        let between = config.eval_interval;
        let (iterations, evaluations) = if config.eval_only {
            (0, 1)
        } else {
            let last = u64::from(!steps.is_multiple_of(between));
            (steps, steps / between + 1 + last)
        };
        Work {
            config,
            iterations,
            evaluations,
        }
    }

    /// Tokens per second of training, and hours with evaluations, from the seconds of an iteration
    /// and of a batch without gradients.
    fn run(&self, iteration_s: f64, evaluation_s: f64) -> (f64, f64) {
        let batches = self.evaluations * 2 * self.config.eval_iters;
        let seconds = self.iterations as f64 * iteration_s + batches as f64 * evaluation_s;
        let tokens = self.config.tokens_per_iteration() as f64;
        (tokens / iteration_s, seconds / 3600.0)
    }
}

/// Estimates the run for every card that is priced, or wanted by its name.
///
/// # Errors
/// [`Error::Config`] if no card or provider is called what the filter says.
pub fn estimate(config: &Config, model: &ModelConfig, filter: &Filter) -> Result<Estimate> {
    let work = Work::of(config);
    let planner = Planner::new(config, model);
    let interruptions = interruptions(config, model, filter.between_s);
    let mut rows = Vec::new();
    for price in wanted(filter)? {
        let fit = planner.fit(price.card);
        let run = fit.as_ref().ok().map(|fit| {
            let mut run = run_on(price.card, fit, &planner, &work, model);
            let interruptions = with_interval(interruptions, config, &work, &run);
            run.spot_hours = interruptions.expected_s(run.hours * 3600.0) / 3600.0;
            run
        });
        rows.push(row(price, fit.err(), run));
    }
    mark(&mut rows);
    Ok(Estimate {
        parameters: model.parameter_count(),
        flops_per_token: model.flops_per_token(),
        tokens_per_iteration: config.tokens_per_iteration(),
        iterations: work.iterations,
        evaluations: work.evaluations,
        eval_iters: config.eval_iters,
        cpu: cpu(config, model, &work)?,
        rows,
        share_source: SHARE_SOURCE,
        best_checkpoint_interval_s: interruptions.best_interval_s(),
        interruptions,
    })
}

fn wanted(filter: &Filter) -> Result<Vec<Price>> {
    let mut prices = prices::shipped();
    if let Some(gpu) = &filter.gpu {
        let cards = Card::named(gpu);
        if cards.is_empty() {
            let known: Vec<&str> = Card::all().iter().map(|card| card.name).collect();
            return Err(Error::config(format!(
                "--gpu: no data sheet of {gpu:?}\nhint: there are {}",
                known.join(", ")
            )));
        }
        prices.retain(|price| cards.contains(&price.card));
    }
    if let Some(provider) = &filter.provider {
        let mut known: Vec<String> = prices::shipped().into_iter().map(|p| p.provider).collect();
        known.sort();
        known.dedup();
        if !known.contains(provider) {
            return Err(Error::config(format!(
                "--provider: no prices of {provider:?}\nhint: there are {}",
                known.join(", ")
            )));
        }
        prices.retain(|price| price.provider == *provider);
    }
    Ok(prices)
}

fn row(price: Price, unfit: Option<String>, run: Option<Run>) -> Row {
    let usd =
        |per_hour: Option<f64>, hours: fn(&Run) -> f64| Some(per_hour? * run.as_ref().map(hours)?);
    Row {
        gpu: price.card.name,
        room_gib: gib(Planner::room(price.card)),
        on_demand_usd: usd(price.on_demand, |run| run.hours),
        spot_usd: usd(price.spot, |run| run.spot_hours),
        provider: price.provider,
        machine: price.machine,
        gpus: price.gpus,
        unfit,
        run,
        on_demand_per_hour: price.on_demand,
        spot_per_hour: price.spot,
        prices_as_of: price.as_of,
        marks: Vec::new(),
    }
}

/// The run on a card that it fits.
fn run_on(
    card: &Card,
    fit: &Fit,
    planner: &Planner<'_>,
    work: &Work<'_>,
    model: &ModelConfig,
) -> Run {
    let share = card.share();
    let rates = Rates::of(card, share);
    let planned = planner.planned(fit.shape.batch_size, fit.shape.recompute);
    let micro_step_s = rates.plan_s(&planned.training);
    let iteration_s = fit.accumulation as f64 * micro_step_s + rates.update_s(planner.elements());
    let (tokens_per_second, hours) = work.run(iteration_s, rates.plan_s(&planned.evaluation));
    Run {
        memory_gib: gib(fit.memory.total()),
        batch_size: fit.shape.batch_size,
        gradient_accumulation_steps: fit.accumulation,
        needs_batch_size_auto: fit.is_adapted,
        recompute: fit.shape.recompute.name(),
        dtype: card.dtype(),
        tokens_per_second,
        mfu: tokens_per_second * model.flops_per_token() / (card.tflops * 1e12),
        basis: share.basis,
        hours,
        spot_hours: hours,
    }
}

/// What is assumed of a spot machine, with the interval that `checkpoint_minutes` says.
fn interruptions(config: &Config, model: &ModelConfig, between_s: Option<f64>) -> Interruptions {
    let bytes = model.parameter_count() as f64 * CHECKPOINT_BYTES_PER_PARAMETER;
    let minutes = config.checkpoint_minutes;
    Interruptions {
        between_s: between_s.unwrap_or(BETWEEN_S),
        restart_s: RESTART_S,
        checkpoint_s: bytes / CHECKPOINT_BYTES_PER_S,
        interval_s: if minutes > 0.0 {
            60.0 * minutes
        } else {
            f64::INFINITY
        },
    }
}

/// The same with the checkpoints that are due every so many steps, which may come sooner.
fn with_interval(of: Interruptions, config: &Config, work: &Work<'_>, run: &Run) -> Interruptions {
    let iteration_s = config.tokens_per_iteration() as f64 / run.tokens_per_second;
    let mut interval_s = of.interval_s;
    if config.checkpoint_interval > 0 {
        interval_s = interval_s.min(config.checkpoint_interval as f64 * iteration_s);
    }
    if config.always_save_checkpoint && work.evaluations > 1 {
        interval_s = interval_s.min(run.hours * 3600.0 / (work.evaluations - 1) as f64);
    }
    Interruptions { interval_s, ..of }
}

/// FLOP/s of the engine on a CPU as a share of a large product's: `bench/RESULTS.md`, 2026-11-22,
/// where training steps reach 0.6 (small) to 0.76 (GPT-2 124M).
const CPU_SHARE: f64 = 0.65;

/// The run on this machine's CPU: the rate of a large product measured now, the engine's share of
/// that by `bench/RESULTS.md`.
fn cpu(config: &Config, model: &ModelConfig, work: &Work<'_>) -> Result<Option<Run>> {
    let Some(needs) = Needs::of(&Place::Cpu, config, model)? else {
        return Ok(None);
    };
    let shape = needs.shape(config);
    let memory = needs.memory(shape);
    if needs
        .available
        .is_some_and(|available| memory.total() > available)
    {
        return Ok(None);
    }
    let planner = Planner::new(config, model);
    let planned = planner.planned(shape.batch_size, shape.recompute);
    let peak = product_rate();
    let flops = |plan: &Plan| -> f64 { plan.ops.iter().map(|op| op.flops(plan)).sum() };
    let seconds = |plan| flops(plan) / (CPU_SHARE * peak);
    let iteration_s = config.gradient_accumulation_steps as f64 * seconds(&planned.training);
    let (tokens_per_second, hours) = work.run(iteration_s, seconds(&planned.evaluation));
    Ok(Some(Run {
        memory_gib: gib(memory.total()),
        batch_size: shape.batch_size,
        gradient_accumulation_steps: config.gradient_accumulation_steps,
        needs_batch_size_auto: false,
        recompute: shape.recompute.name(),
        dtype: "float32",
        tokens_per_second,
        mfu: tokens_per_second * model.flops_per_token() / peak,
        basis: Basis::Measured,
        hours,
        spot_hours: hours,
    }))
}

/// FLOP/s of a large product in fp32 on all threads: the best of a few.
fn product_rate() -> f64 {
    const SIZE: usize = 768;
    const BUDGET: Duration = Duration::from_millis(100);
    let dims = kernels::matmul::Dims {
        m: SIZE,
        k: SIZE,
        n: SIZE,
    };
    let a = vec![0.5f32; SIZE * SIZE];
    let mut out = vec![0.0; SIZE * SIZE];
    let (begin, mut best) = (Instant::now(), f64::INFINITY);
    while begin.elapsed() < BUDGET {
        let start = Instant::now();
        kernels::matmul::cpu::forward(&mut out, &a, &a, None, None, dims);
        best = best.min(start.elapsed().as_secs_f64());
    }
    dims.flops() as f64 / best
}

#[cfg(test)]
mod tests;
