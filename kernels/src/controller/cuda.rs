//! The step controller on a device. Called by engines that run there, around forward and backward.

use super::{Report, Settings, StepState};
use crate::cuda::{Arg, Buffer, CudaError, Device, Grid, HostBuffer, Stream};

const THREADS: u32 = 256;
/// Words of the state in common/step_state.cuh, by their index there.
const STATE_WORDS: usize = 20;
const DATA_OFFSET: usize = 2;
const UPDATES: usize = 5;
const AT: usize = 6;
const LOSS_SCALE: usize = 9;
const GOOD_STEPS: usize = 10;
const REPORTS: usize = 19;
/// Words of a report in controller.cu.
pub const REPORT_WORDS: usize = 8;

/// The device's memory of a run: state, settings and the ring of reports.
#[derive(Debug)]
pub struct Controller {
    state: Buffer<u32>,
    settings: Buffer<u64>,
    ring: Buffer<u32>,
    micro_steps: u64,
}

impl Controller {
    /// A controller with room for `reports_max` reports before the oldest is overwritten.
    pub fn new(
        device: &Device,
        settings: &Settings,
        state: &StepState,
        reports_max: usize,
    ) -> Result<Self, CudaError> {
        assert!(reports_max > 0 && settings.micro_steps > 0);
        Ok(Self {
            state: device.upload(&state.words())?,
            settings: device.upload(&settings.words())?,
            ring: device.alloc_zeros(reports_max * REPORT_WORDS)?,
            micro_steps: settings.micro_steps,
        })
    }

    /// Goes on from another state, after a resume or a rollback.
    pub fn set(&mut self, state: &StepState) -> Result<(), CudaError> {
        self.state.upload(&state.words())
    }

    /// Adds that the learning rate of the steps to come is `bits`' (of an f64), where the settings
    /// have no schedule.
    pub fn set_learning_rate(
        &mut self,
        stream: &Stream,
        bits: &HostBuffer<u64>, // (1)
    ) -> Result<(), CudaError> {
        stream.upload(&mut self.settings.slice(0..1), bits)
    }

    /// What the other rooms' kernels read: learning rate, loss scale, whether to skip.
    pub fn state(&self) -> &Buffer<u32> {
        &self.state
    }

    /// The two words of a dropout's counter that change with the micro-step.
    pub fn at(&self) -> Buffer<u32> {
        self.state.slice(AT..AT + 2)
    }

    /// The state, after all work of the device is done.
    pub fn download(&self) -> Result<StepState, CudaError> {
        self.state.download().map(|words| StepState::of(&words))
    }

    /// The reports from number `from` on that the ring still holds, after all work is done.
    pub fn reports(&self, from: u32) -> Result<Vec<Report>, CudaError> {
        let written = self.state.download()?[REPORTS];
        let ring = self.ring.download()?;
        let held = (ring.len() / REPORT_WORDS) as u32;
        let first = from.max(written.saturating_sub(held));
        let report = |number: u32| {
            let place = (number % held) as usize * REPORT_WORDS;
            Report::of_words(&ring[place..place + REPORT_WORDS])
        };
        Ok((first..written).map(report).collect())
    }

    /// Adds a copy of report `number` to the host, for [`Report::of_words`]. It must be one that
    /// the ring still holds then.
    pub fn download_report(
        &self,
        stream: &Stream,
        number: u32,
        to: &mut HostBuffer<u32>, // (REPORT_WORDS)
    ) -> Result<(), CudaError> {
        let held = (self.ring.len() / REPORT_WORDS) as u32;
        let place = (number % held) as usize * REPORT_WORDS;
        stream.download(to, &self.ring.slice(place..place + REPORT_WORDS))
    }

    /// Before the first micro-step of an iteration.
    pub fn begin_step(&mut self, stream: &Stream) -> Result<(), CudaError> {
        let args = [self.state.arg_mut()];
        launch(stream, "controller_begin_step", 32, &args)
    }

