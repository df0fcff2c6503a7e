//! Typed memory: of a device, and of the host for copies that a stream makes.

#![expect(unsafe_code, reason = "memory of the homes is reached by address")]

use std::alloc::{self, Layout};
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use super::device::Home;
#[cfg(feature = "cuda")]
use super::driver;
use super::work::Region;
use super::{Arg, CudaError, Device, Element};

/// `len` elements in the memory of a device, or a part of such.
#[derive(Clone, Debug)]
pub struct Buffer<T> {
    device: Device,
    memory: Arc<Memory>,
    /// Elements before the first.
    offset: usize,
    len: usize,
    element: PhantomData<T>,
}

/// Memory of a device, or of the host for its copies; freed with its last handle.
#[derive(Debug)]
pub(super) enum Memory {
    #[cfg(any(test, feature = "emulator"))]
    Emulated(emulator::Memory),
    #[cfg(feature = "cuda")]
    Cuda(driver::Memory),
    #[cfg(feature = "cuda")]
    Pinned(driver::PinnedMemory),
    Ordinary(OrdinaryMemory),
}

/// Memory of the host as every program has it.
#[derive(Debug)]
pub(super) struct OrdinaryMemory {
    start: *mut u8,
    layout: Layout,
}

// SAFETY: plain memory, which belongs to this value.
unsafe impl Send for OrdinaryMemory {}
// SAFETY: as above; who reaches it by its address sees to the order.
unsafe impl Sync for OrdinaryMemory {}

impl OrdinaryMemory {
    /// Zeros.
    fn new(bytes: usize) -> Self {
        /// As wide as the CPU's widest registers.
        const ALIGNMENT: usize = 64;
        let layout = Layout::from_size_align(bytes.max(1), ALIGNMENT);
        let layout = layout.expect("less than half of the address space");
        // SAFETY: at least one byte.
        let start = unsafe { alloc::alloc_zeroed(layout) };
        if start.is_null() {
            alloc::handle_alloc_error(layout);
        }
        Self { start, layout }
    }
}

impl Drop for OrdinaryMemory {
    fn drop(&mut self) {
        // SAFETY: allocated so, and freed once.
        unsafe { alloc::dealloc(self.start, self.layout) }
    }
}

impl Memory {
    /// Of its first byte.
    fn address(&self) -> u64 {
        match self {
            #[cfg(any(test, feature = "emulator"))]
            Self::Emulated(memory) => memory.as_ptr() as u64,
            #[cfg(feature = "cuda")]
            Self::Cuda(memory) => memory.address(),
            #[cfg(feature = "cuda")]
            Self::Pinned(memory) => memory.address(),
            Self::Ordinary(memory) => memory.start as u64,
        }
    }
}

#[cfg(any(test, feature = "emulator"))]
fn emulated_memory(device: &Device, bytes: usize) -> Result<Memory, CudaError> {
    let memory = emulator::Memory::new(bytes).map(Memory::Emulated);
    memory.ok_or_else(|| CudaError::OutOfMemory {
        device: device.name().to_owned(),
        bytes,
    })
}

