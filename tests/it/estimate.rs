//! `trainer estimate` as a user runs it: the table, the JSON, a choice by budget and deadline.

use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::machine::agent;
use crate::support::Scene;

fn json(scene: &Scene, words: &[&str], code: i32) -> Value {
    let words = [&["estimate", "--json", "--device=cpu"], words].concat();
    let finished = scene.trainer(&words).expect_code(code);
    serde_json::from_str(&finished.stdout).unwrap()
}

#[test]
fn the_table_has_memory_here_and_money_elsewhere() {
    let scene = Scene::new();
    let words = ["estimate", "--config", "shakespeare_char", "--device=cpu"];
    let text = scene.trainer(&words).expect_code(0).stdout;
    for line in text.lines() {
        assert!(line.chars().count() <= 120, "{line}");
    }
    for expected in [
        "memory of a run with batch_size=64, recompute=",
        "with recompute=block fits batch_size=",
        "GPU       provider    memory GiB",
        "5000 iterations of 16384 tokens, 21 evaluations of 2 x 200 batches",
        "estimated: 0.45 of the data sheet's 16-bit rate",
        "cheapest",
        "fastest",
        "no kernels for compute capability 7.0",
        "this CPU",
    ] {
        assert!(text.contains(expected), "{expected:?} is not in\n{text}");
    }
    let on_gpus = text.lines().filter(|line| line.contains("  estimated"));
    assert!(
        on_gpus.count() > 15,
        "nothing is measured on a GPU yet\n{text}"
    );
    assert!(
        !scene.run_dir().root().exists(),
        "an estimate leaves no trace"
    );
}

#[test]
fn json_holds_what_the_table_shows_and_the_choice() {
    let scene = Scene::new();
    let words = [
        "--config=gpt2_124m",
        "--gpu=H100",
        "--provider=modal",
        "--deadline=60h",
    ];
    let report = json(&scene, &words, 0);
    let estimate = &report["estimate"];
    assert_eq!(estimate["parameters"], 124_373_760);
    assert_eq!(estimate["tokens_per_iteration"], 524_288);
    let rows = estimate["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 1, "{rows:?}");
    let row = &rows[0];
    assert_eq!(row["basis"], "estimated");
    assert_eq!(row["batch_size"], 16);
    let number = |name: &str| row[name].as_f64().unwrap();
    let hours = number("hours");
    assert!((number("on_demand_usd") - 3.95 * hours).abs() < 1e-9);
    let training = 18_865.0 * 524_288.0 / number("tokens_per_second") / 3600.0;
    assert!(
        hours > training && hours < 1.2 * training,
        "evaluations: {hours} {training}"
    );
    assert_eq!(report["pick"]["offer"]["row"], 0);
    assert!(report["here"]["total_bytes"].as_u64().unwrap() > 1 << 30);
}

#[test]
fn tokens_an_iteration_stay_where_a_card_is_small() {
    let scene = Scene::new();
    let report = json(&scene, &["--config=gpt2_350m", "--gpu=T4"], 0);
    let rows = report["estimate"]["rows"].as_array().unwrap();
    assert!(!rows.is_empty());
    for row in rows {
        let (batch, steps) = (&row["batch_size"], &row["gradient_accumulation_steps"]);
        let tokens = batch.as_u64().unwrap() * steps.as_u64().unwrap() * 1024;
        assert_eq!(
            tokens,
            report["estimate"]["tokens_per_iteration"].as_u64().unwrap()
        );
        assert_eq!(row["dtype"], "float16");
        assert!(row["memory_gib"].as_f64() <= row["room_gib"].as_f64());
    }
}

#[test]
fn a_budget_and_a_deadline_choose_or_say_what_would_do() {
    let scene = Scene::new();
    let words = ["--config=shakespeare_char", "--budget=5", "--deadline=3h"];
    let report = json(&scene, &words, 0);
    let offer = &report["pick"]["offer"];
    assert!(offer["usd"].as_f64().unwrap() <= 5.0 && offer["hours"].as_f64().unwrap() <= 3.0);
    let row = &report["estimate"]["rows"][offer["row"].as_u64().unwrap() as usize];
    assert!(
        row["marks"].as_array().unwrap().contains(&"picked".into()),
        "{row}"
    );

    let words = [
        "estimate",
        "--config=gpt2_1558m",
        "--budget=1",
        "--deadline=1h",
        "--device=cpu",
    ];
    let none = scene.trainer(&words).expect_code(64);
    assert!(
        none.stderr
            .contains("error: nothing is within $1.00 and done in 1.0 h")
    );
    assert!(none.stderr.contains("hint: "), "{}", none.stderr);
    let report = json(&scene, &words[1..4], 64);
    assert_eq!(report["pick"]["offer"], Value::Null);
}

#[test]
fn what_is_not_known_is_named() {
    let scene = Scene::new();
    for (word, expected) in [
        ("--gpu=Voodoo", "hint: there are B200, H200, H100"),
        ("--provider=acme", "hint: there are aws"),
        ("--budget=much", "--budget: expected dollars"),
        ("--deadline=3", "--deadline: expected a time such as 90m"),
        ("--bugdet=3", "bugdet"),
    ] {
        let finished = scene.trainer(&["estimate", word]).expect_code(64);
        assert!(
            finished.stderr.contains(expected),
            "{word}: {}",
            finished.stderr
        );
    }
}

/// Lines of a guide's blocks of shell commands.
fn commands(guide: &str) -> Vec<String> {
    let path = format!("{}/../docs/guides/{guide}", env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(path).unwrap();
    let blocks = text.split("```sh\n").skip(1);
    let lines = blocks.flat_map(|block| block.split("```").next().unwrap().lines());
    lines.map(str::to_owned).collect()
}

#[test]
fn the_commands_of_the_cost_guide_run() {
    let scene = Scene::new();
    let commands = commands("cost.md");
    assert!(commands.len() >= 7, "{commands:?}");
    for command in commands {
        let words: Vec<&str> = command.split_whitespace().collect();
        match words[0] {
            "trainer" => drop(scene.trainer(&words[1..]).expect_code(0)),
            "agent" => {
                let mut agent = Command::new(agent());
                agent.args(&words[1..]).current_dir(scene.path());
                let output = agent.env_remove("AGENT_STORE").output().unwrap();
                assert_eq!(output.status.code(), Some(0), "{command}: {output:?}");
            }
            other => panic!("{other}: {command}"),
        }
    }
}
