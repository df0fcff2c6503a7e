//! The agent against real processes: one binary for all of them.

mod child;
mod support;
