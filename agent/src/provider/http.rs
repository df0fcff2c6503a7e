//! The HTTP client: one request, one answer, read whole. Called by `metadata` and `call`.

use std::time::Duration;

use reqwest::Client;
use serde_json::Value;

use crate::https;

const CONNECT_MAX: Duration = Duration::from_secs(10);
/// Of an answer, for people.
const TEXT_CHARS_MAX: usize = 200;
/// Of an answer that is read: none that we ask for comes near it.
const BODY_BYTES_MAX: usize = 4 << 20;

/// Why there is no answer to judge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The way there: nothing is known of what came of the request, another try may get through.
    Transient(String),
    /// We have nothing to show who we are: the request was not sent.
    Refused(String),
}

#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: String,
    pub(super) etag: Option<String>,
    pub(super) date: Option<String>,
    /// `Metadata-Flavor`: only Google's service sends it.
    pub(super) flavor: Option<String>,
    /// How long an IMDSv2 token lives.
    pub(super) ttl: Option<String>,
    pub(super) retry_after: Option<Duration>,
}

impl Answer {
    pub(super) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The body as JSON; `null` if it is none.
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or(Value::Null)
    }

    /// Status and the beginning of the body, on one line.
    pub(super) fn text(&self) -> String {
        let words: Vec<&str> = self.body.split_whitespace().collect();
        let body: String = words.join(" ").chars().take(TEXT_CHARS_MAX).collect();
        format!("HTTP {} {body}", self.status).trim_end().to_owned()
    }
}

/// Sends what was built and reads the answer whole.
pub(super) async fn read(builder: reqwest::RequestBuilder) -> Result<Answer, String> {
    let mut response = builder.send().await.map_err(|error| causes(&error))?;
    let header = |name: &str| {
        let value = response.headers().get(name)?;
        Some(value.to_str().ok()?.to_owned())
    };
    let mut answer = Answer {
        status: response.status().as_u16(),
        body: String::new(),
        etag: header("etag"),
        date: header("date"),
        flavor: header("metadata-flavor"),
        ttl: header("x-aws-ec2-metadata-token-ttl-seconds"),
        retry_after: header("retry-after")
            .and_then(|seconds| seconds.parse().ok())
            .map(Duration::from_secs),
    };
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| causes(&error))? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > BODY_BYTES_MAX {
            return Err(format!("the answer has more than {BODY_BYTES_MAX} bytes"));
        }
    }
    answer.body = String::from_utf8_lossy(&bytes).into_owned();
    Ok(answer)
}

/// For services of this machine and its network: they are never behind a proxy and speak no TLS, so
/// the roots of trust are not read, which takes longer than their answer.
pub(super) fn plain_client(answer_max: Duration) -> Client {
    let builder = https::builder().no_proxy().tls_certs_only([]);
    let client = with_limits(builder, answer_max).build();
    client.expect("without roots of trust and proxies nothing depends on the machine")
}

/// For everything else, by way of the proxy that the environment names.
///
/// # Errors
/// If the machine has no roots of trust.
pub(super) fn client(answer_max: Duration) -> Result<Client, String> {
    let client = with_limits(https::builder(), answer_max).build();
    client.map_err(|error| causes(&error))
}

fn with_limits(builder: reqwest::ClientBuilder, answer_max: Duration) -> reqwest::ClientBuilder {
    builder
        .connect_timeout(CONNECT_MAX.min(answer_max))
        .timeout(answer_max)
        // A redirect would carry our key to who knows where.
        .redirect(reqwest::redirect::Policy::none())
        .user_agent("anneal-agent")
}

/// Whether this machine itself is asked.
pub(super) fn is_loopback(url: &str) -> bool {
    let host = url.split_once("://").map_or(url, |(_, rest)| rest);
    ["127.", "localhost", "[::1]"]
        .iter()
        .any(|start| host.starts_with(start))
}

/// An error with its causes, without the URL: the caller knows it.
fn causes(error: &reqwest::Error) -> String {
    let text = match () {
        () if error.is_timeout() => "timed out",
        () if error.is_builder() => "no client for HTTPS",
        () => "no answer",
    };
    let mut text = text.to_owned();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
