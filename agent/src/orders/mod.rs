//! What may be asked of a running job, as JSON: the bodies of HTTP requests, the objects below
//! `control/` in the store, and what either means. Read by the loop and the HTTP server, written by
//! the command line and by sweeps.

#[cfg(test)]
mod tests;

use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::job::{Job, list_all, to_bytes};
use crate::state::{Change, Command, Drill, LimitsChange, StopOrder};
use crate::storage::{Created, Keys, Storage, StorageError};

/// No limit of a job is longer: ten years.
const SECONDS_MAX: f64 = 315_360_000.0;
const DOLLARS_MAX: f64 = 1e9;
/// Numbers tried for one order; others may take some at the same time.
const NUMBERS_MAX: u64 = 16;

/// One thing that is asked. As an object of `control/` it carries its kind:
///
/// - `{"kind": "stop", "mode": "graceful" | "now", "checkpoint": true, "grace_seconds": 90,
///   "terminate_instance": true}`, all but the kind optional;
/// - `{"kind": "checkpoint"}`, `{"kind": "yield"}`;
/// - `{"kind": "limits", "max_wall_seconds": 7200, "idle_seconds": "off", "stall_seconds": …,
///   "budget_usd": 2.5}`, what is left out stays;
/// - `{"kind": "keepalive", "ttl_seconds": 900}`;
/// - `{"kind": "drill", "drill": "preempt"}`;
/// - `{"kind": "credentials", "access_key_id": "…", "secret_access_key": "…", "session_token": "…",
///   "expires": "2026-01-31T12:00:00Z"}`, temporary keys to the store; the last is optional.
#[derive(Clone, Debug, PartialEq)]
pub enum Order {
    Stop(StopBody),
    Checkpoint,
    Yield,
    Limits(LimitsBody),
    KeepAlive(KeepAliveBody),
    Drill(Drill),
    Credentials(CredentialsBody),
}

/// Temporary keys to the store that the job is in. Whoever can read them there has such keys.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CredentialsBody {
    pub access_key_id: String,
    pub secret_access_key: String,
    /// Keys without one are for ever, and do not belong into a store.
    pub session_token: String,
    /// When they end (RFC 3339); then the agent goes back to its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
}

impl std::fmt::Debug for CredentialsBody {
    /// Without what is secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CredentialsBody").finish_non_exhaustive()
    }
}

/// How to end.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StopBody {
    /// `graceful`: save, publish, leave. `now`: nothing is waited for.
    #[serde(default)]
    pub mode: StopMode,
    /// Whether a last checkpoint is saved and published.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<bool>,
    /// Until when everything must be over.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 315360000)]
    pub grace_seconds: Option<f64>,
    /// Whether the machine is given back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub terminate_instance: Option<bool>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StopMode {
    #[default]
    Graceful,
    Now,
}

