//! Kernels of the embedded fatbins. A fatbin is loaded when its first kernel is asked for.

use std::collections::HashMap;
use std::ffi::CString;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError};

use cudarc::driver::{DriverError, result, sys};

use super::super::work::{Limits, check_shape};
use super::super::{Arg, CudaError, Device, Grid, fatbin};
use super::{Driver, ignore, release};

/// From this release on the driver tells a kernel's parameters.
const VERSION_OF_PARAMETERS: i32 = 12_040;

/// What is loaded on one device.
#[derive(Debug, Default)]
pub(super) struct Kernels {
    modules: HashMap<&'static str, sys::CUmodule>,
    functions: HashMap<String, Arc<Function>>,
}

/// A kernel that can be launched.
#[derive(Debug)]
pub(in crate::cuda) struct Function {
    name: String,
    raw: sys::CUfunction,
    threads_max: u32,
    /// Static shared memory.
    shared_bytes: u32,
    /// The dynamic shared memory that a launch may have as things stand.
    dynamic_shared_max: AtomicU32,
    /// Bytes of each parameter, if the driver tells.
    parameters: Option<Vec<usize>>,
}

// SAFETY: the handle may be used from every thread.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

impl Kernels {
    /// Unloads all modules, of which no work is left.
    pub(super) fn unload(&mut self, context: sys::CUcontext) {
        self.functions.clear();
        // SAFETY: the context is still retained.
        if unsafe { result::ctx::set_current(context) }.is_ok() {
            for (_, module) in self.modules.drain() {
                // SAFETY: loaded once; no function of it is left.
                ignore(unsafe { result::module::unload(module) });
            }
        }
    }
}

impl Function {
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn raw(&self) -> sys::CUfunction {
        self.raw
    }
}

impl Driver {
    /// The kernel, if it can be launched so.
    pub(in crate::cuda) fn find_kernel(
        &self,
        device: &Device,
        name: &str,
        grid: Grid,
        args: &[Arg],
    ) -> Result<Arc<Function>, CudaError> {
        self.enter()?;
        let function = self.load(name)?;
        self.check_arguments(&function, args)?;
        let limits = Limits {
            threads_max: function.threads_max,
            shared_bytes: function.shared_bytes,
        };
        check_shape(device, name, &limits, grid)?;
        if grid.shared_bytes > function.dynamic_shared_max.load(Ordering::Relaxed) {
            let bytes = self.properties.shared_bytes_max - function.shared_bytes;
            use sys::CUfunction_attribute as A;
            let attribute = A::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function belongs to a loaded module; the device has as much.
            unsafe {
                result::function::set_function_attribute(function.raw, attribute, bytes as i32)
            }
            .map_err(|error| self.error(format!("kernel {name}: shared memory"), error))?;
            function.dynamic_shared_max.store(bytes, Ordering::Relaxed);
        }
        Ok(function)
    }

