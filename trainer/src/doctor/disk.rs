//! The disks of the run directory and of the data: written to, timed, measured. Called by the
//! doctor.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use protocol::ExitCode;

use super::{Check, in_time};
use crate::config::Config;
use crate::data::locate;
use crate::machine::human_bytes;

/// Written and synced for the measurement.
const BYTES: usize = 8 << 20;
const PATIENCE: Duration = Duration::from_secs(3);
/// Slower than that, checkpoints of small models take longer than their steps.
const SLOW: f64 = 20e6;

pub(super) fn checks(config: &Config) -> Vec<Check> {
    let caches = locate::caches(config);
    let data = caches
        .first()
        .cloned()
        .unwrap_or_else(|| PathBuf::from("data"));
    vec![
        disk("out_dir", &config.out_dir, true),
        disk("data cache", &data, false),
    ]
}

/// What a disk did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Seen {
    pub(super) free: u64,
    /// Bytes per second, written and synced.
    pub(super) speed: f64,
    /// Seconds that the file's time is off ours.
    pub(super) skew_s: f64,
}

fn disk(check: &'static str, path: &Path, needed: bool) -> Check {
    let folder = existing(path);
    let asked = folder.clone();
    match in_time(PATIENCE, move || look(&asked)) {
        None => Check::error(
            check,
            ExitCode::CannotWrite,
            format!(
                "{}: no answer within {} s",
                folder.display(),
                PATIENCE.as_secs()
            ),
            "a disk behind a network that is down: use a local one",
        ),
        Some(Err(error)) => {
            let found = format!("{}: cannot be written: {error}", folder.display());
            if needed {
                let hint = "--out_dir on a disk of your own";
                Check::error(check, ExitCode::CannotWrite, found, hint)
            } else {
                Check::warning(
                    check,
                    found,
                    "ANNEAL_CACHE or --data_dir on a disk of your own",
                )
            }
        }
        Some(Ok(seen)) => judge(check, &folder, seen),
    }
}

/// The folder itself or the nearest above it that is there.
fn existing(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut above = path.ancestors();
    above
        .find(|folder| folder.is_dir())
        .map_or_else(|| PathBuf::from("/"), Path::to_owned)
}

/// Writes a file, syncs it and takes it away again.
pub(super) fn look(folder: &Path) -> io::Result<Seen> {
    let stat = rustix::fs::statvfs(folder)?;
    let path = folder.join(format!(".tmp-doctor-{}", std::process::id()));
    let written = write(&path);
    fs::remove_file(&path).ok();
    let (speed, skew_s) = written?;
    Ok(Seen {
        free: stat.f_bavail * stat.f_frsize,
        speed,
        skew_s,
    })
}

fn write(path: &Path) -> io::Result<(f64, f64)> {
    let data = vec![0x5a; BYTES];
    let start = Instant::now();
    let mut file = File::create(path)?;
    file.write_all(&data)?;
    file.sync_all()?;
    let speed = BYTES as f64 / start.elapsed().as_secs_f64();
    let time = file.metadata()?.modified()?;
    let now = SystemTime::now();
    let ahead = time.duration_since(now).unwrap_or_default();
    let behind = now.duration_since(time).unwrap_or_default();
    Ok((speed, ahead.max(behind).as_secs_f64()))
}

pub(super) fn judge(check: &'static str, folder: &Path, seen: Seen) -> Check {
    /// Two checkpoints of GPT-2 124M.
    const FREE_MIN: u64 = 3 << 30;
    /// What a run of a small model writes.
    const FREE_LEAST: u64 = 100 << 20;
    const SKEW_MAX_S: f64 = 30.0;
    let found = format!(
        "{}: {} free, {:.0} MB/s synced",
        folder.display(),
        human_bytes(seen.free),
        seen.speed / 1e6
    );
    let hint = "another disk, or --keep_last=1";
    if seen.free < FREE_LEAST {
        let found = format!("{found}: a run would fill it");
        return Check::error(check, ExitCode::CannotWrite, found, hint);
    }
    if seen.free < FREE_MIN {
        let found = format!("{found}: room for checkpoints of small models only");
        return Check::warning(check, found, hint);
    }
    if seen.speed < SLOW {
        return Check::warning(
            check,
            format!("{found}: slow, checkpoints take long to reach it"),
            "a local disk; the agent's store keeps what must last",
        );
    }
    if seen.skew_s > SKEW_MAX_S {
        return Check::warning(
            check,
            format!(
                "{found}: its clock is {:.0} s off this machine's",
                seen.skew_s
            ),
            "set the clocks, or use a local disk",
        );
    }
    Check::ok(check, found)
}
