//! The files of a run: a list, and each by ranges with its digest. Nothing outside the run
//! directory is ever opened, whatever a path or a link says.

pub(super) mod range;
pub(super) mod safe;

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use protocol::{Manifest, RunDir};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use self::range::{Asked, Range};
use super::{Problem, Shared, json};

/// Files in a list.
const FILES_MAX: usize = 10_000;
/// A larger file that no manifest knows is sent without a digest.
const DIGEST_BYTES_MAX: u64 = 32 << 20;
/// What is read and sent at once.
const CHUNK_BYTES: u64 = 128 << 10;

/// What a run has made.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Artifacts {
    pub artifacts: Vec<Artifact>,
    /// There are more files than are listed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
}

/// A file of the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Artifact {
    /// Below the run directory.
    pub path: String,
    pub bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// `checkpoint`, `log`, `events`, `config`, `tensorboard` or `other`.
    pub kind: String,
    /// Whether the store has the same file.
    pub uploaded: bool,
    /// A presigned link into the store, on S3.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
}

fn kind(path: &str) -> &'static str {
    match path.split('/').next().unwrap_or_default() {
        "checkpoints" => "checkpoint",
        "logs" => "log",
        "events.jsonl" => "events",
        "config.toml" => "config",
        "tensorboard" => "tensorboard",
        _ => "other",
    }
}

/// Everything below the run directory that is a plain file and not the agent's own.
fn walk(root: &std::path::Path) -> (Vec<Artifact>, bool) {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(root.join(&folder)) else {
            continue;
        };
        for entry in entries.flatten() {
            let path = folder.join(entry.file_name());
            // Links are followed nowhere.
            let (Ok(metadata), Some(path)) = (entry.metadata(), path.to_str()) else {
                continue;
            };
            if !safe::is_shown(path) {
                continue;
            }
            if metadata.is_dir() {
                folders.push(path.into());
            } else if metadata.is_file() {
                if found.len() == FILES_MAX {
                    return (found, true);
                }
                found.push(Artifact {
                    path: path.to_owned(),
                    bytes: metadata.len(),
                    sha256: None,
                    kind: kind(path).to_owned(),
                    uploaded: false,
                    url: None,
                    expires_at: None,
                });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    (found, false)
}

/// The digest of a checkpoint's file, as its manifest has it.
fn of_manifest(root: &std::path::Path, path: &str) -> Option<String> {
    let (folder, name) = path.rsplit_once('/')?;
    folder.strip_prefix("checkpoints/")?;
    let manifest = safe::open(root, &format!("{folder}/{}", RunDir::MANIFEST)).ok()?;
    let mut text = String::new();
    manifest.take(1 << 20).read_to_string(&mut text).ok()?;
    let manifest = Manifest::parse(&text).ok()?;
    manifest.files.get(name).map(|file| file.sha256.clone())
}

/// The files of the run on this machine, and which of them the store has.
#[utoipa::path(
    get, path = "/api/v1/jobs/{id}/artifacts", operation_id = "getArtifacts", tag = "job",
    params(("id" = String, Path)),
    responses(
        (status = 200, description = "The files", body = Artifacts),
        (status = "4XX", description = "Refused", body = Problem,
            content_type = "application/problem+json"),
        (status = "5XX", description = "Failed", body = Problem,
            content_type = "application/problem+json"),
    ),
)]
pub(super) async fn list(State(app): Shared, Path(id): Path<String>) -> Result<Response, Problem> {
    app.check_job(&id)?;
    let root = app.source.run_dir.root().to_owned();
    let looked = tokio::task::spawn_blocking(move || {
        let (mut found, truncated) = walk(&root);
        for artifact in &mut found {
            artifact.sha256 = of_manifest(&root, &artifact.path);
        }
        (found, truncated)
    });
    let (mut artifacts, truncated) = looked
        .await
        .map_err(|_| Problem::unavailable("the files cannot be listed"))?;
    // A store that does not answer hides no file of this machine.
    if let Ok(history) = app.known_history().await {
        let mut keys = HashMap::new();
        for known in &*history {
            let folder = RunDir::checkpoint_name(known.commit.step);
            for file in &known.commit.files {
                let path = format!("checkpoints/{folder}/{}", file.name());
                keys.entry(path)
                    .or_insert((file.key.clone(), file.sha256.clone()));
            }
        }
        for artifact in &mut artifacts {
            let Some((key, sha256)) = keys.get(&artifact.path) else {
                continue;
            };
            if artifact.sha256.as_ref().is_some_and(|own| own != sha256) {
                continue;
            }
            artifact.uploaded = true;
            artifact.sha256 = Some(sha256.clone());
            (artifact.url, artifact.expires_at) = app.link(key).await;
        }
    }
    Ok(json(&Artifacts {
        artifacts,
        truncated,
    }))
}

