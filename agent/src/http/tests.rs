//! The server over real HTTP: what it answers, to whom, and what reaches the supervisor.

mod parsers;

use std::time::Duration;

use protocol::RunDir;
use reqwest::{Client, Method, RequestBuilder, Response};
use serde_json::{Value, json};

use super::*;
use crate::board::Board;
use crate::clock::Moment;
use crate::logs::Console;
use crate::redact::Redactor;
use crate::state::{Change, Command, Drill, Level, LimitsChange, StopOrder};
use crate::status::{JobCheckpoint, JobLease, JobProgress, JobStatus};
use crate::storage::memory::Memory;

const READ: &str = "reading-token-0123456789";
const CONTROL: &str = "control-token-0123456789";
const PATIENCE: Duration = Duration::from_secs(20);

struct Site {
    dir: tempfile::TempDir,
    board: Board,
    logs: Arc<Logs>,
    asked: mpsc::Receiver<Event>,
    server: Option<Server>,
    client: Client,
    url: String,
    token: Option<&'static str>,
    shown: u64,
}

fn nowhere() -> Console {
    Console {
        stdout: Box::new(std::io::sink()),
        stderr: Box::new(std::io::sink()),
    }
}

fn site_with(access: Access, token: Option<&'static str>) -> Site {
    let dir = tempfile::tempdir().unwrap();
    let redactor = Arc::new(Redactor::from_variables([]));
    let run_dir = RunDir::new(dir.path().join("run"));
    std::fs::create_dir_all(run_dir.root()).unwrap();
    let logs = Logs::open(&run_dir.logs(), Arc::clone(&redactor), nowhere()).unwrap();
    let logs = Arc::new(logs);
    let board = Board::new(redactor);
    let (ask, asked) = mpsc::channel(4);
    let source = Source {
        view: board.view(),
        logs: Arc::clone(&logs),
        commands: ask,
        store: Arc::new(Memory::default()),
        job: Job::new("sweep/j").unwrap(),
        run_dir,
        gpus: Gpus::default(),
        config: json!({"ttl_seconds": 60}),
    };
    let settings = Settings {
        listen: Some("127.0.0.1:0".parse().unwrap()),
        access,
        metrics_open: false,
    };
    let server = Server::start(&settings, source).unwrap().unwrap();
    let url = server.url();
    let client = Client::builder()
        .no_proxy()
        .timeout(PATIENCE)
        .build()
        .unwrap();
    let mut site = Site {
        dir,
        board,
        logs,
        asked,
        server: Some(server),
        client,
        url,
        token,
        shown: 0,
    };
    site.show(|_| {});
    site
}

fn site() -> Site {
    site_with(
        Access::new(Some(READ), Some(CONTROL)).unwrap(),
        Some(CONTROL),
    )
}

