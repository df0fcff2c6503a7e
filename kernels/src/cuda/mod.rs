//! The launch layer: devices, their memory, streams and graphs, for the rooms' CUDA launchers.
//!
//! A device has one of two homes: the emulator, which runs the kernels on the CPU (feature
//! `emulator`, and always in this crate's tests), or the CUDA driver. Everything above is the same
//! for both. Called by the rooms' `cuda.rs` and by engines that run on a device.

mod buffer;
mod device;
#[cfg(any(test, feature = "emulator"))]
mod emulated;
mod element;
mod error;
#[cfg(all(test, feature = "cuda"))]
mod fatbin;
mod stream;
#[cfg(any(test, feature = "emulator"))]
pub mod testing;
#[cfg(test)]
mod conformance;
#[cfg(test)]
mod tests;

pub use buffer::Buffer;
pub use device::{Device, Properties};
pub use element::{Element, Float};
#[cfg(any(test, feature = "emulator"))]
pub use emulator::{Order, Schedule};
pub use error::CudaError;
pub use stream::{Arg, Graph, Grid, Stream};
