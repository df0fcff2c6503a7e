//! Streams of work, and events that order them.

use std::sync::{Mutex, MutexGuard, PoisonError};
#[cfg(any(test, feature = "emulator"))]
use std::time::Instant;

use super::capture::{Branch, Capture, GraphHome};
use super::device::Home;
#[cfg(feature = "cuda")]
use super::driver;
#[cfg(any(test, feature = "emulator"))]
use super::emulated;
use super::work::{Kernel, Work};
use super::{Arg, Buffer, CudaError, Device, Element, Graph, Grid, HostBuffer};

/// A queue of work; each piece starts when the one before is done.
#[derive(Debug)]
pub struct Stream {
    device: Device,
    home: StreamHome,
    /// Its place in the capture that it takes part in.
    branch: Mutex<Option<Branch>>,
}

#[derive(Debug)]
enum StreamHome {
    /// Work runs at once, on the calling thread.
    #[cfg(any(test, feature = "emulator"))]
    Emulated,
    #[cfg(feature = "cuda")]
    Cuda(driver::Stream),
}

/// A point in a stream's work, which other streams can wait for.
#[derive(Debug)]
pub struct Event {
    device: Device,
    home: EventHome,
    /// In a capture.
    branch: Option<Branch>,
}

#[derive(Debug)]
enum EventHome {
    #[cfg(any(test, feature = "emulator"))]
    Emulated(Instant),
    #[cfg(feature = "cuda")]
    Cuda(driver::Event),
}

