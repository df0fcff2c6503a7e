//! With the feature `cuda`: compiles every `src/*/*.cu` with nvcc into one fatbin each, packs them,
//! and writes the table of them that `src/cuda/fatbin.rs` includes. Without the feature it does
//! nothing.
//!
//! Fatbins are kept in `target/fatbins/<targets>/`, whatever the profile, each beside its packed
//! self (`.zst`), the text it was made from (`.inputs`) and what ptxas said (`.ptxas`);
//! `nvcc/budgets.py` reads them. One is made again only if its source, a header that it includes,
//! the flags or the compiler changed.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs, io, thread};

/// Virtual architectures, each with the GPUs that its code is assembled for: a front end costs
/// more than an assembler, and 80 gives 86 and 89 the same machine code as their own would (120
/// likewise from 100). Sources therefore see only these values of `__CUDA_ARCH__`, times ten.
const ARCHITECTURES: [(u32, &[u32]); 4] = [
    (75, &[75]),
    (80, &[80, 86, 89]),
    (90, &[90]),
    (100, &[100, 120]),
];

/// Embedded as PTX too, for GPUs that none of the above serves: 11.0 and what comes after 12.
const PTX_ARCHITECTURE: u32 = 100;

/// Without nvcc's compression, of which each mode has the drivers that know it, and which sees one
/// target at a time: `pack` finds what the machine codes of a fatbin have in common.
const FLAGS: [&str; 6] = [
    "-std=c++17",
    "-O3",
    "--fatbin",
    "-no-compress",
    "-Xptxas",
    "-v",
];

/// Of zstd; unpacking takes the same time for all.
const PACK_LEVEL: i32 = 19;

/// More than a fatbin's bytes, as a power of two: each target's code refers to all others'.
const PACK_WINDOW: u32 = 27;

/// 12.8 is the first that knows 100 and 120; 14 is unknown.
const NVCC_VERSIONS: std::ops::Range<(u32, u32)> = (12, 8)..(14, 0);

const INSTALL_HINT: &str = "hint: run kernels/nvcc/install.sh, or set NVCC or CUDA_HOME";

/// One `.cu`: `layernorm` for `src/layernorm/layernorm.cu`, else `room/file`.
struct Unit {
    name: String,
    source: PathBuf,
    /// All that the fatbin depends on, as text: compiler, flags, the files' paths, their contents.
    inputs: String,
    fatbin: PathBuf,
}

impl Unit {
    fn is_compiled(&self) -> bool {
        let made_from = fs::read_to_string(self.fatbin.with_extension("inputs"));
        self.fatbin.exists() && made_from.ok().as_ref() == Some(&self.inputs)
    }

    fn packed(&self) -> PathBuf {
        self.fatbin.with_extension("zst")
    }
}

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return ExitCode::SUCCESS;
    }
    println!("cargo::rerun-if-changed=src");
    for variable in [
        "NVCC",
        "CUDA_HOME",
        "CUDA_PATH",
        "PATH",
        "ANNEAL_CUDA_ARCHS",
    ] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    match compile_all() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            for line in message.lines().filter(|line| !line.trim().is_empty()) {
                println!("cargo::error={line}");
            }
            ExitCode::FAILURE
        }
    }
}

fn compile_all() -> Result<(), String> {
    let manifest = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let out = PathBuf::from(variable("OUT_DIR"));
    // OUT_DIR is target/<profile>/build/<package>/out.
    let target = out
        .ancestors()
        .nth(4)
        .ok_or_else(|| format!("{}: too short", out.display()))?;
    let (nvcc, version) = find_nvcc(&manifest)?;
    let wanted = wanted_targets()?;
    let folder = target.join("fatbins").join(match &wanted {
        None => "all".to_owned(),
        Some(list) => list
            .iter()
            .map(u32::to_string)
            .collect::<Vec<_>>()
            .join("-"),
    });
    fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;

    let mut flags: Vec<String> = FLAGS.iter().map(|&flag| flag.to_owned()).collect();
    flags.extend(architecture_flags(wanted.as_deref()));
    let flags_text = flags.join(" ");
    let head = format!("nvcc {version}\n{flags_text}; zstd {PACK_LEVEL} {PACK_WINDOW}\n");
    let units = find_units(&manifest, &folder, &head)?;
    remove_leftovers(&folder, &units)?;
    let stale: Vec<&Unit> = units
        .iter()
        .filter(|unit| !unit.is_compiled() || !unit.packed().exists())
        .collect();
    in_parallel(&stale, |unit, threads| {
        if !unit.is_compiled() {
            compile(&nvcc, &flags, threads, unit, &out)?;
        }
        pack(unit, &out)
    })?;
    write_table(&out, &units)
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name} for build scripts"))
}

