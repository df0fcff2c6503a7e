//! Google Compute Engine: whole machines, ended with the token of their own service account.

use std::time::Duration;

use reqwest::Method;

use super::api::{Call, GRACE, Presence, Provider, Sight, Way, judge};
use super::call::{Auth, Request};
use super::http::Answer;
use super::{Instance, PowerOff, Services};

pub(super) struct Gcp {
    /// `…/projects/P/zones/Z/instances/I`.
    url: Option<String>,
}

impl Gcp {
    /// The instance's id is its path: `projects/P/zones/Z/instances/I`.
    pub(super) fn new(instance: &Instance, services: &Services) -> Self {
        let path = instance.id.as_ref().filter(|id| {
            let words: Vec<&str> = id.split('/').collect();
            matches!(words[..], ["projects", _, "zones", _, "instances", _])
        });
        Self {
            url: path.map(|path| format!("{}/{path}", services.gcp_compute)),
        }
    }
}

impl Provider for Gcp {
    fn way(&self, how: PowerOff) -> Way {
        let Some(url) = &self.url else {
            let why = "the instance's path projects/P/zones/Z/instances/I is not known";
            return Way::None(why.to_owned());
        };
        let request = match how {
            PowerOff::Stop => Request::new(Method::POST, format!("{url}/stop"), Auth::GcpToken),
            _ => Request::new(Method::DELETE, url.clone(), Auth::GcpToken),
        };
        Way::Calls(vec![Call { request, judge }])
    }

    fn look(&self) -> Option<Request> {
        let url = self.url.clone()?;
        Some(Request::new(Method::GET, url, Auth::GcpToken))
    }

    fn read(&self, answer: &Answer) -> Sight {
        if !answer.is_success() {
            return Sight::failed(answer);
        }
        Sight::of(match answer.json()["status"].as_str() {
            Some("STOPPING" | "SUSPENDING") => Presence::Leaving,
            Some("TERMINATED" | "SUSPENDED") => Presence::Stopped,
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
        "Google then stops the machine and bills its disk"
    }
}