    /// After the losses of a micro-step are there.
    pub fn end_micro_step(
        &mut self,
        stream: &Stream,
        losses: &Buffer<f32>, // (M)
    ) -> Result<(), CudaError> {
        let rows = i32::try_from(losses.len()).expect("a micro-step has fewer than 2^31 tokens");
        assert!(rows > 0, "a micro-step has tokens");
        let args = [self.state.arg_mut(), losses.arg(), rows.into()];
        launch(stream, "controller_end_micro_step", THREADS, &args)
    }

    /// After the last micro-step, with the partial sums of [`crate::global_norm::cuda::partials`].
    pub fn prepare_update(
        &mut self,
        stream: &Stream,
        partials: &Buffer<u64>,
        nonfinite: &Buffer<u32>,
    ) -> Result<(), CudaError> {
        let count = partials.len();
        assert!(count == nonfinite.len() && self.micro_steps > 0);
        let args = [
            self.state.arg_mut(),
            self.ring.arg_mut(),
            self.settings.arg(),
            partials.arg(),
            nonfinite.arg(),
            i32::try_from(count).expect("a thousand at most").into(),
            i32::try_from(self.ring.len() / REPORT_WORDS)
                .expect("a ring of reports is small")
                .into(),
        ];
        launch(stream, "controller_prepare_update", THREADS, &args)
    }

    /// After the update.
    pub fn end_step(&mut self, stream: &Stream) -> Result<(), CudaError> {
        let args = [self.state.arg_mut()];
        launch(stream, "controller_end_step", 32, &args)
    }
}

#[expect(unsafe_code, reason = "the launch of the kernels")]
fn launch(stream: &Stream, kernel: &str, threads: u32, args: &[Arg]) -> Result<(), CudaError> {
    // SAFETY: state, settings and ring have the words that the kernels know (asserted there and in
    // `words`), losses and partial sums are as many as the argument says.
    unsafe { stream.launch(kernel, Grid::linear(1, threads), args) }
}

impl StepState {
    fn words(&self) -> [u32; STATE_WORDS] {
        let mut words = [0; STATE_WORDS];
        let halves = |x: u64| [x as u32, (x >> 32) as u32];
        words[..DATA_OFFSET].copy_from_slice(&halves(self.step));
        words[DATA_OFFSET..DATA_OFFSET + 2].copy_from_slice(&halves(self.data_offset));
        words[UPDATES] = self.updates;
        words[LOSS_SCALE] = self.loss_scale.to_bits();
        words[GOOD_STEPS] = self.good_steps;
        words[REPORTS] = self.reports;
        words
    }

    fn of(words: &[u32]) -> Self {
        let wide = |at: usize| u64::from(words[at]) | u64::from(words[at + 1]) << 32;
        Self {
            step: wide(0),
            data_offset: wide(DATA_OFFSET),
            updates: words[UPDATES],
            loss_scale: f32::from_bits(words[LOSS_SCALE]),
            good_steps: words[GOOD_STEPS],
            reports: words[REPORTS],
        }
    }
}

impl Report {
    /// From a report's words.
    pub fn of_words(words: &[u32]) -> Self {
        assert_eq!(words.len(), REPORT_WORDS);
        let float = |at: usize| f32::from_bits(words[at]);
        Self {
            step: u64::from(words[0]) | u64::from(words[1]) << 32,
            loss: float(2),
            grad_norm: float(3),
            learning_rate: float(4),
            loss_scale: float(5),
            skipped: words[6] != 0,
            nonfinite: words[7],
        }
    }
}

impl Settings {
    /// The words of `Settings` in controller.cu.
    fn words(&self) -> [u64; 11] {
        let (growth_steps, max) = match self.loss_scaling {
            Some(scaling) => (f64::from(scaling.growth_steps), f64::from(scaling.max)),
            None => (0.0, 0.0),
        };
        [
            self.learning_rate,
            self.min_lr,
            self.warmup_iters as f64,
            self.lr_decay_iters.map_or(-1.0, |iters| iters as f64),
            self.beta1,
            self.beta2,
            self.weight_decay,
            self.grad_clip,
            self.micro_steps as f64,
            growth_steps,
            max,
        ]
        .map(f64::to_bits)
    }
}
