//! Runs the CUDA kernels of `kernels/src/*/*.cu` on the CPU, one fiber for each CUDA thread.
//!
//! The kernels are compiled by build.rs against `include/`, which stands for CUDA. A kernel that
//! breaks a rule of the machine (divergent barrier, misaligned access, …) ends the process with a
//! line on stderr that names kernel, block, thread and source line. Called by `kernels::cuda`.

#![expect(unsafe_code, reason = "the kernels and their runtime are C++")]

use std::ffi::{CStr, c_char, c_void};

/// The most shared memory of a block, static and dynamic together: what every GPU from sm_80 on
/// gives. `SHARED_BYTES_MAX` in `include/block.h`.
pub const SHARED_BYTES_MAX: u32 = 99 << 10;

/// The shared library that stands for cuBLASLt, where build.rs put it.
pub const CUBLASLT: &str = env!("EMULATOR_CUBLASLT");

/// Which of the runnable threads goes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Order {
    Forward = 0,
    Reverse = 1,
    Random = 2,
}

/// The order of everything that CUDA leaves open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Schedule {
    pub order: Order,
    /// Of the random order.
    pub seed: u32,
    /// 1: an asynchronous copy lands when it is waited for; 0: at once.
    pub late: u32,
    /// Blocks in flight on one OS thread.
    pub wave: u32,
    /// OS threads.
    pub threads: u32,
}

impl Default for Schedule {
    fn default() -> Self {
        Self {
            order: Order::Forward,
            seed: 1,
            late: 1,
            wave: 1,
            threads: 1,
        }
    }
}

#[repr(C)]
struct RawKernel {
    _opaque: [u8; 0],
}

unsafe extern "C" {
    fn emulator_kernel_after(kernel: *const RawKernel) -> *const RawKernel;
    fn emulator_kernel_name(kernel: *const RawKernel) -> *const c_char;
    fn emulator_kernel_signature(kernel: *const RawKernel) -> *const c_char;
    fn emulator_kernel_threads_max(kernel: *const RawKernel) -> u32;
    fn emulator_launch(
        kernel: *const RawKernel,
        grid: *const u32,
        block: *const u32,
        shared_bytes: usize,
        schedule: *const Schedule,
        arguments: *mut *mut c_void,
    );
    fn emulator_allocate(bytes: usize) -> *mut c_void;
    fn emulator_free(memory: *mut c_void);
}

/// Memory for kernels. It starts poisoned (every byte 0xFF: NaN in each float format), is aligned
/// to 16 bytes and lies between pages whose access ends the process; a write to the few bytes
/// between its end and the page does so after the launch.
#[derive(Debug)]
pub struct Memory {
    first: *mut u8,
}

// SAFETY: the memory belongs to the value; access goes through raw pointers.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// `None` when the machine has no more.
    pub fn new(bytes: usize) -> Option<Self> {
        // SAFETY: any size is allowed; null stands for failure.
        let first = unsafe { emulator_allocate(bytes) }.cast::<u8>();
        (!first.is_null()).then_some(Self { first })
    }

    pub fn as_ptr(&self) -> *mut u8 {
        self.first
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated there, and freed once.
        unsafe { emulator_free(self.first.cast()) }
    }
}

/// A kernel of the program.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    raw: *const RawKernel,
}

// SAFETY: kernels are constants of the program, written before main.
unsafe impl Send for Kernel {}
// SAFETY: as above; nothing changes them.
unsafe impl Sync for Kernel {}

impl Kernel {
    /// All kernels, in no particular order.
    pub fn all() -> impl Iterator<Item = Self> {
        // SAFETY: null asks for the first; what comes back is a kernel or null.
        let next = |after| unsafe { emulator_kernel_after(after) };
        std::iter::successors(Some(next(std::ptr::null())), move |raw| Some(next(*raw)))
            .take_while(|raw| !raw.is_null())
            .map(|raw| Self { raw })
    }

    pub fn find(name: &str) -> Option<Self> {
        Self::all().find(|kernel| kernel.name() == name)
    }

    pub fn name(&self) -> &'static str {
        // SAFETY: `raw` is a kernel; its name is a literal.
        unsafe { text(emulator_kernel_name(self.raw)) }
    }

    /// Two characters for each parameter: `c` pointer to const, `m` pointer to mutable, `v` value;
    /// then the type: `f` f32, `b` bf16, `h` f16, `i` 4-byte, `l` 8-byte, `s` 2-byte and `c`
    /// 1-byte integer, `?` any other.
    pub fn signature(&self) -> &'static str {
        // SAFETY: `raw` is a kernel; its signature lives as long as the program.
        unsafe { text(emulator_kernel_signature(self.raw)) }
    }

    /// The most threads that a block may have.
    pub fn threads_max(&self) -> u32 {
        // SAFETY: `raw` is a kernel.
        unsafe { emulator_kernel_threads_max(self.raw) }
    }

    /// Runs the kernel to its end. `arguments` are as for `cuLaunchKernel`: the address of each
    /// argument's value.
    ///
    /// # Safety
    ///
    /// The arguments must be of the number and types of the signature, and the kernel must touch
    /// no memory but what they point to and may be read and written.
    pub unsafe fn launch(
        &self,
        grid: [u32; 3],
        block: [u32; 3],
        shared_bytes: usize,
        schedule: &Schedule,
        arguments: &mut [*mut c_void],
    ) {
        assert!(grid.iter().chain(&block).all(|&n| n > 0), "an empty launch");
        let threads: u32 = block.iter().product();
        assert!(threads <= self.threads_max(), "{}", self.name());
        assert_eq!(
            arguments.len() * 2,
            self.signature().len(),
            "{}",
            self.name()
        );
        let (grid, block) = (grid.as_ptr(), block.as_ptr());
        // SAFETY: `raw` is a kernel, the arrays have 3 elements, the rest is the caller's promise.
        unsafe {
            let arguments = arguments.as_mut_ptr();
            emulator_launch(self.raw, grid, block, shared_bytes, schedule, arguments);
        }
    }
}

/// # Safety
///
/// `text` must point to a string that lives as long as the program.
unsafe fn text(text: *const c_char) -> &'static str {
    // SAFETY: the caller's promise.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().expect("names are ASCII")
}
