//! RunPod: containers called pods. Which of its three APIs takes a pod's own key is not documented,
//! so all are tried, the newest first.

use std::time::Duration;

use reqwest::Method;
use serde_json::json;

use super::api::{Call, Outcome, Presence, Provider, Sight, Way, judge, retry};
use super::call::{Auth, Request};
use super::http::Answer;
use super::{Environment, Instance, PowerOff, Price, PriceSource, Services};

pub(super) struct RunPod {
    id: Option<String>,
    key: Option<String>,
    services: Services,
}

impl RunPod {
    pub(super) fn new(instance: &Instance, services: &Services, environment: &Environment) -> Self {
        Self {
            id: instance.id.clone(),
            key: environment("RUNPOD_API_KEY"),
            services: services.clone(),
        }
    }

    fn calls(&self, how: PowerOff) -> Result<Vec<Call>, String> {
        let id = self.id.as_ref().ok_or("RUNPOD_POD_ID is not set")?;
        let key = self.key.as_ref().ok_or("RUNPOD_API_KEY is not set")?;
        let request =
            |method: Method, url: String| Request::new(method, url, Auth::Bearer(key.clone()));
        let (action, v1, mutation) = match how {
            PowerOff::Stop => {
                let url = format!("{}/pods/{id}/stop", self.services.runpod_v1);
                ("stop", request(Method::POST, url), "podStop")
            }
            _ => {
                let url = format!("{}/pods/{id}", self.services.runpod_v1);
                ("terminate", request(Method::DELETE, url), "podTerminate")
            }
        };
        let v2 = format!("{}/pods/{id}/action", self.services.runpod_v2);
        // A stop answers with the pod, of which its name must be asked for.
        let fields = if how == PowerOff::Stop { "{id}" } else { "" };
        let query = format!("mutation{{{mutation}(input:{{podId:\"{id}\"}}){fields}}}");
        let graphql = request(Method::POST, self.services.runpod_graphql.clone());
        Ok(vec![
            Call {
                request: request(Method::POST, v2).json(&json!({"action": action})),
                judge,
            },
            Call {
                request: v1,
                judge: judge_v1,
            },
            Call {
                request: graphql.json(&json!({"query": query})),
                judge: judge_graphql,
            },
        ])
    }
}

impl Provider for RunPod {
    fn way(&self, how: PowerOff) -> Way {
        match self.calls(how) {
            Ok(calls) => Way::Calls(calls),
            Err(why) => Way::None(why),
        }
    }

    fn look(&self) -> Option<Request> {
        let url = format!("{}/pods/{}", self.services.runpod_v2, self.id.as_ref()?);
        let key = self.key.clone()?;
        Some(Request::new(Method::GET, url, Auth::Bearer(key)))
    }

    fn read(&self, answer: &Answer) -> Sight {
        if !answer.is_success() {
            return Sight::failed(answer);
        }
        let pod = answer.json();
        let text = |name: &str| pod[name].as_str().map(str::to_owned);
        let presence = match pod["status"].as_str() {
            Some("TERMINATED") => Presence::Gone,
            Some("EXITED") => Presence::Stopped,
            Some(_) => Presence::Running,
            None => Presence::Unknown,
        };
        // 0 is what a stopped pod costs but for its disk: not the price of this machine.
        let cost = pod["cost"].as_f64().filter(|&cost| cost > 0.0);
        Sight {
            presence,
            price: cost.map(|per_hour| Price {
                per_hour,
                storage_per_hour: 0.0,
                source: PriceSource::Provider,
            }),
            region: text("dataCenterId"),
            machine: pod["gpu"]["id"].as_str().map(str::to_owned),
            ..Sight::default()
        }
    }

    fn public_url(&self, port: u16) -> Option<String> {
        let id = self.id.as_ref()?;
        Some(format!("https://{id}-{port}.proxy.runpod.net"))
    }

    fn default_grace(&self) -> Duration {
        Duration::from_secs(5)
    }
}

/// This API is retired: "not found" may be the API itself.
fn judge_v1(answer: &Answer) -> Outcome {
    match answer.status {
        404 | 410 => Outcome::Denied(answer.text()),
        _ => judge(answer),
    }
}

/// GraphQL says no with status 200.
fn judge_graphql(answer: &Answer) -> Outcome {
    let body = answer.json();
    let errors = body["errors"].as_array();
    let Some(error) = errors.and_then(|errors| errors.first()) else {
        return match judge(answer) {
            Outcome::Accepted if body["data"].is_object() => Outcome::Accepted,
            Outcome::Accepted => retry(answer),
            // The address has no pod in it.
            Outcome::AlreadyGone => Outcome::Denied(answer.text()),
            other => other,
        };
    };
    let message = error["message"].as_str().unwrap_or_default().to_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| message.contains(word));
    if says(&["not found", "does not exist", "no such"]) {
        Outcome::AlreadyGone
    } else if says(&["unauthorized", "not authorized", "forbidden", "permission"]) {
        Outcome::Denied(answer.text())
    } else {
        retry(answer)
    }
}
