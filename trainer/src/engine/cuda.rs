//! The fused engine on a GPU: the plan over one arena, weights in 16 bits with fp32 masters, every
//! step a replay of captured graphs. The default where there is a GPU.
//!
//! Step, loss scale, learning rate and the counters of dropout live in device memory, in the room
//! `controller`: a graph is recorded once and only its inputs change.

mod gpu;
mod memory;
mod plans;
mod hazards;
mod autotune;
mod run;
mod dataset;
mod feed;
mod snapshot;
mod decode;
mod core;
mod evaluate;

use std::slice;
use std::sync::Arc;

use half::{bf16, f16};
use kernels::controller::cuda::REPORT_WORDS;
use kernels::controller::{Report, StepState};
use kernels::cuda::{CudaError, Device, Event, Graph, HostBuffer, Stream};

pub use self::autotune::{Mode, Selection};
use self::core::{Core, Work, fresh_state};
use self::dataset::Resident;
use self::evaluate::Together;
use self::feed::{Feed, Readback};
pub(super) use self::gpu::ceilings;
use self::hazards::Streams;
pub use self::memory::Precision;
#[cfg(test)]
pub(super) use self::plans::memory;
pub(super) use self::plans::needs;
use self::snapshot::Copier;
use super::plan::{Dtype, Layout};
use super::{
    Engine, EngineState, Hyperparameters, LossScale, Memory, MicroStep, PendingState, Profile,
    Shape, UpdateStats, in_order,
};
use crate::config::Config;
use crate::data::{Batch, Dataset};
use crate::error::{Error, Result};
use crate::machine::human_bytes;
use crate::model::{ModelConfig, NamedTensor};

/// How work gets to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Launch {
    /// Kernel by kernel the first time, which loads them; recorded the second time, and repeated as
    /// a whole from then on.
    Graphs,
    /// Kernel by kernel, on one stream.
    Direct,
    /// The same with the time of each measured.
    Measured,
}

/// A model on a device with its AdamW state; activations and weights are of type `T`.
pub struct CudaEngine<T> {
    core: Core<T>,
    main: Stream,
    side: Stream,
    launch: Launch,
    graphs: [Repeated; Work::COUNT],
    feed: Feed,
    prompt: HostBuffer<i32>, // (1, block_size)
    /// The micro-step that the device does next.
    next: MicroStep,
    /// Updates submitted, each with its report, since the state was set.
    updates: u32,
    /// Of the update at hand and the one before, by the parity of their number.
    learning_rates: [HostBuffer<u64>; 2], // (1)
    reports: [HostBuffer<u32>; 2], // (REPORT_WORDS)
    /// The newest update's report has arrived; `None` where it was told.
    reported: Option<Event>,
    copier: Copier,
    /// After the newest copy for a checkpoint, which no update may overtake.
    copied: Option<Arc<Event>>,
    /// Of evaluation's batches.
    losses: Readback,
    together: Option<Together>,
    /// What people should know of how it computes.
    notes: Vec<String>,
    profile: Profile,
}

/// How often a piece of work was done.
enum Repeated {
    Never,
    /// So its kernels are loaded, which must not happen while it is recorded.
    Once,
    Graph(Graph),
}

impl<T: Precision> CudaEngine<T> {
    /// An engine with freshly initialised parameters for batches of this shape.
    ///
    /// # Errors
    /// [`Error::Device`] where the device's memory does not suffice, or cuBLASLt is missing where
    /// it must be there.
    pub fn new(
        device: &Device,
        model: &ModelConfig,
        hyper: Hyperparameters,
        shape: Shape,
        launch: Launch,
        selection: &Selection,
    ) -> Result<Self> {
        let core = Core::new(device, model, hyper, shape, selection)?;
        let rows = core.training.rows();
        let mut together = None;
        let mut notes = core.selected.notes.clone();
        if let Some(wide) = &core.together {
            let rows = wide.plan.rows();
            together = Some(Together {
                feed: Feed::new(device, wide.plan.batch_size, rows)?,
                losses: Readback::new(device, rows)?,
            });
            notes.push(format!("evaluation: {} batches in a pass", wide.batches));
        }
        Ok(Self {
            core,
            together,
            notes,
            main: device.stream()?,
            side: device.stream()?,
            launch,
            graphs: [const { Repeated::Never }; Work::COUNT],
            feed: Feed::new(device, shape.batch_size, rows)?,
            prompt: device.host_buffer(&vec![0; model.block_size])?,
            next: MicroStep { step: 0, micro: 0 },
            updates: 0,
            learning_rates: [device.host_buffer(&[0])?, device.host_buffer(&[0])?],
            reports: [
                device.host_buffer(&[0; REPORT_WORDS])?,
                device.host_buffer(&[0; REPORT_WORDS])?,
            ],
            reported: None,
            copier: Copier::new(device)?,
            copied: None,
            losses: Readback::new(device, rows)?,
            profile: Profile::default(),
        })
    }

