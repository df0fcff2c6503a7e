//! Commands as texts.

use super::*;

fn parse(text: &str) -> Command {
    parse_command(text.as_bytes())
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
}

#[test]
fn what_is_not_understood_says_why() {
    for (text, part) in [
        ("{", "unreadable"),
        ("[]", "not known"),
        (r#"{"kind":"explode"}"#, "\"explode\""),
        (r#"{"kind":"stop","mode":"soon"}"#, "mode"),
        (r#"{"kind":"stop","checkpoint":"yes"}"#, "checkpoint"),
        (r#"{"kind":"stop","grace_seconds":-1}"#, "grace_seconds"),
        (r#"{"kind":"limits","budget_usd":"much"}"#, "budget_usd"),
        (r#"{"kind":"limits","idle_seconds":1e300}"#, "idle_seconds"),
        (r#"{"kind":"keepalive"}"#, "ttl_seconds"),
        (r#"{"kind":"drill","drill":"fire"}"#, "\"fire\""),
        (r#"{"kind":"credentials","secret":"s"}"#, "credentials"),
    ] {
        let Command::Unknown(why) = parse(text) else {
            panic!("{text} is understood");
        };
        assert!(why.contains(part), "{text}: {why}");
    }
}
