//! Several agents that want one job: at once, and one after another that only slept.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::bucket::Bucket;
use crate::machine::{
    Agent, COMPLETED, LONG, NOT_OURS, Site, published_model, undisturbed_model, wait_until,
};
use crate::support::Scene;

const LAST: u64 = 400;
const RIVALS: usize = 20;
/// From the claim to the end of the last agent that did not get it: seconds, on a machine that has
/// a core for every one of them; here they share two.
const DECIDED_MAX: Duration = Duration::from_secs(60);

#[test]
fn of_twenty_that_start_at_once_one_trains() {
    let (scene, bucket) = (Scene::new(), Bucket::new());
    let end = format!("--max_iters={LAST}");
    let words = [LONG, &[&end]].concat();
    let site = Site::on(&scene, &bucket, bucket.address, &words).with_ttl(30);
    let begin = Instant::now();
    let mut agents: Vec<Agent> = (0..RIVALS).map(|i| site.start(&format!("m{i}"))).collect();
    wait_until("a claim", || {
        !bucket.keys_below("lease/").is_empty() || running(&mut agents) == 0
    });
    let claimed = begin.elapsed();
    wait_until("one that is left", || running(&mut agents) <= 1);
    let decided = begin.elapsed();
    println!("claimed after {claimed:?}, decided after {decided:?}");

    let mut codes: Vec<Option<i32>> = agents.iter_mut().map(Agent::wait).collect();
    codes.sort_unstable();
    let logs: Vec<String> = agents
        .iter()
        .map(|agent| agent.own_lines().join("\n"))
        .collect();
    assert_eq!(codes[0], COMPLETED, "{}", logs.join("\n\n"));
    assert_eq!(codes[1..], [NOT_OURS; RIVALS - 1], "{}", logs.join("\n\n"));
    assert!(
        decided - claimed < DECIDED_MAX,
        "claimed at {claimed:?}, decided at {decided:?}"
    );
    let trained = agents.iter().filter(|agent| agent.attempts() > 0);
    assert_eq!(trained.count(), 1, "{}", logs.join("\n\n"));
    assert_eq!(bucket.keys_below("lease/00000002"), [""; 0], "one epoch");
    let same = published_model(&bucket, LAST) == *undisturbed_model(LONG, LAST);
    assert!(same, "the parameters differ");
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
    let end = format!("--max_iters={LAST}");
    let words = [LONG, &[&end]].concat();
    let site = Site::on(&scene, &bucket, bucket.address, &words).with_ttl(12);
    let mut zombie = site.start("a");
    zombie.runs_until("a commit", |_| bucket.newest_step() >= 20);
    zombie.signal(Signal::STOP);
    assert_eq!(zombie.signal_trainers(Signal::STOP), 1);
    let published = of_epoch(&bucket, 1);

    let standby = site.with_flags(&["--on-lost=standby"]);
    let mut heir = standby.start("b");
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

    assert_eq!(heir.wait(), COMPLETED, "{}", heir.log());
    // What is kept of epoch 1 is for the heir to decide, who may prune; there is nothing new.
    let left = of_epoch(&bucket, 1);
    let new: Vec<&String> = left.iter().filter(|key| !published.contains(key)).collect();
    assert_eq!(new, [""; 0], "{}", zombie.log());
    let last_word = bucket.json("status.json")["epoch"].as_u64();
    assert!(last_word >= Some(2), "{last_word:?}: {}", zombie.log());
    let same = published_model(&bucket, LAST) == *undisturbed_model(LONG, LAST);
    assert!(same, "the parameters differ");
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
