//! Output by pages, and the files of a run.

use super::*;

#[tokio::test]
async fn output_comes_in_pages_that_meet_in_three_formats() {
    let site = site();
    site.say(1, &["a 1", "b 2", "a 3"]).await;
    site.say(2, &["b 4"]).await;
    let first = site.json("/api/v1/jobs/current/logs?limit=3").await;
    assert_eq!(first["lines"].as_array().unwrap().len(), 3);
    assert_eq!(
        (&first["has_more"], &first["gaps"]),
        (&json!(true), &json!([]))
    );
    let keys: Vec<_> = first["lines"][0]
        .as_object()
        .unwrap()
        .keys()
        .cloned()
        .collect();
    assert_eq!(keys, ["attempt", "line", "seq", "source", "ts"]);
    let rest = site
        .json(&format!(
            "/api/v1/jobs/current/logs?since={}",
            first["next"]
        ))
        .await;
    assert_eq!(rest["lines"][0]["line"], "b 4");
    assert_eq!(
        site.json("/api/v1/jobs/current/logs?since=1.2").await["lines"],
        rest["lines"]
    );
    let text = site
        .get("/api/v1/jobs/current/logs?grep=a&format=text")
        .await
        .text()
        .await
        .unwrap();
    assert_eq!(text, "a 1\na 3\n");
    let ndjson = site
        .get("/api/v1/jobs/current/logs?tail=1&format=ndjson")
        .await
        .text()
        .await
        .unwrap();
    let line: LogLine = serde_json::from_str(ndjson.trim_end()).unwrap();
    assert_eq!(
        (line.line.as_str(), line.attempt, line.source.as_str()),
        ("b 4", 2, "stdout")
    );
    let none = site
        .json("/api/v1/jobs/current/logs?until=2000-01-01T00:00:00Z")
        .await;
    assert_eq!(none["lines"], json!([]));
    let all = site
        .json("/api/v1/jobs/current/logs?since=2000-01-01T01:00:00%2B02:00")
        .await;
    assert_eq!(all["lines"].as_array().unwrap().len(), 4);
    for wrong in [
        "since=yesterday",
        "limit=0",
        "tail=9999",
        "source=x",
        "format=xml",
    ] {
        let response = site
            .get(&format!("/api/v1/jobs/current/logs?{wrong}"))
            .await;
        problem(response, 400, "bad_request").await;
    }
}

#[tokio::test]
async fn files_of_the_run_come_whole_and_in_parts_and_no_others_do() {
    let site = site();
    let run = site.dir.path().join("run");
    std::fs::write(site.dir.path().join("secret"), "no").unwrap();
    std::fs::write(run.join("events.jsonl"), "0123456789").unwrap();
    std::fs::write(run.join("agent.json"), "{}").unwrap();
    std::os::unix::fs::symlink(site.dir.path().join("secret"), run.join("link")).unwrap();
    let list = site.json("/api/v1/jobs/current/artifacts").await;
    let listed = list["artifacts"].as_array().unwrap();
    assert_eq!(listed.len(), 1, "{list}");
    assert_eq!(
        listed[0],
        json!({"path": "events.jsonl", "bytes": 10, "kind": "events", "uploaded": false})
    );
    let whole = site
        .get("/api/v1/jobs/current/artifacts/events.jsonl")
        .await;
    let tag = whole.headers()["etag"].clone();
    let digest = "sha-256=:hNiYd/DUBB77a/kaFvAkjy/VcxkJ6Yzm5JRpPuzYeIg=:";
    assert_eq!(whole.headers()["repr-digest"].len(), digest.len());
    assert_eq!(whole.headers()["content-length"], "10");
    assert_eq!(whole.text().await.unwrap(), "0123456789");
    let part = |name: &'static str, value: String| {
        let path = "/api/v1/jobs/current/artifacts/events.jsonl";
        let request = site.request(Method::GET, path).header(name, value);
        request.header("range", "bytes=2-4").send()
    };
    let response = part("if-range", tag.to_str().unwrap().to_owned())
        .await
        .unwrap();
    assert_eq!(response.status(), 206);
    assert_eq!(response.headers()["content-range"], "bytes 2-4/10");
    assert_eq!(response.text().await.unwrap(), "234");
    assert_eq!(
        part("if-range", "\"other\"".to_owned())
            .await
            .unwrap()
            .status(),
        200
    );
    let same = part("if-none-match", tag.to_str().unwrap().to_owned())
        .await
        .unwrap();
    assert_eq!(same.status(), 304);
    let beyond = site.request(Method::GET, "/api/v1/jobs/current/artifacts/events.jsonl");
    let beyond = beyond.header("range", "bytes=10-").send().await.unwrap();
    assert_eq!(beyond.headers()["content-range"], "bytes */10");
    problem(beyond, 416, "range_not_satisfiable").await;
    for path in [
        "link",
        "..%2Fsecret",
        "%2e%2e/secret",
        "agent.json",
        "x",
        "logs%2f..%2f..%2fsecret",
    ] {
        let response = site
            .get(&format!("/api/v1/jobs/current/artifacts/{path}"))
            .await;
        problem(response, 404, "not_found").await;
    }
}
