//! The launch layer's home in the emulator: work runs on the calling thread. Called by `stream.rs`
//! and `capture.rs`.

#![expect(
    unsafe_code,
    reason = "memory and kernels of the emulator are reached by pointers"
)]

use std::ffi::c_void;

use emulator::{Kernel, Order, Schedule};

use super::capture::Node;
use super::work::{Limits, Work, check_shape};
use super::{Arg, CudaError, Device, Grid, Properties};
use crate::philox::{Philox, Stream as RandomStream};

pub(super) fn properties(schedule: &Schedule) -> Properties {
    Properties {
        name: format!("emulator ({schedule:?})"),
        compute_capability: (8, 0),
        shared_bytes_max: emulator::SHARED_BYTES_MAX,
        multiprocessors: 4,
    }
}

/// Runs a piece of work to its end.
///
/// # Safety
///
/// What it touches must be valid; see [`super::Stream::launch`].
pub(super) unsafe fn run(work: &Work, schedule: &Schedule) -> Result<(), CudaError> {
    match work {
        Work::Launch { kernel, grid, args } => {
            let mut bits: Vec<u64> = args.iter().map(Arg::bits).collect();
            let mut pointers: Vec<*mut c_void> = bits
                .iter_mut()
                .map(|bits| std::ptr::from_mut(bits).cast())
                .collect();
            let Grid {
                grid,
                block,
                shared_bytes,
            } = *grid;
            // SAFETY: number and types were checked by `find`, the rest is the caller's promise.
            unsafe {
                let shared_bytes = shared_bytes as usize;
                let kernel = kernel.emulated();
                kernel.launch(grid, block, shared_bytes, schedule, &mut pointers);
            }
        }
        // SAFETY: the caller's promise; the regions have the same length.
        Work::Copy { to, from } => unsafe {
            let (from, to) = (from.address as *const u8, (to.address as *mut u8, to.bytes));
            std::ptr::copy(from, to.0, to.1);
        },
        // SAFETY: the caller's promise.
        Work::Zero { to } => unsafe { std::ptr::write_bytes(to.address as *mut u8, 0, to.bytes) },
        // SAFETY: the caller's promise; the emulator's library has no streams.
        Work::Multiply(call) => unsafe { call.run(std::ptr::null_mut())? },
    }
    Ok(())
}

/// Runs recorded work in one of the orders that its nodes' waits allow: of those that can run, the
/// first that was recorded, the last, or one by chance.
pub(super) fn replay(nodes: &[Node], schedule: &Schedule) -> Result<(), CudaError> {
    let mut waits: Vec<usize> = nodes.iter().map(|node| node.after.len()).collect();
    let mut ready: Vec<usize> = (0..nodes.len()).filter(|&i| waits[i] == 0).collect();
    let mut followers = vec![Vec::new(); nodes.len()];
    for (i, node) in nodes.iter().enumerate() {
        for &before in &node.after {
            followers[before].push(i);
        }
    }
    let mut chance = Philox::new(schedule.seed.into(), RandomStream::Init).sequence([0; 3]);
    while !ready.is_empty() {
        ready.sort_unstable();
        let next = ready.remove(match schedule.order {
            Order::Forward => 0,
            Order::Reverse => ready.len() - 1,
            Order::Random => (chance.next_f64() * ready.len() as f64) as usize,
        });
        // SAFETY: promised when it was recorded, and the arguments keep their memory.
        unsafe { run(&nodes[next].work, schedule)? }
        for &follower in &followers[next] {
            waits[follower] -= 1;
            if waits[follower] == 0 {
                ready.push(follower);
            }
        }
    }
    Ok(())
}

/// The kernel, if it can be launched so.
pub(super) fn find(
    device: &Device,
    name: &str,
    grid: Grid,
    args: &[Arg],
) -> Result<Kernel, CudaError> {
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
    let limits = Limits {
        threads_max: kernel.threads_max(),
        // The runtime adds static arrays to the dynamic memory as it meets them.
        shared_bytes: 0,
    };
    check_shape(device, name, &limits, grid).map(|()| kernel)
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
