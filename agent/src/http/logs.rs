//! The output of a job, by pages: what is in memory, with where to find the rest.

use axum::extract::{Path, Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{App, Problem, Shared, json};
use crate::child::Source;
use crate::logs::{self, Gap, Line, Page};

const LINES: usize = 1_000;
const LINES_MAX: usize = 5_000;
/// A longer text is in no line that anybody looks for.
const GREP_CHARACTERS_MAX: usize = 256;

#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct LogQuery {
    /// Only lines after this cursor (a number, or attempt.line), or from this time on (RFC 3339).
    #[param(pattern = "^([0-9]{1,15}|[0-9]{1,9}\\.[0-9]{1,9}|\
        [0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])T\
        ([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z)$")]
    since: Option<String>,
    /// Only lines up to this cursor, or before this time.
    #[param(pattern = "^([0-9]{1,15}|[0-9]{1,9}\\.[0-9]{1,9}|\
        [0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])T\
        ([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z)$")]
    until: Option<String>,
    /// Only so many of the newest.
    #[param(maximum = 5000, minimum = 0)]
    tail: Option<usize>,
    #[param(maximum = 5000, minimum = 1)]
    limit: Option<usize>,
    #[param(inline)]
    source: Option<Stream>,
    /// Only lines that contain this text.
    #[param(max_length = 256)]
    grep: Option<String>,
    #[param(inline)]
    format: Option<Form>,
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Stream {
    Stdout,
    Stderr,
    Agent,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Form {
    #[default]
    Json,
    Ndjson,
    Text,
}

/// A line as the API shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LogLine {
    /// The cursor: grows over all attempts.
    pub seq: u64,
    pub ts: String,
    pub attempt: u32,
    pub source: String,
    pub line: String,
    /// Output was lost just before this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gap: Option<LostOutput>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LostOutput {
    pub bytes: u64,
    pub reason: String,
}

/// Some lines, oldest first.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct LogPage {
    pub lines: Vec<LogLine>,
    /// `since` for the next page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<u64>,
    pub has_more: bool,
    /// Lines that are not in memory any more.
    pub gaps: Vec<LogGap>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LogGap {
    /// The cursors between which lines are missing, both not included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<u64>,
    /// Where the store has them.
    pub s3_key: String,
}

impl From<Line> for LogLine {
    fn from(line: Line) -> Self {
        Self {
            seq: line.seq,
            ts: line.time,
            attempt: line.attempt,
            source: line.source.to_string(),
            line: line.line,
            gap: line
                .gap
                .map(|Gap { bytes, reason }| LostOutput { bytes, reason }),
        }
    }
}

/// A cursor: `seq`, or the attempt and the line in it as the stream's events are numbered.
pub(super) fn cursor(text: &str) -> Option<u64> {
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse::<u64>().ok()).flatten()
    };
    match text.split_once('.') {
        None => number(text),
        Some((attempt, line)) => {
            let attempt = u32::try_from(number(attempt)?).ok()?;
            let line = u32::try_from(number(line)?).ok()?;
            Some(logs::first_seq(attempt) + u64::from(line))
        }
    }
}

/// A time as lines have it, so that texts compare as times do.
fn line_time(text: &str) -> Option<String> {
    let time: Timestamp = text.parse().ok()?;
    Some(format!("{time:.3}"))
}

impl LogQuery {
    pub(super) fn read(&self) -> Result<logs::Query, Problem> {
        let mut query = logs::Query {
            limit: self.limit.unwrap_or(LINES),
            tail: self.tail,
            grep: self.grep.clone(),
            ..logs::Query::default()
        };
        let neither = |name: &str, text: &str| {
            Problem::bad_request(format!("{name}: expected a cursor or a time, got {text:?}"))
        };
        if let Some(since) = &self.since {
            query.after = cursor(since);
            if query.after.is_none() {
                query.from_time = Some(line_time(since).ok_or_else(|| neither("since", since))?);
            }
        }
        if let Some(until) = &self.until {
            query.up_to = cursor(until);
            if query.up_to.is_none() {
                query.until_time = Some(line_time(until).ok_or_else(|| neither("until", until))?);
            }
        }
        query.source = self.source.map(|stream| match stream {
            Stream::Stdout => Source::Stdout,
            Stream::Stderr => Source::Stderr,
            Stream::Agent => Source::Agent,
        });
        let grep_fits = query
            .grep
            .as_ref()
            .is_none_or(|grep| grep.chars().count() <= GREP_CHARACTERS_MAX);
        let tail_fits = query.tail.is_none_or(|tail| tail <= LINES_MAX);
        if !(1..=LINES_MAX).contains(&query.limit) || !grep_fits || !tail_fits {
            return Err(Problem::bad_request(format!(
                "expected limit of 1 to {LINES_MAX}, tail <= {LINES_MAX}, \
                 grep of at most {GREP_CHARACTERS_MAX} characters"
            )));
        }
        Ok(query)
    }
}

impl App {
    /// The lines that were missed between a cursor and the first that is still in memory.
    pub(super) fn gap_before(&self, page: &Page, after: Option<u64>) -> Option<LogGap> {
        page.missed.then(|| LogGap {
            from: after,
            to: page.lines.first().map(|line| line.seq),
            s3_key: self.source.job.logs(),
        })
    }
}

/// Lines of output.
#[utoipa::path(
    get, path = "/api/v1/jobs/{id}/logs", operation_id = "getLogs", tag = "job",
    params(("id" = String, Path), LogQuery),
    responses(
        (status = 200, description = "Lines", content(
            (LogPage = "application/json"),
            (String = "application/x-ndjson"),
            (String = "text/plain"),
        )),
        (status = "4XX", description = "Refused", body = Problem,
            content_type = "application/problem+json"),
        (status = "5XX", description = "Failed", body = Problem,
            content_type = "application/problem+json"),
    ),
)]
pub(super) async fn page(
    State(app): Shared,
    Path(id): Path<String>,
    Query(asked): Query<LogQuery>,
) -> Result<Response, Problem> {
    app.check_job(&id)?;
    let query = asked.read()?;
    let form = asked.format.unwrap_or_default();
    let page = app.source.logs.page(&query);
    // Whoever asks for the newest lines misses none of the older.
    let gap = app
        .gap_before(&page, query.after)
        .filter(|_| query.tail.is_none());
    let lines: Vec<LogLine> = page.lines.into_iter().map(LogLine::from).collect();
    let kind = |kind| [(header::CONTENT_TYPE, kind)];
    Ok(match form {
        Form::Text => {
            let text: String = lines
                .iter()
                .flat_map(|line| [line.line.as_str(), "\n"])
                .collect();
            (kind("text/plain; charset=utf-8"), text).into_response()
        }
        Form::Ndjson => {
            let texts = lines.iter().map(|line| {
                let json = serde_json::to_string(line).expect("a line holds texts and numbers");
                json + "\n"
            });
            (kind("application/x-ndjson"), texts.collect::<String>()).into_response()
        }
        Form::Json => json(&LogPage {
            lines,
            next: page.next,
            has_more: page.has_more,
            gaps: gap.into_iter().collect(),
        }),
    })
}
