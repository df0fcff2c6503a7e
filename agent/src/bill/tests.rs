//! The bill of a state.

use super::*;
use crate::limits::{Age, Limits};
use crate::provider::{PowerOff, Price};
use crate::state::{LeaseMode, OnLost, Settings};

fn state(price: Option<Price>) -> State {
    let seconds = Duration::from_secs;
    let settings = Settings {
        lease: LeaseMode::Strict,
        on_lost: OnLost::Exit,
        takes_keys: false,
        again: false,
        ttl: seconds(60),
        kill_budget: seconds(5),
        rho: 0.01,
        restarts_max: 3,
        backoff_first: seconds(1),
        backoff_max: seconds(60),
        start_patience: seconds(300),
        save_patience: seconds(30),
        store_patience: seconds(600),
        status_every: seconds(5),
        logs_every: seconds(30),
        limits: Limits {
            budget_usd: price.as_ref().map(|_| 10.0),
            ..Limits::default()
        },
        age: Age {
            wall: seconds(600),
            paid: seconds(1200),
        },
        price,
        power_off: PowerOff::Destroy,
    };
    State::new(settings, Moment::since_boot(seconds(10_000)))
}

fn shown(state: &State, after_s: u64) -> serde_json::Value {
    let time: Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
    let now = state.began + Duration::from_secs(after_s);
    serde_json::to_value(of(state, now, time)).unwrap()
}

#[test]
fn money_time_and_answers_are_shown() {
    let mut state = state(Some(Price {
        per_hour: 3.0,
        storage_per_hour: 0.6,
        source: PriceSource::Table,
    }));
    state.meter.set_former(1.0, 0.0);
    state.answers.push(Answer {
        id: "00000007".to_owned(),
        kind: "drill".to_owned(),
        refused: Some("no trainer runs".to_owned()),
    });
    let bill = shown(&state, 2400);
    assert!((bill["cost_so_far"].as_f64().unwrap() - 4.6).abs() < 1e-9);
    assert_eq!(bill["cost"]["price_per_hour"], 3.0);
    assert_eq!(bill["cost"]["price_source"], "table");
    assert_eq!(bill["cost"]["compute"], 3.0);
    assert_eq!(bill["cost"]["former"], 1.0);
    // An hour before the time that it is now: boot is paid for.
    assert_eq!(bill["cost"]["since"], "2026-01-02T02:04:05Z");
    assert_eq!(bill["cost"]["budget"], 10.0);
    assert!((bill["cost"]["remaining"].as_f64().unwrap() - 5.4).abs() < 1e-9);
    assert_eq!(bill["limits"]["max_wall_seconds"], 86_400);
    assert_eq!(bill["limits"]["stall_seconds"], 900);
    assert_eq!(bill["limits"]["next_deadline"]["timer"], "budget");
    assert_eq!(bill["limits"]["deadlines"][1]["timer"], "wall");
    let left = bill["limits"]["deadlines"][1]["in_seconds"].as_u64();
    assert_eq!(left, Some(86_400 - 600 - 2400));
    assert_eq!(bill["control"]["last"], "00000007");
    assert_eq!(bill["control"]["answers"][0]["done"], false);
    assert!(bill["estimated_total"].is_null(), "no pace is known");
}

#[test]
fn a_machine_without_a_price_costs_nothing_that_we_know_of() {
    let mut state = state(None);
    state.settings.limits.wall = None;
    state.clocks.wall = None;
    let bill = shown(&state, 0);
    assert_eq!(bill["cost_so_far"], 0.0);
    assert!(bill["cost"].is_null() && bill["control"].is_null());
    assert!(bill["limits"]["max_wall_seconds"].is_null());
    assert!(bill["limits"]["next_deadline"].is_null());
}
