//! The server over real HTTP: what it answers, to whom, and what reaches the supervisor.

mod control;
mod output;
mod parsers;
mod ways;

use std::time::Duration;

use protocol::RunDir;
use reqwest::{Client, Method, RequestBuilder, Response};
use serde_json::{Value, json};

use super::*;
use crate::board::Board;
use crate::clock::Moment;
use crate::https;
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
        store_requests: Arc::default(),
        job: Job::new("sweep/j").unwrap(),
        run_dir,
        gpus: Gpus::default(),
        config: json!({"ttl_seconds": 60}),
    };
    let settings = Settings {
        listen: Some(Listen::Tcp("127.0.0.1:0".parse().unwrap())),
        tls: None,
        access,
        metrics_open: false,
        dcgm_names: false,
    };
    let server = Server::start(&settings, source).unwrap().unwrap();
    let url = server.url();
    let client = https::builder()
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
async fn a_taken_port_is_passed_over_and_a_closed_server_is_gone() {
    let mut site = site();
    let taken = site.server.as_ref().unwrap().listen().clone();
    let other = Server::serve(taken.clone(), None, Router::new(), "other").unwrap();
    assert_ne!(other.listen(), &taken);
    site.server.take().unwrap().close(PATIENCE).await;
    assert!(site.request(Method::GET, "/livez").send().await.is_err());
}

#[tokio::test]
async fn a_peer_that_never_ends_its_head_holds_nobody_up() {
    use tokio::io::AsyncWriteExt as _;
    let site = site();
    let Listen::Tcp(address) = *site.server.as_ref().unwrap().listen() else {
        panic!("a port was asked for");
    };
    let mut slow = tokio::net::TcpStream::connect(address).await.unwrap();
    slow.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\nx-slow: ")
        .await
        .unwrap();
    let mut silly = tokio::net::TcpStream::connect(address).await.unwrap();
    silly.write_all(&[0xff; 100_000]).await.ok();
    assert_eq!(site.get("/livez").await.status(), 200);
}
