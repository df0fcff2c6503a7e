//! Kills of trainers, agents and whole machines at random moments of one run.

use std::time::Duration;

use rustix::process::Signal;

use crate::bucket::Bucket;
use crate::machine::{COMPLETED, LONG, NOT_OURS, Site, published_model, undisturbed_model};
use crate::support::Scene;

/// How many kills, where the default of a quick test is not enough.
const KILLS_VARIABLE: &str = "ANNEAL_TEST_KILLS";
const KILLS: usize = 12;
const SEED: u64 = 6;
const LAST: u64 = 4000;
/// After this step the run might end before the next kill: what is seen of it in the store is old,
/// and a thousand steps take little more than a second.
const LAST_KILL: u64 = LAST / 10;
/// From the moment that a step is published to the kill, at most.
const DELAY_MS_MAX: u64 = 400;

#[derive(Debug, Default)]
struct Landed {
    trainers: usize,
    agents: usize,
    machines: usize,
    machines_for_good: usize,
}

#[test]
fn kills_at_random_moments_change_no_bit() {
    let wanted = std::env::var(KILLS_VARIABLE).map_or(KILLS, |n| n.parse().unwrap());
    let (scene, bucket) = (Scene::new(), Bucket::new());
    let end = format!("--max_iters={LAST}");
    let words = [LONG, &[&end]].concat();
    let site = Site::on(&scene, &bucket, bucket.address, &words);
    let site = site.with_ttl(8).with_flags(&["--max-restarts=1000"]);

    let mut rng = fastrand::Rng::with_seed(SEED);
    let mut moments: Vec<u64> = (0..wanted).map(|_| rng.u64(..LAST_KILL)).collect();
    moments.sort_unstable();
    // Of each kind its share, in any order.
    let mut kinds: Vec<usize> = (0..wanted).map(|i| i % 10).collect();
    rng.shuffle(&mut kinds);
    let mut landed = Landed::default();
    let mut machine = 0;
    let mut agent = site.start("m0");
    for (moment, kind) in moments.into_iter().zip(kinds) {
        agent.runs_until("a commit", |_| bucket.newest_step() + 10 > moment);
        std::thread::sleep(Duration::from_millis(rng.u64(..DELAY_MS_MAX)));
        match kind {
            0..=3 => {
                agent.runs_until("a trainer", |agent| agent.signal_trainers(Signal::KILL) > 0);
                landed.trainers += 1;
                continue;
            }
            4..=6 => landed.agents += usize::from(agent.kill()),
            _ => {
                // Neither sees the other die.
                agent.signal(Signal::STOP);
                agent.signal_trainers(Signal::KILL);
                let alive = usize::from(agent.kill());
                if kind < 9 {
                    landed.machines += alive;
                } else {
                    landed.machines_for_good += alive;
                    machine += 1;
                }
            }
        }
        agent = site.start(&format!("m{machine}"));
    }
    assert_eq!(agent.wait(), COMPLETED, "{}", agent.log());

    println!("seed {SEED}: {landed:?}");
    let Landed {
        trainers,
        agents,
        machines,
        machines_for_good,
    } = landed;
    assert_eq!(
        trainers + agents + machines + machines_for_good,
        wanted,
        "a kill missed"
    );
    let same = published_model(&bucket, LAST) == *undisturbed_model(LONG, LAST);
    assert!(same, "the parameters differ");
    assert!(site.verify().contains("sound"));
    assert_eq!(agent.trainers(), []);
    assert_eq!(site.start("late").finish(), NOT_OURS);
}
