//! The launch layer's home on a GPU: the CUDA driver, through cudarc's bindings. Called by the
//! types of the launch layer.
//!
//! The library is looked up when a device is opened, so that programs start without one. cudarc
//! panics where it or a symbol is missing: `open` makes sure of the library and its version first.

#![expect(unsafe_code, reason = "the driver is a C library")]

mod memory;
mod module;
mod stream;

use std::mem::MaybeUninit;
use std::sync::{Arc, Mutex};

use cudarc::driver::{DriverError, result, sys};

pub(super) use self::memory::{Memory, PinnedMemory};
pub(super) use self::module::Function;
pub(super) use self::stream::{Event, Graph, Stream};
use super::recording::Captures;
use super::{CudaError, Properties};

/// The oldest driver that runs what nvcc 12.8 compiles: CUDA 12.0, driver 525. Every symbol that
/// is called without a further look at the version is in it.
const VERSION_MIN: i32 = 12_000;
const COMPUTE_CAPABILITY_MIN: (u32, u32) = (7, 5);

/// A GPU and what is loaded there.
#[derive(Debug)]
pub(super) struct Driver {
    name: String,
    device: sys::CUdevice,
    context: sys::CUcontext,
    /// 1000 major + 10 minor of the CUDA release that the driver is of.
    version: i32,
    properties: Properties,
    /// New memory holds NaN bytes.
    poisoned: bool,
    /// Of the device: nothing may be freed while one is under way.
    captures: Arc<Captures>,
    kernels: Mutex<module::Kernels>,
    /// Memory and graphs whose last handle went during a capture.
    left_over: Mutex<Vec<memory::LeftOver>>,
}

// SAFETY: the handles may be used from every thread, each of which makes the context its own
// before; the driver locks what it must.
unsafe impl Send for Driver {}
// SAFETY: as above.
unsafe impl Sync for Driver {}

