//! Paperspace: machines and notebooks. Its APIs changed more than once and are not verified: both
//! are tried, and what they answer is shown.

use std::time::Duration;

use reqwest::Method;
use serde_json::json;

use super::api::{Call, GRACE, Outcome, Presence, Provider, Sight, Way, judge};
use super::call::{Auth, Request};
use super::http::Answer;
use super::{Environment, Instance, PowerOff, Services};

/// Before the id of a notebook, as nothing else tells it from a machine's.
const NOTEBOOK: &str = "notebook/";

pub(super) struct Paperspace {
    id: Option<String>,
    key: Option<String>,
    services: Services,
}

impl Paperspace {
    pub(super) fn new(instance: &Instance, services: &Services, environment: &Environment) -> Self {
        Self {
            id: instance.id.clone(),
            key: environment("PAPERSPACE_API_KEY"),
            services: services.clone(),
        }
    }

    fn calls(&self, how: PowerOff) -> Result<Vec<Call>, String> {
        let id = self.id.as_ref().ok_or("AGENT_INSTANCE_ID is not set")?;
        let key = self.key.clone().ok_or("PAPERSPACE_API_KEY is not set")?;
        let (new, core) = (&self.services.paperspace, &self.services.paperspace_core);
        let bearer = Auth::Bearer(key.clone());
        let own = Auth::Header("x-api-key", key);
        let stop_only = || "Paperspace stops notebooks, it does not delete them".to_owned();
        if let Some(id) = id.strip_prefix(NOTEBOOK) {
            if how != PowerOff::Stop {
                return Err(stop_only());
            }
            let url = format!("{core}/notebooks/v2/stopNotebook");
            let request = Request::new(Method::POST, url, own).json(&json!({"notebookId": id}));
            return Ok(vec![Call { request, judge }]);
        }
        let machine = format!("{new}/machines/{id}");
        if how != PowerOff::Stop {
            let request = Request::new(Method::DELETE, machine, bearer);
            return Ok(vec![Call { request, judge }]);
        }
        let request = Request::new(Method::PATCH, format!("{machine}/stop"), bearer);
        let old = Request::new(Method::POST, format!("{core}/machines/{id}/stop/"), own);
        Ok(vec![
            Call { request, judge },
            Call {
                request: old,
                judge: judge_core,
            },
        ])
    }
}

impl Provider for Paperspace {
    fn way(&self, how: PowerOff) -> Way {
        match self.calls(how) {
            Ok(calls) => Way::Calls(calls),
            Err(why) => Way::None(why),
        }
    }

    fn look(&self) -> Option<Request> {
        let id = self.id.as_ref().filter(|id| !id.starts_with(NOTEBOOK))?;
        let url = format!("{}/machines/{id}", self.services.paperspace);
        Some(Request::new(
            Method::GET,
            url,
            Auth::Bearer(self.key.clone()?),
        ))
    }

    fn read(&self, answer: &Answer) -> Sight {
        if !answer.is_success() {
            return Sight::failed(answer);
        }
        let machine = answer.json();
        let text = |name: &str| machine[name].as_str().map(str::to_owned);
        let presence = match machine["state"].as_str() {
            Some("off") => Presence::Stopped,
            Some("stopping") => Presence::Leaving,
            Some(_) => Presence::Running,
            None => Presence::Unknown,
        };
        Sight {
            presence,
            region: text("region"),
            machine: text("machineType"),
            ..Sight::default()
        }
    }

    fn default_grace(&self) -> Duration {
        GRACE
    }

    fn is_machine(&self) -> bool {
        true
    }

    fn shutdown_means(&self) -> &'static str {
        "Paperspace goes on billing the disk of a machine that is off"
    }
}

/// This API is deprecated: "not found" may be the API itself.
fn judge_core(answer: &Answer) -> Outcome {
    match answer.status {
        404 | 410 => Outcome::Denied(answer.text()),
        _ => judge(answer),
    }
}
