//! EC2: whole machines. Ended by its API with whatever credentials allow it, or by the machine's
//! own shutdown where that was set to terminate.

use std::time::Duration;

use reqwest::Method;

use super::api::{Call, GRACE, Outcome, Presence, Provider, Sight, Way, judge, retry};
use super::call::{Auth, Request};
use super::http::Answer;
use super::sign::AwsIdentity;
use super::{Instance, PowerOff, Services};

const VERSION: &str = "2016-11-15";

pub(super) struct Aws {
    id: Option<String>,
    region: Option<String>,
    /// Instead of EC2 of the region.
    told: Option<String>,
}

impl Aws {
    pub(super) fn new(instance: &Instance, services: &Services) -> Self {
        Self {
            id: instance.id.clone(),
            region: instance.region.clone(),
            told: services.aws_ec2.clone(),
        }
    }

    /// A request of EC2's query API; `rest` follows the action.
    fn request(&self, action: &str, rest: &str, identity: AwsIdentity) -> Result<Request, String> {
        let region = self.region.as_ref().ok_or("the region is not known")?;
        let domain = if region.starts_with("cn-") {
            "amazonaws.com.cn"
        } else {
            "amazonaws.com"
        };
        let url = match &self.told {
            Some(url) => format!("{url}/"),
            None => format!("https://ec2.{region}.{domain}/"),
        };
        let auth = Auth::Aws {
            region: region.clone(),
            identity,
        };
        let body = format!("Action={action}{rest}&Version={VERSION}");
        Ok(Request::new(Method::POST, url, auth).form(body))
    }

    fn calls(&self, action: &str) -> Result<Vec<Call>, String> {
        let id = self.id.as_ref().ok_or("the instance's id is not known")?;
        let rest = format!("&InstanceId.1={id}");
        let call = |identity| {
            let request = self.request(action, &rest, identity)?;
            Ok(Call {
                request,
                judge: said,
            })
        };
        [AwsIdentity::Role, AwsIdentity::Chain]
            .into_iter()
            .map(call)
            .collect()
    }
}

impl Provider for Aws {
    fn way(&self, how: PowerOff) -> Way {
        let action = match how {
            PowerOff::Stop => "StopInstances",
            _ => "TerminateInstances",
        };
        match self.calls(action) {
            Ok(calls) => Way::Calls(calls),
            Err(why) => Way::None(why),
        }
    }

    fn look(&self) -> Option<Request> {
        let rest = format!("&InstanceId.1={}", self.id.as_ref()?);
        self.request("DescribeInstances", &rest, AwsIdentity::Role)
            .ok()
    }

    fn read(&self, answer: &Answer) -> Sight {
        if is_unknown(answer) {
            return Sight::of(Presence::Gone);
        }
        if !answer.is_success() {
            return Sight::default();
        }
        let state = element(&answer.body, "instanceState").and_then(|state| element(state, "name"));
        Sight::of(match state {
            Some("terminated") => Presence::Gone,
            Some("shutting-down" | "stopping") => Presence::Leaving,
            Some("stopped") => Presence::Stopped,
            Some(_) => Presence::Running,
            None => Presence::Unknown,
        })
    }

    fn default_grace(&self) -> Duration {
        GRACE
    }

    fn is_machine(&self) -> bool {
        true
    }

    fn shutdown_means(&self) -> &'static str {
        "EC2 then stops the machine and bills its disk, unless it was launched with \
         InstanceInitiatedShutdownBehavior=terminate"
    }

    fn shutdown_check(&self) -> Option<Call> {
        let id = self.id.as_ref()?;
        let rest = format!("&Attribute=instanceInitiatedShutdownBehavior&InstanceId={id}");
        let request = self.request("DescribeInstanceAttribute", &rest, AwsIdentity::Role);
        Some(Call {
            request: request.ok()?,
            judge: shutdown_behavior,
        })
    }
}

/// EC2 says what is wrong by a code in the body.
fn said(answer: &Answer) -> Outcome {
    if is_unknown(answer) {
        return Outcome::AlreadyGone;
    }
    match element(&answer.body, "Code") {
        Some(
            "RequestLimitExceeded"
            | "RequestExpired"
            | "Unavailable"
            | "InternalError"
            | "InsufficientInstanceCapacity"
            | "IncorrectInstanceState",
        ) => retry(answer),
        // No address there names an instance, so this is no instance that is gone.
        _ if answer.status == 404 => Outcome::Denied(answer.text()),
        _ => judge(answer),
    }
}

fn is_unknown(answer: &Answer) -> bool {
    element(&answer.body, "Code") == Some("InvalidInstanceID.NotFound")
}

/// Accepted: the machine's own shutdown terminates it.
fn shutdown_behavior(answer: &Answer) -> Outcome {
    let behavior = element(&answer.body, "instanceInitiatedShutdownBehavior");
    match behavior.and_then(|behavior| element(behavior, "value")) {
        Some("terminate") => Outcome::Accepted,
        Some(other) => Outcome::Denied(format!("InstanceInitiatedShutdownBehavior is {other}")),
        None => Outcome::Denied(answer.text()),
    }
}

/// What stands between the first `<name>` and its end. EC2's answers have no attributes where we
/// look.
fn element<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let start = xml.find(&format!("<{name}>"))? + name.len() + 2;
    let length = xml[start..].find(&format!("</{name}>"))?;
    Some(xml[start..start + length].trim())
}
