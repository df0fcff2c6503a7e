//! Compiles the emulator's runtime and every kernel of `kernels/src/*/*.cu` with the C++ compiler,
//! and the shared library that stands for cuBLASLt.
//!
//! One object for each file, compiled again only if the file, a header it includes or the command
//! changed. `ANNEAL_EMULATOR_SANITIZE=address|undefined|thread` compiles the kernels with that
//! sanitizer, for `sanitize.sh`.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::{env, fs, thread};

/// Compilations at a time.
const JOBS: usize = 2;
const SANITIZE: &str = "ANNEAL_EMULATOR_SANITIZE";

/// Finds faults in kernels as they run. The runtime is not compiled with it.
#[derive(Clone, Copy)]
struct Sanitizer {
    name: &'static str,
    kernel_flags: &'static [&'static str],
    /// Tells the headers and the runtime, which then call the sanitizer's library.
    define: &'static str,
    library: &'static str,
}

const SANITIZERS: [Sanitizer; 3] = [
    Sanitizer {
        name: "address",
        kernel_flags: &["-fsanitize=address"],
        define: "EMULATOR_ASAN",
        library: "asan",
    },
    Sanitizer {
        name: "undefined",
        kernel_flags: &["-fsanitize=undefined", "-fno-sanitize-recover=all"],
        define: "EMULATOR_UBSAN",
        library: "ubsan",
    },
    Sanitizer {
        name: "thread",
        // Fences are told to it by the headers.
        kernel_flags: &["-fsanitize=thread", "-Wno-tsan"],
        define: "EMULATOR_TSAN",
        library: "tsan",
    },
];

fn main() {
    let here = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let rooms = here.parent().expect("it lies in kernels/").join("src");
    let mut sources = files(&here.join("runtime"), "cpp");
    for room in entries(&rooms).iter().filter(|path| path.is_dir()) {
        sources.extend(files(room, "cu"));
    }
    let tests = here.join("tests");
    let planted = tests.join("planted.cu");
    sources.push(planted.clone());
    let cublaslt = here.join("cublaslt");
    for watched in [
        &here.join("include"),
        &here.join("runtime"),
        &rooms,
        &tests,
        &cublaslt,
    ] {
        println!("cargo::rerun-if-changed={}", watched.display());
    }
    println!("cargo::rerun-if-env-changed={SANITIZE}");

    let sanitizer = sanitizer();
    let name = sanitizer.map_or("none", |sanitizer| sanitizer.name);
    println!("cargo::rustc-env={SANITIZE}={name}");
    let out = PathBuf::from(variable("OUT_DIR"));
    let objects = out.join("objects").join(name);
    fs::create_dir_all(&objects).expect("OUT_DIR can be written");
    let (runtime, kernels) = (
        compiler(&here, sanitizer, false),
        compiler(&here, sanitizer, true),
    );
    let object = compile(&runtime, &cublaslt.join("cublaslt.cpp"), &objects);
    let library = share(&runtime, &object, &out.join("libemulated_cublaslt.so"));
    println!("cargo::rustc-env=EMULATOR_CUBLASLT={library}");
    let (queue, compiled) = (Mutex::new(sources), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..JOBS {
            scope.spawn(|| {
                while let Some(source) = { queue.lock().expect("no worker panics").pop() } {
                    let is_kernel = source.extension().is_some_and(|is| is == "cu");
                    let compiler = if is_kernel { &kernels } else { &runtime };
                    let object = (compile(compiler, &source, &objects), source);
                    compiled.lock().expect("no worker panics").push(object);
                }
            });
        }
    });

    let mut compiled = compiled.into_inner().expect("no worker panics");
    compiled.sort();
    // Broken kernels are for the emulator's own tests alone.
    let (planted, compiled): (Vec<_>, Vec<_>) = compiled
        .into_iter()
        .partition(|(_, source)| *source == planted);
    for (object, _) in planted {
        println!("cargo::rustc-link-arg-tests={}", object.display());
    }
    let mut archive = cc::Build::new();
    archive.cpp(true).cargo_metadata(false);
    archive.objects(compiled.into_iter().map(|(object, _)| object));
    archive.compile("emulator_kernels");
    println!("cargo::rustc-link-search=native={}", out.display());
    // Kernels register themselves before main: nothing names them, so all objects are linked.
    println!("cargo::rustc-link-lib=static:+whole-archive=emulator_kernels");
    println!("cargo::rustc-link-lib=stdc++");
    if let Some(sanitizer) = sanitizer {
        link_library(&runtime, sanitizer);
    }
}

fn sanitizer() -> Option<Sanitizer> {
    let wanted = env::var(SANITIZE).ok().filter(|name| !name.is_empty())?;
    let found = SANITIZERS
        .into_iter()
        .find(|sanitizer| sanitizer.name == wanted);
    Some(found.unwrap_or_else(|| {
        panic!("{SANITIZE}: expected address, undefined or thread, got `{wanted}`")
    }))
}

/// Links the library shared: `sanitize.sh` loads it before all others, as it must be.
fn link_library(compiler: &cc::Tool, sanitizer: Sanitizer) {
    let file = format!("lib{}.so", sanitizer.library);
    let mut command = compiler.to_command();
    let output = command.arg(format!("-print-file-name={file}")).output();
    let output = output.expect("the compiler ran before");
    let path = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    let Some(folder) = path.parent().filter(|_| path.is_absolute()) else {
        panic!("the C++ compiler has no {file}")
    };
    println!("cargo::rustc-link-search=native={}", folder.display());
    println!("cargo::rustc-link-lib=dylib={}", sanitizer.library);
}

fn compiler(here: &Path, sanitizer: Option<Sanitizer>, for_kernels: bool) -> cc::Tool {
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").debug(false);
    build.opt_level(if sanitizer.is_some() { 1 } else { 2 });
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
    if let Some(sanitizer) = sanitizer {
        build.define(sanitizer.define, None);
        for flag in sanitizer.kernel_flags.iter().filter(|_| for_kernels) {
            build.flag(flag);
        }
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

/// Links an object as a shared library: its path.
fn share(compiler: &cc::Tool, object: &Path, library: &Path) -> String {
    let mut command = compiler.to_command();
    command.arg("-shared").arg("-o").args([library, object]);
    let output = command.output().expect("the compiler ran before");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}:\n{text}", library.display());
    let path = library.to_str();
    path.expect("the target folder's path is UTF-8").to_owned()
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
