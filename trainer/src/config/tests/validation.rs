//! Which values are refused, how it is said, and what is only noted.

use super::*;

#[test]
fn five_faults_give_five_lines() {
    check(
        &file_faults(
            "x.toml",
            "n_hed = 4\nn_layer = \"six\"\nn_embd = 100\nn_head = 3\n\ndropout = 1.5\n",
            &["--device=gpu"],
        ),
        expect![[r#"
            x.toml:1: unknown key `n_hed`; did you mean n_head?
            x.toml:2: n_layer: expected a whole number from 0 to 2^64 - 1, got "six"
            x.toml:4: n_embd: expected a multiple of n_head (3), got 100
            x.toml:6: dropout: expected 0 <= dropout < 1, got 1.5
            command line: device: expected one of auto, cpu, cuda, cuda:N, mps, got "gpu"
        "#]],
    );
}

#[test]
fn a_refused_value_does_not_accuse_its_neighbour() {
    // The default learning_rate, in force only because the given one was refused, is lower.
    check(
        &faults(None, &["--learning_rate=high", "--min_lr=1e-3"]),
        expect![[r#"
            command line: learning_rate: expected a number, got "high"
        "#]],
    );
}

#[test]
fn each_value_has_its_range() {
    for (key, bad, good) in [
        ("out_dir", &[""][..], &["x"][..]),
        ("dataset", &[""], &["x"]),
        ("eval_interval", &["0"], &["1"]),
        ("log_interval", &["0"], &["1"]),
        ("eval_iters", &["0"], &["1"]),
        (
            "gradient_accumulation_steps",
            &["0", "65537"],
            &["1", "65536"],
        ),
        ("batch_size", &["0", "1e15"], &["1"]),
        ("block_size", &["0"], &["1"]),
        ("n_layer", &["0"], &["1"]),
        ("n_head", &["0", "5"], &["1", "4"]),
        ("n_embd", &["0", "769"], &["12"]),
        ("vocab_size", &["4294967296"], &["0", "65"]),
        ("threads", &["4294967296"], &["0", "2"]),
        ("keep_last", &["0"], &["1"]),
        ("dropout", &["1", "-0.1"], &["0", "0.99"]),
        ("beta1", &["1", "-0.1"], &["0", "0.99"]),
        ("beta2", &["1", "-0.1"], &["0", "0.99"]),
        ("learning_rate", &["0", "-1", "1e999", "1e-5"], &["6e-5"]),
        ("min_lr", &["-1", "1e-3"], &["0", "6e-4"]),
        ("weight_decay", &["-1", "1e999"], &["0"]),
        ("grad_clip", &["-1", "1e999"], &["0"]),
        ("adam_eps", &["0", "-1", "1e999"], &["1e-5"]),
        ("checkpoint_minutes", &["-1", "1e999"], &["0", "0.5"]),
        ("divergence_factor", &["1", "-1", "1e999"], &["0", "1.1"]),
        ("temperature", &["-1", "1e999"], &["0"]),
        ("top_p", &["0", "1.01", "-1"], &["1", "0.1"]),
        ("lr_decay_iters", &["1999"], &["2000"]),
        ("warmup_iters", &["600001"], &["0", "600000"]),
        ("init_from", &["gpt3", ""], &["scratch", "resume", "auto"]),
        (
            "device",
            &["gpu", "cuda:N", "cuda:", "cuda:x", "cuda:+1", "CPU"],
            &["auto", "cpu", "cuda", "cuda:0", "cuda:15", "mps"],
        ),
        (
            "dtype",
            &["fp32"],
            &["auto", "float32", "bfloat16", "float16"],
        ),
        ("sampling", &["x"], &["random", "epoch"]),
        ("on_divergence", &["x"], &["stop", "rollback"]),
        ("engine", &["cuda"], &["auto", "fused", "candle"]),
        ("recompute", &["all"], &["auto", "none", "gelu", "block"]),
        ("cublaslt", &["yes"], &["auto", "on", "off"]),
        ("progress", &["x"], &["auto", "bar", "lines"]),
    ] {
        for value in good {
            over_defaults(&[&format!("--{key}={value}")]);
        }
        for value in bad {
            let fault = faults(None, &[&format!("--{key}={value}")]);
            assert_eq!(fault.lines().count(), 1, "{fault}");
            assert!(fault.starts_with("command line: "), "{fault}");
            assert!(fault.contains(key) && fault.contains(", got "), "{fault}");
        }
    }
}

#[test]
fn not_a_number_is_never_valid() {
    for key in KEYS.iter().filter(|key| key.kind == Kind::Float) {
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let mut config = Config::default();
            assert!((key.set)(&mut config, &Value::Float(value)));
            assert!(config.validate().is_err(), "{} = {value}", key.name);
        }
    }
}

#[test]
fn a_constant_learning_rate_needs_no_schedule() {
    over_defaults(&[
        "--decay_lr=False",
        "--learning_rate=1e-5",
        "--lr_decay_iters=1",
    ]);
}

#[test]
fn weights_may_come_from_a_name_a_folder_or_a_repository() {
    for (init_from, is_pretrained) in [
        ("gpt2-xl", true),
        ("./models/mine", true),
        ("openai-community/gpt2", true),
        ("scratch", false),
        ("auto", false),
    ] {
        let config = over_defaults(&[&format!("--init_from={init_from}")]);
        assert_eq!(config.is_pretrained(), is_pretrained, "{init_from}");
    }
    assert!(faults(None, &["--init_from", "gtp2"]).contains("init_from: expected one of scratch"));
}

#[test]
fn settings_without_effect_are_noted() {
    let overrides = words(&["--wandb_log=True", "--backend=gloo", "--compile=False"]);
    let notes = Config::resolve(None, &overrides).unwrap().notes;
    check(
        &notes.join("\n"),
        expect![[r#"
        wandb_log=true has no effect: events.jsonl holds the metrics
        backend=gloo has no effect: a run uses one process
        compile=false has no effect: the program is compiled already
    "#]],
    );
}

#[test]
fn a_rule_over_defaults_is_told_beside_other_faults_unless_they_touch_its_keys() {
    let told = |words: &[&str]| faults(None, words);
    let rule = "n_embd: expected a multiple of n_head";
    assert!(told(&["--n_embd=7", "--nonsense=1"]).contains(rule));
    assert!(told(&["--n_embd=7", "--batch_size=x"]).contains(rule));
    // n_head may have been meant to be 7.
    assert!(!told(&["--n_embd=7", "--n_hea=7"]).contains(rule));
    assert!(!told(&["--n_embd=7", "--n_head=x"]).contains(rule));
}