/// New limits; what is left out stays as it is, `"off"` takes a limit away.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitsBody {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_wall_seconds: Option<Limit>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_seconds: Option<Limit>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stall_seconds: Option<Limit>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget_usd: Option<Limit>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a number or \"off\"")]
pub enum Limit {
    To(f64),
    Off(Off),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Off {
    Off,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KeepAliveBody {
    /// The job is ended if nobody asks again within this time.
    #[schema(exclusive_minimum = 0, maximum = 315360000)]
    pub ttl_seconds: f64,
}

/// A drill in `control/`, where `kind` says that it is one.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DrillRecord {
    drill: Drill,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

fn seconds(name: &str, value: f64) -> Result<Duration, String> {
    if (0.0..=SECONDS_MAX).contains(&value) {
        return Ok(Duration::from_secs_f64(value));
    }
    Err(format!("{name}: expected 0 to {SECONDS_MAX}, got {value}"))
}

impl StopBody {
    /// # Errors
    /// If a number is out of its range.
    pub fn order(&self) -> Result<StopOrder, String> {
        let mut order = StopOrder::new(self.mode == StopMode::Now);
        order.checkpoint = self.checkpoint.unwrap_or(order.checkpoint);
        let grace = self.grace_seconds.map(|it| seconds("grace_seconds", it));
        order.grace = grace.transpose()?;
        order.power_off = self.terminate_instance;
        Ok(order)
    }
}

impl LimitsBody {
    /// # Errors
    /// If a number is out of its range.
    pub fn change(&self) -> Result<LimitsChange, String> {
        let time = |name: &str, limit: Option<Limit>| {
            let change = limit.map(|limit| match limit {
                Limit::To(value) => seconds(name, value).map(Change::To),
                Limit::Off(Off::Off) => Ok(Change::Off),
            });
            change.transpose()
        };
        let budget_usd = match self.budget_usd {
            None => None,
            Some(Limit::Off(Off::Off)) => Some(Change::Off),
            Some(Limit::To(usd)) if (0.0..=DOLLARS_MAX).contains(&usd) => Some(Change::To(usd)),
            Some(Limit::To(usd)) => {
                let range = format!("expected 0 to {DOLLARS_MAX}");
                return Err(format!("budget_usd: {range}, got {usd}"));
            }
        };
        Ok(LimitsChange {
            wall: time("max_wall_seconds", self.max_wall_seconds)?,
            idle: time("idle_seconds", self.idle_seconds)?,
            stall: time("stall_seconds", self.stall_seconds)?,
            budget_usd,
        })
    }
}

impl KeepAliveBody {
    /// # Errors
    /// If the time is none, or out of its range.
    pub fn ttl(&self) -> Result<Duration, String> {
        let ttl = seconds("ttl_seconds", self.ttl_seconds)?;
        if ttl.is_zero() {
            return Err("ttl_seconds: expected more than 0, got 0".to_owned());
        }
        Ok(ttl)
    }
}

impl CredentialsBody {
    /// # Errors
    /// If one of them is empty, or the time is none.
    pub fn keys(&self) -> Result<Keys, String> {
        let fields = [
            ("access_key_id", &self.access_key_id),
            ("secret_access_key", &self.secret_access_key),
            ("session_token", &self.session_token),
        ];
        if let Some((name, _)) = fields.iter().find(|(_, value)| value.is_empty()) {
            return Err(format!("{name}: expected a value, got none"));
        }
        let expires = self.expires.as_deref().map(|text| {
            let time = text.parse::<Timestamp>();
            time.map_err(|_| {
                format!("expires: expected a time such as 2026-01-31T12:00:00Z, got {text:?}")
            })
        });
        Ok(Keys {
            access_key_id: self.access_key_id.clone(),
            secret_access_key: self.secret_access_key.clone(),
            session_token: self.session_token.clone(),
            expires: expires.transpose()?.map(SystemTime::from),
        })
    }
}

impl Order {
    /// The word for it: the `kind` of its record, and the last word of its path.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Stop(_) => "stop",
            Self::Checkpoint => "checkpoint",
            Self::Yield => "yield",
            Self::Limits(_) => "limits",
            Self::KeepAlive(_) => "keepalive",
            Self::Drill(_) => "drill",
            Self::Credentials(_) => "credentials",
        }
    }

    /// The body of its HTTP request.
    pub fn body(&self) -> Value {
        let body = match self {
            Self::Stop(body) => serde_json::to_value(body),
            Self::Limits(body) => serde_json::to_value(body),
            Self::KeepAlive(body) => serde_json::to_value(body),
            Self::Drill(drill) => Ok(serde_json::json!({"kind": drill})),
            Self::Credentials(body) => serde_json::to_value(body),
            Self::Checkpoint | Self::Yield => Ok(Value::Object(Map::new())),
        };
        body.expect("orders hold words and numbers")
    }

    /// Its record below `control/`.
    pub fn record(&self) -> Value {
        let mut record = match self {
            Self::Drill(drill) => serde_json::json!({"drill": drill}),
            order => order.body(),
        };
        record["kind"] = self.kind().into();
        record
    }

