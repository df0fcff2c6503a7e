//! Processors, memory and the clock. Called by the doctor.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use protocol::ExitCode;

use super::Check;
use crate::config::Config;
use crate::machine::{self, human_bytes};

pub(super) fn checks(config: &Config) -> Vec<Check> {
    let root = Path::new("/");
    vec![
        processors(config, quota(root)),
        memory(machine::memory_available(), limit(root)),
        clock(),
    ]
}

/// Processors' worth of time that the control group may use, and where that is said.
pub(super) fn quota(root: &Path) -> Option<(f64, &'static str)> {
    let read = |path: &str| fs::read_to_string(root.join(path)).ok();
    let v2 = read("sys/fs/cgroup/cpu.max").and_then(|text| {
        let (quota, period) = text.trim().split_once(' ')?;
        Some((quota.parse().ok()?, period.parse().ok()?))
    });
    let v1 = || -> Option<(f64, f64)> {
        let number = |path: &str| read(path)?.trim().parse::<f64>().ok();
        Some((
            number("sys/fs/cgroup/cpu/cpu.cfs_quota_us").filter(|&quota| quota > 0.0)?,
            number("sys/fs/cgroup/cpu/cpu.cfs_period_us")?,
        ))
    };
    let of = |(quota, period): (f64, f64), name| (period > 0.0).then_some((quota / period, name));
    match v2 {
        Some(found) => of(found, "cgroup v2"),
        None => of(v1()?, "cgroup v1"),
    }
}

/// The memory limit of the control group, bytes, and where that is said.
pub(super) fn limit(root: &Path) -> Option<(u64, &'static str)> {
    // Version 1 writes "none" as the largest multiple of a page.
    const NONE: u64 = 1 << 60;
    let files = [
        ("sys/fs/cgroup/memory.max", "cgroup v2"),
        ("sys/fs/cgroup/memory/memory.limit_in_bytes", "cgroup v1"),
    ];
    let number = |path: &str| {
        fs::read_to_string(root.join(path))
            .ok()?
            .trim()
            .parse()
            .ok()
    };
    let mut found = files
        .into_iter()
        .filter_map(|(path, name)| Some((number(path)?, name)));
    found.find(|(bytes, _)| *bytes < NONE)
}

fn processors(config: &Config, quota: Option<(f64, &str)>) -> Check {
    let threads = machine::threads(config.threads);
    let usable = machine::threads(0);
    let features = features();
    let mut found = format!("{threads} threads, {usable} processors");
    if let Some((quota, by)) = quota {
        found.push_str(&format!(", {quota:.1} of them by {by}"));
    }
    found.push_str(&format!(", {features}"));
    let limit = quota.map_or(usable as f64, |(quota, _)| quota.min(usable as f64));
    if threads as f64 > limit.max(1.0) {
        return Check::warning(
            "processors",
            format!("{found}: more threads than processors wait for one another"),
            format!("--threads={:.0}", limit.max(1.0).floor()),
        );
    }
    if cfg!(target_arch = "x86_64") && !features.contains("avx2") {
        return Check::warning(
            "processors",
            format!("{found}: no AVX2, the CPU trains several times slower"),
            "another machine, or a GPU",
        );
    }
    Check::ok("processors", found)
}

/// Vector units that the kernels know.
fn features() -> String {
    #[cfg(target_arch = "x86_64")]
    {
        let known = [
            ("avx2", is_x86_feature_detected!("avx2")),
            ("fma", is_x86_feature_detected!("fma")),
            ("avx512f", is_x86_feature_detected!("avx512f")),
            ("amx_bf16", kernels::matmul::cpu::has_amx()),
        ];
        let has: Vec<&str> = known
            .iter()
            .filter(|(_, has)| *has)
            .map(|(name, _)| *name)
            .collect();
        if has.is_empty() {
            "no vector unit".to_owned()
        } else {
            has.join(" ")
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    std::env::consts::ARCH.to_owned()
}

pub(super) fn memory(available: Option<u64>, limit: Option<(u64, &str)>) -> Check {
    /// The quickstart takes a tenth of it.
    const LEAST: u64 = 512 << 20;
    let Some(available) = available else {
        return Check::warning(
            "memory",
            "how much is available cannot be read: a run that takes more is killed",
            "--batch_size small enough; trainer estimate tells what a run takes",
        );
    };
    let mut found = format!("{} available", human_bytes(available));
    if let Some((limit, by)) = limit {
        found.push_str(&format!(", limited to {} by {by}", human_bytes(limit)));
    }
    if available < LEAST {
        return Check::error(
            "memory",
            ExitCode::Config,
            format!("{found}: not enough for any run but the smallest"),
            "a larger machine or limit (docker run --memory)",
        );
    }
    Check::ok("memory", found)
}

/// Whether the wall clock goes as the other does, and stands in a year that can be.
fn clock() -> Check {
    const WAIT: Duration = Duration::from_millis(100);
    let (start, wall) = (Instant::now(), SystemTime::now());
    thread::sleep(WAIT);
    let passed = start.elapsed();
    judge_clock(wall, passed, SystemTime::now())
}

/// `passed` is what the clock that nobody sets saw between two looks at the other.
pub(super) fn judge_clock(first: SystemTime, passed: Duration, second: SystemTime) -> Check {
    /// 2026-01-01: before the program was written.
    const YEAR: u64 = 1_767_225_600;
    const SKEW_MAX: Duration = Duration::from_millis(50);
    let seconds = second
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let time = jiff::Timestamp::from_second(seconds.try_into().unwrap_or(0));
    let time = time.map_or_else(|_| "unreadable".to_owned(), |time| time.to_string());
    if seconds < YEAR {
        return Check::warning(
            "clock",
            format!("{time}: in the past, downloads over TLS fail and logs mislead"),
            "set the clock (chronyd, systemd-timesyncd)",
        );
    }
    let moved = second.duration_since(first).unwrap_or_default();
    if moved.abs_diff(passed) > SKEW_MAX {
        return Check::warning(
            "clock",
            format!("{time}: it jumped while it was watched, times in logs mislead"),
            "see who sets it: two services may be at it",
        );
    }
    Check::ok("clock", time)
}
