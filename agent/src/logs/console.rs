//! Shows lines on the agent's own output, from a thread of its own: a terminal that is stopped or a
//! reader that is slow costs lines on the screen, nothing else.

use std::io::{self, Write};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::queue::{Popped, Queue};
use crate::child::Source;

/// Most bytes that wait to be shown.
const QUEUE_BYTES_MAX: usize = 1024 * 1024;

/// What a line weighs in the queue besides its text.
const LINE_OVERHEAD_BYTES: usize = 64;

/// Where output goes.
pub struct Console {
    /// For the trainer's standard output.
    pub stdout: Box<dyn Write + Send>,
    /// For its standard error and the agent's own lines.
    pub stderr: Box<dyn Write + Send>,
}

impl Default for Console {
    /// The agent's own standard output and error.
    fn default() -> Self {
        Self {
            stdout: Box::new(io::stdout()),
            stderr: Box::new(io::stderr()),
        }
    }
}

/// One line on its way, with how many bytes went before it.
struct Shown {
    before: u64,
    source: Source,
    text: String,
}

/// Hands lines to the thread.
pub(super) struct Screen {
    queue: Arc<Queue<Shown>>,
    /// Bytes handed over so far.
    bytes: u64,
}

impl Screen {
    pub(super) fn start(console: Console) -> io::Result<Self> {
        let queue = Arc::new(Queue::new(QUEUE_BYTES_MAX));
        let screen = Self {
            queue: Arc::clone(&queue),
            bytes: 0,
        };
        let thread = thread::Builder::new().name("console".to_owned());
        thread.spawn(move || show(&queue, console))?;
        Ok(screen)
    }

    pub(super) fn line(&mut self, source: Source, text: &str) {
        let shown = Shown {
            before: self.bytes,
            source,
            text: format!("{text}\n"),
        };
        let bytes = shown.text.len();
        self.bytes += bytes as u64;
        self.queue.push(bytes + LINE_OVERHEAD_BYTES, shown);
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.queue.close();
    }
}

fn show(queue: &Queue<Shown>, mut console: Console) {
    let mut expected: u64 = 0;
    loop {
        let shown = match queue.pop(Duration::from_secs(3600)) {
            Popped::Item(shown) => shown,
            Popped::Idle => continue,
            Popped::Closed => return,
        };
        let missing = shown.before - expected;
        expected = shown.before + shown.text.len() as u64;
        let text = match missing {
            0 => shown.text,
            _ => format!(
                "[{missing} bytes not shown: the console is too slow]\n{}",
                shown.text
            ),
        };
        let to = match shown.source {
            Source::Stdout => &mut console.stdout,
            Source::Stderr | Source::Agent => &mut console.stderr,
        };
        // A console that went away is no reason to stop anything.
        let _gone = to.write_all(text.as_bytes()).and_then(|()| to.flush());
    }
}
