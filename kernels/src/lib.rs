//! The operations of a GPT, one room each: formula and contract, CPU code, tests.
//!
//! Nothing here knows of models, files or configs: slices, shapes and numbers come in. Results do
//! not depend on the number of threads: work is cut into pieces of fixed size, and sums have a
//! fixed order.

pub mod buffer;
pub mod philox;
pub mod simd;
#[cfg(any(test, feature = "device"))]
pub mod cuda;
#[cfg(test)]
mod conformance;
pub mod gelu;
pub mod dropout;
pub mod layernorm;
pub mod embedding;
pub mod matmul;
pub mod attention;
pub mod global_norm;
#[cfg(any(test, feature = "device"))]
pub mod controller;
#[cfg(any(test, feature = "device"))]
pub mod batch;
#[cfg(any(test, feature = "device"))]
pub mod decode;
pub mod cross_entropy;
pub mod adamw;
