//! Typed device memory.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use super::device::Home;
#[cfg(any(test, feature = "emulator"))]
use super::emulated;
use super::{Arg, CudaError, Device, Element};

/// `len` elements in the memory of a device, or a part of such.
#[derive(Clone, Debug)]
pub struct Buffer<T> {
    memory: Arc<Memory>,
    /// Elements before the first.
    offset: usize,
    len: usize,
    element: PhantomData<T>,
}

/// Memory of a device; freed with its last handle.
#[derive(Debug)]
pub(super) enum Memory {
    #[cfg(any(test, feature = "emulator"))]
    Emulated(emulator::Memory),
}

impl<T: Element> Buffer<T> {
    pub(super) fn new(device: &Device, len: usize) -> Result<Self, CudaError> {
        let bytes = len * size_of::<T>();
        let memory = match &device.home {
            #[cfg(any(test, feature = "emulator"))]
            Home::Emulated(_) => emulator::Memory::new(bytes).map(Memory::Emulated),
        };
        let memory = memory.ok_or_else(|| CudaError::OutOfMemory {
            device: device.name().to_owned(),
            bytes,
        })?;
        Ok(Self {
            memory: Arc::new(memory),
            offset: 0,
            len,
            element: PhantomData,
        })
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A part of the buffer, in the same memory: who writes to one writes to the other.
    pub fn slice(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len);
        Self {
            memory: Arc::clone(&self.memory),
            offset: self.offset + range.start,
            len: range.len(),
            element: PhantomData,
        }
    }

    /// Writes `data`, of the buffer's length, after all work of the device is done.
    pub fn upload(&mut self, data: &[T]) -> Result<(), CudaError> {
        assert_eq!(data.len(), self.len);
        match &*self.memory {
            #[cfg(any(test, feature = "emulator"))]
            Memory::Emulated(memory) => emulated::upload(memory, self.offset, data),
        }
        Ok(())
    }

    /// The elements, after all work of the device is done.
    pub fn download(&self) -> Result<Vec<T>, CudaError> {
        Ok(match &*self.memory {
            #[cfg(any(test, feature = "emulator"))]
            Memory::Emulated(memory) => emulated::download(memory, self.offset, self.len),
        })
    }

    /// Sets every byte to zero, after all work of the device is done.
    pub fn fill_zero(&mut self) -> Result<(), CudaError> {
        match &*self.memory {
            #[cfg(any(test, feature = "emulator"))]
            Memory::Emulated(memory) => emulated::fill_zero::<T>(memory, self.offset, self.len),
        }
        Ok(())
    }

    /// The buffer as an argument that the kernel reads.
    pub fn arg(&self) -> Arg {
        Arg::pointer(self.address(), [b'c', T::CODE], Arc::clone(&self.memory))
    }

    /// The buffer as an argument that the kernel writes.
    pub fn arg_mut(&mut self) -> Arg {
        Arg::pointer(self.address(), [b'm', T::CODE], Arc::clone(&self.memory))
    }

    fn address(&self) -> u64 {
        let first = match &*self.memory {
            #[cfg(any(test, feature = "emulator"))]
            Memory::Emulated(memory) => memory.as_ptr() as u64,
        };
        first + (self.offset * size_of::<T>()) as u64
    }
}
