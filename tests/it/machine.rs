//! Agents as they run on machines: started, killed, watched from outside. Called by the tests of
//! the agent.
//!
//! A machine is a run directory: an agent that starts in a former one's goes on there.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use protocol::RunDir;
use rustix::process::{Pid, Signal, kill_process};

use crate::bucket::{Bucket, JOB};
use crate::support::{Scene, TINY, build, cache, trainer};

/// Longest that anything here may take: reaching it is a hang.
const PATIENCE: Duration = Duration::from_secs(300);
/// Between two looks at something that is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(10);

pub(crate) const COMPLETED: Option<i32> = Some(0);
pub(crate) const FAILED: Option<i32> = Some(10);
pub(crate) const RETRYABLE: Option<i32> = Some(11);
pub(crate) const RESUMABLE: Option<i32> = Some(12);
pub(crate) const NOT_OURS: Option<i32> = Some(13);

/// A run with many checkpoints that does not end by itself: however fast the machine and however
/// late the test, what is to happen to it happens. `Site::finish` gives it its end.
pub(crate) const ENDLESS: &[&str] = &[
    "--n_embd=64",
    "--block_size=32",
    "--batch_size=16",
    "--eval_interval=1000",
    "--checkpoint_interval=10",
    "--threads=1",
    "--max_iters=1000000",
];
/// Steps that are made after what is published of a run that gets its end.
const REST: u64 = 20;

/// The agent of this checkout, built once if it is not yet.
pub(crate) fn agent() -> &'static Path {
    static AGENT: OnceLock<PathBuf> = OnceLock::new();
    AGENT.get_or_init(|| build("agent"))
}

/// Waits until something is so, or says what was waited for in vain.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !so() {
        assert!(
            begin.elapsed() < PATIENCE,
            "not within {PATIENCE:?}: {what}"
        );
        std::thread::sleep(LOOK_EVERY);
    }
}

/// What all agents of a test have in common.
pub(crate) struct Site<'a> {
    scene: &'a Scene,
    location: String,
    environment: Vec<(&'static str, String)>,
    ttl: Duration,
    flags: Vec<String>,
    pub(crate) command: Vec<String>,
}

impl<'a> Site<'a> {
    /// Training a tiny model with these words besides, kept in a folder.
    pub(crate) fn in_folder(scene: &'a Scene, words: &[&str]) -> Self {
        let trainer = trainer().to_str().unwrap();
        let command = [&[trainer], TINY, words].concat();
        Self {
            scene,
            location: "store".to_owned(),
            environment: Vec::new(),
            ttl: Duration::from_secs(12),
            flags: Vec::new(),
            command: command.into_iter().map(str::to_owned).collect(),
        }
    }

    /// Kept in a bucket that is reached at an address: the bucket's own or a proxy's.
    pub(crate) fn on(
        scene: &'a Scene,
        bucket: &Bucket,
        address: SocketAddr,
        words: &[&str],
    ) -> Self {
        Self {
            location: bucket.location(),
            environment: vec![
                ("AWS_ENDPOINT_URL", format!("http://{address}")),
                ("AWS_REGION", "us-east-1".to_owned()),
                ("AWS_ACCESS_KEY_ID", bucket.access_key.clone()),
                ("AWS_SECRET_ACCESS_KEY", bucket.secret_key.clone()),
            ],
            ..Self::in_folder(scene, words)
        }
    }

    pub(crate) fn with_ttl(mut self, ttl_s: u64) -> Self {
        self.ttl = Duration::from_secs(ttl_s);
        self
    }

    pub(crate) fn with_flags(mut self, flags: &[&str]) -> Self {
        self.flags.extend(flags.iter().map(|&flag| flag.to_owned()));
        self
    }

    /// Puts another value in the place of one of the agents' variables.
    pub(crate) fn set(&mut self, name: &'static str, value: &str) {
        self.environment.retain(|(other, _)| *other != name);
        self.environment.push((name, value.to_owned()));
    }

    pub(crate) fn set_location(&mut self, location: &str) {
        location.clone_into(&mut self.location);
    }

