//! Datasets of the Hugging Face hub: `hf://datasets/OWNER/NAME[@REVISION][/PATH]`. Called by
//! `sources`.

use super::super::hub::{Hub, Repository, escaped, is_name};
use super::super::prepare::{Place, Remote, SourceFile};
use super::{EXTENSIONS, kind_of};
use crate::{Error, Result};

/// Where the hub keeps what it made of datasets that are not in Parquet.
const CONVERTED: &str = "refs/convert/parquet";
const HINT: &str = "HF_ENDPOINT names a mirror of the hub, HF_TOKEN a token for what is not open \
                    to all; files that are here already can be named by their path";

/// The files of a dataset, or of a folder or file in one. `name` becomes the source with the
/// commit.
pub(super) fn list(
    source: &str,
    variable: &dyn Fn(&str) -> Option<String>,
    name: &mut String,
) -> Result<Vec<SourceFile>> {
    let malformed = || {
        Error::Data(format!(
            "{source}: expected hf://datasets/OWNER/NAME, perhaps with @REVISION and a path"
        ))
    };
    let rest = source
        .strip_prefix("hf://datasets/")
        .ok_or_else(malformed)?;
    let mut parts = rest.trim_end_matches('/').splitn(3, '/');
    let (Some(owner), Some(repository)) = (parts.next(), parts.next()) else {
        return Err(malformed());
    };
    let path = parts.next().unwrap_or_default();
    let (repository, revision) = match repository.split_once('@') {
        // A slash in a revision is written %2F, as huggingface_hub does.
        Some((repository, revision)) => (repository, Some(revision)),
        None => (repository, None),
    };
    if !is_name(owner) || !is_name(repository) {
        return Err(malformed());
    }
    let hub = Hub::of(variable);
    if hub.offline {
        return Err(Error::Data(format!(
            "{source}: expected the hub to be asked, got HF_HUB_OFFLINE, which forbids it\n\
             hint: name files that are here by their path"
        )));
    }
    let repository = format!("{owner}/{repository}");
    let mut listed = files(&hub, &repository, revision.unwrap_or("main"), path)?;
    if listed.1.is_empty() && revision.is_none() && path.is_empty() {
        listed = files(&hub, &repository, &escaped(CONVERTED, false), path)?;
    }
    let (commit, files) = listed;
    if files.is_empty() {
        return Err(Error::Data(format!(
            "{source}: expected files that end with {EXTENSIONS}, got none"
        )));
    }
    *name = format!("hf://datasets/{repository}@{commit}");
    if !path.is_empty() {
        *name = format!("{name}/{path}");
    }
    Ok(files)
}

/// The commit of a revision and its files of documents at or below `path`, by name.
fn files(
    hub: &Hub,
    repository: &str,
    revision: &str,
    path: &str,
) -> Result<(String, Vec<SourceFile>)> {
    let of = Repository {
        is_dataset: true,
        name: repository,
    };
    // A path that names a file is listed by its folder.
    let folder = match kind_of(path) {
        Some(_) => path.rsplit_once('/').map_or("", |(folder, _)| folder),
        None => path,
    };
    let listed = hub.files(of, revision, folder);
    let (commit, mut listed) = listed.map_err(|error| match error {
        Error::Data(text) => Error::Data(format!("{text}\nhint: {HINT}")),
        other => other,
    })?;
    if kind_of(path).is_some() {
        listed.retain(|file| file.path == path);
    }
    // Where a dataset is there in Parquet, the rest are its index, samples or scripts.
    if listed.iter().any(|file| file.path.ends_with(".parquet")) {
        listed.retain(|file| file.path.ends_with(".parquet"));
    }
    listed.sort_by(|a, b| a.path.cmp(&b.path));
    let files = listed.into_iter().filter_map(|file| {
        let (kind, packing) = kind_of(&file.path)?;
        let url = hub.address(of, &commit, &file.path);
        Some(SourceFile {
            name: url.clone(),
            kind,
            packing,
            place: Place::There(Remote {
                url,
                bearer: hub.token.clone(),
                sha256: file.sha256,
                hint: HINT,
            }),
            bytes: Some(file.size),
        })
    });
    let files = files.collect();
    Ok((commit, files))
}
