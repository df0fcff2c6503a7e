//! Which files are which part of a dataset: `train.bin` and `val.bin`, llm.c's shards in a folder,
//! or token files of llm.c's by their path. Called by `dataset` and `locate`.

use std::fs;
use std::path::{Path, PathBuf};

use super::dataset::{TRAIN, VAL};
use crate::error::{Error, Result};

/// What parts of a path make it a glob.
const WILDCARDS: [char; 3] = ['*', '?', '['];

/// The token files of a dataset, each list in the order in which they follow each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Parts {
    /// At least one.
    pub(super) train: Vec<PathBuf>,
    /// Where there are none, the end of the training tokens is held back.
    pub(super) val: Vec<PathBuf>,
    /// Files that nothing but their path says to be tokens: they must have llm.c's header.
    pub(super) needs_header: bool,
}

/// Whether a dataset of this name is looked for at a path, where no folder of datasets has it.
pub(super) fn is_path(name: &str) -> bool {
    name.contains('/') || name.contains(WILDCARDS) || has_suffix(Path::new(name))
}

/// The parts of the dataset in `dir`: one file each, or llm.c's shards, or else all files whose
/// names end in `.bin`, divided by their names.
pub(super) fn of_folder(dir: &Path) -> Result<Parts> {
    let whole = |name: &str| dir.join(name).exists().then(|| vec![dir.join(name)]);
    let files = token_files(dir)?;
    let shards = |name: &str| -> Vec<PathBuf> {
        let of_part = |path: &&PathBuf| is_shard(path, name);
        files.iter().filter(of_part).cloned().collect()
    };
    let train = whole(TRAIN).unwrap_or_else(|| shards(TRAIN));
    if !train.is_empty() {
        let val = whole(VAL).unwrap_or_else(|| shards(VAL));
        // Beside one file of nanoGPT's, the other is missed.
        let is_nanogpts = val.is_empty() && dir.join(TRAIN).exists();
        return Ok(Parts {
            train,
            val: if is_nanogpts {
                vec![dir.join(VAL)]
            } else {
                val
            },
            needs_header: false,
        });
    }
    if files.is_empty() || whole(VAL).is_some() {
        return Ok(Parts {
            train: vec![dir.join(TRAIN)],
            val: vec![dir.join(VAL)],
            needs_header: false,
        });
    }
    divided(files, &dir.display().to_string())
}

/// The parts that the path of a file or a glob names; `None` for anything else.
///
/// # Errors
/// [`Error::Data`] if a glob matches nothing, or only files for validation.
pub(super) fn of_path(what: &str) -> Result<Option<Parts>> {
    if Path::new(what).is_file() {
        return divided(vec![PathBuf::from(what)], what).map(Some);
    }
    if !what.contains(WILDCARDS) {
        return Ok(None);
    }
    let mut files = Vec::new();
    let found = glob::glob(what)
        .map_err(|error| Error::Data(format!("{what}: expected a glob, got {error}")))?;
    for path in found {
        let path = path.map_err(|error| {
            let kind = std::io::Error::from(error.error().kind());
            Error::read(error.path())(kind)
        })?;
        if path.is_file() && has_suffix(&path) {
            files.push(path);
        }
    }
    if files.is_empty() {
        return Err(Error::Data(format!(
            "{what}: expected token files that end in .bin, got none that match"
        )));
    }
    divided(files, what).map(Some)
}

/// Whether names tell that `dir` holds a dataset.
pub(super) fn is_in(dir: &Path) -> bool {
    let has_shards = |files: Vec<PathBuf>| files.iter().any(|path| is_shard(path, TRAIN));
    dir.join(TRAIN).exists() || token_files(dir).is_ok_and(has_shards)
}

/// Whether a path of a folder may be meant for one of token files.
pub(super) fn has_token_files(dir: &Path) -> bool {
    token_files(dir).is_ok_and(|files| !files.is_empty())
}

/// Files with `val` in their names, unless `train` is there, too, are for validation.
fn divided(mut files: Vec<PathBuf>, what: &str) -> Result<Parts> {
    files.sort();
    let (val, train): (Vec<PathBuf>, Vec<PathBuf>) = files.into_iter().partition(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.contains("val") && !name.contains("train")
    });
    if train.is_empty() {
        return Err(Error::Data(format!(
            "{what}: expected tokens to train on, got {}, whose name says that it is for \
             validation (\"val\")\nhint: name the other files, too, or rename this one",
            val[0].display()
        )));
    }
    Ok(Parts {
        train,
        val,
        needs_header: true,
    })
}

/// Files in `dir` that end in `.bin`, by name.
fn token_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(Error::read(dir))? {
        let path = entry.map_err(Error::read(dir))?.path();
        if has_suffix(&path) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn has_suffix(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "bin")
}

/// llm.c's shard of a part: `fineweb_train_000001.bin`, or `tiny_shakespeare_train.bin`.
fn is_shard(path: &Path, name: &str) -> bool {
    let part = name.trim_end_matches(".bin");
    let Some(stem) = path.file_stem().and_then(|stem| stem.to_str()) else {
        return false;
    };
    let number = stem.rsplit_once('_').map(|(_, number)| number);
    let is_number = number.is_some_and(|number| number.bytes().all(|b| b.is_ascii_digit()));
    let rest = match number {
        Some(number) if is_number => &stem[..stem.len() - number.len() - 1],
        _ => stem,
    };
    rest.ends_with(&format!("_{part}"))
}

#[cfg(test)]
mod tests;
