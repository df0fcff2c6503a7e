//! The real program end to end, and the tidiness of the sources.
#![expect(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;
mod train;
mod resume;
mod signals;
mod bad_input;
mod sample;
mod interop;
mod board;
mod bucket;
mod prepare;
mod proxy;
mod machine;
mod agent;
mod agent_s3;
mod keys;
mod sweep;
mod estimate;
mod doctor;
mod tidy;
