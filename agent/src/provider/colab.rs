//! Colab: a notebook's machine, given back through a service that stands beside it.

use reqwest::Method;

use super::api::{Call, Provider, Way, judge};
use super::call::{Auth, Request};
use super::{Environment, PowerOff};

pub(super) struct Colab {
    address: Option<String>,
}

impl Colab {
    pub(super) fn new(environment: &Environment) -> Self {
        Self {
            address: environment("TBE_RUNTIME_ADDR"),
        }
    }
}

impl Provider for Colab {
    /// There is no stop: both release the machine.
    fn way(&self, _how: PowerOff) -> Way {
        match &self.address {
            None => Way::None("TBE_RUNTIME_ADDR is not set".to_owned()),
            Some(address) => {
                let url = format!("http://{address}/unassign");
                let request = Request::new(Method::POST, url, Auth::None);
                Way::Calls(vec![Call { request, judge }])
            }
        }
    }
}
