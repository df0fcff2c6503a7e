//! The exact request of every provider, and that a dry run shows it without its key.

use std::fmt::Write;

use sha2::{Digest, Sha256};

use super::fake::{Fake, Reply, Seen};
use super::{adapter, adapter_with, instance};
use crate::provider::{Kind, Outcome, PowerOff};

const GOOGLES: &str = "projects/p-1/zones/us-central1-a/instances/trainer-1";
const AZURES: &str = "/subscriptions/s/resourceGroups/g/providers/\
    Microsoft.Compute/virtualMachines/vm-1";

/// Sends one power-off to a fake that answers everything with `reply`.
async fn sent(kind: Kind, id: &str, how: PowerOff, reply: Reply) -> (Vec<Seen>, Outcome) {
    let fake = Fake::start(move |seen| tokens(seen).unwrap_or_else(|| reply.clone())).await;
    let (adapter, _) = adapter(instance(kind, id), &fake.url);
    let outcome = adapter.power_off(how).await;
    let seen = fake.seen().into_iter();
    let asked = seen.filter(|seen| !seen.line.contains("metadata"));
    (asked.collect(), outcome)
}

/// What metadata services hand out.
fn tokens(seen: &Seen) -> Option<Reply> {
    let roles = "/aws_metadata/latest/meta-data/iam/security-credentials/";
    let google = "/gcp_metadata/computeMetadata/v1/instance/service-accounts/default/token";
    let azure = "/azure_metadata/metadata/identity/oauth2/token\
        ?api-version=2018-02-01&resource=https%3A%2F%2Fmanagement.azure.com%2F";
    let (_, path) = seen.line.split_once(' ').unwrap();
    let role = path.strip_prefix(roles);
    let text = match path {
        "/aws_metadata/latest/api/token" => "imds-token",
        _ if role == Some("") => "trainer-role\n",
        _ if role == Some("trainer-role") => {
            r#"{"AccessKeyId":"AKIDEXAMPLE","SecretAccessKey":"secret-of-role","Token":"tok"}"#
        }
        _ if path == google && seen.header("metadata-flavor") == "Google" => {
            r#"{"access_token":"google-token"}"#
        }
        _ if path == azure && seen.header("metadata") == "true" => {
            r#"{"access_token":"azure-token"}"#
        }
        _ => return None,
    };
    Some(Reply::new(200, text).header("metadata-flavor", "Google"))
}

/// That the request is this one, its key stands in this header, and the answer is accepted.
async fn check(
    (kind, id, how): (Kind, &str, PowerOff),
    reply: Reply,
    (line, header, value, body): (&str, &str, &str, &str),
) {
    let (seen, outcome) = sent(kind, id, how, reply).await;
    assert_eq!(outcome, Outcome::Accepted, "{kind} {how:?}");
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert_eq!(seen[0].line, line);
    assert_eq!(seen[0].header(header), value, "{kind}");
    assert_eq!(seen[0].body, body, "{kind}");
    if body.starts_with('{') {
        assert_eq!(seen[0].header("content-type"), "application/json");
    }
}

const YES: &str = r#"{"success":true}"#;

#[tokio::test]
async fn vast_destroys_and_stops_its_own_instance() {
    check(
        (Kind::Vast, "123", PowerOff::Destroy),
        Reply::new(200, YES),
        (
            "DELETE /vast/instances/123/",
            "authorization",
            "Bearer vast-key-1234",
            "{}",
        ),
    )
    .await;
    check(
        (Kind::Vast, "123", PowerOff::Stop),
        Reply::new(200, YES),
        (
            "PUT /vast/instances/123/",
            "authorization",
            "Bearer vast-key-1234",
            r#"{"state":"stopped"}"#,
        ),
    )
    .await;
}

