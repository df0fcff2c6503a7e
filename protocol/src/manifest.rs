//! `manifest.json`: written last into a checkpoint, so its presence means that the rest is whole.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a checkpoint consists of and where it stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the checkpoint layout. A reader refuses a version above its own.
    pub format_version: u32,
    /// Updates made when it was taken.
    pub step: u64,
    /// Validation loss measured at this step, nats per token, if an evaluation fell on it.
    pub val_loss: Option<f64>,
    /// SHA-256 of the resolved config, lower-case hexadecimal.
    pub config_hash: String,
    /// Wall-clock time it was written, RFC 3339, UTC.
    pub time: String,
    /// Every other file of the checkpoint by name.
    pub files: BTreeMap<String, FileEntry>,
}

/// Size and checksum of one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    pub bytes: u64,
    /// SHA-256 of the contents, lower-case hexadecimal.
    pub sha256: String,
}

/// Why a manifest could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("not a manifest: {0}")]
    Malformed(#[from] serde_json::Error),
    #[error("checkpoint format {found} is newer than this program's {supported}")]
    TooNew { found: u32, supported: u32 },
}

impl Manifest {
    /// The layout this crate describes.
    pub const FORMAT_VERSION: u32 = 1;

    /// Reads `manifest.json`.
    ///
    /// # Errors
    /// If the text is not a manifest, or one of a later layout.
    pub fn parse(text: &str) -> Result<Self, ManifestError> {
        let manifest: Self = serde_json::from_str(text)?;
        if manifest.format_version > Self::FORMAT_VERSION {
            return Err(ManifestError::TooNew {
                found: manifest.format_version,
                supported: Self::FORMAT_VERSION,
            });
        }
        Ok(manifest)
    }

    /// The text of `manifest.json`.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a manifest holds only strings and numbers")
    }

    /// Size of all files together, without the manifest itself.
    pub fn bytes(&self) -> u64 {
        self.files.values().map(|file| file.bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_reads_back_and_a_later_layout_is_refused() {
        let entry = FileEntry {
            bytes: 3,
            sha256: "ab".to_owned(),
        };
        let manifest = Manifest {
            format_version: 1,
            step: 500,
            val_loss: None,
            config_hash: "00".to_owned(),
            time: "2026-01-02T03:04:05Z".to_owned(),
            files: BTreeMap::from([("model.safetensors".to_owned(), entry)]),
        };
        let text = manifest.to_json();
        assert_eq!(Manifest::parse(&text).ok(), Some(manifest));
        let later = text.replace("\"format_version\": 1", "\"format_version\": 2");
        assert!(matches!(
            Manifest::parse(&later),
            Err(ManifestError::TooNew { found: 2, .. })
        ));
        assert!(matches!(
            Manifest::parse(&text[1..]),
            Err(ManifestError::Malformed(_))
        ));
    }
}
