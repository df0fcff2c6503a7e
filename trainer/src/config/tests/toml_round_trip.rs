//! TOML out and in again, hashes and differences.

use super::*;

/// Any value that a key of this kind can hold, valid or not.
fn any_value(kind: Kind) -> BoxedStrategy<Value> {
    match kind {
        Kind::Int => any::<u64>().prop_map(|n| Value::Integer(n.into())).boxed(),
        Kind::Float => prop_oneof![
            any::<f64>().prop_filter("NaN is not equal to itself", |x| !x.is_nan()),
            (-300i32..300).prop_map(|exponent| 10f64.powi(exponent)),
        ]
        .prop_map(Value::Float)
        .boxed(),
        Kind::Bool => any::<bool>().prop_map(Value::Bool).boxed(),
        Kind::Text | Kind::Path => any::<String>().prop_map(Value::Text).boxed(),
    }
}

fn any_config() -> impl Strategy<Value = Config> {
    let values: Vec<_> = KEYS.iter().map(|key| any_value(key.kind)).collect();
    values.prop_map(|values| {
        let mut config = Config::default();
        for (key, value) in KEYS.iter().zip(values) {
            assert!((key.set)(&mut config, &value), "{}", key.name);
        }
        config
    })
}

proptest! {
    #[test]
    fn reads_back_to_the_same_bits(config in any_config()) {
        let mut draft = Draft::default();
        draft.toml(&config.to_toml(), "x.toml");
        let (read, _) = draft.finish();
        prop_assert_eq!(config.to_toml(), read.to_toml());
        prop_assert_eq!(config.hash(), read.hash());
        prop_assert!(config == read);
    }

    #[test]
    fn no_text_makes_a_parser_panic(text in "[a-z_=\"'#\\\\\\[\\]0-9.*\n -]{0,80}") {
        let mut draft = Draft::default();
        draft.toml(&text, "x.toml");
        draft.python(&text, "x.py");
        draft.command_line(&text.split(' ').map(str::to_owned).collect::<Vec<_>>());
        draft.finish();
    }
}

#[test]
fn a_runs_config_reads_back_and_its_faults_are_named() {
    let config = over_defaults(&[
        "--seed=5",
        "--learning_rate=0.1",
        "--data_url=a\"\\\n\u{7f}",
    ]);
    assert_eq!(Config::from_toml_str(&config.to_toml()).unwrap(), config);
    let text = config.to_toml().replace("seed = 5", "sed = 5");
    let fault = Config::from_toml_str(&text).unwrap_err().to_string();
    assert_eq!(
        fault,
        "config.toml:34: unknown key `sed`; did you mean seed?"
    );
}

#[test]
fn the_hash_is_sha256_of_the_toml() {
    let hash = Config::default().hash();
    assert_eq!(hash.len(), 64);
    assert!(hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')));
    assert_ne!(hash, over_defaults(&["--top_p=0.5"]).hash());
    let digest = Sha256::digest(Config::default().to_toml());
    assert_eq!(hash[..2], format!("{:02x}", digest[0]));
}

#[test]
fn differences_name_key_old_and_new() {
    let old = over_defaults(&["--n_layer=2"]);
    let new = over_defaults(&["--n_layer=2", "--dataset=mine", "--dropout=0.1"]);
    let found: Vec<_> = old
        .differences(&new)
        .into_iter()
        .map(|Difference { key, old, new }| format!("{key}: {old} -> {new}"))
        .collect();
    assert_eq!(
        found,
        [
            "dataset: \"openwebtext\" -> \"mine\"",
            "dropout: 0.0 -> 0.1"
        ]
    );
    assert_eq!(old.differences(&old), []);
}
