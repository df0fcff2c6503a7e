//! What a look at the machine shows: its price, its end, where it stands; and its public address.

use std::time::{Duration, SystemTime};

use super::fake::{Fake, Reply};
use super::{adapter, adapter_with, instance};
use crate::provider::api::Presence;
use crate::provider::{Kind, Price, PriceSource};

fn price(per_hour: f64) -> Option<Price> {
    Some(Price {
        per_hour,
        storage_per_hour: 0.0,
        source: PriceSource::Provider,
    })
}

#[tokio::test]
async fn vast_says_price_end_and_place() {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let end_s = now.unwrap().as_secs_f64() + 7200.0;
    let body = format!(
        r#"{{"instances":{{"dph_total":0.3517,"end_date":{end_s},"is_bid":true,
        "gpu_name":"RTX 4090","geolocation":"Sweden, SE","cur_state":"running"}}}}"#
    );
    let fake = Fake::script(vec![Reply::new(200, body)]).await;
    let (adapter, _) = adapter(instance(Kind::Vast, "1"), &fake.url);
    assert_eq!(adapter.price().await, price(0.3517));
    let seen = &fake.seen()[0];
    assert_eq!(seen.line, "GET /vast/instances/1/");
    assert_eq!(seen.header("authorization"), "Bearer vast-key-1234");

    let sight = adapter.look().await;
    let ends_in = sight.ends_in.unwrap();
    assert!(ends_in <= Duration::from_secs(7200) && ends_in > Duration::from_secs(7100));
    assert_eq!(sight.spot, Some(true));
    assert_eq!(sight.machine.as_deref(), Some("RTX 4090"));
    assert_eq!(sight.region.as_deref(), Some("Sweden, SE"));
}

#[tokio::test]
async fn runpod_says_its_price_while_it_runs() {
    let body = r#"{"id":"p","status":"RUNNING","cost":0.69,"dataCenterId":"EU-RO-1",
        "gpu":{"id":"NVIDIA GeForce RTX 4090","count":1}}"#;
    let fake = Fake::script(vec![Reply::new(200, body)]).await;
    let (adapter, _) = adapter(instance(Kind::RunPod, "p"), &fake.url);
    assert_eq!(adapter.price().await, price(0.69));
    assert_eq!(fake.lines(), ["GET /runpod_v2/pods/p"]);

    let fake = Fake::script(vec![Reply::new(200, r#"{"status":"EXITED","cost":0.0}"#)]).await;
    let (adapter, _) = super::adapter(instance(Kind::RunPod, "p"), &fake.url);
    assert_eq!(adapter.price().await, None);
    assert_eq!(adapter.look().await.presence, Presence::Stopped);
}

#[tokio::test]
async fn lambda_says_cents() {
    let body = r#"{"data":{"id":"a","status":"active","region":{"name":"us-west-1"},
        "instance_type":{"name":"gpu_1x_a10","price_cents_per_hour":75}}}"#;
    let fake = Fake::script(vec![Reply::new(200, body)]).await;
    let (adapter, _) = adapter(instance(Kind::Lambda, "a"), &fake.url);
    assert_eq!(adapter.price().await, price(0.75));
    assert_eq!(fake.lines(), ["GET /lambda/instances/a"]);
}

#[tokio::test]
async fn a_price_that_nobody_says_is_none() {
    for reply in [
        Reply::new(200, "not JSON"),
        Reply::new(401, ""),
        Reply::new(500, ""),
        Reply::cut(),
    ] {
        let fake = Fake::script(vec![reply]).await;
        let (adapter, _) = adapter(instance(Kind::Vast, "1"), &fake.url);
        assert_eq!(adapter.price().await, None);
        assert_eq!(adapter.look().await.presence, Presence::Unknown);
    }
}

