//! New checkpoints of a run directory, known by their manifests.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use protocol::{Manifest, RunDir};

/// Remembers which checkpoints of a run were seen.
#[derive(Debug)]
pub struct Checkpoints {
    run_dir: RunDir,
    /// The manifest's identity by step: a run that goes back and comes to the same step again
    /// writes another checkpoint under the same name.
    seen: BTreeMap<u64, Identity>,
}

/// A checkpoint that was not there at the last look.
#[derive(Clone, Debug, PartialEq)]
pub struct NewCheckpoint {
    pub step: u64,
    pub dir: PathBuf,
    pub manifest: Manifest,
}

/// Inode and time of change of a manifest.
type Identity = (u64, i64, i64);

impl Checkpoints {
    /// Everything that is there counts as new at the first poll.
    pub fn new(run_dir: RunDir) -> Self {
        Self {
            run_dir,
            seen: BTreeMap::new(),
        }
    }

    /// The checkpoints that appeared since the last call, oldest step first. A directory without a
    /// manifest, or with one that cannot be understood, is not a checkpoint; the trainer may remove
    /// one at any moment.
    ///
    /// # Errors
    /// If the directory of checkpoints is there and cannot be listed.
    pub fn poll(&mut self) -> io::Result<Vec<NewCheckpoint>> {
        let entries = match fs::read_dir(self.run_dir.checkpoints()) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut present = BTreeMap::new();
        for entry in entries {
            let name = entry?.file_name();
            let step = name.to_str().and_then(RunDir::checkpoint_step);
            let Some(step) = step else {
                continue;
            };
            let manifest = self.run_dir.checkpoint(step).join(RunDir::MANIFEST);
            if let Ok(metadata) = fs::metadata(manifest) {
                present.insert(
                    step,
                    (metadata.ino(), metadata.mtime(), metadata.mtime_nsec()),
                );
            }
        }
        self.seen
            .retain(|step, identity| present.get(step) == Some(identity));
        let mut new = Vec::new();
        for (step, identity) in present {
            if self.seen.contains_key(&step) {
                continue;
            }
            let dir = self.run_dir.checkpoint(step);
            // Unreadable now: pruned meanwhile, or looked at again.
            let Ok(text) = fs::read_to_string(dir.join(RunDir::MANIFEST)) else {
                continue;
            };
            self.seen.insert(step, identity);
            if let Ok(manifest) = Manifest::parse(&text) {
                new.push(NewCheckpoint {
                    step,
                    dir,
                    manifest,
                });
            }
        }
        Ok(new)
    }
}
