//! The grammar of the command line.

use super::*;

#[test]
fn both_spellings_set_every_type() {
    let equals = over_defaults(&[
        "--n_layer=4",
        "--dropout=0.5",
        "--bias=True",
        "--dataset=mine",
        "--out_dir=a/b",
    ]);
    let spaces = over_defaults(&[
        "--n-layer",
        "4",
        "--dropout",
        "0.5",
        "--bias",
        "--dataset",
        "mine",
        "--out-dir",
        "a/b",
    ]);
    assert_eq!(equals, spaces);
    assert_eq!(
        (equals.n_layer, equals.dropout, equals.bias),
        (4, 0.5, true)
    );
    assert_eq!(equals.dataset, "mine");
    assert_eq!(equals.out_dir, PathBuf::from("a/b"));
}

#[test]
fn whole_numbers_and_floats_stand_for_each_other() {
    let config = over_defaults(&["--weight_decay=0", "--learning_rate=1", "--max_iters=1e3"]);
    assert_eq!((config.weight_decay, config.learning_rate), (0.0, 1.0));
    assert_eq!(config.max_iters, 1000);
    assert_eq!(over_defaults(&["--max_iters=5_000"]).max_iters, 5000);
    assert_eq!(over_defaults(&["--batch_size=5*8"]).batch_size, 40);
    let seed = over_defaults(&["--seed=18446744073709551615"]).seed;
    assert_eq!(seed, u64::MAX);
    for word in [
        "1.5",
        "-1",
        "1e30",
        "six",
        "",
        "true",
        "_1",
        "1_",
        "1__0",
        "nan",
        "2*",
        "2*0.5",
        "18446744073709551616",
    ] {
        let fault = faults(None, &[&format!("--max_iters={word}")]);
        assert!(
            fault.starts_with(
                "command line: max_iters: expected a whole number from 0 to 2^64 - 1, got "
            ),
            "{fault}"
        );
    }
    for word in ["x", "", "1,5", "true", "nan", "inf", "0x10"] {
        let fault = faults(None, &[&format!("--dropout={word}")]);
        assert!(
            fault.starts_with("command line: dropout: expected a number, got "),
            "{fault}"
        );
    }
}

#[test]
fn flags_take_six_words_or_none() {
    for (word, value) in [
        ("True", true),
        ("true", true),
        ("1", true),
        ("False", false),
        ("false", false),
        ("0", false),
    ] {
        for spelling in [vec![format!("--bias={word}")], words(&["--bias", word])] {
            let config = Config::resolve(None, &spelling).unwrap().config;
            assert_eq!(config.bias, value, "{spelling:?}");
        }
    }
    let config = over_defaults(&["--bias", "--n_layer=3"]);
    assert_eq!((config.bias, config.n_layer), (true, 3));
    check(
        &faults(None, &["--bias=yes"]),
        expect![[r#"
        command line: bias: expected true or false, got "yes"
    "#]],
    );
}

#[test]
fn text_is_as_it_stands_but_for_one_pair_of_quotes() {
    for (word, text) in [
        ("a=b=c", "a=b=c"),
        ("\"two words\"", "two words"),
        ("'x'", "x"),
        ("''x''", "'x'"),
        ("\"x'", "\"x'"),
        ("\"", "\""),
        ("", ""),
        ("1", "1"),
        ("None", "None"),
    ] {
        let config = over_defaults(&[&format!("--data_url={word}")]);
        assert_eq!(config.data_url, text, "{word}");
    }
}

#[test]
fn the_later_word_wins_and_beats_the_file() {
    assert_eq!(over_defaults(&["--seed=1", "--seed", "2"]).seed, 2);
    let resolved = Config::resolve(Some("shakespeare_char"), &words(&["--n_layer=2"])).unwrap();
    assert_eq!((resolved.config.n_layer, resolved.config.n_embd), (2, 384));
}

#[test]
fn a_negative_number_is_a_value_and_then_out_of_range() {
    check(
        &faults(None, &["--temperature", "-1"]),
        expect![[r#"
        command line: temperature: expected a finite number, 0 or more, got -1.0
    "#]],
    );
}

#[test]
fn what_is_no_key_is_refused_with_advice() {
    check(
        &faults(
            None,
            &[
                "shakespeare_char",
                "--n_layers=6",
                "--lerning-rate",
                "1",
                "--qqq=1",
                "-v",
                "--",
                "--=3",
                "--seed",
                "--bias",
            ],
        ),
        expect![[r#"
            command line: expected --key=value, got `shakespeare_char`; --config names a config
            command line: unknown key `n_layers`; did you mean n_layer?
            command line: unknown key `lerning-rate`; did you mean learning_rate?
            command line: unknown key `qqq`; --help lists every key
            command line: expected --key=value, got `-v`; --config names a config
            command line: expected --key=value, got `--`; --config names a config
            command line: unknown key ``; --help lists every key
            command line: seed: expected a whole number from 0 to 2^64 - 1, got nothing
        "#]],
    );
}