impl Stream {
    pub(super) fn new(device: &Device) -> Result<Self, CudaError> {
        let home = match &device.home {
            #[cfg(any(test, feature = "emulator"))]
            Home::Emulated(_) => StreamHome::Emulated,
            #[cfg(feature = "cuda")]
            Home::Cuda(driver) => StreamHome::Cuda(driver::Stream::new(driver)?),
        };
        Ok(Self {
            device: device.clone(),
            home,
            branch: Mutex::new(None),
        })
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Adds a launch of `kernel`, which has the name of its `KERNEL` line.
    ///
    /// # Errors
    ///
    /// When there is no such kernel, the arguments are not of its number and types, the device
    /// cannot run the shape, or the kernel's first launch would be recorded. What goes wrong while
    /// it runs is reported by a later call.
    ///
    /// # Safety
    ///
    /// With these arguments the kernel must stay within the buffers it was given, and no other
    /// stream may write what it uses until it is done.
    #[expect(unsafe_code, reason = "a kernel's accesses cannot be checked")]
    pub unsafe fn launch(&self, kernel: &str, grid: Grid, args: &[Arg]) -> Result<(), CudaError> {
        let work = || {
            let kernel = match &self.device.home {
                #[cfg(any(test, feature = "emulator"))]
                Home::Emulated(_) => {
                    Kernel::Emulated(emulated::find(&self.device, kernel, grid, args)?)
                }
                #[cfg(feature = "cuda")]
                Home::Cuda(driver) => {
                    Kernel::Cuda(driver.find_kernel(&self.device, kernel, grid, args)?)
                }
            };
            let args = args.to_vec();
            Ok(Work::Launch { kernel, grid, args })
        };
        // SAFETY: the caller's promise; the home checked what it can.
        unsafe { self.add_code(kernel, work) }
    }

    /// Adds a copy between buffers of the same length in the memory of the device.
    pub fn copy<T: Element>(&self, to: &mut Buffer<T>, from: &Buffer<T>) -> Result<(), CudaError> {
        assert_eq!(to.len(), from.len());
        let (to, from) = (to.region(), from.region());
        let apart = to.address + to.bytes as u64 <= from.address
            || from.address + from.bytes as u64 <= to.address;
        assert!(apart, "a copy onto itself");
        self.add_copy(Work::Copy { to, from })
    }

    /// Adds a copy from the host. A graph copies what `from` holds when the graph runs.
    pub fn upload<T: Element>(
        &self,
        to: &mut Buffer<T>,
        from: &HostBuffer<T>,
    ) -> Result<(), CudaError> {
        assert_eq!(to.len(), from.len());
        let (to, from) = (to.region(), from.region());
        self.add_copy(Work::Copy { to, from })
    }

    /// Adds a copy to the host, which `to.read()` shows after [`Stream::synchronize`].
    pub fn download<T: Element>(
        &self,
        to: &mut HostBuffer<T>,
        from: &Buffer<T>,
    ) -> Result<(), CudaError> {
        assert_eq!(to.len(), from.len());
        let (to, from) = (to.region(), from.region());
        self.add_copy(Work::Copy { to, from })
    }

    /// Adds that every byte of `to` becomes zero.
    pub fn zero<T: Element>(&self, to: &mut Buffer<T>) -> Result<(), CudaError> {
        self.add_copy(Work::Zero { to: to.region() })
    }

    #[expect(unsafe_code, reason = "copies run as launches do")]
    fn add_copy(&self, work: Work) -> Result<(), CudaError> {
        if let Work::Copy { to, .. } | Work::Zero { to } = &work
            && to.bytes == 0
        {
            return Ok(());
        }
        // SAFETY: the regions keep their memory, lie within it and have the same length.
        unsafe { self.add(work) }
    }

    /// Adds work that runs `code`, a kernel or a library's, of which each has its own name. Drivers
    /// load code when it is first launched, which concerns the whole device.
    ///
    /// # Safety
    ///
    /// As [`Self::add`].
    #[expect(unsafe_code, reason = "runs kernels")]
    pub(super) unsafe fn add_code(
        &self,
        code: &str,
        work: impl FnOnce() -> Result<Work, CudaError>,
    ) -> Result<(), CudaError> {
        let loaded = || {
            let loaded = self.device.loaded.lock();
            loaded.unwrap_or_else(PoisonError::into_inner)
        };
        if loaded().contains(code) {
            // SAFETY: the caller's promise.
            return unsafe { self.add(work()?) };
        }
        let what = format!("the first launch of {code}, which loads it,");
        let _alone = self.device.device_wide(&what)?;
        // SAFETY: the caller's promise.
        unsafe { self.add(work()?)? }
        loaded().insert(code.to_owned());
        Ok(())
    }

    /// # Safety
    ///
    /// What the work touches must be valid until it is done: see [`Stream::launch`].
    #[expect(unsafe_code, reason = "runs kernels")]
    unsafe fn add(&self, work: Work) -> Result<(), CudaError> {
        let mut branch = self.branch();
        match (&self.home, &self.device.home) {
            #[cfg(any(test, feature = "emulator"))]
            (StreamHome::Emulated, Home::Emulated(schedule)) => {
                if branch.is_none() {
                    // SAFETY: the caller's promise.
                    unsafe { emulated::run(&work, schedule)? }
                }
            }
            // The driver knows which of its streams record.
            #[cfg(feature = "cuda")]
            // SAFETY: the caller's promise.
            (StreamHome::Cuda(stream), _) => unsafe { stream.add(&self.device, &work)? },
            #[cfg(all(feature = "cuda", any(test, feature = "emulator")))]
            _ => unreachable!("a stream has its device's home"),
        }
        if let Some(branch) = &mut *branch {
            branch.push(work);
        }
        Ok(())
    }

    /// Waits until all work of the stream is done.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        let _alone = self.device.device_wide("synchronize")?;
        match &self.home {
            #[cfg(any(test, feature = "emulator"))]
            StreamHome::Emulated => Ok(()),
            #[cfg(feature = "cuda")]
            StreamHome::Cuda(stream) => stream.synchronize(),
        }
    }

    /// The point that the stream's work has come to.
    pub fn record(&self) -> Result<Event, CudaError> {
        let branch = self.branch().clone();
        let home = match &self.home {
            #[cfg(any(test, feature = "emulator"))]
            StreamHome::Emulated => EventHome::Emulated(Instant::now()),
            #[cfg(feature = "cuda")]
            StreamHome::Cuda(stream) => EventHome::Cuda(stream.record()?),
        };
        Ok(Event {
            device: self.device.clone(),
            home,
            branch,
        })
    }

