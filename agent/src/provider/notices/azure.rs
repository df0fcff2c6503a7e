//! Azure: a list of events that are scheduled for this machine and its siblings.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::sleep;

use super::{Pace, http_date, until};
use crate::provider::http::plain_client;
use crate::provider::{Instance, Notice, NoticeKind, Services, metadata};

pub(super) const EVENTS: &str = "azure-scheduled-events";

/// What a spot machine is given at the least.
const GRACE: Duration = Duration::from_secs(30);
/// The first request switches the service on, which takes up to two minutes.
const ANSWER_MAX: Duration = Duration::from_secs(150);

pub(super) async fn watch(
    instance: &Instance,
    services: &Services,
    tell: &UnboundedSender<Notice>,
    pace: Pace,
) {
    let client = plain_client(ANSWER_MAX);
    let name = instance.id.as_deref().and_then(|id| id.rsplit('/').next());
    let mut told = BTreeSet::new();
    let mut failed = 0;
    loop {
        let path = "scheduledevents?api-version=2020-07-01";
        match metadata::azure(&client, services, path).await {
            Err(_) => failed += 1,
            Ok(answer) => {
                failed = 0;
                let list = answer.json();
                let events = list["Events"].as_array().into_iter().flatten();
                for event in events.filter(|event| concerns(event, name)) {
                    let notice = notice(event, answer.date.as_deref());
                    let id = event["EventId"].as_str().unwrap_or_default();
                    let Some(notice) = notice else { continue };
                    if told.insert(id.to_owned()) && tell.send(notice).is_err() {
                        return;
                    }
                }
            }
        }
        sleep(pace.wait(failed)).await;
    }
}

/// Events of siblings in a scale set are listed as well.
fn concerns(event: &Value, name: Option<&str>) -> bool {
    let machines = event["Resources"].as_array();
    let (Some(machines), Some(name)) = (machines, name) else {
        return true;
    };
    let is_ours = |machine: &Value| {
        let machine = machine.as_str().unwrap_or_default();
        machine.trim_start_matches('_').eq_ignore_ascii_case(name)
    };
    machines.is_empty() || machines.iter().any(is_ours)
}

fn notice(event: &Value, answered: Option<&str>) -> Option<Notice> {
    let what = event["EventType"].as_str()?;
    let kind = match what {
        "Preempt" | "Terminate" => NoticeKind::Terminate,
        "Reboot" | "Redeploy" => NoticeKind::Rebalance,
        // A freeze of seconds takes nothing away.
        _ => return None,
    };
    let time = event["NotBefore"].as_str().and_then(http_date);
    let left = time.and_then(|time| until(time, answered));
    Some(Notice {
        source: format!("azure-{}", what.to_lowercase()),
        kind,
        grace: left.unwrap_or(GRACE),
    })
}
