//! The client and its settings: what works with every store that speaks S3. Called by `s3`.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::ProfileFileRegionProvider;
use aws_config::retry::RetryConfig;
use aws_config::stalled_stream_protection::StalledStreamProtectionConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, ConfigLoader, Region};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::interceptors::BeforeDeserializationInterceptorContextRef;
use aws_sdk_s3::config::{
    ConfigBag, Credentials, Intercept, RequestChecksumCalculation, ResponseChecksumValidation,
    RuntimeComponents,
};
use aws_sdk_s3::error::BoxError;
use aws_sdk_s3::primitives::{DateTime, DateTimeFormat};
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use aws_smithy_http_client::{Builder, Connector};

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

pub(super) async fn client(settings: Settings) -> (Client, Arc<StoreClock>) {
    let own_endpoint = settings.endpoint.is_some();
    let shared = loader(settings.clone()).load().await;
    let named_endpoint = |name| std::env::var(name).is_ok_and(|url| !url.is_empty());
    let own_endpoint =
        own_endpoint || shared.endpoint_url().is_some() || named_endpoint("AWS_ENDPOINT_URL_S3");
    let told = std::env::var(PATH_STYLE_VARIABLE).ok();
    let told = told.and_then(|told| told.parse().ok());
    let path_style = settings.path_style.or(told).unwrap_or(own_endpoint);
    let clock = Arc::new(StoreClock::default());
    let config = aws_sdk_s3::config::Builder::from(&shared)
        .force_path_style(path_style)
        // Pinned here: the environment could switch them otherwise. The defaults send trailers
        // that several stores refuse; with these, a checksum is sent where we give its value.
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .interceptor(SharedClock(Arc::clone(&clock)));
    (Client::from_conf(config.build()), clock)
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

/// The store's clock, as its answers tell it: ages do not depend on ours.
#[derive(Debug, Default)]
pub(super) struct StoreClock {
    ahead_ms: AtomicI64,
}

#[derive(Debug)]
struct SharedClock(Arc<StoreClock>);

impl StoreClock {
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
    pub(super) fn hear(&self, date: &str) {
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

impl Intercept for SharedClock {
    fn name(&self) -> &'static str {
        "StoreClock"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if let Some(date) = context.response().headers().get("date") {
            self.0.hear(date);
        }
        Ok(())
    }
}
