//! Captures under way on a device, and the calls that must not happen meanwhile: those that wait
//! for the whole device, allocate, or load code. They wait for the end of every capture; from
//! within one they are refused. Asked by the types of the launch layer.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

/// Two groups that exclude each other: captures, and calls that concern a whole device.
#[derive(Debug, Default)]
pub(super) struct Captures {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The thread of each capture under way.
    recording: Vec<ThreadId>,
    /// Calls that concern the whole device under way.
    device_wide: usize,
}

/// A capture under way.
#[derive(Debug)]
pub(super) struct Recording<'a>(&'a Captures);

/// A call that concerns the whole device under way.
#[derive(Debug)]
pub(super) struct DeviceWide<'a>(&'a Captures);

impl Captures {
    /// Begins a capture on this thread, once no call concerns the whole device.
    pub(super) fn begin(&self) -> Recording<'_> {
        let mut state = self.state();
        while state.device_wide > 0 {
            state = self.wait(state);
        }
        state.recording.push(thread::current().id());
        Recording(self)
    }

    /// Begins a call that concerns the whole device, once nobody records; `None` where this thread
    /// itself records, which would wait forever.
    pub(super) fn device_wide(&self) -> Option<DeviceWide<'_>> {
        let mut state = self.state();
        if state.recording.contains(&thread::current().id()) {
            return None;
        }
        while !state.recording.is_empty() {
            state = self.wait(state);
        }
        state.device_wide += 1;
        Some(DeviceWide(self))
    }

    /// The same without waiting; `None` where anybody records.
    #[cfg(feature = "cuda")]
    pub(super) fn try_device_wide(&self) -> Option<DeviceWide<'_>> {
        let mut state = self.state();
        if !state.recording.is_empty() {
            return None;
        }
        state.device_wide += 1;
        Some(DeviceWide(self))
    }

    /// Whether this thread records.
    pub(super) fn is_recording_here(&self) -> bool {
        self.state().recording.contains(&thread::current().id())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let waited = self.changed.wait(state);
        waited.unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        let here = thread::current().id();
        let mut state = self.0.state();
        let index = state.recording.iter().position(|&thread| thread == here);
        state
            .recording
            .swap_remove(index.expect("it began on this thread"));
        self.0.changed.notify_all();
    }
}

impl Drop for DeviceWide<'_> {
    fn drop(&mut self) {
        self.0.state().device_wide -= 1;
        self.0.changed.notify_all();
    }
}
