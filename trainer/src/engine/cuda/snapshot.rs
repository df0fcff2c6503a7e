//! Copies of parameters and moments to the host that go on while training does.
//!
//! A stream of its own copies into pinned memory. The next step's forward and backward only read
//! what is copied; the update, which writes it, waits for the copy. Pinning memory takes its time,
//! so that a thread of its own does it while the run begins.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use kernels::cuda::{CudaError, Device, Event, HostBuffer, Stream};

use super::memory::{Parameters, Precision, named};
use crate::engine::{EngineState, LossScale, PendingState};
use crate::machine::human_bytes;

/// Master weights and both moments, flat, each of the layout's elements.
type HostState = [HostBuffer<f32>; 3];

/// What copies; it holds host memory for one copy.
pub(super) struct Copier {
    stream: Stream,
    home: Arc<Home>,
    memory: HostMemory,
    /// Not told yet.
    warning: Option<String>,
}

/// Where the host memory is.
enum HostMemory {
    Nowhere,
    /// A thread makes it, and says what it could not do.
    Coming(JoinHandle<(HostState, Option<String>)>),
    /// In its home, or borrowed.
    There,
}

/// Where the host memory waits for the next copy.
#[derive(Default)]
struct Home {
    free: Mutex<Option<HostState>>,
    returned: Condvar,
}

/// Host memory out of its home; it finds back whatever happens.
struct Borrowed {
    state: Option<HostState>,
    home: Arc<Home>,
}

impl Copier {
    pub(super) fn new(device: &Device) -> Result<Self, CudaError> {
        Ok(Self {
            stream: device.stream()?,
            home: Arc::default(),
            memory: HostMemory::Nowhere,
            warning: None,
        })
    }

    /// Has host memory for copies of `elements` each made, by a thread of its own.
    pub(super) fn prepare(&mut self, elements: usize) {
        if matches!(self.memory, HostMemory::Nowhere) {
            let device = self.stream.device().clone();
            let coming = thread::spawn(move || host_state(&device, elements));
            self.memory = HostMemory::Coming(coming);
        }
    }

    /// What could not be done as it should, once.
    pub(super) fn take_warning(&mut self) -> Option<String> {
        if matches!(&self.memory, HostMemory::Coming(coming) if coming.is_finished()) {
            self.settle();
        }
        self.warning.take()
    }

    /// Waits for the thread that makes the memory, if it is at it.
    fn settle(&mut self) {
        match std::mem::replace(&mut self.memory, HostMemory::There) {
            HostMemory::Coming(coming) => {
                let made = coming.join();
                let (state, warning) = made.expect("what cannot be pinned is ordinary memory");
                self.warning = warning;
                self.home.put(Some(state));
            }
            other => self.memory = other,
        }
    }

    /// Begins a copy of what `main`'s work so far leaves: the event after which the parameters may
    /// be written again, and what waits for the copy and gives it names. Waits for the copy before
    /// until that was taken or dropped.
    pub(super) fn begin<T: Precision>(
        &mut self,
        main: &Stream,
        parameters: &Parameters<T>,
        updates: u64,
        loss_scale: Option<LossScale>,
    ) -> Result<(Arc<Event>, PendingState), CudaError> {
        self.prepare(parameters.layout.elements);
        self.settle();
        let Self { stream, home, .. } = self;
        let sources = [
            &parameters.masters,
            &parameters.exp_avg,
            &parameters.exp_avg_sq,
        ];
        let mut borrowed = Borrowed {
            state: Some(home.take()),
            home: Arc::clone(home),
        };
        stream.wait_for(main)?;
        let state = borrowed.state.iter_mut().flatten();
        for (to, from) in state.zip(sources) {
            stream.download(to, from)?;
        }
        let copied = Arc::new(stream.record()?);
        let (layout, event) = (parameters.layout.clone(), Arc::clone(&copied));
        let pending = move || {
            event.synchronize()?;
            let state = borrowed.state.as_ref().expect("there until it is dropped");
            let named = state.each_ref().map(|flat| named(&layout, &flat.read()));
            let [parameters, exp_avg, exp_avg_sq] = named;
            Ok(EngineState {
                parameters,
                exp_avg,
                exp_avg_sq,
                updates,
                loss_scale,
            })
        };
        Ok((copied, Box::new(pending)))
    }
}

impl Drop for Copier {
    /// The thread must not be left behind in the driver.
    fn drop(&mut self) {
        self.settle();
    }
}

/// Host memory for copies of `elements` each, and a line where it cannot be pinned.
fn host_state(device: &Device, elements: usize) -> (HostState, Option<String>) {
    let pinned = || device.host_zeros(elements);
    match pinned().and_then(|first| Ok([first, pinned()?, pinned()?])) {
        Ok(state) => (state, None),
        Err(error) => {
            let bytes = (3 * elements * size_of::<f32>()) as u64;
            let warning = format!(
                "checkpoints: {} of host memory cannot be pinned ({error}): each copy holds \
                 training up until it is done",
                human_bytes(bytes)
            );
            let ordinary = || HostBuffer::ordinary_zeros(elements);
            ([ordinary(), ordinary(), ordinary()], Some(warning))
        }
    }
}

impl Home {
    fn put(&self, state: Option<HostState>) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        *free = state;
        self.returned.notify_one();
    }

    /// Waits for the memory to be there.
    fn take(&self) -> HostState {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(state) = free.take() {
                return state;
            }
            let waited = self.returned.wait(free);
            free = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        self.home.put(self.state.take());
    }
}
