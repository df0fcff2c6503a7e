//! The one table of keys: field, type, default, meaning. The struct, setting by name, `--help`
//! and TOML in both directions all come from it; a new key is a new line here.

use std::path::PathBuf;

use super::value::{Field, Kind, Value};

macro_rules! keys {
    ($($group:ident {
        $($field:ident: $type:ty = $default:expr, $help:literal;)*
    })*) => {
        /// Every setting of a run, in nanoGPT's names where it has one.
        #[derive(Clone, Debug, PartialEq)]
        pub struct Config {
            $($(#[doc = $help] pub $field: $type,)*)*
        }

        impl Default for Config {
            fn default() -> Self {
                Self { $($($field: $default,)*)* }
            }
        }

        /// Every key in table order.
        pub(super) const KEYS: &[Key] = &[$($(Key {
            name: stringify!($field),
            group: Group::$group,
            kind: <$type as Field>::KIND,
            help: $help,
            get: |config| config.$field.to_value(),
            set: |config, value| match Field::from_value(value) {
                Some(value) => {
                    config.$field = value;
                    true
                }
                None => false,
            },
        },)*)*];
    };
}

/// A line of the table.
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) group: Group,
    pub(super) kind: Kind,
    pub(super) help: &'static str,
    pub(super) get: fn(&Config) -> Value,
    /// False, and nothing set, if the value does not fit the key's type.
    pub(super) set: fn(&mut Config, &Value) -> bool,
}

/// Whose key it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Group {
    NanoGpt,
    Ours,
}

/// The key of this name; `-` and `_` are the same.
pub(super) fn find(name: &str) -> Option<&'static Key> {
    let name = name.replace('-', "_");
    KEYS.iter().find(|key| key.name == name)
}

keys! {
    NanoGpt {
        out_dir: PathBuf = "out".into(),
            "run directory: config, events, checkpoints";
        eval_interval: u64 = 2000,
            "evaluate every so many steps, and before the first";
        log_interval: u64 = 1,
            "log the training loss every so many steps";
        eval_iters: u64 = 200,
            "batches per split in an evaluation";
        eval_only: bool = false,
            "evaluate once and end";
        always_save_checkpoint: bool = true,
            "save a checkpoint after every evaluation, not only after one that improves";
        init_from: String = "scratch".into(),
            "where the weights come from; auto resumes if out_dir holds a checkpoint; a folder or \
             OWNER/NAME is a GPT-2 of Hugging Face";
        wandb_log: bool = false,
            "no effect: events.jsonl holds the metrics";
        wandb_project: String = "owt".into(),
            "no effect, see wandb_log";
        wandb_run_name: String = "gpt2".into(),
            "no effect, see wandb_log";
        dataset: String = "openwebtext".into(),
            "name of the dataset: its folder in data_dir; or the path of token files of llm.c's, a \
             file, folder or glob";
        gradient_accumulation_steps: u64 = 5 * 8,
            "batches whose gradients make up one step";
        batch_size: usize = 12,
            "sequences in a batch";
        block_size: usize = 1024,
            "longest context, in tokens";
        n_layer: usize = 12,
            "transformer blocks";
        n_head: usize = 12,
            "attention heads in a block";
        n_embd: usize = 768,
            "width of the model, a multiple of n_head";
        dropout: f64 = 0.0,
            "probability of dropping an activation; 0 for pretraining, 0.1 or more to finetune";
        bias: bool = false,
            "biases in linear layers and LayerNorms";
        learning_rate: f64 = 6e-4,
            "highest learning rate";
        max_iters: u64 = 600_000,
            "steps to train";
        weight_decay: f64 = 1e-1,
            "weight decay of matrices and embeddings";
        beta1: f64 = 0.9,
            "AdamW's decay of the mean gradient";
        beta2: f64 = 0.95,
            "AdamW's decay of the mean squared gradient";
        grad_clip: f64 = 1.0,
            "largest global norm of the gradient; 0 means off";
        decay_lr: bool = true,
            "warm the learning rate up and decay it; false keeps it constant";
        warmup_iters: u64 = 2000,
            "steps of warm-up";
        lr_decay_iters: u64 = 600_000,
            "step at which the learning rate reaches min_lr, usually max_iters";
        min_lr: f64 = 6e-5,
            "lowest learning rate, usually a tenth of learning_rate";
        backend: String = "nccl".into(),
            "no effect: a run uses one process";
        device: String = "auto".into(),
            "where to compute; auto is the CPU where there is no usable GPU";
        dtype: String = "auto".into(),
            "precision of the arithmetic; weights are always kept in float32";
        compile: bool = true,
            "no effect: the program is compiled already";
    }
    Ours {
        seed: u64 = 1,
            "seed of everything random";
        data_dir: PathBuf = "".into(),
            "folder of the datasets; if empty, $ANNEAL_DATA or else data";
        data_url: String = "".into(),
            "mirror to try first when a dataset is fetched";
        fit_batch: bool = false,
            "choose batch_size by the device's memory, with as many tokens a step; \
             --batch_size=auto says so";
        vocab_size: usize = 0,
            "tokens in the vocabulary; 0 means as the dataset says";
        gelu: String = "erf".into(),
            "form of GELU: erf, nanoGPT's exact one, or tanh, GPT-2's";
        sampling: String = "random".into(),
            "training windows: random ones, or every one once an epoch";
        checkpoint_interval: u64 = 0,
            "save a checkpoint every so many steps; 0 means off";
        checkpoint_minutes: f64 = 10.0,
            "save a checkpoint every so many minutes; 0 means off";
        keep_last: u64 = 2,
            "newest checkpoints to keep; the best one is kept besides";
        overwrite: bool = false,
            "start afresh in an out_dir that holds checkpoints";
        adam_eps: f64 = 1e-8,
            "AdamW's epsilon";
        on_divergence: String = "stop".into(),
            "when the loss runs away: stop, or roll back to the last good checkpoint";
        divergence_factor: f64 = 3.0,
            "a loss above this multiple of its running mean has diverged; 0 means off";
        rollback_max: u64 = 3,
            "roll back at most so many times";
        engine: String = "auto".into(),
            "what computes the model; auto is the fused engine, candle the readable one";
        recompute: String = "auto".into(),
            "what backward computes again: none, gelu (and LayerNorm), block; auto: as memory asks";
        cublaslt: String = "auto".into(),
            "on a GPU, products by NVIDIA's library: auto, where it is faster; on, wherever it can \
             be; off";
        tf32: bool = true,
            "on a GPU, round factors of float32 products to TF32 (cuBLASLt only), as nanoGPT";
        threads: usize = 0,
            "CPU threads; 0 means all cores";
        progress: String = "auto".into(),
            "show a bar, or nanoGPT's log lines; auto is a bar on a terminal";
        tensorboard_log: bool = false,
            "keep an event file for TensorBoard in out_dir/tensorboard while the run goes on";
        verbose: bool = false,
            "say more at the start, who computes each product for one; -v";
        sample_tokens: u64 = 0,
            "tokens to sample and show at the end of training";
        temperature: f64 = 0.8,
            "sampling: below 1 is safer, above 1 wilder; 0 always takes the likeliest token";
        top_k: u64 = 200,
            "sampling: only from the k likeliest tokens; 0 means off";
        top_p: f64 = 1.0,
            "sampling: only from the likeliest tokens of this total probability";
    }
}
