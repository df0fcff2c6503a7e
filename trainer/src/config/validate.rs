//! What values make sense, alone and together. Called when a config is resolved or read back.

use crate::{Error, Result};

use super::table::{self, Config};
use super::value::Value;

/// Keys that take one of a few words, and the words.
pub(super) const CHOICES: &[(&str, &[&str])] = &[
    (
        "init_from",
        &[
            "scratch",
            "resume",
            "auto",
            "gpt2",
            "gpt2-medium",
            "gpt2-large",
            "gpt2-xl",
            "./FOLDER",
            "OWNER/NAME",
        ],
    ),
    ("device", &["auto", "cpu", "cuda", "cuda:N", "mps"]),
    ("dtype", &["auto", "float32", "bfloat16", "float16"]),
    ("gelu", &["erf", "tanh"]),
    ("sampling", &["random", "epoch"]),
    ("on_divergence", &["stop", "rollback"]),
    ("engine", &["auto", "fused", "candle"]),
    ("recompute", &["auto", "none", "gelu", "block"]),
    ("cublaslt", &["auto", "on", "off"]),
    ("progress", &["auto", "bar", "lines"]),
];

/// Largest value of anything that sizes a tensor, so that products of two fit 64 bits.
const SIZE_MAX: u64 = u32::MAX as u64;

/// Most micro-steps of a step: their number takes 16 bits of the counter of dropout's masks.
pub(crate) const MICRO_STEPS_MAX: u64 = 1 << 16;

/// A rule that a config breaks.
pub(super) struct Fault {
    /// The keys that the rule is about.
    pub(super) keys: Vec<&'static str>,
    /// Key, what was expected, what was found.
    pub(super) text: String,
}

impl Config {
    /// Checks every value, alone and against the others.
    ///
    /// # Errors
    /// [`Error::Config`] with every fault.
    pub fn validate(&self) -> Result<()> {
        let faults: Vec<_> = self.faults().into_iter().map(|fault| fault.text).collect();
        if faults.is_empty() {
            Ok(())
        } else {
            Err(Error::Config(faults))
        }
    }

    /// Whether the run begins with the weights of another model.
    pub fn is_pretrained(&self) -> bool {
        !["scratch", "resume", "auto"].contains(&self.init_from.as_str())
    }

    /// Every rule that this config breaks.
    pub(super) fn faults(&self) -> Vec<Fault> {
        let mut rules = Rules {
            config: self,
            faults: Vec::new(),
        };
        rules.words();
        rules.numbers();
        rules.relations();
        rules.faults
    }
}

struct Rules<'a> {
    config: &'a Config,
    faults: Vec<Fault>,
}

