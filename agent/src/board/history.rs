//! The history of a job in this process: every change of its phase with its reason, and what the
//! agent warned of. Append-only; the oldest are forgotten beyond a limit.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::state::Level;
use crate::status::JobStatus;

/// Entries kept.
const ENTRIES_MAX: usize = 2_000;

#[derive(Debug, Default)]
pub struct History {
    entries: VecDeque<Entry>,
    next: u64,
    published: Option<u64>,
}

/// One line of the history.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Entry {
    /// Grows by one.
    pub seq: u64,
    /// Wall-clock time, RFC 3339.
    pub time: String,
    /// `state`: the phase changed. `checkpoint`: one is whole in the store. `message`: the agent
    /// says something.
    pub kind: String,
    pub status: String,
    pub phase: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Of a message: `info`, `warning` or `error`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

impl History {
    pub(super) fn say(&mut self, level: Level, text: &str) {
        let level = match level {
            Level::Info => "info",
            Level::Warning => "warning",
            Level::Error => "error",
        };
        let last = self.entries.back();
        let entry = Entry {
            kind: "message".to_owned(),
            status: last.map_or_else(String::new, |last| last.status.clone()),
            phase: last.map_or_else(String::new, |last| last.phase.clone()),
            level: Some(level.to_owned()),
            message: Some(text.to_owned()),
            ..Entry::empty()
        };
        self.push(entry);
    }

    pub(super) fn see(&mut self, status: &JobStatus) {
        let entry = |kind: &str| Entry {
            kind: kind.to_owned(),
            status: status.status.clone(),
            phase: status.phase.clone(),
            step: status.progress.step,
            reason: status.reason.clone(),
            message: status.message.clone(),
            ..Entry::empty()
        };
        let known = self.entries.iter().rev().find(|old| old.kind == "state");
        let same = known.is_some_and(|old| {
            (&old.phase, &old.status, &old.reason)
                == (&status.phase, &status.status, &status.reason)
        });
        if !same {
            self.push(entry("state"));
        }
        let published = status.checkpoint.step;
        if published.is_some() && published != self.published {
            self.push(Entry {
                step: published,
                ..entry("checkpoint")
            });
        }
        self.published = published;
    }

    fn push(&mut self, mut entry: Entry) {
        entry.seq = self.next;
        self.next += 1;
        if self.entries.len() == ENTRIES_MAX {
            self.entries.pop_front();
        }
        self.entries.push_back(entry);
    }

    /// Entries after this one, oldest first, at most `limit`; and whether there are more.
    pub fn after(&self, since: Option<u64>, limit: usize) -> (Vec<Entry>, bool) {
        let start = since.map_or(0, |since| {
            self.entries.partition_point(|it| it.seq <= since)
        });
        let found: Vec<Entry> = self
            .entries
            .iter()
            .skip(start)
            .take(limit)
            .cloned()
            .collect();
        let more = start + found.len() < self.entries.len();
        (found, more)
    }
}

impl Entry {
    fn empty() -> Self {
        Self {
            seq: 0,
            time: format!("{:.3}", jiff::Timestamp::now()),
            kind: String::new(),
            status: String::new(),
            phase: String::new(),
            step: None,
            reason: None,
            level: None,
            message: None,
        }
    }
}
