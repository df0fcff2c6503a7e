//! A trainer killed by the kernel for memory, in a real control group where one can be made;
//! `cgroup`'s own tests cover the other kinds by recorded trees.

use std::fs;
use std::path::PathBuf;

use agent::cgroup::{Cgroup, Version};
use agent::child::{Status, shield_from_oom};

use crate::support::{PATIENCE, script, spawn};

const LIMIT_BYTES: u64 = 32 << 20;

/// A group of its own below this process's, removed at the end.
struct Group(PathBuf);

impl Group {
    /// `None` where this process may not make one.
    fn make() -> Option<(Self, Version)> {
        let own = Cgroup::of_self().unwrap()?;
        let group = Self(
            own.directory()
                .join(format!("oom-test-{}", std::process::id())),
        );
        fs::create_dir(&group.0).ok()?;
        let limit = match own.version() {
            Version::V1 => "memory.limit_in_bytes",
            Version::V2 => "memory.max",
        };
        let limited = fs::write(group.0.join(limit), LIMIT_BYTES.to_string());
        limited.ok().map(|()| (group, own.version()))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _stays_if_in_use = fs::remove_dir(&self.0);
    }
}

#[tokio::test]
async fn an_oom_kill_is_recognised_and_names_the_limit() {
    let Some((group, version)) = Group::make() else {
        println!("no control group can be made here");
        return;
    };
    // The group as the agent would find it for a process that is in it.
    let procs = group.0.join("cgroup.procs");
    let mut inside = std::process::Command::new("sleep")
        .arg("1000")
        .spawn()
        .unwrap();
    fs::write(&procs, inside.id().to_string()).unwrap();
    let memory = Cgroup::find("/".as_ref(), &inside.id().to_string())
        .unwrap()
        .unwrap();
    inside.kill().unwrap();
    inside.wait().unwrap();
    assert_eq!(memory.directory(), group.0);
    assert_eq!(memory.version(), version);

    let text = format!(
        "echo $$ > {} && exec dd if=/dev/zero of=/dev/null bs=256M count=1",
        procs.display()
    );
    let mut command = script(&text);
    command.memory = Some(memory);
    let (child, _) = spawn(&command);
    let exit = child.wait().await;
    assert!(exit.is_oom_kill(), "{exit:?}");
    assert_eq!(
        exit.to_string(),
        "SIGKILL: killed by the kernel for want of memory, limit 32 MiB"
    );
    child.kill_group(PATIENCE).await.unwrap();

    // The same signal from anybody else is told apart, in the same group.
    let text = format!("echo $$ > {} && kill -KILL $$", procs.display());
    let (child, _) = spawn(&agent::child::Command {
        memory: command.memory.clone(),
        ..script(&text)
    });
    assert_eq!(child.wait().await.to_string(), "SIGKILL");
}

/// Plays an agent that protects itself; does nothing unless
/// [`the_agent_is_shielded_and_its_trainer_is_not`] asks for it.
#[tokio::test]
async fn plays_a_shielded_agent() {
    let Ok(inherited) = std::env::var("TEST_OOM_SCORE_ADJ") else {
        return;
    };
    let own = || fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    assert_eq!(own().trim(), inherited);
    let shielded = shield_from_oom().unwrap();
    assert_eq!(own().trim(), if shielded { "-900" } else { &inherited });
    let (child, heard) = spawn(&script("cat /proc/self/oom_score_adj"));
    assert_eq!(child.wait().await.status, Status::Code(0));
    assert!(child.drained(PATIENCE).await);
    assert_eq!(heard.stdout().trim(), inherited);
}

#[test]
fn the_agent_is_shielded_and_its_trainer_is_not() {
    // A value of its own, so that the trainer is seen to get that one and not just zero.
    let test = std::env::current_exe().unwrap();
    let status = std::process::Command::new("sh")
        .args([
            "-c",
            "echo 123 > /proc/self/oom_score_adj && exec \"$@\"",
            "sh",
        ])
        .arg(test)
        .args(["--exact", "oom::plays_a_shielded_agent"])
        .env("TEST_OOM_SCORE_ADJ", "123")
        .stdout(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
}
