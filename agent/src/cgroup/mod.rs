//! Memory limit, usage and out-of-memory kills of a control group, versions 1 and 2.
//!
//! `child` asks before and after a run, so that a trainer killed by the kernel for memory is told
//! from one killed by anybody else; the status shows usage and limit.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

#[cfg(test)]
mod tests;

/// Where the memory of one process is counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    version: Version,
    /// The group's directory under the mount.
    directory: PathBuf,
    /// The mount of the memory hierarchy: limits count from here down.
    mount: PathBuf,
}

/// Which interface the kernel offers the memory controller by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    V1,
    V2,
}

/// What a group's files said at one moment. A figure that the kernel does not give is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// The lowest limit of the group and its ancestors, bytes.
    pub limit_bytes: Option<u64>,
    /// Bytes charged now, page cache included.
    pub usage_bytes: Option<u64>,
    /// Processes of this group that the kernel killed for memory since it was made. Version 2
    /// counts those of groups below it as well.
    pub oom_kills: Option<u64>,
}

impl Cgroup {
    /// The group of this process; `None` where no memory controller is mounted.
    ///
    /// # Errors
    /// If `/proc` cannot be read.
    pub fn of_self() -> io::Result<Option<Self>> {
        Self::find(Path::new("/"), "self")
    }

    /// The group of process `pid` (or `self`) in the file tree under `root`, which holds `proc` and
    /// what its `mountinfo` names.
    ///
    /// # Errors
    /// If `proc/<pid>/cgroup` or `mountinfo` cannot be read.
    pub fn find(root: &Path, pid: &str) -> io::Result<Option<Self>> {
        let process = root.join("proc").join(pid);
        let membership = fs::read_to_string(process.join("cgroup"))?;
        let mounts = fs::read_to_string(process.join("mountinfo"))?;
        // A hybrid machine mounts both: the memory controller is then one of version 1.
        let (version, path) = match memory_path(&membership) {
            Some(found) => found,
            None => return Ok(None),
        };
        let Some(mount) = mounts.lines().find_map(|line| Mount::parse(line, version)) else {
            return Ok(None);
        };
        let point = root.join(mount.point.strip_prefix("/").unwrap_or(&mount.point));
        // A container may see its own group mounted as the root, or a path from outside it.
        let below = Path::new(path).strip_prefix(&mount.root);
        let directory = match below {
            Ok(below) if point.join(below).is_dir() => point.join(below),
            _ => point.clone(),
        };
        Ok(Some(Self {
            version,
            directory,
            mount: point,
        }))
    }

    pub fn version(&self) -> Version {
        self.version
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Reads the counters. Nothing fails: a file that is missing leaves its figure out.
    pub fn memory(&self) -> Memory {
        let (usage, events) = match self.version {
            Version::V1 => ("memory.usage_in_bytes", "memory.oom_control"),
            Version::V2 => ("memory.current", "memory.events"),
        };
        Memory {
            limit_bytes: self.limit_bytes(),
            usage_bytes: number(&self.directory.join(usage)),
            oom_kills: keyed_number(&self.directory.join(events), "oom_kill"),
        }
    }

    fn limit_bytes(&self) -> Option<u64> {
        let file = match self.version {
            Version::V1 => "memory.limit_in_bytes",
            Version::V2 => "memory.max",
        };
        let own_and_above = self.directory.ancestors();
        own_and_above
            .take_while(|directory| directory.starts_with(&self.mount))
            .filter_map(|directory| number(&directory.join(file)))
            .filter(|&limit| limit < V1_UNLIMITED_BYTES)
            .min()
    }
}

/// Version 1 writes "no limit" as the largest multiple of the page size that a signed 64-bit number
/// holds; page sizes differ, so anything this large is no limit.
const V1_UNLIMITED_BYTES: u64 = 1 << 60;

/// The version and path of the memory controller in `/proc/<pid>/cgroup`, whose lines are
/// `hierarchy:controllers:path`.
fn memory_path(membership: &str) -> Option<(Version, &str)> {
    let mut unified = None;
    for line in membership.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(hierarchy), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        if controllers.split(',').any(|name| name == "memory") {
            return Some((Version::V1, path));
        }
        if hierarchy == "0" && controllers.is_empty() {
            unified = Some((Version::V2, path));
        }
    }
    unified
}

/// One line of `mountinfo` that mounts the memory hierarchy (proc(5)): `… root point … - type
/// source options`.
struct Mount {
    /// The directory of the hierarchy that is mounted.
    root: PathBuf,
    /// Where it is mounted.
    point: PathBuf,
}

impl Mount {
    fn parse(line: &str, version: Version) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ').skip(3);
        let (root, point) = (before.next()?, before.next()?);
        let mut after = after.split(' ');
        let (kind, options) = (after.next()?, after.nth(1).unwrap_or_default());
        let wanted = match version {
            Version::V1 => kind == "cgroup" && options.split(',').any(|o| o == "memory"),
            Version::V2 => kind == "cgroup2",
        };
        wanted.then(|| Self {
            root: PathBuf::from(unescape(root)),
            point: PathBuf::from(unescape(point)),
        })
    }
}

/// `mountinfo` writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &str) -> String {
    let pairs = [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ];
    pairs.iter().fold(field.to_owned(), |text, (code, plain)| {
        text.replace(code, plain)
    })
}

/// The number a file holds; `None` for `max`.
fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The number after `key` in a file of `key number` lines.
fn keyed_number(path: &Path, key: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        (name == key).then(|| value.trim().parse().ok()).flatten()
    })
}
