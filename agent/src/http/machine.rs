//! What is known of the machine: free disk, memory of the container. Looked at by a thread of its
//! own, since a disk that hangs must not hang an answer.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::cgroup::Cgroup;

const EVERY: Duration = Duration::from_secs(5);
/// A look that is older than this no longer counts.
const STALE: Duration = Duration::from_secs(30);

/// What was seen, and when.
type Seen = (Instant, Look);

/// The newest look.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Look {
    pub(super) disk_free_bytes: Option<u64>,
    pub(super) memory_bytes: Option<u64>,
    pub(super) oom_kills: Option<u64>,
}

/// Looks as long as it lives.
pub(super) struct Machine(Arc<Mutex<Seen>>);

impl Machine {
    pub(super) fn new(run_dir: &Path) -> Self {
        // Until the first look ends nothing is known, and nothing is wrong.
        let newest: Arc<Mutex<Seen>> = Arc::new(Mutex::new((Instant::now(), Look::default())));
        let (weak, run_dir) = (Arc::downgrade(&newest), run_dir.to_owned());
        let work = move || {
            let cgroup = Cgroup::of_self().ok().flatten();
            while let Some(newest) = weak.upgrade() {
                let memory = cgroup.as_ref().map(Cgroup::memory);
                let disk = rustix::fs::statvfs(&run_dir).ok();
                let look = Look {
                    disk_free_bytes: disk.map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize)),
                    memory_bytes: memory.and_then(|memory| memory.usage_bytes),
                    oom_kills: memory.and_then(|memory| memory.oom_kills),
                };
                let mut newest = newest.lock().unwrap_or_else(PoisonError::into_inner);
                *newest = (Instant::now(), look);
                drop(newest);
                thread::sleep(EVERY);
            }
        };
        // Without the thread nothing is known of the machine, and that is said.
        thread::Builder::new()
            .name("machine".to_owned())
            .spawn(work)
            .ok();
        Self(newest)
    }

    pub(super) fn look(&self) -> Option<Look> {
        let (at, look) = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (at.elapsed() < STALE).then_some(look)
    }
}
