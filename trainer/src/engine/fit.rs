//! What a run takes on its device, whether that is there, and what would fit: known before
//! anything is allocated.

use crate::config::{Config, MICRO_STEPS_MAX};
use crate::data::Dataset;
use crate::data::token_file::VOCAB_SIZE_U16_MAX;
#[cfg(any(test, feature = "device"))]
use crate::engine::cuda;
use crate::engine::device::Place;
use crate::engine::plan::{Buffer, Plan};
use crate::engine::{Hyperparameters, Memory, Recompute, Shape, cpu};
use crate::error::{Error, Result};
use crate::machine::{self, human_bytes};
use crate::model::ModelConfig;

/// A dataset of more bytes is not kept on a device.
const RESIDENT_BYTES_MAX: u64 = 256 << 20;

/// A model's needs on a device.
pub struct Needs<'a> {
    needed: Box<dyn Fn(Shape) -> Memory + 'a>,
    /// Of a training step.
    plan: Box<dyn Fn(Shape) -> Plan + 'a>,
    /// Bytes; `None` if nobody knows.
    pub available: Option<u64>,
    /// Bytes of the dataset that is kept there.
    dataset: u64,
    /// Whether larger batches are faster, as they are on GPUs.
    prefers_large: bool,
}

impl<'a> Needs<'a> {
    /// What the config's model needs on `place`; `None` where an engine cannot tell.
    ///
    /// # Errors
    /// [`Error::Config`] where the device cannot compute what the config says,
    /// [`Error::Device`] where it fails.
    pub fn of(place: &Place, config: &Config, model: &'a ModelConfig) -> Result<Option<Self>> {
        let dropout = Hyperparameters::of(config).dropout > 0.0;
        match place {
            Place::Cpu if config.engine == "candle" => Ok(None),
            Place::Cpu => Ok(Some(Self {
                needed: Box::new(move |shape| cpu::memory(model, dropout, shape)),
                plan: Box::new(move |shape| cpu::plans(model, dropout, shape).0),
                available: machine::memory_available(),
                dataset: 0,
                prefers_large: false,
            })),
            #[cfg(any(test, feature = "device"))]
            Place::Gpu(_) if config.engine == "candle" => Err(Error::config(
                "engine=candle: computes on the CPU only\nhint: --engine=fused, or --device=cpu",
            )),
            #[cfg(any(test, feature = "device"))]
            Place::Gpu(device) => {
                let (needed, plan) = cuda::needs(device, config, model, dropout)?;
                Ok(Some(Self {
                    needed,
                    plan,
                    available: device.free_bytes()?.or_else(machine::memory_available),
                    dataset: 0,
                    prefers_large: true,
                }))
            }
        }
    }

    /// The same on a device of whose memory so much is free.
    pub fn with_available(self, available: u64) -> Self {
        Self {
            available: Some(available),
            ..self
        }
    }

    /// The same with a dataset of so many bytes beside it.
    pub fn with_dataset(self, dataset: u64) -> Self {
        Self { dataset, ..self }
    }

    pub fn memory(&self, shape: Shape) -> Memory {
        let dataset = self.dataset;
        Memory {
            dataset,
            ..(self.needed)(shape)
        }
    }

