//! Listens for the provider's wish to have the machine back. Started once by the loop.

mod aws;
mod azure;
mod gcp;

use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::mpsc::UnboundedSender;

use super::{Instance, Kind, Notice, Services};

/// Between two looks at a service that has nothing to say.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// A service that does not answer is asked less and less often, but at least this often: one that
/// the network hides from a container may be dead for good.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// How often to ask. Tests ask oftener.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    pub(super) look_every: Duration,
    pub(super) wait_max: Duration,
}

impl Pace {
    /// The wait after so many failures in a row.
    fn wait(self, failed: u32) -> Duration {
        let longest = self
            .look_every
            .saturating_mul(1 << failed.saturating_sub(1).min(16));
        longest.min(self.wait_max.max(self.look_every))
    }
}

/// Listens to whatever service this machine's provider has, until nobody wants to hear of it. Says
/// each notice once. A provider without such a service (it sends a signal, or nothing) ends this at
/// once.
pub async fn watch_notices(instance: &Instance, services: Services, tell: UnboundedSender<Notice>) {
    let pace = Pace {
        look_every: LOOK_EVERY,
        wait_max: WAIT_MAX,
    };
    watch(instance, &services, &tell, pace).await;
}

pub(super) async fn watch(
    instance: &Instance,
    services: &Services,
    tell: &UnboundedSender<Notice>,
    pace: Pace,
) {
    let listening = async {
        match instance.kind {
            Kind::Aws => aws::watch(services, tell, pace).await,
            Kind::Gcp => gcp::watch(services, tell, pace).await,
            Kind::Azure => azure::watch(instance, services, tell, pace).await,
            _ => {}
        }
    };
    tokio::select! {
        () = listening => {}
        () = tell.closed() => {}
    }
}

/// Where notices of this provider come from, for people.
pub fn sources(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Aws => &[
            aws::SPOT,
            aws::REBALANCE,
            aws::GROUP,
            aws::MAINTENANCE,
            "signals",
        ],
        Kind::Gcp => &[gcp::PREEMPTED, gcp::MAINTENANCE, "signals"],
        Kind::Azure => &[azure::EVENTS, "signals"],
        _ => &["signals"],
    }
}

/// A time that a service writes in a header (RFC 9110).
fn http_date(text: &str) -> Option<Timestamp> {
    let date = text.trim().strip_suffix("GMT").unwrap_or(text).trim();
    let time = jiff::fmt::strtime::parse("%a, %d %b %Y %H:%M:%S", date).ok()?;
    let time = time.to_datetime().ok()?;
    Some(time.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp())
}

/// From the moment of an answer, by the service's clock, to `time`. Ours may be wrong.
fn until(time: Timestamp, answered: Option<&str>) -> Option<Duration> {
    let left = time.duration_since(http_date(answered?)?);
    Some(Duration::try_from(left).unwrap_or_default())
}
