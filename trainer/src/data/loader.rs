//! Batches: which windows of a dataset a step trains on, and which an evaluation looks at.
//!
//! Every batch is a pure function of (seed, step, micro-step), so a resumed run continues its data
//! with nothing saved, and evaluation cannot disturb training. The training loop calls
//! [`Loader::batch`], evaluation [`Loader::eval_batches`].

use std::str::FromStr;
use std::sync::Arc;

use super::dataset::Dataset;
use super::token_file::TokenFile;
use crate::error::{Error, Result};
use crate::philox::{Philox, Stream};

/// Draws batches from a dataset.
#[derive(Clone, Debug)]
pub struct Loader {
    dataset: Arc<Dataset>,
    batch_size: usize,
    block_size: usize,
    gradient_accumulation_steps: u64,
    sampling: Sampling,
    train: Philox,
    eval: Philox,
}

/// Token ids of one micro-batch. Made by a loader, or by [`Self::of_tokens`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// (B, T)
    pub inputs: Vec<u32>,
    /// (B, T): the inputs moved on by one token.
    pub targets: Vec<u32>,
    /// B
    pub batch_size: usize,
    /// T
    pub block_size: usize,
    /// Where the ids lie in the loader's dataset, for who keeps that at hand.
    pub windows: Option<Windows>,
}

/// Places of windows, of T tokens and the target of the last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Windows {
    pub split: Split,
    /// (B): where each begins.
    pub starts: Vec<u64>,
}

/// Which part of a dataset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    Train,
    Val,
}

/// How training windows are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sampling {
    /// nanoGPT's: any start is equally likely, each time anew.
    Random,
    /// Without replacement: an epoch visits each window of its cut once, in random order.
    Epoch,
}

/// Evaluation draws from this seed whatever the run's is: losses of runs that differ only in their
/// seed are then taken on the same windows.
const EVAL_SEED: u64 = 0;

/// In the place of a Feistel round's number: the draw of an epoch's shift.
const SHIFT: u32 = u32::MAX;

impl Batch {
    /// Of ids that need not be a dataset's.
    pub fn of_tokens(
        inputs: Vec<u32>,
        targets: Vec<u32>,
        batch_size: usize,
        block_size: usize,
    ) -> Self {
        Self {
            inputs,
            targets,
            batch_size,
            block_size,
            windows: None,
        }
    }
}

impl Loader {
    /// # Errors
    /// [`Error::Data`] when a split does not hold one window of `block_size` tokens and its target.
    pub fn new(
        dataset: Arc<Dataset>,
        batch_size: usize,
        block_size: usize,
        gradient_accumulation_steps: u64,
        sampling: Sampling,
        seed: u64,
    ) -> Result<Self> {
        assert!(
            batch_size > 0 && block_size > 0 && gradient_accumulation_steps > 0,
            "sizes are checked with the config"
        );
        for file in [&dataset.train, &dataset.val] {
            if file.len() <= block_size {
                let hint = if file.len() > 1 {
                    format!(
                        "set block_size to at most {}, or use more text",
                        file.len() - 1
                    )
                } else {
                    "use more text".to_owned()
                };
                return Err(Error::Data(format!(
                    "{}: expected at least {} tokens (block_size {block_size} and one target), \
                     got {}\nhint: {hint}",
                    file.path().display(),
                    block_size + 1,
                    file.len()
                )));
            }
        }
        Ok(Self {
            dataset,
            batch_size,
            block_size,
            gradient_accumulation_steps,
            sampling,
            train: Philox::new(seed, Stream::TrainData),
            eval: Philox::new(EVAL_SEED, Stream::EvalData),
        })
    }

    pub fn dataset(&self) -> &Dataset {
        &self.dataset
    }

    /// The micro-batch `micro` of update `step`, both from 0.
    pub fn batch(&self, step: u64, micro: u64) -> Batch {
        assert!(
            micro < self.gradient_accumulation_steps,
            "micro-step {micro}"
        );
        match self.sampling {
            Sampling::Random => {
                let micro = u32::try_from(micro).expect("an accumulation of less than 2^32");
                let mut draws = self
                    .train
                    .sequence([step as u32, (step >> 32) as u32, micro]);
                let starts = (self.dataset.train.len() - self.block_size) as u64;
                self.windows(Split::Train, |_| draws.below(starts) as usize)
            }
            Sampling::Epoch => {
                let batches = step * self.gradient_accumulation_steps + micro;
                let first = batches * self.batch_size as u64;
                self.windows(Split::Train, |row| self.epoch_start(first + row as u64))
            }
        }
    }

