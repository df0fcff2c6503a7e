//! The real `trainer` binary, run as a user runs it, in a directory of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use protocol::{Event, Manifest, Record, RunDir};
use rustix::process::{Pid, Signal};
use tempfile::TempDir;

/// A model that makes a step in a few milliseconds.
pub(crate) const TINY: &[&str] = &[
    "--dataset=quickstart",
    "--n_layer=2",
    "--n_head=2",
    "--n_embd=16",
    "--block_size=16",
    "--batch_size=4",
    "--gradient_accumulation_steps=2",
    "--dropout=0.1",
    "--learning_rate=1e-3",
    "--min_lr=1e-4",
    "--warmup_iters=2",
    "--lr_decay_iters=20",
    "--max_iters=20",
    "--eval_interval=10",
    "--eval_iters=2",
    "--log_interval=1",
];

/// Longest that any run of a test may take: reaching it is a hang.
const PATIENCE: Duration = Duration::from_secs(120);

/// The trainer of this checkout, built once if it is not yet.
pub(crate) fn trainer() -> &'static Path {
    static TRAINER: OnceLock<PathBuf> = OnceLock::new();
    TRAINER.get_or_init(|| build("trainer"))
}

/// A program of this checkout, which has the name of its package.
pub(crate) fn build(program: &str) -> PathBuf {
    // Test binaries lie in target/PROFILE/deps, programs in target/PROFILE.
    let mut folder = std::env::current_exe().unwrap();
    folder.pop();
    folder.pop();
    let mut build = Command::new(env!("CARGO"));
    // With the features of the workspace, as in the README: one build serves both.
    build.args(["build", "--quiet", "--workspace", "--bin", program]);
    if folder.ends_with("release") {
        build.arg("--release");
    }
    // What cargo tells a test about itself would make build scripts run anew, here and again in
    // the next build outside of a test.
    for (name, _) in std::env::vars_os() {
        let told = name.to_str().unwrap_or("");
        if told.starts_with("CARGO_PKG_") || told.starts_with("CARGO_MANIFEST_") {
            build.env_remove(name);
        }
    }
    let built = build
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .unwrap();
    assert!(built.success(), "the {program} does not build");
    folder.join(program)
}

/// The dataset cache that all tests share.
pub(crate) fn cache() -> &'static Path {
    static CACHE: OnceLock<TempDir> = OnceLock::new();
    CACHE.get_or_init(|| tempfile::tempdir().unwrap()).path()
}

/// A directory to run in, with an `out_dir` inside.
pub(crate) struct Scene {
    dir: TempDir,
}

impl Scene {
    pub(crate) fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn run_dir(&self) -> RunDir {
        RunDir::new(self.path().join("out"))
    }

    /// The trainer with these words, not started.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(trainer());
        command
            .args(words)
            .current_dir(self.path())
            .env("ANNEAL_CACHE", cache())
            .env_remove("ANNEAL_DATA")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs the trainer to its end.
    pub(crate) fn trainer(&self, words: &[&str]) -> Finished {
        Finished::new(self.command(words).output().unwrap())
    }

    /// Trains a tiny model with these words besides.
    pub(crate) fn train(&self, words: &[&str]) -> Finished {
        self.trainer(&[TINY, words].concat())
    }

    /// Starts training a tiny model.
    pub(crate) fn start(&self, words: &[&str]) -> Running {
        Running(Some(self.command(&[TINY, words].concat()).spawn().unwrap()))
    }

    /// Starts training a tiny model and kills it `milliseconds` after it has reported so many more
    /// events. The run must not end by itself.
    pub(crate) fn kill_after_events(&self, words: &[&str], events: usize, milliseconds: u64) {
        let before = self.events().len();
        let mut run = self.start(words);
        let child = run.child();
        while self.events().len() < before + events {
            assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        }
        std::thread::sleep(Duration::from_millis(milliseconds));
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Every event of the run so far that can be read.
    pub(crate) fn events(&self) -> Vec<Event> {
        let text = fs::read_to_string(self.run_dir().events()).unwrap_or_default();
        text.lines()
            .filter_map(Record::parse)
            .map(|record| record.event)
            .collect()
    }

    /// The loss of each step: of the last time it was made.
    pub(crate) fn losses(&self) -> Vec<(u64, f64)> {
        let mut losses = std::collections::BTreeMap::new();
        for event in self.events() {
            if let Event::Step { step, loss, .. } = event {
                losses.insert(step, loss);
            }
        }
        losses.into_iter().collect()
    }

    /// Steps of the checkpoints that have a manifest.
    pub(crate) fn checkpoints(&self) -> Vec<u64> {
        let entries = fs::read_dir(self.run_dir().checkpoints());
        let Ok(entries) = entries else {
            return Vec::new();
        };
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut steps: Vec<u64> = names
            .filter_map(|name| RunDir::checkpoint_step(&name))
            .collect();
        steps.retain(|&step| {
            self.run_dir()
                .checkpoint(step)
                .join(RunDir::MANIFEST)
                .exists()
        });
        steps.sort_unstable();
        steps
    }

    pub(crate) fn manifest(&self, step: u64) -> Manifest {
        let path = self.run_dir().checkpoint(step).join(RunDir::MANIFEST);
        Manifest::parse(&fs::read_to_string(path).unwrap()).unwrap()
    }

    /// Waits until the run has reported something.
    pub(crate) fn wait_for(&self, what: &str, wanted: impl Fn(&Event) -> bool) {
        let begin = Instant::now();
        while !self.events().iter().any(&wanted) {
            assert!(begin.elapsed() < PATIENCE, "no {what} within {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// A trainer that ended.
pub(crate) struct Finished {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Finished {
    fn new(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Asserts the exit code and hands the run on.
    #[track_caller]
    pub(crate) fn expect_code(self, code: i32) -> Self {
        let Self { stdout, stderr, .. } = &self;
        assert_eq!(
            self.code,
            Some(code),
            "\nstdout:\n{stdout}\nstderr:\n{stderr}"
        );
        self
    }
}

/// A trainer at work; killed if the test ends before it.
pub(crate) struct Running(Option<Child>);

impl Running {
    fn child(&mut self) -> &mut Child {
        self.0.as_mut().expect("it is waited for once, at the end")
    }

    pub(crate) fn signal(&mut self, signal: Signal) {
        let pid = Pid::from_child(self.child());
        rustix::process::kill_process(pid, signal).unwrap();
    }

    pub(crate) fn finish(mut self) -> Finished {
        let begin = Instant::now();
        while self.child().try_wait().unwrap().is_none() {
            assert!(begin.elapsed() < PATIENCE, "the trainer hangs");
            std::thread::sleep(Duration::from_millis(5));
        }
        let child = self.0.take().expect("it was there just now");
        Finished::new(child.wait_with_output().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            child.kill().ok();
            child.wait().ok();
        }
    }
}
