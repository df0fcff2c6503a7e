//! A GPT trainer equal to nanoGPT in behaviour: same keys, same losses, same log lines.
//!
//! Modules stand in reading order: each names only modules above it.

pub mod checkpoint;
pub mod cli;
pub mod config;
pub mod data;
pub mod engine;
pub mod error;
pub mod eval;
pub mod metrics;
pub mod model;
pub mod philox;
pub mod sample;
pub mod schedule;
pub mod tokenizer;
pub mod train;

pub use error::{Error, Result};
