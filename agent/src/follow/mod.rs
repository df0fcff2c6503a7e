//! Follows what a trainer writes into its run directory: `events.jsonl` line by line, and new
//! checkpoints. The supervisor's loop polls both several times a second.

mod checkpoints;
mod events;

pub use checkpoints::{Checkpoints, NewCheckpoint};
pub use events::{Events, Polled, Position};

#[cfg(test)]
mod tests;