impl Rules<'_> {
    /// Unless `holds`, a fault of `key`: what was expected, and its value.
    fn require(&mut self, holds: bool, key: &'static str, expected: &str) {
        if !holds {
            let got = value(self.config, key);
            self.faults.push(Fault {
                keys: vec![key],
                text: format!("{key}: expected {expected}, got {got}"),
            });
        }
    }

    fn words(&mut self) {
        let config = self.config;
        for &(key, words) in CHOICES {
            let Value::Text(value) = value(config, key) else {
                unreachable!("only keys of text have choices");
            };
            let is_numbered_gpu = key == "device"
                && value
                    .strip_prefix("cuda:")
                    .is_some_and(|n| !n.starts_with('+') && n.parse::<u16>().is_ok());
            let is_emulator = cfg!(feature = "emulator") && key == "device" && value == "emulator";
            let known = is_emulator || words.contains(&&*value) && value != "cuda:N";
            // A folder or a repository of the hub; whether it is there is not looked at here.
            let is_place = key == "init_from" && value.contains('/');
            let expected = format!("one of {}", words.join(", "));
            self.require(known || is_numbered_gpu || is_place, key, &expected);
        }
        self.require(
            !config.out_dir.as_os_str().is_empty(),
            "out_dir",
            "a directory",
        );
        self.require(
            !config.dataset.is_empty(),
            "dataset",
            "the name of a dataset",
        );
    }

    fn numbers(&mut self) {
        let config = self.config;
        for (key, value) in [
            ("eval_interval", config.eval_interval),
            ("log_interval", config.log_interval),
            ("eval_iters", config.eval_iters),
            ("keep_last", config.keep_last),
        ] {
            self.require(value > 0, key, "at least 1");
        }
        for (key, value, min, max) in [
            ("batch_size", config.batch_size as u64, 1, SIZE_MAX),
            ("block_size", config.block_size as u64, 1, SIZE_MAX),
            ("n_layer", config.n_layer as u64, 1, SIZE_MAX),
            ("n_head", config.n_head as u64, 1, SIZE_MAX),
            ("n_embd", config.n_embd as u64, 1, SIZE_MAX),
            ("vocab_size", config.vocab_size as u64, 0, SIZE_MAX),
            ("threads", config.threads as u64, 0, SIZE_MAX),
            (
                "gradient_accumulation_steps",
                config.gradient_accumulation_steps,
                1,
                MICRO_STEPS_MAX,
            ),
        ] {
            let expected = format!("{min} to {max}");
            self.require((min..=max).contains(&value), key, &expected);
        }
        for (key, value) in [
            ("dropout", config.dropout),
            ("beta1", config.beta1),
            ("beta2", config.beta2),
        ] {
            let expected = format!("0 <= {key} < 1");
            self.require((0.0..1.0).contains(&value), key, &expected);
        }
        for (key, value) in [
            ("learning_rate", config.learning_rate),
            ("adam_eps", config.adam_eps),
        ] {
            let holds = value > 0.0 && value.is_finite();
            self.require(holds, key, "a finite number above 0");
        }
        for (key, value) in [
            ("min_lr", config.min_lr),
            ("weight_decay", config.weight_decay),
            ("grad_clip", config.grad_clip),
            ("checkpoint_minutes", config.checkpoint_minutes),
            ("temperature", config.temperature),
        ] {
            let holds = value >= 0.0 && value.is_finite();
            self.require(holds, key, "a finite number, 0 or more");
        }
        let factor = config.divergence_factor;
        self.require(
            factor == 0.0 || (factor > 1.0 && factor.is_finite()),
            "divergence_factor",
            "0 (off) or a finite number above 1",
        );
        self.require(
            config.top_p > 0.0 && config.top_p <= 1.0,
            "top_p",
            "0 < top_p <= 1",
        );
    }

    /// Rules between two keys.
    fn relations(&mut self) {
        let config = self.config;
        self.relate(
            config.n_head == 0 || config.n_embd.is_multiple_of(config.n_head),
            ["n_embd", "n_head"],
            "a multiple of",
        );
        if config.decay_lr {
            self.relate(
                config.min_lr <= config.learning_rate,
                ["min_lr", "learning_rate"],
                "at most",
            );
            self.relate(
                config.lr_decay_iters >= config.warmup_iters,
                ["lr_decay_iters", "warmup_iters"],
                "at least",
            );
        }
    }

    /// Unless `holds`, a fault of the first key against the second, if each alone is sound.
    fn relate(&mut self, holds: bool, keys: [&'static str; 2], expected: &str) {
        let is_sound = |key| !self.faults.iter().any(|fault| fault.keys.contains(key));
        if !holds && keys.iter().all(is_sound) {
            let [got, other] = keys.map(|key| value(self.config, key));
            let [key, other_key] = keys;
            self.faults.push(Fault {
                keys: keys.to_vec(),
                text: format!("{key}: expected {expected} {other_key} ({other}), got {got}"),
            });
        }
    }
}

fn value(config: &Config, key: &str) -> Value {
    let key = table::find(key).expect("rules name keys of the table");
    (key.get)(config)
}
