//! The live stream of a job as server-sent events: output, progress, changes, checkpoints, the end.
//! A reader that falls behind reads on from its cursor; nothing is kept for it.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use utoipa::IntoParams;

use super::logs::{LogLine, cursor};
use super::{App, Problem, Shared};
use crate::board::Shown;
use crate::logs;

/// Below the patience of proxies.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// Progress is told this often at most.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);
/// Pieces of the log that are kept for other readers: several that are up to date want the same.
const PIECES: usize = 4;
/// Lines that are read at once.
const LINES: usize = 2048;
const LAST_READS_MAX: usize = 256;
/// Lines of the past that a reader gets who has no cursor.
const TAIL: usize = 50;

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct StreamQuery {
    /// A cursor to go on from, where no `Last-Event-ID` is sent.
    #[param(pattern = "^([0-9]{1,15}|[0-9]{1,9}\\.[0-9]{1,9})$")]
    since: Option<String>,
}

/// One reader.
struct Reader {
    app: Arc<App>,
    after: Option<u64>,
    newest: watch::Receiver<u64>,
    shown: watch::Receiver<Arc<Shown>>,
    /// Events as they will be sent, one after the other.
    waiting: Vec<u8>,
    said: Said,
    beat_at: Instant,
    progress_at: Instant,
    over: bool,
}

/// What the reader knows.
#[derive(Default)]
struct Said {
    state: Option<(String, String)>,
    checkpoint: Option<u64>,
    progress: Option<String>,
}

/// Output and changes as they come: `log`, `progress`, `status`, `checkpoint`, `gap`, `end`.
#[utoipa::path(
    get, path = "/api/v1/jobs/{id}/logs/stream", operation_id = "getStream", tag = "job",
    params(
        ("id" = String, Path), StreamQuery,
        ("Last-Event-ID" = Option<String>, Header, description = "The last cursor that was seen"),
    ),
    responses(
        (status = 200, description = "The stream", body = String,
            content_type = "text/event-stream"),
        (status = "4XX", description = "Refused", body = Problem,
            content_type = "application/problem+json"),
        (status = "5XX", description = "Failed", body = Problem,
            content_type = "application/problem+json"),
    ),
)]
pub(super) async fn stream(
    State(app): Shared,
    Path(id): Path<String>,
    Query(query): Query<StreamQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    app.check_job(&id)?;
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok());
    let since = last.filter(|id| !id.is_empty()).or(query.since.as_deref());
    let after = match since {
        Some(text) => Some(cursor(text).ok_or_else(|| {
            Problem::bad_request(format!("expected a cursor to go on from, got {text:?}"))
        })?),
        None => {
            // The newest few lines, so that a page is not empty.
            let tail = app.source.logs.tail(TAIL + 1);
            tail.first()
                .filter(|_| tail.len() > TAIL)
                .map(|line| line.seq)
        }
    };
    let mut newest = app.source.logs.newest();
    let mut shown = app.source.view.shown.clone();
    newest.mark_changed();
    shown.mark_changed();
    let reader = Reader {
        app,
        after,
        newest,
        shown,
        waiting: b"retry: 3000\n\n".to_vec(),
        said: Said::default(),
        beat_at: Instant::now() + HEARTBEAT,
        progress_at: Instant::now(),
        over: false,
    };
    let events = futures_util::stream::unfold(reader, |mut reader| async move {
        let event = reader.next().await?;
        Some((Ok::<_, Infallible>(event), reader))
    });
    let mut response = Response::new(Body::from_stream(events));
    let kind = HeaderValue::from_static("text/event-stream");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    // Proxies are not to collect it.
    let name = header::HeaderName::from_static("x-accel-buffering");
    response
        .headers_mut()
        .insert(name, HeaderValue::from_static("no"));
    Ok(response)
}

/// Adds an event as it is sent. JSON in one line has no line ends of its own.
fn add(waiting: &mut Vec<u8>, name: &str, id: Option<u64>, data: &impl Serialize) {
    writeln!(waiting, "event: {name}").expect("memory grows");
    if let Some(seq) = id {
        writeln!(waiting, "id: {}.{}", seq >> 32, seq & 0xffff_ffff).expect("memory grows");
    }
    waiting.extend_from_slice(b"data: ");
    serde_json::to_writer(&mut *waiting, data).expect("events hold texts and numbers");
    waiting.extend_from_slice(b"\n\n");
}

