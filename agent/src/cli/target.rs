//! A job as the commands that look at one reach it: over HTTP, or through its store.

use std::io::Read as _;
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Client, Method, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::checkpoints::{CheckpointError, History, Transfer, history};
use crate::error::Error;
use crate::http::{Artifacts, LogLine, LogPage, Problem};
use crate::job::{Job, StatusEnvelope};
use crate::logs::Line;
use crate::status::JobStatus;
use crate::storage::open::open;
use crate::storage::{Created, Storage, StorageError};

/// Longest wait for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(30);
const LISTED_MAX: usize = 100_000;
/// Racers for the next key of a command.
const CONTROLS_MAX: usize = 16;
/// A segment of output holds a mebibyte before compression.
const SEGMENT_BYTES_MAX: u64 = 64 << 20;

#[derive(Debug, clap::Args)]
pub(super) struct TargetArgs {
    /// Address of an agent, http://host:port; without it the store is asked. A token comes from
    /// AGENT_TOKEN or AGENT_READ_TOKEN.
    #[arg(long, env = "AGENT_URL")]
    url: Option<String>,
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
        let client = Client::builder().timeout(ANSWER_MAX).build().map_err(bad)?;
        let url = format!("{}/api/v1/jobs/current", url.trim_end_matches('/'));
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

    pub(super) async fn artifacts(&self) -> Result<Artifacts, Error> {
        self.ask(Method::GET, "/artifacts", None).await
    }

    pub(super) async fn history(&self) -> Result<Option<History>, CheckpointError> {
        match self {
            Self::Agent { .. } => Ok(None),
            Self::Store { store, job } => {
                let transfer = Transfer {
                    deadline: ANSWER_MAX,
                    ..Transfer::default()
                };
                history(store, job, &transfer).await.map(Some)
            }
        }
    }

    /// Asks the job to do something: at once over HTTP, or at the agent's next beat.
    pub(super) async fn command(&self, kind: &str, body: Value) -> Result<Value, Error> {
        match self {
            Self::Agent { .. } => {
                self.ask(Method::POST, &format!("/{kind}"), Some(body))
                    .await
            }
            Self::Store { store, job } => {
                let mut record = body;
                record["kind"] = json!(kind);
                // Of two who ask at once, one takes the next key.
                for _ in 0..CONTROLS_MAX {
                    let listed = store.list(&job.controls(), None, LISTED_MAX).await?;
                    let last = listed
                        .iter()
                        .filter_map(|entry| job.parse_control(&entry.key))
                        .max();
                    let key = job.control(last.map_or(1, |last| last + 1));
                    let text = serde_json::to_vec(&record).map_err(bad)?;
                    if let Created::New(_) = store.create(&key, text.into()).await? {
                        return Ok(json!({"accepted": true, "key": key}));
                    }
                }
                Err(Error::Bad("others take every key for a command".to_owned()))
            }
        }
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<T, Error> {
        let Self::Agent { client, url, token } = self else {
            let hint = "this is asked of a running agent\nhint: --url http://host:port";
            return Err(Error::Usage(hint.to_owned()));
        };
        let mut request = client.request(method, format!("{url}{path}"));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
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
            return serde_json::from_slice(&bytes).map_err(bad);
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
