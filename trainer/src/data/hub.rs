//! The API of the Hugging Face hub, as huggingface.co/docs/hub/api and huggingface_hub have it:
//! `revision` names a commit, `tree` lists a folder in pages, of which the header `Link` names the
//! next, and `resolve` gives a file. Called for datasets by `sources`, for models by `interop`.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use ureq::Body;
use ureq::http::Response;

use super::fetch;
use crate::{Error, Result};

const ENDPOINT: &str = "https://huggingface.co";
/// Of one answer.
const BYTES_MAX: u64 = 16 << 20;
const PAGES_MAX: u32 = 10_000;

/// Whom to ask, and how to be known there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hub {
    endpoint: String,
    /// For what is not open to all; goes to the endpoint alone.
    pub token: Option<String>,
    /// Whether the environment forbids to ask.
    pub offline: bool,
}

/// A repository of models or of datasets.
#[derive(Clone, Copy, Debug)]
pub struct Repository<'a> {
    pub is_dataset: bool,
    /// `OWNER/NAME`
    pub name: &'a str,
}

/// A file of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Lower-case hexadecimal, of files that the hub keeps apart: all large ones.
    pub sha256: Option<String>,
}

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
    oid: String,
}

impl Hub {
    /// What `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` say.
    pub fn of(variable: impl Fn(&str) -> Option<String>) -> Self {
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
        Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: variable("HF_TOKEN"),
            offline: variable("HF_HUB_OFFLINE").is_some_and(|value| value != "0"),
        }
    }

    /// The commit that a revision names (a slash in it is written `%2F`), and the files at or below
    /// `folder` in it; `""` is all.
    ///
    /// # Errors
    /// [`Error::Data`] if the hub does not answer, or with something else.
    pub fn files(
        &self,
        of: Repository<'_>,
        revision: &str,
        folder: &str,
    ) -> Result<(String, Vec<File>)> {
        let base = format!("{}/api/{}/{}", self.endpoint, of.kind(), of.name);
        let url = format!("{base}/revision/{revision}");
        let (Revision { sha }, _) = self.ask(&url)?;
        if sha.is_empty() || !sha.chars().all(|c| c.is_ascii_hexdigit()) {
            let text = format!("{url}: expected a commit, got {sha:?}");
            return Err(Error::Data(text));
        }
        let mut tree = format!("{base}/tree/{sha}");
        if !folder.is_empty() {
            tree = format!("{tree}/{}", escaped(folder, true));
        }
        let mut files = Vec::new();
        let mut next = Some(format!("{tree}?recursive=true"));
        for _ in 0..PAGES_MAX {
            let Some(url) = next else { break };
            let (page, link): (Vec<Entry>, _) = self.ask(&url)?;
            let page = page.into_iter().filter(|entry| entry.kind == "file");
            files.extend(page.map(|entry| File {
                path: entry.path,
                size: entry.size,
                sha256: entry.lfs.map(|lfs| lfs.oid),
            }));
            next = link;
        }
        Ok((sha, files))
    }

    /// Where a file of a commit is.
    pub fn address(&self, of: Repository<'_>, commit: &str, path: &str) -> String {
        let folder = if of.is_dataset { "datasets/" } else { "" };
        let path = escaped(path, true);
        format!(
            "{}/{folder}{}/resolve/{commit}/{path}",
            self.endpoint, of.name
        )
    }

    /// An answer of the API, and the address of the next page.
    fn ask<T: DeserializeOwned>(&self, url: &str) -> Result<(T, Option<String>)> {
        let fault = |what: String| Error::Data(format!("{url}: {what}"));
        let mut answer = fetch::get(url, self.token.as_deref()).map_err(fault)?;
        let next = next_page(&answer).map(|next| {
            // A mirror may pass on the hub's own addresses; the token is for the mirror.
            match next.find("/api/") {
                Some(at) => format!("{}{}", self.endpoint, &next[at..]),
                None => next,
            }
        });
        let body = answer.body_mut().with_config().limit(BYTES_MAX);
        let bytes = body
            .read_to_vec()
            .map_err(|error| fault(error.to_string()))?;
        let parsed = serde_json::from_slice(&bytes);
        let parsed = parsed.map_err(|error| fault(format!("not as expected: {error}")))?;
        Ok((parsed, next))
    }
}

impl Repository<'_> {
    fn kind(self) -> &'static str {
        if self.is_dataset {
            "datasets"
        } else {
            "models"
        }
    }
}

/// Whether this may be the name of an owner or of a repository.
pub fn is_name(part: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    !part.is_empty() && !part.starts_with('.') && part.chars().all(is_plain)
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
pub fn escaped(path: &str, is_path: bool) -> String {
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
