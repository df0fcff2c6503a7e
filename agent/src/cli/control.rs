//! `agent stop`, `checkpoint`, `drill`, `limits` and `yield`: orders to a live job, over HTTP or
//! left in its store for the holder to find at its next beat.

use super::duration;
use super::target::{Target, TargetArgs};
use crate::error::{Error, ExitStatus};
use crate::orders::{CredentialsBody, Limit, LimitsBody, Off, Order, StopBody, StopMode};
use crate::state::Drill as Kind;

#[derive(Debug, clap::Args)]
pub(super) struct Stop {
    #[command(flatten)]
    target: TargetArgs,
    /// Wait for nothing, not even a last checkpoint.
    #[arg(long)]
    now: bool,
    /// The answer as JSON.
    #[arg(long)]
    json: bool,
}

/// An order that is its name.
#[derive(Debug, clap::Args)]
pub(super) struct Plain {
    #[command(flatten)]
    target: TargetArgs,
    /// The answer as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Drill {
    /// preempt, stall, s3-outage, clock-jump or disk-full.
    kind: Kind,
    #[command(flatten)]
    target: TargetArgs,
    /// The answer as JSON.
    #[arg(long)]
    json: bool,
}

/// New limits; what is not named stays as it is, `off` takes a limit away.
#[derive(Debug, clap::Args)]
pub(super) struct Limits {
    #[command(flatten)]
    target: TargetArgs,
    /// From the container's start to the moment that the machine is off.
    #[arg(long, value_parser = seconds)]
    max_wall: Option<Limit>,
    /// With nothing to do.
    #[arg(long, value_parser = seconds)]
    idle: Option<Limit>,
    /// A trainer that trains and reports nothing for so long is restarted.
    #[arg(long, value_parser = seconds)]
    stall: Option<Limit>,
    /// Dollars that the job may cost, all its machines together.
    #[arg(long, value_parser = dollars)]
    budget: Option<Limit>,
    /// The answer as JSON.
    #[arg(long)]
    json: bool,
}

/// Keys come from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN and, if it is there,
/// AWS_CREDENTIAL_EXPIRATION, as `aws configure export-credentials --format env` writes them. They
/// go through the store only: whoever can read them there has such keys already.
#[derive(Debug, clap::Args)]
pub(super) struct Credentials {
    #[command(flatten)]
    target: TargetArgs,
    /// The answer as JSON.
    #[arg(long)]
    json: bool,
}

fn seconds(text: &str) -> Result<Limit, String> {
    if text == "off" {
        return Ok(Limit::Off(Off::Off));
    }
    duration(text).map(|time| Limit::To(time.as_secs_f64()))
}

fn dollars(text: &str) -> Result<Limit, String> {
    if text == "off" {
        return Ok(Limit::Off(Off::Off));
    }
    let number = text.parse::<f64>().ok().filter(|usd| usd.is_finite());
    let limit = number.map(Limit::To);
    limit.ok_or_else(|| format!("expected dollars or off, got {text:?}"))
}

impl Drill {
    pub(super) async fn give(self, print: &mut dyn FnMut(&str)) -> Result<ExitStatus, Error> {
        give(&self.target, &Order::Drill(self.kind), self.json, print).await
    }
}

impl Limits {
    pub(super) async fn give(self, print: &mut dyn FnMut(&str)) -> Result<ExitStatus, Error> {
        let body = LimitsBody {
            max_wall_seconds: self.max_wall,
            idle_seconds: self.idle,
            stall_seconds: self.stall,
            budget_usd: self.budget,
        };
        if body == LimitsBody::default() {
            let what = "expected a limit, got none\nhint: --max-wall, --idle, --stall or --budget";
            return Err(Error::Usage(what.to_owned()));
        }
        give(&self.target, &Order::Limits(body), self.json, print).await
    }
}

impl Credentials {
    pub(super) async fn give(self, print: &mut dyn FnMut(&str)) -> Result<ExitStatus, Error> {
        let said = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let needed = |name: &str| {
            said(name).ok_or_else(|| {
                let what = format!("{name}: expected temporary keys in the environment, got none");
                Error::Usage(format!(
                    "{what}\nhint: aws sts get-session-token, or assume-role"
                ))
            })
        };
        let body = CredentialsBody {
            access_key_id: needed("AWS_ACCESS_KEY_ID")?,
            secret_access_key: needed("AWS_SECRET_ACCESS_KEY")?,
            session_token: needed("AWS_SESSION_TOKEN")?,
            expires: said("AWS_CREDENTIAL_EXPIRATION"),
        };
        give(&self.target, &Order::Credentials(body), self.json, print).await
    }
}

impl Stop {
    pub(super) async fn give(self, print: &mut dyn FnMut(&str)) -> Result<ExitStatus, Error> {
        let mode = if self.now {
            StopMode::Now
        } else {
            StopMode::Graceful
        };
        let body = StopBody {
            mode,
            ..StopBody::default()
        };
        give(&self.target, &Order::Stop(body), self.json, print).await
    }
}

impl Plain {
    pub(super) async fn give(
        self,
        order: Order,
        print: &mut dyn FnMut(&str),
    ) -> Result<ExitStatus, Error> {
        give(&self.target, &order, self.json, print).await
    }
}

/// Gives an order at once over HTTP, or leaves it in the store for the agent's next beat.
async fn give(
    target: &TargetArgs,
    order: &Order,
    json: bool,
    print: &mut dyn FnMut(&str),
) -> Result<ExitStatus, Error> {
    if let Err(why) = order.command() {
        return Err(Error::Usage(why));
    }
    let target = target.open().await?;
    let answer = target.order(order).await?;
    let kind = order.kind();
    match (&target, json) {
        (_, true) => print(&answer.to_string()),
        (Target::Agent { .. }, false) => print(&format!("{kind}: the agent has heard it")),
        (Target::Store { job, .. }, false) => {
            let id = job.id();
            print(&format!(
                "{kind}: left for the holder of {id}, who sees it at the next beat"
            ));
        }
    }
    Ok(ExitStatus::Completed)
}
