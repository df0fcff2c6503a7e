//! Evaluation on a device: batches in passes of as many as go together, several passes on their way
//! at a time, so that the device never waits for the host.

use std::collections::VecDeque;
use std::slice;

use super::core::Work;
use super::feed::{Arriving, Feed, Readback, STAGES};
use super::{CudaEngine, Precision};
use crate::data::Batch;
use crate::error::Result;

/// What batches that are evaluated together need on the host.
pub(super) struct Together {
    pub(super) feed: Feed,
    pub(super) losses: Readback,
}

/// A pass on its way: how many batches.
struct Pass {
    batches: usize,
    losses: Arriving,
}

impl<T: Precision> CudaEngine<T> {
    /// As [`crate::engine::Engine::mean_loss`].
    pub(super) fn mean_of(
        &mut self,
        batches: &mut dyn Iterator<Item = Batch>,
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<f64>> {
        let wide = self.core.together.as_ref().map_or(1, |it| it.batches);
        let (mut sum, mut count) = (0.0, 0);
        let mut on_their_way = VecDeque::new();
        let mut group = Vec::new();
        for batch in batches {
            if stop() {
                return Ok(None);
            }
            count += 1;
            group.push(batch);
            if group.len() == wide {
                self.next_pass(&group, &mut on_their_way, &mut sum)?;
                group.clear();
            }
        }
        for batch in &group {
            self.next_pass(slice::from_ref(batch), &mut on_their_way, &mut sum)?;
        }
        for pass in on_their_way {
            self.add_losses(&pass, &mut sum)?;
        }
        Ok(Some(sum / f64::from(count)))
    }

    /// The mean loss of a batch.
    pub(super) fn loss_of(&mut self, batch: &Batch) -> Result<f64> {
        let (mut passes, mut loss) = (VecDeque::new(), 0.0);
        self.next_pass(slice::from_ref(batch), &mut passes, &mut loss)?;
        for pass in passes {
            self.add_losses(&pass, &mut loss)?;
        }
        Ok(loss)
    }

    /// Begins a pass over these batches, once there is room for its losses.
    fn next_pass(
        &mut self,
        batches: &[Batch],
        on_their_way: &mut VecDeque<Pass>,
        sum: &mut f64,
    ) -> Result<()> {
        if on_their_way.len() == STAGES {
            let oldest = on_their_way.pop_front().expect("counted");
            self.add_losses(&oldest, sum)?;
        }
        self.check(batches);
        let Self { core, main, .. } = self;
        let dataset = core.dataset.as_ref();
        let losses = match (&mut core.together, &mut self.together) {
            (Some(wide), Some(together)) if batches.len() > 1 => {
                let inputs = &mut wide.inputs;
                together.feed.send(main, inputs, batches, dataset)?;
                self.submit(Work::Together)?;
                let plan = &self.core.together.as_ref().expect("found above").plan;
                let losses = self.core.losses(plan);
                let together = self.together.as_mut().expect("found above");
                together.losses.fetch(&self.main, &losses)?
            }
            _ => {
                assert_eq!(batches.len(), 1, "one where none go together");
                self.feed.send(main, &mut core.inputs, batches, dataset)?;
                self.submit(Work::Evaluation)?;
                let losses = self.core.losses(&self.core.evaluation);
                self.losses.fetch(&self.main, &losses)?
            }
        };
        on_their_way.push_back(Pass {
            batches: batches.len(),
            losses,
        });
        Ok(())
    }

    /// Adds the mean loss of each batch of a pass, in their order, as if they had come alone.
    fn add_losses(&self, pass: &Pass, sum: &mut f64) -> Result<()> {
        let losses = match &self.together {
            Some(together) if pass.batches > 1 => together.losses.read(&pass.losses)?,
            _ => self.losses.read(&pass.losses)?,
        };
        for of_batch in losses.chunks(losses.len() / pass.batches) {
            let total: f64 = of_batch.iter().map(|&loss| f64::from(loss)).sum();
            *sum += total / of_batch.len() as f64;
        }
        Ok(())
    }
}
