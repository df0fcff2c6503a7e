//! STUB
use serde::{Deserialize, Serialize};

/// `dataset.json`: what a prepared dataset holds and where it came from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DatasetInfo {
    /// Version of the folder's layout: 1.
    pub format_version: u32,
    pub name: String,
    /// `char`, `gpt2` or `json` (a tokenizer.json of one's own).
    pub tokenizer: String,
    /// Ids are below this.
    pub vocab_size: usize,
    pub train_tokens: u64,
    pub val_tokens: u64,
    /// Where the text came from: a URL, a path, or `generated`.
    pub source: String,
    /// SHA-256 of the text, lower-case hexadecimal.
    pub source_sha256: String,
    /// Entropy of the source in nats per token, where it is known: no model can do better.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entropy_per_token: Option<f64>,
}

/// STUB
pub struct Dataset {
    pub info: DatasetInfo,
}
