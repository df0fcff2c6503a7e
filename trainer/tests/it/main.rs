//! Integration tests of the trainer library: against what PyTorch computed.
#![expect(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod golden;
