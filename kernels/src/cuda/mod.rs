//! The launch layer: devices, their memory, streams and graphs, for the rooms' CUDA launchers.
//!
//! A device has one of two homes: the emulator, which runs the kernels on the CPU (feature
//! `emulator`, and always in this crate's tests), or the CUDA driver (feature `cuda`). Everything
//! above is the same for both. Called by the rooms' `cuda.rs` and by engines that run on a device.

mod device;
mod buffer;
mod arg;
mod stream;
mod recording;
mod capture;
mod work;
pub mod cublaslt;
#[cfg(any(test, feature = "emulator"))]
mod emulated;
#[cfg(feature = "cuda")]
mod driver;
#[cfg(feature = "cuda")]
mod fatbin;
mod element;
mod error;
#[cfg(any(test, feature = "emulator"))]
pub mod testing;
#[cfg(test)]
mod tests;

pub use arg::{Arg, Grid};
pub use buffer::{Buffer, HostBuffer};
pub use capture::Graph;
pub use device::{Device, Properties};
pub use element::{Element, Float};
#[cfg(any(test, feature = "emulator"))]
pub use emulator::{Order, Schedule};
pub use error::CudaError;
pub use stream::{Event, Stream};