    /// The same engine, to which every token that it generates is a prompt.
    #[cfg(test)]
    pub(super) fn without_decoder(mut self) -> Self {
        self.core.decoder = None;
        self
    }

    /// The gradients accumulated since the last update, in the order of the parameters.
    ///
    /// # Errors
    /// Where the device failed.
    pub fn gradients(&self) -> Result<Vec<NamedTensor>> {
        let scale = self.core.controller.download()?.loss_scale;
        let mut gradients = self
            .core
            .parameters
            .named(&self.core.parameters.gradients)?;
        for gradient in gradients.iter_mut().flat_map(|tensor| &mut tensor.data) {
            *gradient /= scale;
        }
        Ok(gradients)
    }

    /// Has the device do `work` after what it was given before.
    fn submit(&mut self, work: Work) -> Result<()> {
        let Self {
            core, main, side, ..
        } = self;
        match self.launch {
            Launch::Direct => return Ok(core.add(work, &mut Streams::new(main, None))?),
            Launch::Measured => {
                let mut streams = Streams::measured(main);
                core.add(work, &mut streams)?;
                return Ok(streams.tell(&mut self.profile)?);
            }
            Launch::Graphs => {}
        }
        let repeated = &mut self.graphs[work as usize];
        match repeated {
            Repeated::Never => {
                core.add(work, &mut Streams::new(main, None))?;
                *repeated = Repeated::Once;
            }
            Repeated::Once => {
                let add = |main: &Stream| core.add(work, &mut Streams::new(main, Some(side)));
                let graph = main.capture(add)?;
                graph.launch(main)?;
                *repeated = Repeated::Graph(graph);
            }
            Repeated::Graph(graph) => graph.launch(main)?,
        }
        Ok(())
    }

    /// Makes `at` what the device does next, where it is not.
    fn seek(&mut self, at: MicroStep) -> Result<()> {
        if self.next == at {
            return Ok(());
        }
        assert!(
            self.next.micro == 0 && at.micro == 0,
            "{at:?} instead of {:?}: an iteration has all of its micro-steps",
            self.next
        );
        let state = self.core.controller.download()?;
        let state = StepState {
            step: at.step,
            ..state
        };
        self.core.controller.set(&state)?;
        self.next = at;
        Ok(())
    }

    /// What the newest update came to, once it is done.
    fn report(&mut self, reported: &Event) -> Result<UpdateStats> {
        reported.synchronize()?;
        let number = self.updates - 1;
        let report = Report::of_words(&self.reports[(number % 2) as usize].read());
        let scaled = T::DTYPE == Dtype::F16 && report.loss_scale > 1.0;
        Ok(UpdateStats {
            loss: report.loss.into(),
            grad_norm: report.grad_norm.into(),
            overflowed: scaled && report.skipped && report.loss.is_finite(),
        })
    }

    /// Logits after a prompt; the decoder knows it from then on.
    fn prompt_logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        // What follows the last token does not change what precedes it.
        let mut padded = vec![0; self.core.model.block_size];
        for (to, &token) in padded.iter_mut().zip(tokens) {
            *to = token as i32;
        }
        self.prompt.write(&padded);
        self.main.upload(&mut self.core.prompt, &self.prompt)?;
        self.submit(Work::Generation)?;
        self.hold(tokens);
        Ok(self.core.logits(&self.main, tokens.len() - 1)?)
    }

    /// Logits after one more token of the sequence that the decoder knows.
    fn next_logits(&mut self, token: u32, position: usize) -> Result<Vec<f32>> {
        const KNOWN: &str = "nothing is known without a decoder";
        let decoder = self.core.decoder.as_mut().expect(KNOWN);
        decoder.send(&self.main, token, position)?;
        self.submit(Work::Decoding)?;
        let decoder = self.core.decoder.as_mut().expect(KNOWN);
        Ok(decoder.read(&self.main, self.core.model.vocab_size)?)
    }

    fn hold(&mut self, tokens: &[u32]) {
        if let Some(decoder) = &mut self.core.decoder {
            decoder.holds(tokens);
        }
    }

    /// The parameters change: what is known of a sequence is void.
    fn forget(&mut self) {
        if let Some(decoder) = &mut self.core.decoder {
            decoder.forget();
        }
    }

    /// Updates made, and in fp16 the loss scale, after all work of the device is done.
    fn counters(&self) -> Result<(u64, Option<LossScale>)> {
        let state = self.core.controller.download()?;
        let loss_scale = (T::DTYPE == Dtype::F16).then_some(LossScale {
            scale: state.loss_scale,
            good_steps: state.good_steps,
        });
        Ok((state.updates.into(), loss_scale))
    }

    fn check(&self, batches: &[Batch]) {
        let plan = &self.core.training;
        let expected = (plan.batch_size, plan.block_size);
        let limit = self.core.model.vocab_size as u32;
        for batch in batches {
            let shape = (batch.batch_size, batch.block_size);
            assert_eq!(shape, expected, "the plan's shape");
            let is_sent = self.core.dataset.is_none() || batch.windows.is_none();
            let mut ids = batch.inputs.iter().chain(&batch.targets);
            assert!(
                !is_sent || ids.all(|&id| id < limit),
                "ids are checked when a dataset is opened"
            );
        }
    }
}

