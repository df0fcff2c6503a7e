//! Commands that people leave in the store, in the order of their keys. Called by the loop's beats.

use crate::job::Job;
use crate::orders::Order;
use crate::state::Command;
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
        let order = Order::read(&body.bytes).and_then(|order| order.command());
        commands.push((id, order.unwrap_or_else(Command::Unknown)));
        last = Some(entry.key);
    }
    Ok(last.map(|last| (commands, last)))
}
