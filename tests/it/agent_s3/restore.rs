//! What a restore does with a store that holds something bad, or does not say what it holds.

use std::time::{Duration, Instant};

use protocol::RunDir;

use crate::bucket::Bucket;
use crate::machine::{ENDLESS, Site};
use crate::proxy::{Fate, Proxy};
use crate::support::Scene;

#[test]
fn a_damaged_checkpoint_is_passed_over_and_a_failing_list_is_no_fresh_start() {
    /// How long the store cannot list.
    const ILL: Duration = Duration::from_secs(4);
    let (scene, bucket) = (Scene::new(), Bucket::new());
    let proxy = Proxy::to(&bucket);
    let mut site = Site::on(&scene, &bucket, proxy.address(), ENDLESS);
    let mut agent = site.start("a");
    agent.runs_until("three commits", |_| bucket.commits().len() >= 3);
    agent.stop();

    let commits = bucket.commits();
    let [.., (older, _), (newest, _)] = commits[..] else {
        panic!("two commits at least, got {commits:?}");
    };
    let key = bucket.key_of(newest, RunDir::OPTIMIZER);
    let mut bytes = bucket.get(&key);
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    bucket.put(&key, &bytes);

    let error = Fate::Refuse(500, "InternalError");
    let mut since = None;
    proxy.set_rule(move |asked| {
        // From the first time that the history is asked for.
        let listed = asked.path.contains("list-type=2") && asked.path.contains("commit");
        let ill = listed && since.get_or_insert_with(Instant::now).elapsed() < ILL;
        if ill { error } else { Fate::Pass }
    });
    let agent = site.finish(&bucket, "b");
    assert!(proxy.met(error) > 1, "{}", proxy.met(error));
    assert!(!agent.has_said("a fresh start"), "{}", agent.log());
    let passed_over = format!("passing over a checkpoint: commit {newest:010}-");
    assert!(agent.has_said(&passed_over), "{}", agent.log());
    let goes_on = format!("goes on from step {older}");
    assert!(agent.has_said(&goes_on), "{}", agent.log());
}
