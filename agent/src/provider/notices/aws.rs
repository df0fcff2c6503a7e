//! EC2: a spot machine is told two minutes before its end, and at times that it is at risk; any
//! machine, of its group's wish to end it and of work on its host.

use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::strtime;
use jiff::tz::TimeZone;
use serde_json::Value;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::sleep;

use super::{Pace, until};
use crate::provider::http::Answer;
use crate::provider::metadata::Imds;
use crate::provider::{Notice, NoticeKind, Services};

pub(super) const SPOT: &str = "aws-spot-action";
pub(super) const REBALANCE: &str = "aws-rebalance";
pub(super) const GROUP: &str = "aws-autoscaling";
pub(super) const MAINTENANCE: &str = "aws-maintenance";

/// From a spot action to the end of the machine.
const GRACE: Duration = Duration::from_secs(120);
/// Work on the host is announced days before: the machine is left this long before it begins.
const LEAVE_BEFORE: Duration = Duration::from_secs(5 * 60);

/// A path of the metadata service, and what its answer announces.
type Place = (&'static str, fn(&Answer) -> Option<Notice>);

/// Each only there while it has something to say. The first one decides whether the service
/// answers at all; none of the others holds it up.
const PLACES: [Place; 4] = [
    ("meta-data/spot/instance-action", spot_action),
    ("meta-data/events/recommendations/rebalance", |_| {
        Some(notice(REBALANCE, NoticeKind::Rebalance, GRACE))
    }),
    ("meta-data/autoscaling/target-lifecycle-state", group),
    ("meta-data/events/maintenance/scheduled", maintenance),
];

pub(super) async fn watch(services: &Services, tell: &UnboundedSender<Notice>, pace: Pace) {
    let imds = Imds::new(services.aws_metadata.clone());
    let mut told = PLACES.map(|_| None);
    let mut failed = 0;
    loop {
        for (i, (path, announces)) in PLACES.into_iter().enumerate() {
            let answer = match imds.get(path).await {
                Ok(answer) => answer,
                Err(_) if i == 0 => {
                    failed += 1;
                    break;
                }
                Err(_) => continue,
            };
            failed = 0;
            let Some(answer) = answer else {
                continue;
            };
            // The same words are told once, but again when they have become a matter of minutes.
            let news = announces(&answer).filter(|notice| {
                let now = Some((answer.body.clone(), notice.kind));
                std::mem::replace(&mut told[i], now.clone()) != now
            });
            if news.is_some_and(|notice| tell.send(notice).is_err()) {
                return;
            }
        }
        sleep(pace.wait(failed)).await;
    }
}

fn notice(source: &str, kind: NoticeKind, grace: Duration) -> Notice {
    Notice {
        source: source.to_owned(),
        kind,
        grace,
    }
}

/// `{"action": "terminate", "time": "2017-09-18T08:22:00Z"}`.
fn spot_action(answer: &Answer) -> Option<Notice> {
    let body = answer.json();
    let time = body["time"].as_str().and_then(|time| time.parse().ok());
    let left = time.and_then(|time: Timestamp| until(time, answer.date.as_deref()));
    let grace = match body["action"].as_str() {
        // It begins at once.
        Some("hibernate") => Duration::ZERO,
        _ => left.map_or(GRACE, |left| left.min(GRACE)),
    };
    Some(notice(SPOT, NoticeKind::Terminate, grace))
}

/// The state that an Auto Scaling group wants the machine in: `InService`, `Terminated`, ….
fn group(answer: &Answer) -> Option<Notice> {
    let ends = answer.body.trim() == "Terminated";
    ends.then(|| notice(GROUP, NoticeKind::Terminate, GRACE))
}

/// `[{"Code": "instance-stop", "State": "active", "NotBefore": "21 Jan 2019 09:00:43 GMT", …}]`.
fn maintenance(answer: &Answer) -> Option<Notice> {
    let body = answer.json();
    let active = body.as_array()?.iter().filter(|it| it["State"] == "active");
    let begins = |event: &Value| {
        let text = event["NotBefore"].as_str()?.trim();
        let text = text.strip_suffix("GMT").unwrap_or(text).trim();
        let time = strtime::parse("%d %b %Y %H:%M:%S", text).ok()?;
        let time = time.to_datetime().ok()?.to_zoned(TimeZone::UTC).ok()?;
        until(time.timestamp(), answer.date.as_deref())
    };
    // A beginning that cannot be read is one that may be near.
    let left = active
        .map(|event| begins(event).unwrap_or_default())
        .min()?;
    Some(match left {
        left if left <= LEAVE_BEFORE => notice(MAINTENANCE, NoticeKind::Terminate, left.min(GRACE)),
        left => notice(MAINTENANCE, NoticeKind::Rebalance, left),
    })
}
