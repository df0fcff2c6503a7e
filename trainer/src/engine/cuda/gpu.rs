//! What a GPU means to a run: the precision it computes in, its peak rate, the models it takes.

use std::sync::Arc;

use kernels::attention::cuda::{DROPPED_WEIGHTS_MAX, HEAD_SIZE_MAX};
use kernels::cuda::cublaslt::Library;
use kernels::cuda::{CudaError, Device, Float, Properties, Stream};
use kernels::layernorm::cuda::CHANNELS_MAX;
use kernels::matmul;
use kernels::matmul::cuda::products::{Kind, Pick, Products, Task};

use crate::engine::plan::Dtype;
use crate::engine::{Shape, measured_peak};
use crate::error::{Error, Result};
use crate::model::ModelConfig;

/// Dense rates of 16-bit products with sums in fp32 by the data sheets, TFLOP/s; the first whose
/// words are all in the name.
const PEAKS: [(&str, f64); 25] = [
    ("GB200", 2500.0),
    ("B200", 2250.0),
    ("GH200", 989.0),
    ("H200", 989.0),
    ("H100 PCIe", 756.0),
    ("H100 NVL", 835.0),
    ("H100", 989.0),
    ("H20", 148.0),
    ("A100", 312.0),
    ("A30", 165.0),
    ("A10G", 70.0),
    ("A10", 125.0),
    ("A40", 149.7),
    ("RTX A6000", 154.8),
    ("RTX A4000", 76.7),
    ("L40S", 362.0),
    ("L40", 181.0),
    ("L4", 121.0),
    ("T4", 65.0),
    ("V100", 125.0),
    ("RTX 5090", 209.5),
    ("RTX 4090", 165.2),
    ("RTX 3090 Ti", 80.0),
    ("RTX 3090", 71.0),
    ("RTX 6000 Ada", 364.2),
];
/// Whose clock and power are others than the card's of the same name.
const NOT_THE_CARD: [&str; 3] = ["Laptop", "Max-Q", "D"];
/// TF32's rate as a share of that of 16 bits, on every GPU that has it.
const TF32_SHARE: f64 = 0.5;

/// The type of activations that the key `dtype` asks for: `auto` is bf16 where the GPU has it, else
/// fp16.
///
/// # Errors
/// [`Error::Config`] where the GPU does not have it.
pub(super) fn precision(properties: &Properties, dtype: &str) -> Result<Dtype> {
    let has_bf16 = properties.compute_capability >= (8, 0);
    match dtype {
        "float32" => Ok(Dtype::F32),
        "float16" => Ok(Dtype::F16),
        "bfloat16" if !has_bf16 => Err(Error::config(format!(
            "dtype=bfloat16: {} has none, that begins with compute capability 8.0\n\
             hint: --dtype=float16 (or auto)",
            properties.name
        ))),
        _ if has_bf16 => Ok(Dtype::BF16),
        _ => Ok(Dtype::F16),
    }
}

/// Whether the kernels take a model and a batch.
///
/// # Errors
/// [`Error::Config`] with the limit that it breaks.
pub(super) fn check(model: &ModelConfig, shape: Shape, dropout: bool) -> Result<()> {
    let mut faults = Vec::new();
    let mut limit = |holds: bool, text: String| {
        if !holds {
            faults.push(text);
        }
    };
    let (n_embd, head_size) = (model.n_embd, model.n_embd / model.n_head);
    limit(
        n_embd <= CHANNELS_MAX,
        format!("n_embd: expected at most {CHANNELS_MAX} on a GPU, got {n_embd}"),
    );
    limit(
        head_size <= HEAD_SIZE_MAX,
        format!("n_embd / n_head: expected at most {HEAD_SIZE_MAX} on a GPU, got {head_size}"),
    );
    let weights = shape.batch_size * model.n_head * shape.block_size.pow(2);
    limit(
        !dropout || weights <= DROPPED_WEIGHTS_MAX,
        format!(
            "dropout: batch_size x n_head x block_size² is {weights}, expected at most \
             {DROPPED_WEIGHTS_MAX} with dropout\nhint: a smaller batch_size"
        ),
    );
    if faults.is_empty() {
        Ok(())
    } else {
        Err(Error::Config(faults))
    }
}

/// The data sheet's rate of 16-bit products of a GPU of this name, FLOP/s.
fn data_sheet(name: &str) -> Option<f64> {
    let words: Vec<&str> = name.split([' ', '-', '(', ')', '_']).collect();
    if NOT_THE_CARD.iter().any(|word| words.contains(word)) {
        return None;
    }
    let is_it = |key: &str| key.split(' ').all(|word| words.contains(&word));
    let known = PEAKS.iter().find(|(key, _)| is_it(key));
    known.map(|(_, tflops)| tflops * 1e12)
}

