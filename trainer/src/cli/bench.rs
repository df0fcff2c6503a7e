//! `trainer bench`: times whole steps on random tokens, for a comparison with a peer.

use std::time::Instant;

use protocol::ExitCode;
use rayon::prelude::*;
use serde::Serialize;
use serde_json::json;

use super::{Words, configure, model_of, print};
use crate::config::Config;
use crate::data::Batch;
use crate::engine::profile::{Profile, RoomTime};
use crate::engine::{self, Engine, MicroStep, Place};
use crate::error::{Error, Result};
use crate::machine;
use crate::model::ModelConfig;
use crate::philox::{Philox, Stream};

/// What is timed and how it is told.
struct Wanted {
    steps: u64,
    warmup_steps: u64,
    /// `train` or `eval`.
    mode: String,
    /// `json` or `table`.
    format: String,
}

impl Wanted {
    fn take(words: &mut Words) -> Result<Self> {
        words.spell_out();
        let mut word = |name: &str, default: &str| -> Result<String> {
            Ok(words.take(name)?.unwrap_or_else(|| default.to_owned()))
        };
        let (mode, format) = (word("mode", "train")?, word("format", "json")?);
        let mut faults = Vec::new();
        if mode != "train" && mode != "eval" {
            faults.push(format!("--mode: expected train or eval, got {mode:?}"));
        }
        if format != "json" && format != "table" {
            faults.push(format!("--format: expected json or table, got {format:?}"));
        }
        if !faults.is_empty() {
            return Err(Error::Config(faults));
        }
        Ok(Self {
            steps: words.take_number("steps", 20)?.max(1),
            warmup_steps: words.take_number("warmup_steps", 3)?,
            mode,
            format,
        })
    }
}

pub(super) fn run(mut words: Words, started: Instant) -> Result<ExitCode> {
    let source = words.take("config")?;
    let Wanted {
        steps,
        warmup_steps,
        mode,
        format,
    } = Wanted::take(&mut words)?;
    let resolved = Config::resolve(source.as_deref(), &words.words)?;
    let config = &resolved.config;
    let place = Place::open(&config.device)?;
    configure(config);
    let model = model_of(config);
    let config = &engine::fitted(&place, config, &model, 0)?;
    let mut engine = engine::build(&place, config, &model)?;
    if config.verbose {
        print(&engine.notes(true).join("\n"))?;
    }
    let mut bench = Bench::new(config, &model, &mode, started);
    bench.steps(engine.as_mut(), warmup_steps)?;
    engine.take_profile();
    let times = bench.steps(engine.as_mut(), steps)?;
    let mut profile = (steps, engine.take_profile());
    let device_memory = place.used_bytes()?;
    if profile.1.rooms.is_empty() {
        engine.start_profile();
        bench.steps(engine.as_mut(), PROFILED_STEPS)?;
        profile = (PROFILED_STEPS, engine.take_profile());
    }
    let peak_flops = engine.peak_flops()?;
    // Before the bandwidth's buffers count as well.
    let peak_memory = machine::peak_memory();
    let (product, bandwidth) = match place.ceilings()? {
        Some((product, bandwidth)) => (Some(product), bandwidth),
        None => (peak_flops, measured_bandwidth()),
    };
    let rooms = rooms(&profile.1, profile.0, product, bandwidth);
    if format == "table" {
        return print(&table(&rooms));
    }
    let median = median(&times);
    let tokens = match mode.as_str() {
        "train" => config.tokens_per_iteration(),
        _ => (config.batch_size * config.block_size) as u64,
    };
    let flops_per_second = tokens as f64 * model.flops_per_token() / (median / 1e3);
    let report = json!({
        "peer": "anneal",
        "engine": engine.name(),
        "device": engine.device(),
        "threads": machine::threads(config.threads),
        "mode": mode,
        "config": model,
        "batch_size": config.batch_size,
        "ms_per_iteration": median,
        "ms_all": times,
        "tokens_per_second": tokens as f64 / (median / 1e3),
        "peak_gflops": peak_flops.map(|peak| peak / 1e9),
        "measured_gflops": product.map(|rate| rate / 1e9),
        "measured_gigabytes_per_second": bandwidth / 1e9,
        "mfu": peak_flops.filter(|_| mode == "train").map(|peak| flops_per_second / peak),
        "loss_first": bench.losses.first(),
        "loss_last": bench.losses.last(),
        "first_step_s": bench.first_step_s,
        "gpu_mib": device_memory.map(|bytes| bytes as f64 / f64::from(1 << 20)),
        "peak_rss_mib": peak_memory.map(|bytes| bytes as f64 / f64::from(1 << 20)),
        "rooms": rooms,
    });
    print(&report.to_string())
}

/// Steps for the profile of an engine that must be asked for one.
const PROFILED_STEPS: u64 = 3;
/// Batches that are made before anything is timed, and used in turn.
const BATCHES: u64 = 8;

/// Steps on random tokens, as the training loop makes them.
struct Bench {
    batches: Vec<Batch>,
    accumulation: u64,
    learning_rate: f64,
    trains: bool,
    started: Instant,
    /// Steps made.
    step: u64,
    losses: Vec<f64>,
    /// From the start of the process to the end of the first step.
    first_step_s: Option<f64>,
}

