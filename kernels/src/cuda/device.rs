//! A device and what a launcher needs to know of it.

use std::sync::Arc;

#[cfg(any(test, feature = "emulator"))]
use super::emulated;
use super::{Buffer, CudaError, Element, Stream};

/// A device that runs kernels. Cloning gives another handle of the same device.
#[derive(Clone, Debug)]
pub struct Device {
    pub(super) home: Home,
    properties: Arc<Properties>,
}

/// What differs between devices.
#[derive(Clone, Debug)]
pub struct Properties {
    pub name: String,
    /// (8, 0) for sm_80.
    pub compute_capability: (u32, u32),
    /// The most shared memory of a block, static and dynamic together.
    pub shared_bytes_max: u32,
    pub multiprocessors: u32,
}

#[derive(Clone, Debug)]
pub(super) enum Home {
    #[cfg(any(test, feature = "emulator"))]
    Emulated(emulator::Schedule),
}

impl Device {
    /// The emulator. It stands for a small GPU of compute capability 8.0 with the shared memory of
    /// an 8.6.
    #[cfg(any(test, feature = "emulator"))]
    pub fn emulator(schedule: emulator::Schedule) -> Self {
        Self {
            home: Home::Emulated(schedule),
            properties: Arc::new(emulated::properties(&schedule)),
        }
    }

    pub fn properties(&self) -> &Properties {
        &self.properties
    }

    pub fn name(&self) -> &str {
        &self.properties.name
    }

    /// A new stream. Work on different streams has no order but what is asked for.
    pub fn stream(&self) -> Result<Stream, CudaError> {
        Stream::new(self)
    }

    /// Memory for `len` elements. Its content is undefined; NaN bytes on the emulator.
    pub fn alloc<T: Element>(&self, len: usize) -> Result<Buffer<T>, CudaError> {
        Buffer::new(self, len)
    }

    pub fn alloc_zeros<T: Element>(&self, len: usize) -> Result<Buffer<T>, CudaError> {
        let mut buffer = self.alloc(len)?;
        buffer.fill_zero()?;
        Ok(buffer)
    }

    /// Memory that holds a copy of `data`.
    pub fn upload<T: Element>(&self, data: &[T]) -> Result<Buffer<T>, CudaError> {
        let mut buffer = self.alloc(data.len())?;
        buffer.upload(data)?;
        Ok(buffer)
    }
}
