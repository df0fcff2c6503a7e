//! EC2: a spot machine is told two minutes before its end, and at times that it is at risk.

use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::sleep;

use super::{Pace, until};
use crate::provider::http::Answer;
use crate::provider::metadata::Imds;
use crate::provider::{Notice, NoticeKind, Services};

pub(super) const SPOT: &str = "aws-spot-action";
pub(super) const REBALANCE: &str = "aws-rebalance";

/// From a spot action to the end of the machine.
const GRACE: Duration = Duration::from_secs(120);

pub(super) async fn watch(services: &Services, tell: &UnboundedSender<Notice>, pace: Pace) {
    let imds = Imds::new(services.aws_metadata.clone());
    let (mut action, mut rebalance) = (None, None);
    let mut failed = 0;
    loop {
        let seen = async {
            let spot = imds.get("meta-data/spot/instance-action").await?;
            let path = "meta-data/events/recommendations/rebalance";
            // A spot action is not held up by the other.
            Ok::<_, crate::provider::http::Fault>((spot, imds.get(path).await))
        };
        match seen.await {
            Err(_) => failed += 1,
            Ok((spot, risk)) => {
                failed = 0;
                if let Some(answer) = spot.filter(|answer| is_news(answer, &mut action)) {
                    let closed = tell.send(spot_action(&answer)).is_err();
                    if closed {
                        return;
                    }
                }
                let risk = risk.ok().flatten();
                if risk.is_some_and(|answer| is_news(&answer, &mut rebalance)) {
                    let notice = Notice {
                        source: REBALANCE.to_owned(),
                        kind: NoticeKind::Rebalance,
                        grace: GRACE,
                    };
                    if tell.send(notice).is_err() {
                        return;
                    }
                }
            }
        }
        sleep(pace.wait(failed)).await;
    }
}

/// Whether the answer differs from the one before.
fn is_news(answer: &Answer, last: &mut Option<String>) -> bool {
    let news = last.as_ref() != Some(&answer.body);
    *last = Some(answer.body.clone());
    news
}

/// `{"action": "terminate", "time": "2017-09-18T08:22:00Z"}`.
fn spot_action(answer: &Answer) -> Notice {
    let body = answer.json();
    let time = body["time"].as_str().and_then(|time| time.parse().ok());
    let left = time.and_then(|time: Timestamp| until(time, answer.date.as_deref()));
    let grace = match body["action"].as_str() {
        // It begins at once.
        Some("hibernate") => Duration::ZERO,
        _ => left.map_or(GRACE, |left| left.min(GRACE)),
    };
    Notice {
        source: SPOT.to_owned(),
        kind: NoticeKind::Terminate,
        grace,
    }
}
