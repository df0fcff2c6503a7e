//! Threads for what goes on while the trainer works and must not cost it steps: hashing and sending
//! checkpoints. Called by the loop.

use std::io;

use rustix::process::{getpriority_process, setpriority_process};
use tokio::runtime::{Builder, Handle, Runtime};

/// How far they give way: a busy trainer gets nine times their share of a processor.
const NICE: i32 = 10;

pub(crate) struct Quiet(Threads);

enum Threads {
    /// `None` once they are being stopped.
    Own(Option<Runtime>),
    /// The caller's, where all must run in one order.
    #[cfg(test)]
    Callers(Handle),
}

impl Quiet {
    /// # Errors
    /// If the threads cannot be made.
    pub(super) fn start() -> io::Result<Self> {
        // On Linux these are of the calling thread, and a new thread begins as its maker is: the
        // value must not depend on who that was. If it fails, it is only less polite.
        let nice = getpriority_process(None)? + NICE;
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("upload")
            .on_thread_start(move || {
                setpriority_process(None, nice).ok();
            })
            .enable_all()
            .build()?;
        Ok(Self(Threads::Own(Some(runtime))))
    }

    /// No threads but those of the runtime that the caller is in.
    #[cfg(test)]
    pub(crate) fn here() -> Self {
        Self(Threads::Callers(Handle::current()))
    }

    pub(super) fn handle(&self) -> &Handle {
        match &self.0 {
            Threads::Own(runtime) => runtime
                .as_ref()
                .expect("taken only when this is dropped")
                .handle(),
            #[cfg(test)]
            Threads::Callers(handle) => handle,
        }
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        // What still waits for a store there does not hold the end up.
        match &mut self.0 {
            Threads::Own(runtime) => {
                if let Some(runtime) = runtime.take() {
                    runtime.shutdown_background();
                }
            }
            #[cfg(test)]
            Threads::Callers(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The nice value of the calling thread.
    fn nice() -> i32 {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        fields.split(' ').nth(16).unwrap().parse().unwrap()
    }

    #[tokio::test]
    async fn uploads_give_way_and_nothing_else_does() {
        let before = nice();
        let quiet = Quiet::start().unwrap();
        let expected = (before + NICE).min(19);
        let sending = quiet.handle().spawn(async { nice() });
        assert_eq!(sending.await.unwrap(), expected);
        let hashing = quiet.handle().spawn(async {
            let disk = tokio::task::spawn_blocking(nice);
            disk.await.unwrap()
        });
        assert_eq!(hashing.await.unwrap(), expected);
        assert_eq!(nice(), before);
        let others = tokio::task::spawn_blocking(nice);
        assert_eq!(others.await.unwrap(), before);
    }
}
