//! What people ask of a running job: each request becomes one command to the supervisor, or is
//! refused. A request that is repeated under the same `Idempotency-Key` is answered, not obeyed.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::error::TrySendError;
use utoipa::ToSchema;

use super::{App, Problem, Shared};
use crate::orders::{self, KeepAliveBody, LimitsBody, NotRead, StopBody};
use crate::state::{Command, Drill, Event};

/// Answers that are remembered.
const ANSWERS_MAX: usize = 512;
const KEY_BYTES_MAX: usize = 255;

/// Answers that were given, by their keys.
#[derive(Default)]
pub(super) struct Answered(Mutex<VecDeque<Answer>>);

struct Answer {
    key: String,
    route: &'static str,
    body: Bytes,
    status: StatusCode,
    text: String,
}

/// What the caller gets for a command that goes to the supervisor.
#[derive(Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CheckpointAnswer {
    pub accepted: bool,
    /// The step that the run has reached; the checkpoint is of this one or a later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<u64>,
}

/// What the caller gets who asks for the end.
#[derive(Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StopAnswer {
    pub accepted: bool,
    /// The end had begun before.
    pub already_stopping: bool,
    pub phase: String,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub(super) struct Accepted {
    pub accepted: bool,
}

/// What to rehearse.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DrillBody {
    kind: Drill,
}

/// Reads a body. An empty one is an empty object.
pub(super) fn read<T: DeserializeOwned>(headers: &HeaderMap, body: &[u8]) -> Result<T, Problem> {
    // A page of another origin can send text without asking first, but not JSON.
    let kind = headers.get(header::CONTENT_TYPE);
    let is_json = kind
        .and_then(|kind| kind.to_str().ok())
        .is_some_and(|kind| {
            let essence = kind.split(';').next().unwrap_or_default().trim();
            essence.eq_ignore_ascii_case("application/json")
        });
    let nothing = kind.is_none() && body.is_empty();
    if !is_json && !nothing {
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        let detail = "expected Content-Type: application/json";
        return Err(Problem::new(status, "unsupported_media_type", detail));
    }
    orders::read_body(body).map_err(|why| match why {
        NotRead::Invalid(why) => invalid(why),
        NotRead::NotJson(why) => Problem::bad_request(why),
    })
}

pub(super) fn invalid(detail: String) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", detail)
}

impl App {
    fn command(&self, command: Command) -> Result<(), Problem> {
        match self.source.commands.try_send(Event::Command(command)) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(_)) => {
                Err(Problem::unavailable("too many commands wait; ask again"))
            }
            Err(TrySendError::Closed(_)) => Err(Problem::conflict("the agent has ended")),
        }
    }

    /// Obeys once for each key.
    fn once(
        &self,
        route: &'static str,
        headers: &HeaderMap,
        body: &Bytes,
        obey: impl FnOnce() -> Result<(StatusCode, String), Problem>,
    ) -> Result<Response, Problem> {
        let key = headers.get("idempotency-key").filter(|key| !key.is_empty());
        let Some(key) = key.map(|key| String::from_utf8_lossy(key.as_bytes()).into_owned()) else {
            let (status, text) = obey()?;
            return Ok(answer(status, text));
        };
        if key.len() > KEY_BYTES_MAX {
            let detail = format!("Idempotency-Key: expected at most {KEY_BYTES_MAX} bytes");
            return Err(Problem::bad_request(detail));
        }
        // Held while the command is handed over, which never waits: of two at once, one obeys.
        let mut answers = self
            .answered
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = answers.iter().find(|old| old.key == key) {
            if old.route != route || old.body != *body {
                return Err(Problem::conflict(
                    "this Idempotency-Key was used for another request",
                ));
            }
            return Ok(answer(old.status, old.text.clone()));
        }
        let (status, text) = obey()?;
        if answers.len() == ANSWERS_MAX {
            answers.pop_front();
        }
        answers.push_back(Answer {
            key,
            route,
            body: body.clone(),
            status,
            text: text.clone(),
        });
        Ok(answer(status, text))
    }

    /// Refuses once nothing more can be asked of the job.
    fn check_alive(&self) -> Result<(), Problem> {
        let shown = self.source.view.now();
        if shown.over || matches!(shown.status.status.as_str(), "completed" | "failed") {
            return Err(Problem::conflict(format!(
                "the job is {}",
                shown.status.phase
            )));
        }
        Ok(())
    }
}

fn answer(status: StatusCode, text: String) -> Response {
    let kind = HeaderValue::from_static("application/json");
    (status, [(header::CONTENT_TYPE, kind)], text).into_response()
}

fn text(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("answers hold words and numbers")
}

fn accepted() -> (StatusCode, String) {
    (StatusCode::ACCEPTED, text(&Accepted { accepted: true }))
}

