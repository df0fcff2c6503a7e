//! The agent's face: an HTTP server that shows what the loop publishes and hands on what people
//! ask. Started by the loop, on threads of its own: nothing here can make the loop wait.
//!
//! It reads the board, the log, the run directory and the store; it changes nothing itself, but
//! sends commands to the supervisor.

mod access;
mod control;
mod files;
mod health;
mod job;
mod logs;
mod machine;
mod openapi;
mod page;
mod problem;
mod serve;
mod stream;
mod tls;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, patch, post};
use protocol::RunDir;
use serde_json::Value;
use tokio::sync::mpsc;

pub use access::{Access, Scope};
pub use control::{CheckpointAnswer, StopAnswer};
pub use files::{Artifact, Artifacts};
pub use job::{CheckpointItem, CheckpointList, EventPage, SeriesAnswer};
pub use logs::{LogLine, LogPage};
pub use openapi::document;
pub use problem::Problem;
pub use serve::{Listen, Server, Settings};
pub use tls::{Tls, pinned};

use crate::board::View;
use crate::job::Job;
use crate::logs::Logs;
use crate::metrics::gpu::Gpus;
use crate::metrics::store::Requests;
use crate::state::Event;
use crate::storage::Storage;

/// A control body is a few numbers.
const BODY_BYTES_MAX: usize = 64 << 10;
/// A handler that is not a stream or a long poll has answered by then.
const ANSWER_MAX: Duration = Duration::from_secs(75);
/// A command is handed on at once; this is for its body to come in.
const COMMAND_MAX: Duration = Duration::from_secs(10);
/// Routes × methods × codes that are counted apart.
const COUNTED_MAX: usize = 512;

/// What the server is given by the loop.
pub struct Source {
    pub view: View,
    pub logs: Arc<Logs>,
    /// Bounded: a full one is answered by 503.
    pub commands: mpsc::Sender<Event>,
    pub store: Arc<dyn Storage>,
    pub store_requests: Arc<Requests>,
    pub job: Job,
    pub run_dir: RunDir,
    pub gpus: Gpus,
    /// The effective settings, without secrets.
    pub config: Value,
}

/// What all handlers share.
pub(crate) struct App {
    source: Source,
    access: Access,
    metrics_open: bool,
    dcgm_names: bool,
    requests: Mutex<BTreeMap<(String, String, u16), u64>>,
    answered: control::Answered,
    pieces: stream::Pieces,
    history: job::HistoryCache,
    machine: machine::Machine,
}

type Shared = State<Arc<App>>;

impl App {
    pub(crate) fn new(source: Source, settings: &Settings) -> Self {
        let machine = machine::Machine::new(source.run_dir.root());
        Self {
            source,
            access: settings.access.clone(),
            metrics_open: settings.metrics_open,
            dcgm_names: settings.dcgm_names,
            requests: Mutex::default(),
            answered: control::Answered::default(),
            pieces: stream::Pieces::default(),
            history: job::HistoryCache::default(),
            machine,
        }
    }

    /// Whether this names our job.
    fn check_job(&self, id: &str) -> Result<(), Problem> {
        if id == "current" || id == self.source.job.id() {
            return Ok(());
        }
        Err(Problem::not_found(format!("this agent has no job {id:?}")))
    }

    fn count(&self, route: &str, method: &str, code: u16) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (route.to_owned(), method.to_owned(), code);
        if requests.len() < COUNTED_MAX || requests.contains_key(&key) {
            *requests.entry(key).or_default() += 1;
        }
    }
}

