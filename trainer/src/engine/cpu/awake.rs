//! Keeps the threads of the pool awake while a plan runs. An operation of a small model takes some
//! ten microseconds; a thread that went to sleep after the one before takes as long to wake up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Pauses between two looks for work: about a microsecond.
const PAUSES: usize = 16;

/// Runs `work` from within the pool, where every parallel operation starts at once. Until it
/// returns, threads that find no work look again instead of sleeping.
pub(super) fn in_pool<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    rayon::scope(|_| {
        let done = Arc::new(AtomicBool::new(false));
        let _end = End(Arc::clone(&done));
        for _ in 0..rayon::current_num_threads() {
            wait(Arc::clone(&done));
        }
        work()
    })
}

/// Ends the waiting, after a panic, too.
struct End(Arc<AtomicBool>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A task that takes part in other work or pauses, and then waits in line again. It returns each
/// time, because whoever runs it may be waiting for something else than work.
fn wait(done: Arc<AtomicBool>) {
    rayon::spawn(move || {
        if done.load(Ordering::Relaxed) {
            return;
        }
        if !matches!(rayon::yield_now(), Some(rayon::Yield::Executed)) {
            (0..PAUSES).for_each(|_| std::hint::spin_loop());
        }
        wait(done);
    });
}
