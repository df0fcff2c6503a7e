//! The launch layer's home in the emulator: work runs at once, on the calling thread, unless a
//! graph is being recorded.

#![expect(
    unsafe_code,
    reason = "memory and kernels of the emulator are reached by pointers"
)]

use std::ffi::c_void;
use std::sync::{Mutex, MutexGuard, PoisonError};

use emulator::{Kernel, Memory, Schedule};

use super::{Arg, CudaError, Device, Element, Grid, Properties};

/// What every GPU from sm_80 on gives a block.
const SHARED_BYTES_MAX: u32 = 99 << 10;

pub(super) fn properties(schedule: &Schedule) -> Properties {
    Properties {
        name: format!("emulator ({schedule:?})"),
        compute_capability: (8, 0),
        shared_bytes_max: SHARED_BYTES_MAX,
        multiprocessors: 4,
    }
}

#[derive(Debug)]
pub(super) struct Stream {
    schedule: Schedule,
    recording: Mutex<Option<Vec<Launch>>>,
}

#[derive(Clone, Debug)]
struct Launch {
    kernel: Kernel,
    grid: Grid,
    args: Vec<Arg>,
}

/// A list of launches.
#[derive(Debug)]
pub struct Recorded(Vec<Launch>);

impl Stream {
    pub(super) fn new(schedule: Schedule) -> Self {
        Self {
            schedule,
            recording: Mutex::new(None),
        }
    }

    /// # Safety
    ///
    /// As for [`super::Stream::launch`].
    pub(super) unsafe fn launch(
        &self,
        device: &Device,
        kernel: &str,
        grid: Grid,
        args: &[Arg],
    ) -> Result<(), CudaError> {
        let kernel = check(device, kernel, grid, args)?;
        let args = args.to_vec();
        let launch = Launch { kernel, grid, args };
        match &mut *self.recording() {
            Some(list) => list.push(launch),
            // SAFETY: the caller's promise; number and types were checked.
            None => unsafe { launch.run(&self.schedule) },
        }
        Ok(())
    }

    pub(super) fn begin_capture(&self) {
        let before = self.recording().replace(Vec::new());
        assert!(before.is_none(), "a capture is under way on this stream");
    }

    pub(super) fn end_capture(&self) -> Recorded {
        Recorded(self.recording().take().expect("begin_capture came first"))
    }

    pub(super) fn replay(&self, recorded: &Recorded) {
        for launch in &recorded.0 {
            // SAFETY: promised when it was recorded, and the arguments keep their memory.
            unsafe { launch.run(&self.schedule) }
        }
    }

    fn recording(&self) -> MutexGuard<'_, Option<Vec<Launch>>> {
        self.recording
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Launch {
    /// # Safety
    ///
    /// As for [`super::Stream::launch`], and the arguments must be of the kernel's types.
    unsafe fn run(&self, schedule: &Schedule) {
        let mut bits: Vec<u64> = self.args.iter().map(Arg::bits).collect();
        let mut pointers: Vec<*mut c_void> = bits
            .iter_mut()
            .map(|bits| std::ptr::from_mut(bits).cast())
            .collect();
        let Grid {
            grid,
            block,
            shared_bytes,
        } = self.grid;
        // SAFETY: the caller's promise.
        unsafe {
            let shared_bytes = shared_bytes as usize;
            self.kernel
                .launch(grid, block, shared_bytes, schedule, &mut pointers);
        }
    }
}

/// The kernel, if it can be launched so.
fn check(device: &Device, name: &str, grid: Grid, args: &[Arg]) -> Result<Kernel, CudaError> {
    let kernel = Kernel::find(name).ok_or_else(|| CudaError::UnknownKernel {
        kernel: name.to_owned(),
        device: device.name().to_owned(),
    })?;
    let signature = kernel.signature().as_bytes();
    if signature.len() != 2 * args.len() {
        return Err(CudaError::ArgumentCount {
            kernel: name.to_owned(),
            device: device.name().to_owned(),
            expected: signature.len() / 2,
            got: args.len(),
        });
    }
    for (index, (expected, arg)) in signature.chunks_exact(2).zip(args).enumerate() {
        if !fits([expected[0], expected[1]], arg.kind) {
            return Err(CudaError::Argument {
                kernel: name.to_owned(),
                device: device.name().to_owned(),
                index,
                expected: describe([expected[0], expected[1]]),
                got: describe(arg.kind),
            });
        }
    }
    check_shape(device, &kernel, grid).map(|()| kernel)
}

fn check_shape(device: &Device, kernel: &Kernel, grid: Grid) -> Result<(), CudaError> {
    let threads: u64 = grid.block.iter().map(|&n| u64::from(n)).product();
    let shared_max = device.properties().shared_bytes_max;
    let reason = if grid.grid.iter().chain(&grid.block).any(|&n| n == 0) {
        "a dimension is 0".to_owned()
    } else if grid.grid[1] > 65_535 || grid.grid[2] > 65_535 {
        "the second and third dimension of a grid are at most 65535".to_owned()
    } else if threads > kernel.threads_max().into() {
        format!("a block has at most {} threads", kernel.threads_max())
    } else if grid.shared_bytes > shared_max {
        format!("a block has at most {shared_max} bytes of shared memory")
    } else {
        return Ok(());
    };
    Err(CudaError::Launch {
        kernel: kernel.name().to_owned(),
        device: device.name().to_owned(),
        grid: grid.grid,
        block: grid.block,
        shared_bytes: grid.shared_bytes,
        reason,
    })
}

/// Whether an argument of kind `got` may be passed for a parameter of kind `expected`.
fn fits(expected: [u8; 2], got: [u8; 2]) -> bool {
    let what = match expected[0] {
        b'c' => b"cmn".contains(&got[0]),
        b'm' => b"mn".contains(&got[0]),
        _ => got[0] == expected[0],
    };
    what && (expected[1] == b'?' || got[0] == b'n' || got[1] == expected[1])
}

fn describe(kind: [u8; 2]) -> String {
    let element = match kind[1] {
        b'f' => "f32",
        b'b' => "bf16",
        b'h' => "f16",
        b'i' => "a 4-byte integer",
        b'l' => "an 8-byte integer",
        b's' => "a 2-byte integer",
        b'c' => "a byte",
        _ => "anything",
    };
    match kind[0] {
        b'c' => format!("a buffer to read of {element}"),
        b'm' => format!("a buffer to write of {element}"),
        b'n' => "null".to_owned(),
        _ => format!("{element} by value"),
    }
}

pub(super) fn upload<T: Element>(memory: &Memory, offset: usize, data: &[T]) {
    // SAFETY: the buffer made sure that the elements from `offset` on are within the memory, which
    // is aligned to 16 bytes; `data` is host memory.
    unsafe {
        let to = memory.as_ptr().cast::<T>().add(offset);
        std::ptr::copy_nonoverlapping(data.as_ptr(), to, data.len());
    }
}

pub(super) fn download<T: Element>(memory: &Memory, offset: usize, len: usize) -> Vec<T> {
    // SAFETY: as in `upload`; every pattern of bits is an Element.
    unsafe {
        let from = memory.as_ptr().cast::<T>().add(offset);
        std::slice::from_raw_parts(from, len).to_vec()
    }
}

pub(super) fn fill_zero<T: Element>(memory: &Memory, offset: usize, len: usize) {
    // SAFETY: as in `upload`.
    unsafe { std::ptr::write_bytes(memory.as_ptr().cast::<T>().add(offset), 0, len) }
}
