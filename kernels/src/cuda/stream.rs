//! Streams of work, the launch of a kernel, and graphs: work that was recorded to be repeated.

use std::sync::Arc;

use super::buffer::Memory;
use super::device::Home;
#[cfg(any(test, feature = "emulator"))]
use super::emulated;
use super::{CudaError, Device};

/// A queue of work; each piece starts when the one before is done.
#[derive(Debug)]
pub struct Stream {
    device: Device,
    home: StreamHome,
}

#[derive(Debug)]
enum StreamHome {
    #[cfg(any(test, feature = "emulator"))]
    Emulated(emulated::Stream),
}

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

impl Stream {
    pub(super) fn new(device: &Device) -> Result<Self, CudaError> {
        let home = match &device.home {
            #[cfg(any(test, feature = "emulator"))]
            Home::Emulated(schedule) => StreamHome::Emulated(emulated::Stream::new(*schedule)),
        };
        Ok(Self {
            device: device.clone(),
            home,
        })
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Adds a launch of `kernel`, which has the name of its `KERNEL` line.
    ///
    /// # Errors
    ///
    /// When there is no such kernel, the arguments are not of its number and types, or the device
    /// cannot run the shape. What goes wrong while it runs is reported by a later call.
    ///
    /// # Safety
    ///
    /// With these arguments the kernel must stay within the buffers it was given, and no other
    /// stream may write what it uses until it is done.
    #[expect(unsafe_code, reason = "a kernel's accesses cannot be checked")]
    pub unsafe fn launch(&self, kernel: &str, grid: Grid, args: &[Arg]) -> Result<(), CudaError> {
        match &self.home {
            #[cfg(any(test, feature = "emulator"))]
            // SAFETY: the caller's promise.
            StreamHome::Emulated(stream) => unsafe {
                stream.launch(&self.device, kernel, grid, args)
            },
        }
    }

    /// Waits until all work of the stream is done.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        match &self.home {
            // Work is done when `launch` returns.
            #[cfg(any(test, feature = "emulator"))]
            StreamHome::Emulated(_) => Ok(()),
        }
    }

    /// Records what `work` adds to the stream instead of running it.
    pub fn capture(
        &self,
        work: impl FnOnce(&Self) -> Result<(), CudaError>,
    ) -> Result<Graph, CudaError> {
        match &self.home {
            #[cfg(any(test, feature = "emulator"))]
            StreamHome::Emulated(stream) => {
                stream.begin_capture();
                let done = work(self);
                let recorded = stream.end_capture();
                done.map(|()| Graph::Emulated(recorded))
            }
        }
    }
}

/// Recorded work. It keeps the memory of its arguments.
#[derive(Debug)]
pub enum Graph {
    #[cfg(any(test, feature = "emulator"))]
    #[doc(hidden)]
    Emulated(emulated::Recorded),
}

impl Graph {
    /// Adds all of the recorded work to the stream.
    pub fn launch(&self, stream: &Stream) -> Result<(), CudaError> {
        match (self, &stream.home) {
            #[cfg(any(test, feature = "emulator"))]
            (Self::Emulated(recorded), StreamHome::Emulated(stream)) => stream.replay(recorded),
        }
        Ok(())
    }
}
