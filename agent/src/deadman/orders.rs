//! What the switch is told: once, before the agent does anything else.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::provider::{Kind, PowerOff};

/// How long the agent is trusted, and how the machine is given back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orders {
    /// Without a line for so long, the agent hangs.
    pub hang: Duration,
    /// Before the first line: the agent looks for its provider and its store.
    pub boot: Duration,
    /// How long after its hard deadline the agent is ended.
    pub margin: Duration,
    /// `none`, `stop` or `destroy`; nothing = destroy, on a machine whose provider is recognised.
    terminate: Option<String>,
    /// The provider, where the user named it.
    provider: Option<String>,
    /// Run by `sh -c` instead of asking the provider.
    pub power_off_command: Option<String>,
}

impl Orders {
    pub fn new(
        hang: Duration,
        boot: Duration,
        terminate: Option<PowerOff>,
        provider: Option<Kind>,
        power_off_command: Option<String>,
    ) -> Self {
        let terminate = terminate.map(|how| match how {
            PowerOff::None => "none".to_owned(),
            PowerOff::Stop => "stop".to_owned(),
            PowerOff::Destroy => "destroy".to_owned(),
        });
        Self {
            hang,
            boot,
            margin: hang,
            terminate,
            provider: provider.map(|kind| kind.name().to_owned()),
            power_off_command,
        }
    }

    pub fn provider(&self) -> Option<Kind> {
        self.provider.as_deref()?.parse().ok()
    }

    /// How a machine of this kind is given back: never on a guess.
    pub fn power_off(&self, kind: Kind) -> PowerOff {
        let known = kind != Kind::Local || self.power_off_command.is_some();
        match self.terminate.as_deref() {
            _ if !known => PowerOff::None,
            Some("none") => PowerOff::None,
            Some("stop") => PowerOff::Stop,
            _ => PowerOff::Destroy,
        }
    }
}