    /// Starts an agent on a machine of this name.
    pub(crate) fn start(&self, machine: &str) -> Agent {
        static STARTS: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let start = STARTS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let log = self.scene.path().join(format!("{machine}-{start}.log"));
        let file = File::create(&log).unwrap();
        let mut command = Command::new(agent());
        command
            .arg("run")
            .arg(format!("--store={}", self.location))
            .arg(format!("--job={JOB}"))
            .arg(format!("--run-dir={machine}"))
            .arg(format!("--ttl={}s", self.ttl.as_secs()))
            .args(&self.flags)
            .arg("--")
            .args(&self.command)
            .current_dir(self.scene.path())
            .env("ANNEAL_CACHE", cache())
            .env_remove("ANNEAL_DATA")
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("NO_PROXY", "*")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file);
        Agent {
            child: command.spawn().unwrap(),
            run_dir: self.scene.path().join(machine),
            log,
        }
    }

    /// Gives a run its end, some steps after the newest one that is published; the number of steps.
    pub(crate) fn end_after(&mut self, published: u64) -> u64 {
        let last = published + REST;
        self.command.push(format!("--max_iters={last}"));
        last
    }

    /// The parameters at the end of a run of a trainer that nobody disturbs, without an agent.
    pub(crate) fn undisturbed_model(&self, last: u64) -> Vec<u8> {
        let scene = Scene::new();
        let words: Vec<&str> = self.command[1..].iter().map(String::as_str).collect();
        scene
            .trainer(&[&words, &["--out_dir=out"][..]].concat())
            .expect_code(0);
        fs::read(scene.run_dir().checkpoint(last).join(RunDir::MODEL)).unwrap()
    }

    /// Trains a job that was stopped to an end, on a machine: what is published then is what nobody
    /// disturbed.
    #[track_caller]
    pub(crate) fn finish(&mut self, bucket: &Bucket, machine: &str) -> Agent {
        let last = self.end_after(bucket.newest_step());
        let mut agent = self.start(machine);
        assert_eq!(agent.wait(), COMPLETED, "{}", agent.log());
        let published = bucket.get(&bucket.key_of(last, RunDir::MODEL));
        let same = published == self.undisturbed_model(last);
        assert!(same, "the parameters differ after {last} steps");
        agent
    }

    /// What `agent verify` says of the job after reading every byte.
    #[track_caller]
    pub(crate) fn verify(&self) -> String {
        let mut command = Command::new(agent());
        command
            .args(["verify", "--deep"])
            .arg(format!("--store={}", self.location))
            .arg(format!("--job={JOB}"))
            .current_dir(self.scene.path())
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}\n{output:?}");
        text
    }
}

/// An agent at work; killed with its trainers if the test ends before it.
pub(crate) struct Agent {
    child: Child,
    run_dir: PathBuf,
    log: PathBuf,
}

impl Agent {
    /// Waits for its end; its exit status.
    #[track_caller]
    pub(crate) fn finish(mut self) -> Option<i32> {
        self.wait()
    }

    #[track_caller]
    pub(crate) fn wait(&mut self) -> Option<i32> {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(begin.elapsed() < PATIENCE, "it hangs:\n{}", self.log());
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Asks it to save, publish and leave, and waits until it has.
    #[track_caller]
    pub(crate) fn stop(&mut self) {
        self.signal(Signal::TERM);
        assert_eq!(self.wait(), RESUMABLE, "{}", self.log());
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits until something is so while this agent runs.
    #[track_caller]
    pub(crate) fn runs_until(&mut self, what: &str, mut so: impl FnMut(&Self) -> bool) {
        let begin = Instant::now();
        while !so(self) {
            let late = begin.elapsed() >= PATIENCE;
            assert!(
                self.is_running() && !late,
                "not while it ran, {:?}: {what}\n{}",
                begin.elapsed(),
                self.log()
            );
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Waits until the agent has said this.
    #[track_caller]
    pub(crate) fn says(&mut self, text: &str) {
        self.runs_until(text, |agent| agent.has_said(text));
    }

    pub(crate) fn has_said(&self, text: &str) -> bool {
        self.log().contains(text)
    }

    /// What it and its trainers have printed.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap()).into_owned()
    }

    /// The agent's own lines.
    pub(crate) fn own_lines(&self) -> Vec<String> {
        let log = self.log();
        let lines = log.lines().filter(|line| line.contains("agent: "));
        lines.map(str::to_owned).collect()
    }

    /// How many trainers it has started.
    pub(crate) fn attempts(&self) -> usize {
        self.log().matches("the trainer is process").count()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Kills the agent alone; whether it was alive.
    pub(crate) fn kill(&mut self) -> bool {
        let alive = self.is_running();
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        alive
    }

    /// Process ids of trainers that write to this machine's run directory.
    pub(crate) fn trainers(&self) -> Vec<Pid> {
        let word = format!("--out_dir={}", self.run_dir.display());
        let is_trainer = |line: &[u8]| {
            let mut words = line.split(|&byte| byte == 0);
            // Not what is about to become one.
            let program = words.next().unwrap_or_default();
            program.ends_with(b"/trainer") && words.any(|text| text == word.as_bytes())
        };
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap() {
            let name = entry.unwrap().file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if is_trainer(&line) {
                found.extend(Pid::from_raw(pid));
            }
        }
        found
    }

    /// Signals the trainers; how many were there to get it.
    pub(crate) fn signal_trainers(&self, signal: Signal) -> usize {
        let trainers = self.trainers().into_iter();
        let reached = trainers.filter(|&pid| kill_process(pid, signal).is_ok());
        reached.count()
    }

    pub(crate) fn run_dir(&self) -> RunDir {
        RunDir::new(self.run_dir.clone())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