impl Site {
    /// Shows a job that trains, changed by `with`.
    fn show(&mut self, with: impl FnOnce(&mut JobStatus)) {
        self.shown += 1;
        let mut status = JobStatus {
            schema_version: 1,
            rev: self.shown,
            id: "sweep/j".to_owned(),
            provider: "local".to_owned(),
            status: "running".to_owned(),
            phase: "training".to_owned(),
            progress: JobProgress {
                step: Some(7),
                loss: Some(2.5),
                updated_at: Some(format!("t{}", self.shown)),
                ..JobProgress::default()
            },
            lease: Some(JobLease {
                epoch: 1,
                ..JobLease::default()
            }),
            checkpoint: JobCheckpoint {
                step: Some(5),
                ..JobCheckpoint::default()
            },
            ..JobStatus::default()
        };
        with(&mut status);
        let ending = status.phase == "draining";
        let over = status.exit.is_some();
        let now = Moment::since_boot(Duration::from_secs(self.shown));
        self.board.show(status, ending, over, now);
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.client.request(method, format!("{}{path}", self.url));
        match self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    async fn get(&self, path: &str) -> Response {
        self.request(Method::GET, path).send().await.unwrap()
    }

    async fn json(&self, path: &str) -> Value {
        let response = self.get(path).await;
        assert_eq!(response.status(), 200, "{path}");
        response.json().await.unwrap()
    }

    async fn post(&self, path: &str, body: Value) -> Response {
        let request = self.request(Method::POST, &format!("/api/v1/jobs/current/{path}"));
        request.json(&body).send().await.unwrap()
    }

    fn command(&mut self) -> Option<Command> {
        match self.asked.try_recv() {
            Ok(Event::Command(command)) => Some(command),
            Ok(other) => panic!("{other:?}"),
            Err(_) => None,
        }
    }

    async fn say(&self, attempt: u32, lines: &[&str]) {
        let sink = self.logs.begin(attempt);
        for line in lines {
            sink.write(crate::child::Source::Stdout, format!("{line}\n").as_bytes());
        }
        assert!(self.logs.flush(PATIENCE).await);
    }
}

async fn problem(response: Response, status: u16, code: &str) -> Value {
    assert_eq!(response.status(), status);
    let kind = response.headers()["content-type"].clone();
    assert_eq!(kind, "application/problem+json");
    assert!(response.headers().contains_key("x-request-id"));
    let problem: Value = response.json().await.unwrap();
    assert_eq!(
        (&problem["status"], &problem["code"]),
        (&json!(status), &json!(code)),
        "{problem}"
    );
    problem
}

#[tokio::test]
async fn the_status_is_told_with_a_tag_and_its_newest_output() {
    let mut site = site();
    site.say(1, &["one", "two", "three"]).await;
    let response = site.get("/api/v1/jobs/sweep%2Fj?logs=2").await;
    let tag = response.headers()["etag"].clone();
    let status: JobStatus = response.json().await.unwrap();
    assert_eq!(status.logs, ["two", "three"]);
    assert_eq!(status.logs_next, Some(crate::logs::first_seq(1) + 2));
    assert_eq!((status.rev, status.progress.step), (1, Some(7)));

    let ask = |site: &Site| {
        let request = site.request(Method::GET, "/api/v1/jobs/current?logs=2");
        request.header("if-none-match", tag.clone()).send()
    };
    let response = ask(&site).await.unwrap();
    assert_eq!(response.status(), 304);
    assert_eq!(response.headers()["etag"], tag);
    site.show(|status| status.progress.step = Some(8));
    assert_eq!(ask(&site).await.unwrap().status(), 200);
    problem(site.get("/api/v1/jobs/other").await, 404, "not_found").await;
    problem(
        site.get("/api/v1/jobs/current?logs=9999").await,
        400,
        "bad_request",
    )
    .await;
    problem(
        site.get("/api/v1/jobs/current?rev=x").await,
        400,
        "bad_request",
    )
    .await;
}

#[tokio::test]
async fn a_long_poll_ends_with_the_next_change() {
    let mut site = site();
    let old = site.json("/api/v1/jobs/current?wait=30&rev=99").await;
    assert_eq!(old["rev"], 1, "another revision is an answer at once");
    let request = site.request(Method::GET, "/api/v1/jobs/current?wait=30&rev=1");
    let waiting = tokio::spawn(request.send());
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!waiting.is_finished());
    site.show(|status| status.phase = "evaluating".to_owned());
    let status: Value = waiting.await.unwrap().unwrap().json().await.unwrap();
    assert_eq!(status["phase"], "evaluating");
    let same = site.json("/api/v1/jobs/current?wait=0&rev=2").await;
    assert_eq!(same["rev"], 2);
    problem(
        site.get("/api/v1/jobs/current?wait=61&rev=1").await,
        400,
        "bad_request",
    )
    .await;
}

