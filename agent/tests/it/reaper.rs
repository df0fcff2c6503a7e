//! The duties of a first process, by an agent played in a process of its own: being a reaper is a
//! property of the whole process, and so are its signal handlers.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use agent::child::Status;
use agent::reaper::{Request, Signals, start};
use rustix::process::{Pid, Signal, kill_process};

use crate::support::{PATIENCE, pids, script, spawn, wait_until};

/// Starts this test binary again as the agent that `test` plays. It ends by itself, and has a
/// directory to leave what it saw in.
fn play(test: &str, dir: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test])
        .env("TEST_REAPER_DIR", dir)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

fn stage() -> Option<std::path::PathBuf> {
    std::env::var_os("TEST_REAPER_DIR").map(Into::into)
}

/// Plays an agent whose trainer leaves orphans, while other children are waited for by others.
#[tokio::test]
async fn plays_a_reaper() {
    if stage().is_none() {
        return;
    }
    if let Ok(pid) = std::env::var("TEST_REAPER_PID") {
        assert_eq!(std::process::id().to_string(), pid);
    }
    start().unwrap();
    // Orphans that end after their parent, which had ended before they did.
    let (child, heard) = spawn(&script(
        "for i in 1 2 3; do (sh -c 'echo $$; sleep 0.3' &) ; done; exit 9",
    ));
    let orphans = pids(&heard, 3);
    // Children of other owners: one asked for at once, one only after it has ended.
    let tokios = tokio::process::Command::new("sh")
        .args(["-c", "exit 21"])
        .status();
    let mut stds = Command::new("sh").args(["-c", "exit 22"]).spawn().unwrap();
    assert_eq!(tokios.await.unwrap().code(), Some(21));
    wait_until("it ends", || {
        fs::read_to_string(format!("/proc/{}/stat", stds.id()))
            .unwrap()
            .contains(") Z ")
    });
    assert_eq!(stds.wait().unwrap().code(), Some(22));
    // The trainer's status waits for us, however long the reaper looks at its zombie.
    wait_until("the orphans are buried", || {
        orphans
            .iter()
            .all(|pid| !Path::new(&format!("/proc/{pid}")).exists())
    });
    assert!(
        Path::new(&format!("/proc/{}", child.pid())).exists(),
        "kept until dropped"
    );
    assert_eq!(child.wait().await.status, Status::Code(9));
}

#[test]
fn orphans_are_buried_and_no_status_is_stolen() {
    let dir = tempfile::tempdir().unwrap();
    let mut agent = play("reaper::plays_a_reaper", dir.path());
    assert!(agent.wait().unwrap().success());
}

#[test]
fn the_first_process_of_a_container_buries_too() {
    let in_container = ["--pid", "--fork", "--mount-proc", "--kill-child"];
    let can = Command::new("unshare")
        .args(in_container)
        .arg("true")
        .output();
    if !can.is_ok_and(|output| output.status.success()) {
        println!("no process namespace can be made here");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let status = Command::new("unshare")
        .args(in_container)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "reaper::plays_a_reaper"])
        .env("TEST_REAPER_DIR", dir.path())
        .env("TEST_REAPER_PID", "1")
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
}

/// Plays an agent that hands SIGUSR2 to its trainer and then stops it on SIGTERM.
#[tokio::test]
async fn plays_a_listener() {
    let Some(dir) = stage() else {
        return;
    };
    let mut signals = Signals::listen().unwrap();
    let (child, heard) = spawn(&script(
        "trap 'echo usr2' USR2; trap 'echo term; exit 75' TERM
         echo ready; while :; do sleep 0.05; done",
    ));
    wait_until("the trainer is ready", || heard.stdout().contains("ready"));
    fs::write(dir.join("ready"), "").unwrap();
    assert_eq!(signals.next().await, Request::Forward(Signal::USR2));
    assert!(child.signal(Signal::USR2).unwrap());
    wait_until("the trainer hears it", || heard.stdout().contains("usr2"));
    fs::write(dir.join("forwarded"), "").unwrap();
    assert_eq!(signals.next().await, Request::Stop(Signal::TERM));
    assert!(child.signal(Signal::TERM).unwrap());
    assert_eq!(child.wait().await.status, Status::Code(75));
    child.kill_group(PATIENCE).await.unwrap();
}

#[test]
fn signals_reach_the_agent_and_are_handed_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut agent = play("reaper::plays_a_listener", dir.path());
    let pid = Pid::from_child(&agent);
    wait_until("ready", || dir.path().join("ready").exists());
    kill_process(pid, Signal::USR2).unwrap();
    wait_until("forwarded", || dir.path().join("forwarded").exists());
    kill_process(pid, Signal::TERM).unwrap();
    assert!(agent.wait().unwrap().success());
}
