//! The real agent over the real trainer and a folder as the store: to the end, killed, stopped.

use std::fs;

use protocol::RunDir;
use rustix::process::Signal;

use crate::machine::{Agent, COMPLETED, NOT_OURS, RESUMABLE, Site};
use crate::support::Scene;

/// A run that is long enough to be killed in, with many checkpoints.
const LONG: &[&str] = &[
    "--n_embd=64",
    "--block_size=32",
    "--batch_size=16",
    "--max_iters=300",
    "--eval_interval=100",
    "--checkpoint_interval=10",
];
const LAST: u64 = 300;

/// Steps of the checkpoints that are committed in the store.
fn commits(scene: &Scene) -> Vec<u64> {
    let Ok(entries) = fs::read_dir(scene.path().join("store/j/commit")) else {
        return Vec::new();
    };
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names
        .filter_map(|name| name.split('-').next()?.parse().ok())
        .collect()
}

fn wait_for_commit(scene: &Scene, agent: &mut Agent, step: u64) {
    let committed = |_: &Agent| commits(scene).iter().any(|&found| found >= step);
    agent.runs_until("a commit", committed);
}

fn model(scene: &Scene, machine: &str) -> Vec<u8> {
    let run_dir = RunDir::new(scene.path().join(machine));
    fs::read(run_dir.checkpoint(LAST).join(RunDir::MODEL)).unwrap()
}

#[test]
fn kills_of_trainer_agent_and_machine_change_no_bit() {
    let (straight, killed) = (Scene::new(), Scene::new());
    let site = Site::in_folder(&straight, LONG);
    assert_eq!(site.start("a").finish(), COMPLETED);

    let site = Site::in_folder(&killed, LONG);
    let mut agent = site.start("a");
    wait_for_commit(&killed, &mut agent, 10);
    agent.signal_trainers(Signal::KILL);
    wait_for_commit(&killed, &mut agent, 50);
    assert!(agent.kill());
    // The same machine goes on at once, another one when the lease has run out.
    let mut agent = site.start("a");
    wait_for_commit(&killed, &mut agent, 100);
    assert!(agent.kill());
    assert_eq!(site.start("b").finish(), COMPLETED);

    assert!(
        model(&straight, "a") == model(&killed, "b"),
        "the parameters differ"
    );
    assert_eq!(agent.trainers(), [], "a trainer outlived its agent");
    assert_eq!(site.start("c").finish(), NOT_OURS);
}

#[test]
fn a_stopped_job_is_published_and_resumed_elsewhere() {
    let scene = Scene::new();
    let site = Site::in_folder(&scene, LONG);
    let mut agent = site.start("a");
    wait_for_commit(&scene, &mut agent, 10);
    agent.signal(Signal::TERM);
    assert_eq!(agent.finish(), RESUMABLE);
    let stopped = commits(&scene).into_iter().max();
    assert!(stopped.is_some_and(|step| step < LAST), "{stopped:?}");
    assert!(!scene.path().join("store/j/final").exists());
    assert_eq!(site.start("b").finish(), COMPLETED);
}
