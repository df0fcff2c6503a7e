//! Commands that people leave in the store, in the order of their keys. Called by the loop's beats.

use crate::job::Job;
use crate::state::{Command, StopOrder};
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

/// The commands that came after the last that was seen.
pub(super) async fn read_controls(
    store: &dyn Storage,
    job: &Job,
    after: Option<&str>,
) -> Result<Option<(Vec<Command>, String)>, StorageError> {
    let listed = store.list(&job.controls(), after, CONTROLS_MAX).await?;
    let mut commands = Vec::new();
    let mut last = None;
    for entry in listed {
        let body = store.get(&entry.key).await?;
        commands.push(parse_command(&body.bytes));
        last = Some(entry.key);
    }
    Ok(last.map(|last| (commands, last)))
}

/// `{"kind": "stop", "mode": "graceful" | "now"}` or `{"kind": "checkpoint"}`.
fn parse_command(bytes: &[u8]) -> Command {
    let body: serde_json::Value = serde_json::from_slice(bytes).unwrap_or_default();
    let word = |key: &str| body.get(key).and_then(|value| value.as_str());
    match (word("kind"), word("mode")) {
        (Some("stop"), None | Some("graceful")) => Command::Stop(StopOrder::new(false)),
        (Some("stop"), Some("now")) => Command::Stop(StopOrder::new(true)),
        (Some("checkpoint"), _) => Command::Save,
        (kind, _) => Command::Unknown(kind.unwrap_or("something unreadable").to_owned()),
    }
}
