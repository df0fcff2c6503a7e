//! Whose machine it is, and that a guess is never enough.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use super::fake::{Fake, Reply, Seen};
use super::{environment_of, variables};
use crate::provider::{Instance, Kind, Services, detect};

/// An address where nobody listens.
const NOWHERE: &str = "http://127.0.0.1:1";

async fn detected(url: &str, told: Option<Kind>, set: &[(&str, &str)]) -> Instance {
    let mut all: BTreeMap<String, String> = variables(url);
    all.remove("TBE_RUNTIME_ADDR");
    for (name, value) in set {
        all.insert((*name).to_owned(), (*value).to_owned());
    }
    let environment = environment_of(all);
    let services = Services::new(&environment);
    detect(&environment, told, &services).await
}

fn ec2(seen: &Seen) -> Reply {
    let Some(path) = seen.line.split_once("/aws_metadata/latest/") else {
        return Reply::new(404, "");
    };
    let ttl = "x-aws-ec2-metadata-token-ttl-seconds";
    if path.1 == "api/token" {
        assert_eq!(seen.line.split(' ').next(), Some("PUT"));
        assert_eq!(seen.header(ttl), "21600");
        return Reply::new(200, "the-token").header(ttl, "21600");
    }
    if seen.header("x-aws-ec2-metadata-token") != "the-token" {
        return Reply::new(401, "");
    }
    match path.1 {
        "meta-data/instance-id" => Reply::new(200, "i-0abc"),
        "meta-data/instance-type" => Reply::new(200, "g5.xlarge"),
        "meta-data/instance-life-cycle" => Reply::new(200, "spot"),
        "meta-data/placement/region" => Reply::new(200, "eu-west-1"),
        _ => Reply::new(404, ""),
    }
}

fn google(seen: &Seen) -> Reply {
    let Some(path) = seen
        .line
        .split_once("GET /gcp_metadata/computeMetadata/v1/")
    else {
        return Reply::new(404, "");
    };
    assert_eq!(seen.header("metadata-flavor"), "Google");
    let machine = r#"{"name":"trainer-1","zone":"projects/12/zones/us-central1-a",
        "machineType":"projects/12/machineTypes/g2-standard-4",
        "scheduling":{"preemptible":"TRUE"}}"#;
    let reply = match path.1 {
        "project/project-id" => Reply::new(200, "p-1"),
        "instance/?recursive=true" => Reply::new(200, machine),
        _ => Reply::new(404, ""),
    };
    reply.header("metadata-flavor", "Google")
}

fn azure(seen: &Seen) -> Reply {
    if seen.line != "GET /azure_metadata/metadata/instance?api-version=2021-02-01" {
        return Reply::new(404, "");
    }
    assert_eq!(seen.header("metadata"), "true");
    Reply::new(
        200,
        r#"{"compute":{"vmId":"v","resourceId":"/subscriptions/s/virtualMachines/vm-1",
        "location":"westeurope","vmSize":"Standard_NC6","priority":"Spot"}}"#,
    )
}

#[tokio::test]
async fn variables_are_asked_in_their_order() {
    // All at once; each round takes away what the one before was found by.
    let mut set = vec![
        ("CONTAINER_ID", "123"),
        ("VAST_CONTAINERLABEL", "C.123"),
        ("RUNPOD_POD_ID", "pod1"),
        ("MODAL_TASK_ID", "ta-1"),
        ("TBE_RUNTIME_ADDR", "172.28.0.1:8011"),
        ("COLAB_RELEASE_TAG", "release"),
        ("SLURM_JOB_ID", "42"),
        ("KUBERNETES_SERVICE_HOST", "10.0.0.1"),
    ];
    let expected = [
        (
            2,
            Kind::Vast,
            "CONTAINER_ID and VAST_CONTAINERLABEL",
            Some("123"),
        ),
        (1, Kind::RunPod, "RUNPOD_POD_ID", Some("pod1")),
        (1, Kind::Modal, "MODAL_TASK_ID", Some("ta-1")),
        (1, Kind::Colab, "TBE_RUNTIME_ADDR", None),
        (1, Kind::Colab, "COLAB_RELEASE_TAG", None),
        (1, Kind::Slurm, "SLURM_JOB_ID", Some("42")),
        (1, Kind::Kubernetes, "KUBERNETES_SERVICE_HOST", None),
    ];
    for (take, kind, found_by, id) in expected {
        let found = detected(NOWHERE, None, &set).await;
        assert_eq!((found.kind, found.found_by.as_str()), (kind, found_by));
        assert_eq!(found.id.as_deref(), id);
        set.drain(..take);
    }
    let found = detected(NOWHERE, None, &set).await;
    assert_eq!(found.kind, Kind::Local);
}

#[tokio::test]
async fn half_a_match_is_none() {
    for set in [
        [("CONTAINER_ID", "123")],
        [("VAST_CONTAINERLABEL", "C.123")],
        [("RUNPOD_POD_ID", "")],
        // Keys are carried anywhere.
        [("RUNPOD_API_KEY", "key")],
        [("AWS_REGION", "us-east-1")],
    ] {
        let found = detected(NOWHERE, None, &set).await;
        assert_eq!(found.kind, Kind::Local, "{set:?}");
        assert_eq!(found.found_by, "no variable and no metadata service");
    }
}

#[tokio::test]
async fn what_is_told_counts() {
    let set = [("RUNPOD_POD_ID", "pod1"), ("AGENT_INSTANCE_ID", "ps1")];
    let found = detected(NOWHERE, Some(Kind::Paperspace), &set).await;
    assert_eq!(found.kind, Kind::Paperspace);
    assert_eq!(found.found_by, "--provider");
    assert_eq!(found.id.as_deref(), Some("ps1"));
}

