//! The simulator: thousands of seeded schedules of agents, trainers and a store in which everything
//! that can go wrong does, against what must never happen.
//!
//! Real: [`crate::supervisor::step`] and everything it decides. Modelled: time, the store's
//! protocol (`store.rs`, request by request, each delayed, lost, or landing after its sender gave
//! up), the requests of an agent (`operation.rs`), its trainer and its machine (`world.rs`). After
//! some minutes the faults stop, and then the job has to come to its end. In `real/` nothing of
//! that is modelled but the trainer: fewer schedules, over the real functions.

mod operation;
mod random;
mod store;
mod world;
mod real;

use world::{Plan, World};

/// How many schedules a test run makes; in a debug build fewer, they take longer.
const SCHEDULES: u64 = if cfg!(debug_assertions) { 600 } else { 12_000 };

fn run(plan: Plan, seed: u64, aloud: bool) -> Result<(), String> {
    let mut world = World::new(plan, seed, aloud);
    let result = world.run();
    result.map_err(|violated| {
        format!(
            "seed {seed}: {violated}\nplan: {:?}\n{}",
            world.plan,
            world.trace.join("\n")
        )
    })
}

/// Runs a plan over many seeds; a seed that fails is run again to print its schedule.
fn run_all(make: fn(u64) -> Plan, schedules: u64) {
    for seed in 0..schedules {
        if run(make(seed), seed, false).is_err() {
            let told = run(make(seed), seed, true);
            panic!("{}", told.expect_err("a seed decides everything"));
        }
    }
}

#[test]
fn without_faults_a_job_runs_to_its_end_in_one_attempt() {
    for seed in 0..20 {
        let mut world = World::new(Plan::calm(), seed, true);
        let result = world.run();
        assert_eq!(result, Ok(()), "{}", world.trace.join("\n"));
        assert_eq!(world.attempts, 1, "{}", world.trace.join("\n"));
    }
}

#[test]
fn any_schedule_of_faults_keeps_the_promises() {
    run_all(Plan::rough, SCHEDULES);
}

#[test]
fn agents_that_are_never_frozen_never_train_at_the_same_time() {
    run_all(Plan::never_frozen, SCHEDULES / 4);
}

#[test]
fn every_machine_is_off_by_its_deadline_whatever_fails() {
    run_all(Plan::limited, SCHEDULES);
}

#[test]
fn without_the_dead_mans_switch_a_machine_stays_on() {
    let left_on = |seed| {
        let told = run(Plan::unwatched(seed), seed, false);
        told.is_err_and(|told| told.contains("is on after its deadline"))
    };
    assert!(
        (0..50).any(left_on),
        "agents that died took their machines with them"
    );
}

#[test]
fn a_limit_that_is_foreseen_loses_no_step_that_was_saved() {
    for seed in 0..SCHEDULES / 20 {
        let mut world = World::new(Plan::short(seed), seed, true);
        let result = world.run();
        assert_eq!(result, Ok(()), "seed {seed}\n{}", world.trace.join("\n"));
        let (saved, published) = world.saved_and_published();
        assert!(saved > 0, "seed {seed}\n{}", world.trace.join("\n"));
        assert_eq!(saved, published, "seed {seed}\n{}", world.trace.join("\n"));
    }
}
