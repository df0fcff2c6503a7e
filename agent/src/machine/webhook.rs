//! Tells somebody who is not looking. Never waited for, and what fails is only said.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;

use crate::https;

const REQUEST_MAX: Duration = Duration::from_secs(10);
const TRIES: u32 = 3;
const WAIT: Duration = Duration::from_secs(5);

/// An address that takes events as JSON by POST. It may be a secret, so it is never shown.
#[derive(Clone)]
pub struct Webhook {
    address: String,
    client: reqwest::Client,
}

impl Webhook {
    /// # Errors
    /// If the address is none of HTTP, or there is no client to be had.
    pub fn new(address: &str) -> Result<Self, String> {
        let url = reqwest::Url::parse(address).map_err(|error| format!("--webhook: {error}"))?;
        if !matches!(url.scheme(), "http" | "https") {
            let scheme = url.scheme();
            return Err(format!(
                "--webhook: expected http:// or https://, got {scheme}://"
            ));
        }
        let client = https::builder()
            .timeout(REQUEST_MAX)
            .build()
            .map_err(|error| format!("--webhook: {}", error.without_url()))?;
        Ok(Self {
            address: address.to_owned(),
            client,
        })
    }

    /// Sends one event, some times if need be.
    ///
    /// # Errors
    /// Why the last try failed, without the address.
    pub async fn send(&self, body: &Value) -> Result<(), String> {
        self.send_after(WAIT, body).await
    }

    pub(super) async fn send_after(&self, wait: Duration, body: &Value) -> Result<(), String> {
        let mut tries = 0;
        loop {
            tries += 1;
            let request = self.client.post(&self.address).json(body);
            let why = match request.send().await {
                Ok(answer) if answer.status().is_success() => return Ok(()),
                Ok(answer) => format!("it answered {}", answer.status()),
                Err(error) => error.without_url().to_string(),
            };
            if tries >= TRIES {
                return Err(why);
            }
            sleep(wait).await;
        }
    }
}

/// The body of an event.
pub(crate) fn body(job: &str, agent: &str, event: &str, text: &str, cost_usd: f64) -> Value {
    json!({
        "job": job,
        "agent": agent,
        "event": event,
        "text": text,
        "cost_so_far": cost_usd,
        "time": jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    })
}
