//! Signs requests for EC2 as AWS wants it (signature version 4). Called when a request is sent.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use aws_config::BehaviorVersion;
use aws_sdk_s3::config::{Credentials, ProvideCredentials};
use aws_sdk_s3::primitives::{DateTime, DateTimeFormat};
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use aws_smithy_http_client::Builder;
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use serde_json::Value;

use super::http::Fault;
use super::metadata::Imds;

/// A signature of another time is refused; ours is corrected once it is off by more than this.
const SKEW_S_MAX: u64 = 60;

/// Whose signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AwsIdentity {
    /// What AWS's tools would use: variables, shared files, a web identity, the role.
    Chain,
    /// The instance's own role: the variables may hold another store's keys.
    Role,
}

pub(super) struct Signer {
    imds: Imds,
    /// How far EC2's clock is ahead of ours.
    ahead_s: AtomicI64,
}

impl Signer {
    pub(super) fn new(imds: Imds) -> Self {
        Self {
            imds,
            ahead_s: AtomicI64::new(0),
        }
    }

    /// Headers to send besides `headers` with a POST of `body`.
    pub(super) async fn sign(
        &self,
        url: &str,
        region: &str,
        identity: AwsIdentity,
        headers: &[(String, String)],
        body: &str,
    ) -> Result<Vec<(String, String)>, Fault> {
        let credentials = match identity {
            AwsIdentity::Chain => chain().await?,
            AwsIdentity::Role => self.role().await?,
        };
        let identity = credentials.into();
        let fault = |error: &dyn std::error::Error| Fault::Refused(format!("cannot sign: {error}"));
        let parameters = v4::SigningParams::builder()
            .identity(&identity)
            .region(region)
            .name("ec2")
            .time(self.now())
            .settings(SigningSettings::default())
            .build()
            .map_err(|error| fault(&error))?
            .into();
        let named = headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()));
        let body = SignableBody::Bytes(body.as_bytes());
        let request =
            SignableRequest::new("POST", url, named, body).map_err(|error| fault(&error))?;
        let (signed, _) = sign(request, &parameters)
            .map_err(|error| fault(&error))?
            .into_parts();
        let own = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        Ok(signed.headers().map(own).collect())
    }

    /// The role's credentials, straight from the metadata service.
    async fn role(&self) -> Result<Credentials, Fault> {
        const ROLES: &str = "meta-data/iam/security-credentials/";
        let none = || Fault::Refused("the instance has no role".to_owned());
        let roles = self.imds.get(ROLES).await?.ok_or_else(none)?;
        let role = roles.body.lines().next().ok_or_else(none)?.trim();
        let answer = self.imds.get(&format!("{ROLES}{role}")).await?;
        let answer = answer.ok_or_else(none)?.json();
        let text = |name: &str| {
            let value = answer.get(name).and_then(Value::as_str);
            let missing =
                || Fault::Transient(format!("the credentials of role {role} have no {name}"));
            value.map(str::to_owned).ok_or_else(missing)
        };
        let token = Some(text("Token")?);
        let (id, secret) = (text("AccessKeyId")?, text("SecretAccessKey")?);
        Ok(Credentials::new(id, secret, token, None, "role"))
    }

    fn now(&self) -> SystemTime {
        let ahead_s = self.ahead_s.load(Ordering::Relaxed);
        let ahead = Duration::from_secs(ahead_s.unsigned_abs());
        let now = SystemTime::now();
        let moved = if ahead_s < 0 {
            now.checked_sub(ahead)
        } else {
            now.checked_add(ahead)
        };
        moved.unwrap_or(now)
    }

    /// Takes note of an answer's `Date`: the next signature is of that clock's time.
    pub(super) fn hear_date(&self, date: &str) {
        if let Ok(date) = DateTime::from_str(date, DateTimeFormat::HttpDate) {
            let ahead_s = date.secs() - DateTime::from(SystemTime::now()).secs();
            let real = ahead_s.unsigned_abs() > SKEW_S_MAX;
            self.ahead_s
                .store(if real { ahead_s } else { 0 }, Ordering::Relaxed);
        }
    }
}

async fn chain() -> Result<Credentials, Fault> {
    let http = Builder::new()
        .tls_provider(Provider::Rustls(CryptoMode::Ring))
        .build_https();
    let loader = aws_config::defaults(BehaviorVersion::v2026_01_12()).http_client(http);
    let shared = loader.load().await;
    let provider = shared.credentials_provider();
    let none = || Fault::Refused("no AWS credentials are configured".to_owned());
    let provider = provider.ok_or_else(none)?;
    let credentials = provider.provide_credentials().await;
    // The error's text names sources, never values.
    credentials.map_err(|error| Fault::Refused(format!("no AWS credentials: {error}")))
}
