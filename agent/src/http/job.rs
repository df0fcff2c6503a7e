//! What a job is and was: status, history, series, checkpoints, settings.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use utoipa::{IntoParams, ToSchema};

use super::{App, Problem, Shared, json};
use crate::board::{Entry, NAMES, Point};
use crate::checkpoints::{Transfer, history};
use crate::job::CommitRecord;
use crate::status::{LOG_LINES, tail};

/// Below the patience of proxies.
const WAIT_MAX_S: u64 = 60;
const LOG_LINES_MAX: usize = 500;
const ENTRIES_MAX: usize = 1_000;
const POINTS_MAX: usize = 4_000;
/// Greater ones are no whole numbers in JSON as JavaScript reads it.
const NUMBER_MAX: u64 = (1 << 53) - 1;
/// The store is asked for checkpoints this often at most, however many ask us, and once more
/// whenever one was published.
const HISTORY_EVERY: Duration = Duration::from_secs(10);
const HISTORY_MAX: Duration = Duration::from_secs(20);
/// How long a link into the store is good for.
pub(super) const LINK: Duration = Duration::from_secs(3600);

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct StatusQuery {
    /// Seconds to wait for a status other than `rev`.
    #[param(maximum = 60, minimum = 0)]
    wait: Option<u64>,
    /// The revision that is known.
    #[param(minimum = 0, maximum = 9007199254740991_i64)]
    rev: Option<u64>,
    /// Lines of output in the answer.
    #[param(maximum = 500, minimum = 0)]
    logs: Option<usize>,
}

/// The status of the job. `current` stands for its id.
#[utoipa::path(
    get, path = "/api/v1/jobs/{id}", operation_id = "getJob", tag = "job",
    params(("id" = String, Path), StatusQuery),
    responses(
        (status = 200, description = "The status", body = crate::status::JobStatus),
        (status = 304, description = "Unchanged"),
        (status = "4XX", description = "Refused", body = Problem,
            content_type = "application/problem+json"),
        (status = "5XX", description = "Failed", body = Problem,
            content_type = "application/problem+json"),
    ),
)]
pub(super) async fn status(
    State(app): Shared,
    Path(id): Path<String>,
    Query(query): Query<StatusQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    app.check_job(&id)?;
    let lines = query.logs.unwrap_or(LOG_LINES);
    let too_long = query.wait.is_some_and(|wait| wait > WAIT_MAX_S);
    if too_long || lines > LOG_LINES_MAX || query.rev > Some(NUMBER_MAX) {
        let detail = format!("expected wait <= {WAIT_MAX_S}, logs <= {LOG_LINES_MAX} and a rev");
        return Err(Problem::bad_request(detail));
    }
    if let (Some(wait), Some(rev)) = (query.wait, query.rev) {
        let mut shown = app.source.view.shown.clone();
        let other = shown.wait_for(|shown| shown.status.rev != rev);
        // Nothing new, or nothing ever again: what there is.
        timeout(Duration::from_secs(wait), other).await.ok();
    }
    let shown = app.source.view.now();
    let newest = app.source.logs.tail(lines);
    let last = newest.last().map(|line| line.seq);
    let tag = format!("\"{}-{}-{lines}\"", shown.status.rev, last.unwrap_or(0));
    let tag_header = HeaderValue::from_str(&tag).expect("digits and quotes");
    let known = headers.get(header::IF_NONE_MATCH);
    let unchanged = known
        .and_then(|known| known.to_str().ok())
        .is_some_and(|known| {
            let mut tags = known
                .split(',')
                .map(|tag| tag.trim().trim_start_matches("W/"));
            tags.any(|known| known == tag || known == "*")
        });
    let mut response = if unchanged {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        let mut status = shown.status.clone();
        status.logs = tail(&newest);
        status.logs_next = last;
        json(&status)
    };
    let headers = response.headers_mut();
    headers.insert(header::ETAG, tag_header);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct EventsQuery {
    /// Only those after this `seq`.
    #[param(minimum = 0, maximum = 9007199254740991_i64)]
    since: Option<u64>,
    #[param(maximum = 1000, minimum = 1)]
    limit: Option<usize>,
}

/// Some of the history, oldest first.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct EventPage {
    pub events: Vec<Entry>,
    /// `since` for the next page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<u64>,
    pub has_more: bool,
}

