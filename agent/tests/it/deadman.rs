//! The dead-man's switch: real agents that are stopped and killed, with a power-off command that
//! leaves a file behind instead of ending the machine.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::support::{is_alive, wait_until};

/// A trainer that trains on until it is told not to.
const TRAINER: &str =
    "trap 'exit 75' TERM; echo $$ > {run_dir}/trainer; while :; do sleep 0.05; done";

struct Scene {
    folder: TempDir,
}

impl Scene {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The arguments of an agent whose machine is off once the file `off` is there.
    fn arguments(&self, flags: &[&str]) -> Vec<String> {
        let path = |name: &str| self.path(name).display().to_string();
        let off = format!("date >> {}", path("off"));
        let first = ["run", "--job=j", "--power-off-command", &off].map(str::to_owned);
        let rest = [
            format!("--store={}", path("store")),
            format!("--run-dir={}", path("run")),
            "--provider=local".to_owned(),
            "--ttl=8s".to_owned(),
        ];
        let flags = flags.iter().map(|&flag| flag.to_owned());
        let trainer = ["--", "sh", "-c", TRAINER].map(str::to_owned);
        let all = first.into_iter().chain(rest).chain(flags).chain(trainer);
        all.collect()
    }

    fn start(&self, flags: &[&str]) -> Agent {
        let mut command = Command::new(env!("CARGO_BIN_EXE_agent"));
        command.args(self.arguments(flags));
        self.run(command)
    }

    fn run(&self, mut command: Command) -> Agent {
        let said = fs::File::create(self.path("said")).unwrap();
        let process = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(said)
            .spawn()
            .unwrap();
        Agent { process }
    }

    fn said(&self) -> String {
        fs::read_to_string(self.path("said")).unwrap_or_default()
    }

    fn is_off(&self) -> bool {
        self.path("off").exists()
    }

    /// Waits for the trainer, and returns its number.
    fn trainer(&self) -> u32 {
        let path = self.path("run/trainer");
        let number = || fs::read_to_string(&path).ok()?.trim().parse().ok();
        wait_until("the trainer runs", || number().is_some());
        number().unwrap()
    }
}

struct Agent {
    process: Child,
}

impl Agent {
    fn signal(&self, signal: Signal) {
        kill(self.process.id(), signal);
    }

    fn finish(&mut self) -> ExitStatus {
        let process = &mut self.process;
        let mut status = None;
        let end = std::time::Instant::now() + crate::support::PATIENCE;
        while status.is_none() && std::time::Instant::now() < end {
            status = process.try_wait().unwrap();
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        status.expect("the agent ends")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

fn kill(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

#[test]
fn an_agent_that_is_killed_takes_its_machine_with_it() {
    let scene = Scene::new();
    let agent = scene.start(&[]);
    let trainer = scene.trainer();
    assert!(!scene.is_off());
    agent.signal(Signal::KILL);
    wait_until("the machine is off", || scene.is_off());
    wait_until("the trainer is gone", || !is_alive(trainer));
    wait_until("somebody says why", || scene.said().contains("has died"));
}

#[test]
fn an_agent_that_is_stopped_is_killed_and_its_machine_goes() {
    let scene = Scene::new();
    let mut agent = scene.start(&["--hang=2s"]);
    let trainer = scene.trainer();
    agent.signal(Signal::STOP);
    wait_until("the machine is off", || scene.is_off());
    wait_until("the trainer is gone", || !is_alive(trainer));
    assert_eq!(agent.finish().code(), None, "killed by a signal");
}

#[test]
fn the_switch_is_not_taken_for_something_that_a_trainer_left_behind() {
    let scene = Scene::new();
    let agent = scene.start(&[]);
    let first = scene.trainer();
    kill(first, Signal::KILL);
    wait_until("another trainer runs", || scene.trainer() != first);
    // Two lines to a switch that was killed would be noticed.
    std::thread::sleep(std::time::Duration::from_millis(2_500));
    let said = scene.said();
    assert!(!said.contains("dead-man's switch"), "{said}");
    agent.signal(Signal::KILL);
    wait_until("the machine is off", || scene.is_off());
}

#[test]
fn an_agent_that_ends_as_it_means_to_is_left_alone() {
    let scene = Scene::new();
    let mut agent = scene.start(&["--hang=2s"]);
    scene.trainer();
    // Somebody gives notice: the machine is his.
    agent.signal(Signal::TERM);
    assert_eq!(agent.finish().code(), Some(12));
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert!(!scene.is_off(), "{}", scene.said());
}

#[test]
fn at_its_limit_the_agent_itself_gives_the_machine_back() {
    let scene = Scene::new();
    let mut agent = scene.start(&["--max-wall=12s"]);
    let trainer = scene.trainer();
    assert_eq!(agent.finish().code(), Some(14), "{}", scene.said());
    assert!(scene.is_off() && !is_alive(trainer));
    let said = scene.said();
    assert!(said.contains("the wall-clock limit is reached"), "{said}");
}

#[test]
fn a_store_that_cannot_be_had_does_not_keep_the_machine() {
    let scene = Scene::new();
    // A file where the store's folder would be.
    fs::write(scene.path("store"), "").unwrap();
    let mut agent = scene.start(&["--hang=2s"]);
    assert_ne!(agent.finish().code(), Some(0));
    assert!(scene.is_off(), "{}", scene.said());
}

#[test]
fn as_the_first_process_of_a_container_the_switch_outlives_the_agent() {
    let unshare = |scene: &Scene, flags: &[&str]| {
        let mut command = Command::new("unshare");
        command
            .args([
                "--user",
                "--map-root-user",
                "--pid",
                "--fork",
                "--mount-proc",
                "--kill-child",
            ])
            .arg(env!("CARGO_BIN_EXE_agent"))
            .args(scene.arguments(flags));
        scene.run(command)
    };
    let may = Command::new("unshare")
        .args([
            "--user",
            "--map-root-user",
            "--pid",
            "--fork",
            "--mount-proc",
            "true",
        ])
        .stderr(Stdio::null())
        .status();
    if !may.is_ok_and(|status| status.success()) {
        // Containers may not make containers everywhere.
        return;
    }
    let scene = Scene::new();
    let mut agent = unshare(&scene, &["--hang=5s"]);
    scene.trainer();
    let below = children(agent.process.id());
    let [first] = below[..] else {
        panic!("expected one first process, got {below:?}");
    };
    let below = children(first);
    let [worker] = below[..] else {
        panic!("expected one agent below it, got {below:?}");
    };
    kill(worker, Signal::KILL);
    wait_until("the machine is off", || scene.is_off());
    assert_eq!(agent.finish().code(), Some(70), "{}", scene.said());

    // A signal to the first process reaches the agent, whose exit status is the container's.
    let scene = Scene::new();
    let mut agent = unshare(&scene, &["--hang=5s"]);
    scene.trainer();
    let first = children(agent.process.id())[0];
    kill(first, Signal::TERM);
    assert_eq!(agent.finish().code(), Some(12), "{}", scene.said());
    assert!(!scene.is_off());
}

fn children(of: u32) -> Vec<u32> {
    let path = format!("/proc/{of}/task/{of}/children");
    let text = fs::read_to_string(path).unwrap();
    text.split_whitespace()
        .map(|pid| pid.parse().unwrap())
        .collect()
}
