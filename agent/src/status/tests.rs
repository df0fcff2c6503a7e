//! What a poller sees: the keys of the background specification, ages, ends, and no secret.

use std::time::Duration;

use protocol::{Event, Phase as TrainerPhase, Record};
use serde_json::json;

use super::*;
use crate::child::Source;
use crate::limits::{Age, Limits};
use crate::provider::PowerOff;
use crate::state::{
    Call, Cause, Ending, Held, LeaseMode, OnLost, Seeking, Settings, Stop, Upload, Watched,
};

const STARTED: &str = "2026-01-02T03:00:00Z";
const WRITTEN: &str = "2026-01-02T03:04:06Z";

fn at(seconds: u64) -> Moment {
    Moment::since_boot(Duration::from_secs(seconds))
}

fn new_state() -> State {
    let settings = Settings {
        lease: LeaseMode::Strict,
        on_lost: OnLost::Exit,
        takes_keys: false,
        again: false,
        ttl: Duration::from_secs(60),
        kill_budget: Duration::from_secs(5),
        rho: 0.0,
        restarts_max: 3,
        backoff_first: Duration::from_secs(1),
        backoff_max: Duration::from_secs(60),
        start_patience: Duration::from_secs(300),
        save_patience: Duration::from_secs(30),
        store_patience: Duration::from_secs(600),
        status_every: Duration::from_secs(5),
        logs_every: Duration::from_secs(30),
        limits: Limits::default(),
        age: Age::default(),
        price: None,
        power_off: PowerOff::None,
    };
    State::new(settings, at(100))
}

fn record(state: &mut State, now: Moment, event: Event) {
    let record = Record {
        time: "2026-01-02T03:04:05Z".to_owned(),
        elapsed_s: 0.0,
        event,
    };
    state.progress.record(&record, now);
}

/// In the middle of a run at 200 s, the last word of the trainer half a second ago.
fn training() -> State {
    let mut state = new_state();
    state.lease = Lease::Held(Held {
        epoch: 3,
        base: Some(4_000),
        claimed: at(110),
        sent: at(190),
        beat: Call::due(at(205)),
        risk: Risk::None,
    });
    state.trainer = Trainer::Running {
        since: at(120),
        stop: None,
    };
    state.checkpoints.local = Some(5_100);
    state.checkpoints.published = Some(5_000);
    state.checkpoints.published_at = Some(at(180));
    state.checkpoints.upload = Some(Upload {
        epoch: 3,
        step: 5_100,
        since: at(195),
        cancelled: false,
    });
    state.counts.crashes = 2;
    state.counts.preemptions = 1;
    let started = Event::Started {
        version: "1".to_owned(),
        pid: 42,
        config: "c".to_owned(),
        config_hash: "h".to_owned(),
        engine: "fused".to_owned(),
        device: "cpu".to_owned(),
        threads: 1,
        parameters: 10,
        tokens_per_iteration: 8,
        max_iters: 20_000,
        resumed_from: Some(5_000),
        startup_ms: Vec::new(),
    };
    record(&mut state, at(130), started);
    let step = Event::Step {
        step: 5_199,
        loss: 2.5,
        lr: 0.0005,
        grad_norm: 1.0,
        step_ms: 250.0,
        tokens_per_second: 32.0,
        mfu: Some(0.25),
    };
    record(&mut state, at(199) + Duration::from_millis(500), step);
    state
}

fn lines(texts: &[&str]) -> Vec<Line> {
    let lines = texts.iter().zip(0..);
    lines
        .map(|(text, n)| Line {
            seq: n,
            time: WRITTEN.to_owned(),
            attempt: 2,
            source: Source::Stdout,
            line: (*text).to_owned(),
            gap: None,
        })
        .collect()
}

fn status_with(state: &State, lines: &[Line], now: Moment) -> Value {
    let extra = Extra {
        job: "sweep/j",
        rev: 412,
        attempt: 2,
        started_at: STARTED,
        written_at: WRITTEN,
        lines,
        holder: "host:7",
        more: &More::default(),
    };
    build(state, &extra, now)
}

fn status(state: &State, now: Moment) -> Value {
    status_with(state, &[], now)
}

fn ending(reason: Reason, stage: Stage, recorded: bool) -> Ending {
    Ending {
        reason,
        since: at(199),
        deadline: None,
        noticed: None,
        now: false,
        recorded,
        power_off: None,
        stage,
        stage_since: at(199),
        call: Call::due(at(199)),
    }
}

/// Every value, with those within it.
fn walk(value: &Value, see: &mut dyn FnMut(&Value)) {
    see(value);
    match value {
        Value::Array(values) => values.iter().for_each(|value| walk(value, see)),
        Value::Object(fields) => fields.values().for_each(|value| walk(value, see)),
        _ => {}
    }
}