/// The targets in ANNEAL_CUDA_ARCHS, such as `90` or `80,90`; `None` stands for all and PTX.
fn wanted_targets() -> Result<Option<Vec<u32>>, String> {
    let Some(list) = env::var("ANNEAL_CUDA_ARCHS")
        .ok()
        .filter(|list| !list.is_empty())
    else {
        return Ok(None);
    };
    let known: Vec<u32> = ARCHITECTURES
        .iter()
        .flat_map(|(_, gpus)| gpus.iter().copied())
        .collect();
    let mut wanted = Vec::new();
    for word in list.split(',') {
        let target = word
            .trim()
            .parse()
            .ok()
            .filter(|target| known.contains(target));
        wanted.push(target.ok_or_else(|| {
            format!("ANNEAL_CUDA_ARCHS: expected some of {known:?} between commas, got `{word}`")
        })?);
    }
    wanted.sort_unstable();
    wanted.dedup();
    Ok(Some(wanted))
}

fn architecture_flags(wanted: Option<&[u32]>) -> Vec<String> {
    let mut flags = Vec::new();
    for (front_end, gpus) in ARCHITECTURES {
        let mut codes: Vec<String> = gpus
            .iter()
            .filter(|gpu| wanted.is_none_or(|wanted| wanted.contains(gpu)))
            .map(|gpu| format!("sm_{gpu}"))
            .collect();
        if wanted.is_none() && front_end == PTX_ARCHITECTURE {
            codes.push(format!("compute_{front_end}"));
        }
        if !codes.is_empty() {
            flags.push(format!(
                "-gencode=arch=compute_{front_end},code=[{}]",
                codes.join(",")
            ));
        }
    }
    flags
}

/// nvcc and its version: the first of NVCC, CUDA_HOME, CUDA_PATH, PATH and `target/nvcc`.
fn find_nvcc(manifest: &Path) -> Result<(PathBuf, String), String> {
    let mut places = Vec::new();
    if let Some(nvcc) = env::var_os("NVCC") {
        places.push(PathBuf::from(nvcc));
    } else {
        for name in ["CUDA_HOME", "CUDA_PATH"] {
            places.extend(env::var_os(name).map(|home| PathBuf::from(home).join("bin/nvcc")));
        }
        let path = env::var_os("PATH").unwrap_or_default();
        places.extend(env::split_paths(&path).map(|folder| folder.join("nvcc")));
        places.push(manifest.join("../target/nvcc/cuda/bin/nvcc"));
    }
    let Some(nvcc) = places.into_iter().find(|place| place.is_file()) else {
        let places = match env::var("NVCC") {
            Ok(nvcc) => format!("NVCC={nvcc}"),
            Err(_) => "CUDA_HOME, CUDA_PATH, PATH and target/nvcc".to_owned(),
        };
        return Err(format!(
            "feature `cuda` needs nvcc, none found: {places}\n{INSTALL_HINT}"
        ));
    };
    println!("cargo::rerun-if-changed={}", nvcc.display());
    let output = Command::new(&nvcc)
        .arg("--version")
        .output()
        .map_err(|error| format!("{}: {error}", nvcc.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.split_whitespace().rev().find_map(|word| {
        let word = text
            .contains("release")
            .then(|| word.strip_prefix('V'))
            .flatten()?;
        let mut parts = word.split('.').map(|part| part.parse::<u32>().ok());
        Some((word.to_owned(), (parts.next()??, parts.next()??)))
    });
    match version {
        Some((version, number)) if NVCC_VERSIONS.contains(&number) => Ok((nvcc, version)),
        Some((version, _)) => Err(format!(
            "{}: expected nvcc 12.8 to 13.x, got {version}\n{INSTALL_HINT}",
            nvcc.display(),
        )),
        None => Err(format!(
            "{}: --version names no version: {text}",
            nvcc.display()
        )),
    }
}

/// Every `src/*/*.cu`, in order of name.
fn find_units(manifest: &Path, folder: &Path, head: &str) -> Result<Vec<Unit>, String> {
    let mut units = Vec::new();
    for room in entries(&manifest.join("src"))?
        .into_iter()
        .filter(|room| room.is_dir())
    {
        for source in entries(&room)? {
            if source.extension().is_none_or(|extension| extension != "cu") {
                continue;
            }
            let (room, file) = (file_stem(&room), file_stem(&source));
            let name = if room == file {
                room
            } else {
                format!("{room}/{file}")
            };
            let mut files = vec![source.clone()];
            let mut contents = Vec::new();
            while contents.len() < files.len() {
                let text = read(&files[contents.len()])?;
                let here = files[contents.len()].with_file_name("");
                for included in quoted_includes(&text) {
                    let path = normal(&here.join(included));
                    // One that is not there belongs to the emulator, or nvcc will complain.
                    if path.is_file() && !files.contains(&path) {
                        files.push(path);
                    }
                }
                contents.push(text);
            }
            let mut inputs = head.to_owned();
            for file in &files {
                let short = file.strip_prefix(manifest).unwrap_or(file);
                inputs += &format!("{}\n", short.display());
            }
            inputs += "\n";
            inputs += &contents.concat();
            let fatbin = folder.join(format!("{}.fatbin", name.replace('/', "-")));
            units.push(Unit {
                name,
                source,
                inputs,
                fatbin,
            });
        }
    }
    Ok(units)
}

/// The files of `#include "…"`; those of `<…>` come with the compiler, whose version counts.
fn quoted_includes(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| {
        let rest = line
            .trim_start()
            .strip_prefix('#')?
            .trim_start()
            .strip_prefix("include")?;
        rest.trim_start().strip_prefix('"')?.split('"').next()
    })
}

/// `a/b/../c` as `a/c`, so that a header included from two rooms is one file.
fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => {
                out.pop();
            }
            part => out.push(part),
        }
    }
    out
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let error = |error| format!("{}: {error}", folder.display());
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(error)? {
        paths.push(entry.map_err(error)?.path());
    }
    paths.sort();
    Ok(paths)
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

