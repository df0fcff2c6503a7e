//! Notices of each service, from fakes that behave as documented.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::timeout;

use super::fake::{Fake, Reply, Seen};
use super::{environment_of, instance, variables};
use crate::provider::notices::{Pace, watch};
use crate::provider::{Kind, Notice, NoticeKind, Services, watch_notices};

const TTL: &str = "x-aws-ec2-metadata-token-ttl-seconds";
const DATE: &str = "Tue, 15 Nov 2016 08:00:00 GMT";

/// Listens with a hundredth of the usual waits.
fn listen(kind: Kind, id: &str, fake: &Fake) -> UnboundedReceiver<Notice> {
    let (tell, hear) = unbounded_channel();
    let services = Services::new(&environment_of(variables(&fake.url)));
    let instance = instance(kind, id);
    tokio::spawn(async move {
        let pace = Pace {
            look_every: Duration::from_millis(50),
            wait_max: Duration::from_millis(400),
        };
        watch(&instance, &services, &tell, pace).await;
    });
    hear
}

async fn next(hear: &mut UnboundedReceiver<Notice>) -> Notice {
    let notice = timeout(Duration::from_secs(20), hear.recv()).await;
    notice.expect("a notice comes").expect("somebody listens")
}

fn notice(source: &str, kind: NoticeKind, grace_s: u64) -> Notice {
    Notice {
        source: source.to_owned(),
        kind,
        grace: Duration::from_secs(grace_s),
    }
}

/// What a machine is told, set by a test while it is listened to.
#[derive(Clone, Default)]
struct Said(Arc<Mutex<Option<String>>>);

impl Said {
    fn say(&self, text: &str) {
        *self.0.lock().unwrap() = Some(text.to_owned());
    }

    fn reply(&self) -> Reply {
        let said = self.0.lock().unwrap().clone();
        said.map_or_else(
            || Reply::new(404, "<h1>404 - Not Found</h1>"),
            |said| Reply::new(200, said).header("date", DATE),
        )
    }
}

fn is_token(seen: &Seen) -> bool {
    seen.line == "PUT /aws_metadata/latest/api/token"
}