    fn load(&self, name: &str) -> Result<Arc<Function>, CudaError> {
        let mut kernels = self.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = kernels.functions.get(name) {
            return Ok(Arc::clone(function));
        }
        let fatbin = fatbin::find(name).ok_or_else(|| CudaError::UnknownKernel {
            kernel: name.to_owned(),
            device: self.name.clone(),
        })?;
        let module = match kernels.modules.get(fatbin.name) {
            Some(&module) => module,
            None => {
                // SAFETY: a whole fatbin, which is there as long as the program.
                let module = unsafe { result::module::load_data(fatbin.bytes().as_ptr().cast()) }
                    .map_err(|error| self.load_error(fatbin.name, error))?;
                kernels.modules.insert(fatbin.name, module);
                module
            }
        };
        let doing = || format!("kernel {name}");
        let c_name = CString::new(name).expect("it is in the table of kernels, without a zero");
        // SAFETY: the module is loaded as long as this driver is open.
        let raw = unsafe { result::module::get_function(module, c_name) }.map_err(|error| {
            let (major, minor) = self.properties.compute_capability;
            match error.0 {
                sys::cudaError_enum::CUDA_ERROR_NOT_FOUND => CudaError::Driver {
                    device: self.name.clone(),
                    doing: doing(),
                    reason: format!("there is none for compute capability {major}.{minor}"),
                },
                _ => self.error(doing(), error),
            }
        })?;
        let attribute = |attribute| {
            // SAFETY: the function belongs to a loaded module.
            let value = unsafe { result::function::get_function_attribute(raw, attribute) };
            value
                .map(|value| value as u32)
                .map_err(|error| self.error(doing(), error))
        };
        use sys::CUfunction_attribute_enum as A;
        let function = Arc::new(Function {
            name: name.to_owned(),
            raw,
            threads_max: attribute(A::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?,
            shared_bytes: attribute(A::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?,
            dynamic_shared_max: AtomicU32::new(attribute(
                A::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
            )?),
            parameters: self
                .parameters(raw)
                .map_err(|error| self.error(doing(), error))?,
        });
        kernels
            .functions
            .insert(name.to_owned(), Arc::clone(&function));
        Ok(function)
    }

    fn load_error(&self, room: &str, error: DriverError) -> CudaError {
        use sys::cudaError_enum as E;
        let (major, minor) = self.properties.compute_capability;
        let hint = match error.0 {
            E::CUDA_ERROR_NO_BINARY_FOR_GPU => format!(
                "\nhint: the program has no kernels for compute capability {major}.{minor}: build \
                 it without ANNEAL_CUDA_ARCHS"
            ),
            E::CUDA_ERROR_INVALID_IMAGE
            | E::CUDA_ERROR_INVALID_SOURCE
            | E::CUDA_ERROR_UNSUPPORTED_PTX_VERSION => format!(
                "\nhint: the kernels may be of a newer CUDA than the driver's {}: update the \
                 NVIDIA driver (580 or later for nvcc 13)",
                release(self.version)
            ),
            _ => String::new(),
        };
        match self.error(format!("loading the kernels of {room}"), error) {
            CudaError::Driver {
                device,
                doing,
                reason,
            } => CudaError::Driver {
                device,
                doing,
                reason: reason + &hint,
            },
            other => other,
        }
    }

    /// Bytes of each parameter; `None` where the driver is too old to tell.
    fn parameters(&self, function: sys::CUfunction) -> Result<Option<Vec<usize>>, DriverError> {
        if self.version < VERSION_OF_PARAMETERS {
            return Ok(None);
        }
        let mut sizes = Vec::new();
        loop {
            let (mut offset, mut size) = (0, 0);
            // SAFETY: the function belongs to a loaded module; drivers of this version have it.
            let told = unsafe {
                sys::cuFuncGetParamInfo(function, sizes.len(), &raw mut offset, &raw mut size)
            };
            match told {
                sys::cudaError_enum::CUDA_SUCCESS => sizes.push(size),
                // Beyond the last.
                sys::cudaError_enum::CUDA_ERROR_INVALID_VALUE => return Ok(Some(sizes)),
                error => return Err(DriverError(error)),
            }
        }
    }

    fn check_arguments(&self, function: &Function, args: &[Arg]) -> Result<(), CudaError> {
        let Some(parameters) = &function.parameters else {
            return Ok(());
        };
        if parameters.len() != args.len() {
            return Err(CudaError::ArgumentCount {
                kernel: function.name.clone(),
                device: self.name.clone(),
                expected: parameters.len(),
                got: args.len(),
            });
        }
        for (index, (&expected, arg)) in parameters.iter().zip(args).enumerate() {
            if expected != arg.bytes() {
                return Err(CudaError::Argument {
                    kernel: function.name.clone(),
                    device: self.name.clone(),
                    index,
                    expected: format!("{expected} bytes"),
                    got: format!("{} bytes", arg.bytes()),
                });
            }
        }
        Ok(())
    }
}
