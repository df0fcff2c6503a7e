//! What the agent asks of a provider, whoever that is. Called by the limits, the dead-man's switch
//! and `agent provider`.

use std::time::Duration;

use super::{Environment, Instance, PowerOff, Price, Services};

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

/// One machine and how its provider is spoken to.
pub struct Adapter {
    instance: Instance,
}

impl Adapter {
    /// Keys and ports are read from the environment now; nothing is asked yet.
    pub fn new(instance: Instance, services: Services, environment: Environment) -> Self {
        let _not_kept_yet = (services, environment);
        Self { instance }
    }

    pub fn instance(&self) -> &Instance {
        &self.instance
    }

    /// What the machine costs, if the provider's API says so; `None` also if it cannot be asked.
    pub async fn price(&self) -> Option<Price> {
        None
    }

    /// Where this port of ours can be reached from outside.
    pub fn public_url(&self, port: u16) -> Option<String> {
        let _none_yet = port;
        None
    }

    /// From a signal to the moment that the provider kills us, if nobody said.
    pub fn default_grace(&self) -> Duration {
        Duration::from_secs(30)
    }

    /// One try. [`PowerOff::None`] is accepted at once and asks nobody.
    pub async fn power_off(&self, how: PowerOff) -> Outcome {
        match how {
            PowerOff::None => Outcome::Accepted,
            PowerOff::Stop | PowerOff::Destroy => Outcome::Denied("not spoken to yet".to_owned()),
        }
    }

    /// Tries for as long as this process lives, until the machine is gone as far as can be known.
    /// Returns if the provider says that it is gone, or if the end of this process is what is left
    /// to do: the caller then exits at once. `say` gets a line for people on what happens; one that
    /// begins with `ZOMBIE` is for the webhook.
    pub async fn power_off_until_gone(
        &self,
        how: PowerOff,
        mut say: impl FnMut(String),
    ) -> Outcome {
        let outcome = self.power_off(how).await;
        say(format!("{outcome:?}"));
        outcome
    }

    /// What [`Self::power_off`] would send, in order, with secrets masked.
    pub fn requests(&self, how: PowerOff) -> Vec<String> {
        let _none_yet = how;
        Vec::new()
    }
}
