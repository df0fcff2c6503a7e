//! Until the machine is gone: whatever the provider answers, and whatever it does instead.

use std::sync::Arc;
use std::time::Duration;

use super::fake::{Fake, Reply, Seen};
use super::{FakeHost, adapter, adapter_with, instance};
use crate::provider::{Adapter, Kind, Outcome, PowerOff};

const YES: &str = r#"{"success":true}"#;
const RUNNING: &str = r#"{"instances":{"cur_state":"running"}}"#;
const STOPPED: &str = r#"{"instances":{"cur_state":"stopped"}}"#;

/// What came of it, and every line that was said. A minute is far more than any of these take.
async fn give_back(adapter: &Adapter, how: PowerOff) -> (Outcome, Vec<String>) {
    let mut said = Vec::new();
    let giving = adapter.power_off_until_gone(how, |line| said.push(line));
    let outcome = tokio::time::timeout(Duration::from_secs(60), giving).await;
    (outcome.expect("it ends"), said)
}

fn is_delete(seen: &Seen) -> bool {
    seen.line.starts_with("DELETE")
}

#[tokio::test]
async fn no_such_machine_is_the_end() {
    for reply in [
        Reply::new(404, ""),
        Reply::new(400, r#"{"success":false,"error":"no_such_instance"}"#),
    ] {
        let fake = Fake::script(vec![reply]).await;
        let (adapter, _) = adapter(instance(Kind::Vast, "1"), &fake.url);
        let (outcome, _) = give_back(&adapter, PowerOff::Destroy).await;
        assert_eq!(outcome, Outcome::AlreadyGone);
        assert_eq!(fake.lines().len(), 1);
    }
}

#[tokio::test]
async fn every_fault_on_the_way_is_got_over() {
    let fake = Fake::script(vec![
        Reply::new(429, "too frequent"),
        Reply::new(500, "oh"),
        Reply::new(503, "no"),
        Reply::new(502, "<html>"),
        Reply::cut(),
        Reply::new(200, YES).after(Duration::from_secs(5)),
        Reply::new(200, r#"{"success":false,"msg":"try later"}"#),
        Reply::new(404, ""),
    ])
    .await;
    let (adapter, host) = adapter(instance(Kind::Vast, "1"), &fake.url);
    let (outcome, said) = give_back(&adapter, PowerOff::Destroy).await;
    assert_eq!(outcome, Outcome::AlreadyGone);
    // Nothing but the destroy was tried: a stop would be less than was asked.
    assert_eq!(fake.lines().len(), 8, "{:?}", fake.lines());
    assert!(fake.seen().iter().all(is_delete));
    let expected = [
        "429",
        "500",
        "503",
        "502",
        "no answer",
        "timed out",
        "later",
    ];
    for (line, word) in said.iter().zip(expected) {
        assert!(line.contains(word), "{word}: {said:?}");
    }
    assert_eq!(host.done(), Vec::<&str>::new());
}

#[tokio::test]
async fn a_service_that_is_not_there_is_asked_again() {
    let fake = Fake::script(vec![Reply::new(404, "")]).await;
    // Nobody listens on port 1; the fake takes over once that was seen.
    let more = [("AGENT_VAST_URL", "http://127.0.0.1:1")];
    let (nowhere, _) = adapter_with(instance(Kind::Vast, "1"), &fake.url, &more);
    let outcome = nowhere.power_off(PowerOff::Destroy).await;
    let Outcome::Retry { why, .. } = outcome else {
        panic!("{outcome:?}");
    };
    assert!(why.contains("no answer"), "{why}");
}

#[tokio::test]
async fn waits_are_as_long_as_the_provider_asks() {
    let fake = Fake::script(vec![
        Reply::new(429, "").header("retry-after", "1"),
        Reply::new(404, ""),
    ])
    .await;
    let (mut adapter, _) = adapter(instance(Kind::Vast, "1"), &fake.url);
    adapter.pace.max = Duration::from_secs(60);
    let began = std::time::Instant::now();
    give_back(&adapter, PowerOff::Destroy).await;
    assert!(began.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn an_accepted_end_is_looked_at_until_it_came() {
    let fake = Fake::script(vec![
        Reply::new(200, YES),
        Reply::new(200, RUNNING),
        Reply::new(200, RUNNING),
        Reply::new(404, ""),
    ])
    .await;
    let (adapter, _) = adapter(instance(Kind::Vast, "1"), &fake.url);
    let (outcome, said) = give_back(&adapter, PowerOff::Destroy).await;
    assert_eq!(outcome, Outcome::Accepted);
    assert_eq!(said, ["destroy: accepted"]);
    let methods: Vec<String> = fake
        .lines()
        .iter()
        .map(|line| line.split(' ').next().unwrap().to_owned())
        .collect();
    assert_eq!(methods, ["DELETE", "GET", "GET", "GET"]);
}

#[tokio::test]
async fn a_lying_success_is_asked_again_and_then_stopped() {
    let fake = Fake::start(|seen| match seen.line.split(' ').next() {
        Some("GET") => Reply::new(200, RUNNING),
        Some("DELETE") => Reply::new(200, YES),
        _ => Reply::new(404, ""),
    })
    .await;
    let (adapter, _) = adapter(instance(Kind::Vast, "1"), &fake.url);
    let (outcome, said) = give_back(&adapter, PowerOff::Destroy).await;
    assert_eq!(outcome, Outcome::AlreadyGone);
    let destroys = fake.seen().iter().filter(|seen| is_delete(seen)).count();
    assert_eq!(destroys, 2, "{:?}", fake.lines());
    let lie = "destroy: accepted, but the provider still shows the machine";
    assert!(said.iter().any(|line| line == lie), "{said:?}");
}

#[tokio::test]
async fn a_stop_is_done_when_the_provider_shows_it() {
    let fake = Fake::script(vec![Reply::new(200, YES), Reply::new(200, STOPPED)]).await;
    let (adapter, _) = adapter(instance(Kind::Vast, "1"), &fake.url);
    let (outcome, _) = give_back(&adapter, PowerOff::Stop).await;
    assert_eq!(outcome, Outcome::Accepted);
    assert_eq!(
        fake.lines(),
        ["PUT /vast/instances/1/", "GET /vast/instances/1/"]
    );
}

#[tokio::test]
async fn a_destroy_that_is_denied_becomes_a_stop() {
    let fake = Fake::start(|seen| match seen.line.split(' ').next() {
        Some("GET") => Reply::new(200, STOPPED),
        Some("DELETE") => Reply::new(403, r#"{"error":"auth_error"}"#),
        _ => Reply::new(200, YES),
    })
    .await;
    let (adapter, _) = adapter(instance(Kind::Vast, "1"), &fake.url);
    let (outcome, said) = give_back(&adapter, PowerOff::Destroy).await;
    assert_eq!(outcome, Outcome::Accepted);
    assert_eq!(
        said[0],
        "destroy: denied: HTTP 403 {\"error\":\"auth_error\"}"
    );
    assert_eq!(said[1], "stop: accepted");
}

#[tokio::test]
async fn what_keeps_being_denied_ends_the_container_and_calls_it_a_zombie() {
    let fake = Fake::script(vec![Reply::new(401, "")]).await;
    let (mut adapter, _) = adapter(instance(Kind::Vast, "1"), &fake.url);
    let first = FakeHost {
        first: true,
        ..FakeHost::default()
    };
    adapter.host = Arc::new(first);
    let (outcome, said) = give_back(&adapter, PowerOff::Destroy).await;
    // We are the first process: our end is all that is left, and the caller sees to that.
    assert!(matches!(outcome, Outcome::Denied(_)));
    let zombies: Vec<&String> = said
        .iter()
        .filter(|line| line.starts_with("ZOMBIE"))
        .collect();
    assert_eq!(
        zombies,
        ["ZOMBIE vast 1: destroy is denied: HTTP 401; stop is denied: HTTP 401"]
    );
    let stops = fake.lines().iter().filter(|l| l.starts_with("PUT")).count();
    assert_eq!(stops, 3);
}

/// Gives back for as long as it takes until this was said.
async fn until_said(adapter: &Adapter, part: &str) -> Vec<String> {
    let (tell, mut hear) = tokio::sync::mpsc::unbounded_channel();
    let giving = adapter.power_off_until_gone(PowerOff::Destroy, move |line| {
        tell.send(line).ok();
    });
    let mut said = Vec::new();
    tokio::pin!(giving);
    loop {
        tokio::select! {
            outcome = &mut giving => panic!("ended with {outcome:?} after {said:?}"),
            line = hear.recv() => {
                let line = line.unwrap();
                said.push(line);
                if said.last().unwrap().contains(part) {
                    return said;
                }
            }
        }
    }
}

#[tokio::test]
async fn another_first_process_is_ended_instead() {
    let fake = Fake::script(vec![Reply::new(401, "")]).await;
    let (adapter, host) = adapter(instance(Kind::RunPod, "1"), &fake.url);
    let said = until_said(&adapter, "it lives on").await;
    assert_eq!(host.done(), ["end container"]);
    let warned = "ending this container: its disk may go on costing money";
    assert!(said.iter().any(|line| line == warned));
}

#[tokio::test]
async fn a_machine_is_shut_down_and_what_that_costs_is_said() {
    for (behavior, expected) in [
        (
            "terminate",
            "shutting this machine down: which ends it for good",
        ),
        (
            "stop",
            "shutting this machine down: EC2 then stops the machine and bills its disk, unless it \
             was launched with InstanceInitiatedShutdownBehavior=terminate; \
             InstanceInitiatedShutdownBehavior is stop",
        ),
    ] {
        let fake = Fake::start(move |seen| match seen.line.as_str() {
            "PUT /aws_metadata/latest/api/token" => Reply::new(200, "token"),
            line if line.ends_with("security-credentials/") => Reply::new(200, "role"),
            line if line.contains("security-credentials") => Reply::new(
                200,
                r#"{"AccessKeyId":"a","SecretAccessKey":"b","Token":"c"}"#,
            ),
            _ if seen.body.contains("DescribeInstanceAttribute") => Reply::new(
                200,
                format!(
                    "<r><instanceInitiatedShutdownBehavior><value>{behavior}</value>\
                     </instanceInitiatedShutdownBehavior></r>"
                ),
            ),
            _ => Reply::new(
                403,
                "<Response><Errors><Error><Code>UnauthorizedOperation</Code></Error></Errors>",
            ),
        })
        .await;
        let (adapter, host) = adapter(instance(Kind::Aws, "i-1"), &fake.url);
        let said = until_said(&adapter, "shutdown: not found").await;
        assert!(said.iter().any(|line| line == expected), "{said:?}");
        assert_eq!(host.done(), ["shut down"]);
        let asked = fake.seen();
        let check = asked
            .iter()
            .find(|seen| seen.body.contains("Attribute"))
            .unwrap();
        assert_eq!(
            check.body,
            "Action=DescribeInstanceAttribute&Attribute=instanceInitiatedShutdownBehavior\
             &InstanceId=i-1&Version=2016-11-15"
        );
    }
}

#[tokio::test]
async fn a_provider_that_cannot_be_reached_is_tried_for_ever_and_said_to_be_a_zombie() {
    let fake = Fake::script(vec![Reply::new(500, "")]).await;
    let (mut adapter, host) = adapter(instance(Kind::Vast, "1"), &fake.url);
    adapter.pace.patience = Duration::from_millis(100);
    adapter.pace.zombie = Duration::from_millis(300);
    let said = until_said(&adapter, "ZOMBIE").await;
    assert_eq!(
        said.last().unwrap(),
        "ZOMBIE vast 1: still there 0 minutes after its end"
    );
    // After its patience, a stop is tried as well: it ends most of the bill.
    assert!(fake.lines().iter().any(|line| line.starts_with("PUT")));
    // The container stays: nobody else would go on trying.
    assert_eq!(host.done(), Vec::<&str>::new());
}

#[tokio::test]
async fn a_machine_that_is_leaving_is_given_its_time() {
    let fake = Fake::start({
        let looks = std::sync::atomic::AtomicU32::new(0);
        move |seen| match seen.line.split(' ').next() {
            Some("POST") => Reply::new(200, "{}"),
            _ if looks.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < 20 => {
                Reply::new(200, r#"{"data":{"id":"a","status":"terminating"}}"#)
            }
            _ => Reply::new(200, r#"{"data":{"id":"a","status":"terminated"}}"#),
        }
    })
    .await;
    let (mut adapter, _) = adapter(instance(Kind::Lambda, "a"), &fake.url);
    adapter.pace.settle = Duration::from_millis(50);
    adapter.pace.look_every = Duration::from_millis(10);
    let (outcome, said) = give_back(&adapter, PowerOff::Destroy).await;
    assert_eq!(outcome, Outcome::Accepted);
    assert_eq!(said, ["destroy: accepted"]);
}

#[tokio::test]
async fn a_provider_that_ends_with_us_needs_no_call() {
    let (adapter, _) = adapter(instance(Kind::Modal, "ta-1"), "http://127.0.0.1:1");
    let (outcome, said) = give_back(&adapter, PowerOff::Destroy).await;
    assert_eq!((outcome, said.len()), (Outcome::Accepted, 0));
}

#[tokio::test]
async fn secrets_in_an_answer_are_not_said() {
    let echo = r#"{"msg":"no such key: vast-key-1234"}"#;
    let fake = Fake::script(vec![Reply::new(403, echo)]).await;
    let (adapter, _) = adapter(instance(Kind::Vast, "1"), &fake.url);
    let outcome = adapter.power_off(PowerOff::Destroy).await;
    let expected = r#"HTTP 403 {"msg":"no such key: [redacted]"}"#;
    assert_eq!(outcome, Outcome::Denied(expected.to_owned()));
}

/// A machine whose clock is years off would never sign anything that EC2 takes.
#[tokio::test]
async fn ec2s_clock_is_taken_for_the_next_signature() {
    let fake = Fake::start(|seen| match seen.line.as_str() {
        "PUT /aws_metadata/latest/api/token" => Reply::new(200, "token"),
        line if line.ends_with("security-credentials/") => Reply::new(200, "role"),
        line if line.contains("security-credentials") => Reply::new(
            200,
            r#"{"AccessKeyId":"a","SecretAccessKey":"b","Token":"c"}"#,
        ),
        _ if seen.header("x-amz-date").starts_with("2031") => {
            Reply::new(400, "<Code>InvalidInstanceID.NotFound</Code>")
        }
        _ => Reply::new(400, "<Code>RequestExpired</Code>")
            .header("date", "Sat, 15 Nov 2031 08:00:00 GMT"),
    })
    .await;
    let (adapter, _) = adapter(instance(Kind::Aws, "i-1"), &fake.url);
    let (outcome, _) = give_back(&adapter, PowerOff::Destroy).await;
    assert_eq!(outcome, Outcome::AlreadyGone);
}

#[tokio::test]
async fn a_machine_that_is_said_to_be_gone_while_it_runs_is_shut_down() {
    let fake = Fake::start(|seen| match seen.line.contains("metadata") {
        true => Reply::new(200, r#"{"access_token":"t"}"#).header("metadata-flavor", "Google"),
        false => Reply::new(404, "no such route"),
    })
    .await;
    let id = "projects/p/zones/z/instances/i";
    let (adapter, host) = adapter(instance(Kind::Gcp, id), &fake.url);
    let (outcome, _) = give_back(&adapter, PowerOff::Destroy).await;
    assert_eq!(outcome, Outcome::AlreadyGone);
    assert_eq!(host.done(), ["shut down"]);

    let (adapter, host) = super::adapter(instance(Kind::Gcp, id), &fake.url);
    let (outcome, _) = give_back(&adapter.elsewhere(), PowerOff::Destroy).await;
    assert_eq!(outcome, Outcome::AlreadyGone);
    assert_eq!(host.done(), Vec::<&str>::new());
}

#[tokio::test]
async fn this_machine_is_not_ended_instead_of_another() {
    let fake = Fake::script(vec![Reply::new(401, "")]).await;
    for (kind, id, elsewhere) in [
        (Kind::Vast, "1", true),
        (Kind::Lambda, "a", true),
        // Nothing but the user's word says whose this is.
        (Kind::Aws, "", false),
    ] {
        let (mut adapter, host) = adapter(instance(kind, id), &fake.url);
        if elsewhere {
            adapter = adapter.elsewhere();
        }
        adapter.pace.zombie = Duration::from_millis(300);
        until_said(&adapter, "minutes after its end").await;
        assert_eq!(host.done(), Vec::<&str>::new(), "{kind}");
    }
}
