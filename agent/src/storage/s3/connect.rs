//! The client and its settings: what works with every store that speaks S3. Called by `s3`.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::ProfileFileRegionProvider;
use aws_config::retry::RetryConfig;
use aws_config::stalled_stream_protection::StalledStreamProtectionConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, ConfigLoader, Region};
use aws_credential_types::provider::future;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::interceptors::{
    BeforeDeserializationInterceptorContextRef, BeforeTransmitInterceptorContextRef,
};
use aws_sdk_s3::config::{
    ConfigBag, Credentials, Intercept, ProvideCredentials, RequestChecksumCalculation,
    ResponseChecksumValidation, RuntimeComponents, SharedCredentialsProvider,
};
use aws_sdk_s3::error::BoxError;
use aws_sdk_s3::primitives::{DateTime, DateTimeFormat};
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use aws_smithy_http_client::{Builder, Connector};

use crate::storage::Keys;

/// The SDK's own 3.1 s give up on links that merely are far away.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// What stores without regions are content with.
const REGION: &str = "us-east-1";
/// `true` or `false`: addresses as `host/bucket` or as `bucket.host`.
const PATH_STYLE_VARIABLE: &str = "ANNEAL_S3_PATH_STYLE";

/// Where the store is and who we are; what is left out comes from where AWS's tools look too:
/// `AWS_*` variables, the shared files, then the machine's or container's role.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// `http://host:port`.
    pub endpoint: Option<String>,
    pub region: Option<String>,
    /// For tests. Credentials that can expire must come from the chain, which renews them.
    pub credentials: Option<Credentials>,
    /// Without it: path style with an endpoint of its own, as few of those have names for buckets.
    pub path_style: Option<bool>,
}

/// A client, and what is known of the store besides.
pub(super) struct Connection {
    pub(super) client: Client,
    pub(super) heard: Arc<Heard>,
    pub(super) credentials: Option<SharedCredentialsProvider>,
}

pub(super) async fn connect(settings: Settings) -> Connection {
    let own_endpoint = settings.endpoint.is_some();
    let shared = loader(settings.clone()).load().await;
    let named_endpoint = |name| std::env::var(name).is_ok_and(|url| !url.is_empty());
    let own_endpoint =
        own_endpoint || shared.endpoint_url().is_some() || named_endpoint("AWS_ENDPOINT_URL_S3");
    let told = std::env::var(PATH_STYLE_VARIABLE).ok();
    let told = told.and_then(|told| told.parse().ok());
    let path_style = settings.path_style.or(told).unwrap_or(own_endpoint);
    let heard = Arc::new(Heard::default());
    let config = aws_sdk_s3::config::Builder::from(&shared)
        .force_path_style(path_style)
        // Pinned here: the environment could switch them otherwise. The defaults send trailers
        // that several stores refuse; with these, a checksum is sent where we give its value.
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .interceptor(Ear(Arc::clone(&heard)));
    Connection {
        client: Client::from_conf(config.build()),
        heard,
        credentials: shared.credentials_provider(),
    }
}

/// The same client with our key's name and another secret; `None` if we have no key.
pub(super) async fn stranger(
    client: &Client,
    credentials: &SharedCredentialsProvider,
) -> Option<Client> {
    let ours = credentials.provide_credentials().await.ok()?;
    let token = ours.session_token().map(str::to_owned);
    let wrong = "a secret that is not the secret of this key";
    let wrong = Credentials::new(ours.access_key_id(), wrong, token, None, "stranger");
    let config = client.config().to_builder();
    Some(Client::from_conf(
        config.credentials_provider(wrong).build(),
    ))
}

/// The same client with keys that it was told, as long as they are good; then with its own again.
pub(super) fn with_keys(
    client: &Client,
    keys: &Keys,
    own: Option<&SharedCredentialsProvider>,
) -> Client {
    let (token, expires) = (Some(keys.session_token.clone()), keys.expires);
    let (id, secret) = (&keys.access_key_id, &keys.secret_access_key);
    let provider = Told {
        told: Credentials::new(id, secret, token, expires, "control"),
        own: own.cloned(),
    };
    // A provider of its own has a cache of its own: what was cached of the former ends here.
    let config = client.config().to_builder().credentials_provider(provider);
    Client::from_conf(config.build())
}

