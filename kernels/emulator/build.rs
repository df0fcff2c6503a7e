//! Compiles the emulator's runtime and every kernel of `kernels/src/*/*.cu` with the C++ compiler.
//!
//! One object for each file, compiled again only if the file, a header it includes or the command
//! changed. `ANNEAL_EMULATOR_FLAGS` adds flags of the compiler, such as `-fsanitize=address`.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::{env, fs, thread};

/// Compilations at a time.
const JOBS: usize = 2;
const EXTRA_FLAGS: &str = "ANNEAL_EMULATOR_FLAGS";

fn main() {
    let here = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let rooms = here.parent().expect("it lies in kernels/").join("src");
    let mut sources = files(&here.join("runtime"), "cpp");
    for room in entries(&rooms).iter().filter(|path| path.is_dir()) {
        sources.extend(files(room, "cu"));
    }
    for watched in [&here.join("include"), &here.join("runtime"), &rooms] {
        println!("cargo::rerun-if-changed={}", watched.display());
    }
    println!("cargo::rerun-if-env-changed={EXTRA_FLAGS}");

    let compiler = compiler(&here);
    let objects = Path::new(&variable("OUT_DIR")).join("objects");
    fs::create_dir_all(&objects).expect("OUT_DIR can be written");
    let (queue, compiled) = (Mutex::new(sources), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..JOBS {
            scope.spawn(|| {
                while let Some(source) = { queue.lock().expect("no worker panics").pop() } {
                    let object = compile(&compiler, &source, &objects);
                    compiled.lock().expect("no worker panics").push(object);
                }
            });
        }
    });

    let mut compiled = compiled.into_inner().expect("no worker panics");
    compiled.sort();
    let mut archive = cc::Build::new();
    archive.cpp(true).cargo_metadata(false).objects(compiled);
    archive.compile("emulator_kernels");
    println!("cargo::rustc-link-search=native={}", variable("OUT_DIR"));
    // Kernels register themselves before main: nothing names them, so all objects are linked.
    println!("cargo::rustc-link-lib=static:+whole-archive=emulator_kernels");
    println!("cargo::rustc-link-lib=stdc++");
}

fn compiler(here: &Path) -> cc::Tool {
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").opt_level(2).debug(false);
    build.include(here.join("include"));
    build.define("EMULATED", None).warnings(false);
    // Rounding must not depend on the machine that builds: no fused multiply-add but by name.
    for flag in [
        "-Wall",
        "-Wextra",
        "-Wno-unknown-pragmas",
        "-ffp-contract=off",
    ] {
        build.flag(flag);
    }
    // Kernels read and write arrays through vectors of 16 bytes.
    build
        .flag("-fno-strict-aliasing")
        .flag("-pthread")
        .flag("-g1");
    if runs_here("x86-64-v3") {
        build.flag("-march=x86-64-v3");
    }
    for flag in env::var(EXTRA_FLAGS).unwrap_or_default().split_whitespace() {
        build.flag(flag);
    }
    build.get_compiler()
}

/// Whether this machine has what x86-64-v3 asks for.
fn runs_here(_level: &str) -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        variable("HOST") == variable("TARGET")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("f16c")
            && is_x86_feature_detected!("fma")
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Compiles `source` unless its object is of the same command and the same files.
fn compile(compiler: &cc::Tool, source: &Path, objects: &Path) -> PathBuf {
    let room = source.parent().and_then(Path::file_name);
    let room = room.expect("a source lies in a room").to_string_lossy();
    let stem = source.file_stem().expect("a source has a name");
    let object = objects.join(format!("{room}_{}.o", stem.to_string_lossy()));
    let dependencies = object.with_extension("d");
    let stamp = object.with_extension("fingerprint");

    let mut command = compiler.to_command();
    command.args(["-x", "c++", "-c"]).arg(source);
    command.args(["-MD", "-MF"]).arg(&dependencies);
    command.arg("-o").arg(&object);
    let known = fingerprint(&format!("{command:?}"), &dependencies);
    if object.exists() && known.is_some() && known == fs::read_to_string(&stamp).ok() {
        return object;
    }
    let output = command.output().unwrap_or_else(|error| {
        let program = compiler.path().display();
        panic!("cannot run the C++ compiler {program}: {error}\nhint: install g++ or set CXX")
    });
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}:\n{text}", source.display());
    for line in text.lines().filter(|line| line.contains("warning:")) {
        println!("cargo::warning={line}");
    }
    let made = fingerprint(&format!("{command:?}"), &dependencies);
    fs::write(&stamp, made.expect("the compiler wrote it")).expect("OUT_DIR can be written");
    object
}

/// A hash of the command and of every file the last compilation read, by its dependency file.
fn fingerprint(command: &str, dependencies: &Path) -> Option<String> {
    let mut hasher = DefaultHasher::new();
    command.hash(&mut hasher);
    let rule = fs::read_to_string(dependencies).ok()?;
    let (_, files) = rule.split_once(": ")?;
    for file in files.split_whitespace().filter(|word| *word != "\\") {
        fs::read(file).ok()?.hash(&mut hasher);
    }
    Some(format!("{:016x}", hasher.finish()))
}

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = entries(folder);
    found.retain(|path| path.extension().is_some_and(|is| is == extension));
    found
}

/// What lies in a folder, sorted.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let listing = fs::read_dir(folder).expect("the repository has this folder");
    let mut paths: Vec<PathBuf> = listing
        .map(|entry| entry.expect("the repository can be read").path())
        .collect();
    paths.sort();
    paths
}

fn variable(name: &str) -> String {
    env::var(name).expect("cargo sets it")
}
