//! Lambda: whole machines, which cannot be stopped and do not know their own id: it is found by the
//! name that the launch gave them.

use std::sync::OnceLock;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use super::api::{Call, GRACE, Presence, Provider, Sight, Way, judge};
use super::call::{Auth, Request};
use super::http::Answer;
use super::{Environment, Instance, PowerOff, Price, PriceSource, Services};

pub(super) struct Lambda {
    base: String,
    id: OnceLock<String>,
    name: Option<String>,
    key: Option<String>,
}

impl Lambda {
    pub(super) fn new(instance: &Instance, services: &Services, environment: &Environment) -> Self {
        let id = instance.id.clone().map(OnceLock::from);
        Self {
            base: services.lambda.clone(),
            id: id.unwrap_or_default(),
            name: environment("AGENT_INSTANCE_NAME"),
            key: environment("LAMBDA_API_KEY").or_else(|| environment("LAMBDA_KEY")),
        }
    }
}

impl Provider for Lambda {
    fn way(&self, how: PowerOff) -> Way {
        let Some(key) = self.key.clone() else {
            return Way::None("LAMBDA_API_KEY is not set".to_owned());
        };
        let Some(id) = self.id.get() else {
            let why = match &self.name {
                Some(name) => format!("no single instance is named {name:?}"),
                None => "neither AGENT_INSTANCE_ID nor AGENT_INSTANCE_NAME is set".to_owned(),
            };
            return Way::None(why);
        };
        if how == PowerOff::Stop {
            return Way::None("Lambda cannot stop a machine, only end it".to_owned());
        }
        let url = format!("{}/instance-operations/terminate", self.base);
        let request = Request::new(Method::POST, url, Auth::Bearer(key));
        Way::Calls(vec![Call {
            request: request.json(&json!({"instance_ids": [id]})),
            judge,
        }])
    }

    fn looks_first(&self) -> bool {
        self.id.get().is_none() && self.name.is_some()
    }

    fn look(&self) -> Option<Request> {
        let url = match (self.id.get(), &self.name) {
            (Some(id), _) => format!("{}/instances/{id}", self.base),
            (None, Some(_)) => format!("{}/instances", self.base),
            (None, None) => return None,
        };
        let key = self.key.clone()?;
        Some(Request::new(Method::GET, url, Auth::Bearer(key)))
    }

    fn read(&self, answer: &Answer) -> Sight {
        if !answer.is_success() {
            // A list that is missing is no machine that is missing.
            return match self.id.get() {
                Some(_) => Sight::failed(answer),
                None => Sight::default(),
            };
        }
        let body = answer.json();
        let machine = match &body["data"] {
            Value::Array(machines) => {
                let named = |machine: &&Value| machine["name"].as_str() == self.name.as_deref();
                let mut named = machines.iter().filter(named);
                // Two of one name: neither is known to be ours.
                match (named.next(), named.next()) {
                    (Some(machine), None) => machine,
                    _ => return Sight::default(),
                }
            }
            machine => machine,
        };
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let id = text(&machine["id"]);
        if let Some(id) = &id {
            self.id.get_or_init(|| id.clone());
        }
        let kind = &machine["instance_type"];
        let cents = kind["price_cents_per_hour"].as_f64();
        Sight {
            presence: match machine["status"].as_str() {
                Some("terminated") => Presence::Gone,
                Some("terminating") => Presence::Leaving,
                Some(_) => Presence::Running,
                None => Presence::Unknown,
            },
            price: cents.map(|cents| Price {
                per_hour: cents / 100.0,
                storage_per_hour: 0.0,
                source: PriceSource::Provider,
            }),
            id,
            region: text(&machine["region"]["name"]),
            machine: text(&kind["name"]),
            spot: Some(false),
            ends_in: None,
        }
    }

    fn default_grace(&self) -> Duration {
        GRACE
    }

    fn is_machine(&self) -> bool {
        true
    }

    fn shutdown_means(&self) -> &'static str {
        "Lambda goes on billing a machine that shut itself down"
    }
}