    /// Reads a record of `control/`.
    ///
    /// # Errors
    /// One line on what is wrong with it.
    pub fn read(record: &[u8]) -> Result<Self, String> {
        let Ok(mut fields) = serde_json::from_slice::<Map<String, Value>>(record) else {
            return Err("something unreadable".to_owned());
        };
        let kind = fields.remove("kind");
        let kind = kind.as_ref().and_then(Value::as_str).unwrap_or_default();
        let body = Value::Object(fields);
        match kind {
            "stop" => from(body).map(Self::Stop),
            "checkpoint" => from(body).map(|Nothing {}| Self::Checkpoint),
            "yield" => from(body).map(|Nothing {}| Self::Yield),
            "limits" => from(body).map(Self::Limits),
            "keepalive" => from(body).map(Self::KeepAlive),
            "drill" => from(body).map(|DrillRecord { drill }| Self::Drill(drill)),
            "credentials" => from(body).map(Self::Credentials),
            kind => Err(format!("{kind:?} is not known")),
        }
    }

    /// What it asks of the supervisor.
    ///
    /// # Errors
    /// If a number is out of its range.
    pub fn command(&self) -> Result<Command, String> {
        Ok(match self {
            Self::Stop(body) => Command::Stop(body.order()?),
            Self::Checkpoint => Command::Save,
            Self::Yield => Command::Yield,
            Self::Limits(body) => Command::Limits(body.change()?),
            Self::KeepAlive(body) => Command::KeepAlive(body.ttl()?),
            Self::Drill(drill) => Command::Drill(*drill),
            Self::Credentials(body) => Command::Renew(body.keys()?),
        })
    }
}

/// A value as this type, or one line that names the field that is wrong.
fn from<T: DeserializeOwned>(value: Value) -> Result<T, String> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        match error.path().to_string().as_str() {
            "." => error.inner().to_string(),
            path => format!("{path}: {}", error.inner()),
        }
    })
}

/// The body of a request. An empty one is an empty object.
///
/// # Errors
/// If it is not JSON, or not this type.
pub fn read_body<T: DeserializeOwned>(body: &[u8]) -> Result<T, NotRead> {
    let body = if body.is_empty() { b"{}" } else { body };
    // Serde would take a list of the fields for them.
    if body.trim_ascii_start().starts_with(b"[") {
        return Err(
            match serde_json::from_slice::<serde::de::IgnoredAny>(body) {
                Ok(_) => NotRead::Invalid("expected an object, got a list".to_owned()),
                Err(error) => NotRead::NotJson(format!("not JSON: {error}")),
            },
        );
    }
    // Looked at as it is written, so that a field that is there twice is seen.
    let mut json = serde_json::Deserializer::from_slice(body);
    let read = serde_path_to_error::deserialize(&mut json);
    let read = read.map_err(|error| {
        let inner = error.inner();
        match (inner.is_data(), error.path().to_string().as_str()) {
            (false, _) => NotRead::NotJson(format!("not JSON: {inner}")),
            (true, ".") => NotRead::Invalid(inner.to_string()),
            (true, path) => NotRead::Invalid(format!("{path}: {inner}")),
        }
    })?;
    let ended = json.end().map(|()| read);
    ended.map_err(|error| NotRead::NotJson(format!("not JSON: {error}")))
}

/// Why a body is no order.
#[derive(Debug, PartialEq, Eq)]
pub enum NotRead {
    NotJson(String),
    Invalid(String),
}

/// Leaves an order behind all others, for whoever has the job to find at the next beat. Returns its
/// number.
///
/// # Errors
/// Of the store; transient ones if others take every number.
pub async fn leave(store: &dyn Storage, job: &Job, order: &Order) -> Result<u64, StorageError> {
    let listed = list_all(store, &job.controls()).await?;
    let numbers = listed.iter();
    let numbers = numbers.filter_map(|entry| job.parse_control(&entry.key));
    let first = numbers.max().unwrap_or(0) + 1;
    for number in first..first + NUMBERS_MAX {
        let record = to_bytes(&order.record());
        if let Created::New(_) = store.create(&job.control(number), record).await? {
            return Ok(number);
        }
    }
    let detail = "others take every number";
    let (name, prefix) = (store.name(), job.controls());
    Err(StorageError::transient(
        &name,
        "create below",
        &prefix,
        detail,
    ))
}
