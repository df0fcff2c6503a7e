//! The names of the providers, and which file speaks to which. Called by the adapter and the
//! command line.

use std::fmt;
use std::str::FromStr;

use super::api::Provider;
use super::aws::Aws;
use super::azure::Azure;
use super::colab::Colab;
use super::gcp::Gcp;
use super::jarvislabs::JarvisLabs;
use super::kubernetes::Kubernetes;
use super::lambda::Lambda;
use super::local::Local;
use super::modal::Modal;
use super::paperspace::Paperspace;
use super::replicate::Replicate;
use super::runpod::RunPod;
use super::slurm::Slurm;
use super::vast::Vast;
use super::{Environment, Instance, Kind, Services};

impl Kind {
    pub const ALL: [Self; 14] = [
        Self::Vast,
        Self::RunPod,
        Self::Lambda,
        Self::Modal,
        Self::JarvisLabs,
        Self::Aws,
        Self::Gcp,
        Self::Azure,
        Self::Paperspace,
        Self::Colab,
        Self::Replicate,
        Self::Kubernetes,
        Self::Slurm,
        Self::Local,
    ];

    /// Whether its API says what a machine costs.
    pub fn tells_price(self) -> bool {
        matches!(self, Self::Vast | Self::RunPod | Self::Lambda)
    }

    /// As on the command line and in `configs/prices.toml`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vast => "vast",
            Self::RunPod => "runpod",
            Self::Lambda => "lambda",
            Self::Modal => "modal",
            Self::JarvisLabs => "jarvislabs",
            Self::Aws => "aws",
            Self::Gcp => "gcp",
            Self::Azure => "azure",
            Self::Paperspace => "paperspace",
            Self::Colab => "colab",
            Self::Replicate => "replicate",
            Self::Kubernetes => "kubernetes",
            Self::Slurm => "slurm",
            Self::Local => "local",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|kind| kind.name() == name);
        found.ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("expected one of {names}, got {name:?}")
        })
    }
}

/// Whoever speaks to this instance's provider.
pub(super) fn speaker(
    instance: &Instance,
    services: &Services,
    environment: &Environment,
) -> Box<dyn Provider> {
    match instance.kind {
        Kind::Vast => Box::new(Vast::new(instance, services, environment)),
        Kind::RunPod => Box::new(RunPod::new(instance, services, environment)),
        Kind::Lambda => Box::new(Lambda::new(instance, services, environment)),
        Kind::Modal => Box::new(Modal::new(environment)),
        Kind::JarvisLabs => Box::new(JarvisLabs::new(instance, services, environment)),
        Kind::Aws => Box::new(Aws::new(instance, services)),
        Kind::Gcp => Box::new(Gcp::new(instance, services)),
        Kind::Azure => Box::new(Azure::new(instance, services)),
        Kind::Paperspace => Box::new(Paperspace::new(instance, services, environment)),
        Kind::Colab => Box::new(Colab::new(environment)),
        Kind::Replicate => Box::new(Replicate),
        Kind::Kubernetes => Box::new(Kubernetes),
        Kind::Slurm => Box::new(Slurm),
        Kind::Local => Box::new(Local),
    }
}