/// Save a checkpoint now and publish it; training goes on.
#[utoipa::path(
    post, path = "/api/v1/jobs/{id}/checkpoint", operation_id = "postCheckpoint", tag = "control",
    params(("id" = String, Path), ("Idempotency-Key" = Option<String>, Header, max_length = 255)),
    responses(
        (status = 202, description = "The trainer is asked to save", body = CheckpointAnswer),
        (status = "4XX", description = "Refused", body = Problem,
            content_type = "application/problem+json"),
        (status = "5XX", description = "Failed", body = Problem,
            content_type = "application/problem+json"),
    ),
)]
pub(super) async fn checkpoint(
    State(app): Shared,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    app.check_job(&id)?;
    app.once("checkpoint", &headers, &body, || {
        app.check_alive()?;
        let shown = app.source.view.now();
        let training = ["training", "evaluating", "checkpointing"];
        if !training.contains(&shown.status.phase.as_str()) {
            let detail = format!("nothing to save while the job is {}", shown.status.phase);
            return Err(Problem::conflict(detail));
        }
        if !shown.can_save {
            let detail = "this trainer is not known to save when it is asked to";
            return Err(Problem::conflict(detail));
        }
        app.command(Command::Save)?;
        let step = shown.status.progress.step;
        Ok((
            StatusCode::ACCEPTED,
            text(&CheckpointAnswer {
                accepted: true,
                step,
            }),
        ))
    })
}

/// End the job's run here.
#[utoipa::path(
    post, path = "/api/v1/jobs/{id}/stop", operation_id = "postStop", tag = "control",
    params(("id" = String, Path), ("Idempotency-Key" = Option<String>, Header, max_length = 255)),
    request_body = StopBody,
    responses(
        (status = 200, description = "The end had begun before", body = StopAnswer),
        (status = 202, description = "The end begins", body = StopAnswer),
        (status = "4XX", description = "Refused", body = Problem,
            content_type = "application/problem+json"),
        (status = "5XX", description = "Failed", body = Problem,
            content_type = "application/problem+json"),
    ),
)]
pub(super) async fn stop(
    State(app): Shared,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    app.check_job(&id)?;
    app.once("stop", &headers, &body, || {
        let order = read::<StopBody>(&headers, &body)?.order();
        let order = order.map_err(invalid)?;
        app.check_alive()?;
        let shown = app.source.view.now();
        app.command(Command::Stop(order))?;
        let status = if shown.ending {
            StatusCode::OK
        } else {
            StatusCode::ACCEPTED
        };
        let answer = StopAnswer {
            accepted: true,
            already_stopping: shown.ending,
            phase: shown.status.phase.clone(),
        };
        Ok((status, text(&answer)))
    })
}

/// The dead-man's switch: whoever asks once must go on asking.
#[utoipa::path(
    post, path = "/api/v1/jobs/{id}/keepalive", operation_id = "postKeepalive", tag = "control",
    params(("id" = String, Path), ("Idempotency-Key" = Option<String>, Header, max_length = 255)),
    request_body = KeepAliveBody,
    responses(
        (status = 202, description = "Heard", body = Accepted),
        (status = "4XX", description = "Refused", body = Problem,
            content_type = "application/problem+json"),
        (status = "5XX", description = "Failed", body = Problem,
            content_type = "application/problem+json"),
    ),
)]
pub(super) async fn keepalive(
    State(app): Shared,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    app.check_job(&id)?;
    app.once("keepalive", &headers, &body, || {
        let ttl = read::<KeepAliveBody>(&headers, &body)?.ttl();
        let ttl = ttl.map_err(invalid)?;
        app.check_alive()?;
        app.command(Command::KeepAlive(ttl))?;
        Ok(accepted())
    })
}

/// Rehearse something that goes wrong.
#[utoipa::path(
    post, path = "/api/v1/jobs/{id}/drill", operation_id = "postDrill", tag = "control",
    params(("id" = String, Path), ("Idempotency-Key" = Option<String>, Header, max_length = 255)),
    request_body = DrillBody,
    responses(
        (status = 202, description = "It begins", body = Accepted),
        (status = "4XX", description = "Refused", body = Problem,
            content_type = "application/problem+json"),
        (status = "5XX", description = "Failed", body = Problem,
            content_type = "application/problem+json"),
    ),
)]
pub(super) async fn drill(
    State(app): Shared,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    app.check_job(&id)?;
    app.once("drill", &headers, &body, || {
        let DrillBody { kind: drill } = read(&headers, &body)?;
        app.check_alive()?;
        app.command(Command::Drill(drill))?;
        Ok(accepted())
    })
}

/// Change limits while the job runs. One that is used up already ends it.
#[utoipa::path(
    patch, path = "/api/v1/jobs/{id}/limits", operation_id = "patchLimits", tag = "control",
    params(("id" = String, Path), ("Idempotency-Key" = Option<String>, Header, max_length = 255)),
    request_body = LimitsBody,
    responses(
        (status = 202, description = "Handed on", body = Accepted),
        (status = "4XX", description = "Refused", body = Problem,
            content_type = "application/problem+json"),
        (status = "5XX", description = "Failed", body = Problem,
            content_type = "application/problem+json"),
    ),
)]
pub(super) async fn limits(
    State(app): Shared,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    app.check_job(&id)?;
    app.once("limits", &headers, &body, || {
        let change = read::<LimitsBody>(&headers, &body)?.change();
        let change = change.map_err(invalid)?;
        app.check_alive()?;
        app.command(Command::Limits(change))?;
        Ok(accepted())
    })
}