/// Lines as they are sent to whoever has read up to `after`.
struct Piece {
    after: Option<u64>,
    next: Option<u64>,
    has_more: bool,
    events: Vec<u8>,
}

/// The newest pieces.
#[derive(Default)]
pub(super) struct Pieces(Mutex<VecDeque<Arc<Piece>>>);

impl App {
    /// What follows this cursor, made once for all who ask for it. Held while it is made: others
    /// wait for it instead of making it, too.
    fn piece_after(&self, after: Option<u64>) -> Arc<Piece> {
        let mut pieces = self.pieces.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(piece) = pieces.iter().find(|piece| piece.after == after) {
            return Arc::clone(piece);
        }
        let query = logs::Query {
            after,
            limit: LINES,
            ..logs::Query::default()
        };
        let page = self.source.logs.page(&query);
        let mut events = Vec::new();
        // A reader that began with the newest lines has missed nothing.
        if after.is_some()
            && let Some(gap) = self.gap_before(&page, after)
        {
            add(&mut events, "gap", None, &gap);
        }
        for line in page.lines {
            let seq = line.seq;
            add(&mut events, "log", Some(seq), &LogLine::from(line));
        }
        let piece = Arc::new(Piece {
            after,
            next: page.next,
            has_more: page.has_more,
            events,
        });
        // What is empty now may not be in a moment.
        if !piece.events.is_empty() {
            pieces.push_back(Arc::clone(&piece));
            let old = pieces.len().saturating_sub(PIECES);
            pieces.drain(..old);
        }
        piece
    }
}

impl Reader {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if !self.waiting.is_empty() {
                self.beat_at = Instant::now() + HEARTBEAT;
                return Some(Bytes::from(std::mem::take(&mut self.waiting)));
            }
            if self.over {
                return None;
            }
            tokio::select! {
                changed = self.newest.changed() => match changed {
                    Ok(()) => self.read_lines(),
                    Err(_) => self.over = true,
                },
                changed = self.shown.changed() => match changed {
                    Ok(()) => self.read_shown(),
                    Err(_) => self.over = true,
                },
                () = sleep_until(self.beat_at) => {
                    self.waiting.extend_from_slice(b": heartbeat\n\n");
                }
            }
        }
    }

    fn read_lines(&mut self) {
        let piece = self.app.piece_after(self.after);
        // One that others have read may end before the newest line.
        let read = piece.next.map_or(0, |last| last + 1);
        if piece.has_more || (!piece.events.is_empty() && read < *self.newest.borrow()) {
            self.newest.mark_changed();
        }
        self.after = piece.next;
        self.waiting.extend_from_slice(&piece.events);
    }

    fn read_shown(&mut self) {
        let shown = Arc::clone(&self.shown.borrow_and_update());
        let status = &shown.status;
        let state = (status.status.clone(), status.phase.clone());
        if self.said.state.as_ref() != Some(&state) {
            add(&mut self.waiting, "status", None, status);
            self.said.state = Some(state);
        }
        if status.checkpoint.step.is_some() && status.checkpoint.step != self.said.checkpoint {
            add(&mut self.waiting, "checkpoint", None, &status.checkpoint);
            self.said.checkpoint = status.checkpoint.step;
        }
        let now = Instant::now();
        if status.progress.updated_at != self.said.progress
            && (shown.over || now >= self.progress_at)
        {
            add(&mut self.waiting, "progress", None, &status.progress);
            self.said.progress.clone_from(&status.progress.updated_at);
            self.progress_at = now + PROGRESS_EVERY;
        }
        if shown.over {
            // What was printed last, in as many reads as memory holds lines for.
            for _ in 0..LAST_READS_MAX {
                let before = self.after;
                self.read_lines();
                if self.after == before {
                    break;
                }
            }
            let end = json!({
                "status": status.status,
                "reason": status.reason,
                "exit": status.exit,
            });
            add(&mut self.waiting, "end", None, &end);
            self.over = true;
        }
    }
}
