//! What each finding comes to, on made-up machines.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use protocol::doctor::Verdict;

use super::remote::{host_of, own_clock, power_off, price, skew};
use super::{Asked, machine, place};
use crate::cgroup::{Memory, Version};
use crate::error::ExitStatus;
use crate::http::Listen;
use crate::provider::{Instance, Kind};

fn asked(variables: &[(&str, &str)]) -> Asked {
    let variables: HashMap<String, String> = variables
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    Asked {
        store: Some("s3://bucket/prefix".to_owned()),
        provider: None,
        run_dir: "runs".into(),
        listen: Some(Listen::Tcp("127.0.0.1:0".parse().unwrap())),
        price: None,
        environment: Arc::new(move |name| variables.get(name).cloned()),
    }
}

fn instance(kind: Kind, machine: Option<&str>) -> Instance {
    Instance {
        kind,
        found_by: "a test".to_owned(),
        id: None,
        region: None,
        machine: machine.map(str::to_owned),
        spot: Some(true),
        ends_in: None,
    }
}

#[test]
fn credentials_are_named_and_never_shown() {
    let both = [
        ("AWS_ACCESS_KEY_ID", "AKIDX"),
        ("AWS_SECRET_ACCESS_KEY", "hushX"),
    ];
    let check = machine::credentials(&asked(&both));
    assert_eq!(check.status, Verdict::Ok);
    assert!(!check.line().contains("hushX") && !check.line().contains("AKIDX"));
    assert_eq!(
        machine::credentials(&asked(&both[..1])).status,
        Verdict::Error
    );
    assert_eq!(machine::credentials(&asked(&[])).status, Verdict::Warning);
    let folder = Asked {
        store: Some("store".to_owned()),
        ..asked(&[])
    };
    assert_eq!(machine::credentials(&folder).status, Verdict::Ok);
}

#[test]
fn an_open_door_is_an_error_before_the_agent_refuses_it() {
    let anywhere = |variables| Asked {
        listen: Some(Listen::Tcp("0.0.0.0:0".parse().unwrap())),
        ..asked(variables)
    };
    assert_eq!(machine::tokens(&asked(&[])).status, Verdict::Ok);
    let open = machine::tokens(&anywhere(&[]));
    assert_eq!(
        (open.status, open.exit),
        (Verdict::Error, Some(ExitStatus::Usage))
    );
    let token = [("AGENT_TOKEN", "0123456789abcdef0123")];
    assert_eq!(machine::tokens(&anywhere(&token)).status, Verdict::Ok);
    assert_eq!(
        machine::tokens(&asked(&[("AGENT_TOKEN", "short")])).status,
        Verdict::Error
    );
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = Asked {
        listen: Some(Listen::Tcp(taken.local_addr().unwrap())),
        ..asked(&[])
    };
    assert_eq!(machine::tokens(&busy).status, Verdict::Warning);
    let socket = |path: &str| Asked {
        listen: Some(Listen::Unix(path.into())),
        ..asked(&[])
    };
    assert_eq!(machine::tokens(&socket("/tmp/a")).status, Verdict::Ok);
    assert_eq!(
        machine::tokens(&socket("/no/such/a")).status,
        Verdict::Error
    );
}

#[test]
fn clocks_are_compared_as_the_store_does() {
    let own = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let status = |off: i64| skew(1_800_000_000 + off, own).status;
    assert_eq!(status(2), Verdict::Ok);
    assert_eq!(status(-60), Verdict::Warning);
    assert_eq!(status(60), Verdict::Warning);
    assert_eq!(status(900), Verdict::Error);
    assert!(skew(1_800_000_060, own).found.starts_with("60 s behind"));
    assert_eq!(own_clock(UNIX_EPOCH).status, Verdict::Error);
    assert_eq!(own_clock(SystemTime::now()).status, Verdict::Ok);
}

