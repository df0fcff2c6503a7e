//! What each finding comes to, on made-up machines.

use std::fs;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use protocol::doctor::Verdict;

use super::disk::{self, Seen};
use super::{examine, gpu, host, in_time};
use crate::config::Config;

fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    root
}

#[test]
fn the_driver_is_read_and_judged() {
    let text = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 UTC 2025\n\
                GCC version:  gcc version 12.2.0";
    assert_eq!(gpu::version_of(text).as_deref(), Some("580.65.06"));
    let open = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  535.1  Release Build";
    assert_eq!(gpu::version_of(open).as_deref(), Some("535.1"));
    let library = Some(Path::new("/usr/lib/libcuda.so.1"));
    let status = |kernel, library, built| gpu::driver(kernel, library, built).status;
    assert_eq!(status(Some("580.65.06"), library, true), Verdict::Ok);
    assert_eq!(
        status(Some("580.65.06"), library, false),
        Verdict::Warning,
        "an idle GPU"
    );
    assert_eq!(status(Some("470.1"), library, true), Verdict::Error);
    assert_eq!(
        status(Some("580.1"), None, true),
        Verdict::Error,
        "a container without --gpus"
    );
    assert_eq!(status(None, None, false), Verdict::Ok);
    assert_eq!(status(None, None, true), Verdict::Warning);
}

#[test]
fn the_library_and_the_gpus_are_found_as_the_loader_and_the_kernel_have_them() {
    let root = machine(&[
        (
            "etc/ld.so.cache",
            "ld.so\0libcuda.so.1\0/opt/nv/libcuda.so.1\0",
        ),
        (
            "proc/driver/nvidia/gpus/0/information",
            "Model: \t NVIDIA H100 80GB HBM3\nIRQ: 1\n",
        ),
    ]);
    let library = gpu::library(root.path());
    // A machine whose LD_LIBRARY_PATH has it is not a fault of the test.
    assert!(library.unwrap().ends_with("libcuda.so.1"));
    assert_eq!(gpu::gpus(root.path()), ["NVIDIA H100 80GB HBM3"]);
    assert!(gpu::gpus(machine(&[]).path()).is_empty());
}

#[test]
fn a_gpu_that_is_taken_is_told() {
    let status = |free: u64, used: u64| gpu::gpu_memory(free << 30, used << 30).status;
    assert_eq!(status(79, 1), Verdict::Ok);
    assert_eq!(status(40, 40), Verdict::Warning);
}

#[test]
fn quotas_and_limits_of_both_versions_are_read() {
    let v2 = machine(&[
        ("sys/fs/cgroup/cpu.max", "150000 100000\n"),
        ("sys/fs/cgroup/memory.max", "2147483648\n"),
    ]);
    assert_eq!(host::quota(v2.path()), Some((1.5, "cgroup v2")));
    assert_eq!(host::limit(v2.path()), Some((2 << 30, "cgroup v2")));
    let v1 = machine(&[
        ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "400000\n"),
        ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
        ("sys/fs/cgroup/memory/memory.limit_in_bytes", "1073741824\n"),
    ]);
    assert_eq!(host::quota(v1.path()), Some((4.0, "cgroup v1")));
    assert_eq!(host::limit(v1.path()), Some((1 << 30, "cgroup v1")));
    let free = machine(&[
        ("sys/fs/cgroup/cpu.max", "max 100000\n"),
        ("sys/fs/cgroup/memory.max", "max\n"),
        ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n"),
        (
            "sys/fs/cgroup/memory/memory.limit_in_bytes",
            "9223372036854771712\n",
        ),
    ]);
    assert_eq!(host::quota(free.path()), None);
    assert_eq!(host::limit(free.path()), None);
    assert_eq!(host::memory(Some(8 << 30), None).status, Verdict::Ok);
    assert_eq!(
        host::memory(Some(100 << 20), Some((1 << 30, "x"))).status,
        Verdict::Error
    );
    assert_eq!(host::memory(None, None).status, Verdict::Warning);
}

#[test]
fn a_clock_that_jumps_or_stands_in_the_past_is_told() {
    let at = |seconds: u64| UNIX_EPOCH + Duration::from_secs(seconds);
    let tenth = Duration::from_millis(100);
    let of = |first, second| host::judge_clock(first, tenth, second).status;
    let now = 1_800_000_000;
    assert_eq!(of(at(now), at(now) + tenth), Verdict::Ok);
    assert_eq!(of(at(now), at(now + 60)), Verdict::Warning);
    assert_eq!(of(at(now), at(now - 60)), Verdict::Warning);
    assert_eq!(of(at(1000), at(1000) + tenth), Verdict::Warning);
}

#[test]
fn a_disk_is_measured_and_judged() {
    let root = machine(&[]);
    let seen = disk::look(root.path()).unwrap();
    assert!(
        seen.speed > 0.0 && seen.free > 0 && seen.skew_s < 30.0,
        "{seen:?}"
    );
    assert_eq!(
        fs::read_dir(root.path()).unwrap().count(),
        0,
        "it left something behind"
    );
    assert!(disk::look(&root.path().join("nowhere")).is_err());
    let of = |free: u64, speed, skew_s| {
        disk::judge(
            "out_dir",
            root.path(),
            Seen {
                free,
                speed,
                skew_s,
            },
        )
        .status
    };
    assert_eq!(of(50 << 30, 500e6, 0.0), Verdict::Ok);
    assert_eq!(of(1 << 30, 500e6, 0.0), Verdict::Warning);
    assert_eq!(of(1 << 20, 500e6, 0.0), Verdict::Error);
    assert_eq!(of(50 << 30, 1e6, 0.0), Verdict::Warning);
    assert_eq!(of(50 << 30, 500e6, 100.0), Verdict::Warning);
}

#[test]
fn what_never_answers_is_given_up() {
    let late = in_time(Duration::from_millis(20), || {
        std::thread::sleep(Duration::from_secs(5));
    });
    assert!(late.is_none());
    assert_eq!(in_time(Duration::from_secs(5), || 7), Some(7));
}

#[test]
fn a_config_with_faults_is_a_finding_and_the_rest_is_looked_at() {
    let config = Config::resolve(None, &["--n_head=7".to_owned()]);
    let report = examine(config, true);
    let first = &report.checks[0];
    assert_eq!((first.check, first.status), ("config", Verdict::Error));
    assert_eq!(report.exit(), Some(protocol::ExitCode::Config));
    assert!(report.checks.len() > 6, "{report:?}");
}
