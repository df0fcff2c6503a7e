//! What the machine has: disk, memory, a trainer. Called by the doctor.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use super::{CHECK_MAX, Check, silent};
use crate::cgroup::{Cgroup, Memory, Version};
use crate::clock::{BootClock, Clock};
use crate::error::ExitStatus;
use crate::run::find_program;

/// Written and synced for the measurement.
const BYTES: usize = 8 << 20;
const DISK_MAX: Duration = Duration::from_secs(3);

/// The disk where checkpoints go before they are published.
pub(super) async fn disk(run_dir: &Path) -> Check {
    let path = std::path::absolute(run_dir).unwrap_or_else(|_| run_dir.to_owned());
    let mut above = path.ancestors();
    let folder = above
        .find(|folder| folder.is_dir())
        .unwrap_or(Path::new("/"))
        .to_owned();
    let asked = folder.clone();
    let looking = tokio::task::spawn_blocking(move || measure(&asked));
    let shown = folder.display();
    match timeout(DISK_MAX, looking).await {
        Ok(Ok(Ok((free, speed)))) => judge_disk(&folder, free, speed),
        Ok(Ok(Err(error))) => Check::error(
            "disk",
            ExitStatus::Retryable,
            format!("{shown}: cannot be written: {error}"),
            "--run-dir on a disk of its own",
        ),
        Ok(Err(_)) | Err(_) => Check::error(
            "disk",
            ExitStatus::Retryable,
            format!("{shown}: no answer within {} s", DISK_MAX.as_secs()),
            "a disk behind a network that is down: use a local one",
        ),
    }
}

/// Bytes free, and bytes per second written and synced.
pub(super) fn measure(folder: &Path) -> io::Result<(u64, f64)> {
    let stat = rustix::fs::statvfs(folder)?;
    let path: PathBuf = folder.join(format!(".tmp-doctor-{}", std::process::id()));
    let start = BootClock.now();
    let written = File::create(&path).and_then(|mut file| {
        file.write_all(&vec![0x5a; BYTES])?;
        file.sync_all()
    });
    let seconds = BootClock.now().since(start).as_secs_f64();
    fs::remove_file(&path).ok();
    written?;
    Ok((stat.f_bavail * stat.f_frsize, BYTES as f64 / seconds))
}

pub(super) fn judge_disk(folder: &Path, free: u64, speed: f64) -> Check {
    const FREE_LEAST: u64 = 100 << 20;
    const FREE_MIN: u64 = 3 << 30;
    const SLOW: f64 = 20e6;
    let found = format!(
        "{}: {} free, {:.0} MB/s synced",
        folder.display(),
        gib(free),
        speed / 1e6
    );
    let hint = "--run-dir on another disk, or the trainer's --keep_last=1";
    if free < FREE_LEAST {
        let found = format!("{found}: a run would fill it");
        return Check::error("disk", ExitStatus::Retryable, found, hint);
    }
    if free < FREE_MIN {
        let found = format!("{found}: room for checkpoints of small models only");
        return Check::warning("disk", found, hint);
    }
    if speed < SLOW {
        let found = format!("{found}: slow, a last save may not fit the grace period");
        return Check::warning("disk", found, "a local disk");
    }
    Check::ok("disk", found)
}

fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}

/// Memory of the machine and of the control group.
pub(super) fn memory() -> Check {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = text.lines().find_map(|line| {
        let kib: u64 = line
            .strip_prefix("MemAvailable:")?
            .trim()
            .strip_suffix(" kB")?
            .parse()
            .ok()?;
        Some(kib * 1024)
    });
    let group = Cgroup::of_self().ok().flatten();
    let version = group.as_ref().map(Cgroup::version);
    judge_memory(
        available,
        version,
        group.map(|group| group.memory()).unwrap_or_default(),
    )
}

pub(super) fn judge_memory(
    available: Option<u64>,
    version: Option<Version>,
    group: Memory,
) -> Check {
    const LEAST: u64 = 512 << 20;
    let by = match version {
        Some(Version::V1) => "cgroup v1",
        Some(Version::V2) => "cgroup v2",
        None => "no cgroup",
    };
    let left = group
        .limit_bytes
        .map(|limit| limit.saturating_sub(group.usage_bytes.unwrap_or(0)));
    let least = [available, left].into_iter().flatten().min();
    let Some(least) = least else {
        return Check::warning(
            "memory",
            format!("cannot be read ({by}): kills for memory would not be told apart"),
            "mount /proc and /sys/fs/cgroup",
        );
    };
    let limit = group.limit_bytes.map_or_else(
        || format!("no limit ({by})"),
        |limit| format!("limited to {} by {by}", gib(limit)),
    );
    let found = format!("{} available, {limit}", gib(least));
    if least < LEAST {
        return Check::warning(
            "memory",
            format!("{found}: little for a trainer"),
            "a larger machine or limit (docker run --memory)",
        );
    }
    if let Some(kills) = group.oom_kills.filter(|&kills| kills > 0) {
        return Check::warning(
            "memory",
            format!("{found}; the kernel has killed {kills} processes here for memory"),
            "a smaller batch_size; trainer estimate tells what a run takes",
        );
    }
    Check::ok("memory", found)
}

/// The trainer that `agent run -- trainer` would start.
pub(super) async fn trainer() -> Check {
    let program = find_program("trainer".into());
    let shown = program.to_string_lossy().into_owned();
    let mut command = Command::new(&program);
    command.arg("--version").kill_on_drop(true);
    let hint = "put it beside the agent or into PATH, or name yours after --";
    match timeout(CHECK_MAX, command.output()).await {
        Ok(Ok(output)) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout);
            Check::ok("trainer", format!("{}, {shown}", text.trim()))
        }
        Ok(Ok(output)) => {
            let text = String::from_utf8_lossy(&output.stderr);
            let found = format!("{shown} --version: {}: {}", output.status, text.trim());
            Check::error("trainer", ExitStatus::Failed, found, hint)
        }
        Ok(Err(error)) => Check::warning("trainer", format!("{shown}: not found ({error})"), hint),
        Err(_) => silent("trainer", hint),
    }
}