#[test]
fn a_status_has_the_keys_that_are_specified_and_nulls_nowhere() {
    let status = status_with(&training(), &lines(&["one", "two"]), at(200));
    let wall = json!({"timer": "wall", "at": "2026-01-03T03:02:26Z", "in_seconds": 86_300});
    let expected = json!({
        "schema_version": 1,
        "rev": 412,
        "id": "sweep/j",
        "provider": "local",
        "status": "running",
        "phase": "training",
        "progress": {
            "step": 5_200,
            "total_steps": 20_000,
            "tokens": 41_600,
            "loss": 2.5,
            "lr": 0.0005,
            "grad_norm": 1.0,
            "steps_per_second": 4.0,
            "tokens_per_second": 32.0,
            "mfu": 0.25,
            "percent": 26.0,
            "eta_seconds": 3_700,
            "updated_at": "2026-01-02T03:04:05Z",
            "age_seconds": 0.5,
        },
        "logs": ["one", "two"],
        "logs_next": 1,
        "cost_so_far": 0.0,
        "lease": {"epoch": 3, "holder": "host:7", "valid_for_seconds": 50},
        "checkpoint": {
            "step": 5_000,
            "age_seconds": 20.0,
            "local_step": 5_100,
            "uploading_step": 5_100,
            "steps_at_risk": 200,
        },
        "attempt": 2,
        "preemptions": 1,
        "restarts": 2,
        "timestamps": {"started": STARTED, "updated": WRITTEN},
        "cost_so_far": 0.0,
        "limits": {
            "max_wall_seconds": 86_400,
            "idle_seconds": 1_800,
            "stall_seconds": 900,
            "next_deadline": wall,
            "deadlines": [wall],
        },
    });
    assert_eq!(status, expected, "{status:#}");

    for state in [new_state(), training()] {
        walk(&self::status(&state, at(200)), &mut |value| {
            assert!(!value.is_null());
        });
    }
    let early = self::status(&new_state(), at(100));
    assert_eq!(early["progress"], json!({}));
    assert_eq!(early.get("lease"), None);
    assert_eq!(early.get("reason"), None);
}

#[test]
fn each_phase_belongs_to_its_status() {
    let seeking = |watch| {
        Lease::Seeking(Seeking {
            call: Call::due(at(100)),
            claiming: false,
            watch,
            lapsed: None,
            since: at(100),
        })
    };
    let watched = Watched {
        epoch: 1,
        tag: "t".to_owned(),
        since: at(100),
    };
    let mut state = new_state();
    let mut seen = Vec::new();
    let mut see = |state: &State| {
        let Phase { phase, status } = phase(state);
        seen.push((status, phase));
    };
    see(&state);
    state.lease = seeking(None);
    see(&state);
    state.lease = seeking(Some(watched));
    see(&state);
    state.lease = training().lease;
    see(&state);
    state.trainer = Trainer::Restoring {
        call: Call::due(at(100)),
        since: at(100),
    };
    see(&state);
    assert_eq!(
        seen,
        [
            ("provisioning", "probing_store"),
            ("provisioning", "claiming"),
            ("queued", "standby"),
            ("provisioning", "starting"),
            ("provisioning", "restoring"),
        ]
    );
}

#[test]
fn each_phase_of_a_trainer_belongs_to_its_status() {
    let mut state = training();
    for (of_trainer, status, phase) in [
        (TrainerPhase::Preparing, "provisioning", "fetching_data"),
        (TrainerPhase::Loading, "provisioning", "starting"),
        (TrainerPhase::Compiling, "provisioning", "starting"),
        (TrainerPhase::Training, "running", "training"),
        (TrainerPhase::Evaluating, "running", "evaluating"),
        (TrainerPhase::Checkpointing, "running", "checkpointing"),
    ] {
        record(&mut state, at(199), Event::Phase { phase: of_trainer });
        assert_eq!(super::phase(&state), Phase { phase, status });
    }
    state.trainer = Trainer::Running {
        since: at(120),
        stop: Some(Stop {
            why: StopReason::Stalled,
            kill_at: at(300),
            killed: false,
        }),
    };
    assert_eq!(super::phase(&state).phase, "stalled");
}

#[test]
fn ages_grow_with_the_boot_clock_alone() {
    let state = training();
    let age = |now, of: &str| status(&state, now)[of]["age_seconds"].as_f64().unwrap();
    let mut before = (0.0, 0.0);
    for seconds in 200..230 {
        let ages = (age(at(seconds), "progress"), age(at(seconds), "checkpoint"));
        assert!(ages.0 > before.0 && ages.1 > before.1, "{ages:?}");
        before = ages;
    }
    assert_eq!(before, (29.5, 49.0));
    // A moment before what is known, as a test or a wrong order of calls may have it, is age 0.
    assert!(age(at(150), "progress").abs() < f64::EPSILON);
    // The lease runs out, and a poller sees it come.
    let valid = |now| status(&state, now)["lease"]["valid_for_seconds"].as_u64();
    assert_eq!((valid(at(200)), valid(at(249))), (Some(50), Some(1)));
    assert_eq!(valid(at(400)), Some(0));
}