/// Everything the server answers.
pub(crate) fn router(app: Arc<App>) -> Router {
    let read = Router::new()
        .route("/api/v1/jobs/{id}", get(job::status))
        .route("/api/v1/jobs/{id}/events", get(job::events))
        .route("/api/v1/jobs/{id}/logs", get(logs::page))
        .route("/api/v1/jobs/{id}/logs/stream", get(stream::stream))
        .route("/api/v1/jobs/{id}/metrics", get(job::series))
        .route("/api/v1/jobs/{id}/checkpoints", get(job::checkpoints))
        .route("/api/v1/jobs/{id}/artifacts", get(files::list))
        .route("/api/v1/jobs/{id}/artifacts/{*path}", get(files::file))
        .route("/api/v1/config", get(job::config))
        .route_layer(middleware::from_fn_with_state(Arc::clone(&app), may_read));
    let control = Router::new()
        .route("/api/v1/jobs/{id}/checkpoint", post(control::checkpoint))
        .route("/api/v1/jobs/{id}/stop", post(control::stop))
        .route("/api/v1/jobs/{id}/keepalive", post(control::keepalive))
        .route("/api/v1/jobs/{id}/drill", post(control::drill))
        .route("/api/v1/jobs/{id}/limits", patch(control::limits))
        .route_layer(middleware::from_fn_with_state(
            Arc::clone(&app),
            may_control,
        ));
    let metrics = get(health::metrics);
    let metrics = if app.metrics_open {
        metrics
    } else {
        metrics.route_layer(middleware::from_fn_with_state(Arc::clone(&app), may_read))
    };
    Router::new()
        .route("/", get(page::index))
        .route("/assets/{name}", get(page::asset))
        .route("/livez", get(health::livez))
        .route("/readyz", get(health::readyz))
        .route("/readyz/{check}", get(health::ready_check))
        .route("/version", get(health::version))
        .route("/openapi.json", get(openapi::serve))
        .route("/metrics", metrics)
        .merge(read)
        .merge(control)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), around))
        .with_state(app)
}

async fn may_read(State(app): Shared, request: Request, next: Next) -> Response {
    match app.access.check(request.headers(), Scope::Read) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

async fn may_control(State(app): Shared, request: Request, next: Next) -> Response {
    match app.access.check(request.headers(), Scope::Control) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What holds for every answer: an id, a limit of time, errors as problems, headers that browsers
/// are to keep to, and a count.
async fn around(State(app): Shared, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>();
    let route = route.map_or("none", MatchedPath::as_str).to_owned();
    let method = request.method().as_str().to_owned();
    let given = request.headers().get(&REQUEST_ID).cloned();
    let plain = |id: &HeaderValue| {
        let bytes = id.as_bytes();
        bytes.len() <= 128 && bytes.iter().all(u8::is_ascii_graphic)
    };
    let id = given.filter(plain).unwrap_or_else(|| {
        let id = format!("{:016x}", fastrand::u64(..));
        HeaderValue::from_str(&id).expect("hexadecimal digits")
    });
    let limit = if request.method().is_safe() {
        ANSWER_MAX
    } else {
        COMMAND_MAX
    };
    let answer = tokio::time::timeout(limit, next.run(request)).await;
    let late = |_| Problem::unavailable("the answer took too long").into_response();
    let mut response = as_problem(answer.unwrap_or_else(late)).await;
    let headers = response.headers_mut();
    headers.insert(REQUEST_ID, id);
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_FRAME_OPTIONS, "DENY"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    let unsaid = headers.entry(header::CACHE_CONTROL);
    unsaid.or_insert(HeaderValue::from_static("no-store"));
    app.count(&route, &method, response.status().as_u16());
    response
}

/// What the framework refused by itself, as a problem.
async fn as_problem(response: Response) -> Response {
    let status = response.status();
    let has_own = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind == problem::CONTENT_TYPE || kind == "application/json");
    if !(status.is_client_error() || status.is_server_error()) || has_own {
        return response;
    }
    let (parts, body) = response.into_parts();
    let text = axum::body::to_bytes(body, 1 << 10)
        .await
        .unwrap_or_default();
    let detail = match String::from_utf8_lossy(&text).trim() {
        "" => status.canonical_reason().unwrap_or("error").to_lowercase(),
        text => text.lines().next().unwrap_or_default().to_owned(),
    };
    let mut problem = Problem::new(status, Problem::code_of(status), detail).into_response();
    if let Some(allow) = parts.headers.get(header::ALLOW) {
        problem.headers_mut().insert(header::ALLOW, allow.clone());
    }
    problem
}

/// JSON with the length of its text, so that it can be asked for by `HEAD` as well.
fn json(value: &impl serde::Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(text) => ([(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Err(error) => {
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            Problem::new(status, "error", error.to_string()).into_response()
        }
    }
}

/// An address as a URL.
pub(crate) fn url(address: SocketAddr, tls: bool) -> String {
    let scheme = if tls { "https" } else { "http" };
    format!("{scheme}://{address}")
}