/// Keys that were told, before the chain's.
#[derive(Debug)]
struct Told {
    told: Credentials,
    own: Option<SharedCredentialsProvider>,
}

impl ProvideCredentials for Told {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        let good = self.told.expiry().is_none_or(|at| SystemTime::now() < at);
        match &self.own {
            Some(own) if !good => own.provide_credentials(),
            _ => future::ProvideCredentials::ready(Ok(self.told.clone())),
        }
    }
}

fn loader(settings: Settings) -> ConfigLoader {
    let region = RegionProviderChain::first_try(settings.region.map(Region::new))
        .or_else(EnvironmentVariableRegionProvider::new())
        .or_else(ProfileFileRegionProvider::new())
        .or_else(REGION);
    // ring, as everything else here that speaks TLS.
    let http = Builder::new().build_with_connector_fn(|settings, components| {
        let mut builder = Connector::builder().proxy_config(ProxyConfig::from_env());
        builder.set_connector_settings(settings.cloned());
        if let Some(components) = components {
            builder.set_sleep_impl(components.sleep_impl());
        }
        builder
            .tls_provider(Provider::Rustls(CryptoMode::Ring))
            .build()
    });
    let timeouts = TimeoutConfig::builder().connect_timeout(CONNECT_LIMIT);
    let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12())
        .http_client(http)
        .region(region)
        .timeout_config(timeouts.build())
        // `Retry` does it, which knows what a lost answer means.
        .retry_config(RetryConfig::disabled())
        // Every call has a limit for its size; a stall within it is a slow link's right.
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
    if let Some(endpoint) = settings.endpoint {
        loader = loader.endpoint_url(endpoint);
    }
    if let Some(credentials) = settings.credentials {
        loader = loader.credentials_provider(credentials);
    }
    loader
}

/// What requests and answers tell besides: where the store is, and its clock, so that ages do not
/// depend on ours.
#[derive(Debug, Default)]
pub(super) struct Heard {
    ahead_ms: AtomicI64,
    address: OnceLock<String>,
}

#[derive(Debug)]
struct Ear(Arc<Heard>);

impl Heard {
    /// Scheme and host of the first request.
    pub(super) fn address(&self) -> Option<String> {
        self.address.get().cloned()
    }

    pub(super) fn now(&self) -> SystemTime {
        let ahead_ms = self.ahead_ms.load(Ordering::Relaxed);
        let ahead = Duration::from_millis(ahead_ms.unsigned_abs());
        let now = SystemTime::now();
        let moved = if ahead_ms < 0 {
            now.checked_sub(ahead)
        } else {
            now.checked_add(ahead)
        };
        moved.unwrap_or(now)
    }

    /// Takes note of an answer's `Date`.
    pub(super) fn hear_date(&self, date: &str) {
        let date = DateTime::from_str(date, DateTimeFormat::HttpDate);
        let (Ok(Ok(date)), Ok(ours)) = (
            date.map(|date| date.to_millis()),
            DateTime::from(SystemTime::now()).to_millis(),
        ) else {
            return;
        };
        self.ahead_ms
            .store(date.saturating_sub(ours), Ordering::Relaxed);
    }
}

impl Intercept for Ear {
    fn name(&self) -> &'static str {
        "Ear"
    }

    fn read_before_transmit(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let uri = context.request().uri();
        if let Some((scheme, rest)) = uri.split_once("://") {
            let end = rest.find(['/', '?']).unwrap_or(rest.len());
            let host = rest[..end].rsplit('@').next().unwrap_or_default();
            self.0.address.get_or_init(|| format!("{scheme}://{host}"));
        }
        Ok(())
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if let Some(date) = context.response().headers().get("date") {
            self.0.hear_date(date);
        }
        Ok(())
    }
}
