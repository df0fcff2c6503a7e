//! Orders as texts, and back.

use serde_json::json;

use super::*;
use crate::storage::memory::Memory;

fn parse(text: &str) -> Command {
    let order = Order::read(text.as_bytes()).unwrap();
    // What is written is read as the same.
    let written = order.record().to_string();
    assert_eq!(Order::read(written.as_bytes()), Ok(order.clone()));
    order.command().unwrap()
}

#[test]
fn every_command_is_understood() {
    assert_eq!(
        parse(r#"{"kind":"stop"}"#),
        Command::Stop(StopOrder::new(false))
    );
    assert_eq!(
        parse(r#"{"kind":"stop","mode":"now"}"#),
        Command::Stop(StopOrder::new(true))
    );
    let order = StopOrder {
        now: false,
        checkpoint: false,
        grace: Some(Duration::from_secs(90)),
        power_off: Some(true),
    };
    let text = r#"{"kind":"stop","mode":"graceful","checkpoint":false,"grace_seconds":90,
                   "terminate_instance":true}"#;
    assert_eq!(parse(text), Command::Stop(order));
    assert_eq!(parse(r#"{"kind":"checkpoint"}"#), Command::Save);
    assert_eq!(parse(r#"{"kind":"yield"}"#), Command::Yield);
    let change = LimitsChange {
        wall: Some(Change::To(Duration::from_secs(7200))),
        idle: Some(Change::Off),
        stall: None,
        budget_usd: Some(Change::To(2.5)),
    };
    let text = r#"{"kind":"limits","max_wall_seconds":7200,"idle_seconds":"off","budget_usd":2.5}"#;
    assert_eq!(parse(text), Command::Limits(change));
    let text = r#"{"kind":"keepalive","ttl_seconds":900}"#;
    assert_eq!(parse(text), Command::KeepAlive(Duration::from_secs(900)));
    for drill in Drill::ALL {
        let text = format!(r#"{{"kind":"drill","drill":"{}"}}"#, drill.name());
        assert_eq!(parse(&text), Command::Drill(drill));
    }
    let text = r#"{"kind":"credentials","access_key_id":"ASIA1","secret_access_key":"hidden",
                   "session_token":"t","expires":"1970-01-01T00:01:00Z"}"#;
    let keys = Keys {
        access_key_id: "ASIA1".to_owned(),
        secret_access_key: "hidden".to_owned(),
        session_token: "t".to_owned(),
        expires: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(60)),
    };
    assert_eq!(parse(text), Command::Renew(keys));
    let shown = format!("{:?} {:?}", Order::read(text.as_bytes()), parse(text));
    assert!(!shown.contains("hidden"), "{shown}");
}

#[test]
fn what_is_not_understood_says_why() {
    for (text, part) in [
        ("{", "unreadable"),
        ("[]", "unreadable"),
        ("{}", "not known"),
        (r#"{"kind":"explode"}"#, "\"explode\""),
        (
            r#"{"kind":"stop","mode":"soon"}"#,
            "mode: unknown variant `soon`",
        ),
        (r#"{"kind":"stop","soon":true}"#, "`soon`"),
        (r#"{"kind":"yield","to":"him"}"#, "`to`"),
        (r#"{"kind":"stop","checkpoint":"yes"}"#, "checkpoint"),
        (r#"{"kind":"stop","grace_seconds":-1}"#, "grace_seconds"),
        (
            r#"{"kind":"limits","budget_usd":"much"}"#,
            "budget_usd: expected a number or",
        ),
        (r#"{"kind":"limits","idle_seconds":1e300}"#, "idle_seconds"),
        (r#"{"kind":"keepalive"}"#, "ttl_seconds"),
        (
            r#"{"kind":"drill","drill":"fire"}"#,
            "drill: unknown variant `fire`",
        ),
        (r#"{"kind":"credentials","secret":"s"}"#, "`secret`"),
        (
            r#"{"kind":"credentials","access_key_id":"a","secret_access_key":"b"}"#,
            "session_token",
        ),
        (
            r#"{"kind":"credentials","access_key_id":"a","secret_access_key":"b",
                "session_token":""}"#,
            "session_token: expected a value",
        ),
        (
            r#"{"kind":"credentials","access_key_id":"a","secret_access_key":"b",
                "session_token":"c","expires":"soon"}"#,
            "expires: expected a time",
        ),
    ] {
        let order = Order::read(text.as_bytes());
        let Err(why) = order.and_then(|order| order.command()) else {
            panic!("{text} is understood");
        };
        assert!(why.contains(part), "{text}: {why}");
    }
}

#[test]
fn a_request_takes_the_words_of_the_store() {
    let read = |text: &str| read_body::<LimitsBody>(text.as_bytes());
    assert_eq!(read(""), Ok(LimitsBody::default()));
    let off = Some(Limit::Off(Off::Off));
    let idle = read(r#"{"idle_seconds": "off"}"#).unwrap().idle_seconds;
    assert_eq!(idle, off);
    for (text, part) in [
        (r#"{"idle_seconds": "never"}"#, "idle_seconds: "),
        (r#"{"idle": 3}"#, "`idle`"),
        (r#"{"idle_seconds": 1, "idle_seconds": 2}"#, "duplicate"),
        ("[]", "expected an object"),
        ("[1, 2, 3, 4]", "expected an object"),
    ] {
        let Err(NotRead::Invalid(why)) = read(text) else {
            panic!("{text} is read");
        };
        assert!(why.contains(part), "{text}: {why}");
    }
    for text in ["{", "{} {}", "nothing"] {
        assert!(matches!(read(text), Err(NotRead::NotJson(_))), "{text}");
    }
    for drill in Drill::ALL {
        let body = Order::Drill(drill).body();
        assert_eq!(body, json!({"kind": drill.name()}));
    }
}

#[tokio::test]
async fn orders_are_left_one_behind_the_other() {
    let (store, job) = (Memory::default(), Job::new("j").unwrap());
    let stop = Order::Stop(StopBody {
        mode: StopMode::Now,
        ..StopBody::default()
    });
    for (number, order) in [(1, &Order::Yield), (2, &stop), (3, &Order::Checkpoint)] {
        assert_eq!(leave(&store, &job, order).await.unwrap(), number);
        let left = store.get(&job.control(number)).await.unwrap();
        assert_eq!(Order::read(&left.bytes).as_ref(), Ok(order));
    }
    // A number that was left out is not taken later: the holder may be past it.
    store.create(&job.control(9), "{}".into()).await.unwrap();
    assert_eq!(leave(&store, &job, &stop).await.unwrap(), 10);
}
