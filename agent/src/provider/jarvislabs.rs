//! JarvisLabs: containers and virtual machines in three regions, each with a backend of its own.
//! Which address ends a machine depends on its region and sort, so it is looked at first.

use std::sync::OnceLock;

use reqwest::Method;
use serde_json::Value;

use super::api::{Call, Outcome, Presence, Provider, Sight, Way, judge, retry};
use super::call::{Auth, Request};
use super::http::Answer;
use super::{Environment, Instance, PowerOff, Services};

/// The backend that knows the machines of all regions.
const ANY_REGION: &str = "india-noida-01";

pub(super) struct JarvisLabs {
    /// Instead of the backend of a region.
    told: Option<String>,
    id: Option<String>,
    key: Option<String>,
    place: OnceLock<Place>,
}

struct Place {
    region: String,
    /// `misc`, `templates/vm`, `templates/vm/cpu`.
    folder: &'static str,
}

impl JarvisLabs {
    pub(super) fn new(instance: &Instance, services: &Services, environment: &Environment) -> Self {
        Self {
            told: services.jarvislabs.clone(),
            id: instance.id.clone(),
            key: environment("JL_API_KEY"),
            place: OnceLock::new(),
        }
    }

    fn backend(&self, region: &str) -> Option<String> {
        let letter = match region {
            ANY_REGION => "n",
            "india-chennai-01" => "c",
            "europe-01" => "eu",
            _ => return self.told.clone(),
        };
        let url = || format!("https://backend{letter}.jarvislabs.net");
        Some(self.told.clone().unwrap_or_else(url))
    }

    fn request(&self, how: PowerOff) -> Result<Request, String> {
        let id = self.id.as_ref().ok_or("AGENT_INSTANCE_ID is not set")?;
        let key = self.key.clone().ok_or("JL_API_KEY is not set")?;
        let place = self.place.get();
        let place = place.ok_or_else(|| format!("no machine {id} is listed"))?;
        let backend = self.backend(&place.region);
        let backend = backend.ok_or_else(|| format!("region {} is unknown", place.region))?;
        let action = match how {
            PowerOff::Stop => "pause",
            _ => "destroy",
        };
        let url = format!("{backend}/{}/{action}?machine_id={id}", place.folder);
        Ok(Request::new(Method::POST, url, Auth::Bearer(key)))
    }
}

impl Provider for JarvisLabs {
    fn way(&self, how: PowerOff) -> Way {
        match self.request(how) {
            Ok(request) => Way::Calls(vec![Call {
                request,
                judge: said,
            }]),
            Err(why) => Way::None(why),
        }
    }

    fn looks_first(&self) -> bool {
        self.place.get().is_none()
    }

    fn look(&self) -> Option<Request> {
        let url = format!("{}/users/fetch", self.backend(ANY_REGION)?);
        let key = self.key.clone()?;
        self.id.as_ref()?;
        Some(Request::new(Method::GET, url, Auth::Bearer(key)))
    }

    fn read(&self, answer: &Answer) -> Sight {
        let body = answer.json();
        // A list that is missing is not an empty list, and an address that is missing no machine.
        let (true, Some(machines)) = (is_yes(&body), body["instances"].as_array()) else {
            return Sight::default();
        };
        let ours = |machine: &&Value| Some(number(&machine["machine_id"])) == self.id;
        let Some(machine) = machines.iter().find(ours) else {
            return Sight::of(Presence::Gone);
        };
        let text = |names: [&str; 2]| {
            let value = names.iter().find_map(|name| machine[*name].as_str());
            value.map(str::to_owned)
        };
        let region = text(["region", "region"]);
        let gpu = text(["gpu_type", "gpu_type"]);
        self.place.get_or_init(|| Place {
            region: region.clone().unwrap_or_else(|| ANY_REGION.to_owned()),
            folder: match text(["template", "framework"]).as_deref() {
                Some("vm") if gpu.as_deref() == Some("CPU") => "templates/vm/cpu",
                Some("vm") => "templates/vm",
                _ => "misc",
            },
        });
        let status = machine["status"].as_str().map(str::to_lowercase);
        Sight {
            presence: match status.as_deref() {
                Some("destroying" | "pausing") => Presence::Leaving,
                Some("paused") => Presence::Stopped,
                Some(_) => Presence::Running,
                None => Presence::Unknown,
            },
            region,
            machine: gpu,
            spot: machine["is_spot"].as_bool(),
            ..Sight::default()
        }
    }

    fn is_machine(&self) -> bool {
        self.place.get().is_some_and(|place| place.folder != "misc")
    }

    fn shutdown_means(&self) -> &'static str {
        "whether JarvisLabs bills a machine that shut itself down is unknown"
    }
}

fn number(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// `success`, at times spelt `sucess`, at times a text.
fn is_yes(body: &Value) -> bool {
    let said = body.get("success").or_else(|| body.get("sucess"));
    match said {
        Some(Value::Bool(said)) => *said,
        Some(Value::String(said)) => said.eq_ignore_ascii_case("true"),
        _ => false,
    }
}

fn said(answer: &Answer) -> Outcome {
    if answer.is_success() && !is_yes(&answer.json()) {
        return retry(answer);
    }
    judge(answer)
}
