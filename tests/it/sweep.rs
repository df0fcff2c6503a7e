//! Sweeps by the real agent and the real trainer: several workers over one store, killed at random,
//! short of money, with trials that fail or are not among the best.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::machine::{COMPLETED, RESUMABLE, agent, wait_until};
use crate::support::{Scene, TINY, cache, trainer};

const LIMIT_REACHED: Option<i32> = Some(14);
const SWEEP: &str = "store/sweeps/s";
/// A dollar is a thousand seconds.
const PRICE: &str = "--price=3.6";
/// Short, so that what a killed worker held is soon free.
const TTL: &str = "--ttl=4s";
const KILLS: usize = 16;

/// A worker at work; killed if the test ends before it.
struct Worker {
    child: Child,
    log: PathBuf,
}

impl Worker {
    fn start(scene: &Scene, machine: &str, words: &[&str]) -> Self {
        let log = scene.path().join(format!("{machine}.log"));
        let file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        let mut command = Command::new(agent());
        command
            .args(["sweep", "work", SWEEP, PRICE, TTL])
            .arg(format!("--run-dir={machine}"))
            .args(words)
            .current_dir(scene.path())
            .env("ANNEAL_CACHE", cache())
            .env_remove("ANNEAL_DATA")
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file);
        Self {
            child: command.spawn().unwrap(),
            log,
        }
    }

    fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    fn terminate(&self) {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
    }

    fn said(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap()).into_owned()
    }

    /// Waits for its end; its exit status and what it said.
    fn finish(mut self) -> (Option<i32>, String) {
        wait_until("the worker's end", || !self.is_running());
        (self.child.wait().unwrap().code(), self.said())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Writes a sweep over a tiny model into the scene's store.
fn create(scene: &Scene, words: &[&str], rest: &str) {
    let command = [&["trainer"], TINY, words].concat();
    let text = format!("name = \"s\"\ncommand = {command:?}\n{rest}");
    let file = scene.path().join("sweep.toml");
    fs::write(&file, text).unwrap();
    let mut create = Command::new(agent());
    create.args(["sweep", "create", "sweep.toml", "--store=store"]);
    let created = create.current_dir(scene.path()).output().unwrap();
    assert!(created.status.success(), "{created:?}");
}

fn names(scene: &Scene, folder: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(scene.path().join(SWEEP).join(folder)) else {
        return Vec::new();
    };
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| !name.starts_with('.')).collect();
    names.sort_unstable();
    names
}

fn json(scene: &Scene, path: &str) -> Value {
    serde_json::from_slice(&fs::read(scene.path().join(SWEEP).join(path)).unwrap()).unwrap()
}