    /// What is added from now on starts when the work before `event` is done.
    ///
    /// A stream that waits for an event of a capture takes part in it until it ends; by then the
    /// capture's first stream must have waited for the other's work in its turn.
    ///
    /// # Errors
    ///
    /// When the event and the stream do not belong to the same capture, if to any.
    pub fn wait(&self, event: &Event) -> Result<(), CudaError> {
        let mut branch = self.branch();
        let refuse = |reason: &str| Err(self.device.capture_error(reason));
        match (&mut *branch, &event.branch) {
            (None, None) => {}
            (Some(_), None) => return refuse("the event was recorded outside the capture"),
            (_, Some(other)) if other.capture.has_ended() => {
                return refuse("the event belongs to a capture that has ended");
            }
            (None, Some(other)) => *branch = Some(other.clone()),
            (Some(own), Some(other)) => {
                if !std::sync::Arc::ptr_eq(&own.capture, &other.capture) {
                    return refuse("the event belongs to another capture");
                }
                own.wait_for(&other.after);
            }
        }
        match (&self.home, &event.home) {
            #[cfg(any(test, feature = "emulator"))]
            (StreamHome::Emulated, EventHome::Emulated(_)) => Ok(()),
            #[cfg(feature = "cuda")]
            (StreamHome::Cuda(stream), EventHome::Cuda(event)) => stream.wait(event),
            #[cfg(all(feature = "cuda", any(test, feature = "emulator")))]
            _ => panic!("the event is of another device"),
        }
    }

    /// What is added from now on starts when all work of `other` so far is done: `side.wait_for(
    /// main)` forks, `main.wait_for(side)` joins.
    pub fn wait_for(&self, other: &Self) -> Result<(), CudaError> {
        self.wait(&other.record()?)
    }

    /// Records what `work` adds to the stream, and to streams that wait for it, instead of running
    /// it. Memory cannot be allocated or read meanwhile, and nothing is loaded: each kernel must
    /// have run before. Other threads wait with what concerns the whole device.
    pub fn capture(
        &self,
        work: impl FnOnce(&Self) -> Result<(), CudaError>,
    ) -> Result<Graph, CudaError> {
        assert!(
            !self.is_capturing(),
            "a capture is under way on this stream"
        );
        let _recording = self.device.captures.begin();
        match &self.home {
            #[cfg(any(test, feature = "emulator"))]
            StreamHome::Emulated => {}
            #[cfg(feature = "cuda")]
            StreamHome::Cuda(stream) => stream.begin_capture()?,
        }
        *self.branch() = Some(Branch {
            capture: Capture::begin(),
            after: Vec::new(),
        });
        let done = work(self);
        let last = self.branch().take().expect("it takes part until the end");
        let graph = Graph::end(&self.device, last, || match &self.home {
            #[cfg(any(test, feature = "emulator"))]
            StreamHome::Emulated => Ok(GraphHome::Emulated),
            #[cfg(feature = "cuda")]
            StreamHome::Cuda(stream) => stream.end_capture().map(GraphHome::Cuda),
        });
        done?;
        graph
    }

    pub(super) fn is_capturing(&self) -> bool {
        self.branch().is_some()
    }

    #[cfg(feature = "cuda")]
    pub(super) fn driver(&self) -> &driver::Stream {
        match &self.home {
            StreamHome::Cuda(stream) => stream,
            #[cfg(any(test, feature = "emulator"))]
            StreamHome::Emulated => panic!("the stream is of another device"),
        }
    }

    /// `None` outside captures.
    fn branch(&self) -> MutexGuard<'_, Option<Branch>> {
        let mut branch = self.branch.lock().unwrap_or_else(PoisonError::into_inner);
        if branch
            .as_ref()
            .is_some_and(|branch| branch.capture.has_ended())
        {
            *branch = None;
        }
        branch
    }
}

impl Event {
    /// Waits until the work before the event is done. Not for events of a capture.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        assert!(self.branch.is_none(), "the event belongs to a capture");
        if self.device.captures.is_recording_here() {
            let device = &self.device;
            return Err(device.capture_error("waiting for an event cannot be recorded"));
        }
        match &self.home {
            #[cfg(any(test, feature = "emulator"))]
            EventHome::Emulated(_) => Ok(()),
            #[cfg(feature = "cuda")]
            EventHome::Cuda(event) => event.synchronize(),
        }
    }

    /// Milliseconds from `earlier` to here on the device, after both are done: the stream must have
    /// been synchronized. Not for events of a capture.
    pub fn milliseconds_since(&self, earlier: &Self) -> Result<f32, CudaError> {
        match (&self.home, &earlier.home) {
            #[cfg(any(test, feature = "emulator"))]
            (EventHome::Emulated(end), EventHome::Emulated(start)) => {
                Ok(end.duration_since(*start).as_secs_f32() * 1e3)
            }
            #[cfg(feature = "cuda")]
            (EventHome::Cuda(end), EventHome::Cuda(start)) => end.milliseconds_since(start),
            #[cfg(all(feature = "cuda", any(test, feature = "emulator")))]
            _ => panic!("the events are of different devices"),
        }
    }
}
