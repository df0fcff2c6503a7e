//! The grammars of config files: TOML and nanoGPT's `key = literal`.

use super::*;

#[test]
fn toml_is_typed_and_counts_lines() {
    check(
        &file_faults(
            "x.toml",
            "n_layer = \"6\"\n\ndropout = true\nbias = 1\ndataset = 5\nout_dir = [1]\n\
             max_iters = 2.5\nlearning-rates = 1\nseed = 1979-05-27\n[model]\nn_head = 2\n",
            &[],
        ),
        expect![[r#"
            x.toml:1: n_layer: expected a whole number from 0 to 2^64 - 1, got "6"
            x.toml:3: dropout: expected a number, got true
            x.toml:4: bias: expected true or false, got 1
            x.toml:5: dataset: expected a string, got 5
            x.toml:6: out_dir: expected a string, got an array
            x.toml:7: max_iters: expected a whole number from 0 to 2^64 - 1, got 2.5
            x.toml:8: unknown key `learning-rates`; did you mean learning_rate?
            x.toml:9: seed: expected a whole number from 0 to 2^64 - 1, got a date
            x.toml:10: unknown key `model`; --help lists every key
        "#]],
    );
}

#[test]
fn toml_accepts_what_fits_exactly() {
    let (_folder, path) = file(
        "mine.toml",
        "n-layer = 0x4 # comment\nmax_iters = 1e3\nlearning_rate = 1\nmin_lr = 0\n\
         data_url = 'a#b'\nseed = 18446744073709551615\n",
    );
    let resolved = Config::resolve(Some(&path), &[]).unwrap();
    let config = resolved.config;
    assert_eq!(resolved.name, "mine");
    assert_eq!((config.n_layer, config.max_iters), (4, 1000));
    assert_eq!((config.learning_rate, config.min_lr), (1.0, 0.0));
    assert_eq!(config.data_url, "a#b");
    assert_eq!(config.seed, u64::MAX);
}

#[test]
fn broken_toml_is_reported_beside_other_faults() {
    check(
        &file_faults(
            "x.toml",
            "seed = 1\nseed = 2\nn_layer = \ntop_p = 2\n",
            &["--dropout=1"],
        ),
        expect![[r#"
            x.toml:2: duplicate key
            x.toml:3: string values must be quoted, expected literal string
            x.toml:4: top_p: expected 0 < top_p <= 1, got 2.0
            command line: dropout: expected 0 <= dropout < 1, got 1.0
        "#]],
    );
}

#[test]
fn a_file_that_cannot_be_read_is_a_fault_of_the_config() {
    check(
        &faults(Some("nowhere/x.toml"), &["--top_p=0", "--n_embd=7"]),
        expect![[r#"
            cannot read config nowhere/x.toml: No such file or directory (os error 2)
            command line: top_p: expected 0 < top_p <= 1, got 0.0
        "#]],
    );
    check(
        &faults(Some("config/train_gpt2.py"), &[]),
        expect![[r#"
            cannot read config config/train_gpt2.py: No such file or directory (os error 2)
            hint: --config gpt2 is built in and needs no file
        "#]],
    );
}

#[test]
fn python_reads_what_nanogpts_files_hold() {
    let (_folder, path) = file(
        "train_mine.py",
        "# a comment with out_dir = 'wrong'\n\n   # and an indented one\n\
         out_dir = 'out#1' # trailing, with 'quotes'\nwandb_run_name='gpt2-124M'\n\
         gradient_accumulation_steps = 5 * 8\nbatch_size=2*3*4\nlearning_rate = 1e-3\n\
         min_lr = 0\nmax_iters = 600_000\nlr_decay_iters=6e5\nbias = True\ncompile = false\n\
         data_url = \"it's \\\"so\\\"\"\r\ndropout = .5\nseed = 1\nseed = 2\n",
    );
    let resolved = Config::resolve(Some(&path), &[]).unwrap();
    assert_eq!(resolved.name, "train_mine");
    let expected = Config {
        out_dir: "out#1".into(),
        wandb_run_name: "gpt2-124M".to_owned(),
        gradient_accumulation_steps: 40,
        batch_size: 24,
        learning_rate: 1e-3,
        min_lr: 0.0,
        bias: true,
        compile: false,
        data_url: "it's \"so\"".to_owned(),
        dropout: 0.5,
        seed: 2,
        ..Config::default()
    };
    assert_eq!(resolved.config, expected);
}

#[test]
fn python_beyond_literals_is_refused_with_its_line() {
    check(
        &file_faults(
            "finetune.py",
            "import time\nout_dir = 'out'\nwandb_run_name='ft-' + str(time.time())\n\
             init_from = None\nseed = 1; bias = True\n  n_layer = 2\nn_head == 2\n\
             n_embd += 2\ndropout: float = 0.1\nbatch_size = 4 if True else 5\n\
             top_k = 2 * 0.5\ndataset = f'x'\nbackend = 'a' 'b'\ndevice = 'cpu\n\
             data_url = '\\x41'\nunknown = 3\nblock_size = '4'\n",
            &[],
        ),
        expect![[r#"
            finetune.py:1: expected key = literal, got `import time`
            finetune.py:3: expected key = literal, got `wandb_run_name='ft-' + str(time.time())`
            finetune.py:4: expected key = literal, got `init_from = None`
            finetune.py:5: expected key = literal, got `seed = 1; bias = True`
            finetune.py:6: expected key = literal, got `n_layer = 2`
            finetune.py:7: expected key = literal, got `n_head == 2`
            finetune.py:8: expected key = literal, got `n_embd += 2`
            finetune.py:9: expected key = literal, got `dropout: float = 0.1`
            finetune.py:10: expected key = literal, got `batch_size = 4 if True else 5`
            finetune.py:11: expected key = literal, got `top_k = 2 * 0.5`
            finetune.py:12: expected key = literal, got `dataset = f'x'`
            finetune.py:13: expected key = literal, got `backend = 'a' 'b'`
            finetune.py:14: expected key = literal, got `device = 'cpu`
            finetune.py:15: expected key = literal, got `data_url = '\x41'`
            finetune.py:16: unknown key `unknown`; --help lists every key
            finetune.py:17: block_size: expected a whole number from 0 to 2^64 - 1, got "4"
        "#]],
    );
}
