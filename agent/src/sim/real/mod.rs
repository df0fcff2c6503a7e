//! Schedules over the real functions: the executor, the lease, publish, restore, prune and sweep,
//! against a store in memory with faults, in virtual time.
//!
//! Real: all of the agent but its processes, its output and the probe of the store. A seed decides
//! everything: there is one thread, work on the disk is done at once, and every random number comes
//! from the seed. `truth.rs` has the promises.

mod plan;
mod process;
mod truth;
mod wire;
mod world;

use std::path::Path;

use plan::{Bug, Cut, Plan};
use truth::Counts;
use world::World;

/// How many schedules a test run makes; in a debug build fewer, they take longer.
const SCHEDULES: u64 = if cfg!(debug_assertions) { 60 } else { 600 };
/// How many are tried until a planted mistake is found.
const HUNTS_MAX: u64 = 300;

/// Runs one schedule; what was counted, or what was violated and how it came to that.
fn run(plan: &Plan, seed: u64, aloud: bool) -> Result<(Counts, String), String> {
    // Before the seed is set: its name is random.
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() {
        tempfile::tempdir_in(memory)
    } else {
        tempfile::tempdir()
    };
    let folder = folder.unwrap();
    fastrand::seed(seed);
    crate::checkpoints::AT_ONCE.set(true);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    let done = runtime.block_on(async {
        let mut world = World::new(plan.clone(), seed, folder.path(), aloud).await;
        let done = world.run().await;
        let trace = world.truth.trace();
        match done {
            Ok(counts) => Ok((counts, trace)),
            Err(violated) => Err(format!("seed {seed}: {violated}\nplan: {plan:?}\n{trace}")),
        }
    });
    drop(runtime);
    crate::checkpoints::AT_ONCE.set(false);
    done
}

/// Runs a schedule; one that fails is run again to print what happened.
fn must_hold(plan: &Plan, seed: u64) -> Counts {
    match run(plan, seed, false) {
        Ok((counts, _)) => counts,
        Err(_) => {
            let told = run(plan, seed, true);
            panic!("{}", told.expect_err("a seed decides everything"));
        }
    }
}

#[test]
fn without_faults_a_job_runs_to_its_end_under_one_lease() {
    for seed in 0..5 {
        let counts = must_hold(&Plan::calm(), seed);
        assert_eq!((counts.epochs, counts.commits), (1, 5), "{counts:?}");
    }
}

/// Two tests, so that two cores have something to do.
fn no_schedule_breaks_a_promise(seeds: std::ops::Range<u64>) -> Counts {
    let mut all = Counts::default();
    let wanted = seeds.end - seeds.start;
    for seed in seeds {
        all.add(must_hold(&Plan::rough(seed), seed));
    }
    // The schedules are worth their name.
    let enough = all.epochs > 2 * wanted
        && all.commits > 8 * wanted
        && all.pruned > wanted
        && all.kills > wanted
        && all.damaged > 0
        && all.swept > 0;
    assert!(enough, "{all:?}");
    all
}

#[test]
fn no_schedule_of_faults_breaks_a_promise() {
    let counts = no_schedule_breaks_a_promise(0..SCHEDULES / 2);
    // They are rare: in a debug build there may be none.
    assert!(counts.orphans > 0 || cfg!(debug_assertions), "{counts:?}");
}

#[test]
fn no_other_schedule_of_faults_breaks_a_promise() {
    no_schedule_breaks_a_promise(SCHEDULES / 2..SCHEDULES);
}

#[test]
fn an_earlier_claim_of_its_own_that_arrives_late_is_not_taken_for_anothers() {
    let seed = 1_584;
    must_hold(&Plan::rough(seed), seed);
}

#[test]
fn a_seed_decides_everything() {
    for seed in 0..3 {
        let plan = Plan::rough(seed);
        let told = || {
            run(&plan, seed, true)
                .unwrap_or_else(|told| panic!("{told}"))
                .1
        };
        assert_eq!(told(), told());
    }
}

#[test]
fn wall_clocks_that_are_hours_off_change_nothing() {
    for seed in 0..SCHEDULES / 30 {
        let told = |wall_off_s| {
            let plan = Plan {
                wall_off_s,
                // Its age is a matter of wall clocks.
                litter: false,
                ..Plan::rough(seed)
            };
            run(&plan, seed, true)
                .unwrap_or_else(|told| panic!("{told}"))
                .1
        };
        let right = told(0);
        assert_eq!(right, told(36_000));
        assert_eq!(right, told(-36_000));
    }
}

/// Kills the agent at every request that it makes from its start to the end of the job.
fn killed_anywhere(cut: Cut) {
    let calm = Plan::calm();
    let requests = must_hold(&calm, 0).requests;
    assert!(requests > 100, "{requests}");
    for number in 0..requests {
        let plan = Plan {
            cut: Some((number, cut)),
            ..calm.clone()
        };
        let counts = must_hold(&plan, 0);
        assert!(counts.kills == 1, "request {number}: {counts:?}");
    }
}

#[test]
fn killed_before_any_request_the_job_goes_on_elsewhere() {
    killed_anywhere(Cut::Before);
}

#[test]
fn killed_after_any_request_the_job_goes_on_elsewhere() {
    killed_anywhere(Cut::After);
}

/// Runs schedules with a mistake until one shows it, by one of these words.
fn must_find(bug: Bug, words: &[&str]) {
    for seed in 0..HUNTS_MAX {
        let Err(found) = run(&Plan::rough(seed).with(bug), seed, false) else {
            continue;
        };
        let line = found.lines().next().unwrap_or_default();
        assert!(
            words.iter().any(|words| line.contains(words)),
            "{bug:?}: expected {words:?}, got {line}"
        );
        return;
    }
    panic!("{bug:?} was not found in {HUNTS_MAX} schedules");
}

#[test]
fn mistakes_of_the_store_are_found() {
    must_find(Bug::CreateReplaces, &["relies on its own"]);
    must_find(Bug::CommitFirst, &["model.safetensors is not there"]);
    // The lease that it does not see, or the commit.
    let unseen = ["the newest lease is its own", "its claimer could see"];
    must_find(Bug::ErrorsAreEmpty, &unseen);
    must_find(Bug::FastClocks, &["relies on its own"]);
}

#[test]
fn mistakes_of_an_agent_are_found() {
    must_find(Bug::LiesOfPublishing, &["final"]);
    must_find(Bug::ForgetsResumed, &["deletes commit"]);
    must_find(Bug::HastyWatcher, &["relies on its own"]);
    must_find(Bug::DeafToLoss, &["all rely on the lease"]);
    must_find(Bug::DatesByAnswer, &["relies on its own"]);
    must_find(Bug::EndlessPermit, &["does not hold epoch"]);
}
