//! A job as the commands that look at one reach it: over HTTP, or through its store.

use std::io::Read as _;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::{Client, Method, RequestBuilder, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::get::{Artifact, path_of};
use crate::checkpoints::{Transfer, history};
use crate::error::Error;
use crate::http::{Artifacts, LogLine, LogPage, Problem, pinned};
use crate::https;
use crate::job::{Job, StatusEnvelope};
use crate::logs::Line;
use crate::orders::{Order, leave};
use crate::status::JobStatus;
use crate::storage::open::open;
use crate::storage::retry::{Policy, Retry};
use crate::storage::{Storage, StorageError};

/// Longest wait for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(30);
const LISTED_MAX: usize = 100_000;
/// A segment of output holds a mebibyte before compression.
const SEGMENT_BYTES_MAX: u64 = 64 << 20;

#[derive(Debug, clap::Args)]
pub(super) struct TargetArgs {
    /// Address of an agent, http://host:port, https://host:port or unix:/path; without it the store
    /// is asked. A token comes from AGENT_TOKEN or AGENT_READ_TOKEN.
    #[arg(long, env = "AGENT_URL")]
    url: Option<String>,
    /// SHA-256 of the certificate of an agent that made its own, as it printed it.
    #[arg(long, env = "AGENT_TLS_FINGERPRINT")]
    tls_fingerprint: Option<String>,
    #[command(flatten)]
    place: super::Place,
}

pub(super) enum Target {
    Agent {
        client: Client,
        /// Of the job.
        url: String,
        token: Option<String>,
    },
    Store {
        store: Arc<dyn Storage>,
        job: Job,
    },
}

fn bad(error: impl std::fmt::Display) -> Error {
    Error::Bad(error.to_string())
}

impl TargetArgs {
    pub(super) async fn open(&self) -> Result<Target, Error> {
        let Some(url) = &self.url else {
            let job = Job::new(&self.place.job).map_err(|error| Error::Usage(error.to_string()))?;
            let store = open(&self.place.store).await?;
            return Ok(Target::Store { store, job });
        };
        let token = ["AGENT_TOKEN", "AGENT_READ_TOKEN"].into_iter();
        let token = token
            .filter_map(|name| std::env::var(name).ok())
            .find(|it| !it.is_empty());
        let mut client = https::builder().timeout(ANSWER_MAX);
        if let Some(fingerprint) = &self.tls_fingerprint {
            if !url.starts_with("https://") {
                let what = format!("--tls-fingerprint: expected an address of https://, got {url}");
                return Err(Error::Usage(what));
            }
            let pinned = pinned(fingerprint).map_err(Error::Usage)?;
            client = client.tls_backend_preconfigured(pinned);
        }
        let mut url = url.trim_end_matches('/');
        if let Some(path) = url.strip_prefix("unix:") {
            client = client.unix_socket(path);
            url = "http://localhost";
        }
        let client = client.build().map_err(bad)?;
        let url = format!("{url}/api/v1/jobs/current");
        Ok(Target::Agent { client, url, token })
    }
}

impl Target {
    pub(super) async fn status(&self) -> Result<JobStatus, Error> {
        match self {
            Self::Agent { .. } => self.ask(Method::GET, "", None).await,
            Self::Store { store, job } => {
                let object = store.get(&job.status()).await?;
                let envelope: StatusEnvelope =
                    serde_json::from_slice(&object.bytes).map_err(bad)?;
                serde_json::from_value(envelope.status).map_err(bad)
            }
        }
    }

    /// Lines after a cursor, oldest first, and the cursor for the next call.
    pub(super) async fn logs(
        &self,
        after: Option<u64>,
        tail: Option<usize>,
    ) -> Result<(Vec<LogLine>, Option<u64>), Error> {
        match self {
            Self::Agent { .. } => {
                let mut query = Vec::new();
                query.extend(after.map(|after| format!("since={after}")));
                query.extend(tail.map(|tail| format!("tail={}", tail.min(5_000))));
                let path = format!("/logs?{}", query.join("&"));
                let page: LogPage = self.ask(Method::GET, &path, None).await?;
                Ok((page.lines, page.next.or(after)))
            }
            Self::Store { store, job } => {
                let mut lines = stored_lines(&**store, job, after).await?;
                if let Some(tail) = tail {
                    lines.drain(..lines.len().saturating_sub(tail));
                }
                let next = lines.last().map(|line| line.seq).or(after);
                Ok((lines.into_iter().map(LogLine::from).collect(), next))
            }
        }
    }

    /// The files of the job: of the run on the agent's machine, or of the checkpoints in the store.
    pub(super) async fn files(&self) -> Result<Vec<Artifact>, Error> {
        let (store, job) = match self {
            Self::Agent { .. } => {
                let listed: Artifacts = self.ask(Method::GET, "/artifacts", None).await?;
                let files = listed.artifacts.into_iter().map(|it| Artifact {
                    path: it.path,
                    key: None,
                    bytes: it.bytes,
                    sha256: it.sha256,
                });
                return Ok(files.collect());
            }
            Self::Store { store, job } => (store, job),
        };
        let transfer = Transfer {
            deadline: ANSWER_MAX,
            ..Transfer::default()
        };
        let history = history(store, job, &transfer).await.map_err(bad)?;
        let commits = history.commits.iter();
        let files = commits.flat_map(|commit| commit.files.iter().map(|file| (commit.step, file)));
        let files = files.map(|(step, file)| Artifact {
            path: path_of(step, file.name()),
            key: Some(file.key.clone()),
            bytes: file.bytes,
            sha256: Some(file.sha256.clone()),
        });
        Ok(files.collect())
    }

    /// Some bytes of a file.
    pub(super) async fn range(
        &self,
        artifact: &Artifact,
        range: Range<u64>,
    ) -> Result<Bytes, Error> {
        match (self, &artifact.key) {
            (Self::Agent { .. }, _) => {
                let path = format!("/artifacts/{}", escaped(&artifact.path));
                let request = self.request(Method::GET, &path)?;
                let (first, last) = (range.start, range.end - 1);
                let request = request.header("range", format!("bytes={first}-{last}"));
                self.answer(&path, request).await
            }
            (Self::Store { store, job }, Some(key)) => {
                let policy = Policy::until(ANSWER_MAX);
                let retry = Retry::new(Arc::clone(store), policy, fastrand::u64(..));
                Ok(retry.get_range(&job.key(key), range).await?)
            }
            (Self::Store { .. }, None) => unreachable!("files of a store have keys"),
        }
    }

    /// Asks the job to do something: at once over HTTP, or at the agent's next beat.
    pub(super) async fn order(&self, order: &Order) -> Result<Value, Error> {
        match (self, order) {
            (Self::Agent { .. }, Order::Yield | Order::Credentials(_)) => {
                let what = format!("{}: only through the store", order.kind());
                Err(Error::Usage(format!(
                    "{what}\nhint: --store and --job, no --url"
                )))
            }
            (Self::Agent { .. }, order) => {
                let method = match order {
                    Order::Limits(_) => Method::PATCH,
                    _ => Method::POST,
                };
                let path = format!("/{}", order.kind());
                self.ask(method, &path, Some(order.body())).await
            }
            (Self::Store { store, job }, order) => {
                let number = leave(&**store, job, order).await?;
                Ok(json!({"accepted": true, "key": job.control(number)}))
            }
        }
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<T, Error> {
        let mut request = self.request(method, path)?;
        if let Some(body) = body {
            request = request.json(&body);
        }
        let bytes = self.answer(path, request).await?;
        serde_json::from_slice(&bytes).map_err(bad)
    }

    fn request(&self, method: Method, path: &str) -> Result<RequestBuilder, Error> {
        let Self::Agent { client, url, token } = self else {
            let hint = "this is asked of a running agent\nhint: --url http://host:port";
            return Err(Error::Usage(hint.to_owned()));
        };
        let request = client.request(method, format!("{url}{path}"));
        Ok(match token {
            Some(token) => request.bearer_auth(token),
            None => request,
        })
    }

    /// The body of a good answer, or what the agent says against it.
    async fn answer(&self, path: &str, request: RequestBuilder) -> Result<Bytes, Error> {
        let url = match self {
            Self::Agent { url, .. } => url.as_str(),
            Self::Store { .. } => "",
        };
        let response = request
            .send()
            .await
            .map_err(|error| unreached(url, &error))?;
        let status = response.status();
        let bytes = response
            .bytes()
            .await
            .map_err(|error| unreached(url, &error))?;
        if status.is_success() {
            return Ok(bytes);
        }
        let problem = serde_json::from_slice::<Problem>(&bytes);
        let detail = problem.map_or_else(|_| status.to_string(), |problem| problem.detail);
        let hint = match status {
            StatusCode::UNAUTHORIZED => "\nhint: set AGENT_TOKEN",
            _ => "",
        };
        Err(Error::Bad(format!("{url}{path}: {detail}{hint}")))
    }
}

/// A path in a URL: what is not plain is written by its bytes.
fn escaped(path: &str) -> String {
    let byte = |byte: u8| match byte {
        b'/' | b'.' | b'_' | b'-' => char::from(byte).to_string(),
        plain if plain.is_ascii_alphanumeric() => char::from(plain).to_string(),
        other => format!("%{other:02X}"),
    };
    path.bytes().map(byte).collect()
}

fn unreached(url: &str, error: &reqwest::Error) -> Error {
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    let source = StorageError::transient(url, "ask", "", cause);
    Error::Storage(source)
}

/// The lines of all segments after a cursor.
async fn stored_lines(
    store: &dyn Storage,
    job: &Job,
    after: Option<u64>,
) -> Result<Vec<Line>, Error> {
    let listed = store.list(&job.logs(), None, LISTED_MAX).await?;
    let oldest = after.map_or(0, |after| after >> 32);
    let mut lines: Vec<Line> = Vec::new();
    for entry in listed {
        let segment = job.parse_log_segment(&entry.key);
        if segment.is_none_or(|(attempt, _)| u64::from(attempt) < oldest) {
            continue;
        }
        let object = store.get(&entry.key).await?;
        let mut text = Vec::new();
        zstd::Decoder::new(&object.bytes[..])
            .and_then(|decoder| decoder.take(SEGMENT_BYTES_MAX).read_to_end(&mut text))
            .map_err(|error| bad(format!("{}: {error}", entry.key)))?;
        let read = text.split(|&byte| byte == b'\n').filter_map(|line| {
            // A line that a later agent writes otherwise is passed over.
            serde_json::from_slice::<Line>(line).ok()
        });
        lines.extend(read.filter(|line| after.is_none_or(|after| line.seq > after)));
    }
    lines.sort_by_key(|line| line.seq);
    Ok(lines)
}
