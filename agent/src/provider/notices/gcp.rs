//! Google: two values that are waited on, each by a request that is answered when it changes.

use std::time::Duration;

use reqwest::Client;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::sleep;

use super::Pace;
use crate::provider::http::{Answer, Fault, plain_client};
use crate::provider::{Notice, NoticeKind, Services, metadata};

pub(super) const PREEMPTED: &str = "gcp-preempted";
pub(super) const MAINTENANCE: &str = "gcp-maintenance";

/// From the notice to the end of a spot machine.
const GRACE: Duration = Duration::from_secs(30);
/// From a maintenance event to its begin, at the least.
const MAINTENANCE_GRACE: Duration = Duration::from_secs(60);
const WAIT_S: u64 = 60;

pub(super) async fn watch(services: &Services, tell: &UnboundedSender<Notice>, pace: Pace) {
    tokio::join!(
        value("preempted", services, pace, |value| {
            let notice = Notice {
                source: PREEMPTED.to_owned(),
                kind: NoticeKind::Terminate,
                grace: GRACE,
            };
            // A closed channel ends all of this from outside.
            value == "TRUE" && tell.send(notice).is_err()
        }),
        value("maintenance-event", services, pace, |value| {
            let notice = Notice {
                source: MAINTENANCE.to_owned(),
                kind: NoticeKind::Rebalance,
                grace: MAINTENANCE_GRACE,
            };
            value != "NONE" && tell.send(notice).is_err()
        }),
    );
}

/// Hands each new value to `changed`, which says whether that is enough.
async fn value(name: &str, services: &Services, pace: Pace, changed: impl Fn(&str) -> bool) {
    // Longer than the service waits.
    let client = plain_client(Duration::from_secs(WAIT_S + 15));
    let mut last: Option<(String, String)> = None;
    let mut failed = 0;
    loop {
        match ask(&client, services, name, last.as_ref().map(|(_, etag)| etag)).await {
            Err(_) => {
                failed += 1;
                sleep(pace.wait(failed)).await;
            }
            Ok(answer) => {
                failed = 0;
                let now = answer.body.trim().to_owned();
                let news = last.as_ref().is_none_or(|(before, _)| *before != now);
                let etag = answer.etag.unwrap_or_default();
                // Without a tag there is nothing to wait on: ask again, but not at once.
                let waits = !etag.is_empty();
                last = Some((now.clone(), etag));
                if news && changed(&now) {
                    return;
                }
                if !waits {
                    sleep(pace.look_every).await;
                }
            }
        }
    }
}

/// The first time at once: it may be so already.
async fn ask(
    client: &Client,
    services: &Services,
    name: &str,
    etag: Option<&String>,
) -> Result<Answer, Fault> {
    let wait = match etag.filter(|etag| !etag.is_empty()) {
        None => String::new(),
        Some(etag) => format!("?wait_for_change=true&timeout_sec={WAIT_S}&last_etag={etag}"),
    };
    metadata::gcp(client, services, &format!("instance/{name}{wait}")).await
}
