//! Shows lines on the agent's own output, from a thread of its own: a terminal that is stopped or a
//! reader that is slow costs lines on the screen, nothing else.

use std::io::{self, Write};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::sync::oneshot;

use super::queue::{Popped, Queue};
use crate::child::Source;

/// Most bytes that wait to be shown.
const QUEUE_BYTES_MAX: usize = 1024 * 1024;
/// Most bytes of lines that are shown by one write.
const GATHERED_BYTES_MAX: usize = 64 * 1024;

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

/// What the thread is told.
enum Input {
    Line {
        /// Bytes of lines that went before.
        before: u64,
        source: Source,
        text: String,
    },
    /// Answered when everything before it was shown.
    Flush { done: oneshot::Sender<()> },
}

/// Hands lines to the thread.
pub(super) struct Screen {
    queue: Arc<Queue<Input>>,
    /// Bytes handed over so far.
    bytes: u64,
    /// Lines of one source that are handed over together.
    gathered: Option<(Source, String)>,
}

impl Screen {
    pub(super) fn start(console: Console) -> io::Result<Self> {
        let queue = Arc::new(Queue::new(QUEUE_BYTES_MAX));
        let screen = Self {
            queue: Arc::clone(&queue),
            bytes: 0,
            gathered: None,
        };
        let thread = thread::Builder::new().name("console".to_owned());
        thread.spawn(move || show(&queue, console))?;
        Ok(screen)
    }

    /// Gathers a line; [`Self::send`] hands over what is gathered.
    pub(super) fn line(&mut self, source: Source, text: &str) {
        let fits = self.gathered.as_ref().is_none_or(|(of, lines)| {
            *of == source && lines.len() + text.len() <= GATHERED_BYTES_MAX
        });
        if !fits {
            self.send();
        }
        let (_, lines) = self.gathered.get_or_insert_with(|| (source, String::new()));
        lines.push_str(text);
        lines.push('\n');
    }

    pub(super) fn send(&mut self) {
        let Some((source, text)) = self.gathered.take() else {
            return;
        };
        let bytes = text.len();
        let before = self.bytes;
        let line = Input::Line {
            before,
            source,
            text,
        };
        self.bytes += bytes as u64;
        self.queue.push(bytes + LINE_OVERHEAD_BYTES, line);
    }

    pub(super) fn flush(&mut self, done: oneshot::Sender<()>) {
        self.send();
        self.queue.push(0, Input::Flush { done });
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.send();
        self.queue.close();
    }
}

fn show(queue: &Queue<Input>, mut console: Console) {
    let mut expected: u64 = 0;
    loop {
        let (before, source, text) = match queue.pop(Duration::from_secs(3600)) {
            Popped::Item(Input::Line {
                before,
                source,
                text,
            }) => (before, source, text),
            Popped::Item(Input::Flush { done }) => {
                let _nobody_waits = done.send(());
                continue;
            }
            Popped::Idle => continue,
            Popped::Closed => return,
        };
        let missing = before - expected;
        expected = before + text.len() as u64;
        let text = match missing {
            0 => text,
            _ => format!("[{missing} bytes not shown: the console is too slow]\n{text}"),
        };
        let to = match source {
            Source::Stdout => &mut console.stdout,
            Source::Stderr | Source::Agent => &mut console.stderr,
        };
        // A console that went away is no reason to stop anything.
        let _gone = to.write_all(text.as_bytes()).and_then(|()| to.flush());
    }
}
