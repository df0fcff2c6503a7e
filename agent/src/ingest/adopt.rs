//! A directory that a trainer of another kind has written becomes a checkpoint of the run, and from
//! there on is published, verified and restored like any other. Called by the ingest server.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use protocol::{FileEntry, Manifest, RunDir};
use sha2::{Digest as _, Sha256};

/// Stands where our trainer's checkpoints have the hash of their config, and tells those apart that
/// were taken over.
const ADOPTED: &str = "adopted";
/// Taken-over checkpoints that stay on this machine; the store keeps its own.
const KEEP: usize = 2;
const FILES_MAX: usize = 1_000;
const BUFFER_BYTES: usize = 1 << 20;

/// Copies the files of `dir` into the run directory as its checkpoint of `step`, and lets older
/// ones that came the same way go. Whoever asks may do with `dir` as it likes afterwards.
///
/// # Errors
/// One line on why it is none.
pub(super) fn adopt(run_dir: &RunDir, dir: &Path, step: u64) -> Result<(), String> {
    let at = |path: &Path, why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
    let target = run_dir.checkpoint(step);
    if target.join(RunDir::MANIFEST).exists() {
        return Err(format!("there is a checkpoint of step {step} already"));
    }
    let names = plain_files(dir).map_err(|error| at(dir, &error))?;
    // No trainer and no reader takes a name like this for a checkpoint.
    let folder = run_dir.checkpoints().join(format!(".tmp-adopt-{step}"));
    remove(&folder).map_err(|error| at(&folder, &error))?;
    fs::create_dir_all(&folder).map_err(|error| at(&folder, &error))?;
    let filled = fill(dir, &names, &folder, step).and_then(|()| {
        // One without a manifest is what a crash left.
        remove(&target)?;
        fs::rename(&folder, &target)?;
        sync(&run_dir.checkpoints())
    });
    if let Err(error) = filled {
        remove(&folder).ok();
        return Err(at(dir, &error));
    }
    prune(run_dir).map_err(|error| at(&run_dir.checkpoints(), &error))
}

/// The names of the files of a flat directory. Links are followed nowhere.
fn plain_files(dir: &Path) -> io::Result<Vec<String>> {
    let refused = |name: &Path, why: &str| {
        let text = format!("{}: {why}", name.display());
        Err(io::Error::new(io::ErrorKind::InvalidInput, text))
    };
    if !fs::symlink_metadata(dir)?.is_dir() {
        return refused(dir, "expected a directory");
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let shown = Path::new(&name);
        if !entry.file_type()?.is_file() {
            return refused(shown, "expected plain files only");
        }
        match name.to_str() {
            Some(RunDir::MANIFEST) => return refused(shown, "a name that is taken"),
            Some(text) if !text.starts_with('.') && !text.contains('\\') => {
                names.push(text.to_owned());
            }
            _ => return refused(shown, "expected a plain name"),
        }
        if names.len() > FILES_MAX {
            return refused(dir, "too many files");
        }
    }
    if names.is_empty() {
        return refused(dir, "expected files, found none");
    }
    Ok(names)
}

/// Copies and hashes the files; the manifest comes last, and all of it is on the disk then.
fn fill(dir: &Path, names: &[String], folder: &Path, step: u64) -> io::Result<()> {
    let mut manifest = Manifest {
        format_version: Manifest::FORMAT_VERSION,
        step,
        val_loss: None,
        config_hash: ADOPTED.to_owned(),
        time: format!("{:.0}", jiff::Timestamp::now()),
        files: std::collections::BTreeMap::new(),
    };
    let mut buffer = vec![0; BUFFER_BYTES];
    for name in names {
        let (mut from, mut to) = (
            File::open(dir.join(name))?,
            File::create(folder.join(name))?,
        );
        let (mut hash, mut bytes) = (Sha256::new(), 0);
        loop {
            let read = from.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            hash.update(&buffer[..read]);
            to.write_all(&buffer[..read])?;
            bytes += read as u64;
        }
        to.sync_all()?;
        let digest = hash.finalize();
        let sha256 = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        manifest
            .files
            .insert(name.clone(), FileEntry { bytes, sha256 });
    }
    let mut file = File::create(folder.join(RunDir::MANIFEST))?;
    file.write_all(manifest.to_json().as_bytes())?;
    file.sync_all()?;
    sync(folder)
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Removes all taken-over checkpoints but the newest; a trainer that writes its own prunes its own.
fn prune(run_dir: &RunDir) -> io::Result<()> {
    let mut adopted: Vec<(u64, PathBuf)> = Vec::new();
    for entry in fs::read_dir(run_dir.checkpoints())? {
        let name = entry?.file_name();
        let Some(step) = name.to_str().and_then(RunDir::checkpoint_step) else {
            continue;
        };
        let folder = run_dir.checkpoint(step);
        let text = fs::read_to_string(folder.join(RunDir::MANIFEST)).unwrap_or_default();
        if Manifest::parse(&text).is_ok_and(|manifest| manifest.config_hash == ADOPTED) {
            adopted.push((step, folder));
        }
    }
    adopted.sort();
    let old = adopted.len().saturating_sub(KEEP);
    for (_, folder) in &adopted[..old] {
        // The manifest first: what is half gone is no checkpoint.
        fs::remove_file(folder.join(RunDir::MANIFEST))?;
        remove(folder)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoints::{Transfer, stage};
    use crate::follow::Checkpoints;

    #[tokio::test]
    async fn a_directory_becomes_a_checkpoint_that_can_be_staged() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = RunDir::new(dir.path().join("run"));
        let written = dir.path().join("checkpoint-7");
        fs::create_dir_all(&written).unwrap();
        fs::write(written.join("model.bin"), b"weights").unwrap();
        fs::write(written.join("empty"), b"").unwrap();
        let mut found = Checkpoints::new(run_dir.clone());
        adopt(&run_dir, &written, 7).unwrap();
        // What the trainer does with its own later changes nothing.
        fs::write(written.join("model.bin"), b"other").unwrap();
        let steps: Vec<u64> = found.poll().unwrap().iter().map(|it| it.step).collect();
        assert_eq!(steps, [7]);
        let staged = stage(&run_dir, 7, &Transfer::default()).await.unwrap();
        assert_eq!(staged.bytes(), 7 + staged.files[2].bytes);
        assert_eq!(
            fs::read(staged.folder.join("model.bin")).unwrap(),
            b"weights"
        );
        assert!(
            adopt(&run_dir, &written, 7)
                .unwrap_err()
                .contains("already")
        );
        adopt(&run_dir, &written, 8).unwrap();
        adopt(&run_dir, &written, 9).unwrap();
        assert!(!run_dir.checkpoint(7).exists() && run_dir.checkpoint(8).exists());
    }

    #[test]
    fn what_is_no_flat_directory_of_files_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = RunDir::new(dir.path().join("run"));
        let written = dir.path().join("w");
        let refused = |why: &str| {
            let error = adopt(&run_dir, &written, 1).unwrap_err();
            assert!(error.contains(why), "{error}");
            assert!(!run_dir.checkpoint(1).exists());
        };
        refused("No such file");
        fs::create_dir_all(&written).unwrap();
        refused("found none");
        std::os::unix::fs::symlink("/etc/passwd", written.join("a")).unwrap();
        refused("plain files");
        fs::remove_file(written.join("a")).unwrap();
        fs::write(written.join("manifest.json"), "{}").unwrap();
        refused("taken");
    }
}