impl Bench {
    fn new(config: &Config, model: &ModelConfig, mode: &str, started: Instant) -> Self {
        Self {
            batches: (0..BATCHES)
                .map(|number| random_batch(config, model, number))
                .collect(),
            accumulation: config.gradient_accumulation_steps,
            learning_rate: config.learning_rate,
            trains: mode == "train",
            started,
            step: 0,
            losses: Vec::new(),
            first_step_s: None,
        }
    }

    /// Makes this many steps; their milliseconds. A device may run behind: all of them are over at
    /// the end.
    fn steps(&mut self, engine: &mut dyn Engine, count: u64) -> Result<Vec<f64>> {
        let mut times = Vec::new();
        let mut begin = Instant::now();
        for number in 0..count {
            if self.trains {
                self.train(engine, number + 1 == count)?;
            } else {
                self.losses.push(engine.loss(self.batch(0))?);
            }
            self.step += 1;
            let now = Instant::now();
            times.push((now - begin).as_secs_f64() * 1e3);
            begin = now;
        }
        Ok(times)
    }

    fn train(&mut self, engine: &mut dyn Engine, last: bool) -> Result<()> {
        for micro in 0..self.accumulation {
            let at = MicroStep {
                step: self.step,
                micro,
            };
            engine.forward_backward(self.batch(micro), at)?;
        }
        let told = engine.submit_update(self.learning_rate)?;
        self.losses.extend(told.map(|stats| stats.loss));
        if last || self.first_step_s.is_none() {
            let told = engine.finish()?;
            self.losses.extend(told.map(|stats| stats.loss));
            let since_start = self.started.elapsed().as_secs_f64();
            self.first_step_s.get_or_insert(since_start);
        }
        Ok(())
    }

    fn batch(&self, micro: u64) -> &Batch {
        let number = self.step * self.accumulation + micro;
        &self.batches[(number % BATCHES) as usize]
    }
}

fn median(times: &[f64]) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// What a room did in one iteration, against what bounds it.
#[derive(Debug, Serialize)]
struct Room {
    room: &'static str,
    ms: f64,
    /// Of the time in all rooms.
    share: f64,
    /// Of the matrix products; `None` for a room that only moves memory.
    gflops: Option<f64>,
    gigabytes_per_second: f64,
    /// Rate over the bound: peak FLOP/s for products, memory bandwidth for the rest. Above 1 where
    /// the data was in a cache.
    of_bound: Option<f64>,
}

fn rooms(profile: &Profile, steps: u64, peak_flops: Option<f64>, bandwidth: f64) -> Vec<Room> {
    let total = profile.total().as_secs_f64();
    let room = |room: &RoomTime| {
        let seconds = room.time.as_secs_f64();
        let (flops, bytes) = (room.flops / seconds, room.bytes / seconds);
        Room {
            room: room.room,
            ms: seconds * 1e3 / steps as f64,
            share: seconds / total,
            gflops: (room.flops > 0.0).then_some(flops / 1e9),
            gigabytes_per_second: bytes / 1e9,
            of_bound: match room.flops > 0.0 {
                true => peak_flops.map(|peak| flops / peak),
                false => Some(bytes / bandwidth),
            },
        }
    };
    let mut rooms: Vec<Room> = profile.rooms.iter().map(room).collect();
    rooms.sort_by(|a, b| b.ms.total_cmp(&a.ms));
    rooms
}

fn table(rooms: &[Room]) -> String {
    let mut text = format!(
        "{:<30} {:>10} {:>7} {:>10} {:>10} {:>9}\n",
        "room", "ms", "share", "GFLOP/s", "GB/s", "of bound"
    );
    for room in rooms {
        let percent = |share: f64| format!("{:.1}%", share * 100.0);
        text += &format!(
            "{:<30} {:>10.3} {:>7} {:>10} {:>10.1} {:>9}\n",
            room.room,
            room.ms,
            percent(room.share),
            room.gflops
                .map_or_else(String::new, |gflops| format!("{gflops:.1}")),
            room.gigabytes_per_second,
            room.of_bound.map_or_else(String::new, percent),
        );
    }
    text
}

/// Bytes per second that all threads together read and write when they copy what fits no cache:
/// the best of a few.
fn measured_bandwidth() -> f64 {
    const ELEMENTS: usize = 1 << 25;
    const TRIES: usize = 4;
    let from = vec![1.0f32; ELEMENTS];
    let mut to = vec![0.0f32; ELEMENTS];
    let mut best = f64::INFINITY;
    for _ in 0..TRIES {
        let begin = Instant::now();
        let chunk = ELEMENTS.div_ceil(rayon::current_num_threads());
        to.par_chunks_mut(chunk)
            .zip(from.par_chunks(chunk))
            .for_each(|(to, from)| to.copy_from_slice(from));
        best = best.min(begin.elapsed().as_secs_f64());
    }
    2.0 * size_of_val(from.as_slice()) as f64 / best
}

fn random_batch(config: &Config, model: &ModelConfig, number: u64) -> Batch {
    let place = [number as u32, 0, 0];
    let mut random = Philox::new(config.seed, Stream::TrainData).sequence(place);
    let elements = config.batch_size * config.block_size;
    let mut draw = || -> Vec<u32> {
        (0..elements)
            .map(|_| random.below(model.vocab_size as u64) as u32)
            .collect()
    };
    let (inputs, targets) = (draw(), draw());
    Batch::of_tokens(inputs, targets, config.batch_size, config.block_size)
}
