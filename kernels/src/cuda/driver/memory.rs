//! Memory of a GPU and pinned memory of the host.

use std::ffi::c_void;
use std::sync::{Arc, MutexGuard, PoisonError};

use cudarc::driver::{result, sys};

use super::super::{CudaError, Element};
use super::{Driver, ignore};

/// Memory of the GPU.
#[derive(Debug)]
pub(in crate::cuda) struct Memory {
    driver: Arc<Driver>,
    address: sys::CUdeviceptr,
}

/// Memory of the host that the GPU can reach.
#[derive(Debug)]
pub(in crate::cuda) struct PinnedMemory {
    driver: Arc<Driver>,
    address: u64,
}

/// What is still to be freed.
#[derive(Debug)]
pub(super) enum LeftOver {
    Device(sys::CUdeviceptr),
    Host(u64),
    Graph(sys::CUgraphExec),
}

impl Memory {
    pub(in crate::cuda) fn new(driver: &Arc<Driver>, bytes: usize) -> Result<Self, CudaError> {
        driver.enter()?;
        driver.free_left_over();
        // SAFETY: what it holds is undefined, and every pattern of bits is an Element.
        let address = unsafe { result::malloc_sync(bytes.max(1)) };
        let memory = Self {
            address: address.map_err(|error| out_of_memory(driver, error, bytes))?,
            driver: Arc::clone(driver),
        };
        if driver.poisoned {
            // SAFETY: the memory has as many bytes.
            unsafe { driver.fill(memory.address, 0xFF, bytes)? }
        }
        Ok(memory)
    }

    pub(in crate::cuda) fn address(&self) -> u64 {
        self.address
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.driver.free(LeftOver::Device(self.address));
    }
}

impl PinnedMemory {
    pub(in crate::cuda) fn new(driver: &Arc<Driver>, bytes: usize) -> Result<Self, CudaError> {
        driver.enter()?;
        driver.free_left_over();
        // SAFETY: flags 0, cached by the CPU: write-combined memory is slow to read.
        let address = unsafe { result::malloc_host(bytes.max(1), 0) };
        Ok(Self {
            address: address.map_err(|error| out_of_memory(driver, error, bytes))? as u64,
            driver: Arc::clone(driver),
        })
    }

    pub(in crate::cuda) fn address(&self) -> u64 {
        self.address
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        self.driver.free(LeftOver::Host(self.address));
    }
}

fn out_of_memory(driver: &Driver, error: cudarc::driver::DriverError, bytes: usize) -> CudaError {
    if error.0 == sys::cudaError_enum::CUDA_ERROR_OUT_OF_MEMORY {
        return CudaError::OutOfMemory {
            device: driver.name.clone(),
            bytes,
        };
    }
    driver.error(format!("allocating {bytes} bytes"), error)
}

impl Driver {
    /// Copies `data` to `to` when all work is done.
    ///
    /// # Safety
    ///
    /// The device's memory at `to` must have room for it.
    pub(in crate::cuda) unsafe fn upload<T: Element>(
        &self,
        to: u64,
        data: &[T],
    ) -> Result<(), CudaError> {
        self.wait_idle()?;
        if data.is_empty() {
            return Ok(());
        }
        // SAFETY: the caller's promise; done when it returns.
        unsafe { result::memcpy_htod_sync(to, data) }
            .map_err(|error| self.error("an upload", error))?;
        // From pageable memory the last part may still be on its way.
        self.wait_idle()
    }

    /// The `len` elements at `from` when all work is done.
    ///
    /// # Safety
    ///
    /// The device's memory at `from` must hold them.
    pub(in crate::cuda) unsafe fn download<T: Element>(
        &self,
        from: u64,
        len: usize,
    ) -> Result<Vec<T>, CudaError> {
        self.wait_idle()?;
        let mut data = Vec::<T>::with_capacity(len);
        if len > 0 {
            let to = data.as_mut_ptr().cast::<c_void>();
            // SAFETY: the caller's promise; `to` has room for as many, all written when it returns.
            unsafe {
                sys::cuMemcpyDtoH_v2(to, from, len * size_of::<T>())
                    .result()
                    .map_err(|error| self.error("a download", error))?;
                data.set_len(len);
            }
        }
        Ok(data)
    }

    /// Sets bytes when all work is done.
    ///
    /// # Safety
    ///
    /// The device's memory at `to` must have as many.
    pub(in crate::cuda) unsafe fn fill(
        &self,
        to: u64,
        byte: u8,
        bytes: usize,
    ) -> Result<(), CudaError> {
        self.wait_idle()?;
        if bytes > 0 {
            // SAFETY: the caller's promise.
            unsafe { result::memset_d8_sync(to, byte, bytes) }
                .map_err(|error| self.error("setting memory", error))?;
        }
        self.wait_idle()
    }

    /// Frees memory when all work is done. While anybody records, it is kept for later: a drop
    /// must not wait for that.
    pub(super) fn free(&self, memory: LeftOver) {
        self.left_over().push(memory);
        self.free_left_over();
    }

    pub(super) fn free_left_over(&self) {
        if self.left_over().is_empty() {
            return;
        }
        let Some(_alone) = self.captures.try_device_wide() else {
            return;
        };
        if self.enter().is_err() {
            return;
        }
        let left_over = std::mem::take(&mut *self.left_over());
        // A failure of work before is reported where its stream is waited for, and the memory of a
        // lost context is gone with it.
        ignore(result::ctx::synchronize());
        for memory in left_over {
            // SAFETY: made so, its last handle is gone, and no work is left that uses it.
            ignore(unsafe {
                match memory {
                    LeftOver::Device(address) => result::free_sync(address),
                    LeftOver::Host(address) => result::free_host(address as *mut c_void),
                    LeftOver::Graph(graph) => result::graph::exec_destroy(graph),
                }
            });
        }
    }

    fn left_over(&self) -> MutexGuard<'_, Vec<LeftOver>> {
        self.left_over
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