/// The history of the job: changes of its phase with their reasons, checkpoints, warnings.
#[utoipa::path(
    get, path = "/api/v1/jobs/{id}/events", operation_id = "getEvents", tag = "job",
    params(("id" = String, Path), EventsQuery),
    responses(
        (status = 200, description = "Some of the history", body = EventPage),
        (status = "4XX", description = "Refused", body = Problem,
            content_type = "application/problem+json"),
        (status = "5XX", description = "Failed", body = Problem,
            content_type = "application/problem+json"),
    ),
)]
pub(super) async fn events(
    State(app): Shared,
    Path(id): Path<String>,
    Query(query): Query<EventsQuery>,
) -> Result<Response, Problem> {
    app.check_job(&id)?;
    let limit = query.limit.unwrap_or(ENTRIES_MAX);
    if !(1..=ENTRIES_MAX).contains(&limit) || query.since > Some(NUMBER_MAX) {
        return Err(Problem::bad_request(format!(
            "expected limit of 1 to {ENTRIES_MAX}"
        )));
    }
    let (events, has_more) = app
        .source
        .view
        .history(|history| history.after(query.since, limit));
    let next = events.last().map(|last| last.seq).or(query.since);
    Ok(json(&EventPage {
        events,
        next,
        has_more,
    }))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct SeriesQuery {
    /// Which values; several with commas. All of them by default.
    name: Option<String>,
    #[param(maximum = 4000, minimum = 1)]
    max_points: Option<usize>,
}

/// Values over steps.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct SeriesAnswer {
    pub series: Vec<NamedSeries>,
}

#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct NamedSeries {
    pub name: String,
    pub points: Vec<Point>,
}

/// Series of values, downsampled: least, greatest and last of each stretch of steps.
#[utoipa::path(
    get, path = "/api/v1/jobs/{id}/metrics", operation_id = "getSeries", tag = "job",
    params(("id" = String, Path), SeriesQuery),
    responses(
        (status = 200, description = "The series", body = SeriesAnswer),
        (status = "4XX", description = "Refused", body = Problem,
            content_type = "application/problem+json"),
        (status = "5XX", description = "Failed", body = Problem,
            content_type = "application/problem+json"),
    ),
)]
pub(super) async fn series(
    State(app): Shared,
    Path(id): Path<String>,
    Query(query): Query<SeriesQuery>,
) -> Result<Response, Problem> {
    app.check_job(&id)?;
    let points_max = query.max_points.unwrap_or(500);
    if !(1..=POINTS_MAX).contains(&points_max) {
        return Err(Problem::bad_request(format!(
            "expected max_points of 1 to {POINTS_MAX}"
        )));
    }
    let asked = query.name.unwrap_or_else(|| NAMES.join(","));
    let mut series = Vec::new();
    for name in asked.split(',').take(NAMES.len()) {
        let points = app
            .source
            .view
            .series(|series| series.points(name, points_max));
        let Some(points) = points else {
            let known = NAMES.join(", ");
            return Err(Problem::not_found(format!(
                "no series {name:?}; there are {known}"
            )));
        };
        let name = name.to_owned();
        series.push(NamedSeries { name, points });
    }
    Ok(json(&SeriesAnswer { series }))
}

/// Checkpoints that are whole in the store.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct CheckpointList {
    /// Newest first.
    pub checkpoints: Vec<CheckpointItem>,
}

#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct CheckpointItem {
    pub step: u64,
    /// Epoch of the lease that it was published under.
    pub epoch: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub val_loss: Option<f64>,
    /// The same, for those who know one loss only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    pub bytes: u64,
    /// Key of its commit in the store.
    pub key: String,
    /// When it was published, by the store's clock, where the store tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    pub files: Vec<CheckpointFile>,
}

#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct CheckpointFile {
    pub name: String,
    pub key: String,
    pub bytes: u64,
    pub sha256: String,
    /// A presigned link, on S3.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
}

/// What the store was last known to hold.
#[derive(Default)]
pub(super) struct HistoryCache(Mutex<Option<Cached>>);

struct Cached {
    at: Instant,
    /// What was published by then.
    newest: Option<u64>,
    known: Arc<Vec<Known>>,
}

