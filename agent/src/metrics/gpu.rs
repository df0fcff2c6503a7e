//! GPUs as NVIDIA's management library sees them, looked at once a second by a thread of its own:
//! its calls can hang for ever, and an answer never waits for them. No library and no GPU are
//! states like others.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nvml_wrapper::Nvml;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::event::EventSet;

use crate::status::JobGpu;

const EVERY: Duration = Duration::from_secs(1);
/// A library that was lost, or a driver that is not there yet, is asked again after this.
const AGAIN_AFTER: Duration = Duration::from_secs(60);
/// A call that takes longer hangs.
const HANGS_AFTER: Duration = Duration::from_secs(5);
/// Errors that are counted apart, and read at one look.
const XIDS_MAX: usize = 64;

/// Critical errors so far, by the GPU's index and the error's number; 0 = one without a number.
pub type Xids = BTreeMap<(u32, u64), u64>;

/// What is known of the GPUs.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Sample {
    /// Nobody has looked yet.
    #[default]
    Unknown,
    /// The machine has no NVIDIA driver.
    None,
    Seen {
        gpus: Vec<JobGpu>,
        /// `None` where the driver does not tell of errors.
        xids: Option<Xids>,
    },
    /// They were there, and the driver does not answer any more.
    Lost(String),
}

impl Sample {
    pub fn is_up(&self) -> bool {
        matches!(self, Self::Seen { .. })
    }

    pub fn gpus(&self) -> &[JobGpu] {
        match self {
            Self::Seen { gpus, .. } => gpus,
            _ => &[],
        }
    }

    pub fn xids(&self) -> Option<&Xids> {
        match self {
            Self::Seen { xids, .. } => xids.as_ref(),
            _ => None,
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
            let (mut seen, mut xids) = (false, Xids::new());
            loop {
                let wait = look_again(&mut seen, &mut xids, &|sample| {
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
            Sample::Seen { .. } if at.is_none_or(|at| at.elapsed() > HANGS_AFTER) => {
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
fn look_again(seen: &mut bool, xids: &mut Xids, tell: &dyn Fn(Sample) -> bool) -> Option<Duration> {
    let failed = |seen: bool, error: &NvmlError| match seen {
        true => Sample::Lost(error.to_string()),
        false => Sample::None,
    };
    let nvml = match Nvml::init() {
        Ok(nvml) => nvml,
        Err(error) => return tell(failed(*seen, &error)).then_some(AGAIN_AFTER),
    };
    let errors = listen(&nvml);
    loop {
        match look(&nvml) {
            Ok(gpus) => {
                *seen |= !gpus.is_empty();
                let sample = if gpus.is_empty() {
                    Sample::None
                } else {
                    let xids = errors.as_ref().map(|_| xids.clone());
                    Sample::Seen { gpus, xids }
                };
                if !tell(sample) {
                    return None;
                }
                match &errors {
                    Some(errors) => hear(errors, xids),
                    None => thread::sleep(EVERY),
                }
            }
            Err(error) => return tell(failed(*seen, &error)).then_some(AGAIN_AFTER),
        }
    }
}

/// Has the driver tell of critical errors on every GPU; `None` where it does not on one.
fn listen(nvml: &Nvml) -> Option<EventSet<'_>> {
    let mut errors = nvml.create_event_set().ok()?;
    for index in 0..nvml.device_count().ok()? {
        let device = nvml.device_by_index(index).ok()?;
        let critical = EventTypes::CRITICAL_XID_ERROR;
        errors = device.register_events(critical, errors).ok()?;
    }
    Some(errors)
}

/// Counts the errors that come until the next look is due.
fn hear(errors: &EventSet<'_>, xids: &mut Xids) {
    let until = Instant::now() + EVERY;
    for _ in 0..XIDS_MAX {
        let left = until.saturating_duration_since(Instant::now());
        let wait_ms = u32::try_from(left.as_millis()).expect("at most a second");
        // The end of the time is an error as well, and nothing else can be done about one.
        let Ok(event) = errors.wait(wait_ms) else {
            break;
        };
        let index = event.device.index().unwrap_or(u32::MAX);
        let xid = match event.event_data {
            Some(XidError::Value(xid)) => xid,
            Some(XidError::Unknown) | None => 0,
        };
        if xids.len() < XIDS_MAX || xids.contains_key(&(index, xid)) {
            *xids.entry((index, xid)).or_default() += 1;
        }
    }
    thread::sleep(until.saturating_duration_since(Instant::now()));
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
