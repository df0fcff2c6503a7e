//! Checkpoints against a store in memory, with faults and with kills at every request.

mod history;
mod prune;
mod publish;
mod schedules;
mod verify;
