//! Batches on their way to the device, and losses on their way back. Used by the engine; the host
//! waits only when as many are on their way as there are stages.

use kernels::cuda::{Buffer, CudaError, Device, Event, HostBuffer, Stream};

use super::dataset::Resident;
use crate::data::Batch;

/// Batches on their way to the device, before the host waits.
pub(super) const STAGES: usize = 4;

/// Where a plan finds its batches on the device.
pub(super) struct Inputs {
    /// Inputs and targets.
    pub(super) tokens: Buffer<i32>, // (2, B, T)
    /// Where the windows of a dataset that is kept there begin.
    pub(super) starts: Buffer<u64>, // (B)
}

/// Host memory that batches are copied from, in turn.
pub(super) struct Feed {
    stages: [Stage; STAGES],
    sent: usize,
}

struct Stage {
    tokens: HostBuffer<i32>,
    starts: HostBuffer<u64>,
    /// After the copy of what it holds.
    copied: Option<Event>,
}

/// Host memory that losses are copied to, in turn.
pub(super) struct Readback {
    slots: [HostBuffer<f32>; STAGES], // (B, T) each
    next: usize,
}

/// Losses on their way.
pub(super) struct Arriving {
    slot: usize,
    arrived: Event,
}

impl Inputs {
    /// For `batch_size` windows of `rows` tokens together.
    pub(super) fn new(device: &Device, batch_size: usize, rows: usize) -> Result<Self, CudaError> {
        Ok(Self {
            tokens: device.alloc(2 * rows)?,
            starts: device.alloc(batch_size)?,
        })
    }
}

impl Feed {
    /// As [`Inputs::new`].
    pub(super) fn new(device: &Device, batch_size: usize, rows: usize) -> Result<Self, CudaError> {
        let stage = || -> Result<Stage, CudaError> {
            Ok(Stage {
                tokens: device.host_zeros(2 * rows)?,
                starts: device.host_zeros(batch_size)?,
                copied: None,
            })
        };
        Ok(Self {
            stages: [stage()?, stage()?, stage()?, stage()?],
            sent: 0,
        })
    }

    /// Adds that the device has these batches, one after the other: out of a dataset that it keeps
    /// where they are windows of that, by way of a stage that is free.
    pub(super) fn send(
        &mut self,
        stream: &Stream,
        inputs: &mut Inputs,
        batches: &[Batch],
        dataset: Option<&Resident>,
    ) -> Result<(), CudaError> {
        let Stage {
            tokens,
            starts,
            copied,
        } = &mut self.stages[self.sent % STAGES];
        if let Some(copied) = copied.take() {
            copied.synchronize()?;
        }
        let windows = dataset.and_then(|dataset| Some((dataset, dataset.windows(batches)?)));
        if let Some((dataset, (split, places))) = windows {
            starts.write(&places);
            stream.upload(&mut inputs.starts, starts)?;
            *copied = Some(stream.record()?);
            dataset.gather(stream, split, inputs)?;
        } else {
            let of_inputs = batches.iter().flat_map(|batch| &batch.inputs);
            let ids = of_inputs.chain(batches.iter().flat_map(|batch| &batch.targets));
            tokens.write(&ids.map(|&id| id as i32).collect::<Vec<_>>());
            stream.upload(&mut inputs.tokens, tokens)?;
            *copied = Some(stream.record()?);
        }
        self.sent += 1;
        Ok(())
    }
}

impl Readback {
    /// For `rows` losses at a time.
    pub(super) fn new(device: &Device, rows: usize) -> Result<Self, CudaError> {
        let slot = || device.host_zeros(rows);
        Ok(Self {
            slots: [slot()?, slot()?, slot()?, slot()?],
            next: 0,
        })
    }

    /// Adds that the losses come to the host. Of `STAGES` on their way the oldest must have been
    /// read.
    pub(super) fn fetch(
        &mut self,
        stream: &Stream,
        losses: &Buffer<f32>,
    ) -> Result<Arriving, CudaError> {
        let slot = self.next % STAGES;
        stream.download(&mut self.slots[slot], losses)?;
        self.next += 1;
        let arrived = stream.record()?;
        Ok(Arriving { slot, arrived })
    }

    /// Waits for losses.
    pub(super) fn read(&self, arriving: &Arriving) -> Result<Vec<f32>, CudaError> {
        arriving.arrived.synchronize()?;
        Ok(self.slots[arriving.slot].read())
    }
}