    /// `count` batches of windows spread evenly over the split, the same on every call: one window
    /// at a random place in each of `count * batch_size` equal ranges of starts. Such strata make
    /// the mean loss vary less than as many independent draws would.
    pub fn eval_batches(&self, split: Split, count: u64) -> impl Iterator<Item = Batch> + '_ {
        let file = self.file(split);
        let mut draws = self.eval.sequence([split as u32, 0, 0]);
        let windows = u128::from(count) * self.batch_size as u128;
        let starts = (file.len() - self.block_size) as u128;
        (0..count).map(move |batch| {
            let first = u128::from(batch) * self.batch_size as u128;
            self.windows(split, |row| {
                // floor((k + u) * starts / windows), u in [0, 1) with its first 32 bits.
                let place = (first + row as u128) << 32 | u128::from(draws.next_u32());
                ((place * starts / windows) >> 32) as usize
            })
        })
    }

    /// Start of the window with this number since the run began.
    ///
    /// An epoch leaves out about one window of the split: with that room its cut can be shifted by
    /// a random amount, so that window boundaries move between epochs, every token is reached in
    /// some epoch, and all epochs still have equally many windows.
    fn epoch_start(&self, sample: u64) -> usize {
        let tokens = self.dataset.train.len() as u64 - 1;
        let block_size = self.block_size as u64;
        let windows = (tokens / block_size - 1).max(1);
        let (epoch, index) = (sample / windows, sample % windows);
        let place = [SHIFT, epoch as u32, (epoch >> 32) as u32];
        let room = tokens - windows * block_size;
        let shift = self.train.sequence(place).below(room + 1);
        (shift + permute(&self.train, epoch, index, windows) * block_size) as usize
    }

    /// A batch of the windows that start at `start(0)`, `start(1)`, …
    fn windows(&self, split: Split, mut start: impl FnMut(usize) -> usize) -> Batch {
        let file = self.file(split);
        let (b, t) = (self.batch_size, self.block_size);
        let mut inputs = Vec::with_capacity(b * t); // (B, T)
        let mut targets = Vec::with_capacity(b * t); // (B, T)
        let mut window = vec![0; t + 1];
        let starts: Vec<usize> = (0..b).map(&mut start).collect();
        for &start in &starts {
            file.copy(start, &mut window);
            inputs.extend_from_slice(&window[..t]);
            targets.extend_from_slice(&window[1..]);
        }
        Batch {
            inputs,
            targets,
            batch_size: b,
            block_size: t,
            windows: Some(Windows {
                split,
                starts: starts.into_iter().map(|start| start as u64).collect(),
            }),
        }
    }

    fn file(&self, split: Split) -> &TokenFile {
        match split {
            Split::Train => &self.dataset.train,
            Split::Val => &self.dataset.val,
        }
    }
}

impl FromStr for Sampling {
    type Err = Error;

    /// The config's words, `random` and `epoch`.
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "random" => Ok(Self::Random),
            "epoch" => Ok(Self::Epoch),
            _ => Err(Error::config(format!(
                "sampling: expected `random` or `epoch`, got `{text}`"
            ))),
        }
    }
}

/// Where a pseudo-random permutation of `0..count`, of its own for each epoch, sends `index`.
///
/// A Feistel network permutes the smallest square of a power of two that holds `count`; what it
/// sends outside is sent on until it comes back inside, which is a permutation again. Nothing is
/// stored, so an epoch of any length costs no memory and can be entered anywhere.
fn permute(philox: &Philox, epoch: u64, index: u64, count: u64) -> u64 {
    const ROUNDS: u32 = 6;
    assert!(index < count, "index {index} of {count}");
    let bits = u64::BITS - (count - 1).leading_zeros();
    let half_bits = bits.div_ceil(2).max(1);
    let mask = (1 << half_bits) - 1;
    let mut place = index;
    loop {
        let (mut left, mut right) = (place >> half_bits, place & mask);
        for round in 0..ROUNDS {
            let counter = [right as u32, round, epoch as u32, (epoch >> 32) as u32];
            let mixed = left ^ (u64::from(philox.block(counter)[0]) & mask);
            (left, right) = (right, mixed);
        }
        place = left << half_bits | right;
        // Expected after fewer than four turns: the square is less than four times `count`.
        if place < count {
            return place;
        }
    }
}

#[cfg(test)]
mod tests;
