//! Which device a run computes on, decided before any work is done for it.

use crate::error::{Error, Result};

/// A device that this program can compute on.
#[derive(Clone, Debug)]
pub enum Place {
    Cpu,
    #[cfg(any(test, feature = "device"))]
    Gpu(kernels::cuda::Device),
}

impl Place {
    /// The device that the key `device` asks for: `auto`, `cpu`, `cuda` or `cuda:N`.
    ///
    /// # Errors
    /// [`Error::Device`] saying why it is not usable and what to do.
    pub fn open(device: &str) -> Result<Self> {
        match device {
            "cpu" => Ok(Self::Cpu),
            "auto" => automatic(),
            #[cfg(feature = "emulator")]
            "emulator" => {
                let schedule = kernels::cuda::Schedule::default();
                Ok(Self::Gpu(kernels::cuda::Device::emulator(schedule)))
            }
            other => match other.strip_prefix("cuda") {
                Some("") => gpu(other, 0),
                Some(number) => match number.strip_prefix(':').map(str::parse) {
                    Some(Ok(ordinal)) => gpu(other, ordinal),
                    _ => Err(unusable(other)),
                },
                None => Err(unusable(other)),
            },
        }
    }

    /// Memory of a GPU that is in use, by whomever; `None` for a CPU.
    ///
    /// # Errors
    /// [`Error::Device`] where it fails.
    pub fn used_bytes(&self) -> Result<Option<u64>> {
        match self {
            Self::Cpu => Ok(None),
            #[cfg(any(test, feature = "device"))]
            Self::Gpu(device) => Ok(device.used_bytes()?),
        }
    }

    /// What a GPU does at most, measured: FLOP/s of a large product in 16 bits, and bytes per
    /// second that a copy within its memory reads and writes; `None` for a CPU.
    ///
    /// # Errors
    /// [`Error::Device`] where it fails.
    pub fn ceilings(&self) -> Result<Option<(f64, f64)>> {
        match self {
            Self::Cpu => Ok(None),
            #[cfg(any(test, feature = "device"))]
            Self::Gpu(device) => {
                let ceilings = super::cuda::ceilings(device)?;
                Ok(Some((ceilings.flops, ceilings.bytes)))
            }
        }
    }

    pub fn is_cpu(&self) -> bool {
        matches!(self, Self::Cpu)
    }
}

/// A GPU where there is a driver for one: what keeps that from working must not go unnoticed and
/// train for days on the CPU. The CPU otherwise.
fn automatic() -> Result<Place> {
    #[cfg(feature = "cuda")]
    if kernels::cuda::Device::is_driver_present() {
        return gpu("auto", 0).map_err(|error| match error {
            Error::Device(text) => {
                Error::Device(format!("{text}; --device=cpu trains without a GPU"))
            }
            other => other,
        });
    }
    Ok(Place::Cpu)
}

#[cfg(feature = "cuda")]
fn gpu(_device: &str, ordinal: usize) -> Result<Place> {
    Ok(Place::Gpu(kernels::cuda::Device::cuda(ordinal)?))
}

#[cfg(not(feature = "cuda"))]
fn gpu(device: &str, _ordinal: usize) -> Result<Place> {
    Err(Error::Device(format!(
        "device={device}: not usable: this program is built for the CPU only\n\
         hint: build it with --features cuda (needs nvcc), or --device=cpu (or auto, the default)"
    )))
}

fn unusable(device: &str) -> Error {
    Error::Device(format!(
        "device={device}: not usable: this program computes on CPUs and NVIDIA GPUs\n\
         hint: --device=cpu (or auto, the default)"
    ))
}
