//! A worker's own life between its trials: it shows itself to the dead-man's switch, and knows
//! until when it may wait. While a trial runs, the run does both. Called by the worker.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

use crate::clock::{Clock, Moment};
use crate::deadman::Pulse;
use crate::limits::Timer;

const PULSE_EVERY: Duration = Duration::from_secs(1);
/// A worker that has done nothing new for so long hangs: then nobody speaks for it any more.
const STUCK_AFTER: Duration = Duration::from_secs(10 * 60);

/// How long a worker may be on its machine.
#[derive(Clone, Default)]
pub struct Bounds {
    /// Who is told that the worker lives.
    pub pulse: Pulse,
    /// The moment that the machine must be off, and by which limit.
    pub hard: Option<(Timer, Moment)>,
    /// For how long it may wait for others' trials without running one.
    pub idle: Option<Duration>,
}

/// What the task that beats and the worker share.
struct Shared {
    /// A run speaks for itself.
    lent: AtomicBool,
    touched: Mutex<Moment>,
    fault: Mutex<Option<String>>,
}

pub(super) struct Life {
    bounds: Bounds,
    clock: Arc<dyn Clock>,
    shared: Arc<Shared>,
    beats: JoinHandle<()>,
    /// When a trial last ran here, or the worker began.
    busy: Moment,
}

/// While this lives, somebody else beats.
pub(super) struct Lent(Arc<Shared>);

impl Drop for Lent {
    fn drop(&mut self) {
        self.0.lent.store(false, Ordering::Relaxed);
    }
}

impl Life {
    pub(super) fn new(bounds: &Bounds, clock: &Arc<dyn Clock>) -> Self {
        let now = clock.now();
        let shared = Arc::new(Shared {
            lent: AtomicBool::new(false),
            touched: Mutex::new(now),
            fault: Mutex::new(None),
        });
        let of_task = (bounds.clone(), Arc::clone(clock), Arc::clone(&shared));
        Self {
            bounds: bounds.clone(),
            clock: Arc::clone(clock),
            shared,
            beats: tokio::spawn(async move { beat(of_task.0, &*of_task.1, &of_task.2).await }),
            busy: now,
        }
    }

    /// The worker has got on with its work. What the switch had to say, if anything.
    pub(super) fn touch(&self) -> Option<String> {
        let now = self.clock.now();
        *lock(&self.shared.touched) = now;
        lock(&self.shared.fault).take()
    }

    /// A trial runs until the end of what is returned, and shows itself.
    pub(super) fn lend(&self) -> Lent {
        self.shared.lent.store(true, Ordering::Relaxed);
        Lent(Arc::clone(&self.shared))
    }

    /// A trial ran here.
    pub(super) fn was_busy(&mut self) {
        self.busy = self.clock.now();
    }

    /// The limit that ends the worker now.
    pub(super) fn over(&self) -> Option<Timer> {
        let now = self.clock.now();
        if let Some((timer, at)) = self.bounds.hard
            && now >= at
        {
            return Some(timer);
        }
        let idle = self.bounds.idle?;
        (now.since(self.busy) >= idle).then_some(Timer::Idle)
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.beats.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn beat(bounds: Bounds, clock: &dyn Clock, shared: &Shared) {
    let mut every = interval(PULSE_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        let stuck = clock.now().since(*lock(&shared.touched)) >= STUCK_AFTER;
        if stuck || shared.lent.load(Ordering::Relaxed) {
            continue;
        }
        if let Err(error) = bounds.pulse.beat(bounds.hard.map(|(_, at)| at)) {
            *lock(&shared.fault) = Some(format!("the dead-man's switch: {error}"));
        }
    }
}
