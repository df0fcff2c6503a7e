//! The real agent over the real trainer and a folder as the store: to the end, killed, stopped.

use std::fs;

use protocol::RunDir;
use rustix::process::Signal;

use crate::machine::{Agent, COMPLETED, ENDLESS, NOT_OURS, Site};
use crate::support::Scene;

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

/// Trains the job to an end on a machine: its parameters are those of a run that nobody disturbed.
fn finish(scene: &Scene, site: &mut Site, machine: &str) {
    let newest = commits(scene).into_iter().max();
    let last = site.end_after(newest.unwrap());
    assert_eq!(site.start(machine).finish(), COMPLETED);
    let run_dir = RunDir::new(scene.path().join(machine));
    let model = fs::read(run_dir.checkpoint(last).join(RunDir::MODEL)).unwrap();
    assert!(
        model == site.undisturbed_model(last),
        "the parameters differ"
    );
}

#[test]
fn kills_of_trainer_agent_and_machine_change_no_bit() {
    let scene = Scene::new();
    let mut site = Site::in_folder(&scene, ENDLESS);
    let mut agent = site.start("a");
    wait_for_commit(&scene, &mut agent, 10);
    agent.signal_trainers(Signal::KILL);
    wait_for_commit(&scene, &mut agent, 50);
    assert!(agent.kill());
    // The same machine goes on at once, another one when the lease has run out.
    let mut agent = site.start("a");
    wait_for_commit(&scene, &mut agent, 100);
    assert!(agent.kill());
    finish(&scene, &mut site, "b");
    assert_eq!(agent.trainers(), [], "a trainer outlived its agent");
    assert_eq!(site.start("c").finish(), NOT_OURS);
}

#[test]
fn a_stopped_job_is_published_and_resumed_elsewhere() {
    let scene = Scene::new();
    let mut site = Site::in_folder(&scene, ENDLESS);
    let mut agent = site.start("a");
    wait_for_commit(&scene, &mut agent, 10);
    agent.stop();
    assert!(!scene.path().join("store/j/final").exists());
    finish(&scene, &mut site, "b");
    assert!(scene.path().join("store/j/final").exists());
}
