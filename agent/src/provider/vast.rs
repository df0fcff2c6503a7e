//! Vast: containers on strangers' machines. Its key can stop and destroy its own instance only.

use std::time::{Duration, SystemTime};

use reqwest::Method;
use serde_json::{Value, json};

use super::api::{Call, Outcome, Presence, Provider, Sight, Way, judge, retry};
use super::call::{Auth, Request};
use super::http::Answer;
use super::{Environment, Instance, PowerOff, Price, PriceSource, Services};

pub(super) struct Vast {
    url: Option<String>,
    key: Option<String>,
    environment: Environment,
}

impl Vast {
    pub(super) fn new(instance: &Instance, services: &Services, environment: &Environment) -> Self {
        let url = |id: &String| format!("{}/instances/{id}/", services.vast);
        Self {
            url: instance.id.as_ref().map(url),
            // The account's key where it was given instead.
            key: environment("CONTAINER_API_KEY").or_else(|| environment("VAST_API_KEY")),
            environment: environment.clone(),
        }
    }

    fn request(&self, method: Method) -> Result<Request, String> {
        let url = self.url.clone().ok_or("CONTAINER_ID is not set")?;
        let key = self.key.clone().ok_or("CONTAINER_API_KEY is not set")?;
        Ok(Request::new(method, url, Auth::Bearer(key)))
    }
}

impl Provider for Vast {
    fn way(&self, how: PowerOff) -> Way {
        let request = match how {
            PowerOff::Stop => self
                .request(Method::PUT)
                .map(|request| request.json(&json!({"state": "stopped"}))),
            _ => self
                .request(Method::DELETE)
                .map(|request| request.json(&json!({}))),
        };
        match request {
            Ok(request) => Way::Calls(vec![Call {
                request,
                judge: said,
            }]),
            Err(why) => Way::None(why),
        }
    }

    fn look(&self) -> Option<Request> {
        self.request(Method::GET).ok()
    }

    fn read(&self, answer: &Answer) -> Sight {
        let body = answer.json();
        let machine = &body["instances"];
        if !answer.is_success() {
            return Sight::failed(answer);
        }
        // An unknown instance is no error there: the object is null.
        if body.get("instances").is_some_and(Value::is_null) {
            return Sight::of(Presence::Gone);
        }
        if !machine.is_object() {
            return Sight::default();
        }
        let text = |name: &str| machine[name].as_str().map(str::to_owned);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now_s = now.unwrap_or_default().as_secs_f64();
        let left_s = machine["end_date"].as_f64().map(|end_s| end_s - now_s);
        Sight {
            presence: match machine["cur_state"].as_str() {
                Some("stopped") => Presence::Stopped,
                Some(_) => Presence::Running,
                None => Presence::Unknown,
            },
            price: machine["dph_total"].as_f64().map(|per_hour| Price {
                per_hour,
                // Vast's total has the disk in it.
                storage_per_hour: 0.0,
                source: PriceSource::Provider,
            }),
            id: None,
            region: text("geolocation"),
            machine: text("gpu_name"),
            spot: machine["is_bid"].as_bool(),
            ends_in: left_s.and_then(|left_s| Duration::try_from_secs_f64(left_s.max(0.0)).ok()),
        }
    }

    fn public_url(&self, port: u16) -> Option<String> {
        let address = (self.environment)("PUBLIC_IPADDR")?;
        let outside = (self.environment)(&format!("VAST_TCP_PORT_{port}"))?;
        Some(format!("http://{}:{}", address.trim(), outside.trim()))
    }
}

/// Its answers carry `success` besides the status.
fn said(answer: &Answer) -> Outcome {
    let body = answer.json();
    if body["error"] == "no_such_instance" {
        return Outcome::AlreadyGone;
    }
    if answer.is_success() && body["success"] != true {
        return retry(answer);
    }
    judge(answer)
}
