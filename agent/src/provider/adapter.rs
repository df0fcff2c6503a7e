//! What the agent asks of a provider, whoever that is. Called by the limits, the dead-man's switch
//! and `agent provider`.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::api::{Call, Outcome, Presence, Provider, Sight, Way};
use super::call::{ANSWER_MAX, Caller};
use super::host::{Host, Machine};
use super::http::Fault;
use super::kind::speaker;
use super::pace::Pace;
use super::{Environment, Instance, PowerOff, Price, Services};
use crate::redact::Redactor;

/// Variables that may hold a key of a provider's.
const KEYS: [&str; 7] = [
    "CONTAINER_API_KEY",
    "VAST_API_KEY",
    "RUNPOD_API_KEY",
    "LAMBDA_API_KEY",
    "LAMBDA_KEY",
    "JL_API_KEY",
    "PAPERSPACE_API_KEY",
];

/// One machine and how its provider is spoken to.
pub struct Adapter {
    pub(super) instance: Instance,
    pub(super) speaker: Box<dyn Provider>,
    pub(super) caller: Caller,
    pub(super) host: Arc<dyn Host>,
    pub(super) pace: Pace,
    /// Whether the instance is the machine that we run on.
    pub(super) own: bool,
    environment: Environment,
    redactor: Redactor,
}

impl Adapter {
    /// Keys are read from the environment now; nothing is asked yet.
    pub fn new(instance: Instance, services: Services, environment: Environment) -> Self {
        let keys = KEYS.into_iter().filter_map(|name| {
            let key = environment(name)?;
            Some((name.to_owned(), key))
        });
        Self {
            redactor: Redactor::from_variables(keys),
            speaker: speaker(&instance, &services, &environment),
            instance,
            caller: Caller::new(services, ANSWER_MAX),
            host: Arc::new(Machine),
            pace: Pace::default(),
            own: true,
            environment,
        }
    }

    /// The instance is another machine than this one: whatever its provider says, this one is never
    /// ended instead.
    #[must_use]
    pub fn elsewhere(mut self) -> Self {
        self.own = false;
        self
    }

    pub fn instance(&self) -> &Instance {
        &self.instance
    }

    /// What the machine costs, if the provider's API says so; `None` also if it cannot be asked,
    /// for which it is given some seconds.
    pub async fn price(&self) -> Option<Price> {
        let asking = async {
            loop {
                match self.look_or_fault().await {
                    Ok(sight) => return sight.price,
                    Err(Fault::Refused(_)) => return None,
                    // Too soon after another look, as a rule.
                    Err(Fault::Transient(_)) => sleep(self.pace.first * 2).await,
                }
            }
        };
        timeout(self.pace.price, asking).await.ok().flatten()
    }

    /// Where this port of ours can be reached from outside. `AGENT_PUBLIC_URL` says it for
    /// providers where only whoever opened the way knows.
    pub fn public_url(&self, port: u16) -> Option<String> {
        let told = || (self.environment)("AGENT_PUBLIC_URL").filter(|url| !url.is_empty());
        self.speaker.public_url(port).or_else(told)
    }

    /// From a signal to the moment that the provider kills us, if nobody said.
    pub fn default_grace(&self) -> Duration {
        self.speaker.default_grace()
    }

    /// One try. [`PowerOff::None`] is accepted at once and asks nobody.
    pub async fn power_off(&self, how: PowerOff) -> Outcome {
        if how == PowerOff::None {
            return Outcome::Accepted;
        }
        if self.speaker.looks_first() {
            let seen = self.look_or_fault().await;
            match seen {
                Ok(sight) if sight.presence == Presence::Gone => return Outcome::AlreadyGone,
                Err(Fault::Transient(why)) => return self.retry(why),
                Ok(_) | Err(Fault::Refused(_)) => {}
            }
        }
        let calls = match self.speaker.way(how) {
            Way::Exit => return Outcome::Accepted,
            Way::None(why) => return Outcome::Denied(why),
            Way::Calls(calls) => calls,
        };
        let mut outcomes = Vec::new();
        for call in &calls {
            let outcome = self.call(call).await;
            if outcome == Outcome::Accepted {
                return outcome;
            }
            outcomes.push(outcome);
        }
        summary(outcomes)
    }

    /// What [`Self::power_off`] would send, in order, with secrets masked.
    pub fn requests(&self, how: PowerOff) -> Vec<String> {
        let mut lines = Vec::new();
        if how == PowerOff::None {
            return lines;
        }
        if self.speaker.looks_first()
            && let Some(request) = self.speaker.look()
        {
            lines.push(format!("{request} (to find the machine)"));
        }
        match self.speaker.way(how) {
            Way::Exit => {
                lines.push("nothing: the end of the agent's process ends the bill".to_owned());
            }
            Way::None(why) => lines.push(format!("nothing: {why}")),
            Way::Calls(calls) => lines.extend(calls.iter().enumerate().map(|(nth, call)| {
                let or = if nth == 0 { "" } else { "if not accepted: " };
                format!("{or}{}", call.request)
            })),
        }
        lines
            .into_iter()
            .map(|line| self.redactor.redact(&line).into_owned())
            .collect()
    }

    /// What the provider's API shows of the machine now.
    pub(super) async fn look(&self) -> Sight {
        self.look_or_fault().await.unwrap_or_default()
    }

    async fn look_or_fault(&self) -> Result<Sight, Fault> {
        let Some(request) = self.speaker.look() else {
            return Ok(Sight::default());
        };
        let answer = self.caller.send(&request).await?;
        if matches!(answer.status, 408 | 425 | 429 | 500..) {
            return Err(Fault::Transient(format!("{request}: {}", answer.text())));
        }
        Ok(self.speaker.read(&answer))
    }

    pub(super) async fn call(&self, call: &Call) -> Outcome {
        match self.caller.send(&call.request).await {
            Ok(answer) => match (call.judge)(&answer) {
                Outcome::Denied(why) => self.denied(&why),
                Outcome::Retry { after, why } => Outcome::Retry {
                    after,
                    why: self.redactor.redact(&why).into_owned(),
                },
                other => other,
            },
            Err(Fault::Transient(why)) => self.retry(why),
            Err(Fault::Refused(why)) => self.denied(&why),
        }
    }

    fn denied(&self, why: &str) -> Outcome {
        Outcome::Denied(self.redactor.redact(why).into_owned())
    }

    fn retry(&self, why: String) -> Outcome {
        Outcome::Retry {
            after: Duration::ZERO,
            why: self.redactor.redact(&why).into_owned(),
        }
    }
}

/// Several ways were tried and none accepted: gone if one says so, else worth another try if one
/// is.
fn summary(outcomes: Vec<Outcome>) -> Outcome {
    if outcomes.contains(&Outcome::AlreadyGone) {
        return Outcome::AlreadyGone;
    }
    let mut whys = Vec::new();
    let mut again: Option<Duration> = None;
    for outcome in outcomes {
        match outcome {
            Outcome::Retry { after, why } => {
                again = Some(again.map_or(after, |longest| longest.max(after)));
                whys.push(why);
            }
            Outcome::Denied(why) => whys.push(why),
            Outcome::Accepted | Outcome::AlreadyGone => {}
        }
    }
    let why = whys.join("; ");
    match again {
        Some(after) => Outcome::Retry { after, why },
        None => Outcome::Denied(why),
    }
}