/// The engine for a device in the precision that the key `dtype` asks for, for what fits it.
///
/// # Errors
/// [`Error::Config`] if the kernels do not take the run, [`Error::Device`] if the device fails.
pub(super) fn build(
    device: &Device,
    config: &Config,
    model: &ModelConfig,
    hyper: Hyperparameters,
    shape: Shape,
) -> Result<Box<dyn Engine>> {
    fn of<T: Precision>(
        device: &Device,
        config: &Config,
        model: &ModelConfig,
        hyper: Hyperparameters,
        shape: Shape,
    ) -> Result<Box<dyn Engine>> {
        let selection = Selection::of(config);
        let engine = CudaEngine::<T>::new(device, model, hyper, shape, Launch::Graphs, &selection)?;
        Ok(Box::new(engine))
    }
    gpu::check(model, shape, hyper.dropout > 0.0)?;
    match gpu::precision(device.properties(), &config.dtype)? {
        Dtype::F32 => of::<f32>(device, config, model, hyper, shape),
        Dtype::BF16 => of::<bf16>(device, config, model, hyper, shape),
        Dtype::F16 => of::<f16>(device, config, model, hyper, shape),
    }
}

impl<T: Precision> Engine for CudaEngine<T> {
    fn model(&self) -> &ModelConfig {
        &self.core.model
    }

