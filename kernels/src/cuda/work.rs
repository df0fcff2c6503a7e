//! One piece of a stream's work, and what it touches. Made by `stream.rs`, run by a home.

use std::sync::Arc;

use super::buffer::Memory;
use super::cublaslt::Call;
#[cfg(feature = "cuda")]
use super::driver;
use super::{Arg, CudaError, Device, Grid};

/// The arguments keep their memory.
#[derive(Clone, Debug)]
pub(super) enum Work {
    Launch {
        kernel: Kernel,
        grid: Grid,
        args: Vec<Arg>,
    },
    /// Between any two of device and host; as many bytes on both sides.
    Copy {
        to: Region,
        from: Region,
    },
    Zero {
        to: Region,
    },
    /// By cuBLASLt.
    Multiply(Arc<Call>),
}

/// A part of a memory.
#[derive(Clone, Debug)]
pub(super) struct Region {
    pub(super) address: u64,
    pub(super) bytes: usize,
    pub(super) _memory: Arc<Memory>,
}

/// A kernel that was found on its device.
#[derive(Clone, Debug)]
pub(super) enum Kernel {
    #[cfg(any(test, feature = "emulator"))]
    Emulated(emulator::Kernel),
    #[cfg(feature = "cuda")]
    Cuda(Arc<driver::Function>),
}

impl Kernel {
    #[cfg(any(test, feature = "emulator"))]
    pub(super) fn emulated(&self) -> &emulator::Kernel {
        match self {
            Self::Emulated(kernel) => kernel,
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => unreachable!("a stream finds its kernels on its device"),
        }
    }

    #[cfg(feature = "cuda")]
    pub(super) fn cuda(&self) -> &driver::Function {
        match self {
            Self::Cuda(function) => function,
            #[cfg(any(test, feature = "emulator"))]
            Self::Emulated(_) => unreachable!("a stream finds its kernels on its device"),
        }
    }
}

/// What a kernel allows of a launch.
pub(super) struct Limits {
    pub(super) threads_max: u32,
    /// Bytes of its static arrays, as far as they are known.
    pub(super) shared_bytes: u32,
}

/// Fails unless the device can run `kernel` with this shape.
pub(super) fn check_shape(
    device: &Device,
    kernel: &str,
    limits: &Limits,
    grid: Grid,
) -> Result<(), CudaError> {
    let threads: u64 = grid.block.iter().map(|&n| u64::from(n)).product();
    let shared_max = device.properties().shared_bytes_max;
    let reason = if grid.grid.iter().chain(&grid.block).any(|&n| n == 0) {
        "a dimension is 0".to_owned()
    } else if grid.grid[0] > i32::MAX as u32 {
        "the first dimension of a grid is at most 2^31 - 1".to_owned()
    } else if grid.grid[1] > 65_535 || grid.grid[2] > 65_535 {
        "the second and third dimension of a grid are at most 65535".to_owned()
    } else if threads > limits.threads_max.into() {
        format!("a block has at most {} threads", limits.threads_max)
    } else if grid.block[2] > 64 {
        "the third dimension of a block is at most 64".to_owned()
    } else if grid.shared_bytes > shared_max {
        format!("a block has at most {shared_max} bytes of shared memory")
    } else if grid.shared_bytes.saturating_add(limits.shared_bytes) > shared_max {
        format!(
            "a block has at most {shared_max} bytes of shared memory, of which static arrays take \
             {}",
            limits.shared_bytes
        )
    } else {
        return Ok(());
    };
    Err(launch_error(device, kernel, grid, reason))
}

pub(super) fn launch_error(device: &Device, kernel: &str, grid: Grid, reason: String) -> CudaError {
    CudaError::Launch {
        kernel: kernel.to_owned(),
        device: device.name().to_owned(),
        grid: grid.grid,
        block: grid.block,
        shared_bytes: grid.shared_bytes,
        reason,
    }
}
