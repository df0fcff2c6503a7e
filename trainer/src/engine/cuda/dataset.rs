//! A dataset in the device's memory: a batch is then sent as the places where its windows begin.

use kernels::batch::cuda::{self as batch, TokenId};
use kernels::cuda::{Buffer, CudaError, Device, Stream};

use super::feed::Inputs;
use crate::data::token_file::TokenFile;
use crate::data::{Batch, Dataset, Split};
use crate::engine::fit::token_bytes;

/// Tokens that are brought to the device at a time.
#[cfg(not(test))]
const PIECE_TOKENS: usize = 1 << 22;
#[cfg(test)]
const PIECE_TOKENS: usize = 100;

/// The tokens of both splits.
pub(super) enum Resident {
    Narrow(Splits<u16>),
    Wide(Splits<u32>),
}

pub(super) struct Splits<Id> {
    train: Buffer<Id>,
    val: Buffer<Id>,
}

impl Resident {
    pub(super) fn new(device: &Device, dataset: &Dataset) -> Result<Self, CudaError> {
        Ok(if token_bytes(dataset) == size_of::<u16>() {
            Self::Narrow(Splits::new(device, dataset, |id| id as u16)?)
        } else {
            Self::Wide(Splits::new(device, dataset, |id| id)?)
        })
    }

    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Narrow(splits) => splits.bytes(),
            Self::Wide(splits) => splits.bytes(),
        }
    }

    /// Where the windows of these batches begin, if they are windows of one split.
    pub(super) fn windows(&self, batches: &[Batch]) -> Option<(Split, Vec<u64>)> {
        let split = batches.first()?.windows.as_ref()?.split;
        let len = match self {
            Self::Narrow(splits) => splits.of(split).len(),
            Self::Wide(splits) => splits.of(split).len(),
        };
        let mut starts = Vec::new();
        for batch in batches {
            let windows = batch.windows.as_ref()?;
            if windows.split != split {
                return None;
            }
            let last = len.checked_sub(batch.block_size + 1);
            let within = |&start: &u64| last.is_some_and(|last| start <= last as u64);
            assert!(
                windows.starts.iter().all(within),
                "windows of another dataset"
            );
            starts.extend_from_slice(&windows.starts);
        }
        Some((split, starts))
    }

    /// Adds that `inputs` get the tokens of the windows that begin at their starts.
    pub(super) fn gather(
        &self,
        stream: &Stream,
        split: Split,
        inputs: &mut Inputs,
    ) -> Result<(), CudaError> {
        match self {
            Self::Narrow(splits) => splits.gather(stream, split, inputs),
            Self::Wide(splits) => splits.gather(stream, split, inputs),
        }
    }
}

impl<Id: TokenId> Splits<Id> {
    fn new(
        device: &Device,
        dataset: &Dataset,
        narrow: impl Fn(u32) -> Id,
    ) -> Result<Self, CudaError> {
        let upload = |file: &TokenFile| -> Result<Buffer<Id>, CudaError> {
            let buffer = device.alloc(file.len())?;
            for start in (0..file.len()).step_by(PIECE_TOKENS) {
                let mut ids = vec![0; PIECE_TOKENS.min(file.len() - start)];
                file.copy(start, &mut ids);
                let mut piece = buffer.slice(start..start + ids.len());
                piece.upload(&ids.into_iter().map(&narrow).collect::<Vec<_>>())?;
            }
            Ok(buffer)
        };
        Ok(Self {
            train: upload(&dataset.train)?,
            val: upload(&dataset.val)?,
        })
    }

    fn of(&self, split: Split) -> &Buffer<Id> {
        match split {
            Split::Train => &self.train,
            Split::Val => &self.val,
        }
    }

    fn bytes(&self) -> u64 {
        ((self.train.len() + self.val.len()) * size_of::<Id>()) as u64
    }

    fn gather(&self, stream: &Stream, split: Split, inputs: &mut Inputs) -> Result<(), CudaError> {
        let tokens = self.of(split);
        let rows = inputs.tokens.len() / 2;
        let mut to_inputs = inputs.tokens.slice(0..rows);
        let mut to_targets = inputs.tokens.slice(rows..2 * rows);
        batch::gather(
            stream,
            &mut to_inputs,
            &mut to_targets,
            tokens,
            &inputs.starts,
        )
    }
}
