//! A store that cannot be reached: for less than a lease, and for longer.
//!
//! The times are those of the issue (30 s and 120 s at a ttl of 60 s), shortened with the ttl so
//! that every `cargo test` can take them; with `ANNEAL_TEST_LONG` set they are the real ones.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::bucket::Bucket;
use crate::machine::{COMPLETED, LONG, Site, published_model, undisturbed_model};
use crate::proxy::Proxy;
use crate::support::Scene;

/// The ttl and how many iterations outlast it.
fn ttl_and_last() -> (Duration, u64) {
    match std::env::var_os("ANNEAL_TEST_LONG") {
        Some(_) => (Duration::from_secs(60), 4000),
        None => (Duration::from_secs(12), 800),
    }
}

#[test]
fn training_survives_a_store_that_is_down_for_half_a_lease() {
    let (ttl, last) = ttl_and_last();
    let (scene, bucket) = (Scene::new(), Bucket::new());
    let proxy = Proxy::to(&bucket);
    let end = format!("--max_iters={last}");
    let words = [LONG, &[&end]].concat();
    let site = Site::on(&scene, &bucket, proxy.address(), &words).with_ttl(ttl.as_secs());

    let mut agent = site.start("a");
    agent.runs_until("a commit", |_| bucket.newest_step() > 0);
    proxy.set_down(true);
    std::thread::sleep(ttl / 2);
    proxy.set_down(false);
    assert_eq!(agent.wait(), COMPLETED, "{}", agent.log());
    assert_eq!(agent.attempts(), 1, "{}", agent.log());
    assert_eq!(bucket.keys_below("lease/00000002"), [""; 0], "one epoch");
    let same = published_model(&bucket, last) == *undisturbed_model(LONG, last);
    assert!(same, "the parameters differ");
}

#[test]
fn a_store_that_is_down_for_two_leases_ends_training_in_time_and_resumes_it() {
    let (ttl, last) = ttl_and_last();
    let (scene, bucket) = (Scene::new(), Bucket::new());
    let proxy = Proxy::to(&bucket);
    let end = format!("--max_iters={last}");
    let words = [LONG, &[&end]].concat();
    let site = Site::on(&scene, &bucket, proxy.address(), &words).with_ttl(ttl.as_secs());

    let mut agent = site.start("a");
    agent.runs_until("a commit", |_| bucket.newest_step() > 0);
    proxy.set_down(true);
    let down = Instant::now();
    let published = bucket.newest_step();
    // It must not end by itself meanwhile, however fast this machine is; a signal that asks it to
    // save waits until it is dead.
    std::thread::sleep(ttl / 8);
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
    assert_eq!(agent.wait(), COMPLETED, "{}", agent.log());
    assert_eq!(agent.attempts(), 2, "{}", agent.log());
    assert!(resumed_at(&agent.log()) >= published, "{}", agent.log());
    let same = published_model(&bucket, last) == *undisturbed_model(LONG, last);
    assert!(same, "the parameters differ");
}

/// The step from which the last trainer went on, by its own words.
fn resumed_at(log: &str) -> u64 {
    let resumed = log.rsplit("Resuming training from ").next();
    let step = resumed.and_then(|rest| rest.lines().next()?.split(" at step ").nth(1));
    step.map_or(0, |step| step.parse().unwrap())
}