impl Driver {
    pub(super) fn open(
        ordinal: usize,
        poisoned: bool,
        captures: Arc<Captures>,
    ) -> Result<(Self, Properties), CudaError> {
        let version = driver_version()?;
        let count = result::device::get_count().map_err(|error| unavailable(error, version))?;
        if ordinal >= count as usize {
            return Err(CudaError::Unavailable(format!(
                "cuda: no GPU {ordinal}: the driver has {count}, counted from 0\nhint: nvidia-smi \
                 lists them; CUDA_VISIBLE_DEVICES hides some"
            )));
        }
        let failed = |error| unavailable(error, version);
        let device = result::device::get(ordinal as i32).map_err(failed)?;
        let name = result::device::get_name(device).map_err(failed)?;
        let attribute = |attribute| {
            // SAFETY: the device is one of the driver's.
            let value = unsafe { result::device::get_attribute(device, attribute) };
            value.map(|value| value as u32).map_err(failed)
        };
        use sys::CUdevice_attribute as A;
        let properties = Properties {
            name: format!("cuda:{ordinal} ({name})"),
            compute_capability: (
                attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            shared_bytes_max: attribute(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            multiprocessors: attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        };
        check_compute_capability(&properties)?;
        // SAFETY: the device is one of the driver's; released when this value is dropped.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(failed)?;
        let driver = Self {
            name: properties.name.clone(),
            device,
            context,
            version,
            properties: properties.clone(),
            poisoned,
            captures,
            kernels: Mutex::default(),
            left_over: Mutex::default(),
        };
        driver.enter()?;
        Ok((driver, properties))
    }

    pub(super) fn version(&self) -> i32 {
        self.version
    }

    /// Makes the context the calling thread's, which every other call needs.
    pub(super) fn enter(&self) -> Result<(), CudaError> {
        // SAFETY: the context is retained as long as this value.
        unsafe { result::ctx::set_current(self.context) }
            .map_err(|error| self.error("cuCtxSetCurrent", error))
    }

    /// Waits until all work of the device is done.
    fn wait_idle(&self) -> Result<(), CudaError> {
        self.enter()?;
        result::ctx::synchronize().map_err(|error| self.error("waiting for work", error))
    }

    /// Free and in all.
    pub(super) fn memory_bytes(&self) -> Result<(u64, u64), CudaError> {
        self.enter()?;
        let memory = result::mem_get_info();
        let (free, all) = memory.map_err(|error| self.error("cuMemGetInfo", error))?;
        Ok((free as u64, all as u64))
    }

    fn error(&self, doing: impl Into<String>, error: DriverError) -> CudaError {
        CudaError::Driver {
            device: self.name.clone(),
            doing: doing.into(),
            reason: describe(error),
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.free_left_over();
        self.kernels
            .get_mut()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .unload(self.context);
        // SAFETY: retained once, and nothing of it is left: memory, streams and graphs keep this
        // value.
        ignore(unsafe { result::primary_ctx::release(self.device) });
    }
}

/// For clean-up, whose failure has nobody to go to.
fn ignore(result: Result<(), DriverError>) {
    result.ok();
}

/// Whether the driver's library is there.
pub(super) fn is_present() -> bool {
    // SAFETY: loads NVIDIA's library, whose initialisers ask for nothing.
    unsafe { sys::is_culib_present() }
}

/// The driver's version, once it is loaded and ready.
fn driver_version() -> Result<i32, CudaError> {
    if !is_present() {
        return Err(CudaError::Unavailable(
            "cuda: libcuda.so.1 was not found: this machine has no NVIDIA driver\nhint: install \
             the driver (525 or later; 580 or later for kernels of nvcc 13); in a container, pass \
             the GPUs in (--gpus all)"
                .to_owned(),
        ));
    }
    let mut version = MaybeUninit::uninit();
    // SAFETY: every driver has it, and it may be called before cuInit.
    let version = unsafe {
        sys::cuDriverGetVersion(version.as_mut_ptr())
            .result()
            .map(|()| version.assume_init())
    };
    let version = version.map_err(|error| unavailable(error, 0))?;
    check_version(version)?;
    result::init().map_err(|error| unavailable(error, version))?;
    Ok(version)
}

fn check_version(version: i32) -> Result<(), CudaError> {
    if version >= VERSION_MIN {
        return Ok(());
    }
    Err(CudaError::Unavailable(format!(
        "cuda: the driver is of CUDA {}, expected {} or later\nhint: update the NVIDIA driver to \
         525 or later (580 or later for kernels of nvcc 13)",
        release(version),
        release(VERSION_MIN),
    )))
}

fn check_compute_capability(properties: &Properties) -> Result<(), CudaError> {
    if properties.compute_capability >= COMPUTE_CAPABILITY_MIN {
        return Ok(());
    }
    let (major, minor) = properties.compute_capability;
    Err(CudaError::Unavailable(format!(
        "{}: compute capability {major}.{minor}, expected 7.5 or later (Turing)\nhint: run on the \
         CPU, or on another GPU",
        properties.name,
    )))
}

/// Why no device could be opened.
fn unavailable(error: DriverError, version: i32) -> CudaError {
    use sys::cudaError_enum as E;
    let hint = match error.0 {
        E::CUDA_ERROR_NO_DEVICE => {
            "the driver is there but no GPU: nvidia-smi says why; CUDA_VISIBLE_DEVICES hides GPUs"
        }
        E::CUDA_ERROR_STUB_LIBRARY => {
            "libcuda.so.1 is the toolkit's stub: take its folder out of LD_LIBRARY_PATH"
        }
        E::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => {
            "libcuda.so.1 and the kernel's module are of different versions: restart the machine"
        }
        E::CUDA_ERROR_SYSTEM_NOT_READY => "the machine's fabric manager is not running",
        E::CUDA_ERROR_DEVICE_UNAVAILABLE => "another process holds the GPU: see nvidia-smi",
        _ => "nvidia-smi shows whether the driver works",
    };
    CudaError::Unavailable(format!(
        "cuda: the driver (CUDA {}) failed to start: {}\nhint: {hint}",
        release(version),
        describe(error),
    ))
}

/// `12.8` for 12080.
fn release(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

/// Name and text of an error.
fn describe(error: DriverError) -> String {
    let text = error.error_string().map(|text| text.to_string_lossy());
    format!("{:?}: {}", error.0, text.unwrap_or("no description".into()))
}

#[cfg(test)]
mod tests;
