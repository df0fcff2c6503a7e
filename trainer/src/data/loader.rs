//! STUB
/// Token ids of one micro-batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// (B, T)
    pub inputs: Vec<u32>,
    /// (B, T): the inputs moved on by one token.
    pub targets: Vec<u32>,
    /// B
    pub batch_size: usize,
    /// T
    pub block_size: usize,
}

/// Which part of a dataset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    Train,
    Val,
}

/// STUB
pub struct Loader;
