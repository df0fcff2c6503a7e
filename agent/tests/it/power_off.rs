//! `agent power-off` and `agent provider` as processes, as the dead-man's switch and people call
//! them, against a fake of a provider on loopback.

use std::process::Output;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::time::timeout;

use crate::support::PATIENCE;

const KEY: &str = "key-of-the-instance-77";

/// Answers the nth request with the nth status and body, and all later ones with the last; gives
/// its address and what it was asked.
async fn fake(replies: Vec<(u16, &'static str)>) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let kept = Arc::clone(&seen);
    let app = Router::new().fallback(move |request: Request| {
        let mut kept = kept.lock().unwrap();
        kept.push(format!("{} {}", request.method(), request.uri()));
        let key = request.headers().get("authorization");
        assert_eq!(key.unwrap().to_str().unwrap(), format!("Bearer {KEY}"));
        let (status, body) = replies[(kept.len() - 1).min(replies.len() - 1)];
        let status = StatusCode::from_u16(status).unwrap();
        async move { (status, body) }
    });
    tokio::spawn(async move { axum::serve(listener, app).await });
    (url, seen)
}

/// Runs the agent with nothing in its environment but a key and the fake's address.
async fn agent(url: &str, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_agent"));
    command.args(words).env_clear().kill_on_drop(true);
    command.env("CONTAINER_API_KEY", KEY);
    command.env("AGENT_VAST_URL", url);
    let output = timeout(PATIENCE + Duration::from_secs(30), command.output());
    output.await.expect("it ends").unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

const VAST: [&str; 5] = ["power-off", "--provider", "vast", "--instance", "77"];

#[tokio::test]
async fn power_off_goes_on_until_the_machine_is_gone() {
    // Detection looks first, which nothing depends on.
    let (url, seen) = fake(vec![(500, ""), (503, ""), (404, "")]).await;
    let output = agent(&url, &VAST).await;
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert_eq!(
        said,
        "destroy: HTTP 503\ndestroy: the provider knows no such machine\ngone already\n"
    );
    assert_eq!(
        *seen.lock().unwrap(),
        [
            "GET /instances/77/",
            "DELETE /instances/77/",
            "DELETE /instances/77/"
        ]
    );
}

#[tokio::test]
async fn power_off_once_says_what_came_of_it() {
    for (status, code, expected) in [
        (401, 10, "denied: HTTP 401"),
        (429, 11, "not now: HTTP 429"),
    ] {
        let (url, _) = fake(vec![(500, ""), (status, "")]).await;
        let words = [&VAST[..], &["--once"]].concat();
        let output = agent(&url, &words).await;
        let said = text(&output.stdout) + &text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(expected), "{said}");
    }
}

#[tokio::test]
async fn a_dry_run_sends_nothing_that_ends_anything() {
    let (url, seen) = fake(vec![(404, "")]).await;
    let words = [&VAST[..], &["--terminate", "stop", "--dry-run"]].concat();
    let output = agent(&url, &words).await;
    let expected = format!(
        "PUT {url}/instances/77/ [authorization Bearer [redacted]] {{\"state\":\"stopped\"}}\n"
    );
    assert_eq!(text(&output.stdout), expected);
    assert!(
        seen.lock()
            .unwrap()
            .iter()
            .all(|line| line.starts_with("GET"))
    );
}

#[tokio::test]
async fn the_provider_is_shown() {
    let machine = r#"{"instances":{"cur_state":"running","dph_total":0.3517,"is_bid":true,
        "gpu_name":"RTX 4090","geolocation":"Sweden, SE"}}"#;
    let (url, _) = fake(vec![(200, machine)]).await;
    let words = ["provider", "--provider", "vast", "--instance", "77"];
    let output = agent(&url, &words).await;
    let expected = format!(
        "provider: vast (by --provider)\n\
         instance: 77\n\
         region: Sweden, SE\n\
         machine: RTX 4090\n\
         spot: yes\n\
         price: $0.3517 an hour\n\
         address of port 8080: unknown\n\
         from a signal to the end: 10 s\n\
         notices: signals\n\
         --terminate destroy:\n  \
         DELETE {url}/instances/77/ [authorization Bearer [redacted]] {{}}\n"
    );
    assert_eq!(text(&output.stdout), expected);
}