    /// The largest buffers that are alive at a training step's fullest operation, by name: how many
    /// and their bytes together.
    pub fn fullest(&self, shape: Shape) -> Vec<(&'static str, usize, u64)> {
        let plan = (self.plan)(shape);
        let alive = |op: usize| {
            let alive = plan.buffers.iter();
            alive.filter(move |buffer| (buffer.life.0..=buffer.life.1).contains(&op))
        };
        let bytes = |op: &usize| alive(*op).map(Buffer::bytes).sum::<usize>();
        let Some(fullest) = (0..plan.ops.len()).max_by_key(bytes) else {
            return Vec::new();
        };
        let mut names: Vec<(&'static str, usize, u64)> = Vec::new();
        for buffer in alive(fullest) {
            let bytes = buffer.bytes() as u64;
            match names.iter_mut().find(|(name, ..)| *name == buffer.name) {
                Some((_, count, sum)) => (*count, *sum) = (*count + 1, *sum + bytes),
                None => names.push((buffer.name, 1, bytes)),
            }
        }
        names.sort_by_key(|(_, _, bytes)| std::cmp::Reverse(*bytes));
        names
    }

    /// What takes the memory, a line each.
    pub fn table(&self, shape: Shape) -> Vec<String> {
        /// Buffers of the fullest operation that are worth a line.
        const LINES_MAX: usize = 8;
        let memory = self.memory(shape);
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
        for (name, count, bytes) in self.fullest(shape).into_iter().take(LINES_MAX) {
            line(&format!("  {name}"), bytes, &format!("  in {count}"));
        }
        line("workspace", memory.workspace, "");
        if memory.dataset > 0 {
            line("dataset", memory.dataset, "");
        }
        line("total", memory.total(), "");
        if let Some(available) = self.available {
            line("available", available, "");
        }
        lines
    }

    /// The shape of a run: the config's, and where that leaves it open, backward computes again
    /// only what it must.
    pub fn shape(&self, config: &Config) -> Shape {
        let shape = |recompute| Shape {
            batch_size: config.batch_size,
            block_size: config.block_size,
            recompute,
        };
        let mut ways = ways(config).into_iter().map(shape);
        let fits = |shape: &Shape| self.fits(*shape, self.room());
        ways.clone().find(fits).unwrap_or_else(|| {
            let last = ways.next_back();
            last.expect("there is a way to compute backward")
        })
    }

    /// What may be filled without being asked: others share a CPU's memory.
    fn room(&self) -> Option<u64> {
        self.available.map(|available| {
            if self.prefers_large {
                available / 20 * 19
            } else {
                available / 4 * 3
            }
        })
    }

    fn fits(&self, shape: Shape, room: Option<u64>) -> bool {
        room.is_none_or(|room| self.memory(shape).total() <= room)
    }

    /// The largest batch size up to `most` that fits, and 0 if none does.
    pub fn largest(&self, shape: Shape, most: usize) -> usize {
        self.largest_in(self.available, shape, most)
    }

    fn largest_in(&self, room: Option<u64>, shape: Shape, most: usize) -> usize {
        let fits = |batch_size| {
            self.fits(
                Shape {
                    batch_size,
                    ..shape
                },
                room,
            )
        };
        // What is smaller needs no more: halve the range.
        let (mut least, mut above) = (0, most + 1);
        while least + 1 < above {
            let middle = least + (above - least) / 2;
            if fits(middle) {
                least = middle;
            } else {
                above = middle;
            }
        }
        least
    }

    /// The batch size for `sequences` an iteration, of those that divide them: the largest that
    /// fits; on a CPU, where more is not faster, at most the shape's. `None` if not even 1 does.
    fn batch_size(&self, shape: Shape, sequences: usize) -> Option<usize> {
        let most = if self.prefers_large {
            sequences
        } else {
            shape.batch_size.min(sequences)
        };
        let most = self.largest_in(self.room(), shape, most);
        let divides = |batch_size: &usize| sequences.is_multiple_of(*batch_size);
        (1..=most).rev().find(divides)
    }

    /// The config with the batch size that fits; tokens per iteration stay what they are.
    ///
    /// # Errors
    /// [`Error::Config`] where that takes more micro-steps than can be counted.
    fn fitted(&self, config: &Config) -> Result<Config> {
        let steps = config.gradient_accumulation_steps;
        let sequences = config.batch_size * steps as usize;
        let mut shapes = ways(config).into_iter().map(|recompute| Shape {
            batch_size: config.batch_size,
            block_size: config.block_size,
            recompute,
        });
        let batch_size = shapes.find_map(|shape| self.batch_size(shape, sequences));
        // Building the engine says what a batch of 1 lacks.
        let batch_size = batch_size.unwrap_or(1);
        let steps = (sequences / batch_size) as u64;
        if steps > MICRO_STEPS_MAX {
            return Err(Error::config(format!(
                "batch_size=auto: batches of {batch_size} fit, {steps} of which make up an \
                 iteration, expected at most {MICRO_STEPS_MAX}\n\
                 hint: a smaller batch_size x gradient_accumulation_steps, or a larger GPU"
            )));
        }
        Ok(Config {
            batch_size,
            gradient_accumulation_steps: steps,
            ..config.clone()
        })
    }

    /// Whether a run fits.
    ///
    /// # Errors
    /// [`Error::Config`] with what it needs, what there is, and a batch size that fits.
    pub fn check(&self, shape: Shape) -> Result<()> {
        let Some(available) = self.available.filter(|_| !self.fits(shape, self.available)) else {
            return Ok(());
        };
        let block = Shape {
            recompute: Recompute::Block,
            ..shape
        };
        let below = shape.batch_size - 1;
        let hint = if shape.recompute != Recompute::Block && self.fits(block, self.available) {
            "--recompute=block fits, for about a third more time".to_owned()
        } else {
            match (self.largest(shape, below), self.largest(block, below)) {
                (0, 0) => {
                    "a smaller model; not even --batch_size=1 --recompute=block fits".to_owned()
                }
                (0, batch_size) => format!("--batch_size={batch_size} --recompute=block fits"),
                (batch_size, _) => format!(
                    "--batch_size={batch_size} fits, more gradient_accumulation_steps make up for \
                     it; --batch_size=auto does both"
                ),
            }
        };
        Err(Error::config(format!(
            "memory: this run needs {}, {} are available\nhint: {hint}",
            human_bytes(self.memory(shape).total()),
            human_bytes(available)
        )))
    }
}

/// What a run takes on a GPU, a line each; nothing for a CPU, where a single line tells it.
///
/// # Errors
/// As [`Needs::of`].
pub fn memory_table(
    place: &Place,
    config: &Config,
    model: &ModelConfig,
    dataset: u64,
) -> Result<Vec<String>> {
    if place.is_cpu() {
        return Ok(Vec::new());
    }
    let needs = Needs::of(place, config, model)?.map(|needs| needs.with_dataset(dataset));
    Ok(needs.map_or_else(Vec::new, |needs| needs.table(needs.shape(config))))
}

/// Bytes of a dataset on a device that keeps it; 0 where it is too large, or the CPU computes.
pub fn resident_bytes(place: &Place, dataset: &Dataset) -> u64 {
    let tokens = dataset.train.len() as u64 + dataset.val.len() as u64;
    let bytes = tokens * token_bytes(dataset) as u64;
    let is_kept = !place.is_cpu() && bytes <= RESIDENT_BYTES_MAX;
    if is_kept { bytes } else { 0 }
}

/// Bytes of a token on a device.
pub(super) fn token_bytes(dataset: &Dataset) -> usize {
    if dataset.info.vocab_size <= VOCAB_SIZE_U16_MAX {
        size_of::<u16>()
    } else {
        size_of::<u32>()
    }
}

/// The config with the batch size that fits the device beside a dataset of so many bytes, where it
/// asks for that; tokens per iteration stay what they are.
///
/// # Errors
/// [`Error::Config`] if nothing fits, or the engine cannot tell what it needs.
pub fn fitted(place: &Place, config: &Config, model: &ModelConfig, dataset: u64) -> Result<Config> {
    if !config.fit_batch {
        return Ok(config.clone());
    }
    let Some(needs) = Needs::of(place, config, model)? else {
        return Err(Error::config(
            "batch_size=auto: engine=candle does not know its memory beforehand\n\
             hint: --batch_size=N, or --engine=fused",
        ));
    };
    needs.with_dataset(dataset).fitted(config)
}

/// What backward may compute again: what the config says, or first nothing.
fn ways(config: &Config) -> Vec<Recompute> {
    match config.recompute.as_str() {
        "none" => vec![Recompute::None],
        "gelu" => vec![Recompute::Gelu],
        "block" => vec![Recompute::Block],
        _ => vec![Recompute::None, Recompute::Gelu, Recompute::Block],
    }
}

#[cfg(test)]
mod tests;
