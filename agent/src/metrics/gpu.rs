//! GPUs as NVIDIA's management library sees them, looked at once a second by a thread of its own:
//! its calls can hang for ever, and an answer never waits for them. No library and no GPU are
//! states like others.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
use nvml_wrapper::error::NvmlError;

use crate::status::JobGpu;

const EVERY: Duration = Duration::from_secs(1);
/// A library that was lost, or a driver that is not there yet, is asked again after this.
const AGAIN_AFTER: Duration = Duration::from_secs(60);
/// A call that takes longer hangs.
const HANGS_AFTER: Duration = Duration::from_secs(5);

/// What is known of the GPUs.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Sample {
    /// Nobody has looked yet.
    #[default]
    Unknown,
    /// The machine has no NVIDIA driver.
    None,
    Seen(Vec<JobGpu>),
    /// They were there, and the driver does not answer any more.
    Lost(String),
}

impl Sample {
    pub fn is_up(&self) -> bool {
        matches!(self, Self::Seen(_))
    }

    pub fn gpus(&self) -> &[JobGpu] {
        match self {
            Self::Seen(gpus) => gpus,
            _ => &[],
        }
    }
}

/// The newest look at the GPUs.
#[derive(Clone, Debug, Default)]
pub struct Gpus(Arc<Mutex<(Option<Instant>, Sample)>>);

impl Gpus {
    /// Starts to look.
    pub fn watch() -> Self {
        let gpus = Self::default();
        let newest = Arc::downgrade(&gpus.0);
        let work = move || {
            let mut seen = false;
            loop {
                let wait = look_again(&mut seen, &|sample| {
                    let Some(newest) = newest.upgrade() else {
                        return false;
                    };
                    *newest.lock().unwrap_or_else(PoisonError::into_inner) =
                        (Some(Instant::now()), sample);
                    true
                });
                match wait {
                    Some(wait) => thread::sleep(wait),
                    None => return,
                }
            }
        };
        // Without the thread nothing is known, which is a state as well.
        thread::Builder::new()
            .name("gpu".to_owned())
            .spawn(work)
            .ok();
        gpus
    }

    /// What is known now; a look that is too old is a driver that hangs.
    pub fn state(&self) -> Sample {
        let (at, sample) = &*self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match sample {
            Sample::Seen(_) if at.is_none_or(|at| at.elapsed() > HANGS_AFTER) => {
                Sample::Lost("the driver does not answer".to_owned())
            }
            other => other.clone(),
        }
    }

    /// What is wrong, if GPUs were there and are not any more.
    pub fn trouble(&self) -> Option<String> {
        match self.state() {
            Sample::Lost(why) => Some(why),
            _ => None,
        }
    }
}

/// Opens the library and looks until it fails. `None` once nobody listens, else how long to wait.
fn look_again(seen: &mut bool, tell: &dyn Fn(Sample) -> bool) -> Option<Duration> {
    let failed = |seen: bool, error: &NvmlError| match seen {
        true => Sample::Lost(error.to_string()),
        false => Sample::None,
    };
    let nvml = match Nvml::init() {
        Ok(nvml) => nvml,
        Err(error) => return tell(failed(*seen, &error)).then_some(AGAIN_AFTER),
    };
    loop {
        match look(&nvml) {
            Ok(gpus) => {
                *seen |= !gpus.is_empty();
                let sample = if gpus.is_empty() {
                    Sample::None
                } else {
                    Sample::Seen(gpus)
                };
                if !tell(sample) {
                    return None;
                }
                thread::sleep(EVERY);
            }
            Err(error) => return tell(failed(*seen, &error)).then_some(AGAIN_AFTER),
        }
    }
}

fn look(nvml: &Nvml) -> Result<Vec<JobGpu>, NvmlError> {
    let mut gpus = Vec::new();
    for index in 0..nvml.device_count()? {
        let device = nvml.device_by_index(index)?;
        // What a device does not tell is left out.
        let memory = device.memory_info().ok();
        gpus.push(JobGpu {
            index,
            uuid: device.uuid().unwrap_or_default(),
            name: device.name().unwrap_or_default(),
            util_ratio: device
                .utilization_rates()
                .ok()
                .map(|it| f64::from(it.gpu) / 100.0),
            mem_used_bytes: memory.as_ref().map(|memory| memory.used),
            mem_total_bytes: memory.as_ref().map(|memory| memory.total),
            temperature_celsius: device
                .temperature(TemperatureSensor::Gpu)
                .ok()
                .map(f64::from),
            power_watts: device
                .power_usage()
                .ok()
                .map(|milliwatts| f64::from(milliwatts) / 1e3),
            energy_joules: device
                .total_energy_consumption()
                .ok()
                .map(|mj| mj as f64 / 1e3),
        });
    }
    Ok(gpus)
}
