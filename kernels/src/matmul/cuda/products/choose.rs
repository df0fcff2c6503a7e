//! Choosing who computes each product: by timing on the device, on random data, as often as it
//! takes for a graph of repetitions to last longer than what starts it.

use super::{Kind, Products, Task, Way};
use crate::cuda::{Buffer, CudaError, Device, Float, Stream};
use crate::matmul::cuda::{Dims, scratch_len};
use crate::philox::{Philox, Stream as RandomStream};

/// The library's ways of each form that are tried.
const WAYS: usize = 8;
/// Elements of random data, which operands repeat.
const NOISE: usize = 1 << 20;
/// What a graph of repetitions is to last, microseconds, and how many it has at most.
const GRAPH_US: f32 = 2000.0;
const REPEATS_MAX: usize = 20;
/// Graphs that are timed; the median counts.
const GRAPHS: usize = 5;
/// Ways that take so many times as long as the best are not timed again.
const HOPELESS: f32 = 2.0;

/// Which way is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pick {
    /// The fastest, timed.
    Fastest,
    /// The fastest of the library's, timed, wherever it takes a task.
    FastestOfLibrary,
    /// The library's first, wherever it takes a task: as much as can be in the epilogue. Where
    /// time means nothing, as on the emulator.
    First,
    /// The library's last: as little as can be in the epilogue.
    Last,
}

/// A way that was chosen, and microseconds where they were measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    pub way: Way,
    pub us: Option<f32>,
    /// Of the kernels of this room.
    pub ours_us: Option<f32>,
}

/// Operands of one task.
struct Trial<T> {
    x: Buffer<T>,         // (M, K)
    weight: Buffer<T>,    // (N, K)
    out: Buffer<T>,       // (M, N)
    bias: Buffer<T>,      // (N)
    inner: Buffer<T>,     // (M, K): GELU's argument or what backward writes
    outer: Buffer<T>,     // (M, N): residual, or GELU's argument
    dweight: Buffer<f32>, // (N, K)
    dbias: Buffer<f32>,   // (N)
    scratch: Buffer<f32>,
}

impl<T: Float> Products<T> {
    /// Chooses for each of these tasks, and remembers it. Takes memory for their operands, one
    /// task's at a time, and gives it back.
    ///
    /// # Errors
    ///
    /// Where the device fails or has no memory.
    pub fn choose(
        &mut self,
        device: &Device,
        tasks: &[Task],
        pick: Pick,
    ) -> Result<Vec<(Task, Measured)>, CudaError> {
        let stream = device.stream()?;
        let timed = matches!(pick, Pick::Fastest | Pick::FastestOfLibrary);
        let noise = timed.then(|| noise(device)).transpose()?;
        let mut chosen = Vec::new();
        for &task in tasks {
            let ways = self.library_ways(&task, WAYS)?;
            let mut measured = match (&noise, pick) {
                (Some(noise), _) => {
                    let trial = Trial::new(device, &stream, task, noise)?;
                    self.fastest(&stream, task, &ways, trial, pick)?
                }
                (None, Pick::Last) => untimed(ways.last()),
                (None, _) => untimed(ways.first()),
            };
            if !self.set(task, measured.way)? {
                measured = untimed(None);
                self.set(task, Way::Ours)?;
            }
            chosen.push((task, measured));
        }
        Ok(chosen)
    }

    fn fastest(
        &mut self,
        stream: &Stream,
        task: Task,
        ways: &[Way],
        mut trial: Trial<T>,
        pick: Pick,
    ) -> Result<Measured, CudaError> {
        let ours_us = self.time(stream, task, Way::Ours, &mut trial, f32::INFINITY)?;
        let mut best = match pick {
            Pick::FastestOfLibrary => None,
            _ => ours_us.map(|us| (us, Way::Ours)),
        };
        for &way in ways {
            let limit = best.map_or(f32::INFINITY, |(us, _)| us);
            // A way that fails here is none: not all that the library proposes works everywhere.
            let us = self
                .time(stream, task, way, &mut trial, limit)
                .ok()
                .flatten();
            if let Some(us) = us
                && us < limit
            {
                best = Some((us, way));
            }
        }
        let (us, way) = best.map_or((ours_us, Way::Ours), |(us, way)| (Some(us), way));
        Ok(Measured { way, us, ours_us })
    }

