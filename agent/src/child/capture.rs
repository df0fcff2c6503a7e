//! Reads a trainer's standard output and error and hands the bytes on.
//!
//! One plain thread for each pipe: they go on reading while the async runtime is busy, so that the
//! trainer never waits for an upload.

use std::fmt;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::process::{ChildStderr, ChildStdout};
use std::sync::Arc;
use std::thread;

use rustix::pipe::fcntl_setpipe_size;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// Which of its streams a trainer wrote to; `Agent` marks what the agent says itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    Stdout,
    Stderr,
    Agent,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::Agent => "agent",
        })
    }
}

/// Takes what a trainer prints. Must return soon, whatever becomes of the bytes: meanwhile the
/// trainer's pipe fills, and then the trainer waits.
pub trait Sink: Send + Sync {
    /// The next bytes of a stream, as they came: any length, any bytes.
    fn write(&self, source: Source, bytes: &[u8]);

    /// The stream is at its end: every process that held it has closed it.
    fn end(&self, source: Source);
}

/// Bytes read at once.
const CHUNK_BYTES: usize = 64 * 1024;

/// How much the kernel keeps for us while we are not reading; what an unprivileged process may ask
/// for.
const PIPE_BYTES: usize = 1024 * 1024;

/// Starts reading. Tells how many of the two pipes are not at their end yet.
pub(super) fn start(
    stdout: ChildStdout,
    stderr: ChildStderr,
    sink: Arc<dyn Sink>,
) -> io::Result<watch::Receiver<u32>> {
    let (open, watched) = watch::channel(2);
    let open = Arc::new(open);
    start_one(Source::Stdout, stdout, &sink, &open)?;
    start_one(Source::Stderr, stderr, &sink, &open)?;
    Ok(watched)
}

fn start_one(
    source: Source,
    mut pipe: impl Read + AsFd + Send + 'static,
    sink: &Arc<dyn Sink>,
    open: &Arc<watch::Sender<u32>>,
) -> io::Result<()> {
    let (sink, open) = (Arc::clone(sink), Arc::clone(open));
    // A smaller pipe is as correct.
    let _refused = fcntl_setpipe_size(pipe.as_fd(), PIPE_BYTES);
    let name = source.to_string();
    thread::Builder::new().name(name).spawn(move || {
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            match pipe.read(&mut chunk) {
                Ok(0) => break,
                Ok(count) => sink.write(source, &chunk[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        sink.end(source);
        open.send_modify(|open| *open -= 1);
    })?;
    Ok(())
}
