//! A request to a provider as plain data, so that a dry run shows what would be sent, and the
//! client that sends it. Called by the adapter; the providers' files only write requests and read
//! answers.

use std::fmt;
use std::sync::OnceLock;
use std::time::Duration;

use reqwest::{Client, Method};
use serde_json::Value;

use super::Services;
use super::http::{Answer, Fault, client, is_loopback, plain_client, read};
use super::metadata::{Imds, azure_token, gcp_token};
use super::sign::{AwsIdentity, Signer};
use crate::redact::MASK;

/// Providers take their time to end a machine.
pub(super) const ANSWER_MAX: Duration = Duration::from_secs(30);

/// One request, without what can only be known when it is sent: tokens and signatures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) url: String,
    pub(super) auth: Auth,
    pub(super) body: Body,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Body {
    None,
    Json(String),
    /// `application/x-www-form-urlencoded`.
    Form(String),
}

/// How the request says who asks.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Auth {
    None,
    /// `authorization: Bearer KEY`.
    Bearer(String),
    /// A header of its own, and the key.
    Header(&'static str, String),
    /// A token of the machine's service account.
    GcpToken,
    /// A token of the machine's managed identity.
    AzureToken,
    /// Signature version 4 for EC2 of this region.
    Aws {
        region: String,
        identity: AwsIdentity,
    },
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown().unwrap_or_default())
    }
}

impl Auth {
    fn shown(&self) -> Option<String> {
        match self {
            Self::None => None,
            Self::Bearer(_) => Some(format!("authorization Bearer {MASK}")),
            Self::Header(name, _) => Some(format!("{name} {MASK}")),
            Self::GcpToken => Some("authorization Bearer (service account's token)".to_owned()),
            Self::AzureToken => Some("authorization Bearer (managed identity's token)".to_owned()),
            Self::Aws { identity, .. } => {
                let whose = match identity {
                    AwsIdentity::Chain => "the credentials that AWS's tools find",
                    AwsIdentity::Role => "the instance's role",
                };
                Some(format!("authorization AWS4-HMAC-SHA256 ({whose})"))
            }
        }
    }
}

impl Request {
    pub(super) fn new(method: Method, url: String, auth: Auth) -> Self {
        Self {
            method,
            url,
            auth,
            body: Body::None,
        }
    }

    pub(super) fn json(mut self, body: &Value) -> Self {
        self.body = Body::Json(body.to_string());
        self
    }

    pub(super) fn form(mut self, body: String) -> Self {
        self.body = Body::Form(body);
        self
    }
}

/// The request for people, without secrets.
impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.url)?;
        if let Some(auth) = self.auth.shown() {
            write!(f, " [{auth}]")?;
        }
        match &self.body {
            Body::None => Ok(()),
            Body::Json(body) | Body::Form(body) => write!(f, " {body}"),
        }
    }
}

/// Sends requests.
pub(super) struct Caller {
    services: Services,
    answer_max: Duration,
    /// Made when it is needed, as it reads the roots of trust; or why there is none.
    client: OnceLock<Result<Client, String>>,
    plain_client: Client,
    signer: Signer,
}

impl Caller {
    pub(super) fn new(services: Services, answer_max: Duration) -> Self {
        let imds = Imds::new(services.aws_metadata.clone());
        Self {
            answer_max,
            client: OnceLock::new(),
            plain_client: plain_client(answer_max),
            signer: Signer::new(imds),
            services,
        }
    }

    /// One try.
    pub(super) async fn send(&self, request: &Request) -> Result<Answer, Fault> {
        let mut headers: Vec<(String, String)> = Vec::new();
        let bytes = match &request.body {
            Body::None => "",
            Body::Json(body) => {
                headers.push(("content-type".to_owned(), "application/json".to_owned()));
                body
            }
            Body::Form(body) => {
                let form = "application/x-www-form-urlencoded; charset=utf-8";
                headers.push(("content-type".to_owned(), form.to_owned()));
                body
            }
        };
        let bearer = |token: String| ("authorization".to_owned(), format!("Bearer {token}"));
        match &request.auth {
            Auth::None => {}
            Auth::Bearer(key) => headers.push(bearer(key.clone())),
            Auth::Header(name, key) => headers.push(((*name).to_owned(), key.clone())),
            Auth::GcpToken => headers.push(bearer(gcp_token(&self.services).await?)),
            Auth::AzureToken => headers.push(bearer(azure_token(&self.services).await?)),
            Auth::Aws { region, identity } => {
                let signed = self
                    .signer
                    .sign(&request.url, region, *identity, &headers, bytes);
                headers.extend(signed.await?);
            }
        }
        let client = if is_loopback(&request.url) {
            &self.plain_client
        } else {
            match self.client.get_or_init(|| client(self.answer_max)) {
                Ok(client) => client,
                Err(why) => return Err(Fault::Refused(why.clone())),
            }
        };
        let mut builder = client.request(request.method.clone(), &request.url);
        for (name, value) in headers {
            builder = builder.header(name, value);
        }
        if request.body != Body::None {
            builder = builder.body(bytes.to_owned());
        }
        let answer = read(builder).await.map_err(Fault::Transient)?;
        if let (Auth::Aws { .. }, Some(date)) = (&request.auth, &answer.date) {
            self.signer.hear_date(date);
        }
        Ok(answer)
    }
}