/// A file of the run, whole or in part.
#[utoipa::path(
    get, path = "/api/v1/jobs/{id}/artifacts/{path}", operation_id = "getArtifact", tag = "job",
    params(("id" = String, Path), ("path" = String, Path), ("Range" = Option<String>, Header)),
    responses(
        (status = 200, description = "The file", body = Vec<u8>,
            content_type = "application/octet-stream"),
        (status = 206, description = "A part of it", body = Vec<u8>,
            content_type = "application/octet-stream"),
        (status = 304, description = "Unchanged"),
        (status = "4XX", description = "Refused", body = Problem,
            content_type = "application/problem+json"),
        (status = "5XX", description = "Failed", body = Problem,
            content_type = "application/problem+json"),
    ),
)]
pub(super) async fn file(
    State(app): Shared,
    Path((id, path)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    app.check_job(&id)?;
    if !safe::is_shown(&path) {
        return Err(Problem::not_found("no such artifact"));
    }
    let root = app.source.run_dir.root().to_owned();
    let opened = tokio::task::spawn_blocking(move || look_up(&root, &path));
    let opened = opened.await.ok().flatten();
    let opened = opened.ok_or_else(|| Problem::not_found("no such artifact"))?;
    let (bytes, tag) = (opened.bytes, opened.tag);
    let text = |name| {
        headers
            .get(name)
            .and_then(|value: &HeaderValue| value.to_str().ok())
    };
    if text(header::IF_NONE_MATCH).is_some_and(|known| known.split(',').any(|it| it.trim() == tag))
    {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response());
    }
    // A part of a file that has changed since is of no use.
    let same = text(header::IF_RANGE).is_none_or(|known| known == tag);
    let range = text(header::RANGE).filter(|_| same);
    let (status, range) = match range::read(range.unwrap_or_default(), bytes) {
        Asked::Whole => (
            StatusCode::OK,
            Range {
                start: 0,
                end: bytes,
            },
        ),
        Asked::Part(range) => (StatusCode::PARTIAL_CONTENT, range),
        Asked::Nothing => {
            let status = StatusCode::RANGE_NOT_SATISFIABLE;
            let detail = format!("the file has {bytes} bytes");
            let problem = Problem::new(status, "range_not_satisfiable", detail);
            let content_range = [(header::CONTENT_RANGE, format!("bytes */{bytes}"))];
            return Ok((content_range, problem).into_response());
        }
    };
    let mut response = Body::from_stream(chunks(opened.file, range)).into_response();
    *response.status_mut() = status;
    let mut set = |name: header::HeaderName, value: String| {
        let value = HeaderValue::from_str(&value).expect("digits, letters and marks");
        response.headers_mut().insert(name, value);
    };
    set(header::CONTENT_TYPE, "application/octet-stream".to_owned());
    set(
        header::CONTENT_LENGTH,
        (range.end - range.start).to_string(),
    );
    set(header::ACCEPT_RANGES, "bytes".to_owned());
    set(header::ETAG, tag);
    if status == StatusCode::PARTIAL_CONTENT {
        let (start, end) = (range.start, range.end - 1);
        set(
            header::CONTENT_RANGE,
            format!("bytes {start}-{end}/{bytes}"),
        );
    }
    if let Some(digest) = opened.digest {
        let name = header::HeaderName::from_static("repr-digest");
        set(name, format!("sha-256=:{}:", range::base64(&digest)));
    }
    Ok(response)
}

/// A file and what is said of it.
struct Opened {
    file: File,
    bytes: u64,
    tag: String,
    digest: Option<Vec<u8>>,
}

fn look_up(root: &std::path::Path, path: &str) -> Option<Opened> {
    let file = safe::open(root, path).ok()?;
    let metadata = file.metadata().ok().filter(std::fs::Metadata::is_file)?;
    let bytes = metadata.len();
    let (inode, changed) = (metadata.ino(), metadata.mtime_nsec());
    let tag = format!("\"{inode:x}-{bytes:x}-{changed:x}\"");
    let digest = of_manifest(root, path).and_then(|hex| from_hex(&hex));
    let digest = digest.or_else(|| digest_of(&file, bytes));
    Some(Opened {
        file,
        bytes,
        tag,
        digest,
    })
}

/// The bytes of a range, read as they are sent. A file that has become shorter ends the connection.
fn chunks(
    file: File,
    range: Range,
) -> impl futures_util::Stream<Item = std::io::Result<Bytes>> + Send {
    let file = Arc::new(file);
    futures_util::stream::try_unfold(range.start, move |at| {
        let file = Arc::clone(&file);
        async move {
            if at == range.end {
                return Ok(None);
            }
            let size = usize::try_from(CHUNK_BYTES.min(range.end - at)).expect("a chunk fits");
            let read = tokio::task::spawn_blocking(move || {
                let mut bytes = vec![0; size];
                file.read_exact_at(&mut bytes, at)?;
                Ok::<_, std::io::Error>(bytes)
            });
            let bytes = read.await.map_err(std::io::Error::other)??;
            let next = at + bytes.len() as u64;
            Ok(Some((Bytes::from(bytes), next)))
        }
    })
}

/// SHA-256 of the first `bytes` of a file that is not too large.
fn digest_of(file: &File, bytes: u64) -> Option<Vec<u8>> {
    if bytes > DIGEST_BYTES_MAX {
        return None;
    }
    let mut hash = Sha256::new();
    let mut buffer = vec![0; usize::try_from(CHUNK_BYTES).expect("a chunk fits")];
    let mut at = 0;
    while at < bytes {
        let size = usize::try_from((bytes - at).min(CHUNK_BYTES)).expect("a chunk fits");
        file.read_exact_at(&mut buffer[..size], at).ok()?;
        hash.update(&buffer[..size]);
        at += size as u64;
    }
    Some(hash.finalize().to_vec())
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes().chunks(2);
    let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Option<Vec<u8>> = digits.map(byte).collect();
    bytes.filter(|bytes| bytes.len() == 32)
}