#[tokio::test]
async fn each_provider_tells_a_machine_that_is_gone_from_one_that_is_not() {
    let google = "projects/p/zones/z/instances/i";
    let ec2 =
        |state: &str| format!("<instanceState><code>0</code><name>{state}</name></instanceState>");
    let azure = |code: &str| {
        format!(
            r#"{{"properties":{{"instanceView":{{"statuses":[
            {{"code":"ProvisioningState/succeeded"}},{{"code":"PowerState/{code}"}}]}}}}}}"#
        )
    };
    let unknown = "<Error><Code>InvalidInstanceID.NotFound</Code></Error>".to_owned();
    for (kind, id, status, body, expected) in [
        (Kind::Vast, "1", 404, String::new(), Presence::Gone),
        (
            Kind::Vast,
            "1",
            200,
            r#"{"instances":null}"#.to_owned(),
            Presence::Gone,
        ),
        (
            Kind::RunPod,
            "1",
            200,
            r#"{"status":"TERMINATED"}"#.to_owned(),
            Presence::Gone,
        ),
        (Kind::Aws, "i-1", 400, unknown, Presence::Gone),
        (Kind::Aws, "i-1", 200, ec2("terminated"), Presence::Gone),
        (
            Kind::Aws,
            "i-1",
            200,
            ec2("shutting-down"),
            Presence::Leaving,
        ),
        (Kind::Aws, "i-1", 200, ec2("running"), Presence::Running),
        (Kind::Aws, "i-1", 403, ec2("running"), Presence::Unknown),
        (
            Kind::Gcp,
            google,
            200,
            r#"{"status":"STOPPING"}"#.to_owned(),
            Presence::Leaving,
        ),
        (
            Kind::Gcp,
            google,
            200,
            r#"{"status":"TERMINATED"}"#.to_owned(),
            Presence::Stopped,
        ),
        (Kind::Gcp, google, 404, String::new(), Presence::Gone),
        (
            Kind::Azure,
            "/subscriptions/s",
            200,
            azure("deallocated"),
            Presence::Stopped,
        ),
        (
            Kind::Azure,
            "/subscriptions/s",
            200,
            azure("running"),
            Presence::Running,
        ),
        (
            Kind::Paperspace,
            "ps1",
            200,
            r#"{"state":"off"}"#.to_owned(),
            Presence::Stopped,
        ),
    ] {
        let reply = Reply::new(status, body.clone());
        let fake = Fake::start(move |seen| match seen.line.contains("metadata") {
            true => Reply::new(
                200,
                r#"{"access_token":"t","AccessKeyId":"a","SecretAccessKey":"b","Token":"c"}"#,
            )
            .header("metadata-flavor", "Google"),
            false => reply.clone(),
        })
        .await;
        let (adapter, _) = adapter(instance(kind, id), &fake.url);
        let presence = adapter.look().await.presence;
        assert_eq!(presence, expected, "{kind} {status} {body}");
    }
}

#[test]
fn public_addresses() {
    let url = "http://127.0.0.1:1";
    let vast = [
        ("PUBLIC_IPADDR", "1.2.3.4\n"),
        ("VAST_TCP_PORT_8080", "33526"),
    ];
    let (vast, _) = adapter_with(instance(Kind::Vast, "1"), url, &vast);
    let expected = Some("http://1.2.3.4:33526".to_owned());
    assert_eq!(vast.public_url(8080), expected);
    assert_eq!(vast.public_url(9090), None);

    let (runpod, _) = adapter(instance(Kind::RunPod, "p1"), url);
    let expected = Some("https://p1-8080.proxy.runpod.net".to_owned());
    assert_eq!(runpod.public_url(8080), expected);

    let told = [("AGENT_PUBLIC_URL", "https://x.modal.host")];
    for kind in [Kind::Modal, Kind::Lambda] {
        let (adapter, _) = adapter_with(instance(kind, "x"), url, &told);
        let expected = Some("https://x.modal.host".to_owned());
        assert_eq!(adapter.public_url(8080), expected);
    }
}

#[test]
fn graces() {
    let grace = |kind: Kind| {
        let (adapter, _) = adapter(instance(kind, "x"), "http://127.0.0.1:1");
        adapter.default_grace().as_secs()
    };
    assert_eq!(grace(Kind::RunPod), 5);
    assert_eq!(grace(Kind::Vast), 10);
    for kind in [Kind::Modal, Kind::Kubernetes, Kind::Slurm, Kind::Gcp] {
        assert_eq!(grace(kind), 30, "{kind}");
    }
}
