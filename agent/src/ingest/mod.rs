//! What trainers say that write no `events.jsonl`: over HTTP on loopback, or by what they print.
//! Each becomes a report to the supervisor. Called by the loop.

mod adopt;
mod body;
pub mod lines;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use tokio::sync::mpsc;

use protocol::RunDir;
use serde::Deserialize;

pub use lines::{Lines, ParseLogs};

use crate::http::{Access, Listen, Problem, Scope, Server};
use crate::progress::Report;
use crate::state::Event;

const BODY_BYTES_MAX: usize = 1 << 20;
const BODY_MAX: Duration = Duration::from_secs(10);
/// A checkpoint of some gigabytes is copied within this.
const ADOPT_MAX: Duration = Duration::from_secs(1_800);
/// Reports that wait for the loop; more are refused.
const REPORTS_MAX: usize = 1_024;

/// A server on loopback for the trainer alone.
pub struct Ingest {
    server: Server,
    token_path: PathBuf,
    reports: mpsc::Receiver<Event>,
}

struct App {
    access: Access,
    tell: mpsc::Sender<Event>,
    run_dir: RunDir,
    /// One checkpoint is taken over at a time.
    adopting: tokio::sync::Mutex<()>,
}

/// A directory that the trainer has written and will not write to until it is answered.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CheckpointBody {
    dir: PathBuf,
    step: u64,
}

impl Ingest {
    /// Starts to listen. The token is written into the run directory, for this user only.
    ///
    /// # Errors
    /// If the token cannot be written or nothing can be served.
    pub fn start(run_dir: &RunDir, learn: impl FnOnce(&str)) -> io::Result<Self> {
        let mut random = [0; 16];
        fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
        let token = format!("{:032x}", u128::from_le_bytes(random));
        learn(&token);
        let token_path = run_dir.root().join(".ingest-token");
        fs::remove_file(&token_path).ok();
        let mut options = fs::OpenOptions::new();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&token_path)?;
        file.write_all(token.as_bytes())?;
        let access = Access::new(None, Some(&token)).map_err(io::Error::other)?;
        let (tell, reports) = mpsc::channel(REPORTS_MAX);
        let app = Arc::new(App {
            access,
            tell,
            run_dir: run_dir.clone(),
            adopting: tokio::sync::Mutex::default(),
        });
        let router = Router::new()
            .route("/ingest/v1/status", post(status))
            .route("/ingest/v1/metrics", post(metrics))
            .route("/ingest/v1/checkpoint", post(checkpoint))
            .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
            .layer(middleware::from_fn_with_state(
                Arc::clone(&app),
                from_the_trainer,
            ))
            .with_state(app);
        let anywhere = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        Ok(Self {
            server: Server::serve(Listen::Tcp(anywhere), None, router, "ingest")?,
            token_path,
            reports,
        })
    }

    /// What a trainer finds in its environment: the protocol of Kubeflow's TrainJob, which Hugging
    /// Face's trainer speaks by itself, and the address for lines of JSON.
    pub fn environment(&self) -> Vec<(OsString, OsString)> {
        let url = self.server.url();
        vec![
            (
                "KUBEFLOW_TRAINER_SERVER_URL".into(),
                format!("{url}/ingest/v1/status").into(),
            ),
            (
                "KUBEFLOW_TRAINER_SERVER_TOKEN".into(),
                self.token_path.clone().into(),
            ),
            (
                "AGENT_INGEST_URL".into(),
                format!("{url}/ingest/v1/metrics").into(),
            ),
            (
                "AGENT_INGEST_CHECKPOINT_URL".into(),
                format!("{url}/ingest/v1/checkpoint").into(),
            ),
            (
                "AGENT_INGEST_AUTH_FILE".into(),
                self.token_path.clone().into(),
            ),
        ]
    }

    /// The next report.
    pub async fn next(&mut self) -> Option<Event> {
        self.reports.recv().await
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        // One that stays opens nothing any more.
        fs::remove_file(&self.token_path).ok();
    }
}

async fn from_the_trainer(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    if let Err(problem) = app.access.check(request.headers(), Scope::Control) {
        return problem.into_response();
    }
    let limit = match request.uri().path() {
        "/ingest/v1/checkpoint" => ADOPT_MAX,
        _ => BODY_MAX,
    };
    let answer = tokio::time::timeout(limit, next.run(request)).await;
    answer.unwrap_or_else(|_| StatusCode::REQUEST_TIMEOUT.into_response())
}

/// `{"trainerStatus": {"progressPercentage": …, "metrics": [{"name": …, "value": …}]}}`.
async fn status(State(app): State<Arc<App>>, body: Bytes) -> Result<StatusCode, Problem> {
    let report = body::kubeflow(&body).map_err(Problem::bad_request)?;
    app.tell(report)
}

/// One JSON object a line: `{"step": 7, "loss": 2.5}`.
async fn metrics(State(app): State<Arc<App>>, body: Bytes) -> Result<StatusCode, Problem> {
    for report in body::lines(&body).map_err(Problem::bad_request)? {
        app.tell(report)?;
    }
    Ok(StatusCode::OK)
}

/// `{"dir": "out/checkpoint-500", "step": 500}`: answered when it is safe in the run directory, and
/// published by the loop as any other.
async fn checkpoint(
    State(app): State<Arc<App>>,
    Json(body): Json<CheckpointBody>,
) -> Result<StatusCode, Problem> {
    let _one = app.adopting.lock().await;
    let run_dir = app.run_dir.clone();
    // As the trainer sees it: its working directory is the agent's.
    let work = move || adopt::adopt(&run_dir, &body.dir, body.step);
    let adopted = tokio::task::spawn_blocking(work).await;
    let adopted = adopted.map_err(|_| Problem::unavailable("the agent ends"))?;
    adopted.map_err(Problem::conflict)?;
    Ok(StatusCode::OK)
}

impl App {
    fn tell(&self, report: Report) -> Result<StatusCode, Problem> {
        let told = self.tell.try_send(Event::Reported(Box::new(report)));
        told.map_err(|_| Problem::unavailable("too many reports wait; say less"))?;
        Ok(StatusCode::OK)
    }
}

/// The time of a report that comes without one.
fn now() -> String {
    format!("{:.3}", jiff::Timestamp::now())
}