#[test]
fn the_last_status_of_a_job_tells_how_it_ended() {
    let crashed = Reason::Crashed {
        cause: Cause::OutOfMemory,
        detail: "killed".to_owned(),
    };
    let source = "SIGTERM".to_owned();
    for (reason, status, phase, resumable, retryable, exit) in [
        (Reason::Completed, "completed", "succeeded", false, false, 0),
        (
            Reason::Preempted { source },
            "queued",
            "preempted",
            true,
            true,
            12,
        ),
        (crashed, "failed", "oom_killed", true, true, 11),
        (
            Reason::TrainerRefuses { code: 76 },
            "failed",
            "diverged",
            false,
            false,
            10,
        ),
    ] {
        let mut state = training();
        state.trainer = Trainer::Absent {
            not_before: at(199),
            restore: false,
        };
        let recorded = reason == Reason::Completed;
        let text = reason.text();
        state.ending = Some(ending(reason, Stage::Status, recorded));
        let last = self::status(&state, at(200));
        assert_eq!(last["status"], status);
        assert_eq!(last["phase"], phase);
        assert_eq!(last["reason"], phase);
        assert_eq!(last["message"], text);
        assert_eq!(last["resumable"], resumable, "{phase}");
        assert_eq!(last["retryable"], retryable, "{phase}");
        assert_eq!(last["exit"], exit, "{phase}");
        assert_eq!(last["timestamps"]["ended"], WRITTEN);
        // What was reached is still told.
        assert_eq!(last["progress"]["step"], 5_200);
        assert_eq!(last["checkpoint"]["step"], 5_000);
    }
}

#[test]
fn nothing_is_completed_before_it_is_recorded() {
    let mut state = training();
    for (stage, phase) in [
        (Stage::Stopping, "draining"),
        (Stage::Publishing, "finalizing"),
        (Stage::Logs, "finalizing"),
        (Stage::Final, "finalizing"),
    ] {
        state.ending = Some(ending(Reason::Completed, stage, false));
        let status = status(&state, at(200));
        assert_eq!(
            (&status["status"], &status["phase"]),
            (&json!("running"), &json!(phase))
        );
        assert_eq!(status["timestamps"].get("ended"), None);
    }
}

#[test]
fn the_status_of_a_killed_agent_shows_that_nobody_keeps_it_up() {
    // The last one that it wrote. Nothing in it ages by itself, so what a poller needs is when it
    // was written, how long the lease was good for then, and whose it was.
    let last = status(&training(), at(200));
    assert_eq!(last["status"], "running");
    assert_eq!(last["timestamps"]["updated"], WRITTEN);
    assert_eq!(last["lease"]["valid_for_seconds"], 50);
    assert_eq!(last["lease"]["epoch"], 3);
    assert_eq!(last["rev"], 412);
    assert_eq!(last.get("exit"), None);
}

#[test]
fn secrets_are_in_no_text_of_it_however_json_would_spell_them() {
    let secret = "pass\"word\\with\tall";
    let variables = [("AWS_SECRET_ACCESS_KEY".to_owned(), secret.to_owned())];
    let redactor = Redactor::from_variables(variables);
    let url = "https://b.s3/k?X-Amz-Credential=AK&X-Amz-Signature=0123456789abcdef0123456789abcdef";
    let mut state = training();
    let why = format!("403 for {secret}");
    state.ending = Some(ending(Reason::StoreRefused(why), Stage::Status, false));
    let lines = lines(&["plain", &format!("key {secret}"), &format!("GET {url}")]);
    let open = status_with(&state, &lines, at(200));
    let mut masked = open.clone();
    redact(&mut masked, &redactor);

    let mut texts = Vec::new();
    walk(&masked, &mut |value| {
        texts.extend(value.as_str().map(str::to_owned));
    });
    assert!(texts.iter().any(|text| text == "plain"));
    for text in &texts {
        assert!(!text.contains(secret), "{text}");
        assert!(!text.contains("0123456789abcdef"), "{text}");
    }
    let spelled = serde_json::to_string(&masked).unwrap();
    assert!(!spelled.contains("word"), "{spelled}");
    assert_eq!(masked["progress"], open["progress"]);
    assert_eq!(masked["logs"].as_array().unwrap().len(), 3);
}

#[test]
fn the_newest_output_is_kept_within_its_bounds() {
    let long = "x".repeat(10_000);
    let texts: Vec<String> = (0..20).map(|n| format!("{n} {long}")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let status = status_with(&training(), &lines(&texts), at(200));
    let logs = status["logs"].as_array().unwrap();
    assert_eq!(logs.len(), 6);
    assert!(logs[5].as_str().unwrap().starts_with("19 "));
    assert_eq!(status["logs_next"], 19);
}
