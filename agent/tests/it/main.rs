//! The agent against real processes: one binary for all of them.
#![expect(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod child;
mod deadman;
mod face;
mod logs;
mod oom;
mod power_off;
mod reaper;
mod support;
