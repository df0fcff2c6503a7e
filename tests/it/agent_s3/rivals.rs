//! Several agents that want one job: at once, and one after another that only slept.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::bucket::Bucket;
use crate::machine::{Agent, ENDLESS, NOT_OURS, Site, wait_until};
use crate::support::Scene;

const RIVALS: usize = 20;
/// From the claim to the end of the last agent that did not get it: seconds, on a machine that has
/// a core for every one of them; here they share two.
const DECIDED_MAX: Duration = Duration::from_secs(60);

#[test]
fn of_twenty_that_start_at_once_one_trains() {
    let (scene, bucket) = (Scene::new(), Bucket::new());
    let mut site = Site::on(&scene, &bucket, bucket.address, ENDLESS).with_ttl(30);
    let begin = Instant::now();
    let mut agents: Vec<Agent> = (0..RIVALS).map(|i| site.start(&format!("m{i}"))).collect();
    wait_until("a claim", || {
        !bucket.keys_below("lease/").is_empty() || running(&mut agents) == 0
    });
    let claimed = begin.elapsed();
    wait_until("one that is left", || running(&mut agents) <= 1);
    let decided = begin.elapsed();
    println!("claimed after {claimed:?}, decided after {decided:?}");

    let logs: Vec<String> = agents
        .iter()
        .map(|agent| agent.own_lines().join("\n"))
        .collect();
    let logs = logs.join("\n\n");
    let winner = agents.iter_mut().position(Agent::is_running);
    let mut winner = agents.swap_remove(winner.expect(&logs));
    let codes: Vec<Option<i32>> = agents.iter_mut().map(Agent::wait).collect();
    assert_eq!(codes, [NOT_OURS; RIVALS - 1], "{logs}");
    assert!(
        decided - claimed < DECIDED_MAX,
        "claimed at {claimed:?}, decided at {decided:?}"
    );
    assert!(agents.iter().all(|agent| agent.attempts() == 0), "{logs}");
    winner.runs_until("a commit", |_| bucket.newest_step() > 0);
    winner.stop();
    assert_eq!(winner.attempts(), 1, "{}", winner.log());
    assert_eq!(bucket.keys_below("lease/00000002"), [""; 0], "one epoch");
    site.finish(&bucket, "late");
}

fn running(agents: &mut [Agent]) -> usize {
    agents
        .iter_mut()
        .filter_map(|agent| agent.is_running().then_some(()))
        .count()
}

/// A machine that freezes with its trainer, and wakes when another one has taken over.
#[test]
fn a_holder_that_wakes_after_a_takeover_publishes_nothing() {
    let (scene, bucket) = (Scene::new(), Bucket::new());
    let site = Site::on(&scene, &bucket, bucket.address, ENDLESS).with_ttl(12);
    let mut zombie = site.start("a");
    zombie.runs_until("a commit", |_| bucket.newest_step() >= 20);
    zombie.signal(Signal::STOP);
    assert_eq!(zombie.signal_trainers(Signal::STOP), 1);
    let published = of_epoch(&bucket, 1);

    let mut site = site.with_flags(&["--on-lost=standby"]);
    let mut heir = site.start("b");
    heir.says("has the lease: epoch 2");
    heir.runs_until("a commit", |_| {
        bucket.commits().iter().any(|&(_, epoch)| epoch == 2)
    });
    assert_eq!(
        of_epoch(&bucket, 1),
        published,
        "a stopped process published"
    );
    zombie.signal_trainers(Signal::CONT);
    zombie.signal(Signal::CONT);
    let woken = Instant::now();
    wait_until("the end of the zombie's trainer", || {
        zombie.trainers().is_empty()
    });
    let fenced = woken.elapsed();
    assert_eq!(zombie.wait(), NOT_OURS, "{}", zombie.log());
    println!("the zombie's trainer ended after {fenced:?}");
    assert!(fenced < Duration::from_secs(10), "{fenced:?}");

    heir.stop();
    // What is kept of epoch 1 is for the heir to decide, who may prune; there is nothing new.
    let left = of_epoch(&bucket, 1);
    let new: Vec<&String> = left.iter().filter(|key| !published.contains(key)).collect();
    assert_eq!(new, [""; 0], "{}", zombie.log());
    let last_word = bucket.json("status.json")["epoch"].as_u64();
    assert!(last_word >= Some(2), "{last_word:?}: {}", zombie.log());
    site.finish(&bucket, "b");
}

/// Every object that the holder of an epoch has written, but data without a commit: nobody sees it,
/// and a request may have been on its way.
fn of_epoch(bucket: &Bucket, epoch: u64) -> Vec<String> {
    let number = format!("{epoch:08}");
    let mut keys = bucket.keys();
    keys.retain(|key| {
        let name = key.strip_suffix(".json").unwrap_or(key);
        let of_lease = key.starts_with(&format!("lease/{number}"));
        let of_commit = key.starts_with("commit/") && name.ends_with(&number);
        of_lease || of_commit || *key == format!("final/{number}.json")
    });
    keys
}
