//! `trainer doctor` and `agent doctor` as a user runs them: on this machine, with and without
//! faults.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::bucket::Bucket;
use crate::machine::agent;
use crate::support::{Scene, trainer};

const AT_MOST: Duration = Duration::from_secs(10);

fn doctor(scene: &Scene, words: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(agent());
    for (name, _) in std::env::vars_os() {
        let told = name.to_str().unwrap_or("");
        if told.starts_with("AWS_") || told.starts_with("AGENT_") {
            command.env_remove(name);
        }
    }
    // Nobody answers there, so no machine's own provider comes into it.
    for service in ["AWS", "GCP", "AZURE"] {
        command.env(
            format!("AGENT_{service}_METADATA_URL"),
            "http://127.0.0.1:9",
        );
    }
    let listen = ["doctor", "--listen=off"];
    command
        .args([&listen, words].concat())
        .current_dir(scene.path());
    command.envs(environment.iter().copied());
    let begin = Instant::now();
    let output = command.output().unwrap();
    assert!(begin.elapsed() < AT_MOST, "it took {:?}", begin.elapsed());
    output
}

fn report(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Status and finding of one check.
fn check(report: &Value, name: &str) -> (String, String) {
    let checks = report["checks"].as_array().unwrap();
    let check = checks.iter().find(|check| check["check"] == name);
    let check = check.unwrap_or_else(|| panic!("no {name} in {report}"));
    let text = |key: &str| check[key].as_str().unwrap().to_owned();
    (text("status"), text("found"))
}

/// Every line but the last begins with a status and the name of a check.
fn assert_lines(text: &str) {
    let lines: Vec<&str> = text.lines().collect();
    let (last, checks) = lines.split_last().unwrap();
    assert!(checks.len() > 6, "{text}");
    for line in checks {
        let status = line.split_whitespace().next().unwrap();
        assert!(["ok", "warning", "error"].contains(&status), "{line}");
        assert_eq!(status != "ok", line.contains("; hint: "), "{line}");
    }
    assert!(
        last.starts_with(&format!("{} checks, ", checks.len())),
        "{last}"
    );
}

#[test]
fn the_trainer_finds_this_machine_fit() {
    let scene = Scene::new();
    // Built before it is timed.
    trainer();
    let begin = Instant::now();
    let finished = scene
        .trainer(&["doctor", "--config", "quickstart"])
        .expect_code(0);
    assert!(begin.elapsed() < AT_MOST, "it took {:?}", begin.elapsed());
    assert_lines(&finished.stdout);
    for name in [
        "config",
        "driver",
        "gpu",
        "processors",
        "memory",
        "clock",
        "out_dir",
        "run",
    ] {
        assert!(
            finished.stdout.contains(&format!(" {name} ")),
            "{}",
            finished.stdout
        );
    }
    let left = fs::read_dir(scene.path()).unwrap().count();
    assert_eq!(left, 0, "it left something behind");
}

#[test]
fn the_trainer_ends_as_a_run_would() {
    let scene = Scene::new();
    let finished = scene
        .trainer(&["doctor", "--n_head=7", "--json"])
        .expect_code(64);
    let report: Value = serde_json::from_str(&finished.stdout).unwrap();
    assert_eq!(report["status"], "error");
    assert_eq!(check(&report, "config").0, "error");
    let finished = scene
        .trainer(&["doctor", "--dataset=none_such", "--json"])
        .expect_code(65);
    let report: Value = serde_json::from_str(&finished.stdout).unwrap();
    assert_eq!(check(&report, "dataset").0, "error");
    // Nobody writes there, root included.
    let words = [
        "doctor",
        "--config=quickstart",
        "--out_dir=/proc/none",
        "--json",
    ];
    let finished = scene.trainer(&words).expect_code(73);
    let report: Value = serde_json::from_str(&finished.stdout).unwrap();
    assert_eq!(check(&report, "out_dir").0, "error");
}

#[test]
fn the_agent_finds_a_folder_fit() {
    let scene = Scene::new();
    let output = doctor(&scene, &["--store=store"], &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_lines(&text);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("leases are safe here"), "{text}");
    assert!(text.contains("ok       provider    local"), "{text}");
    let kept = fs::read_dir(scene.path().join("store")).unwrap();
    let kept: Vec<_> = kept.map(|entry| entry.unwrap().file_name()).collect();
    assert!(
        kept.iter()
            .all(|name| name.to_str().unwrap().starts_with('.')),
        "{kept:?}"
    );
}

#[test]
fn the_agent_asks_a_bucket_and_never_shows_a_key() {
    let scene = Scene::new();
    let bucket = Bucket::new();
    let location = bucket.location();
    let address = format!("http://{}", bucket.address);
    let environment = [
        ("AWS_ENDPOINT_URL", address.as_str()),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ACCESS_KEY_ID", &bucket.access_key),
        ("AWS_SECRET_ACCESS_KEY", &bucket.secret_key),
        ("AGENT_TOKEN", "a-token-that-nobody-may-see"),
        ("RUNPOD_POD_ID", "pod-1"),
        ("RUNPOD_API_KEY", "a-key-that-nobody-may-see"),
        ("AGENT_RUNPOD_V2_URL", "http://127.0.0.1:9"),
        ("AGENT_RUNPOD_V1_URL", "http://127.0.0.1:9"),
        ("AGENT_RUNPOD_GRAPHQL_URL", "http://127.0.0.1:9"),
    ];
    let output = doctor(&scene, &["--json", "--store", &location], &environment);
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    for secret in [bucket.secret_key.as_str(), "nobody-may-see"] {
        assert!(!text.contains(secret), "{secret} is shown: {text}");
    }
    let report = report(&output);
    assert_eq!(output.status.code(), Some(0), "{report}");
    let (status, found) = check(&report, "store");
    assert_eq!(status, "ok", "{found}");
    assert_eq!(check(&report, "network").0, "ok");
    let (_, found) = check(&report, "provider");
    assert!(
        found.starts_with("runpod (by RUNPOD_POD_ID), instance pod-1"),
        "{found}"
    );
    assert_eq!(
        check(&report, "price").0,
        "warning",
        "the provider does not answer"
    );
    let (_, found) = check(&report, "credentials");
    assert!(
        found.contains("AWS_ACCESS_KEY_ID with its secret, RUNPOD_API_KEY"),
        "{found}"
    );
}

#[test]
fn faults_are_errors_and_the_agent_says_so_in_time() {
    let scene = Scene::new();
    let environment = [
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ACCESS_KEY_ID", "half"),
        ("AGENT_TOKEN", "short"),
    ];
    let output = doctor(
        &scene,
        &["--json", "--store=s3://bucket/prefix"],
        &environment,
    );
    assert_ne!(output.status.code(), Some(0));
    let report = report(&output);
    for name in ["store", "credentials", "api"] {
        assert_eq!(check(&report, name).0, "error", "{name}: {report}");
    }
    assert_eq!(report["status"], "error");
    assert!(!Path::new(&scene.path().join("runs")).exists());
}
