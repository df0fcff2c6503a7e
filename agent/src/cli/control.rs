//! `agent drill`, `agent limits` and `agent yield`: commands to a live job, left in its store for
//! the holder to find at its next beat.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::{Place, duration};
use crate::error::{Error, ExitStatus};
use crate::job::Job;
use crate::state::Drill as Kind;
use crate::storage::open::open;
use crate::storage::{Created, Storage};

/// How often a number is tried that somebody else took first.
const TRIES: usize = 8;
const LISTED_MAX: usize = 100_000;

#[derive(Debug, clap::Args)]
pub(super) struct Drill {
    /// preempt, stall, s3-outage, clock-jump or disk-full.
    #[arg(value_parser = kind)]
    kind: Kind,
    #[command(flatten)]
    place: Place,
}

/// New limits; what is not named stays as it is, `off` takes a limit away.
#[derive(Debug, clap::Args)]
pub(super) struct Limits {
    #[command(flatten)]
    place: Place,
    /// From the container's start to the moment that the machine is off.
    #[arg(long, value_parser = seconds)]
    max_wall: Option<Value>,
    /// With nothing to do.
    #[arg(long, value_parser = seconds)]
    idle: Option<Value>,
    /// A trainer that trains and reports nothing for so long is restarted.
    #[arg(long, value_parser = seconds)]
    stall: Option<Value>,
    /// Dollars that the job may cost, all its machines together.
    #[arg(long, value_parser = dollars)]
    budget: Option<Value>,
}

fn kind(text: &str) -> Result<Kind, String> {
    let known = Kind::ALL.into_iter().find(|kind| kind.name() == text);
    known.ok_or_else(|| {
        let names = Kind::ALL.map(Kind::name).join(", ");
        format!("expected one of {names}, got {text:?}")
    })
}

fn seconds(text: &str) -> Result<Value, String> {
    if text == "off" {
        return Ok(json!("off"));
    }
    duration(text).map(|time: Duration| json!(time.as_secs_f64()))
}

fn dollars(text: &str) -> Result<Value, String> {
    if text == "off" {
        return Ok(json!("off"));
    }
    let number = text.parse::<f64>().ok().filter(|usd| usd.is_finite());
    number
        .map(|usd| json!(usd))
        .ok_or_else(|| format!("expected dollars or off, got {text:?}"))
}

impl Drill {
    pub(super) async fn post(self, print: &mut dyn FnMut(&str)) -> Result<ExitStatus, Error> {
        let body = json!({"kind": "drill", "drill": self.kind.name()});
        post(&self.place, &body, print).await
    }
}

impl Limits {
    pub(super) async fn post(self, print: &mut dyn FnMut(&str)) -> Result<ExitStatus, Error> {
        let mut body = Map::new();
        body.insert("kind".to_owned(), json!("limits"));
        let given = [
            ("max_wall_seconds", self.max_wall),
            ("idle_seconds", self.idle),
            ("stall_seconds", self.stall),
            ("budget_usd", self.budget),
        ];
        let given = given
            .into_iter()
            .filter_map(|(key, value)| Some((key, value?)));
        body.extend(given.map(|(key, value)| (key.to_owned(), value)));
        if body.len() == 1 {
            let what = "expected a limit, got none\nhint: --max-wall, --idle, --stall or --budget";
            return Err(Error::Usage(what.to_owned()));
        }
        post(&self.place, &Value::Object(body), print).await
    }
}

pub(super) async fn leave(place: &Place, print: &mut dyn FnMut(&str)) -> Result<ExitStatus, Error> {
    post(place, &json!({"kind": "yield"}), print).await
}

/// Leaves a command behind all others.
async fn post(
    place: &Place,
    body: &Value,
    print: &mut dyn FnMut(&str),
) -> Result<ExitStatus, Error> {
    let job = Job::new(&place.job).map_err(|error| Error::Usage(error.to_string()))?;
    let store = open(&place.store).await?;
    let number = create(&*store, &job, body.to_string().into()).await?;
    print(&format!(
        "command {number:08} is left for the holder of {}",
        job.id()
    ));
    Ok(ExitStatus::Completed)
}

async fn create(store: &dyn Storage, job: &Job, body: Bytes) -> Result<u64, Error> {
    let listed = store.list(&job.controls(), None, LISTED_MAX).await?;
    let numbers = listed
        .iter()
        .filter_map(|entry| job.parse_control(&entry.key));
    let mut number = numbers.max().unwrap_or(0) + 1;
    for _ in 0..TRIES {
        match store.create(&job.control(number), body.clone()).await? {
            Created::New(_) => return Ok(number),
            Created::Exists => number += 1,
        }
    }
    let what = format!("others take every number of {}", job.controls());
    Err(Error::Bad(what))
}
