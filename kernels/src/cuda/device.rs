//! A device and what a launcher needs to know of it.

use std::collections::HashSet;
#[cfg(feature = "cuda")]
use std::sync::OnceLock;
use std::sync::{Arc, Mutex};

#[cfg(feature = "cuda")]
use super::driver;
#[cfg(any(test, feature = "emulator"))]
use super::emulated;
use super::recording::{Captures, DeviceWide};
use super::{Buffer, CudaError, Element, HostBuffer, Stream};

/// A device that runs kernels. Cloning gives another handle of the same device.
#[derive(Clone, Debug)]
pub struct Device {
    pub(super) home: Home,
    properties: Arc<Properties>,
    pub(super) captures: Arc<Captures>,
    /// Kernels and libraries' code that ran outside captures, by name: they are loaded.
    pub(super) loaded: Arc<Mutex<HashSet<String>>>,
    /// Of a single allocation of host memory on the emulator.
    #[cfg(any(test, feature = "emulator"))]
    pub(super) pinned_bytes_max: usize,
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
    #[cfg(feature = "cuda")]
    Cuda(Arc<driver::Driver>),
}

impl Device {
    /// The emulator. It stands for a small GPU of compute capability 8.0 with the shared memory of
    /// an 8.6.
    #[cfg(any(test, feature = "emulator"))]
    pub fn emulator(schedule: emulator::Schedule) -> Self {
        Self {
            home: Home::Emulated(schedule),
            properties: Arc::new(emulated::properties(&schedule)),
            captures: Arc::default(),
            loaded: Arc::default(),
            pinned_bytes_max: usize::MAX,
        }
    }

    /// The same emulator, which refuses to allocate more host memory at a time, as drivers do where
    /// what may be locked is limited.
    #[cfg(any(test, feature = "emulator"))]
    #[must_use]
    pub fn with_pinned_bytes_max(self, pinned_bytes_max: usize) -> Self {
        Self {
            pinned_bytes_max,
            ..self
        }
    }

    /// The GPU with this number, counted as the driver does (CUDA_VISIBLE_DEVICES changes it).
    ///
    /// # Errors
    ///
    /// [`CudaError::Unavailable`] when the driver, the GPU or what it must be able to do is
    /// missing, with a hint.
    #[cfg(feature = "cuda")]
    pub fn cuda(ordinal: usize) -> Result<Self, CudaError> {
        Self::open(ordinal, false)
    }

    /// Whether this machine has an NVIDIA driver, in whatever state.
    #[cfg(feature = "cuda")]
    pub fn is_driver_present() -> bool {
        driver::is_present()
    }

    /// As [`Self::cuda`]; `poisoned`: new memory holds NaN bytes, as on the emulator.
    #[cfg(feature = "cuda")]
    pub(super) fn open(ordinal: usize, poisoned: bool) -> Result<Self, CudaError> {
        // Handles of one GPU share its context, and so what must not happen during captures.
        static CAPTURES: OnceLock<Arc<Captures>> = OnceLock::new();
        let captures = Arc::clone(CAPTURES.get_or_init(Arc::default));
        let (driver, properties) = driver::Driver::open(ordinal, poisoned, Arc::clone(&captures))?;
        Ok(Self {
            home: Home::Cuda(Arc::new(driver)),
            properties: Arc::new(properties),
            captures,
            loaded: Arc::default(),
            #[cfg(any(test, feature = "emulator"))]
            pinned_bytes_max: usize::MAX,
        })
    }

    pub fn properties(&self) -> &Properties {
        &self.properties
    }

    pub fn name(&self) -> &str {
        &self.properties.name
    }

    /// Bytes that a new buffer begins at a multiple of, as far as matters to anybody: on a GPU more
    /// than any kernel asks for.
    pub(crate) fn alignment(&self) -> u32 {
        match &self.home {
            #[cfg(any(test, feature = "emulator"))]
            Home::Emulated(_) => 16,
            #[cfg(feature = "cuda")]
            Home::Cuda(_) => 128,
        }
    }

    /// The CUDA release that the driver is of, 1000 major + 10 minor; 0 on the emulator.
    pub fn driver_version(&self) -> i32 {
        match &self.home {
            #[cfg(any(test, feature = "emulator"))]
            Home::Emulated(_) => 0,
            #[cfg(feature = "cuda")]
            Home::Cuda(driver) => driver.version(),
        }
    }

    /// A number for the machine code of this program's products; 0 on the emulator.
    pub fn kernels_hash(&self) -> u64 {
        match &self.home {
            #[cfg(any(test, feature = "emulator"))]
            Home::Emulated(_) => 0,
            #[cfg(feature = "cuda")]
            Home::Cuda(_) => super::fatbin::hash(&["matmul", "gelu"]),
        }
    }

    /// Memory that can still be allocated, in bytes; `None` on the emulator, whose memory is the
    /// host's.
    pub fn free_bytes(&self) -> Result<Option<u64>, CudaError> {
        Ok(self.memory_bytes()?.map(|(free, _)| free))
    }

    /// Memory of the device in use, by whomever; `None` on the emulator.
    pub fn used_bytes(&self) -> Result<Option<u64>, CudaError> {
        Ok(self.memory_bytes()?.map(|(free, all)| all - free))
    }

    /// Free and in all.
    fn memory_bytes(&self) -> Result<Option<(u64, u64)>, CudaError> {
        match &self.home {
            #[cfg(any(test, feature = "emulator"))]
            Home::Emulated(_) => Ok(None),
            #[cfg(feature = "cuda")]
            Home::Cuda(driver) => driver.memory_bytes().map(Some),
        }
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

    /// Host memory for [`Stream::upload`] and [`Stream::download`] that holds a copy of `data`.
    pub fn host_buffer<T: Element>(&self, data: &[T]) -> Result<HostBuffer<T>, CudaError> {
        HostBuffer::new(self, data)
    }

    /// The same with `len` zeros.
    pub fn host_zeros<T: Element>(&self, len: usize) -> Result<HostBuffer<T>, CudaError> {
        HostBuffer::zeros(self, len)
    }

    /// Begins what concerns the whole device, once nobody records; it lasts as long as what is
    /// returned. Fails where this thread records: a capture cannot hold `what`, and the driver
    /// would give it up.
    pub(super) fn device_wide(&self, what: &str) -> Result<DeviceWide<'_>, CudaError> {
        let begun = self.captures.device_wide();
        begun.ok_or_else(|| self.capture_error(format!("{what} cannot be recorded")))
    }

    pub(super) fn capture_error(&self, reason: impl Into<String>) -> CudaError {
        CudaError::Capture {
            device: self.name().to_owned(),
            reason: reason.into(),
        }
    }
}
