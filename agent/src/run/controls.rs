//! Commands that people leave in the store, in the order of their keys. Called by the loop's beats.

#[cfg(test)]
mod tests;

use std::time::Duration;

use serde_json::Value;

use crate::job::Job;
use crate::state::{Change, Command, Drill, LimitsChange, StopOrder};
use crate::storage::{Storage, StorageError};

/// Commands read at once; the rest at the next beat.
const CONTROLS_MAX: usize = 16;
const LISTED_MAX: usize = 100_000;

/// The last key below a prefix.
pub(super) async fn last_key(
    store: &dyn Storage,
    prefix: &str,
) -> Result<Option<String>, StorageError> {
    let listed = store.list(prefix, None, LISTED_MAX).await?;
    Ok(listed.into_iter().next_back().map(|entry| entry.key))
}

/// Commands with their numbers, and the key of the last.
type Read = (Vec<(String, Command)>, String);

/// The commands that came after the last that was seen.
pub(super) async fn read_controls(
    store: &dyn Storage,
    job: &Job,
    after: Option<&str>,
) -> Result<Option<Read>, StorageError> {
    let prefix = job.controls();
    let listed = store.list(&prefix, after, CONTROLS_MAX).await?;
    let mut commands = Vec::new();
    let mut last = None;
    for entry in listed {
        let body = store.get(&entry.key).await?;
        let name = entry.key.strip_prefix(&prefix).unwrap_or(&entry.key);
        let id = name.strip_suffix(".json").unwrap_or(name).to_owned();
        commands.push((id, parse_command(&body.bytes)));
        last = Some(entry.key);
    }
    Ok(last.map(|last| (commands, last)))
}

/// A command as an object of `control/`:
///
/// - `{"kind": "stop", "mode": "graceful" | "now", "checkpoint": true, "grace_seconds": 90,
///   "terminate_instance": true}`, all but the kind optional;
/// - `{"kind": "checkpoint"}`, `{"kind": "yield"}`;
/// - `{"kind": "limits", "max_wall_seconds": 7200, "idle_seconds": "off", "stall_seconds": …,
///   "budget_usd": 2.5}`, what is left out stays;
/// - `{"kind": "keepalive", "ttl_seconds": 900}`;
/// - `{"kind": "drill", "drill": "preempt"}`.
fn parse_command(bytes: &[u8]) -> Command {
    let Ok(body) = serde_json::from_slice::<Value>(bytes) else {
        return Command::Unknown("something unreadable".to_owned());
    };
    let parsed = match word(&body, "kind") {
        Some("stop") => stop(&body).map(Command::Stop),
        Some("checkpoint") => Ok(Command::Save),
        Some("yield") => Ok(Command::Yield),
        Some("limits") => limits(&body).map(Command::Limits),
        Some("keepalive") => match seconds(&body, "ttl_seconds") {
            Ok(Some(ttl)) => Ok(Command::KeepAlive(ttl)),
            Ok(None) => Err("keepalive: expected ttl_seconds".to_owned()),
            Err(why) => Err(why),
        },
        Some("drill") => {
            let name = word(&body, "drill").unwrap_or_default();
            let known = Drill::ALL.into_iter().find(|drill| drill.name() == name);
            known
                .map(Command::Drill)
                .ok_or_else(|| format!("{name:?} is no drill"))
        }
        Some("credentials") => Err(
            "credentials are not taken from the store that they open; give the agent a role, or \
             a file that its AWS_SHARED_CREDENTIALS_FILE names"
                .to_owned(),
        ),
        kind => Err(format!("{:?} is not known", kind.unwrap_or_default())),
    };
    parsed.unwrap_or_else(Command::Unknown)
}

fn word<'a>(body: &'a Value, key: &str) -> Option<&'a str> {
    body.get(key).and_then(Value::as_str)
}

fn stop(body: &Value) -> Result<StopOrder, String> {
    let flag = |key: &str| match body.get(key) {
        None => Ok(None),
        Some(Value::Bool(flag)) => Ok(Some(*flag)),
        Some(other) => Err(format!("{key}: expected true or false, got {other}")),
    };
    let now = match word(body, "mode") {
        None | Some("graceful") => false,
        Some("now") => true,
        Some(mode) => return Err(format!("mode: expected graceful or now, got {mode:?}")),
    };
    Ok(StopOrder {
        now,
        checkpoint: flag("checkpoint")?.unwrap_or(!now),
        grace: seconds(body, "grace_seconds")?,
        power_off: flag("terminate_instance")?,
    })
}

fn limits(body: &Value) -> Result<LimitsChange, String> {
    let time = |key: &str| change(body, key, |value| duration(key, value));
    Ok(LimitsChange {
        wall: time("max_wall_seconds")?,
        idle: time("idle_seconds")?,
        stall: time("stall_seconds")?,
        budget_usd: change(body, "budget_usd", |value| number("budget_usd", value))?,
    })
}

fn change<T>(
    body: &Value,
    key: &str,
    read: impl Fn(&Value) -> Result<T, String>,
) -> Result<Option<Change<T>>, String> {
    match body.get(key) {
        None => Ok(None),
        Some(Value::String(off)) if off == "off" => Ok(Some(Change::Off)),
        Some(value) => read(value).map(Change::To).map(Some),
    }
}

fn seconds(body: &Value, key: &str) -> Result<Option<Duration>, String> {
    body.get(key).map(|value| duration(key, value)).transpose()
}

fn duration(key: &str, value: &Value) -> Result<Duration, String> {
    let seconds = number(key, value)?;
    Duration::try_from_secs_f64(seconds).map_err(|error| format!("{key}: {error}"))
}

fn number(key: &str, value: &Value) -> Result<f64, String> {
    let number = value.as_f64().filter(|number| *number >= 0.0);
    number.ok_or_else(|| format!("{key}: expected a number of 0 or more, got {value}"))
}
