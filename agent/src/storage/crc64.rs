//! CRC-64/NVME, the one checksum that S3 keeps of a whole object however it was sent. Called by the
//! stores and by whoever stages or verifies a checkpoint.

use crc_fast::{CrcAlgorithm, checksum, checksum_combine};

/// A checksum in the making.
pub struct Crc64(crc_fast::Digest);

impl Crc64 {
    pub fn new() -> Self {
        Self(crc_fast::Digest::new(CrcAlgorithm::Crc64Nvme))
    }

    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Of all bytes so far.
    pub fn value(&self) -> u64 {
        self.0.finalize()
    }
}

impl Default for Crc64 {
    fn default() -> Self {
        Self::new()
    }
}

/// The checksum of these bytes.
pub fn crc64nvme(bytes: &[u8]) -> u64 {
    checksum(CrcAlgorithm::Crc64Nvme, bytes)
}

/// The checksum of `a` followed by `b`, which is `b_bytes` long, from theirs.
pub fn combine(a: u64, b: u64, b_bytes: u64) -> u64 {
    checksum_combine(CrcAlgorithm::Crc64Nvme, a, b, b_bytes)
}
