//! The agent: supervises a trainer, brings its checkpoints to a store and back, and makes sure that
//! one job has one trainer.
//!
//! Modules stand in reading order; each names only modules above it.

#![forbid(unsafe_code)]

pub mod clock;
pub mod redact;
pub mod https;
pub mod storage;
pub mod error;
pub mod job;
pub mod lease;
pub mod checkpoints;
pub mod cgroup;
pub mod child;
pub mod follow;
pub mod logs;
pub mod reaper;
pub mod provider;
pub mod limits;
pub mod cost;
pub mod progress;
pub mod state;
pub mod orders;
pub mod supervisor;
pub mod bill;
pub mod status;
pub mod machine;
pub mod deadman;
pub mod board;
pub mod metrics;
pub mod http;
pub mod ingest;
pub mod run;
pub mod sweep;
pub mod reap;
pub mod doctor;
pub mod cli;
#[cfg(test)]
mod sim;
