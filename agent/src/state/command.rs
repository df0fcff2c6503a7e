//! What a person or an orchestrator may ask of a running job: over HTTP, or through `control/` in
//! the store. Both say the same.

use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::storage::Keys;

/// What may be asked of a running job.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    Stop(StopOrder),
    /// Save a checkpoint and publish it; training goes on.
    Save,
    /// Change limits while the job runs.
    Limits(LimitsChange),
    /// Whoever asks will ask again within this time, or the job is to be ended.
    KeepAlive(Duration),
    /// Leave the lease at the next checkpoint, so that another machine can go on.
    Yield,
    /// Rehearse something that goes wrong.
    Drill(Drill),
    /// Ask the store with these keys from now on.
    Renew(Keys),
    Unknown(String),
}

/// An end that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StopOrder {
    /// Nothing is waited for.
    pub now: bool,
    /// A last checkpoint is saved and published.
    pub checkpoint: bool,
    /// Time until everything must be over; `None` = the agent's own choice.
    pub grace: Option<Duration>,
    /// Whether the machine is given back; `None` = as the agent was told at its start.
    pub power_off: Option<bool>,
}

impl StopOrder {
    /// Save, publish, leave; or all of it at once.
    pub fn new(now: bool) -> Self {
        Self {
            now,
            checkpoint: !now,
            grace: None,
            power_off: None,
        }
    }
}

/// A new value of a limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Change<T> {
    To(T),
    /// Written out by somebody who wants none.
    Off,
}

/// New limits; what is `None` stays as it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LimitsChange {
    pub wall: Option<Change<Duration>>,
    pub idle: Option<Change<Duration>>,
    pub stall: Option<Change<Duration>>,
    pub budget_usd: Option<Change<f64>>,
}

impl Command {
    /// The word for it, as in `control/`.
    pub fn kind(&self) -> &str {
        match self {
            Self::Stop(_) => "stop",
            Self::Save => "checkpoint",
            Self::Limits(_) => "limits",
            Self::KeepAlive(_) => "keepalive",
            Self::Yield => "yield",
            Self::Drill(_) => "drill",
            Self::Renew(_) => "credentials",
            Self::Unknown(kind) => kind,
        }
    }
}

/// What can be rehearsed on a live job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Drill {
    /// A notice as the provider would give it.
    Preempt,
    /// The trainer makes no progress.
    Stall,
    /// No request reaches the store for a while.
    #[serde(rename = "s3-outage")]
    StoreOutage,
    /// The wall clock jumps.
    ClockJump,
    /// Nothing can be written to the run directory for a while.
    DiskFull,
}

impl Drill {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Preempt,
        Self::Stall,
        Self::StoreOutage,
        Self::ClockJump,
        Self::DiskFull,
    ];

    /// The word for it, on the command line, in `control/` and over HTTP.
    pub fn name(self) -> &'static str {
        match self {
            Self::Preempt => "preempt",
            Self::Stall => "stall",
            Self::StoreOutage => "s3-outage",
            Self::ClockJump => "clock-jump",
            Self::DiskFull => "disk-full",
        }
    }
}

impl FromStr for Drill {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|drill| drill.name() == name);
        found.ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("expected one of {names}, got {name:?}")
        })
    }
}