fn read_bytes(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}

fn file_stem(path: &Path) -> String {
    path.file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// What sources left behind that are gone now, so that nobody counts it.
fn remove_leftovers(folder: &Path, units: &[Unit]) -> Result<(), String> {
    for path in entries(folder)? {
        let known = units
            .iter()
            .any(|unit| file_stem(&unit.fatbin) == file_stem(&path));
        if !known {
            fs::remove_file(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        }
    }
    Ok(())
}

/// Calls `make` for each unit, with as many nvcc at a time as cargo has jobs, the threads that
/// are left over shared among them; returns what failed.
fn in_parallel(
    units: &[&Unit],
    make: impl Fn(&Unit, usize) -> Result<(), String> + Sync,
) -> Result<(), String> {
    if units.is_empty() {
        return Ok(());
    }
    let jobs: usize = env::var("NUM_JOBS")
        .ok()
        .and_then(|jobs| jobs.parse().ok())
        .unwrap_or(1);
    let workers = jobs.clamp(1, units.len());
    let next = AtomicUsize::new(0);
    let work = || {
        let mut failures = Vec::new();
        while let Some(unit) = units.get(next.fetch_add(1, Ordering::Relaxed)) {
            failures.extend(make(unit, jobs.div_ceil(workers)).err());
        }
        failures
    };
    let failures: Vec<String> = thread::scope(|scope| {
        let handles: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        handles
            .into_iter()
            .flat_map(|handle| handle.join().expect("make returns"))
            .collect()
    });
    if failures.is_empty() {
        Ok(())
    } else {
        Err(failures.join("\n"))
    }
}

/// Made in `out`, where no other cargo writes, then moved.
fn compile(
    nvcc: &Path,
    flags: &[String],
    threads: usize,
    unit: &Unit,
    out: &Path,
) -> Result<(), String> {
    let new = out.join(file_stem(&unit.fatbin) + ".new");
    let output = Command::new(nvcc)
        .args(flags)
        .args(["--threads", &threads.to_string()])
        .arg("-o")
        .args([&new, &unit.source])
        .output()
        .map_err(|error| format!("{}: {error}", nvcc.display()))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned()
        + &String::from_utf8_lossy(&output.stdout);
    let is_report = |line: &&str| line.starts_with("ptxas info") || line.starts_with("    ");
    let rest: Vec<&str> = said.lines().filter(|line| !is_report(line)).collect();
    if !output.status.success() {
        let source = unit.source.display();
        return Err(format!(
            "{source}: nvcc: {}\n{}",
            output.status,
            rest.join("\n")
        ));
    }
    for line in rest.iter().filter(|line| line.contains("warning")) {
        println!("cargo::warning={line}");
    }
    // Of what was before.
    if unit.packed().exists() {
        let gone = fs::remove_file(unit.packed());
        gone.map_err(|error| format!("{}: {error}", unit.packed().display()))?;
    }
    // The inputs last: without them the rest does not count.
    write(&unit.fatbin.with_extension("ptxas"), &said)?;
    fs::rename(&new, &unit.fatbin).map_err(|error| format!("{}: {error}", new.display()))?;
    write(&unit.fatbin.with_extension("inputs"), &unit.inputs)
}

/// Made in `out` and moved, likewise.
fn pack(unit: &Unit, out: &Path) -> Result<(), String> {
    let new = out.join(file_stem(&unit.fatbin) + ".packed");
    let fatbin = read_bytes(&unit.fatbin)?;
    zstd_frame(&fatbin)
        .and_then(|frame| fs::write(&new, frame))
        .and_then(|()| fs::rename(&new, unit.packed()))
        .map_err(|error| format!("{}: {error}", unit.packed().display()))
}

#[cfg(feature = "cuda")]
fn zstd_frame(bytes: &[u8]) -> io::Result<Vec<u8>> {
    use zstd::zstd_safe::CParameter;
    let mut compressor = zstd::bulk::Compressor::new(PACK_LEVEL)?;
    compressor.set_parameter(CParameter::WindowLog(PACK_WINDOW))?;
    compressor.set_parameter(CParameter::EnableLongDistanceMatching(true))?;
    compressor.set_parameter(CParameter::ChecksumFlag(true))?;
    compressor.compress(bytes)
}

/// The feature brings zstd; without it there is nothing to pack.
#[cfg(not(feature = "cuda"))]
fn zstd_frame(_: &[u8]) -> io::Result<Vec<u8>> {
    unreachable!("main returns before")
}

/// Writes `fatbins.rs`: `FATBINS`, the slice of them all, and what they are unpacked into.
/// Conformance kernels are for tests alone.
fn write_table(out: &Path, units: &[Unit]) -> Result<(), String> {
    let mut statics = String::new();
    let mut table = String::new();
    let mut seen: Vec<String> = Vec::new();
    for unit in units {
        let packed = unit.packed();
        let copy = out.join(packed.file_name().expect("find_units names it"));
        let copied = fs::copy(&packed, &copy);
        copied.map_err(|error| format!("{}: {error}", copy.display()))?;
        let kernels = compiled_kernels(&read(&unit.fatbin.with_extension("ptxas"))?);
        for kernel in &kernels {
            if seen.contains(kernel) {
                return Err(format!("{}: kernel {kernel} is in another file", unit.name));
            }
        }
        seen.extend(kernels.iter().cloned());
        let test = if unit.name.ends_with("conformance") {
            "#[cfg(test)]\n"
        } else {
            ""
        };
        let (name, fatbin) = (&unit.name, read_bytes(&unit.fatbin)?);
        let (length, hash) = (fatbin.len(), fnv_1a(&fatbin));
        let unpacked = name.to_uppercase().replace('/', "_");
        statics += &format!("{test}static {unpacked}: Unpacked = Unpacked::new();\n");
        table += &format!(
            "    {test}Fatbin {{ name: {name:?}, kernels: &{kernels:?}, \
             packed: include_bytes!({copy:?}), length: {length}, hash: {hash:#x}, \
             unpacked: &{unpacked} }},\n"
        );
    }
    write(
        &out.join("fatbins.rs"),
        &format!("{statics}static FATBINS: &[Fatbin] = &[\n{table}];\n"),
    )
}

/// As `src/cuda/fatbin.rs` has it.
fn fnv_1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
    })
}

/// Names of the kernels in ptxas's report, which has each once for every target.
fn compiled_kernels(report: &str) -> Vec<String> {
    let mut names: Vec<String> = report
        .lines()
        .filter_map(|line| {
            line.split_once("Compiling entry function '")?
                .1
                .split_once('\'')
        })
        .map(|(name, _)| name.to_owned())
        .collect();
    names.sort();
    names.dedup();
    names
}
