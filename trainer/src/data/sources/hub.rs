//! Datasets of the Hugging Face hub: `hf://datasets/OWNER/NAME[@REVISION][/PATH]`. Called by
//! `sources`.
//!
//! The hub's API, as huggingface.co/docs/hub/api and huggingface_hub have it: `revision` names a
//! commit, `tree` lists a folder in pages, of which the header `Link` names the next, and
//! `resolve` gives a file.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use ureq::Body;
use ureq::http::Response;

use super::super::fetch;
use super::super::prepare::{Place, Remote, SourceFile};
use super::{EXTENSIONS, kind_of};
use crate::{Error, Result};

const ENDPOINT: &str = "https://huggingface.co";
/// Where the hub keeps what it made of datasets that are not in Parquet.
const CONVERTED: &str = "refs/convert/parquet";
const ANSWER_BYTES_MAX: u64 = 16 << 20;
const PAGES_MAX: u32 = 10_000;
const HINT: &str = "HF_ENDPOINT names a mirror of the hub, HF_TOKEN a token for what is not open \
                    to all; files that are here already can be named by their path";

#[derive(Deserialize)]
struct Revision {
    sha: String,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    size: u64,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    /// SHA-256, lower-case hexadecimal.
    oid: String,
}

struct Hub {
    endpoint: String,
    token: Option<String>,
    /// `OWNER/NAME`.
    repository: String,
}

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
    let is_plain = |part: &str| {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !part.is_empty() && part.chars().all(is_plain)
    };
    if !is_plain(owner) || !is_plain(repository) {
        return Err(malformed());
    }
    if variable("HF_HUB_OFFLINE").is_some_and(|value| value != "0") {
        return Err(Error::Data(format!(
            "{source}: expected the hub to be asked, got HF_HUB_OFFLINE, which forbids it\n\
             hint: name files that are here by their path"
        )));
    }
    let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
    let hub = Hub {
        endpoint: endpoint.trim_end_matches('/').to_owned(),
        token: variable("HF_TOKEN"),
        repository: format!("{owner}/{repository}"),
    };
    let mut listed = hub.files(revision.unwrap_or("main"), path)?;
    if listed.1.is_empty() && revision.is_none() && path.is_empty() {
        listed = hub.files(&escaped(CONVERTED, false), path)?;
    }
    let (commit, files) = listed;
    if files.is_empty() {
        return Err(Error::Data(format!(
            "{source}: expected files that end with {EXTENSIONS}, got none"
        )));
    }
    *name = format!("hf://datasets/{}@{commit}", hub.repository);
    if !path.is_empty() {
        *name = format!("{name}/{path}");
    }
    Ok(files)
}

impl Hub {
    /// The commit of a revision and its files of documents at or below `path`, by name.
    fn files(&self, revision: &str, path: &str) -> Result<(String, Vec<SourceFile>)> {
        let base = format!("{}/api/datasets/{}", self.endpoint, self.repository);
        let url = format!("{base}/revision/{revision}");
        let (Revision { sha }, _) = self.ask(&url)?;
        if sha.is_empty() || !sha.chars().all(|c| c.is_ascii_hexdigit()) {
            return Err(Error::Data(format!(
                "{url}: expected a commit, got {sha:?}"
            )));
        }
        // A path that names a file is listed by its folder.
        let folder = match kind_of(path) {
            Some(_) => path.rsplit_once('/').map_or("", |(folder, _)| folder),
            None => path,
        };
        let mut tree = format!("{base}/tree/{sha}");
        if !folder.is_empty() {
            tree = format!("{tree}/{}", escaped(folder, true));
        }
        let mut entries: Vec<Entry> = Vec::new();
        let mut next = Some(format!("{tree}?recursive=true"));
        for _ in 0..PAGES_MAX {
            let Some(url) = next else { break };
            let (mut page, link): (Vec<Entry>, _) = self.ask(&url)?;
            entries.append(&mut page);
            next = link;
        }
        entries.retain(|entry| entry.kind == "file");
        if kind_of(path).is_some() {
            entries.retain(|entry| entry.path == path);
        }
        // Where a dataset is there in Parquet, the rest are its index, samples or scripts.
        if entries.iter().any(|entry| entry.path.ends_with(".parquet")) {
            entries.retain(|entry| entry.path.ends_with(".parquet"));
        }
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        let files = entries.into_iter().filter_map(|entry| {
            let (kind, packing) = kind_of(&entry.path)?;
            let url = format!(
                "{}/datasets/{}/resolve/{sha}/{}",
                self.endpoint,
                self.repository,
                escaped(&entry.path, true)
            );
            Some(SourceFile {
                name: url.clone(),
                kind,
                packing,
                place: Place::There(Remote {
                    url,
                    bearer: self.token.clone(),
                    sha256: entry.lfs.map(|lfs| lfs.oid),
                    hint: HINT,
                }),
                bytes: Some(entry.size),
            })
        });
        let files = files.collect();
        Ok((sha, files))
    }

    /// An answer of the API, and the address of the next page.
    fn ask<T: DeserializeOwned>(&self, url: &str) -> Result<(T, Option<String>)> {
        let fault = |what: String| Error::Data(format!("{url}: {what}\nhint: {HINT}"));
        let mut answer = fetch::get(url, self.token.as_deref()).map_err(fault)?;
        let next = next_page(&answer).map(|next| {
            // A mirror may pass on the hub's own addresses; the token is for the mirror.
            match next.find("/api/") {
                Some(at) => format!("{}{}", self.endpoint, &next[at..]),
                None => next,
            }
        });
        let body = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX);
        let bytes = body
            .read_to_vec()
            .map_err(|error| fault(error.to_string()))?;
        let parsed = serde_json::from_slice(&bytes);
        let parsed = parsed.map_err(|error| fault(format!("not as expected: {error}")))?;
        Ok((parsed, next))
    }
}

/// The address in `Link: <ADDRESS>; rel="next"`.
fn next_page(answer: &Response<Body>) -> Option<String> {
    let links = answer.headers().get("link")?.to_str().ok()?;
    let next = links
        .split(',')
        .find(|link| link.contains("rel=\"next\""))?;
    let (_, rest) = next.split_once('<')?;
    Some(rest.split_once('>')?.0.to_owned())
}

/// Percent-encoded for a path, all but letters, digits and `-_.~`, and slashes where they part it.
fn escaped(path: &str, is_path: bool) -> String {
    let mut text = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                text.push(char::from(byte));
            }
            b'/' if is_path => text.push('/'),
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}
