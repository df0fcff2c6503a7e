//! The real agent over the real trainer and a folder as the store: to the end, killed, stopped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use protocol::RunDir;
use rustix::process::{Pid, Signal};

use crate::support::{Scene, TINY, build, trainer};

/// Longest that anything here may take: reaching it is a hang.
const PATIENCE: Duration = Duration::from_secs(180);
const COMPLETED: Option<i32> = Some(0);
const RESUMABLE: Option<i32> = Some(12);
const NOT_OURS: Option<i32> = Some(13);

/// A run that is long enough to be killed in, with many checkpoints.
const LONG: &[&str] = &[
    "--n_embd=64",
    "--block_size=32",
    "--batch_size=16",
    "--max_iters=300",
    "--eval_interval=100",
    "--checkpoint_interval=10",
];
const LAST: u64 = 300;

fn agent() -> &'static Path {
    static AGENT: OnceLock<PathBuf> = OnceLock::new();
    AGENT.get_or_init(|| build("agent"))
}

/// An agent at work on the job `j`; killed if the test ends before it.
struct Agent(Child);

impl Agent {
    fn start(scene: &Scene, machine: &str, words: &[&str]) -> Self {
        let mut command = Command::new(agent());
        let run_dir = format!("--run-dir={machine}");
        command
            .args(["run", "--store=store", "--job=j", "--ttl=12s", &run_dir])
            .arg("--")
            .arg(trainer())
            .args(TINY)
            .args(words)
            .current_dir(scene.path())
            .env("ANNEAL_CACHE", scene.path().join("cache"))
            .env_remove("ANNEAL_DATA")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Self(command.spawn().unwrap())
    }

    fn finish(mut self) -> Option<i32> {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code();
            }
            assert!(begin.elapsed() < PATIENCE, "the agent hangs");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn signal(&self, signal: Signal) {
        rustix::process::kill_process(Pid::from_child(&self.0), signal).unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Steps of the checkpoints that are committed in the store.
fn commits(scene: &Scene) -> Vec<u64> {
    let Ok(entries) = fs::read_dir(scene.path().join("store/j/commit")) else {
        return Vec::new();
    };
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names
        .filter_map(|name| name.split('-').next()?.parse().ok())
        .collect()
}

fn wait_for_commit(scene: &Scene, step: u64) {
    let begin = Instant::now();
    while commits(scene).iter().all(|&found| found < step) {
        assert!(begin.elapsed() < PATIENCE, "no commit of step {step}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Process ids of trainers that write to this machine's run directory.
fn trainers(scene: &Scene, machine: &str) -> Vec<i32> {
    let word = format!("--out_dir={}", scene.path().join(machine).display());
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap() {
        let name = entry.unwrap().file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if line
            .split(|&byte| byte == 0)
            .any(|text| text == word.as_bytes())
        {
            found.push(pid);
        }
    }
    found
}

fn model(scene: &Scene, machine: &str) -> Vec<u8> {
    let run_dir = RunDir::new(scene.path().join(machine));
    fs::read(run_dir.checkpoint(LAST).join(RunDir::MODEL)).unwrap()
}

#[test]
fn kills_of_trainer_agent_and_machine_change_no_bit() {
    let (straight, killed) = (Scene::new(), Scene::new());
    assert_eq!(Agent::start(&straight, "a", LONG).finish(), COMPLETED);

    let mut agent = Agent::start(&killed, "a", LONG);
    wait_for_commit(&killed, 10);
    for pid in trainers(&killed, "a") {
        let pid = Pid::from_raw(pid).unwrap();
        // It may have ended by itself.
        rustix::process::kill_process(pid, Signal::KILL).ok();
    }
    wait_for_commit(&killed, 50);
    agent.0.kill().unwrap();
    agent.0.wait().unwrap();
    drop(agent);
    // The same machine goes on at once, another one when the lease has run out.
    let mut agent = Agent::start(&killed, "a", LONG);
    wait_for_commit(&killed, 100);
    agent.0.kill().unwrap();
    agent.0.wait().unwrap();
    assert_eq!(Agent::start(&killed, "b", LONG).finish(), COMPLETED);

    assert!(
        model(&straight, "a") == model(&killed, "b"),
        "the parameters differ"
    );
    assert!(
        trainers(&killed, "a").is_empty(),
        "a trainer outlived its agent"
    );
    assert_eq!(Agent::start(&killed, "c", LONG).finish(), NOT_OURS);
}

#[test]
fn a_stopped_job_is_published_and_resumed_elsewhere() {
    let scene = Scene::new();
    let agent = Agent::start(&scene, "a", LONG);
    wait_for_commit(&scene, 10);
    agent.signal(Signal::TERM);
    assert_eq!(agent.finish(), RESUMABLE);
    let stopped = commits(&scene).into_iter().max();
    assert!(stopped.is_some_and(|step| step < LAST), "{stopped:?}");
    assert!(!scene.path().join("store/j/final").exists());
    assert_eq!(Agent::start(&scene, "b", LONG).finish(), COMPLETED);
}
