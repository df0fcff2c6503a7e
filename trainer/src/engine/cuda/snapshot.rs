//! Copies of parameters and moments to the host that go on while training does.
//!
//! A stream of its own copies into pinned memory. The next step's forward and backward only read
//! what is copied; the update, which writes it, waits for the copy.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

use kernels::cuda::{CudaError, Device, Event, HostBuffer, Stream};

use super::memory::{Parameters, Precision, named};
use crate::engine::{EngineState, LossScale, PendingState};

/// Master weights and both moments, flat, each of the layout's elements.
type HostState = [HostBuffer<f32>; 3];

/// What copies; it holds host memory for one copy from the first on.
pub(super) struct Copier {
    stream: Stream,
    home: Arc<Home>,
    allocated: bool,
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
            allocated: false,
        })
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
        let Self { stream, home, .. } = self;
        let sources = [
            &parameters.masters,
            &parameters.exp_avg,
            &parameters.exp_avg_sq,
        ];
        let state = if self.allocated {
            home.take()
        } else {
            let zeros = vec![0.0; sources[0].len()];
            let device = main.device();
            let buffer = || device.host_buffer(&zeros);
            let state = [buffer()?, buffer()?, buffer()?];
            self.allocated = true;
            state
        };
        let mut borrowed = Borrowed {
            state: Some(state),
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

impl Home {
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
        let mut free = self
            .home
            .free
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *free = self.state.take();
        self.home.returned.notify_one();
    }
}