#[tokio::test]
async fn metadata_services_say_who_they_are() {
    let fake = Fake::start(ec2).await;
    let found = detected(&fake.url, None, &[]).await;
    let expected = Instance {
        kind: Kind::Aws,
        found_by: "EC2's metadata service".to_owned(),
        id: Some("i-0abc".to_owned()),
        region: Some("eu-west-1".to_owned()),
        machine: Some("g5.xlarge".to_owned()),
        spot: Some(true),
        ends_in: None,
    };
    assert_eq!(found, expected);

    let fake = Fake::start(google).await;
    let found = detected(&fake.url, None, &[]).await;
    assert_eq!(found.kind, Kind::Gcp);
    let path = "projects/p-1/zones/us-central1-a/instances/trainer-1";
    assert_eq!(found.id.as_deref(), Some(path));
    assert_eq!(found.region.as_deref(), Some("us-central1-a"));
    assert_eq!(found.machine.as_deref(), Some("g2-standard-4"));
    assert_eq!(found.spot, Some(true));

    let fake = Fake::start(azure).await;
    let found = detected(&fake.url, None, &[]).await;
    assert_eq!(found.kind, Kind::Azure);
    let path = "/subscriptions/s/virtualMachines/vm-1";
    assert_eq!(found.id.as_deref(), Some(path));
    assert_eq!(found.spot, Some(true));
}

#[tokio::test]
async fn a_server_that_says_yes_to_everything_is_nobody() {
    let fake = Fake::script(vec![Reply::new(200, "welcome")]).await;
    let found = detected(&fake.url, None, &[]).await;
    assert_eq!(found.kind, Kind::Local);
}

#[tokio::test]
async fn two_metadata_services_are_one_that_pretends() {
    let fake = Fake::start(|seen| match seen.line.contains("aws") {
        true => ec2(seen),
        false => azure(seen),
    })
    .await;
    let found = detected(&fake.url, None, &[]).await;
    assert_eq!(found.kind, Kind::Local);
    assert_eq!(found.found_by, "several metadata services answered");
}

/// As in a container on EC2 where the hop limit is 1: the token's answer never comes.
#[tokio::test]
async fn a_metadata_service_that_hangs_costs_two_seconds_for_all() {
    let never = Reply::new(200, "late").after(Duration::from_secs(60));
    let fake = Fake::script(vec![never]).await;
    let began = Instant::now();
    let found = detected(&fake.url, None, &[]).await;
    assert_eq!(found.kind, Kind::Local);
    let elapsed = began.elapsed();
    assert!(elapsed >= Duration::from_millis(1900), "{elapsed:?}");
    assert!(elapsed < Duration::from_millis(3500), "{elapsed:?}");
}

#[tokio::test]
async fn a_told_machine_of_ec2_is_not_taken_for_this_one() {
    let fake = Fake::start(ec2).await;
    let set = [
        ("AGENT_INSTANCE_ID", "i-0other"),
        ("AWS_REGION", "us-east-2"),
    ];
    let found = detected(&fake.url, Some(Kind::Aws), &set).await;
    assert_eq!(found.id.as_deref(), Some("i-0other"));
    assert_eq!(found.region.as_deref(), Some("us-east-2"));

    let found = detected(&fake.url, Some(Kind::Aws), &[]).await;
    assert_eq!(found.id.as_deref(), Some("i-0abc"));
    assert_eq!(found.found_by, "--provider");
}

#[tokio::test]
async fn limits_of_the_providers_own() {
    let found = detected(NOWHERE, None, &[("MODAL_TASK_ID", "ta-1")]).await;
    assert_eq!(found.ends_in, Some(Duration::from_secs(86_400)));

    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let end = (now.unwrap().as_secs() + 600).to_string();
    let set = [("SLURM_JOB_ID", "42"), ("SLURM_JOB_END_TIME", &end)];
    let found = detected(NOWHERE, None, &set).await;
    let ends_in = found.ends_in.unwrap();
    assert!(ends_in <= Duration::from_secs(600) && ends_in > Duration::from_secs(590));

    let over = [("SLURM_JOB_ID", "42"), ("SLURM_JOB_END_TIME", "12345")];
    let found = detected(NOWHERE, None, &over).await;
    assert_eq!(found.ends_in, Some(Duration::ZERO));
}

#[tokio::test]
async fn a_providers_api_completes_what_variables_leave_open() {
    let body = r#"{"instances":{"cur_state":"running","gpu_name":"A100","is_bid":false}}"#;
    let fake = Fake::script(vec![Reply::new(200, body)]).await;
    let set = [("CONTAINER_ID", "123"), ("VAST_CONTAINERLABEL", "C.123")];
    let found = detected(&fake.url, None, &set).await;
    assert_eq!(found.machine.as_deref(), Some("A100"));
    assert_eq!(found.spot, Some(false));
    assert_eq!(fake.lines(), ["GET /vast/instances/123/"]);
}

#[test]
fn names_of_providers_are_read_as_they_are_written() {
    for kind in Kind::ALL {
        assert_eq!(kind.name().parse(), Ok(kind));
    }
    let error = "ec2".parse::<Kind>().unwrap_err();
    assert!(error.ends_with(r#"local, got "ec2""#), "{error}");
}

#[test]
fn addresses_can_be_told() {
    let services = Services::new(&environment_of(BTreeMap::new()));
    assert_eq!(services.vast, "https://console.vast.ai/api/v0");
    let told = [("AGENT_VAST_URL".to_owned(), "http://proxy:1/v/".to_owned())];
    let services = Services::new(&environment_of(told.into()));
    assert_eq!(services.vast, "http://proxy:1/v");
}
