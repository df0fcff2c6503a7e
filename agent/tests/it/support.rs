//! What the tests share: a trainer made of a shell script, and a sink that keeps what it says.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use agent::child::{Child, Command, Sink, Source};

/// Long enough for a loaded machine; only a failing test waits this long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A shell script as a trainer, started through the agent's own executable.
pub(crate) fn script(text: &str) -> Command {
    let args = ["-c", text].map(OsString::from);
    Command {
        launcher: PathBuf::from(env!("CARGO_BIN_EXE_agent")),
        ..Command::new("sh", args)
    }
}

/// Keeps everything.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    stdout: Mutex<Vec<u8>>,
    stderr: Mutex<Vec<u8>>,
}

impl Heard {
    fn stream(&self, source: Source) -> &Mutex<Vec<u8>> {
        match source {
            Source::Stdout => &self.stdout,
            Source::Stderr | Source::Agent => &self.stderr,
        }
    }

    pub(crate) fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout.lock().unwrap()).into_owned()
    }

    pub(crate) fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr.lock().unwrap()).into_owned()
    }
}

impl Sink for Heard {
    fn write(&self, source: Source, bytes: &[u8]) {
        self.stream(source).lock().unwrap().extend_from_slice(bytes);
    }

    fn end(&self, _source: Source) {}
}

pub(crate) fn spawn(command: &Command) -> (Child, Arc<Heard>) {
    let heard = Arc::new(Heard::default());
    let child = Child::spawn(command, Arc::clone(&heard) as Arc<dyn Sink>).unwrap();
    (child, heard)
}

/// Polls until `done` holds.
pub(crate) fn wait_until(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits for the numbers that a script prints, one a line.
pub(crate) fn pids(heard: &Heard, count: usize) -> Vec<u32> {
    wait_until("the script prints its process ids", || {
        heard.stdout().lines().count() >= count
    });
    heard
        .stdout()
        .lines()
        .map(|line| line.trim().parse().unwrap())
        .collect()
}

/// Whether a process is there and has not ended.
pub(crate) fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    !state.is_empty() && !state.starts_with(['Z', 'X'])
}