    /// Microseconds of a task done this way; `None` where it cannot be, or takes much longer than
    /// `limit`.
    fn time(
        &mut self,
        stream: &Stream,
        task: Task,
        way: Way,
        trial: &mut Trial<T>,
        limit: f32,
    ) -> Result<Option<f32>, CudaError> {
        if !self.set(task, way)? {
            return Ok(None);
        }
        // The first time loads the kernels.
        self.run(stream, task, trial)?;
        let once = microseconds(stream, || self.run(stream, task, trial))?;
        if once > HOPELESS * limit {
            return Ok(None);
        }
        let repeats = ((GRAPH_US / once.max(1.0)) as usize).clamp(1, REPEATS_MAX);
        let graph = stream
            .capture(|stream| (0..repeats).try_for_each(|_| self.run(stream, task, trial)))?;
        graph.launch(stream)?;
        let mut times = Vec::new();
        for _ in 0..GRAPHS {
            times.push(microseconds(stream, || graph.launch(stream))?);
        }
        times.sort_by(f32::total_cmp);
        Ok(Some(times[GRAPHS / 2] / repeats as f32))
    }

    fn run(&self, stream: &Stream, task: Task, trial: &mut Trial<T>) -> Result<(), CudaError> {
        let Task { kind, dims } = task;
        let Trial {
            x,
            weight,
            out,
            bias,
            inner,
            outer,
            dweight,
            dbias,
            scratch,
        } = trial;
        match kind {
            Kind::Forward {
                bias: has_bias,
                residual,
            } => {
                let (bias, residual) = (has_bias.then_some(&*bias), residual.then_some(&*outer));
                self.forward(stream, out, x, weight, bias, residual, dims)
            }
            Kind::ForwardGelu {
                form,
                bias: has_bias,
                pre,
            } => {
                let (bias, pre) = (has_bias.then_some(&*bias), pre.then_some(outer));
                self.forward_gelu(stream, form, pre, out, x, weight, bias, dims)
            }
            Kind::BackwardInput => self.backward_input(stream, inner, out, weight, dims),
            Kind::BackwardInputGelu { form } => {
                self.backward_input_gelu(stream, form, inner, out, weight, x, dims)
            }
            Kind::BackwardWeight { bias } => {
                let dbias = bias.then_some(dbias);
                self.backward_weight(stream, dweight, dbias, out, x, scratch, dims)
            }
        }
    }
}

impl<T: Float> Trial<T> {
    fn new(
        device: &Device,
        stream: &Stream,
        task: Task,
        noise: &Buffer<T>,
    ) -> Result<Self, CudaError> {
        let Task { kind, dims } = task;
        let Dims { m, k, n } = dims;
        let random = |needed: bool, len: usize| -> Result<Buffer<T>, CudaError> {
            let buffer = device.alloc(if needed { len } else { 0 })?;
            for start in (0..buffer.len()).step_by(NOISE) {
                let mut part = buffer.slice(start..buffer.len().min(start + NOISE));
                let noise = noise.slice(0..part.len());
                stream.copy(&mut part, &noise)?;
            }
            Ok(buffer)
        };
        let is_weight = matches!(kind, Kind::BackwardWeight { .. });
        let is_input = matches!(kind, Kind::BackwardInput | Kind::BackwardInputGelu { .. });
        let is_forward = !is_weight && !is_input;
        let words = |len: usize| device.alloc_zeros::<f32>(if is_weight { len } else { 0 });
        let trial = Self {
            x: random(kind != Kind::BackwardInput, m * k)?,
            weight: random(!is_weight, n * k)?,
            out: random(true, m * n)?,
            bias: random(is_forward, n)?,
            inner: random(is_input, m * k)?,
            outer: random(is_forward, m * n)?,
            dweight: words(n * k)?,
            dbias: words(n)?,
            scratch: words(scratch_len(dims, device.properties()).max(n))?,
        };
        stream.synchronize()?;
        Ok(trial)
    }
}

/// The library's way, untimed, or the kernels of this room where it has none.
fn untimed(way: Option<&Way>) -> Measured {
    Measured {
        way: way.copied().unwrap_or(Way::Ours),
        us: None,
        ours_us: None,
    }
}

/// Numbers between -1 and 1: zeros would cost less power and so run faster.
fn noise<T: Float>(device: &Device) -> Result<Buffer<T>, CudaError> {
    let mut sequence = Philox::new(1, RandomStream::Init).sequence([0; 3]);
    let values = (0..NOISE).map(|_| T::from_f64(2.0 * sequence.next_f64() - 1.0));
    device.upload(&values.collect::<Vec<_>>())
}

/// The time of what `work` adds to an idle stream.
fn microseconds(
    stream: &Stream,
    mut work: impl FnMut() -> Result<(), CudaError>,
) -> Result<f32, CudaError> {
    stream.synchronize()?;
    let begin = stream.record()?;
    work()?;
    let end = stream.record()?;
    stream.synchronize()?;
    Ok(end.milliseconds_since(&begin)? * 1e3)
}
