//! Streams, events and graphs of a GPU.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::{DriverError, result, sys};

use super::super::work::{Work, launch_error};
use super::super::{Arg, CudaError, Device};
use super::memory::LeftOver;
use super::{Driver, describe, ignore};

#[derive(Debug)]
pub(in crate::cuda) struct Stream {
    driver: Arc<Driver>,
    raw: sys::CUstream,
}

#[derive(Debug)]
pub(in crate::cuda) struct Event {
    driver: Arc<Driver>,
    raw: sys::CUevent,
}

/// An executable graph.
#[derive(Debug)]
pub(in crate::cuda) struct Graph {
    driver: Arc<Driver>,
    raw: sys::CUgraphExec,
}

// SAFETY: the handles may be used from every thread.
unsafe impl Send for Stream {}
// SAFETY: as above; the driver locks what it must.
unsafe impl Sync for Stream {}
// SAFETY: as above.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}
// SAFETY: as above; a launch only reads it.
unsafe impl Send for Graph {}
// SAFETY: as above.
unsafe impl Sync for Graph {}

impl Stream {
    pub(in crate::cuda) fn new(driver: &Arc<Driver>) -> Result<Self, CudaError> {
        driver.enter()?;
        // Not ordered with the driver's default stream, which cannot be captured.
        let raw = result::stream::create(result::stream::StreamKind::NonBlocking);
        Ok(Self {
            raw: raw.map_err(|error| driver.error("making a stream", error))?,
            driver: Arc::clone(driver),
        })
    }

    /// # Safety
    ///
    /// What the work touches must be valid until it is done.
    pub(in crate::cuda) unsafe fn add(
        &self,
        device: &Device,
        work: &Work,
    ) -> Result<(), CudaError> {
        self.driver.enter()?;
        match work {
            Work::Launch { kernel, grid, args } => {
                let function = kernel.cuda();
                let mut bits: Vec<u64> = args.iter().map(Arg::bits).collect();
                let mut pointers: Vec<*mut c_void> = bits
                    .iter_mut()
                    .map(|bits| std::ptr::from_mut(bits).cast())
                    .collect();
                let [x, y, z] = grid.grid;
                let [block_x, block_y, block_z] = grid.block;
                // SAFETY: the caller's promise; number and sizes of the arguments were checked by
                // `find_kernel` where the driver tells them. It copies their values.
                let launched = unsafe {
                    result::launch_kernel(
                        function.raw(),
                        (x, y, z),
                        (block_x, block_y, block_z),
                        grid.shared_bytes,
                        self.raw,
                        &mut pointers,
                    )
                };
                launched
                    .map_err(|error| launch_error(device, function.name(), *grid, describe(error)))
            }
            // Addresses of device and pinned host memory are of one space: the driver tells them
            // apart.
            // SAFETY: the caller's promise; the regions have the same length.
            Work::Copy { to, from } => unsafe {
                sys::cuMemcpyAsync(to.address, from.address, to.bytes, self.raw)
                    .result()
                    .map_err(|error| self.driver.error("a copy", error))
            },
            // SAFETY: the caller's promise.
            Work::Zero { to } => unsafe {
                result::memset_d8_async(to.address, 0, to.bytes, self.raw)
                    .map_err(|error| self.driver.error("setting memory to zero", error))
            },
            // SAFETY: the caller's promise; the runtime library's streams are the driver's.
            Work::Multiply(call) => unsafe { call.run(self.raw.cast()) },
        }
    }

    pub(in crate::cuda) fn synchronize(&self) -> Result<(), CudaError> {
        // SAFETY: the stream exists as long as this value.
        self.call("waiting for a stream", || unsafe {
            result::stream::synchronize(self.raw)
        })
    }

    pub(in crate::cuda) fn record(&self) -> Result<Event, CudaError> {
        self.driver.enter()?;
        let flags = sys::CUevent_flags_enum::CU_EVENT_DEFAULT;
        let event = Event {
            raw: result::event::create(flags)
                .map_err(|error| self.driver.error("making an event", error))?,
            driver: Arc::clone(&self.driver),
        };
        // SAFETY: both exist and are of one context.
        self.call("recording an event", || unsafe {
            result::event::record(event.raw, self.raw)
        })?;
        Ok(event)
    }

    pub(in crate::cuda) fn wait(&self, event: &Event) -> Result<(), CudaError> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both exist; the driver keeps what it needs of the event.
        self.call("waiting for an event", || unsafe {
            result::stream::wait_event(self.raw, event.raw, flags)
        })
    }

    pub(in crate::cuda) fn begin_capture(&self) -> Result<(), CudaError> {
        // What this thread must not do meanwhile is refused above, and by the driver once more;
        // others wait above, or do what concerns no stream that records.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream exists.
        self.call("beginning a capture", || unsafe {
            result::stream::begin_capture(self.raw, mode)
        })
    }

    pub(in crate::cuda) fn end_capture(&self) -> Result<Graph, CudaError> {
        self.driver.enter()?;
        let failed = |error| self.driver.error("ending a capture", error);
        // SAFETY: the stream exists, and began a capture. The graph is destroyed once.
        unsafe {
            let graph = result::stream::end_capture(self.raw).map_err(failed)?;
            let flags = sys::CUgraphInstantiate_flags(0);
            let raw = result::graph::instantiate(graph, flags);
            let destroyed = result::graph::destroy(graph);
            let graph = Graph {
                raw: raw.map_err(|error| self.driver.error("instantiating a graph", error))?,
                driver: Arc::clone(&self.driver),
            };
            destroyed.map_err(failed)?;
            Ok(graph)
        }
    }

    fn call(
        &self,
        doing: &str,
        call: impl FnOnce() -> Result<(), DriverError>,
    ) -> Result<(), CudaError> {
        self.driver.enter()?;
        call().map_err(|error| self.driver.error(doing, error))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.driver.enter().is_ok() {
            // SAFETY: made once; the driver lets its work finish.
            ignore(unsafe { result::stream::destroy(self.raw) });
        }
    }
}

impl Event {
    pub(in crate::cuda) fn synchronize(&self) -> Result<(), CudaError> {
        self.driver.enter()?;
        // SAFETY: the event exists.
        unsafe { result::event::synchronize(self.raw) }
            .map_err(|error| self.driver.error("waiting for an event", error))
    }

    pub(in crate::cuda) fn milliseconds_since(&self, earlier: &Self) -> Result<f32, CudaError> {
        self.driver.enter()?;
        // SAFETY: both exist.
        unsafe { result::event::elapsed(earlier.raw, self.raw) }
            .map_err(|error| self.driver.error("the time between events", error))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.driver.enter().is_ok() {
            // SAFETY: made once; the driver keeps what waits for it.
            ignore(unsafe { result::event::destroy(self.raw) });
        }
    }
}

impl Graph {
    pub(in crate::cuda) fn launch(&self, stream: &Stream) -> Result<(), CudaError> {
        // SAFETY: both exist; the memory is kept beside this value.
        stream.call("launching a graph", || unsafe {
            result::graph::launch(self.raw, stream.raw)
        })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        self.driver.free(LeftOver::Graph(self.raw));
    }
}
