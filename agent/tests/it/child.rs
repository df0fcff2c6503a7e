//! Trainers that misbehave: deaf ones, forking ones, dying ones.

use std::time::{Duration, Instant};

use agent::child::{Environment, Status, group};
use rustix::process::Signal;

use crate::support::{PATIENCE, is_alive, pids, script, spawn, wait_until};

#[tokio::test]
async fn output_is_kept_apart_and_the_exit_code_told() {
    let (child, heard) = spawn(&script("echo one; echo two >&2; printf half; exit 75"));
    let exit = child.wait().await;
    assert_eq!(exit.status, Status::Code(75));
    assert_eq!(exit.oom, None);
    assert!(child.drained(PATIENCE).await);
    assert_eq!(heard.stdout(), "one\nhalf");
    assert_eq!(heard.stderr(), "two\n");
    // The answer stays.
    assert_eq!(child.wait().await, exit);
    assert_eq!(child.try_wait(), Some(exit));
    assert!(!child.signal(Signal::TERM).unwrap());
}

#[tokio::test]
async fn it_leads_its_own_session_with_an_empty_standard_input() {
    let (child, heard) = spawn(&script("cat; ps -o pgid=,sid= -p $$"));
    assert_eq!(child.wait().await.status, Status::Code(0));
    assert!(child.drained(PATIENCE).await);
    let pid = child.pid().to_string();
    let ids: Vec<String> = heard
        .stdout()
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    assert_eq!(ids, [pid.clone(), pid]);
}

#[tokio::test]
async fn death_by_a_signal_is_told_from_an_exit_code() {
    let (child, _) = spawn(&script("kill -SEGV $$"));
    let exit = child.wait().await;
    assert_eq!(exit.status, Status::Signal(Signal::SEGV.as_raw()));
    assert_eq!(exit.to_string(), "SIGSEGV");
}

#[tokio::test]
async fn a_program_that_is_not_there_is_a_fault_that_repeats() {
    let mut command = script("");
    command.program = "/nowhere/trainer".into();
    let (child, heard) = spawn(&command);
    assert_eq!(child.wait().await.status, Status::Code(64));
    assert!(child.drained(PATIENCE).await);
    let said = heard.stderr();
    assert!(
        said.contains("cannot execute `/nowhere/trainer`: No such file"),
        "{said}"
    );
}

#[tokio::test]
async fn a_signal_reaches_the_leader_alone() {
    // The helper would end by SIGTERM; the leader reports whether it still lives.
    let (child, heard) = spawn(&script(
        "sleep 1000 & helper=$!
         trap 'kill -0 $helper && echo helper lives; exit 75' TERM
         echo ready; while :; do sleep 0.05; done",
    ));
    wait_until("ready", || heard.stdout().contains("ready"));
    assert!(child.signal(Signal::TERM).unwrap());
    assert_eq!(child.wait().await.status, Status::Code(75));
    wait_until("the helper lives", || {
        heard.stdout().contains("helper lives")
    });
    child.kill_group(PATIENCE).await.unwrap();
}

#[tokio::test]
async fn one_that_ignores_sigterm_is_killed() {
    let (child, heard) = spawn(&script(
        "trap '' TERM; echo ready; while :; do sleep 0.05; done",
    ));
    wait_until("ready", || heard.stdout().contains("ready"));
    assert!(child.signal(Signal::TERM).unwrap());
    let early = tokio::time::timeout(Duration::from_millis(300), child.wait()).await;
    assert!(early.is_err(), "{early:?}");
    child.kill_group(PATIENCE).await.unwrap();
    assert_eq!(
        child.wait().await.status,
        Status::Signal(Signal::KILL.as_raw())
    );
}

#[tokio::test]
async fn forks_double_forks_and_sessions_of_their_own_do_not_escape() {
    // In order: a plain child; one in a session of its own whose parent is gone; one whose parent
    // is gone and that lost its mark, but not its session.
    let (child, heard) = spawn(&script(
        "sleep 1000 & echo $!
         (setsid sh -c 'echo $$; exec sleep 1000' &)
         (env -i sh -c 'echo $$; exec sleep 1000' &)
         wait",
    ));
    let mut all = pids(&heard, 3);
    all.push(child.pid());
    assert!(all.iter().all(|&pid| is_alive(pid)));
    child.kill_group(PATIENCE).await.unwrap();
    assert!(!all.iter().any(|&pid| is_alive(pid)), "{all:?}");
    // Nobody holds the pipes any more.
    assert!(child.drained(PATIENCE).await);
}

#[tokio::test]
async fn what_outlives_the_leader_is_killed_and_does_not_hold_the_reader() {
    let (child, heard) = spawn(&script(
        "(setsid sh -c 'echo $$; exec sleep 1000' &) ; exit 3",
    ));
    let escaped = pids(&heard, 1)[0];
    assert_eq!(child.wait().await.status, Status::Code(3));
    assert!(is_alive(escaped));
    assert!(
        !child.drained(Duration::from_millis(100)).await,
        "the pipe is held open"
    );
    child.kill_group(PATIENCE).await.unwrap();
    assert!(!is_alive(escaped));
    assert!(child.drained(PATIENCE).await);
}

