//! A kernel's arguments and the shape of its launch.

use std::sync::Arc;

use super::buffer::Memory;

/// The shape of a launch: blocks, threads of a block, bytes of dynamic shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub shared_bytes: u32,
}

impl Grid {
    /// Blocks in a row of threads in a row, without dynamic shared memory.
    pub fn linear(blocks: usize, threads: u32) -> Self {
        let blocks = u32::try_from(blocks).expect("a tensor has fewer than 2^32 tiles");
        Self {
            grid: [blocks, 1, 1],
            block: [threads, 1, 1],
            shared_bytes: 0,
        }
    }

    /// With `shared_bytes` of dynamic shared memory.
    pub fn with_shared(self, shared_bytes: u32) -> Self {
        Self {
            shared_bytes,
            ..self
        }
    }
}

/// An argument of a kernel. Made by [`super::Buffer::arg`], [`super::Buffer::arg_mut`],
/// [`Arg::null`], or from a number. It keeps its buffer's memory.
#[derive(Clone, Debug)]
pub struct Arg {
    bits: u64,
    /// As in a kernel's signature.
    pub(super) kind: [u8; 2],
    _memory: Option<Arc<Memory>>,
}

impl Arg {
    pub(super) fn pointer(address: u64, kind: [u8; 2], memory: Arc<Memory>) -> Self {
        Self {
            bits: address,
            kind,
            _memory: Some(memory),
        }
    }

    fn value(bits: u64, code: u8) -> Self {
        Self {
            bits,
            kind: [b'v', code],
            _memory: None,
        }
    }

    /// A null pointer of any type.
    pub fn null() -> Self {
        Self {
            bits: 0,
            kind: [b'n', b'?'],
            _memory: None,
        }
    }

    /// Of the parameter that it may be passed for.
    #[cfg(feature = "cuda")]
    pub(super) fn bytes(&self) -> usize {
        if self.kind == [b'v', b'i'] || self.kind == [b'v', b'f'] {
            4
        } else {
            8
        }
    }

    /// The value's bits, 4-byte values in the first 4 bytes of a little-endian machine.
    pub(super) fn bits(&self) -> u64 {
        self.bits
    }
}

impl From<i32> for Arg {
    fn from(x: i32) -> Self {
        Self::value(x as u32 as u64, b'i')
    }
}
impl From<u32> for Arg {
    fn from(x: u32) -> Self {
        Self::value(x.into(), b'i')
    }
}
impl From<u64> for Arg {
    fn from(x: u64) -> Self {
        Self::value(x, b'l')
    }
}
impl From<f32> for Arg {
    fn from(x: f32) -> Self {
        Self::value(x.to_bits().into(), b'f')
    }
}
