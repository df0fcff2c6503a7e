//! `agent reap`: its flags, and its list for people and programs.

use std::time::Duration;

use super::duration;
use crate::clock::BootClock;
use crate::error::{Error, ExitStatus};
use crate::job::JobError;
use crate::reap::{Leftover, Silent, reap};
use crate::storage::open::open;

#[derive(Debug, clap::Args)]
pub(super) struct Reap {
    /// s3://bucket/prefix or a folder.
    #[arg(env = "AGENT_STORE", default_value = "./store")]
    store: String,
    /// Ask the store how old the last sign of life is, and list jobs where it is older than this.
    /// Without it the beats are watched for a little longer than a ttl.
    #[arg(long, value_parser = duration)]
    since: Option<Duration>,
    /// What a machine costs, in dollars an hour, where the job does not tell.
    #[arg(long, env = "AGENT_PRICE")]
    price: Option<f64>,
    #[arg(long)]
    json: bool,
}

impl Reap {
    pub(super) async fn obey(self, print: &mut dyn FnMut(&str)) -> Result<ExitStatus, Error> {
        let store = open(&self.store).await?;
        let silent = self.since.map_or(Silent::Watched, Silent::Since);
        if silent == Silent::Watched && !self.json {
            print(&format!("watching the beats in {}", store.name()));
        }
        let found = reap(&store, &BootClock, silent, self.price).await;
        let found = found.map_err(|error| match error {
            JobError::Storage(error) => Error::Storage(error),
            error => Error::Bad(error.to_string()),
        })?;
        if self.json {
            let json = serde_json::to_string(&found).expect("it holds only strings and numbers");
            print(&json);
            return Ok(ExitStatus::Completed);
        }
        for one in &found {
            print(&line(one));
        }
        let left: f64 = found.iter().filter_map(|one| one.usd_per_hour).sum();
        let text = match found.len() {
            0 => "no job was left behind".to_owned(),
            count if left > 0.0 => format!("{count} left behind, perhaps still ${left:.2} an hour"),
            count => format!("{count} left behind; what their machines cost is not known"),
        };
        print(&text);
        Ok(ExitStatus::Completed)
    }
}

fn line(one: &Leftover) -> String {
    let known = |value: &Option<String>| value.clone().unwrap_or_else(|| "unknown".to_owned());
    let silent = one.silent_s.map_or("unknown time".to_owned(), |age| {
        format!("{:.1} h", age as f64 / 3600.0)
    });
    let cost = match (one.wasted_usd, one.usd_per_hour) {
        (Some(wasted), Some(price)) => {
            format!("${wasted:.2} since then if it still runs, ${price:.2} an hour")
        }
        _ => "price unknown".to_owned(),
    };
    format!(
        "{}: epoch {}, silent for {silent} at step {}, held by {} (provider {}, instance {}, \
         gpu {}); {cost}",
        one.job,
        one.epoch,
        one.step.unwrap_or(0),
        one.holder,
        known(&one.provider),
        known(&one.instance),
        known(&one.gpu),
    )
}