    fn name(&self) -> &'static str {
        "fused"
    }

    fn device(&self) -> String {
        self.core.device.name().to_owned()
    }

    fn dtype(&self) -> &'static str {
        T::DTYPE.name()
    }

    fn peak_flops(&self) -> Result<Option<f64>> {
        let products = &self.core.selected.products;
        Ok(Some(gpu::peak_flops::<T>(&self.core.device, products)?))
    }

    fn memory(&self) -> Option<Memory> {
        let core = &self.core;
        let plans = [&core.training, &core.evaluation, &core.generation];
        let layout: &Layout = &core.parameters.layout;
        let properties = core.device.properties();
        let library = core.selected.products.library().is_some();
        let memory = self::memory::memory::<T>(&plans, layout, properties, core.recompute, library);
        Some(Memory {
            dataset: core.dataset.as_ref().map_or(0, Resident::bytes),
            ..memory
        })
    }

    fn keep_dataset(&mut self, dataset: &Dataset) -> Result<()> {
        let resident = match Resident::new(&self.core.device, dataset) {
            Ok(resident) => resident,
            // It is foreseen to fit, but others may have come to use the device meanwhile.
            Err(error @ CudaError::OutOfMemory { .. }) => {
                self.notes
                    .push(format!("dataset: {error}: batches are sent"));
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        let size = human_bytes(resident.bytes());
        self.notes
            .push(format!("dataset: {size}, kept on the device"));
        self.core.dataset = Some(resident);
        Ok(())
    }

    fn notes(&self, verbose: bool) -> Vec<String> {
        let mut notes = self.notes.clone();
        if verbose {
            notes.extend(self.core.selected.table());
        }
        notes
    }

    fn forward_backward(&mut self, batch: &Batch, at: MicroStep) -> Result<()> {
        let batch = slice::from_ref(batch);
        self.check(batch);
        self.seek(at)?;
        let Core {
            inputs, dataset, ..
        } = &mut self.core;
        let dataset = dataset.as_ref();
        self.feed.send(&self.main, inputs, batch, dataset)?;
        self.submit(if at.micro == 0 {
            Work::FirstMicroStep
        } else {
            Work::MicroStep
        })?;
        self.next.micro += 1;
        Ok(())
    }

    fn submit_update(&mut self, learning_rate: f64) -> Result<Option<UpdateStats>> {
        assert!(self.next.micro > 0, "an update needs gradients");
        self.forget();
        let number = self.updates;
        let slot = (number % 2) as usize;
        // The update before the last has been told, so nothing is at work on this slot.
        let rate = &mut self.learning_rates[slot];
        rate.write(&[learning_rate.to_bits()]);
        self.core.controller.set_learning_rate(&self.main, rate)?;
        if let Some(copied) = self.copied.take() {
            self.main.wait(&copied)?;
        }
        self.submit(Work::Update)?;
        let report = &mut self.reports[slot];
        let controller = &self.core.controller;
        controller.download_report(&self.main, number, report)?;
        let reported = self.main.record()?;
        let before = self.finish()?;
        self.updates += 1;
        self.reported = Some(reported);
        self.next = MicroStep {
            step: self.next.step + 1,
            micro: 0,
        };
        Ok(before)
    }

    fn finish(&mut self) -> Result<Option<UpdateStats>> {
        match self.reported.take() {
            Some(reported) => self.report(&reported).map(Some),
            None => Ok(None),
        }
    }

    fn loss(&mut self, batch: &Batch) -> Result<f64> {
        self.loss_of(batch)
    }

    fn mean_loss(
        &mut self,
        batches: &mut dyn Iterator<Item = Batch>,
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<f64>> {
        self.mean_of(batches, stop)
    }

    fn logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        let limit = self.core.model.block_size;
        assert!(
            (1..=limit).contains(&tokens.len()),
            "1 to {limit} tokens, got {}",
            tokens.len()
        );
        let known = self.core.decoder.as_ref().map(|it| it.known(tokens));
        let known = known.unwrap_or(0);
        if known == 0 {
            return self.prompt_logits(tokens);
        }
        let mut logits = Vec::new();
        for (position, &token) in tokens.iter().enumerate().skip(known) {
            logits = self.next_logits(token, position)?;
        }
        self.hold(tokens);
        Ok(logits)
    }

    fn state(&self) -> Result<EngineState> {
        let (updates, loss_scale) = self.counters()?;
        let parameters = &self.core.parameters;
        Ok(EngineState {
            parameters: parameters.named(&parameters.masters)?,
            exp_avg: parameters.named(&parameters.exp_avg)?,
            exp_avg_sq: parameters.named(&parameters.exp_avg_sq)?,
            updates,
            loss_scale,
        })
    }

    fn snapshot(&mut self) -> Result<PendingState> {
        let (updates, loss_scale) = self.counters()?;
        let Self { core, main, .. } = self;
        let parameters = &core.parameters;
        let begun = self.copier.begin(main, parameters, updates, loss_scale);
        let (copied, pending) = begun?;
        self.copied = Some(copied);
        Ok(pending)
    }

    fn prepare_snapshots(&mut self) {
        self.copier.prepare(self.core.parameters.layout.elements);
    }

    fn take_warnings(&mut self) -> Vec<String> {
        self.copier.take_warning().into_iter().collect()
    }

    fn start_profile(&mut self) {
        self.launch = Launch::Measured;
        self.profile = Profile::default();
    }

    fn take_profile(&mut self) -> Profile {
        std::mem::take(&mut self.profile)
    }

    fn load_parameters(&mut self, parameters: &[NamedTensor]) -> Result<()> {
        self.forget();
        let own = &mut self.core.parameters;
        let parameters = in_order(&own.layout.parameters, parameters, "parameter")?;
        Ok(own.set_masters(&parameters)?)
    }

    fn load_state(&mut self, state: &EngineState) -> Result<()> {
        self.forget();
        let own = &mut self.core.parameters;
        let expected = &own.layout.parameters;
        let exp_avg = in_order(expected, &state.exp_avg, "first moment of")?;
        let exp_avg_sq = in_order(expected, &state.exp_avg_sq, "second moment of")?;
        let parameters = in_order(expected, &state.parameters, "parameter")?;
        let updates = u32::try_from(state.updates).map_err(|_| {
            Error::Data(format!(
                "checkpoint: {} updates are too many",
                state.updates
            ))
        })?;
        own.set_masters(&parameters)?;
        own.set_moments(&exp_avg, &exp_avg_sq)?;
        let mut fresh = fresh_state::<T>();
        if let (Dtype::F16, Some(LossScale { scale, good_steps })) = (T::DTYPE, state.loss_scale) {
            (fresh.loss_scale, fresh.good_steps) = (scale, good_steps);
        }
        self.core.controller.set(&StepState { updates, ..fresh })?;
        self.next = MicroStep { step: 0, micro: 0 };
        (self.updates, self.reported) = (0, None);
        Ok(())
    }
}

impl From<CudaError> for Error {
    fn from(error: CudaError) -> Self {
        match error {
            CudaError::Unavailable(_) | CudaError::OutOfMemory { .. } => {
                Self::Device(error.to_string())
            }
            _ => Self::Gpu(error.to_string()),
        }
    }
}