/// Peak rate in FLOP/s: the data sheet's for 16 bits and for TF32 where that is used; measured for
/// full fp32 and for GPUs that are not known here.
pub(super) fn peak_flops<T: Float>(
    device: &Device,
    products: &Products<T>,
) -> std::result::Result<f64, CudaError> {
    if device.free_bytes()?.is_none() {
        // The emulator computes on the host.
        return Ok(measured_peak());
    }
    let has_tf32 = products.uses_tf32() && device.properties().compute_capability >= (8, 0);
    let share = match size_of::<T>() {
        2 => Some(1.0),
        _ => has_tf32.then_some(TF32_SHARE),
    };
    match (data_sheet(device.name()), share) {
        (Some(rate), Some(share)) => Ok(rate * share),
        _ => measured::<T>(device, products.library(), products.uses_tf32()),
    }
}

/// Rates that nothing on a device exceeds, measured.
pub(in crate::engine) struct Ceilings {
    /// FLOP/s of a large product in bf16, or fp16 where the GPU has no other.
    pub(in crate::engine) flops: f64,
    /// Bytes per second, read and written, of a copy within the device's memory.
    pub(in crate::engine) bytes: f64,
}

/// Measures a device.
///
/// # Errors
/// Where it fails.
pub(in crate::engine) fn ceilings(device: &Device) -> std::result::Result<Ceilings, CudaError> {
    // Without it the rate is that of the program's own kernels.
    let library = match device.free_bytes()? {
        Some(_) => Library::open(device).ok(),
        None => None,
    };
    let flops = match precision(device.properties(), "auto") {
        Ok(Dtype::BF16) => measured::<half::bf16>(device, library.as_ref(), false)?,
        _ => measured::<half::f16>(device, library.as_ref(), false)?,
    };
    Ok(Ceilings {
        flops,
        bytes: bandwidth(device)?,
    })
}

/// Bytes per second, read and written, of a copy of what fits no cache.
fn bandwidth(device: &Device) -> std::result::Result<f64, CudaError> {
    // The emulator copies on the host.
    let emulated = device.free_bytes()?.is_none();
    let elements = if emulated { 1 << 18 } else { 1 << 28 };
    let from = device.alloc_zeros::<f32>(elements)?;
    let mut to = device.alloc::<f32>(elements)?;
    let stream = device.stream()?;
    let seconds = best_seconds(&stream, || stream.copy(&mut to, &from))?;
    Ok(2.0 * (elements * size_of::<f32>()) as f64 / seconds)
}

/// Rate of a large product: the best of a few, by whoever computes it fastest.
fn measured<T: Float>(
    device: &Device,
    library: Option<&Arc<Library>>,
    tf32: bool,
) -> std::result::Result<f64, CudaError> {
    // The emulator takes its time.
    let size = if device.free_bytes()?.is_none() {
        128
    } else {
        4096
    };
    let dims = matmul::Dims {
        m: size,
        k: size,
        n: size,
    };
    let mut products = Products::<T>::new(device, library.cloned(), tf32)?;
    let kind = Kind::Forward {
        bias: false,
        residual: false,
    };
    if library.is_some() {
        products.choose(device, &[Task { kind, dims }], Pick::Fastest)?;
    }
    let stream = device.stream()?;
    // Zeros would cost less power, and so run faster, than what a run computes on.
    let values = (0..size * size).map(|i| T::from_f64((i * 7 % 251) as f64 / 251.0 - 0.5));
    let x = device.upload(&values.collect::<Vec<_>>())?;
    let mut out = device.alloc::<T>(size * size)?;
    let seconds = best_seconds(&stream, || {
        products.forward(&stream, &mut out, &x, &x, None, None, dims)
    })?;
    Ok(dims.flops() as f64 / seconds)
}

/// The shortest of a few repetitions of what `work` adds to the stream.
fn best_seconds(
    stream: &Stream,
    mut work: impl FnMut() -> std::result::Result<(), CudaError>,
) -> std::result::Result<f64, CudaError> {
    const REPEATS: usize = 5;
    let mut best = f32::INFINITY;
    for _ in 0..REPEATS {
        let begin = stream.record()?;
        work()?;
        let end = stream.record()?;
        stream.synchronize()?;
        best = best.min(end.milliseconds_since(&begin)?);
    }
    Ok(f64::from(best) / 1e3)
}

#[cfg(test)]
mod tests;
