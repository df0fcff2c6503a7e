//! Kubernetes: a pod ends with its process; what the node costs is not the pod's affair, and its
//! API is never called.

use std::time::Duration;

use super::PowerOff;
use super::api::{GRACE, Provider, Way};

pub(super) struct Kubernetes;

impl Provider for Kubernetes {
    fn way(&self, _how: PowerOff) -> Way {
        Way::Exit
    }

    /// `terminationGracePeriodSeconds`, where nobody set it.
    fn default_grace(&self) -> Duration {
        GRACE
    }
}