#[tokio::test]
async fn nothing_is_told_without_a_token_but_that_it_lives() {
    let mut site = site();
    site.token = None;
    for path in [
        "/",
        "/livez",
        "/readyz?verbose",
        "/version",
        "/openapi.json",
    ] {
        assert_eq!(site.get(path).await.status(), 200, "{path}");
    }
    for path in [
        "",
        "/events",
        "/logs",
        "/logs/stream",
        "/metrics",
        "/checkpoints",
        "/artifacts",
    ] {
        let response = site.get(&format!("/api/v1/jobs/current{path}")).await;
        assert_eq!(response.headers()["www-authenticate"], "Bearer");
        problem(response, 401, "unauthorized").await;
    }
    problem(site.get("/metrics").await, 401, "unauthorized").await;
    problem(site.get("/api/v1/config").await, 401, "unauthorized").await;
    problem(
        site.get("/api/v1/jobs/current?token=control-token-0123456789")
            .await,
        401,
        "unauthorized",
    )
    .await;
    problem(site.post("stop", json!({})).await, 401, "unauthorized").await;
    site.token = Some(READ);
    assert_eq!(site.get("/metrics").await.status(), 200);
    problem(site.post("stop", json!({})).await, 403, "forbidden").await;
    assert_eq!(site.command(), None);
}

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
        site.post("drill", json!({"kind": "store_outage"}))
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

/// Reads events until one of this name is whole; all of them.
async fn events_until(response: &mut Response, name: &str) -> String {
    let mut text = String::new();
    let wanted = format!("event: {name}\n");
    while !text
        .split_once(&wanted)
        .is_some_and(|(_, rest)| rest.contains("\n\n"))
    {
        let chunk = response.chunk().await.unwrap();
        let chunk = chunk.unwrap_or_else(|| panic!("no {name} in {text}"));
        text.push_str(std::str::from_utf8(&chunk).unwrap());
    }
    text
}