impl<T: Element> Buffer<T> {
    pub(super) fn new(device: &Device, len: usize) -> Result<Self, CudaError> {
        let _alone = device.device_wide("an allocation")?;
        let bytes = len * size_of::<T>();
        let memory = match &device.home {
            #[cfg(any(test, feature = "emulator"))]
            Home::Emulated(_) => emulated_memory(device, bytes)?,
            #[cfg(feature = "cuda")]
            Home::Cuda(driver) => Memory::Cuda(driver::Memory::new(driver, bytes)?),
        };
        Ok(Self {
            device: device.clone(),
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

    /// Whether the first element lies at a multiple of `bytes`, a power of two.
    pub fn is_aligned(&self, bytes: u64) -> bool {
        self.address().is_multiple_of(bytes)
    }

    /// A part of the buffer, in the same memory: who writes to one writes to the other.
    pub fn slice(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len);
        Self {
            device: self.device.clone(),
            memory: Arc::clone(&self.memory),
            offset: self.offset + range.start,
            len: range.len(),
            element: PhantomData,
        }
    }

    /// The bytes of a part of the buffer as elements of another type, in the same memory: how an
    /// arena is handed out. Panics where the bytes are no such elements.
    pub fn view<U: Element>(&self, bytes: Range<usize>) -> Buffer<U> {
        let (start, size) = (self.offset * size_of::<T>() + bytes.start, size_of::<U>());
        assert!(bytes.start <= bytes.end && bytes.end <= self.len * size_of::<T>());
        assert!(start.is_multiple_of(size) && bytes.len().is_multiple_of(size));
        Buffer {
            device: self.device.clone(),
            memory: Arc::clone(&self.memory),
            offset: start / size,
            len: bytes.len() / size,
            element: PhantomData,
        }
    }

    /// Writes `data`, of the buffer's length, after all work of the device is done.
    pub fn upload(&mut self, data: &[T]) -> Result<(), CudaError> {
        assert_eq!(data.len(), self.len);
        let _alone = self.device.device_wide("an upload from a slice")?;
        match &self.device.home {
            // SAFETY: the buffer's memory has room for its length, and `data` is other memory.
            #[cfg(any(test, feature = "emulator"))]
            Home::Emulated(_) => unsafe {
                let to = self.address() as *mut T;
                std::ptr::copy_nonoverlapping(data.as_ptr(), to, data.len());
            },
            // SAFETY: as above.
            #[cfg(feature = "cuda")]
            Home::Cuda(driver) => unsafe { driver.upload(self.address(), data)? },
        }
        Ok(())
    }

    /// The elements, after all work of the device is done.
    pub fn download(&self) -> Result<Vec<T>, CudaError> {
        let _alone = self.device.device_wide("a download to a vector")?;
        match &self.device.home {
            // SAFETY: the memory holds `len` elements; every pattern of bits is an Element.
            #[cfg(any(test, feature = "emulator"))]
            Home::Emulated(_) => Ok(unsafe {
                std::slice::from_raw_parts(self.address() as *const T, self.len).to_vec()
            }),
            // SAFETY: as above.
            #[cfg(feature = "cuda")]
            Home::Cuda(driver) => unsafe { driver.download(self.address(), self.len) },
        }
    }

    /// Sets every byte to zero, after all work of the device is done.
    pub fn fill_zero(&mut self) -> Result<(), CudaError> {
        let _alone = self.device.device_wide("fill_zero")?;
        match &self.device.home {
            // SAFETY: the buffer's memory has room for its length.
            #[cfg(any(test, feature = "emulator"))]
            Home::Emulated(_) => unsafe {
                std::ptr::write_bytes(self.address() as *mut T, 0, self.len);
            },
            // SAFETY: as above.
            #[cfg(feature = "cuda")]
            Home::Cuda(driver) => unsafe {
                driver.fill(self.address(), 0, self.len * size_of::<T>())?;
            },
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

    pub(super) fn region(&self) -> Region {
        Region {
            address: self.address(),
            bytes: self.len * size_of::<T>(),
            _memory: Arc::clone(&self.memory),
        }
    }

    fn address(&self) -> u64 {
        self.memory.address() + (self.offset * size_of::<T>()) as u64
    }
}

/// `len` elements of host memory that a stream copies from and to; pinned for a GPU, unless it is
/// made of ordinary memory. What it holds is settled only when the stream is synchronized.
#[derive(Debug)]
pub struct HostBuffer<T> {
    memory: Arc<Memory>,
    len: usize,
    element: PhantomData<T>,
}

impl<T: Element> HostBuffer<T> {
    pub(super) fn new(device: &Device, data: &[T]) -> Result<Self, CudaError> {
        let mut buffer = Self::uninitialised(device, data.len())?;
        buffer.write(data);
        Ok(buffer)
    }

    pub(super) fn zeros(device: &Device, len: usize) -> Result<Self, CudaError> {
        let buffer = Self::uninitialised(device, len)?;
        let bytes = len * size_of::<T>();
        // SAFETY: the memory has room for as many; every Element's zero is a pattern of zero bits.
        unsafe { std::ptr::write_bytes(buffer.memory.address() as *mut u8, 0, bytes) };
        Ok(buffer)
    }

    /// Zeros in ordinary memory, for what cannot be pinned: a GPU's copies to and from it hold up
    /// the host.
    pub fn ordinary_zeros(len: usize) -> Self {
        let memory = Memory::Ordinary(OrdinaryMemory::new(len * size_of::<T>()));
        Self {
            memory: Arc::new(memory),
            len,
            element: PhantomData,
        }
    }

    fn uninitialised(device: &Device, len: usize) -> Result<Self, CudaError> {
        let _alone = device.device_wide("an allocation")?;
        let bytes = len * size_of::<T>();
        let memory = match &device.home {
            #[cfg(any(test, feature = "emulator"))]
            Home::Emulated(_) if bytes > device.pinned_bytes_max => {
                return Err(CudaError::OutOfMemory {
                    device: device.name().to_owned(),
                    bytes,
                });
            }
            #[cfg(any(test, feature = "emulator"))]
            Home::Emulated(_) => emulated_memory(device, bytes)?,
            #[cfg(feature = "cuda")]
            Home::Cuda(driver) => Memory::Pinned(driver::PinnedMemory::new(driver, bytes)?),
        };
        Ok(Self {
            memory: Arc::new(memory),
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

    /// Replaces all elements. A stream that copies from the buffer must be done with it.
    pub fn write(&mut self, data: &[T]) {
        assert_eq!(data.len(), self.len);
        let to = self.memory.address() as *mut T;
        // SAFETY: host memory for `len` elements, which `data` is no part of: nobody has a
        // reference into it.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), to, data.len()) }
    }

    /// The elements. A stream that copies to the buffer must be done with it.
    pub fn read(&self) -> Vec<T> {
        let from = self.memory.address() as *const T;
        let mut data = Vec::with_capacity(self.len);
        // SAFETY: host memory of `len` elements, each pattern of bits one, copied to as many.
        unsafe {
            std::ptr::copy_nonoverlapping(from, data.as_mut_ptr(), self.len);
            data.set_len(self.len);
        }
        data
    }

    pub(super) fn region(&self) -> Region {
        Region {
            address: self.memory.address(),
            bytes: self.len * size_of::<T>(),
            _memory: Arc::clone(&self.memory),
        }
    }
}
