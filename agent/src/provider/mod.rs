//! The machine's provider: what it is called, what it costs, how it says that it takes the machine
//! back, and how the machine is given back. Called by the loop and by the limits.

use std::sync::Arc;
use std::time::Duration;

mod services;
mod http;
mod metadata;
mod sign;
mod call;
mod api;
mod vast;
mod runpod;
mod lambda;
mod modal;
mod jarvislabs;
mod aws;
mod gcp;
mod azure;
mod paperspace;
mod colab;
mod replicate;
mod kubernetes;
mod slurm;
mod local;
mod kind;
mod detect;
mod host;
mod pace;
mod adapter;
mod until_gone;
mod notices;
#[cfg(test)]
mod tests;

pub use adapter::Adapter;
pub use api::Outcome;
pub use detect::detect;
pub use notices::{sources, watch_notices};
pub use services::Services;
pub use until_gone::ZOMBIE;

/// Looks up an environment variable: the process's, or a test's.
pub type Environment = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// The process's own environment.
pub fn environment() -> Environment {
    Arc::new(|name| std::env::var(name).ok())
}

/// Who rents this machine out, as found by its environment or told by the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Vast,
    RunPod,
    Lambda,
    Modal,
    JarvisLabs,
    Aws,
    Gcp,
    Azure,
    Paperspace,
    Colab,
    Replicate,
    Kubernetes,
    Slurm,
    Local,
}

/// This machine as its provider knows it. What is not known is `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    pub kind: Kind,
    /// What the match rests on, for people: a variable's name, a metadata service, `--provider`.
    pub found_by: String,
    pub id: Option<String>,
    pub region: Option<String>,
    /// The provider's name of the machine's type or GPU.
    pub machine: Option<String>,
    /// Whether the provider may take it back at any moment; `None` if it does not say.
    pub spot: Option<bool>,
    /// The provider ends it at the latest this long from now.
    pub ends_in: Option<Duration>,
}

/// What the machine costs, in dollars an hour.
#[derive(Clone, Debug, PartialEq)]
pub struct Price {
    pub per_hour: f64,
    /// Disk and volumes, billed in addition while the machine runs.
    pub storage_per_hour: f64,
    pub source: PriceSource,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PriceSource {
    /// The provider's API said so.
    Provider,
    /// The job or a flag said so.
    Job,
    /// `configs/prices.toml`, a dated table.
    Table,
}

/// The provider says that it wants the machine back, or might.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Where it came from, for people and as a metric's label: `aws-spot-action`, `gcp-preempted`.
    pub source: String,
    pub kind: NoticeKind,
    /// How long the machine lives on, counted from now.
    pub grace: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoticeKind {
    /// It may be taken soon: save now, go on.
    Rebalance,
    /// It is taken: save, publish, leave.
    Terminate,
}

/// How the machine is given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerOff {
    /// Only the agent's process ends.
    None,
    /// What the provider calls stop: its disk may go on costing money.
    Stop,
    /// Nothing is left and nothing costs.
    Destroy,
}
