//! Whether a device does what the emulator says: micro-kernels, one for each wrapper of
//! `common/device.cuh` and each fragment layout, and what they gave where they were last recorded.
//! Tests alone; `bench/gpu.sh run conformance` runs them on a GPU.

mod cases;
mod tests;
