//! Azure: whole machines, ended with the token of their own managed identity.

use std::time::Duration;

use reqwest::Method;

use super::api::{Call, GRACE, Presence, Provider, Sight, Way, judge};
use super::call::{Auth, Request};
use super::http::Answer;
use super::{Instance, PowerOff, Services};

const VERSION: &str = "api-version=2024-07-01";

pub(super) struct Azure {
    url: Option<String>,
}

impl Azure {
    /// The instance's id is its resource's: `/subscriptions/…/virtualMachines/NAME`.
    pub(super) fn new(instance: &Instance, services: &Services) -> Self {
        let id = instance.id.as_ref();
        let id = id.filter(|id| id.starts_with("/subscriptions/"));
        Self {
            url: id.map(|id| format!("{}{id}", services.azure_management)),
        }
    }
}

impl Provider for Azure {
    fn way(&self, how: PowerOff) -> Way {
        let Some(url) = &self.url else {
            let why = "the machine's resource id /subscriptions/… is not known";
            return Way::None(why.to_owned());
        };
        let request = match how {
            // What Azure calls powerOff goes on costing as if it ran.
            PowerOff::Stop => {
                let url = format!("{url}/deallocate?{VERSION}");
                Request::new(Method::POST, url, Auth::AzureToken)
            }
            _ => Request::new(Method::DELETE, format!("{url}?{VERSION}"), Auth::AzureToken),
        };
        Way::Calls(vec![Call { request, judge }])
    }

    fn look(&self) -> Option<Request> {
        let url = format!("{}?{VERSION}&$expand=instanceView", self.url.as_ref()?);
        Some(Request::new(Method::GET, url, Auth::AzureToken))
    }

    fn read(&self, answer: &Answer) -> Sight {
        if !answer.is_success() {
            return Sight::failed(answer);
        }
        let properties = &answer.json()["properties"];
        if properties["provisioningState"] == "Deleting" {
            return Sight::of(Presence::Leaving);
        }
        let statuses = properties["instanceView"]["statuses"].as_array();
        let codes = statuses.into_iter().flatten();
        let mut codes = codes.filter_map(|status| status["code"].as_str());
        Sight::of(
            match codes.find_map(|code| code.strip_prefix("PowerState/")) {
                Some("deallocated") => Presence::Stopped,
                Some("deallocating") => Presence::Leaving,
                Some(_) => Presence::Running,
                None => Presence::Unknown,
            },
        )
    }

    fn default_grace(&self) -> Duration {
        GRACE
    }

    fn is_machine(&self) -> bool {
        true
    }

    fn shutdown_means(&self) -> &'static str {
        "Azure goes on billing a machine that shut itself down until it is deallocated"
    }
}