#[tokio::test]
async fn runpod_asks_its_newest_api_first() {
    check(
        (Kind::RunPod, "pod1", PowerOff::Destroy),
        Reply::new(204, ""),
        (
            "POST /runpod_v2/pods/pod1/action",
            "authorization",
            "Bearer runpod-key-1234",
            r#"{"action":"terminate"}"#,
        ),
    )
    .await;
    check(
        (Kind::RunPod, "pod1", PowerOff::Stop),
        Reply::new(200, r#"{"id":"pod1"}"#),
        (
            "POST /runpod_v2/pods/pod1/action",
            "authorization",
            "Bearer runpod-key-1234",
            r#"{"action":"stop"}"#,
        ),
    )
    .await;
}

#[tokio::test]
async fn runpod_falls_back_to_its_older_apis() {
    let fake = Fake::start(|seen| match seen.line.split('/').nth(1) {
        Some("runpod_v2") => Reply::new(401, "a pod's key may not"),
        Some("runpod_v1") => Reply::new(404, "this API is retired"),
        _ => Reply::new(200, r#"{"data":{"podTerminate":null}}"#),
    })
    .await;
    let (adapter, _) = adapter(instance(Kind::RunPod, "pod1"), &fake.url);
    let outcome = adapter.power_off(PowerOff::Destroy).await;
    assert_eq!(outcome, Outcome::Accepted);
    assert_eq!(
        fake.lines(),
        [
            "POST /runpod_v2/pods/pod1/action",
            "DELETE /runpod_v1/pods/pod1",
            "POST /runpod_graphql",
        ]
    );
    let graphql = &fake.seen()[2];
    assert_eq!(
        graphql.body,
        r#"{"query":"mutation{podTerminate(input:{podId:\"pod1\"})}"}"#
    );
    assert_eq!(graphql.header("authorization"), "Bearer runpod-key-1234");

    adapter.power_off(PowerOff::Stop).await;
    assert_eq!(fake.lines()[4], "POST /runpod_v1/pods/pod1/stop");
    assert_eq!(
        fake.seen()[5].body,
        r#"{"query":"mutation{podStop(input:{podId:\"pod1\"}){id}}"}"#
    );
}

#[tokio::test]
async fn runpod_is_not_gone_because_an_api_is() {
    for (said, gone) in [
        (r#"{"errors":[{"message":"Something broke"}]}"#, false),
        (
            r#"{"errors":[{"message":"Pod not found to terminate"}]}"#,
            true,
        ),
    ] {
        let fake = Fake::start(move |seen| match seen.line.split('/').nth(1) {
            Some("runpod_v2") => Reply::new(401, ""),
            Some("runpod_v1") => Reply::new(404, "no such route"),
            _ => Reply::new(200, said),
        })
        .await;
        let (adapter, _) = adapter(instance(Kind::RunPod, "pod1"), &fake.url);
        match adapter.power_off(PowerOff::Destroy).await {
            Outcome::AlreadyGone => assert!(gone, "{said}"),
            Outcome::Retry { .. } => assert!(!gone, "{said}"),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn lambda_terminates_by_id() {
    let line = "POST /lambda/instance-operations/terminate";
    check(
        (Kind::Lambda, "abc", PowerOff::Destroy),
        Reply::new(200, r#"{"data":{"terminated_instances":[]}}"#),
        (
            line,
            "authorization",
            "Bearer lambda-key-1234",
            r#"{"instance_ids":["abc"]}"#,
        ),
    )
    .await;
    let (seen, outcome) = sent(Kind::Lambda, "abc", PowerOff::Stop, Reply::new(200, "{}")).await;
    assert!(seen.is_empty());
    assert!(matches!(outcome, Outcome::Denied(_)));
}

#[tokio::test]
async fn lambda_finds_its_id_by_its_name() {
    let list = r#"{"data":[{"id":"other","name":"job-1"},{"id":"ours","name":"job-2-7f3a"}]}"#;
    let fake = Fake::script(vec![Reply::new(200, list), Reply::new(200, "{}")]).await;
    let name = [("AGENT_INSTANCE_NAME", "job-2-7f3a")];
    let (adapter, _) = adapter_with(instance(Kind::Lambda, ""), &fake.url, &name);
    let dry = adapter.requests(PowerOff::Destroy);
    assert!(dry[0].contains("GET ") && dry[0].contains("/lambda/instances ["));

    let outcome = adapter.power_off(PowerOff::Destroy).await;
    assert_eq!(outcome, Outcome::Accepted);
    assert_eq!(fake.lines()[0], "GET /lambda/instances");
    assert_eq!(fake.seen()[1].body, r#"{"instance_ids":["ours"]}"#);
}

#[tokio::test]
async fn lambda_ends_nobody_else_of_the_same_name() {
    let list = r#"{"data":[{"id":"a","name":"job"},{"id":"b","name":"job"}]}"#;
    let fake = Fake::script(vec![Reply::new(200, list)]).await;
    let name = [("AGENT_INSTANCE_NAME", "job")];
    let (adapter, _) = adapter_with(instance(Kind::Lambda, ""), &fake.url, &name);
    let outcome = adapter.power_off(PowerOff::Destroy).await;
    let expected = r#"no single instance is named "job""#;
    assert_eq!(outcome, Outcome::Denied(expected.to_owned()));
    assert_eq!(fake.lines(), ["GET /lambda/instances"]);
}

#[tokio::test]
async fn jarvislabs_ends_each_sort_of_machine_at_its_own_address() {
    for (machine, stop, destroy) in [
        (r#""template":"pytorch""#, "misc/pause", "misc/destroy"),
        (
            r#""framework":"vm","gpu_type":"H100""#,
            "templates/vm/pause",
            "templates/vm/destroy",
        ),
        (
            r#""template":"vm","gpu_type":"CPU""#,
            "templates/vm/cpu/pause",
            "templates/vm/cpu/destroy",
        ),
    ] {
        let list = format!(
            r#"{{"success":true,"instances":[{{"machine_id":7,"status":"Running",{machine}}}]}}"#
        );
        let fake = Fake::start(move |seen| match seen.line.contains("fetch") {
            true => Reply::new(200, list.clone()),
            // Spelt as the service spells it.
            false => Reply::new(200, r#"{"sucess":"True"}"#),
        })
        .await;
        let (adapter, _) = adapter(instance(Kind::JarvisLabs, "7"), &fake.url);
        for how in [PowerOff::Destroy, PowerOff::Stop] {
            assert_eq!(adapter.power_off(how).await, Outcome::Accepted);
        }
        assert_eq!(
            fake.lines(),
            [
                "GET /jarvislabs/users/fetch".to_owned(),
                format!("POST /jarvislabs/{destroy}?machine_id=7"),
                format!("POST /jarvislabs/{stop}?machine_id=7"),
            ]
        );
        let key = fake.seen()[1].header("authorization").to_owned();
        assert_eq!(key, "Bearer jarvis-key-1234");
    }
}

#[tokio::test]
async fn jarvislabs_that_lists_others_only_has_ended_ours() {
    let list = r#"{"success":true,"instances":[{"machine_id":8,"status":"Running"}]}"#;
    let reply = Reply::new(200, list);
    let (seen, outcome) = sent(Kind::JarvisLabs, "7", PowerOff::Destroy, reply).await;
    assert_eq!(outcome, Outcome::AlreadyGone);
    assert_eq!(seen.len(), 1);
    // A list that could not be read says nothing.
    let reply = Reply::new(200, r#"{"success":false,"message":"try later"}"#);
    let (_, outcome) = sent(Kind::JarvisLabs, "7", PowerOff::Destroy, reply).await;
    assert!(matches!(outcome, Outcome::Denied(_)), "{outcome:?}");
}

#[tokio::test]
async fn google_is_asked_with_the_service_accounts_token() {
    let path = format!("/gcp_compute/{GOOGLES}");
    check(
        (Kind::Gcp, GOOGLES, PowerOff::Destroy),
        Reply::new(200, "{}"),
        (
            &format!("DELETE {path}"),
            "authorization",
            "Bearer google-token",
            "",
        ),
    )
    .await;
    check(
        (Kind::Gcp, GOOGLES, PowerOff::Stop),
        Reply::new(200, "{}"),
        (
            &format!("POST {path}/stop"),
            "authorization",
            "Bearer google-token",
            "",
        ),
    )
    .await;
}

#[tokio::test]
async fn azure_is_asked_with_the_managed_identitys_token() {
    let path = format!("/azure_management{AZURES}");
    check(
        (Kind::Azure, AZURES, PowerOff::Destroy),
        Reply::new(202, ""),
        (
            &format!("DELETE {path}?api-version=2024-07-01"),
            "authorization",
            "Bearer azure-token",
            "",
        ),
    )
    .await;
    check(
        (Kind::Azure, AZURES, PowerOff::Stop),
        Reply::new(202, ""),
        (
            &format!("POST {path}/deallocate?api-version=2024-07-01"),
            "authorization",
            "Bearer azure-token",
            "",
        ),
    )
    .await;
}

#[tokio::test]
async fn paperspace_is_asked_in_all_its_dialects() {
    check(
        (Kind::Paperspace, "ps1", PowerOff::Destroy),
        Reply::new(200, "{}"),
        (
            "DELETE /paperspace/machines/ps1",
            "authorization",
            "Bearer paperspace-key-1234",
            "",
        ),
    )
    .await;
    check(
        (Kind::Paperspace, "notebook/n1", PowerOff::Stop),
        Reply::new(200, "{}"),
        (
            "POST /paperspace_core/notebooks/v2/stopNotebook",
            "x-api-key",
            "paperspace-key-1234",
            r#"{"notebookId":"n1"}"#,
        ),
    )
    .await;
    let fake = Fake::start(|seen| match seen.line.contains("core") {
        true => Reply::new(204, ""),
        false => Reply::new(403, ""),
    })
    .await;
    let (adapter, _) = adapter(instance(Kind::Paperspace, "ps1"), &fake.url);
    let outcome = adapter.power_off(PowerOff::Stop).await;
    assert_eq!(outcome, Outcome::Accepted);
    assert_eq!(
        fake.lines(),
        [
            "PATCH /paperspace/machines/ps1/stop",
            "POST /paperspace_core/machines/ps1/stop/",
        ]
    );
}

#[tokio::test]
async fn colab_releases_its_machine() {
    check(
        (Kind::Colab, "", PowerOff::Destroy),
        Reply::new(200, ""),
        ("POST /unassign", "authorization", "", ""),
    )
    .await;
}

#[tokio::test]
async fn some_providers_only_need_our_end() {
    for kind in [Kind::Modal, Kind::Replicate, Kind::Kubernetes, Kind::Slurm] {
        let (seen, outcome) = sent(kind, "x", PowerOff::Destroy, Reply::new(500, "")).await;
        assert_eq!(outcome, Outcome::Accepted, "{kind}");
        assert!(seen.is_empty());
    }
}

#[tokio::test]
async fn an_unknown_machine_is_left_alone() {
    let (seen, outcome) = sent(Kind::Local, "x", PowerOff::Destroy, Reply::new(200, "")).await;
    assert!(matches!(outcome, Outcome::Denied(_)));
    assert!(seen.is_empty());
}

#[tokio::test]
async fn nothing_is_sent_without_a_key_or_an_id() {
    let fake = Fake::script(vec![Reply::new(200, YES)]).await;
    for kind in [
        Kind::Vast,
        Kind::RunPod,
        Kind::Lambda,
        Kind::JarvisLabs,
        Kind::Aws,
        Kind::Gcp,
        Kind::Azure,
        Kind::Paperspace,
    ] {
        let (adapter, _) = adapter(instance(kind, ""), &fake.url);
        let outcome = adapter.power_off(PowerOff::Destroy).await;
        assert!(matches!(outcome, Outcome::Denied(_)), "{kind}: {outcome:?}");
    }
    assert_eq!(fake.lines(), Vec::<String>::new());
}

#[tokio::test]
async fn ec2_terminates_with_a_request_that_the_role_signed() {
    for (how, action) in [
        (PowerOff::Destroy, "TerminateInstances"),
        (PowerOff::Stop, "StopInstances"),
    ] {
        let reply = Reply::new(200, "<TerminateInstancesResponse/>");
        let (seen, outcome) = sent(Kind::Aws, "i-0abc", how, reply).await;
        assert_eq!(outcome, Outcome::Accepted);
        assert_eq!(seen.len(), 1);
        assert_eq!(seen[0].line, "POST /aws_ec2/");
        let body = format!("Action={action}&InstanceId.1=i-0abc&Version=2016-11-15");
        assert_eq!(seen[0].body, body);
        assert_eq!(seen[0].header("x-amz-security-token"), "tok");
        assert_eq!(
            seen[0].header("authorization"),
            authorization(&seen[0], "AKIDEXAMPLE", "secret-of-role")
        );
    }
}

/// Signature version 4, from its description.
fn authorization(seen: &Seen, id: &str, secret: &str) -> String {
    let date = seen.header("x-amz-date");
    let (day, _) = date.split_once('T').unwrap();
    let names = ["content-type", "host", "x-amz-date", "x-amz-security-token"];
    let mut headers = String::new();
    for name in names {
        writeln!(headers, "{name}:{}", seen.header(name)).unwrap();
    }
    let path = seen.line.split(' ').nth(1).unwrap();
    let names = names.join(";");
    let body = hex(&Sha256::digest(&seen.body));
    let request = format!("POST\n{path}\n\n{headers}\n{names}\n{body}");
    let scope = format!("{day}/us-west-2/ec2/aws4_request");
    let digest = hex(&Sha256::digest(&request));
    let text = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{digest}");
    let mut key = format!("AWS4{secret}").into_bytes();
    for word in [day, "us-west-2", "ec2", "aws4_request", &text] {
        key = hmac(&key, word.as_bytes());
    }
    let signature = hex(&key);
    format!(
        "AWS4-HMAC-SHA256 Credential={id}/{scope}, SignedHeaders={names}, Signature={signature}"
    )
}

/// RFC 2104 with SHA-256; keys here are shorter than a block.
fn hmac(key: &[u8], text: &[u8]) -> Vec<u8> {
    let pad = |byte: u8| -> Vec<u8> {
        let key = key.iter().copied().chain(std::iter::repeat(0)).take(64);
        key.map(|k| k ^ byte).collect()
    };
    let inner = Sha256::digest([pad(0x36).as_slice(), text].concat());
    Sha256::digest([pad(0x5c).as_slice(), &inner].concat()).to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

#[test]
fn a_dry_run_shows_every_request_but_no_key() {
    let url = "http://127.0.0.1:1";
    let mut shown = Vec::new();
    for (kind, id) in [
        (Kind::Vast, "123"),
        (Kind::RunPod, "pod1"),
        (Kind::Lambda, "abc"),
        (Kind::JarvisLabs, "7"),
        (Kind::Aws, "i-0abc"),
        (Kind::Gcp, GOOGLES),
        (Kind::Azure, AZURES),
        (Kind::Paperspace, "ps1"),
        (Kind::Colab, ""),
        (Kind::Modal, "ta-1"),
        (Kind::Local, ""),
    ] {
        for how in [PowerOff::Destroy, PowerOff::Stop] {
            let (adapter, _) = adapter(instance(kind, id), url);
            let lines = adapter.requests(how);
            assert!(!lines.is_empty(), "{kind}");
            assert!(adapter.requests(PowerOff::None).is_empty());
            shown.extend(lines);
        }
    }
    let all = shown.join("\n");
    assert!(!all.contains("key-1234"), "{all}");
    for expected in [
        "DELETE http://127.0.0.1:1/vast/instances/123/ [authorization Bearer [redacted]] {}",
        "if not accepted: DELETE http://127.0.0.1:1/runpod_v1/pods/pod1 \
            [authorization Bearer [redacted]]",
        "POST http://127.0.0.1:1/unassign",
        "nothing: the end of the agent's process ends the bill",
        "nothing: no provider was found or told, so nothing is switched off",
    ] {
        assert!(
            shown.iter().any(|line| line == expected),
            "{expected}\n{all}"
        );
    }
}
