//! Tests of `child` that need no process; `tests/it/child.rs` has the others.

use std::ffi::OsString;

use super::environment::Environment;
use super::group::Process;
use super::*;

#[test]
fn a_process_may_have_any_name() {
    let parsed = Process::parse("42 (a) b (c\n) S 1 40 39 0 -1 4194560").unwrap();
    let expected = Process {
        pid: 42,
        parent: 1,
        group: 40,
        session: 39,
        state: 'S',
    };
    assert_eq!(parsed, expected);
    assert!(!parsed.is_zombie());
    assert!(Process::parse("42 (sh) Z 1 40 39").unwrap().is_zombie());
    assert_eq!(Process::parse("42 (sh) S 1"), None);
    assert_eq!(Process::parse(""), None);
}

#[test]
fn an_end_is_told_in_words() {
    let oom = Oom {
        kills: 1,
        limit_bytes: Some(512 << 20),
    };
    let killed = Status::Signal(Signal::KILL.as_raw());
    for (status, oom, text) in [
        (Status::Code(75), None, "exit code 75"),
        (killed, None, "SIGKILL"),
        (Status::Signal(64), None, "signal 64"),
        (
            killed,
            Some(oom),
            "SIGKILL: killed by the kernel for want of memory, limit 512 MiB",
        ),
        (
            Status::Code(1),
            Some(oom),
            "exit code 1; 1 of its processes killed for want of memory, limit 512 MiB",
        ),
    ] {
        let exit = Exit { status, oom };
        assert_eq!(exit.to_string(), text);
        assert_eq!(exit.is_oom_kill(), oom.is_some() && status == killed);
    }
}

#[test]
fn the_agents_secrets_stay_with_it_unless_passed() {
    let environment = Environment {
        set: vec![("PATH".into(), "/trainer".into())],
        pass: vec!["AWS_ACCESS_KEY_ID".to_owned()],
    };
    let agents = [
        ("PATH", "/bin"),
        ("HOME", "/root"),
        ("AWS_ACCESS_KEY_ID", "id"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("CONTAINER_API_KEY", "secret"),
        ("HF_TOKEN", "the trainer's"),
    ];
    let agents = agents.map(|(name, value)| (OsString::from(name), OsString::from(value)));
    let mut names: Vec<OsString> = Vec::new();
    for (name, value) in environment.resolve_from(agents) {
        assert!(name != "PATH" || value == "/trainer");
        names.push(name);
    }
    names.sort();
    assert_eq!(names, ["AWS_ACCESS_KEY_ID", "HF_TOKEN", "HOME", "PATH"]);
}

#[test]
fn the_last_step_refuses_what_it_does_not_understand() {
    let run = |args: &[&str]| exec::run(args.iter().map(OsString::from));
    for args in [
        &[][..],
        &["1", "0"],
        &["x", "0", "--", "true"],
        &["1", "x", "--", "true"],
        &["1", "0", "true"],
        &["1", "0", "--"],
    ] {
        assert_eq!(run(args).exit_code(), 64, "{args:?}");
    }
}
