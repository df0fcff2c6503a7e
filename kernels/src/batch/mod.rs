//! Batches from a dataset that lies in the device's memory: nothing is sent per step.
//!
//! ```text
//! random_starts   start[b] = floor(u64(b) bound / 2^64), u64(b) = words 2b, 2b + 1 of the Philox
//!                 sequence at (step, micro-step)
//! gather          inputs[b, t] = tokens[start[b] + t],  targets[b, t] = tokens[start[b] + t + 1]
//! ```
//!
//! `bound` is the number of windows, len - T. Step and micro-step are those of the step
//! controller's state, so a captured graph draws new windows each time it is replayed; the draws
//! are those of the trainer's loader. Other orders of windows are uploaded as `starts`.

pub mod cuda;
#[cfg(test)]
mod cuda_tests;
