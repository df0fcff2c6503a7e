//! What people ask for, and what of it reaches the supervisor.

use super::*;

#[tokio::test]
async fn commands_reach_the_supervisor_as_they_were_meant() {
    let mut site = site();
    let body = json!({
        "mode": "now", "checkpoint": true, "grace_seconds": 90, "terminate_instance": false,
    });
    assert_eq!(site.post("stop", body).await.status(), 202);
    let order = StopOrder {
        now: true,
        checkpoint: true,
        grace: Some(Duration::from_secs(90)),
        power_off: Some(false),
    };
    assert_eq!(site.command(), Some(Command::Stop(order)));
    let empty = site
        .request(Method::POST, "/api/v1/jobs/current/stop")
        .send()
        .await
        .unwrap();
    assert_eq!(empty.status(), 202);
    assert_eq!(site.command(), Some(Command::Stop(StopOrder::new(false))));
    let saved = site.post("checkpoint", json!({})).await;
    assert_eq!(saved.status(), 202);
    assert_eq!(
        saved.json::<Value>().await.unwrap(),
        json!({"accepted": true, "step": 7})
    );
    assert_eq!(site.command(), Some(Command::Save));
    assert_eq!(
        site.post("keepalive", json!({"ttl_seconds": 900}))
            .await
            .status(),
        202
    );
    assert_eq!(
        site.command(),
        Some(Command::KeepAlive(Duration::from_secs(900)))
    );
    assert_eq!(
        site.post("drill", json!({"kind": "s3-outage"}))
            .await
            .status(),
        202
    );
    assert_eq!(site.command(), Some(Command::Drill(Drill::StoreOutage)));
    let limits = json!({"max_wall_seconds": 60, "stall_seconds": "off", "budget_usd": 1.5});
    let request = site
        .request(Method::PATCH, "/api/v1/jobs/current/limits")
        .json(&limits);
    assert_eq!(request.send().await.unwrap().status(), 202);
    let change = LimitsChange {
        wall: Some(Change::To(Duration::from_secs(60))),
        idle: None,
        stall: Some(Change::Off),
        budget_usd: Some(Change::To(1.5)),
    };
    assert_eq!(site.command(), Some(Command::Limits(change)));
}

#[tokio::test]
async fn commands_that_make_no_sense_reach_nobody() {
    let mut site = site();
    for (path, body) in [
        ("stop", json!({"mode": "later"})),
        ("stop", json!({"grace_seconds": -1})),
        ("stop", json!({"grace_seconds": 1e300})),
        ("stop", json!({"unknown": 1})),
        ("stop", json!([])),
        ("keepalive", json!({})),
        ("keepalive", json!({"ttl_seconds": 0})),
        ("keepalive", json!({"ttl_seconds": null})),
        ("drill", json!({"kind": "fire"})),
    ] {
        problem(site.post(path, body).await, 422, "invalid").await;
    }
    let raw = |kind: &'static str, body: Vec<u8>| {
        let request = site.request(Method::POST, "/api/v1/jobs/current/stop");
        request.header("content-type", kind).body(body).send()
    };
    problem(
        raw("application/json", b"{".to_vec()).await.unwrap(),
        400,
        "bad_request",
    )
    .await;
    problem(
        raw("text/plain", b"{}".to_vec()).await.unwrap(),
        415,
        "unsupported_media_type",
    )
    .await;
    let large = vec![b' '; BODY_BYTES_MAX + 1];
    problem(
        raw("application/json", large).await.unwrap(),
        413,
        "too_large",
    )
    .await;
    let get = site.get("/api/v1/jobs/current/stop").await;
    assert_eq!(get.headers()["allow"], "POST");
    problem(get, 405, "method_not_allowed").await;
    problem(site.get("/nowhere").await, 404, "not_found").await;
    problem(site.post("nothing", json!({})).await, 404, "not_found").await;
    assert_eq!(site.command(), None);
    // What is over, or has not begun, cannot be saved.
    site.show(|status| status.phase = "claiming".to_owned());
    problem(site.post("checkpoint", json!({})).await, 409, "conflict").await;
    site.show(|status| status.phase = "draining".to_owned());
    let again = site.post("stop", json!({})).await;
    assert_eq!(again.status(), 200);
    assert_eq!(
        again.json::<Value>().await.unwrap()["already_stopping"],
        true
    );
    site.command();
    site.show(|status| status.status = "failed".to_owned());
    problem(site.post("stop", json!({})).await, 409, "conflict").await;
    assert_eq!(site.command(), None);
}

#[tokio::test]
async fn a_key_is_obeyed_once_and_a_full_queue_is_said() {
    let mut site = site();
    let ask = |site: &Site, path: &str, body: Value| {
        let request = site.request(Method::POST, &format!("/api/v1/jobs/current/{path}"));
        request.header("idempotency-key", "k1").json(&body).send()
    };
    for _ in 0..3 {
        assert_eq!(
            ask(&site, "checkpoint", json!({})).await.unwrap().status(),
            202
        );
    }
    assert_eq!(site.command(), Some(Command::Save));
    assert_eq!(site.command(), None);
    problem(
        ask(&site, "stop", json!({})).await.unwrap(),
        409,
        "conflict",
    )
    .await;
    for _ in 0..4 {
        assert_eq!(site.post("checkpoint", json!({})).await.status(), 202);
    }
    problem(site.post("checkpoint", json!({})).await, 503, "unavailable").await;
}

#[tokio::test]
async fn a_page_of_another_origin_commands_nothing() {
    let mut site = site_with(Access::default(), None);
    let request = site.request(Method::POST, "/api/v1/jobs/current/stop");
    let response = request
        .header("origin", "https://evil.example")
        .send()
        .await
        .unwrap();
    problem(response, 403, "forbidden").await;
    let request = site.request(Method::GET, "/api/v1/jobs/current");
    let rebound = request.header("host", "evil.example").send().await.unwrap();
    problem(rebound, 403, "forbidden").await;
    assert_eq!(site.post("stop", json!({})).await.status(), 202);
    assert!(site.command().is_some());
    let page = site.get("/").await;
    let policy = page.headers()["content-security-policy"].to_str().unwrap();
    assert!(policy.contains("script-src 'self';") && policy.contains("default-src 'none'"));
    problem(site.get("/assets/none.js").await, 404, "not_found").await;
}
