//! A real process that floods its output.

use std::fs;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use agent::child::{Child, Status};
use agent::logs::{Console, Line, Logs};
use agent::redact::Redactor;

use crate::support::{PATIENCE, script};

/// Plays an agent whose trainer prints 150 MB as fast as it can, in a process of its own so that
/// its memory can be measured; prints what it saw. Does nothing unless
/// [`a_flood_costs_neither_memory_nor_the_job`] asks for it.
#[tokio::test]
async fn plays_a_flooded_agent() {
    let Ok(dir) = std::env::var("TEST_FLOOD_DIR") else {
        return;
    };
    let dir = std::path::Path::new(&dir);
    let console = Console {
        stdout: Box::new(std::io::sink()),
        stderr: Box::new(std::io::sink()),
    };
    let redactor = Arc::new(Redactor::from_env());
    let logs = Logs::open(&dir.join("logs"), redactor, console).unwrap();
    let start = Instant::now();
    let command = script(
        "yes 'iter 1: loss 2.5 and some more words to make a line' | head -c 150000000
         echo; echo the end; exit 5",
    );
    let child = Child::spawn(&command, logs.begin(1)).unwrap();
    let exit = child.wait().await;
    let seconds = start.elapsed().as_secs_f64();
    assert_eq!(exit.status, Status::Code(5));
    assert!(child.drained(PATIENCE).await);
    assert!(logs.flush(PATIENCE).await);
    assert_eq!(logs.tail(1)[0].line, "the end");
    let (mut last_seq, mut gaps) = (None, 0);
    while let Some(segment) = logs.next_segment() {
        let ndjson = zstd::decode_all(segment.bytes.as_slice()).unwrap();
        for line in str::from_utf8(&ndjson).unwrap().lines() {
            let line: Line = serde_json::from_str(line).unwrap();
            assert!(Some(line.seq) > last_seq);
            last_seq = Some(line.seq);
            gaps += u32::from(line.gap.is_some());
        }
        logs.stored(&segment.key);
    }
    assert!(gaps > 0, "what was lost is told");
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .unwrap();
    let mut on_disk = 0;
    for entry in fs::read_dir(dir.join("logs")).unwrap() {
        on_disk += entry.unwrap().metadata().unwrap().len();
    }
    let kib = peak.split_whitespace().nth(1).unwrap();
    fs::write(dir.join("seen"), format!("{seconds} {kib} {on_disk}")).unwrap();
}

#[test]
fn a_flood_costs_neither_memory_nor_the_job() {
    let dir = tempfile::tempdir().unwrap();
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "logs::plays_a_flooded_agent"])
        .env("TEST_FLOOD_DIR", dir.path())
        .stdout(Stdio::inherit())
        .status()
        .unwrap();
    assert!(status.success());
    let seen = fs::read_to_string(dir.path().join("seen")).unwrap();
    let seen: Vec<f64> = seen
        .split(' ')
        .map(|number| number.parse().unwrap())
        .collect();
    let [seconds, peak_kib, disk_bytes] = seen[..] else {
        panic!("{seen:?}");
    };
    println!(
        "150 MB in {seconds:.2} s, peak {:.1} MiB",
        peak_kib / 1024.0
    );
    // A gigabyte a minute is 9 s for this much; a busy machine may take longer.
    assert!(seconds < 30.0, "{seconds}");
    assert!(peak_kib < 64.0 * 1024.0, "{peak_kib}");
    assert!(disk_bytes < 34e6, "{disk_bytes}");
}
