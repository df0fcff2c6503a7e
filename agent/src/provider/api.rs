//! What one provider's file says of it: requests as data, and what their answers mean. Each of them
//! implements [`Provider`]; only the adapter sends anything.

use std::time::Duration;

use super::call::Request;
use super::http::Answer;
use super::{Instance, PowerOff, Price};

/// The agent's own choice if nobody knows better: what Docker's `stop` gives by default.
pub(super) const GRACE_OF_CONTAINERS: Duration = Duration::from_secs(10);
/// What Kubernetes, Modal and Google's spot machines give.
pub(super) const GRACE: Duration = Duration::from_secs(30);

/// What came of one try to give the machine back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The provider said yes, or the end of our process is all that it takes.
    Accepted,
    /// The provider knows no such machine.
    AlreadyGone,
    /// Asking again the same way is of no use; why.
    Denied(String),
    /// Not now: worth another try, not before `after`.
    Retry { after: Duration, why: String },
}

/// One request that gives the machine back, and how its answer reads.
pub(super) struct Call {
    pub(super) request: Request,
    pub(super) judge: fn(&Answer) -> Outcome,
}

/// How a machine is given back.
pub(super) enum Way {
    /// By any one of these, tried in order until one is accepted.
    Calls(Vec<Call>),
    /// The end of our process ends the bill.
    Exit,
    /// There is none; why.
    None(String),
}

/// Whether the machine is there, as the provider's API says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Presence {
    #[default]
    Unknown,
    Running,
    /// On its way out; asking again does not hurry it.
    Leaving,
    Stopped,
    Gone,
}

/// What a look at the machine through the provider's API shows.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Sight {
    pub(super) presence: Presence,
    pub(super) price: Option<Price>,
    pub(super) id: Option<String>,
    pub(super) region: Option<String>,
    pub(super) machine: Option<String>,
    pub(super) spot: Option<bool>,
    pub(super) ends_in: Option<Duration>,
}

impl Sight {
    pub(super) fn of(presence: Presence) -> Self {
        Self {
            presence,
            ..Self::default()
        }
    }

    /// The usual meaning of an answer that is no success.
    pub(super) fn failed(answer: &Answer) -> Self {
        Self::of(match answer.status {
            404 | 410 => Presence::Gone,
            _ => Presence::Unknown,
        })
    }

    /// Adds what was not known of the machine.
    pub(super) fn complete(self, instance: &mut Instance) {
        instance.id = instance.id.take().or(self.id);
        instance.region = instance.region.take().or(self.region);
        instance.machine = instance.machine.take().or(self.machine);
        instance.spot = instance.spot.or(self.spot);
        instance.ends_in = instance.ends_in.or(self.ends_in);
    }
}

pub(super) trait Provider: Send + Sync {
    /// How to stop or destroy; not asked with [`PowerOff::None`].
    fn way(&self, how: PowerOff) -> Way;

    /// The request that shows the machine, if there is one that our key allows.
    fn look(&self) -> Option<Request> {
        None
    }

    /// What its answer shows. May keep what [`Self::way`] needs.
    fn read(&self, answer: &Answer) -> Sight {
        Sight::failed(answer)
    }

    /// Whether [`Self::way`] needs a look first.
    fn looks_first(&self) -> bool {
        false
    }

    fn public_url(&self, port: u16) -> Option<String> {
        let _closed = port;
        None
    }

    fn default_grace(&self) -> Duration {
        GRACE_OF_CONTAINERS
    }

    /// Whether our program may run on the machine itself, whose shutdown is worth a try.
    fn is_machine(&self) -> bool {
        false
    }

    /// What the machine's own shutdown does to the bill, for people.
    fn shutdown_means(&self) -> &'static str {
        "what it costs after that is unknown"
    }

    /// A request that tells more about the machine's own shutdown, and how its answer reads.
    fn shutdown_check(&self) -> Option<Call> {
        None
    }
}

/// What most answers to a power-off mean.
pub(super) fn judge(answer: &Answer) -> Outcome {
    match answer.status {
        200..=299 => Outcome::Accepted,
        404 | 410 => Outcome::AlreadyGone,
        // 409: the machine is in the middle of another change.
        408 | 409 | 425 | 429 | 500.. => retry(answer),
        _ => Outcome::Denied(answer.text()),
    }
}

pub(super) fn retry(answer: &Answer) -> Outcome {
    Outcome::Retry {
        after: answer.retry_after.unwrap_or_default(),
        why: answer.text(),
    }
}
