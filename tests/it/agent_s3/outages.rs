//! A store that cannot be reached: for less than a lease, and for longer.
//!
//! The times are those of the issue (30 s and 120 s at a ttl of 60 s), shortened with the ttl so
//! that every `cargo test` can take them; with `ANNEAL_TEST_LONG` set they are the real ones.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::bucket::Bucket;
use crate::machine::{ENDLESS, Site};
use crate::proxy::Proxy;
use crate::support::Scene;

fn ttl() -> Duration {
    let real = std::env::var_os("ANNEAL_TEST_LONG").is_some();
    Duration::from_secs(if real { 60 } else { 12 })
}

#[test]
fn training_survives_a_store_that_is_down_for_half_a_lease() {
    let ttl = ttl();
    let (scene, bucket) = (Scene::new(), Bucket::new());
    let proxy = Proxy::to(&bucket);
    let site = Site::on(&scene, &bucket, proxy.address(), ENDLESS);
    let mut site = site.with_ttl(ttl.as_secs());

    let mut agent = site.start("a");
    agent.runs_until("a commit", |_| bucket.newest_step() > 0);
    proxy.set_down(true);
    std::thread::sleep(ttl / 2);
    let published = bucket.newest_step();
    proxy.set_down(false);
    agent.runs_until("a commit", |_| bucket.newest_step() > published);
    agent.stop();
    assert_eq!(agent.attempts(), 1, "{}", agent.log());
    assert_eq!(bucket.keys_below("lease/00000002"), [""; 0], "one epoch");
    site.finish(&bucket, "b");
}

#[test]
fn a_store_that_is_down_for_two_leases_ends_training_in_time_and_resumes_it() {
    let ttl = ttl();
    let (scene, bucket) = (Scene::new(), Bucket::new());
    let proxy = Proxy::to(&bucket);
    let site = Site::on(&scene, &bucket, proxy.address(), ENDLESS);
    let mut site = site.with_ttl(ttl.as_secs());

    let mut agent = site.start("a");
    agent.runs_until("a commit", |_| bucket.newest_step() > 0);
    proxy.set_down(true);
    let down = Instant::now();
    let published = bucket.newest_step();
    std::thread::sleep(ttl / 8);
    // A signal that asks it to save waits until it is dead.
    assert_eq!(agent.signal_trainers(Signal::STOP), 1);
    agent.says("the lease runs out before a beat gets through: killing the trainer");
    agent.runs_until("the trainer's end", |agent| agent.trainers().is_empty());
    let fenced = down.elapsed();
    assert!(
        fenced < ttl,
        "the last beat came before the outage, the fence after {fenced:?}"
    );
    std::thread::sleep((2 * ttl).saturating_sub(down.elapsed()));
    assert_eq!(
        agent.attempts(),
        1,
        "nothing is trained without a lease: {}",
        agent.log()
    );

    proxy.set_down(false);
    agent.runs_until("a trainer that goes on", |agent| {
        resumed_at(&agent.log()) > 0
    });
    agent.stop();
    assert_eq!(agent.attempts(), 2, "{}", agent.log());
    assert!(resumed_at(&agent.log()) >= published, "{}", agent.log());
    site.finish(&bucket, "b");
}

/// The step from which the last trainer went on, by its own words.
fn resumed_at(log: &str) -> u64 {
    let resumed = log.rsplit("Resuming training from ").next();
    let step = resumed.and_then(|rest| rest.lines().next()?.split(" at step ").nth(1));
    step.map_or(0, |step| step.parse().unwrap())
}