#[tokio::test]
async fn a_stream_tells_all_and_goes_on_where_a_reader_was() {
    let mut site = site();
    site.say(1, &["one", "two"]).await;
    let mut stream = site.get("/api/v1/jobs/current/logs/stream").await;
    assert_eq!(stream.headers()["content-type"], "text/event-stream");
    let text = events_until(&mut stream, "progress").await;
    let text = text + &events_until_line(&mut stream, "two").await;
    assert!(text.starts_with("retry: 3000\n\n"), "{text}");
    for part in [
        "event: status\n",
        "event: checkpoint\n",
        "id: 1.0\n",
        "\"line\":\"one\"",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    drop(stream);
    site.say(1, &["three"]).await;
    let request = site.request(Method::GET, "/api/v1/jobs/current/logs/stream");
    let mut stream = request.header("last-event-id", "1.1").send().await.unwrap();
    let text = events_until(&mut stream, "log").await;
    assert!(
        text.contains("id: 1.2\n") && text.contains("three"),
        "{text}"
    );
    assert!(!text.contains("\"line\":\"two\""), "{text}");
    site.show(|status| {
        status.status = "completed".to_owned();
        status.exit = Some(0);
    });
    let text = events_until(&mut stream, "end").await;
    assert!(text.contains("\"status\":\"completed\""), "{text}");
    assert_eq!(
        stream.chunk().await.unwrap(),
        None,
        "the stream ends with the job"
    );
    let wrong = site.get("/api/v1/jobs/current/logs/stream?since=x").await;
    problem(wrong, 400, "bad_request").await;
}

async fn events_until_line(response: &mut Response, line: &str) -> String {
    let mut text = String::new();
    while !text.contains(&format!("\"line\":\"{line}\"")) {
        match tokio::time::timeout(Duration::from_millis(200), response.chunk()).await {
            Ok(chunk) => text.push_str(std::str::from_utf8(&chunk.unwrap().unwrap()).unwrap()),
            Err(_) => break,
        }
    }
    text
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

#[tokio::test]
async fn history_series_settings_and_checkpoints_are_told() {
    let mut site = site();
    site.board.note(Level::Warning, "beware");
    site.show(|status| status.phase = "evaluating".to_owned());
    let page = site.json("/api/v1/jobs/current/events?limit=2").await;
    assert_eq!(
        (&page["has_more"], &page["next"]),
        (&json!(true), &json!(1))
    );
    let rest = site.json("/api/v1/jobs/current/events?since=1").await;
    assert_eq!(rest["events"][0]["message"], "beware");
    assert_eq!(rest["events"][1]["phase"], "evaluating");
    let series = site
        .json("/api/v1/jobs/current/metrics?name=loss,lr&max_points=5")
        .await;
    assert_eq!(series["series"][0], json!({"name": "loss", "points": []}));
    assert_eq!(series["series"][1]["name"], "lr");
    problem(
        site.get("/api/v1/jobs/current/metrics?name=x").await,
        404,
        "not_found",
    )
    .await;
    assert_eq!(
        site.json("/api/v1/config").await,
        json!({"ttl_seconds": 60})
    );
    assert_eq!(
        site.json("/api/v1/jobs/current/checkpoints").await,
        json!({"checkpoints": []})
    );
}

#[tokio::test]
async fn readiness_tells_each_check_and_the_end() {
    let mut site = site();
    let ready = site.json("/readyz?verbose").await;
    assert_eq!(ready["ready"], true, "{ready}");
    assert_eq!(ready["checks"].as_object().unwrap().len(), 6);
    assert_eq!(site.get("/readyz/lease").await.status(), 200);
    problem(site.get("/readyz/mood").await, 404, "not_found").await;
    site.show(|status| {
        status.phase = "stalled".to_owned();
        status.lease = None;
    });
    problem(site.get("/readyz/progress").await, 503, "unavailable").await;
    assert_eq!(site.get("/readyz").await.status(), 503);
    assert_eq!(
        site.get("/readyz?exclude=progress&exclude=lease")
            .await
            .status(),
        200
    );
    site.show(|status| status.phase = "draining".to_owned());
    assert_eq!(site.get("/readyz").await.status(), 503);
    assert_eq!(site.get("/livez").await.status(), 200);
}

#[tokio::test]
async fn metrics_come_in_the_format_that_is_asked_for_and_count_requests() {
    let site = site();
    site.get("/livez").await;
    site.get("/no/such/path").await;
    let page = site.get("/metrics").await;
    assert_eq!(
        page.headers()["content-type"],
        "text/plain; version=0.0.4; charset=utf-8"
    );
    let page = page.text().await.unwrap();
    let counted = "anneal_http_requests_total{route=\"/livez\",method=\"GET\",code=\"200\"} 1.0";
    assert!(page.contains(counted), "{page}");
    // A path that somebody made up is no label.
    assert!(page.contains("route=\"none\",method=\"GET\",code=\"404\"") && !page.contains("such"));
    let request = site.request(Method::GET, "/metrics");
    let page = request
        .header("accept", "application/openmetrics-text; version=1.0.0")
        .send();
    assert!(
        page.await
            .unwrap()
            .text()
            .await
            .unwrap()
            .ends_with("# EOF\n")
    );
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

#[tokio::test]
async fn a_taken_port_is_passed_over_and_a_closed_server_is_gone() {
    let mut site = site();
    let taken = site.server.as_ref().unwrap().address();
    let other = Server::serve(taken, Router::new(), "other").unwrap();
    assert_ne!(other.address().port(), taken.port());
    site.server.take().unwrap().close(PATIENCE).await;
    assert!(site.request(Method::GET, "/livez").send().await.is_err());
}

#[tokio::test]
async fn a_peer_that_never_ends_its_head_holds_nobody_up() {
    use tokio::io::AsyncWriteExt as _;
    let site = site();
    let address = site.server.as_ref().unwrap().address();
    let mut slow = tokio::net::TcpStream::connect(address).await.unwrap();
    slow.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\nx-slow: ")
        .await
        .unwrap();
    let mut silly = tokio::net::TcpStream::connect(address).await.unwrap();
    silly.write_all(&[0xff; 100_000]).await.ok();
    assert_eq!(site.get("/livez").await.status(), 200);
}
