//! The metadata services of AWS, GCP and Azure, which a machine reaches at an address of its own.
//! Called by detection, the notices and whatever needs a token.

use std::time::Duration;

use reqwest::{Client, Method};
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::Services;
use super::http::{Answer, Fault, plain_client, read};

/// A service that is there answers within milliseconds; where the hop limit cuts us off, it never
/// does.
pub(super) const ANSWER_MAX: Duration = Duration::from_secs(2);
const TOKEN_TTL_S: u64 = 21_600;
/// A token is renewed this long before it ends.
const TOKEN_MARGIN: Duration = Duration::from_secs(15);

/// AWS's instance metadata service, version 2: every request carries a token.
pub(super) struct Imds {
    base: String,
    client: Client,
    token: Mutex<Option<(String, Instant)>>,
}

impl Imds {
    pub(super) fn new(base: String) -> Self {
        Self {
            base,
            client: plain_client(ANSWER_MAX),
            token: Mutex::new(None),
        }
    }

    /// What stands at `/latest/{path}`; `None` if nothing does, which is the usual answer for much.
    pub(super) async fn get(&self, path: &str) -> Result<Option<Answer>, Fault> {
        let url = format!("{}/latest/{path}", self.base);
        for renewed in [false, true] {
            let token = self.token().await?;
            let request = self.client.request(Method::GET, &url);
            let answer = read(request.header("x-aws-ec2-metadata-token", token)).await;
            let answer = answer.map_err(|why| Fault::Transient(format!("GET {url}: {why}")))?;
            match answer.status {
                200 => return Ok(Some(answer)),
                404 => return Ok(None),
                // The token was revoked or came from another host before a migration.
                401 if !renewed => *self.token.lock().await = None,
                _ => return Err(bad("GET", &url, &answer)),
            }
        }
        let why = format!("GET {url}: a fresh token is refused");
        Err(Fault::Transient(why))
    }

    async fn token(&self) -> Result<String, Fault> {
        let mut held = self.token.lock().await;
        if let Some((token, until)) = &*held
            && Instant::now() < *until
        {
            return Ok(token.clone());
        }
        let url = format!("{}/latest/api/token", self.base);
        let request = self.client.request(Method::PUT, &url);
        let ttl_s = TOKEN_TTL_S.to_string();
        let request = request.header("x-aws-ec2-metadata-token-ttl-seconds", ttl_s);
        // Some proxies wait for a length.
        let answer = read(request.header("content-length", "0"));
        let answer = answer
            .await
            .map_err(|why| Fault::Transient(format!("PUT {url}: {why}")))?;
        if answer.status != 200 || answer.body.is_empty() {
            return Err(bad("PUT", &url, &answer));
        }
        let ttl = answer.ttl.as_ref().and_then(|ttl| ttl.parse().ok());
        let ttl = Duration::from_secs(ttl.unwrap_or(TOKEN_TTL_S));
        let until = Instant::now() + ttl.saturating_sub(TOKEN_MARGIN);
        *held = Some((answer.body.clone(), until));
        Ok(answer.body)
    }

    /// The text at `/latest/meta-data/{name}`, if there is any.
    pub(super) async fn text(&self, name: &str) -> Option<String> {
        let answer = self.get(&format!("meta-data/{name}")).await.ok()??;
        Some(answer.body.trim().to_owned()).filter(|text| !text.is_empty())
    }
}

/// What stands at `/computeMetadata/v1/{path}`, from Google's service and no other.
pub(super) async fn gcp(client: &Client, services: &Services, path: &str) -> Result<Answer, Fault> {
    let url = format!("{}/computeMetadata/v1/{path}", services.gcp_metadata);
    let request = client.request(Method::GET, &url);
    let answer = read(request.header("Metadata-Flavor", "Google")).await;
    let answer = answer.map_err(|why| Fault::Transient(format!("GET {url}: {why}")))?;
    let is_googles = answer.flavor.as_deref() == Some("Google");
    if answer.status == 200 && is_googles {
        Ok(answer)
    } else {
        Err(bad("GET", &url, &answer))
    }
}

/// What stands at `/metadata/{path}` of Azure's service.
pub(super) async fn azure(
    client: &Client,
    services: &Services,
    path: &str,
) -> Result<Answer, Fault> {
    let url = format!("{}/metadata/{path}", services.azure_metadata);
    let request = client.request(Method::GET, &url);
    let answer = read(request.header("Metadata", "true")).await;
    let answer = answer.map_err(|why| Fault::Transient(format!("GET {url}: {why}")))?;
    if answer.status == 200 {
        Ok(answer)
    } else {
        Err(bad("GET", &url, &answer))
    }
}

pub(super) async fn gcp_token(services: &Services) -> Result<String, Fault> {
    let client = plain_client(ANSWER_MAX);
    let path = "instance/service-accounts/default/token";
    access_token(&gcp(&client, services, path).await?)
}

pub(super) async fn azure_token(services: &Services) -> Result<String, Fault> {
    let client = plain_client(ANSWER_MAX);
    let path = "identity/oauth2/token?api-version=2018-02-01\
        &resource=https%3A%2F%2Fmanagement.azure.com%2F";
    access_token(&azure(&client, services, path).await?)
}

fn access_token(answer: &Answer) -> Result<String, Fault> {
    let body = answer.json();
    let token = body.get("access_token").and_then(Value::as_str);
    // The answer itself is not for people: it may hold the token under another name.
    token
        .map(str::to_owned)
        .ok_or_else(|| Fault::Refused("the metadata service gave no access_token".to_owned()))
}

/// Another status than the one that was hoped for.
fn bad(method: &str, url: &str, answer: &Answer) -> Fault {
    let why = format!("{method} {url}: {}", answer.text());
    match answer.status {
        400..=407 | 410 => Fault::Refused(why),
        _ => Fault::Transient(why),
    }
}
