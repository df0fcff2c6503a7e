//! Bad links: slow, cut, answers that get lost, storms of refusals.

use std::time::{Duration, Instant};

use crate::bucket::Bucket;
use crate::machine::{ENDLESS, NOT_OURS, Site};
use crate::proxy::{Asked, Fate, Proxy};
use crate::support::Scene;

/// A model of 10 MB with an optimizer of 20 MB: more than one part, several ranges.
const LARGE: &[&str] = &[
    "--n_embd=320",
    "--block_size=16",
    "--batch_size=2",
    "--eval_interval=1000",
    "--checkpoint_interval=5",
    "--threads=1",
    "--max_iters=1000000",
];
const LINK_BYTES_PER_S: usize = 8 << 20;
/// Requests with more than this are data.
const DATA_BYTES: u64 = 1 << 20;

#[test]
fn a_slow_link_that_cuts_connections_is_got_over() {
    let (scene, bucket) = (Scene::new(), Bucket::new());
    let proxy = Proxy::to(&bucket);
    let site = Site::on(&scene, &bucket, proxy.address(), LARGE);
    let mut site = site.with_flags(&["--grace=100s"]);
    proxy.set_speed(LINK_BYTES_PER_S);
    let mut rng = fastrand::Rng::with_seed(1);
    proxy.set_rule(move |asked| match asked.method.as_str() {
        "PUT" if asked.bytes > DATA_BYTES && rng.u32(..10) < 4 => Fate::CutRequest,
        "GET" if asked.ranged && rng.u32(..10) < 4 => Fate::CutAnswer,
        _ => Fate::Pass,
    });

    let mut agent = site.start("a");
    agent.runs_until("a commit", |_| !bucket.commits().is_empty());
    agent.stop();
    assert!(proxy.met(Fate::CutRequest) > 0);
    let published = bucket.newest_step();

    let agent = site.finish(&bucket, "b");
    let goes_on = format!("goes on from step {published}");
    assert!(agent.has_said(&goes_on), "{}", agent.log());
    assert!(proxy.met(Fate::CutAnswer) > 0);
    proxy.clear_rule();
    assert!(site.verify().contains("sound"));
}

/// Of claims, beats, commits and ends, some are refused for now, and some are done without an
/// answer.
#[test]
fn lost_answers_and_conflicts_lose_no_lease_and_hold_none_twice() {
    let fates = [
        Fate::LoseAnswer,
        Fate::Refuse(409, "ConditionalRequestConflict"),
        Fate::Refuse(503, "SlowDown"),
    ];
    let (scene, bucket) = (Scene::new(), Bucket::new());
    let proxy = Proxy::to(&bucket);
    // Of many beats in a row that fail by chance none makes a loss.
    let mut site = Site::on(&scene, &bucket, proxy.address(), ENDLESS).with_ttl(20);
    let mut rng = fastrand::Rng::with_seed(2);
    proxy.set_rule(move |asked| {
        // Not what tries the store out, which would take minutes.
        let of_job = asked.path.contains("/j/");
        if !(of_job && (asked.creates || is_beat(asked))) {
            return Fate::Pass;
        }
        match rng.u32(..10) {
            0 | 1 => fates[0],
            2 => fates[1],
            3 => fates[2],
            _ => Fate::Pass,
        }
    });

    let mut first = site.start("a");
    first.says("has the lease");
    let second = site.start("b");
    assert_eq!(second.finish(), NOT_OURS);
    first.runs_until("every fate", |_| {
        bucket.newest_step() > 0 && fates.iter().all(|&fate| proxy.met(fate) > 1)
    });
    first.stop();
    assert_eq!(first.attempts(), 1, "{}", first.log());
    assert!(!first.has_said("the lease was taken"), "{}", first.log());
    check_holders(&bucket, &first.own_lines());
    site.finish(&bucket, "a");
}

/// For some seconds no condition is answered but by "try again": at the claim, then at a commit.
#[test]
fn storms_of_conflicts_pass() {
    const STORM: Duration = Duration::from_secs(4);
    let (scene, bucket) = (Scene::new(), Bucket::new());
    let proxy = Proxy::to(&bucket);
    let mut site = Site::on(&scene, &bucket, proxy.address(), ENDLESS);
    let conflict = Fate::Refuse(409, "ConditionalRequestConflict");
    let mut claims_refused = 0;
    proxy.set_rule(move |asked| {
        let claim = asked.creates && asked.path.contains("/lease/");
        claims_refused += u32::from(claim);
        if claim && claims_refused <= 4 {
            conflict
        } else {
            Fate::Pass
        }
    });

    let mut agent = site.start("a");
    agent.runs_until("a commit", |_| !bucket.commits().is_empty());
    assert_eq!(proxy.met(conflict), 4);
    let begin = Instant::now();
    proxy.set_rule(move |asked| {
        let stormy = asked.creates && begin.elapsed() < STORM;
        if stormy { conflict } else { Fate::Pass }
    });
    let published = bucket.newest_step();
    agent.runs_until("a commit after the storm", |_| {
        begin.elapsed() > STORM && bucket.newest_step() > published
    });
    agent.stop();
    assert!(proxy.met(conflict) > 6, "{}", proxy.met(conflict));
    assert_eq!(agent.attempts(), 1, "{}", agent.log());
    check_holders(&bucket, &agent.own_lines());
    site.finish(&bucket, "a");
}

/// Requests that are never answered do not hold up what has a time of its own: the beats.
#[test]
fn a_store_that_swallows_requests_is_no_store_that_is_gone() {
    let (scene, bucket) = (Scene::new(), Bucket::new());
    let proxy = Proxy::to(&bucket);
    let site = Site::on(&scene, &bucket, proxy.address(), ENDLESS);
    let mut beats = 0;
    proxy.set_rule(move |asked| {
        beats += u32::from(is_beat(asked));
        if is_beat(asked) && beats % 2 == 0 {
            Fate::Swallow
        } else {
            Fate::Pass
        }
    });
    let mut agent = site.start("a");
    agent.runs_until("swallowed beats", |_| proxy.met(Fate::Swallow) > 2);
    let published = bucket.newest_step();
    agent.runs_until("a commit", |_| bucket.newest_step() > published);
    agent.stop();
    assert_eq!(agent.attempts(), 1, "{}", agent.log());
    check_holders(&bucket, &agent.own_lines());
}

fn is_beat(asked: &Asked) -> bool {
    asked.method == "PUT" && asked.path.contains(".beat.json")
}

/// Every lease in the bucket is of the one agent that trained.
fn check_holders(bucket: &Bucket, lines: &[String]) {
    let mut holders = Vec::new();
    for key in bucket.keys_below("lease/") {
        if !key.contains(".beat.") && !key.contains(".released.") {
            holders.push(bucket.json(&key)["holder"]["agent"].to_string());
        }
    }
    holders.dedup();
    assert_eq!(holders.len(), 1, "{holders:?}\n{lines:#?}");
}