#[tokio::test]
async fn closing_its_output_is_not_the_end() {
    let (child, _) = spawn(&script("exec >&- 2>&-; sleep 0.5; exit 7"));
    assert!(child.drained(PATIENCE).await);
    assert_eq!(child.try_wait(), None);
    assert_eq!(child.wait().await.status, Status::Code(7));
}

#[tokio::test]
async fn dropping_it_kills_it() {
    let (child, heard) = spawn(&script("sleep 1000 & echo $!; wait"));
    let helper = pids(&heard, 1)[0];
    let leader = child.pid();
    drop(child);
    wait_until("both are gone", || !is_alive(leader) && !is_alive(helper));
    wait_until("the leader is reaped", || {
        !std::path::Path::new(&format!("/proc/{leader}")).exists()
    });
}

#[test]
fn it_outlives_the_thread_that_asked_for_it() {
    let asking = std::thread::spawn(|| {
        let (child, heard) = spawn(&script("echo ready; exec sleep 1000"));
        // From here on it would die with the thread that forked it.
        wait_until("ready", || heard.stdout().contains("ready"));
        child
    });
    let child = asking.join().unwrap();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(child.try_wait(), None);
}

/// Plays an agent when asked to by [`a_killed_agent_takes_its_trainer_with_it`]; else does nothing.
#[tokio::test]
async fn plays_an_agent() {
    let Ok(pid_file) = std::env::var("TEST_AGENT_PID_FILE") else {
        return;
    };
    let mut command = script("sleep 1000 & echo $!; wait");
    let checkpoints = std::env::var_os("TEST_AGENT_CHECKPOINTS").unwrap();
    command.env.set.push(("AGENT_CKPT_DIR".into(), checkpoints));
    let (child, heard) = spawn(&command);
    let helper = pids(&heard, 1)[0];
    std::fs::write(&pid_file, format!("{} {helper}.", child.pid())).unwrap();
    child.wait().await;
}

#[tokio::test]
async fn a_killed_agent_takes_its_trainer_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let pid_file = dir.path().join("pid");
    let checkpoints = dir.path().join("checkpoints");
    let mut agent = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child::plays_an_agent"])
        .env("TEST_AGENT_PID_FILE", &pid_file)
        .env("TEST_AGENT_CHECKPOINTS", &checkpoints)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let written = || std::fs::read_to_string(&pid_file).unwrap_or_default();
    wait_until("the trainer runs", || written().ends_with('.'));
    let text = written();
    let (trainer, helper) = text.trim_end_matches('.').split_once(' ').unwrap();
    let (trainer, helper) = (trainer.parse().unwrap(), helper.parse().unwrap());
    assert!(is_alive(trainer));
    agent.kill().unwrap();
    agent.wait().unwrap();
    wait_until("the trainer is gone", || !is_alive(trainer));
    // What the trainer had started is not told by the kernel; the next agent looks for it.
    group::kill_left_over(&checkpoints, PATIENCE).await.unwrap();
    assert!(!is_alive(helper));
}

#[tokio::test]
async fn a_former_agents_trainer_is_found_and_killed() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = dir.path().join("checkpoints");
    let mut command = script("sleep 1000 & echo $!; wait");
    let set = &mut command.env.set;
    set.push(("AGENT_JOB_ID".into(), "job".into()));
    set.push(("AGENT_CKPT_DIR".into(), checkpoints.clone().into()));
    let (child, heard) = spawn(&command);
    let helper = pids(&heard, 1)[0];
    let mut found = group::left_over(&checkpoints).unwrap();
    found.sort_unstable();
    assert_eq!(found, [child.pid(), helper]);
    // The same job's trainer of another agent on this machine, which may well hold the lease.
    let others = dir.path().join("other/checkpoints");
    assert!(group::left_over(&others).unwrap().is_empty());
    group::kill_left_over(&checkpoints, PATIENCE).await.unwrap();
    assert!(!is_alive(helper));
}

#[tokio::test]
async fn the_environment_holds_the_attempt_and_none_of_the_agents_secrets() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = script("env");
    command.cwd = Some(dir.path().to_owned());
    command.env = Environment::of_attempt(
        "j1",
        3,
        2,
        &dir.path().join("checkpoints"),
        None,
        &dir.path().join("error.json"),
    );
    let (child, heard) = spawn(&command);
    child.wait().await;
    assert!(child.drained(PATIENCE).await);
    let text = heard.stdout();
    for line in [
        "AGENT_JOB_ID=j1",
        "AGENT_ATTEMPT=3",
        "AGENT_EPOCH=2",
        "AGENT_RESUME_FROM=",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in {text}");
    }
    let pwd = format!("PWD={}", dir.path().display());
    assert!(text.contains(&pwd), "{text}");
}

#[tokio::test]
async fn a_stuck_kill_names_who_is_left() {
    let (child, _) = spawn(&script("sleep 1000"));
    let start = Instant::now();
    let error = child.kill_group(Duration::ZERO).await;
    // Either it was gone at the first look, or it is named.
    if let Err(survivors) = error {
        assert!(survivors.pids.contains(&child.pid()), "{survivors}");
    }
    child.kill_group(PATIENCE).await.unwrap();
    assert!(start.elapsed() < PATIENCE);
}
