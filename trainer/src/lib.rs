//! A GPT trainer equal to nanoGPT in behaviour: same keys, same losses, same log lines.
//!
//! Modules stand in reading order: each names only modules above it.

pub mod error;
pub mod machine;
pub mod config;
pub mod pickle;
pub mod tokenizer;
pub mod data;
pub mod model;
pub mod engine;
pub mod schedule;
pub mod signals;
pub mod checkpoint;
pub mod eval;
pub mod metrics;
pub mod sample;
pub mod estimate;
pub mod doctor;
pub mod interop;
pub mod train;
pub mod cli;

pub use error::{Error, Result};
pub use kernels::philox;
