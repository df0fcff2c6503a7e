//! cuBLASLt, NVIDIA's library of matrix products, looked up at run time: nothing links it, and
//! where it is missing the kernels of the room `matmul` do its work. Called by that room.
//!
//! The emulator has a library of its own behind the same functions, so all of this runs there.

#![expect(unsafe_code, reason = "the library is C")]

mod ffi;
#[cfg(any(test, feature = "cuda"))]
mod places;
mod product;

use std::ffi::CStr;
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use self::ffi::{Functions, Opaque};
pub use self::product::Algorithm;
pub(super) use self::product::Call;
pub(crate) use self::product::{Compute, Epilogue, Operands, Product};
use super::device::Home;
use super::{CudaError, Device};

/// The oldest with the epilogues that are used.
const VERSION_MIN: usize = 120_000;
/// Names a library, or its folder, to load instead of all others.
const VARIABLE: &str = "ANNEAL_CUBLASLT";
/// What a workspace begins at a multiple of, by the documentation of `cublasLtMatmul`.
pub(crate) const WORKSPACE_ALIGNMENT: u64 = 256;

/// cuBLASLt on one device.
#[derive(Debug)]
pub struct Library {
    device: Device,
    code: Code,
    handle: Opaque,
}

/// A library that is loaded, whether there is a device for it or not.
#[derive(Debug)]
struct Code {
    functions: Functions,
    path: PathBuf,
    version: usize,
    /// What the functions are part of. Never unloaded: threads and exit handlers may be in it.
    _library: ManuallyDrop<libloading::Library>,
}

// SAFETY: "thread safe" by the documentation of `cublasLtHandle_t`; descriptors belong to calls.
unsafe impl Send for Library {}
// SAFETY: as above.
unsafe impl Sync for Library {}

impl Library {
    /// The first that loads and takes the device.
    ///
    /// # Errors
    ///
    /// [`CudaError::Unavailable`] with what was tried: work can go on without.
    pub fn open(device: &Device) -> Result<Arc<Self>, CudaError> {
        let _alone = device.device_wide("loading a library")?;
        let candidates = match &device.home {
            #[cfg(any(test, feature = "emulator"))]
            Home::Emulated(_) => vec![PathBuf::from(emulator::CUBLASLT)],
            #[cfg(feature = "cuda")]
            Home::Cuda(driver) => {
                driver.enter()?;
                places::candidates(|name| std::env::var_os(name))
            }
        };
        let mut tried = Vec::new();
        for path in candidates {
            match Self::load(device, &path) {
                Ok(library) => return Ok(Arc::new(library)),
                Err(reason) => tried.push(reason),
            }
        }
        Err(CudaError::Unavailable(format!(
            "{}: cuBLASLt: {}\nhint: pip install nvidia-cublas-cu12 (nvidia-cublas for CUDA 13), \
             or {} names the library or its folder",
            device.name(),
            tried.join("; "),
            VARIABLE
        )))
    }

    fn load(device: &Device, path: &Path) -> Result<Self, String> {
        let code = Code::load(path)?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes a handle; the device's context is this thread's.
        let status = unsafe { (code.functions.create)(&raw mut handle) };
        if status != ffi::SUCCESS {
            let text = text_of(&code.functions, status);
            return Err(format!("{}: {text}", path.display()));
        }
        Ok(Self {
            device: device.clone(),
            code,
            handle,
        })
    }

    /// 10000 major + 100 minor + patch.
    pub fn version(&self) -> usize {
        self.code.version
    }

    /// As it was loaded: a path, or a name that the loader found.
    pub fn path(&self) -> &Path {
        &self.code.path
    }

    /// Of the current thread.
    #[cfg_attr(
        not(feature = "cuda"),
        expect(clippy::unnecessary_wraps, reason = "a driver can fail")
    )]
    fn enter(&self) -> Result<(), CudaError> {
        match &self.device.home {
            #[cfg(any(test, feature = "emulator"))]
            Home::Emulated(_) => Ok(()),
            #[cfg(feature = "cuda")]
            Home::Cuda(driver) => driver.enter(),
        }
    }

    fn check(&self, doing: &str, status: i32) -> Result<(), CudaError> {
        if status == ffi::SUCCESS {
            return Ok(());
        }
        Err(CudaError::Driver {
            device: self.device.name().to_owned(),
            doing: format!("cuBLASLt: {doing}"),
            reason: text_of(&self.code.functions, status),
        })
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        if self.enter().is_ok() {
            // SAFETY: created once, and calls keep the library. Nobody is left to hear of a fault.
            unsafe { (self.code.functions.destroy)(self.handle) };
        }
    }
}

impl Code {
    fn load(path: &Path) -> Result<Self, String> {
        let shown = path.display();
        // SAFETY: NVIDIA's library, or the emulator's, whose initialisers ask for nothing.
        let library = unsafe { libloading::Library::new(path) }
            .map_err(|error| format!("{shown}: {}", one_line(&error.to_string())))?;
        let functions = Functions::of(&library).map_err(|name| format!("{shown} has no {name}"))?;
        // SAFETY: takes nothing.
        let version = unsafe { (functions.version)() };
        if version < VERSION_MIN {
            return Err(format!("{shown} is of version {version}, expected 12.0"));
        }
        Ok(Self {
            functions,
            path: path.to_owned(),
            version,
            _library: ManuallyDrop::new(library),
        })
    }
}

/// What a status means.
fn text_of(functions: &Functions, status: i32) -> String {
    // SAFETY: takes any number; what it returns is a string of the library's, or null.
    let text = unsafe { (functions.status_string)(status) };
    if text.is_null() {
        return format!("status {status}");
    }
    // SAFETY: not null; the string is constant.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    format!("{} (status {status})", text.trim_end_matches('.'))
}

fn one_line(text: &str) -> String {
    text.lines().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests;
