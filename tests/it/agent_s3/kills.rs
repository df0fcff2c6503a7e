//! Kills of trainers, agents and whole machines at random moments of one run.

use std::time::Duration;

use rustix::process::Signal;

use crate::bucket::Bucket;
use crate::machine::{ENDLESS, NOT_OURS, Site};
use crate::support::Scene;

/// How many kills, where the default of a quick test is not enough.
const KILLS_VARIABLE: &str = "ANNEAL_TEST_KILLS";
const KILLS: usize = 12;
const SEED: u64 = 6;
/// Steps that are published between a kill and the next, at most.
const STEPS_MAX: u64 = 60;
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
    let site = Site::on(&scene, &bucket, bucket.address, ENDLESS);
    let mut site = site.with_ttl(8).with_flags(&["--max-restarts=1000"]);

    let mut rng = fastrand::Rng::with_seed(SEED);
    // Of each kind its share, in any order.
    let mut kinds: Vec<usize> = (0..wanted).map(|i| i % 10).collect();
    rng.shuffle(&mut kinds);
    let mut landed = Landed::default();
    let mut machine = 0;
    let mut agent = site.start("m0");
    for kind in kinds {
        let moment = bucket.newest_step() + rng.u64(..STEPS_MAX);
        agent.runs_until("a commit", |_| bucket.newest_step() >= moment);
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
    agent.runs_until("a trainer", |agent| !agent.trainers().is_empty());
    agent.stop();

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
    site.finish(&bucket, &format!("m{machine}"));
    assert!(site.verify().contains("sound"));
    assert_eq!(agent.trainers(), []);
    assert_eq!(site.start("late").finish(), NOT_OURS);
}
