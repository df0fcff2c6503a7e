//! Every path of a run directory, each spelled once.

use std::path::{Path, PathBuf};

/// A run directory: what `--out_dir` names. Makes paths, touches no file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunDir {
    root: PathBuf,
}

impl RunDir {
    /// Checkpoint directories under construction start with this; readers ignore them.
    pub const TEMPORARY_PREFIX: &'static str = ".tmp-";
    pub const MANIFEST: &'static str = "manifest.json";
    pub const MODEL: &'static str = "model.safetensors";
    pub const OPTIMIZER: &'static str = "optimizer.safetensors";
    pub const STATE: &'static str = "state.json";
    /// The tokenizer of a byte-pair (or any Hugging Face) vocabulary.
    pub const TOKENIZER: &'static str = "tokenizer.json";
    /// The tokenizer of a character vocabulary.
    pub const VOCAB: &'static str = "vocab.json";

    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The resolved config, written before step 0.
    pub fn config(&self) -> PathBuf {
        self.root.join("config.toml")
    }

    pub fn events(&self) -> PathBuf {
        self.root.join("events.jsonl")
    }

    /// Locked (`flock`) by the trainer for as long as it lives.
    pub fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    pub fn checkpoints(&self) -> PathBuf {
        self.root.join("checkpoints")
    }

    /// The checkpoint after `step` updates.
    pub fn checkpoint(&self, step: u64) -> PathBuf {
        self.checkpoints().join(Self::checkpoint_name(step))
    }

    /// What the agent captured of the trainer's output, by attempt.
    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    pub fn tensorboard(&self) -> PathBuf {
        self.root.join("tensorboard")
    }

    /// Directory name of the checkpoint after `step` updates; names sort as steps do.
    pub fn checkpoint_name(step: u64) -> String {
        format!("step_{step:010}")
    }

    /// The step in a checkpoint's directory name; `None` for any other name.
    pub fn checkpoint_step(name: &str) -> Option<u64> {
        let digits = name.strip_prefix("step_")?;
        let well_formed = digits.len() >= 10 && digits.bytes().all(|b| b.is_ascii_digit());
        digits.parse().ok().filter(|_| well_formed)
    }
}

#[cfg(test)]
mod tests {
    use super::RunDir;

    #[test]
    fn checkpoint_names_carry_their_step_and_nothing_else_does() {
        for step in [0, 500, 9_999_999_999, 10_000_000_000] {
            assert_eq!(
                RunDir::checkpoint_step(&RunDir::checkpoint_name(step)),
                Some(step)
            );
        }
        for other in [
            "step_5",
            ".tmp-step_0000000500",
            "step_00000005x0",
            "latest",
            "step_+000000001",
        ] {
            assert_eq!(RunDir::checkpoint_step(other), None, "{other}");
        }
    }
}
