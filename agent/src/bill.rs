//! Money, limits and obeyed commands as the status shows them. Called by the status.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::clock::Moment;
use crate::provider::PriceSource;
use crate::state::{Answer, State};
use crate::supervisor::limits;

#[cfg(test)]
mod tests;

/// What the status says of money, time and commands.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Bill {
    /// Dollars of the whole job so far, all its machines together.
    pub cost_so_far: f64,
    /// Dollars of the whole job if it goes on at the present pace and price.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub estimated_total: Option<f64>,
    /// Left out where nobody knows the price.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<JobCost>,
    pub limits: JobLimits,
    /// The newest commands that came through `control/`, and what became of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control: Option<JobControl>,
}

/// Money, in dollars.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobCost {
    pub currency: String,
    /// Without storage.
    pub price_per_hour: f64,
    pub storage_per_hour: f64,
    /// `provider`, `spec` (the job or a flag) or `table`.
    pub price_source: String,
    /// Of this machine.
    pub compute: f64,
    pub storage: f64,
    /// Of former machines.
    pub former: f64,
    /// Since when this machine costs.
    pub since: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remaining: Option<f64>,
}

/// The limits that are on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobLimits {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_wall_seconds: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_seconds: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stall_seconds: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_deadline: Option<JobDeadline>,
    /// All that have a moment, the next one first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deadlines: Vec<JobDeadline>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobDeadline {
    pub timer: String,
    pub at: String,
    pub in_seconds: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobControl {
    /// The number of the last command that was read.
    pub last: String,
    pub answers: Vec<JobAnswer>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobAnswer {
    pub id: String,
    pub kind: String,
    pub done: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// The bill at this moment, which is this time for people.
pub fn of(state: &State, now: Moment, time: Timestamp) -> Bill {
    let meter = &state.meter;
    let limits = &state.settings.limits;
    let total = meter.total(now);
    let eta = state.progress.eta();
    let cost = meter.price().map(|price| {
        let (compute, storage) = meter.machine(now);
        JobCost {
            currency: "USD".to_owned(),
            price_per_hour: price.per_hour,
            storage_per_hour: price.storage_per_hour,
            price_source: source_word(price.source),
            compute,
            storage,
            former: meter.former(),
            since: rfc3339(time, -(now.since(meter.since()).as_secs() as i64)),
            budget: limits.budget_usd,
            remaining: limits.budget_usd.map(|budget| (budget - total).max(0.0)),
        }
    });
    let seconds = |limit: Option<Duration>| limit.map(|limit| limit.as_secs());
    let deadlines = deadlines(state, now, time);
    Bill {
        cost_so_far: total,
        estimated_total: eta
            .filter(|_| cost.is_some())
            .map(|eta| meter.total_after(now, eta)),
        cost,
        limits: JobLimits {
            max_wall_seconds: seconds(limits.wall),
            idle_seconds: seconds(limits.idle),
            stall_seconds: seconds(limits.stall),
            next_deadline: deadlines.first().cloned(),
            deadlines,
        },
        control: state.answers.last().map(|last| JobControl {
            last: last.id.clone(),
            answers: state.answers.iter().map(answered).collect(),
        }),
    }
}

fn deadlines(state: &State, now: Moment, time: Timestamp) -> Vec<JobDeadline> {
    let mut moments = limits::deadlines(state, now);
    moments.sort_by_key(|&(_, at)| at);
    let shown = moments.into_iter().map(|(timer, at)| {
        let in_seconds = at.since(now).as_secs();
        JobDeadline {
            timer: timer.name().to_owned(),
            at: rfc3339(time, i64::try_from(in_seconds).unwrap_or(i64::MAX)),
            in_seconds,
        }
    });
    shown.collect()
}

fn source_word(source: PriceSource) -> String {
    let word = match source {
        PriceSource::Provider => "provider",
        PriceSource::Job => "spec",
        PriceSource::Table => "table",
    };
    word.to_owned()
}

fn answered(answer: &Answer) -> JobAnswer {
    JobAnswer {
        id: answer.id.clone(),
        kind: answer.kind.clone(),
        done: answer.refused.is_none(),
        refused: answer.refused.clone(),
    }
}

/// A time so many seconds later, or the last one that can be written.
fn rfc3339(time: Timestamp, later_s: i64) -> String {
    let moved = jiff::SignedDuration::from_secs(later_s);
    let moved = time.saturating_add(moved).unwrap_or(Timestamp::MAX);
    moved.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