#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) commit: CommitRecord,
    created: Option<String>,
}

impl App {
    /// The valid history, newest first. One request to the store at a time.
    pub(super) async fn known_history(&self) -> Result<Arc<Vec<Known>>, Problem> {
        let mut cache = self.history.0.lock().await;
        let newest = self.source.view.now().status.checkpoint.step;
        if let Some(cached) = &*cache
            && cached.at.elapsed() < HISTORY_EVERY
            && cached.newest == newest
        {
            return Ok(Arc::clone(&cached.known));
        }
        let (store, job) = (&self.source.store, &self.source.job);
        let transfer = Transfer {
            deadline: HISTORY_MAX / 2,
            ..Transfer::default()
        };
        let ask = async {
            let commits = history(store, job, &transfer)
                .await
                .map_err(|error| error.to_string())?;
            let listed = store.list(&job.commits(), None, 100_000).await;
            let listed = listed.map_err(|error| error.to_string())?;
            Ok::<_, String>((commits, listed))
        };
        let answer = timeout(HISTORY_MAX, ask).await;
        let answer = answer.unwrap_or_else(|_| Err("the store does not answer".to_owned()));
        let (found, listed) = answer.map_err(Problem::unavailable)?;
        let now = jiff::Timestamp::now();
        let known = found.commits.into_iter().map(|commit| {
            let key = job.commit(commit.id());
            let entry = listed.iter().find(|entry| entry.key == key);
            let age = entry.and_then(|entry| entry.age_s).map(Duration::from_secs);
            let created = age.and_then(|age| now.checked_sub(age).ok());
            Known {
                commit,
                created: created.map(|time| format!("{time:.0}")),
            }
        });
        let known = Arc::new(known.collect::<Vec<_>>());
        *cache = Some(Cached {
            at: Instant::now(),
            newest,
            known: Arc::clone(&known),
        });
        Ok(known)
    }

    /// A link into the store and when it ends, where the store has links.
    pub(super) async fn link(&self, key: &str) -> (Option<String>, Option<String>) {
        let key = self.source.job.key(key);
        let ends = jiff::Timestamp::now().checked_add(LINK).ok();
        match self.source.store.presigned(&key, LINK).await {
            Some(url) => (Some(url), ends.map(|time| format!("{time:.0}"))),
            None => (None, None),
        }
    }
}

/// Published checkpoints, newest first.
#[utoipa::path(
    get, path = "/api/v1/jobs/{id}/checkpoints", operation_id = "getCheckpoints", tag = "job",
    params(("id" = String, Path)),
    responses(
        (status = 200, description = "What the store holds", body = CheckpointList),
        (status = "4XX", description = "Refused", body = Problem,
            content_type = "application/problem+json"),
        (status = "5XX", description = "Failed", body = Problem,
            content_type = "application/problem+json"),
    ),
)]
pub(super) async fn checkpoints(
    State(app): Shared,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    app.check_job(&id)?;
    let known = app.known_history().await?;
    let mut checkpoints = Vec::new();
    for Known { commit, created } in &*known {
        let mut files = Vec::new();
        for file in &commit.files {
            let (url, expires_at) = app.link(&file.key).await;
            files.push(CheckpointFile {
                name: file.name().to_owned(),
                key: app.source.job.key(&file.key),
                bytes: file.bytes,
                sha256: file.sha256.clone(),
                url,
                expires_at,
            });
        }
        let val_loss = commit.val_loss.filter(|loss| loss.is_finite());
        checkpoints.push(CheckpointItem {
            step: commit.step,
            epoch: commit.epoch,
            val_loss,
            loss: val_loss,
            bytes: commit.bytes(),
            key: app.source.job.commit(commit.id()),
            created: created.clone(),
            files,
        });
    }
    Ok(json(&CheckpointList { checkpoints }))
}

/// The effective settings of this agent, without secrets.
#[utoipa::path(
    get, path = "/api/v1/config", operation_id = "getConfig", tag = "agent",
    responses(
        (status = 200, description = "The settings", body = serde_json::Value),
        (status = "4XX", description = "Refused", body = Problem,
            content_type = "application/problem+json"),
    ),
)]
pub(super) async fn config(State(app): Shared) -> Response {
    json(&app.source.config)
}
