//! The run directory: the whole conversation between a trainer and whoever watches it.
//!
//! A trainer writes `events.jsonl` and `checkpoints/`; an agent, a dashboard or a test reads them.
//! This crate holds the format and nothing else: every path once ([`RunDir`]), every event
//! ([`Event`]), the checkpoint's [`Manifest`] and the meaning of each [`ExitCode`]; and how both
//! programs tell what their [`doctor`] found.

pub mod doctor;
pub mod event;
pub mod exit_code;
pub mod manifest;
pub mod run_dir;

pub use event::{Event, Phase, Record};
pub use exit_code::ExitCode;
pub use manifest::{FileEntry, Manifest};
pub use run_dir::RunDir;
