//! A trainer that does not want to go, and what it started.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::bucket::Bucket;
use crate::machine::{Agent, RESUMABLE, Site, wait_until};
use crate::support::Scene;

/// Ignores every polite signal; so do its child, its grandchild in a session of its own, and a
/// daemon with nobody's environment that has left its parents behind. Each notes its number.
const STUBBORN: &str = r#"
trap '' TERM INT HUP USR1
endless='trap "" TERM INT HUP USR1; echo $$ >>"$0"; while :; do sleep 1; done'
sh -c "$endless" "$1/pids" &
(setsid sh -c "$endless" "$1/pids" &)
(env -i setsid sh -c "$endless" "$1/pids" &)
echo $$ >>"$1/pids"
while :; do sleep 1; done
"#;

#[test]
fn nothing_is_left_of_a_trainer_that_ignores_signals_and_forks() {
    let (scene, bucket) = (Scene::new(), Bucket::new());
    let mut site = Site::on(&scene, &bucket, bucket.address, &[]);
    let command = ["sh", "-c", STUBBORN, "stubborn", "{run_dir}"];
    site.command = command.map(str::to_owned).to_vec();
    let site = site.with_flags(&["--grace=5s"]);
    let mut agent = site.start("a");
    agent.runs_until("four processes", |agent| pids(agent).len() == 4);
    let pids = pids(&agent);
    agent.signal(Signal::TERM);
    let begin = Instant::now();
    assert_eq!(agent.wait(), RESUMABLE, "{}", agent.log());
    let took = begin.elapsed();
    assert!(
        took < Duration::from_secs(20),
        "{took:?} for a grace of 5 s"
    );
    let left: Vec<&i32> = pids.iter().filter(|pid| lives(**pid)).collect();
    assert_eq!(left, [&0; 0], "of {pids:?}:\n{}", agent.log());
}

/// An agent that dies cannot end anybody, but the next one on this machine does.
#[test]
fn what_a_dead_agent_left_is_ended_by_the_next() {
    let (scene, bucket) = (Scene::new(), Bucket::new());
    let mut site = Site::on(&scene, &bucket, bucket.address, &[]);
    let stubborn = STUBBORN.replace("env -i", "");
    let command = ["sh", "-c", &stubborn, "stubborn", "{run_dir}"];
    site.command = command.map(str::to_owned).to_vec();
    let site = site.with_flags(&["--grace=5s"]);
    let mut agent = site.start("a");
    agent.runs_until("four processes", |agent| pids(agent).len() == 4);
    let old = pids(&agent);
    agent.kill();
    let mut agent = site.start("a");
    agent.runs_until("eight processes", |agent| pids(agent).len() == 8);
    wait_until("the first four's end", || {
        !old.iter().any(|&pid| lives(pid))
    });
    agent.signal(Signal::TERM);
    assert_eq!(agent.wait(), RESUMABLE, "{}", agent.log());
    let left: Vec<i32> = pids(&agent).into_iter().filter(|&pid| lives(pid)).collect();
    assert_eq!(left, [0; 0], "{}", agent.log());
}

fn pids(agent: &Agent) -> Vec<i32> {
    let text = fs::read_to_string(agent.run_dir().root().join("pids")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// Whether a process is there, and not only its exit status.
fn lives(pid: i32) -> bool {
    let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}
