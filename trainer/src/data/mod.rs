//! Data: from a name to batches of token ids.

pub mod token_file;
pub mod corpus;
mod parts;
pub mod dataset;
pub mod loader;
pub mod fetch;
pub mod hub;
pub mod prepare;
mod sources;
pub mod locate;

pub use dataset::{Dataset, DatasetInfo};
pub use loader::{Batch, Loader, Sampling, Split, Windows};
