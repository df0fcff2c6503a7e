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

/// What an answer with this status and body shows of a machine.
async fn presence(kind: Kind, id: &str, status: u16, body: &str) -> Presence {
    let reply = Reply::new(status, body);
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
    adapter.look().await.presence
}

#[tokio::test]
async fn containers_that_are_gone_are_told_from_those_that_are_not() {
    use Presence::{Gone, Running, Stopped, Unknown};
    for (kind, status, body, expected) in [
        (Kind::Vast, 404, "", Gone),
        (Kind::Vast, 200, r#"{"instances":null}"#, Gone),
        (Kind::Vast, 200, "{}", Unknown),
        (Kind::RunPod, 404, "", Gone),
        (Kind::RunPod, 200, r#"{"status":"TERMINATED"}"#, Gone),
        (Kind::RunPod, 200, r#"{"status":"STARTING"}"#, Running),
        (Kind::Lambda, 404, "", Gone),
        (Kind::Paperspace, 200, r#"{"state":"off"}"#, Stopped),
        (Kind::Paperspace, 403, "", Unknown),
    ] {
        let seen = presence(kind, "1", status, body).await;
        assert_eq!(seen, expected, "{kind} {status} {body}");
    }
}

#[tokio::test]
async fn machines_that_are_gone_are_told_from_those_that_are_not() {
    use Presence::{Gone, Leaving, Running, Stopped, Unknown};
    let unknown = "<Error><Code>InvalidInstanceID.NotFound</Code></Error>";
    let running = "<instanceState><code>16</code><name>running</name></instanceState>";
    let ending = "<instanceState><code>32</code><name>shutting-down</name></instanceState>";
    let ended = "<instanceState><code>48</code><name>terminated</name></instanceState>";
    for (status, body, expected) in [
        (400, unknown, Gone),
        (200, ended, Gone),
        (200, ending, Leaving),
        (200, running, Running),
        (403, running, Unknown),
    ] {
        let seen = presence(Kind::Aws, "i-1", status, body).await;
        assert_eq!(seen, expected, "{status} {body}");
    }
    for (status, body, expected) in [
        (200, r#"{"status":"STOPPING"}"#, Leaving),
        (200, r#"{"status":"TERMINATED"}"#, Stopped),
        (200, r#"{"status":"RUNNING"}"#, Running),
        (404, "", Gone),
    ] {
        let seen = presence(Kind::Gcp, "projects/p/zones/z/instances/i", status, body).await;
        assert_eq!(seen, expected, "{status} {body}");
    }
    for (code, expected) in [("deallocated", Stopped), ("running", Running)] {
        let body = format!(
            r#"{{"properties":{{"instanceView":{{"statuses":[
            {{"code":"ProvisioningState/succeeded"}},{{"code":"PowerState/{code}"}}]}}}}}}"#
        );
        let seen = presence(Kind::Azure, "/subscriptions/s", 200, &body).await;
        assert_eq!(seen, expected, "{code}");
    }
}

#[tokio::test]
async fn a_price_is_asked_for_again_if_it_was_too_soon() {
    let fake = Fake::script(vec![
        Reply::new(429, "too frequent"),
        Reply::new(200, r#"{"instances":{"dph_total":0.5}}"#),
    ])
    .await;
    let (mut adapter, _) = adapter(instance(Kind::Vast, "1"), &fake.url);
    adapter.pace.price = Duration::from_secs(20);
    assert_eq!(adapter.price().await, price(0.5));
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
