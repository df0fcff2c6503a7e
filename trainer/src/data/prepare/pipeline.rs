//! Work on many threads whose results keep the order of what went in. Called by `prepare`.

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use crate::Result;

/// Items for each thread that are read but not written: more would only take memory.
const AHEAD_PER_THREAD: usize = 4;

/// An item, and where its result goes.
type Job<T, R> = (T, SyncSender<Result<R>>);

/// Gives each of `items` to `work` on one of `threads` threads, and the results to `sink` in the
/// order of the items. Reading, working and writing go on at the same time; at most
/// [`AHEAD_PER_THREAD`] items for each thread are held.
///
/// # Errors
/// The first in the order of the items, whoever made it.
pub(super) fn in_order<T: Send, R: Send>(
    threads: usize,
    items: impl Iterator<Item = Result<T>> + Send,
    work: impl Fn(T) -> Result<R> + Sync,
    mut sink: impl FnMut(R) -> Result<()>,
) -> Result<()> {
    let ahead = threads * AHEAD_PER_THREAD;
    let (jobs_in, jobs) = sync_channel::<Job<T, R>>(ahead);
    let (results_in, results) = sync_channel::<Receiver<Result<R>>>(ahead);
    let jobs = Mutex::new(jobs);
    thread::scope(|scope| {
        scope.spawn(move || {
            for item in items {
                let (result_in, result) = sync_channel(1);
                // A sink that failed has hung up.
                if results_in.send(result).is_err() {
                    return;
                }
                match item {
                    Ok(item) => {
                        if jobs_in.send((item, result_in)).is_err() {
                            return;
                        }
                    }
                    Err(error) => {
                        // As above: who hung up wants to hear of nothing.
                        result_in.send(Err(error)).ok();
                        return;
                    }
                }
            }
        });
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let job = jobs.lock().expect("nothing panics with the lock").recv();
                    let Ok((item, result_in)) = job else { return };
                    // As above.
                    result_in.send(work(item)).ok();
                }
            });
        }
        // Dropped on the way out, so that the reader stops when the sink fails.
        let results = results;
        for result in &results {
            let Ok(result) = result.recv() else {
                // A worker panicked; so does the scope, now that everybody ends.
                break;
            };
            sink(result?)?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests;
