//! Whether the agent lives, whether it can do its work, who it is, and its metrics.

use std::collections::BTreeMap;

use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{App, Problem, Shared, json};
use crate::metrics::{self, Format, Sources};

/// Less free disk than this is not enough for any checkpoint.
const DISK_FREE_MIN: u64 = 64 << 20;

/// Who answers.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(super) struct Version {
    pub name: String,
    pub version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    pub api: Vec<String>,
    pub schema_version: u32,
}

/// Whether each thing is as it should be.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(super) struct Readiness {
    pub ready: bool,
    /// By name: `ok`, or what is wrong.
    pub checks: BTreeMap<String, String>,
}

const CHECKS: [&str; 6] = ["lease", "trainer", "progress", "store", "disk", "gpu"];

/// The process lives. Nothing else is asked.
#[utoipa::path(
    get, path = "/livez", operation_id = "getLivez", tag = "agent", security(()),
    responses((status = 200, description = "It does", body = String, content_type = "text/plain")),
)]
pub(super) async fn livez() -> &'static str {
    "ok\n"
}

/// Whether the job is worked on: all checks but those that `exclude` names.
#[utoipa::path(
    get, path = "/readyz", operation_id = "getReadyz", tag = "agent", security(()),
    params(
        ("exclude" = Option<String>, Query, description = "A check to leave out; may be repeated"),
        ("verbose" = Option<String>, Query, description = "Tell each check"),
    ),
    responses(
        (status = 200, description = "All is well", content(
            (String = "text/plain"), (Readiness = "application/json"),
        )),
        (status = 503, description = "Something is not", content(
            (String = "text/plain"), (Readiness = "application/json"),
        )),
        (status = "4XX", description = "Refused", body = Problem,
            content_type = "application/problem+json"),
    ),
)]
pub(super) async fn readyz(State(app): Shared, RawQuery(query): RawQuery) -> Response {
    let query = query.unwrap_or_default();
    let mut verbose = false;
    let mut excluded = Vec::new();
    for pair in query.split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        match name {
            "verbose" => verbose = true,
            "exclude" => excluded.push(value),
            _ => {}
        }
    }
    let checks = CHECKS.iter().filter(|name| !excluded.contains(name));
    let checks: BTreeMap<String, String> = checks
        .map(|name| {
            (
                (*name).to_owned(),
                app.check(name).err().unwrap_or_else(|| "ok".to_owned()),
            )
        })
        .collect();
    let ready = checks.values().all(|told| told == "ok");
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    if verbose || !ready {
        let mut response = json(&Readiness { ready, checks });
        *response.status_mut() = status;
        return response;
    }
    (status, "ok\n").into_response()
}

/// One check.
#[utoipa::path(
    get, path = "/readyz/{check}", operation_id = "getReadyCheck", tag = "agent", security(()),
    params(("check" = String, Path, description = "lease, trainer, progress, store, disk or gpu")),
    responses(
        (status = 200, description = "All is well", body = String, content_type = "text/plain"),
        (status = 503, description = "It is not", body = Problem,
            content_type = "application/problem+json"),
        (status = "4XX", description = "Refused", body = Problem,
            content_type = "application/problem+json"),
    ),
)]
pub(super) async fn ready_check(
    State(app): Shared,
    Path(check): Path<String>,
) -> Result<&'static str, Problem> {
    if !CHECKS.contains(&check.as_str()) {
        let known = CHECKS.join(", ");
        return Err(Problem::not_found(format!(
            "no check {check:?}; there are {known}"
        )));
    }
    app.check(&check).map_err(Problem::unavailable)?;
    Ok("ok\n")
}

impl App {
    fn check(&self, name: &str) -> Result<(), String> {
        let shown = self.source.view.now();
        let status = &shown.status;
        if shown.ending {
            return Err(format!("the agent ends: {}", status.phase));
        }
        let running = status.status == "running";
        match name {
            "lease" => match &status.lease {
                Some(lease) if lease.at_risk == Some(true) => {
                    Err("the lease cannot be renewed".to_owned())
                }
                Some(_) => Ok(()),
                None => Err(format!("no lease: {}", status.phase)),
            },
            "trainer" if running => Ok(()),
            "trainer" => Err(format!("the trainer does not train: {}", status.phase)),
            "progress" if status.phase == "stalled" => Err("the trainer makes none".to_owned()),
            "progress" if running => Ok(()),
            "progress" => Err(format!("none yet: {}", status.phase)),
            "store" if status.phase == "probing_store" => Err("not known yet".to_owned()),
            "store" => {
                let at_risk = |lease: &crate::status::JobLease| lease.at_risk == Some(true);
                match status.lease.as_ref().is_some_and(at_risk) {
                    true => Err("no request gets through".to_owned()),
                    false => Ok(()),
                }
            }
            "disk" => match self.machine.look() {
                None => Err("the disk does not answer".to_owned()),
                Some(look) => match look.disk_free_bytes {
                    Some(free) if free < DISK_FREE_MIN => Err(format!("{free} bytes are free")),
                    _ => Ok(()),
                },
            },
            // A machine without one is fine; one whose GPU was lost is not.
            _ => self.source.gpus.trouble().map_or(Ok(()), Err),
        }
    }
}

/// The program and its version.
#[utoipa::path(
    get, path = "/version", operation_id = "getVersion", tag = "agent", security(()),
    responses((status = 200, description = "Who answers", body = Version)),
)]
pub(super) async fn version() -> Response {
    json(&Version {
        name: "anneal-agent".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        commit: option_env!("ANNEAL_COMMIT").map(str::to_owned),
        api: vec!["v1".to_owned()],
        schema_version: crate::status::SCHEMA_VERSION,
    })
}

/// Metrics for Prometheus: text, or OpenMetrics where it is asked for.
#[utoipa::path(
    get, path = "/metrics", operation_id = "getMetrics", tag = "agent",
    responses(
        (status = 200, description = "The metrics", content(
            (String = "text/plain"), (String = "application/openmetrics-text"),
        )),
        (status = "4XX", description = "Refused", body = Problem,
            content_type = "application/problem+json"),
    ),
)]
pub(super) async fn metrics(State(app): Shared, headers: HeaderMap) -> Response {
    let accept = headers
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok());
    let format = Format::wanted(accept.unwrap_or_default());
    let look = app.machine.look().unwrap_or_default();
    let requests = {
        let requests = app.requests.lock();
        requests
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
    };
    let text = metrics::render(
        &Sources {
            shown: &app.source.view.now(),
            logs: app.source.logs.counts(),
            gpus: &app.source.gpus,
            requests: &requests,
            store: &app.source.store_requests.so_far(),
            dcgm_names: app.dcgm_names,
            disk_free_bytes: look.disk_free_bytes,
            memory_bytes: look.memory_bytes,
            oom_kills: look.oom_kills,
        },
        format,
    );
    ([(header::CONTENT_TYPE, format.content_type())], text).into_response()
}