/// The rows of the table, as programs get them.
fn rows(scene: &Scene) -> Vec<Value> {
    let mut status = Command::new(agent());
    status.args(["sweep", "status", SWEEP, "--json"]);
    let output = status.current_dir(scene.path()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    status["trials"].as_array().unwrap().clone()
}

fn states(rows: &[Value]) -> BTreeMap<&str, usize> {
    let mut states = BTreeMap::new();
    for row in rows {
        *states.entry(row["state"].as_str().unwrap()).or_insert(0) += 1;
    }
    states
}

/// Each trial has one end, under its newest lease.
fn check_ends(scene: &Scene, trials: usize) {
    let ids = names(scene, "trials");
    assert_eq!(ids.len(), trials);
    for id in ids {
        let ends = names(scene, &format!("trials/{id}/final"));
        let leases = names(scene, &format!("trials/{id}/lease"));
        let newest = leases
            .iter()
            .rfind(|name| name.len() == "00000001.json".len());
        assert_eq!(
            ends.iter().collect::<Vec<_>>(),
            Vec::from_iter(newest),
            "{id}"
        );
    }
}

/// Trials that have their end.
fn ends(scene: &Scene) -> usize {
    let ids = names(scene, "trials");
    let of = |id: &String| names(scene, &format!("trials/{id}/final")).len();
    ids.iter().map(of).sum()
}

/// No entry of the ledger promises more than the budget, and none is missing.
fn check_ledger(scene: &Scene) {
    let entries = names(scene, "budget");
    for (i, name) in entries.iter().enumerate() {
        let entry = json(scene, &format!("budget/{name}"));
        assert_eq!(entry["n"], i + 1);
        let reserved = entry["reserved"].as_array().unwrap().iter();
        let reserved: u64 = reserved.map(|it| it["microusd"].as_u64().unwrap()).sum();
        let bound = entry["spent_microusd"].as_u64().unwrap() + reserved;
        assert!(
            bound <= entry["limit_microusd"].as_u64().unwrap(),
            "{entry}"
        );
    }
    assert!(!entries.is_empty());
}

#[test]
fn forty_trials_on_four_workers_that_are_killed_have_one_result_each() {
    let scene = Scene::new();
    create(
        &scene,
        &["--threads=1"],
        "method = \"random\"\ntrials = 40\nattempts_max = 100\n\
         [keys]\nlearning_rate = { log_uniform = [1e-4, 1e-2] }\nn_layer = { int = [1, 2] }\n\
         [budget]\nusd = 0.5\nclaim_usd = 0.06",
    );
    let program = trainer().to_str().unwrap();
    let start = |machine: &str| Worker::start(&scene, machine, &["--", program]);
    let mut machines: Vec<String> = (0..4).map(|i| format!("m{i}")).collect();
    let mut workers: Vec<Worker> = machines.iter().map(|machine| start(machine)).collect();
    let mut random = fastrand::Rng::with_seed(7);
    for kill in 1..=KILLS {
        // Bound to what is done, not to time alone: however fast the machine, enough is left to do.
        wait_until("trials' ends", || ends(&scene) >= 3 * (kill - 1) / 2);
        let (begun, pause) = (Instant::now(), Duration::from_millis(random.u64(..300)));
        wait_until("a moment", || {
            begun.elapsed() >= pause || ends(&scene) >= 3 * kill / 2
        });
        let i = random.usize(..workers.len());
        assert!(workers[i].is_running(), "{}", workers[i].said());
        workers[i].child.kill().unwrap();
        workers[i].child.wait().unwrap();
        // It comes back on its machine, or another takes its place.
        if random.bool() {
            machines[i] = format!("m{i}-{kill}");
        }
        workers[i] = start(&machines[i]);
    }
    for worker in workers {
        let (status, said) = worker.finish();
        assert_eq!(status, COMPLETED, "{said}");
    }
    check_ends(&scene, 40);
    check_ledger(&scene);
    let rows = rows(&scene);
    assert_eq!(states(&rows), BTreeMap::from([("completed", 40)]));
    let losses: Vec<f64> = rows
        .iter()
        .map(|row| row["val_loss"].as_f64().unwrap())
        .collect();
    assert!(losses.is_sorted(), "{losses:?}");
    assert!(rows.iter().all(|row| row["step"] == 20));
}

#[test]
fn two_workers_do_not_spend_the_same_dollar() {
    let scene = Scene::new();
    create(
        &scene,
        &[],
        "method = \"grid\"\n[keys]\nlearning_rate = [1e-3, 2e-3, 3e-3, 4e-3]\n\
         [budget]\nusd = 0.06\nclaim_usd = 0.06",
    );
    let program = trainer().to_str().unwrap();
    let begun = Instant::now();
    let start = |machine| Worker::start(&scene, machine, &["--", program]);
    for worker in [start("a"), start("b")] {
        let (status, said) = worker.finish();
        assert_eq!(status, LIMIT_REACHED, "{said}");
    }
    // The worst case of a second claim never fits again.
    let rows = rows(&scene);
    let expected = BTreeMap::from([("completed", 1), ("pending", 3)]);
    assert_eq!(states(&rows), expected);
    check_ledger(&scene);
    let entries = names(&scene, "budget");
    assert_eq!(
        entries.len(),
        2,
        "one reservation, settled once: {entries:?}"
    );
    let last = json(&scene, "budget/00000002.json");
    let spent = last["spent_microusd"].as_u64().unwrap();
    let lasted = begun.elapsed().as_micros() / 1000;
    assert!((1..=lasted).contains(&u128::from(spent)), "{last}");
}

#[test]
fn a_trial_that_always_fails_is_given_up() {
    let scene = Scene::new();
    create(
        &scene,
        &[],
        "method = \"grid\"\nattempts_max = 2\n[keys]\nlearning_rate = 1e-3",
    );
    let words = ["--max-restarts=0", "--", "/bin/false"];
    let (status, said) = Worker::start(&scene, "a", &words).finish();
    assert_eq!(status, COMPLETED, "{said}");
    check_ends(&scene, 1);
    let rows = rows(&scene);
    assert_eq!(rows[0]["state"], "poisoned");
    // Two tries and the end.
    assert_eq!(rows[0]["epochs"], 3, "{said}");
}

#[test]
fn halving_stops_what_is_not_among_the_best() {
    let scene = Scene::new();
    let words = [
        "--threads=1",
        "--decay_lr=false",
        "--max_iters=6000",
        "--eval_interval=100",
        "--log_interval=100",
    ];
    create(
        &scene,
        &words,
        "method = \"grid\"\n[keys]\nlearning_rate = [1e-2, 1e-6, 2e-6, 3e-6]\n\
         [halving]\nfirst_step = 100\neta = 2",
    );
    let program = trainer().to_str().unwrap();
    let words = ["--seed=1", "--", program];
    let (status, said) = Worker::start(&scene, "a", &words).finish();
    assert_eq!(status, COMPLETED, "{said}");
    check_ends(&scene, 4);
    let rows = rows(&scene);
    assert_eq!(rows[0]["settings"]["learning_rate"], 1e-2, "{rows:?}");
    let mut stopped = 0;
    for row in &rows {
        let rungs =
            (0..8).map(|rung| format!("rungs/{rung:02}/{}.json", row["trial"].as_str().unwrap()));
        let judged = rungs.filter(|path| scene.path().join(SWEEP).join(path).exists());
        let stop = judged
            .map(|path| json(&scene, &path))
            .any(|it| it["verdict"] == "stop");
        let early = row["step"].as_u64().unwrap() < 6000;
        assert_eq!(stop, early, "{row}");
        assert_eq!(row["state"], if stop { "stopped" } else { "completed" });
        stopped += usize::from(stop);
    }
    assert!(stopped >= 2, "{rows:?}");
}

/// A sweep with one trial that never ends, and the worker that has it.
fn held_for_ever(scene: &Scene) -> Worker {
    create(
        scene,
        &["--max_iters=100000000", "--eval_interval=100000000"],
        "method = \"grid\"\n[keys]\nlearning_rate = 1e-3",
    );
    let holder = Worker::start(scene, "holder", &["--", trainer().to_str().unwrap()]);
    wait_until("the first lease", || {
        let ids = names(scene, "trials");
        ids.iter()
            .any(|id| !names(scene, &format!("trials/{id}/lease")).is_empty())
    });
    holder
}

#[test]
fn a_worker_that_waits_lives_on_and_leaves_at_a_signal_and_at_its_limits() {
    let scene = Scene::new();
    let mut holder = held_for_ever(&scene);
    let program = trainer().to_str().unwrap();
    let start = |machine, words: &[&str]| {
        let words = [&["--stay"], words, &["--", program]].concat();
        Worker::start(&scene, machine, &words)
    };
    let given_back = "--power-off-command=touch given-back";
    let mut waits = start("waits", &["--hang=3s", "--terminate=destroy", given_back]);
    let bounded = start("bounded", &["--max-wall=6s"]);
    let idle = start("idle", &["--idle=4s"]);
    let (status, said) = idle.finish();
    assert_eq!(status, LIMIT_REACHED, "{said}");
    assert!(said.contains("nothing to do"), "{said}");
    let (status, said) = bounded.finish();
    assert_eq!(status, LIMIT_REACHED, "{said}");
    assert!(said.contains("wall-clock limit"), "{said}");
    // Twice the time after which a worker that shows no life is killed.
    assert!(waits.is_running() && holder.is_running());
    waits.terminate();
    let (status, said) = waits.finish();
    assert_eq!(status, RESUMABLE, "{said}");
    // Whoever gave the notice has the machine.
    assert!(!scene.path().join("given-back").exists(), "{said}");
    holder.terminate();
    let (status, said) = holder.finish();
    assert_eq!(status, RESUMABLE, "{said}");
}

#[test]
fn the_wall_clock_counts_from_the_workers_start_and_not_from_each_trial() {
    let scene = Scene::new();
    create(
        &scene,
        &["--threads=1"],
        "method = \"random\"\ntrials = 400\n\
         [keys]\nlearning_rate = { log_uniform = [1e-4, 1e-2] }",
    );
    let begun = Instant::now();
    let program = trainer().to_str().unwrap();
    let words = ["--max-wall=8s", "--", program];
    let (status, said) = Worker::start(&scene, "a", &words).finish();
    assert_eq!(status, LIMIT_REACHED, "{said}");
    assert!(begun.elapsed() < Duration::from_secs(20), "{said}");
    assert!(ends(&scene) > 0, "{said}");
}
