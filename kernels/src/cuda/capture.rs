//! Captures and graphs: work that was recorded, with what each piece waits for, to be repeated.
//!
//! The rules are those of CUDA's stream capture, kept for both homes, so that the emulator refuses
//! what the driver would refuse.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[cfg(any(test, feature = "emulator"))]
use super::device::Home;
#[cfg(feature = "cuda")]
use super::driver;
#[cfg(any(test, feature = "emulator"))]
use super::emulated;
use super::work::Work;
use super::{CudaError, Device, Stream};

/// Recorded work. It keeps the memory of its arguments.
#[derive(Debug)]
pub struct Graph {
    device: Device,
    home: GraphHome,
    /// After `home`, which must not outlive the memory.
    nodes: Vec<Node>,
}

#[derive(Debug)]
pub(super) enum GraphHome {
    #[cfg(any(test, feature = "emulator"))]
    Emulated,
    #[cfg(feature = "cuda")]
    Cuda(driver::Graph),
}

#[derive(Debug)]
pub(super) struct Node {
    #[cfg_attr(
        not(any(test, feature = "emulator")),
        expect(
            dead_code,
            reason = "the driver's graph has its own; this keeps the memory"
        )
    )]
    pub(super) work: Work,
    /// The nodes that must be done before, by index.
    pub(super) after: Vec<usize>,
}

/// A capture that streams take part in. `None` when it has ended.
#[derive(Debug)]
pub(super) struct Capture(Mutex<Option<Vec<Node>>>);

/// A stream's place in a capture: what its next piece of work waits for.
#[derive(Clone, Debug)]
pub(super) struct Branch {
    pub(super) capture: Arc<Capture>,
    pub(super) after: Vec<usize>,
}

impl Capture {
    pub(super) fn begin() -> Arc<Self> {
        Arc::new(Self(Mutex::new(Some(Vec::new()))))
    }

    pub(super) fn has_ended(&self) -> bool {
        self.nodes().is_none()
    }

    fn end(&self) -> Vec<Node> {
        self.nodes().take().expect("a capture ends once")
    }

    fn nodes(&self) -> MutexGuard<'_, Option<Vec<Node>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Branch {
    pub(super) fn push(&mut self, work: Work) {
        let mut nodes = self.capture.nodes();
        let nodes = nodes.as_mut().expect("streams forget captures that ended");
        let after = std::mem::replace(&mut self.after, vec![nodes.len()]);
        nodes.push(Node { work, after });
    }

    pub(super) fn wait_for(&mut self, others: &[usize]) {
        self.after.extend_from_slice(others);
        self.after.sort_unstable();
        self.after.dedup();
    }
}

impl Graph {
    /// Ends a capture whose first stream has come to `last`.
    pub(super) fn end(
        device: &Device,
        last: Branch,
        home: impl FnOnce() -> Result<GraphHome, CudaError>,
    ) -> Result<Self, CudaError> {
        let nodes = last.capture.end();
        let home = home();
        let mut joined = vec![false; nodes.len()];
        let mut open = last.after;
        while let Some(node) = open.pop() {
            if !std::mem::replace(&mut joined[node], true) {
                open.extend_from_slice(&nodes[node].after);
            }
        }
        let left = joined.iter().filter(|&&joined| !joined).count();
        if left > 0 {
            let text = format!("{left} pieces of other streams' work were not waited for");
            return Err(device.capture_error(text));
        }
        Ok(Self {
            device: device.clone(),
            home: home?,
            nodes,
        })
    }

    /// Adds all of the recorded work to the stream, which must not be recording.
    pub fn launch(&self, stream: &Stream) -> Result<(), CudaError> {
        if stream.is_capturing() {
            return Err(self
                .device
                .capture_error("a graph cannot be recorded into another"));
        }
        match (&self.home, &self.device.home) {
            #[cfg(any(test, feature = "emulator"))]
            (GraphHome::Emulated, Home::Emulated(schedule)) => {
                emulated::replay(&self.nodes, schedule)
            }
            #[cfg(feature = "cuda")]
            (GraphHome::Cuda(graph), _) => graph.launch(stream.driver()),
            #[cfg(all(feature = "cuda", any(test, feature = "emulator")))]
            _ => unreachable!("a graph has its device's home"),
        }
    }

    /// Pieces of work.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }
}