#[test]
fn addresses_have_a_port() {
    for (url, host) in [
        ("http://127.0.0.1:9000/bucket", "127.0.0.1:9000"),
        (
            "https://s3.eu-central-1.amazonaws.com",
            "s3.eu-central-1.amazonaws.com:443",
        ),
        ("http://169.254.169.254", "169.254.169.254:80"),
        ("https://user:secret@store.example/x", "store.example:443"),
    ] {
        assert_eq!(host_of(url).as_deref(), Some(host), "{url}");
    }
    assert_eq!(host_of("nothing"), None);
}

#[test]
fn a_price_is_told_by_somebody_or_missed() {
    let aws = instance(Kind::Aws, Some("p3.2xlarge"));
    let check = price(&asked(&[]), &aws, None);
    assert!(
        check
            .found
            .starts_with("$0.92 an hour, by configs/prices.toml"),
        "{check:?}"
    );
    let told = price(&asked(&[]), &aws, Some((0.5, "the provider")));
    assert_eq!(told.found, "$0.50 an hour, by the provider");
    let flag = Asked {
        price: Some(2.0),
        ..asked(&[])
    };
    assert_eq!(price(&flag, &aws, None).found, "$2.00 an hour, by --price");
    let vast = instance(Kind::Vast, None);
    assert_eq!(price(&asked(&[]), &vast, None).status, Verdict::Warning);
    let own = instance(Kind::Local, None);
    assert_eq!(price(&asked(&[]), &own, None).status, Verdict::Ok);
}

#[test]
fn a_machine_that_would_stay_on_is_told() {
    let line = |text: &str| vec![text.to_owned()];
    let of = |kind, text: &str| power_off(&instance(kind, None), &line(text)).status;
    assert_eq!(
        of(Kind::RunPod, "nothing: RUNPOD_API_KEY is not set"),
        Verdict::Warning
    );
    assert_eq!(
        of(Kind::RunPod, "POST https://api.runpod.io/v2"),
        Verdict::Ok
    );
    let exit = "nothing: the end of the agent's process ends the bill";
    assert_eq!(of(Kind::Modal, exit), Verdict::Ok);
    assert_eq!(of(Kind::Local, "nothing: nobody's"), Verdict::Ok);
}

#[test]
fn memory_and_disk_are_judged() {
    let of = |limit, usage, oom_kills| Memory {
        limit_bytes: limit,
        usage_bytes: usage,
        oom_kills,
    };
    let status = |available: u64, group| {
        place::judge_memory(Some(available << 20), Some(Version::V2), group).status
    };
    assert_eq!(status(8000, Memory::default()), Verdict::Ok);
    assert_eq!(status(100, Memory::default()), Verdict::Warning);
    assert_eq!(
        status(8000, of(Some(1 << 30), Some(900 << 20), None)),
        Verdict::Warning
    );
    assert_eq!(status(8000, of(None, None, Some(2))), Verdict::Warning);
    assert_eq!(
        place::judge_memory(None, None, Memory::default()).status,
        Verdict::Warning
    );
    let disk = |free: u64, speed| place::judge_disk(Path::new("/x"), free, speed).status;
    assert_eq!(disk(50 << 30, 500e6), Verdict::Ok);
    assert_eq!(disk(1 << 30, 500e6), Verdict::Warning);
    assert_eq!(disk(1 << 20, 500e6), Verdict::Error);
    assert_eq!(disk(50 << 30, 1e6), Verdict::Warning);
    let folder = tempfile::tempdir().unwrap();
    let (free, speed) = place::measure(folder.path()).unwrap();
    assert!(free > 0 && speed > 0.0);
    assert_eq!(
        fs::read_dir(folder.path()).unwrap().count(),
        0,
        "it left something behind"
    );
}

#[test]
fn a_shell_as_the_first_process_is_told() {
    let of = |name: &str| {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("proc/1")).unwrap();
        fs::write(root.path().join("proc/1/comm"), format!("{name}\n")).unwrap();
        machine::first_process(root.path()).status
    };
    assert_eq!(of("bash"), Verdict::Warning);
    assert_eq!(of("tini"), Verdict::Ok);
}
