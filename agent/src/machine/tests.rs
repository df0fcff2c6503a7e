//! The user's command, and a webhook that fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::post;
use serde_json::Value;

use super::*;
use crate::provider::{Adapter, Instance, Kind, Outcome, PowerOff, Services, environment};

fn switch(command: &str) -> Switch {
    let environment = environment();
    let services = Services::new(&environment);
    let instance = Instance {
        kind: Kind::Local,
        found_by: "a test".to_owned(),
        id: None,
        region: None,
        machine: None,
        spot: None,
        ends_in: None,
    };
    let adapter = Adapter::new(instance, services, environment);
    Switch::new(adapter, Some(command.to_owned()))
}

#[tokio::test]
async fn a_power_off_command_is_run_until_it_works_and_never_for_none() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    let command = format!(
        "test -e {0} && echo $AGENT_POWER_OFF > {1} || {{ touch {0}; false; }}",
        first.display(),
        second.display()
    );
    let switch = switch(&command);
    let mut said = Vec::new();
    let none = switch
        .power_off(PowerOff::None, |text| said.push(text))
        .await;
    assert_eq!(none, Outcome::Accepted);
    assert!(!first.exists() && switch.requests(PowerOff::None).is_empty());
    let outcome = switch
        .power_off(PowerOff::Stop, |text| said.push(text))
        .await;
    assert_eq!(outcome, Outcome::Accepted);
    assert_eq!(said.len(), 1, "{said:?}");
    assert_eq!(std::fs::read_to_string(second).unwrap(), "stop\n");
}

#[tokio::test]
async fn a_webhook_is_tried_again_and_its_address_is_never_shown() {
    let asked = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&asked);
    let answer = move |axum::Json(body): axum::Json<Value>| async move {
        assert_eq!(body["event"], "budget_50");
        assert_eq!(body["cost_so_far"], 1.5);
        match count.fetch_add(1, Ordering::SeqCst) {
            0 => StatusCode::BAD_GATEWAY,
            _ => StatusCode::OK,
        }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = Router::new().route("/secret", post(answer));
    let server = tokio::spawn(async move { axum::serve(listener, app).await });
    let webhook = Webhook::new(&format!("http://{address}/secret")).unwrap();
    let event = body("j", "a", "budget_50", "half", 1.5);
    assert_eq!(webhook.send_after(Duration::ZERO, &event).await, Ok(()));
    assert_eq!(asked.load(Ordering::SeqCst), 2);

    server.abort();
    let gone = Webhook::new("http://127.0.0.1:1/secret").unwrap();
    let why = gone.send_after(Duration::ZERO, &event).await.unwrap_err();
    assert!(!why.contains("secret"), "{why}");
    assert!(Webhook::new("ftp://host/").is_err() && Webhook::new("host").is_err());
}
