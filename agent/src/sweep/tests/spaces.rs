//! Which trials a file means, what they are called, and that a sweep is created once.

use std::collections::BTreeSet;

use crate::storage::memory::Memory;
use crate::sweep::{Creation, Place, Setting, Settings, Spec, SweepError, id_of};

fn spec(text: &str) -> Spec {
    Spec::from_toml(text, Some("s")).unwrap()
}

#[track_caller]
fn faults(text: &str) -> String {
    Spec::from_toml(text, Some("s")).unwrap_err().to_string()
}

const RANDOM: &str = r#"
    method = "random"
    trials = 200
    seed = 7
    [keys]
    learning_rate = { log_uniform = [1e-4, 1e-2] }
    dropout = { uniform = [0.0, 0.5] }
    n_layer = { int = [2, 5] }
    n_embd = { choice = [64, 128] }
    bias = false
"#;

#[test]
fn a_trial_is_named_by_its_settings_however_they_are_spelled() {
    let of = |key: &str, value| id_of(&Settings::from([(key.to_owned(), value)]));
    let one = spec("method = \"grid\"\n[keys]\ndropout = 1.0").trials;
    assert_eq!(one[0].id, of("dropout", Setting::Integer(1)));
    // sha256("dropout=1\n")
    assert_eq!(one[0].id, "b402e601c3c0fe4f");
    assert_ne!(one[0].id, of("dropout", Setting::Integer(2)));
    assert_ne!(one[0].id, of("dropou", Setting::Integer(1)));
}

#[test]
fn a_grid_is_every_combination_once() {
    let grid = spec(
        "method = \"grid\"\n[keys]\nlearning_rate = [1e-3, 3e-4]\nn_layer = [2, 4, 6]\nbias = true",
    );
    assert_eq!(grid.trials.len(), 6);
    let ids: BTreeSet<&String> = grid.trials.iter().map(|trial| &trial.id).collect();
    assert_eq!(ids.len(), 6);
    let bias = |trial: &crate::sweep::Trial| trial.settings["bias"] == Setting::Bool(true);
    assert!(grid.trials.iter().all(bias));
    assert_eq!(grid.varied(), ["learning_rate", "n_layer"]);
}

#[test]
fn a_list_goes_over_the_fixed_keys() {
    let list = spec(
        "method = \"list\"\n[keys]\nn_layer = 2\n[[trial]]\nlearning_rate = 1e-3\n\
         [[trial]]\nn_layer = 3",
    );
    assert_eq!(list.trials[0].settings["n_layer"], Setting::Integer(2));
    assert_eq!(list.trials[1].settings["n_layer"], Setting::Integer(3));
    let same = "method = \"list\"\n[[trial]]\ndropout = 0.0\n[[trial]]\ndropout = 0";
    assert!(faults(same).contains("trials 1 and 2 are the same"));
}

#[test]
fn draws_are_of_the_space_and_of_the_seed() {
    let drawn = spec(RANDOM);
    assert_eq!(drawn, spec(RANDOM));
    assert_ne!(drawn, spec(&RANDOM.replace("seed = 7", "seed = 8")));
    // More trials begin with the same.
    let more = spec(&RANDOM.replace("trials = 200", "trials = 201"));
    assert_eq!(drawn.trials, more.trials[..200]);
    let number = |settings: &Settings, key: &str| match settings[key] {
        Setting::Integer(value) => value as f64,
        Setting::Float(value) => value,
        _ => panic!("{key} is no number"),
    };
    let mut below_1e3 = 0;
    let mut layers = BTreeSet::new();
    for trial in &drawn.trials {
        let lr = number(&trial.settings, "learning_rate");
        assert!((1e-4..=1e-2).contains(&lr), "{lr}");
        below_1e3 += usize::from(lr < 1e-3);
        assert!((0.0..=0.5).contains(&number(&trial.settings, "dropout")));
        layers.insert(number(&trial.settings, "n_layer") as i64);
        assert!([64.0, 128.0].contains(&number(&trial.settings, "n_embd")));
    }
    // The middle of a logarithmic range is its geometric mean.
    assert!((70..=130).contains(&below_1e3), "{below_1e3}");
    assert_eq!(Vec::from_iter(layers), [2, 3, 4, 5]);
    let few = "method = \"random\"\ntrials = 5\n[keys]\nn_layer = { int = [1, 4] }";
    assert!(faults(few).contains("found only 4"));
    assert_eq!(spec(&few.replace("= 5", "= 4")).trials.len(), 4);
}

#[test]
fn every_fault_of_a_file_is_told_at_once() {
    let text = faults(
        "method = \"grid\"\nseed = 1\nattempts_max = 0\n[keys]\nout_dir = \"x\"\n\
         dropout = { uniform = [0.0, 0.1] }\nn_layer = [2, 2]\nn_head = { int = [4, 2] }\n\
         [budget]\nusd = 1\nclaim_usd = 2",
    );
    for wanted in [
        "seed: expected",
        "attempts_max: expected",
        "out_dir: the agent sets it",
        "dropout: a grid has no ranges",
        "n_layer: expected values that differ",
        "n_head: int: expected low < high",
        "budget: expected",
    ] {
        assert!(text.contains(wanted), "{wanted}\n{text}");
    }
    assert!(faults("method = \"grid\"\nkyes = 1").contains("kyes"));
    assert!(faults("method = \"grid\"\n[keys]\na = [{}]").contains("keys.a: expected a number"));
    let huge: String = (0..5)
        .map(|i| format!("k{i} = [1,2,3,4,5,6,7,8]\n"))
        .collect();
    assert!(faults(&format!("method = \"grid\"\n[keys]\n{huge}")).contains("at most 10000"));
}

#[tokio::test]
async fn a_sweep_is_created_once_and_another_is_told_from_it() {
    let store = Memory::new();
    let place = Place::new("s").unwrap();
    let first = spec(RANDOM);
    assert_eq!(first.create(&store, &place).await.unwrap(), Creation::New);
    assert_eq!(first.create(&store, &place).await.unwrap(), Creation::Same);
    assert_eq!(Spec::read(&store, &place).await.unwrap(), first);
    let other = spec(&format!("attempts_max = 9\n{RANDOM}"));
    let error = other.create(&store, &place).await.unwrap_err();
    assert!(matches!(error, SweepError::Differs { .. }));
    let text = error.to_string();
    assert!(
        text.contains("attempts_max: there is 3, wanted is 9"),
        "{text}"
    );
    assert!(!text.contains("trials"), "{text}");
}

#[test]
fn a_location_names_store_and_sweep() {
    let split = Place::split;
    assert_eq!(split("s3://b/p/sweeps/x"), Some(("s3://b/p", "x")));
    assert_eq!(split("s3://b/sweeps/x/"), Some(("s3://b", "x")));
    assert_eq!(split("./store/sweeps/x"), Some(("./store", "x")));
    assert_eq!(split("sweeps/x"), Some((".", "x")));
    assert_eq!(split("/sweeps/x"), Some(("/", "x")));
    assert_eq!(split("s3://b/mysweeps/x"), None);
    assert_eq!(split("s3://sweeps/x"), None);
    assert_eq!(split("store/x"), None);
    assert!(Place::new("a/b").is_err());
}

#[test]
fn the_sample_is_a_sweep() {
    let text = include_str!("../../../../configs/sweeps/shakespeare_lr.toml");
    let sample = Spec::from_toml(text, None).unwrap();
    assert_eq!(sample.trials.len(), 20);
    assert_eq!(sample.varied(), ["dropout", "learning_rate", "n_layer"]);
    assert!(sample.budget.is_some() && sample.halving.is_some());
}