#[tokio::test]
async fn ec2_tells_of_a_risk_and_then_of_the_end() {
    let (action, risk) = (Said::default(), Said::default());
    let fake = Fake::start({
        let (action, risk) = (action.clone(), risk.clone());
        move |seen| match seen.line.split_once("/latest/").unwrap().1 {
            "api/token" => Reply::new(200, "t").header(TTL, "21600"),
            _ if seen.header("x-aws-ec2-metadata-token") != "t" => Reply::new(401, ""),
            "meta-data/spot/instance-action" => action.reply(),
            "meta-data/events/recommendations/rebalance" => risk.reply(),
            "meta-data/autoscaling/target-lifecycle-state" => Reply::new(200, "InService"),
            "meta-data/events/maintenance/scheduled" => Reply::new(404, ""),
            other => panic!("{other}"),
        }
    })
    .await;
    let mut hear = listen(Kind::Aws, "i-1", &fake);
    fake.wait_for("GET /aws_metadata/latest/meta-data/events")
        .await;
    risk.say(r#"{"noticeTime":"2016-11-15T07:59:00Z"}"#);
    let expected = notice("aws-rebalance", NoticeKind::Rebalance, 120);
    assert_eq!(next(&mut hear).await, expected);

    // The end is reckoned by the service's clock: ours may be years off.
    action.say(r#"{"action":"terminate","time":"2016-11-15T08:01:30Z"}"#);
    let expected = notice("aws-spot-action", NoticeKind::Terminate, 90);
    assert_eq!(next(&mut hear).await, expected);

    // Each is told once, however often it is seen; the token is asked for once.
    let asked = fake.lines().len();
    while fake.lines().len() < asked + 6 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(hear.try_recv().is_err());
    let tokens = fake.seen().iter().filter(|seen| is_token(seen)).count();
    assert_eq!(tokens, 1);
}

#[tokio::test]
async fn ec2s_end_is_at_most_two_minutes_away_and_hibernation_is_now() {
    for (body, grace_s) in [
        (r#"{"action":"stop","time":"2016-11-15T09:00:00Z"}"#, 120),
        (r#"{"action":"stop","time":"soon"}"#, 120),
        (r#"{"action":"terminate","time":"2016-11-15T07:00:00Z"}"#, 0),
        (r#"{"action":"hibernate","time":"2016-11-15T08:02:00Z"}"#, 0),
    ] {
        let action = Said::default();
        action.say(body);
        let fake = Fake::start(move |seen| match seen.line.as_str() {
            _ if is_token(seen) => Reply::new(200, "t"),
            line if line.ends_with("instance-action") => action.reply(),
            _ => Reply::new(404, ""),
        })
        .await;
        let mut hear = listen(Kind::Aws, "i-1", &fake);
        let expected = notice("aws-spot-action", NoticeKind::Terminate, grace_s);
        assert_eq!(next(&mut hear).await, expected, "{body}");
    }
}

#[tokio::test]
async fn ec2_tells_of_its_groups_wish_and_of_work_on_the_host() {
    let (scaling, work) = (Said::default(), Said::default());
    scaling.say("InService");
    let fake = Fake::start({
        let (scaling, work) = (scaling.clone(), work.clone());
        move |seen| match seen.line.as_str() {
            _ if is_token(seen) => Reply::new(200, "t"),
            line if line.ends_with("target-lifecycle-state") => scaling.reply(),
            line if line.ends_with("maintenance/scheduled") => work.reply(),
            _ => Reply::new(404, ""),
        }
    })
    .await;
    let mut hear = listen(Kind::Aws, "i-1", &fake);
    let event = |state: &str, time: &str| {
        format!(r#"[{{"Code":"instance-stop","State":"{state}","NotBefore":"{time}"}}]"#)
    };
    work.say(&event("canceled", "15 Nov 2016 08:01:00 GMT"));
    fake.wait_for("GET /aws_metadata/latest/meta-data/events/maintenance")
        .await;
    // An hour after the answer's date: time to save; minutes after it: time to leave.
    work.say(&event("active", "15 Nov 2016 09:00:00 GMT"));
    let expected = notice("aws-maintenance", NoticeKind::Rebalance, 3600);
    assert_eq!(next(&mut hear).await, expected);
    work.say(&event("active", "15 Nov 2016 08:01:00 GMT"));
    let expected = notice("aws-maintenance", NoticeKind::Terminate, 60);
    assert_eq!(next(&mut hear).await, expected);
    work.say(&event("active", "some day"));
    let expected = notice("aws-maintenance", NoticeKind::Terminate, 0);
    assert_eq!(next(&mut hear).await, expected);
    scaling.say("Terminated");
    let expected = notice("aws-autoscaling", NoticeKind::Terminate, 120);
    assert_eq!(next(&mut hear).await, expected);
}

#[tokio::test]
async fn a_token_that_ec2_refuses_is_renewed() {
    let tokens = Arc::new(AtomicU32::new(0));
    let fake = Fake::start({
        let tokens = Arc::clone(&tokens);
        move |seen| {
            let now = tokens.load(Ordering::Relaxed);
            if is_token(seen) {
                tokens.store(now + 1, Ordering::Relaxed);
                return Reply::new(200, format!("token-{}", now + 1)).header(TTL, "21600");
            }
            // The first is revoked at once.
            if now < 2 || seen.header("x-aws-ec2-metadata-token") != format!("token-{now}") {
                return Reply::new(401, "");
            }
            match seen.line.ends_with("instance-action") {
                true => Reply::new(200, r#"{"action":"terminate"}"#),
                false => Reply::new(404, ""),
            }
        }
    })
    .await;
    let mut hear = listen(Kind::Aws, "i-1", &fake);
    let expected = notice("aws-spot-action", NoticeKind::Terminate, 120);
    assert_eq!(next(&mut hear).await, expected);
    assert_eq!(tokens.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_token_is_renewed_before_it_ends() {
    // One second more than the margin.
    let fake = Fake::start(|seen| match is_token(seen) {
        true => Reply::new(200, "t").header(TTL, "16"),
        false => Reply::new(404, ""),
    })
    .await;
    let began = Instant::now();
    let _hear = listen(Kind::Aws, "i-1", &fake);
    let renewed = async {
        while fake.seen().iter().filter(|seen| is_token(seen)).count() < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    // Its end, without a margin, would be 16 s away.
    timeout(Duration::from_secs(10), renewed).await.unwrap();
    assert!(began.elapsed() >= Duration::from_secs(1));
    // None was refused meanwhile.
    assert!(fake.seen().iter().filter(|seen| !is_token(seen)).count() > 4);
}

#[tokio::test]
async fn a_dead_metadata_service_is_asked_less_and_less_often() {
    let fake = Fake::script(vec![Reply::new(503, "")]).await;
    let _hear = listen(Kind::Aws, "i-1", &fake);
    tokio::time::sleep(Duration::from_millis(2000)).await;
    // Every 50 ms would be 40; with the waits 50, 100, 200, 400, 400, … it is 8.
    let asked = fake.lines().len();
    assert!((2..=9).contains(&asked), "{asked}");
}

/// Google's values, as a request with `wait_for_change` sees them: answered at a change or at the
/// time that it names.
fn googles(preempted: Said, maintenance: Said) -> impl Fn(&Seen) -> Reply + Send + Sync {
    move |seen| {
        assert_eq!(seen.header("metadata-flavor"), "Google");
        let preempts = seen.line.contains("/instance/preempted");
        let (said, default) = match preempts {
            true => (&preempted, "FALSE"),
            false => (&maintenance, "NONE"),
        };
        let now = said.0.lock().unwrap().clone();
        let now = now.unwrap_or_else(|| default.to_owned());
        let etag = format!("{:x}", now.len());
        let reply = Reply::new(200, now).header("metadata-flavor", "Google");
        let same = seen.line.contains(&format!("last_etag={etag}"));
        // A fake's minute is short.
        let after = Duration::from_millis(if same { 50 } else { 0 });
        reply.header("etag", etag).after(after)
    }
}

#[tokio::test]
async fn google_tells_of_a_preemption_to_one_who_waits() {
    let (preempted, maintenance) = (Said::default(), Said::default());
    let fake = Fake::start(googles(preempted.clone(), maintenance.clone())).await;
    let mut hear = listen(Kind::Gcp, "", &fake);
    let waiting = "preempted?wait_for_change=true&timeout_sec=60&last_etag=5";
    fake.wait_for(waiting).await;
    let path = "GET /gcp_metadata/computeMetadata/v1/instance/";
    assert!(fake.lines().contains(&format!("{path}preempted")));
    assert!(fake.lines().contains(&format!("{path}maintenance-event")));

    maintenance.say("TERMINATE_ON_HOST_MAINTENANCE");
    let expected = notice("gcp-maintenance", NoticeKind::Rebalance, 60);
    assert_eq!(next(&mut hear).await, expected);
    preempted.say("TRUE");
    let expected = notice("gcp-preempted", NoticeKind::Terminate, 30);
    assert_eq!(next(&mut hear).await, expected);
    assert!(hear.try_recv().is_err());
}

#[tokio::test]
async fn google_is_heard_if_the_preemption_came_first_or_faults_come_between() {
    let failed = AtomicU32::new(0);
    let fake = Fake::start(move |seen| {
        let google = |text: &str| Reply::new(200, text).header("metadata-flavor", "Google");
        match seen.line.contains("preempted") {
            // Not Google's own answer: a proxy's, an outage, a cut, then the truth.
            true => match failed.fetch_add(1, Ordering::Relaxed) {
                0 => Reply::new(200, "TRUE"),
                1 => Reply::new(503, ""),
                2 => Reply::cut(),
                _ => google("TRUE"),
            },
            false => google("NONE"),
        }
    })
    .await;
    let mut hear = listen(Kind::Gcp, "", &fake);
    let expected = notice("gcp-preempted", NoticeKind::Terminate, 30);
    assert_eq!(next(&mut hear).await, expected);
    let asked = fake
        .lines()
        .iter()
        .filter(|l| l.contains("preempted"))
        .count();
    assert_eq!(asked, 4);
}

#[tokio::test]
async fn azure_tells_of_events_that_concern_this_machine() {
    let events = Said::default();
    events.say(r#"{"DocumentIncarnation":1,"Events":[]}"#);
    let fake = Fake::start({
        let events = events.clone();
        move |seen| {
            let path = "/azure_metadata/metadata/scheduledevents?api-version=2020-07-01";
            assert_eq!(seen.line, format!("GET {path}"));
            assert_eq!(seen.header("metadata"), "true");
            events.reply()
        }
    })
    .await;
    let id = "/subscriptions/s/providers/Microsoft.Compute/virtualMachines/vm-1";
    let mut hear = listen(Kind::Azure, id, &fake);
    fake.wait_for("scheduledevents").await;
    let event = |id: &str, kind: &str, machine: &str, time: &str| {
        format!(
            r#"{{"EventId":"{id}","EventType":"{kind}","ResourceType":"VirtualMachine",
            "Resources":["{machine}"],"EventStatus":"Scheduled","NotBefore":"{time}"}}"#
        )
    };
    let list = [
        event("a", "Preempt", "vm-2", "Tue, 15 Nov 2016 08:00:30 GMT"),
        event("b", "Freeze", "vm-1", "Tue, 15 Nov 2016 08:15:00 GMT"),
        event("c", "Reboot", "vm-1", "Tue, 15 Nov 2016 08:15:00 GMT"),
        event("d", "Preempt", "vm-1", "Tue, 15 Nov 2016 08:00:45 GMT"),
        event("e", "Terminate", "vm-1", ""),
    ];
    let list = list.join(",");
    events.say(&format!(r#"{{"DocumentIncarnation":2,"Events":[{list}]}}"#));
    for expected in [
        notice("azure-reboot", NoticeKind::Rebalance, 900),
        notice("azure-preempt", NoticeKind::Terminate, 45),
        notice("azure-terminate", NoticeKind::Terminate, 30),
    ] {
        assert_eq!(next(&mut hear).await, expected);
    }
    let asked = fake.lines().len();
    while fake.lines().len() < asked + 3 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(hear.try_recv().is_err());
}

#[tokio::test]
async fn who_has_no_service_is_not_listened_to() {
    let services = Services::new(&environment_of(variables("http://127.0.0.1:1")));
    let (tell, mut hear) = unbounded_channel();
    watch_notices(&instance(Kind::Vast, "1"), services, tell).await;
    assert_eq!(hear.recv().await, None);
}

#[tokio::test]
async fn listening_ends_with_the_last_who_hears() {
    let fake = Fake::script(vec![Reply::new(404, "")]).await;
    let services = Services::new(&environment_of(variables(&fake.url)));
    let (tell, hear) = unbounded_channel();
    drop(hear);
    let listening = async { watch_notices(&instance(Kind::Aws, "i"), services, tell).await };
    timeout(Duration::from_secs(10), listening).await.unwrap();
}
