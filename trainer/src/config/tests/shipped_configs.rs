//! The configs in `configs/`: they resolve, and hold nanoGPT's values.

use super::*;

/// A shipped config, without asking whether this build supports it.
fn config(name: &str) -> Config {
    let (_, text) = shipped::find(name).unwrap();
    Config::from_toml_str(text).unwrap_or_else(|error| panic!("{name}: {error}"))
}

#[test]
fn each_parses_and_validates() {
    for (name, _) in Config::shipped() {
        config(name);
    }
}

#[test]
fn each_file_is_embedded_and_the_other_way_round() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs");
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        // The agent's: what machines cost, and samples of sweeps.
        .filter(|name| name != "prices.toml" && name != "sweeps")
        .collect();
    let mut embedded: Vec<_> = Config::shipped()
        .iter()
        .map(|(name, _)| format!("{name}.toml"))
        .collect();
    files.sort();
    embedded.sort();
    assert_eq!(files, embedded);
}

#[test]
fn each_resolves() {
    for (name, _) in Config::shipped() {
        assert_eq!(Config::resolve(Some(name), &[]).unwrap().name, *name);
    }
}

/// What a config changes of the defaults.
fn changes(name: &str) -> String {
    Config::default()
        .differences(&config(name))
        .iter()
        .map(|change| format!("{}={}\n", change.key, change.new))
        .collect()
}

#[test]
fn shakespeare_char_has_nanogpts_values() {
    expect![[r#"
        out_dir="out-shakespeare-char"
        eval_interval=250
        log_interval=10
        always_save_checkpoint=false
        wandb_project="shakespeare-char"
        wandb_run_name="mini-gpt"
        dataset="shakespeare_char"
        gradient_accumulation_steps=1
        batch_size=64
        block_size=256
        n_layer=6
        n_head=6
        n_embd=384
        dropout=0.2
        learning_rate=0.001
        max_iters=5000
        beta2=0.99
        warmup_iters=100
        lr_decay_iters=5000
        min_lr=0.0001
    "#]]
    .assert_eq(&changes("train_shakespeare_char"));
    let config = config("shakespeare_char");
    assert_eq!((config.weight_decay, config.grad_clip), (0.1, 1.0));
    assert_eq!((config.beta1, config.bias), (0.9, false));
    assert_eq!(config.tokens_per_iteration(), 16_384);
}

#[test]
fn gpt2_has_nanogpts_values() {
    expect![[r#"
        eval_interval=1000
        log_interval=10
        wandb_log=true
        wandb_run_name="gpt2-124M"
    "#]]
    .assert_eq(&changes("train_gpt2"));
    assert_eq!(config("gpt2").tokens_per_iteration(), 491_520);
}

#[test]
fn finetune_and_eval_have_nanogpts_values() {
    expect![[r#"
        out_dir="out-shakespeare"
        eval_interval=5
        eval_iters=40
        always_save_checkpoint=false
        init_from="gpt2-xl"
        wandb_project="shakespeare"
        wandb_run_name="ft"
        dataset="shakespeare"
        gradient_accumulation_steps=32
        batch_size=1
        learning_rate=3e-5
        max_iters=20
        decay_lr=false
    "#]]
    .assert_eq(&changes("finetune_shakespeare"));
    assert_eq!(
        config("finetune_shakespeare").tokens_per_iteration(),
        32_768
    );
    for (name, init_from) in [
        ("eval_gpt2", "gpt2"),
        ("eval_gpt2_medium", "gpt2-medium"),
        ("eval_gpt2_large", "gpt2-large"),
        ("eval_gpt2_xl", "gpt2-xl"),
    ] {
        assert_eq!(
            changes(name),
            format!("eval_iters=500\neval_only=true\ninit_from=\"{init_from}\"\nbatch_size=8\n")
        );
    }
}

#[test]
fn gpt2_sizes_are_gpt2s() {
    for (name, shape, tokens) in [
        ("gpt2_124m", (12, 12, 768), 524_288),
        ("gpt2_350m", (24, 16, 1024), 524_288),
        ("gpt2_774m", (36, 20, 1280), 524_288),
        ("gpt2_1558m", (48, 25, 1600), 1_048_576),
    ] {
        let config = config(name);
        assert_eq!((config.n_layer, config.n_head, config.n_embd), shape);
        assert_eq!(config.tokens_per_iteration(), tokens, "{name}");
        assert_eq!(config.max_iters, config.lr_decay_iters, "{name}");
    }
}

#[test]
fn an_unknown_name_lists_what_there_is() {
    let fault = faults(Some("shakespear_char"), &["--n_layr=6"]);
    let lines: Vec<_> = fault.lines().collect();
    let names: Vec<_> = Config::shipped().iter().map(|(name, _)| *name).collect();
    let names = names.join(", ");
    assert_eq!(
        lines,
        [
            "--config: no config is named \"shakespear_char\"; did you mean shakespeare_char?",
            &format!("hint: shipped are {names}; a path contains / or ends in .toml or .py"),
            "command line: unknown key `n_layr`; did you mean n_layer?",
        ]
    );
    let fault = faults(Some("zzz"), &[]);
    assert!(fault.starts_with("--config: no config is named \"zzz\"\nhint: "));
}
