//! Rules that the repository's own sources must keep: sizes, headers, the order of modules, the
//! walls between crates, words that do not belong there, and configs that are really shipped.
//!
//! The sources are read as text, so the rules are crude; each fault names its file and line. That
//! every rule can fail is shown in `tests.rs`.

mod code;
mod crates;
#[cfg(test)]
mod tests;

use std::fs;
use std::path::{Path, PathBuf};

use code::Code;

const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 70;
const LINE_COLUMNS_MAX: usize = 100;

/// Functions that may be longer: `(file, function, reason)`.
const LONG_FUNCTIONS: [(&str, &str, &str); 8] = [
    (
        "agent/src/supervisor/ending.rs",
        "advance_stage",
        "a table: stage to what is due in it",
    ),
    (
        "kernels/src/matmul/tests.rs",
        "check",
        "every product of one shape in turn",
    ),
    (
        "trainer/src/engine/cuda/run.rs",
        "forward",
        "a table: operation to its room's call",
    ),
    (
        "trainer/src/config/tests/table_of_keys.rs",
        "help_lists_every_key_within_its_width",
        "a snapshot of the whole help",
    ),
    (
        "trainer/src/engine/cpu/run.rs",
        "forward",
        "a table: operation to room",
    ),
    (
        "trainer/src/engine/cpu/run.rs",
        "backward",
        "a table: operation to room",
    ),
    (
        "trainer/src/engine/plan/build.rs",
        "block",
        "the operations of a block in order",
    ),
    (
        "trainer/src/engine/plan/build.rs",
        "block_backward",
        "the operations of a block in order",
    ),
];

/// Files in `configs/` that the trainer does not ship under a name: `(file, reason)`.
const UNSHIPPED_CONFIGS: [(&str, &str); 3] = [
    ("agent.example.toml", "read by the agent"),
    ("prices.toml", "read by the agent"),
    ("sweeps/shakespeare_lr.toml", "read by the agent"),
];

/// Top-level entries that builds, runs and git leave behind; `out…` is one, too.
const OUTPUTS: [&str; 6] = [".git", "data", "dist", "node_modules", "runs", "target"];

/// Files that nobody writes by hand, or that are not ours to change.
const FOREIGN_FILES: [&str; 3] = ["Cargo.lock", "LICENSE-APACHE", "LICENSE-MIT"];

/// One text file of the repository.
struct Source {
    /// From the root, with `/`.
    path: String,
    text: String,
}

impl Source {
    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }
}

#[test]
fn sources_are_tidy() {
    let sources = sources(&root());
    assert!(
        sources.iter().any(|s| s.path == "tests/it/tidy.rs"),
        "the walk missed this file"
    );
    let rust = || sources.iter().filter(|s| s.is_rust());
    let mut faults: Vec<String> = rust().flat_map(file_shape).collect();
    faults.extend(rust().flat_map(|s| function_lengths(s, &LONG_FUNCTIONS)));
    faults.extend(stale_exemptions(&sources, &LONG_FUNCTIONS));
    faults.extend(sources.iter().flat_map(forbidden_words));
    report(&faults);
}

#[test]
fn modules_name_only_modules_above_them() {
    let sources = sources(&root());
    let libraries = sources.iter().filter(|s| s.path.ends_with("/src/lib.rs"));
    report(
        &libraries
            .flat_map(|lib| crates::module_order(lib, &sources))
            .collect::<Vec<_>>(),
    );
}

#[test]
fn crates_keep_their_walls() {
    let sources = sources(&root());
    let manifests = sources.iter().filter(|s| s.path.ends_with("/Cargo.toml"));
    report(&manifests.flat_map(crates::walls).collect::<Vec<_>>());
}

#[test]
fn every_config_is_shipped() {
    report(&unshipped_configs(&sources(&root()), &UNSHIPPED_CONFIGS));
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()
        .expect("the repository's root")
}

fn report(faults: &[String]) {
    assert!(
        faults.is_empty(),
        "{} untidy place(s):\n{}",
        faults.len(),
        faults.join("\n")
    );
}

/// Every text file under `root` that somebody wrote, by path.
fn sources(root: &Path) -> Vec<Source> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        for entry in entries {
            let entry = entry.unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
            let name = entry.file_name().to_string_lossy().into_owned();
            let kind = entry.file_type().unwrap_or_else(|e| panic!("{name}: {e}"));
            let output = OUTPUTS.contains(&name.as_str()) || name.starts_with("out");
            let measured = entry.path() == root.join("bench/out");
            if (folder == root && output) || measured || name == "__pycache__" {
                continue;
            }
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() && !FOREIGN_FILES.contains(&name.as_str()) {
                let path = entry.path();
                // Not UTF-8: not a text.
                let Ok(text) = fs::read_to_string(&path) else {
                    continue;
                };
                let below = path
                    .strip_prefix(root)
                    .expect("the walk starts at the root");
                found.push(Source {
                    path: below.to_string_lossy().replace('\\', "/"),
                    text,
                });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// A file opens with what it holds, is short enough to read, and fits the screen.
fn file_shape(source: &Source) -> Vec<String> {
    let Source { path, text } = source;
    let mut faults = Vec::new();
    let lines = text.lines().count();
    // A single line says it all.
    if lines > 1 && !text.starts_with("//!") {
        faults.push(format!(
            "{path}:1: expected `//!` and what the file holds, who calls it"
        ));
    }
    if lines > FILE_LINES_MAX {
        faults.push(format!(
            "{path}:{lines}: expected at most {FILE_LINES_MAX} lines"
        ));
    }
    for (i, line) in text.lines().enumerate() {
        let columns = line.chars().count();
        if columns > LINE_COLUMNS_MAX {
            let line = i + 1;
            faults.push(format!(
                "{path}:{line}: {columns} columns, expected at most {LINE_COLUMNS_MAX}"
            ));
        }
    }
    faults
}

fn function_lengths(source: &Source, exempt: &[(&str, &str, &str)]) -> Vec<String> {
    let functions = Code::new(&source.text).functions();
    let long = functions.iter().filter(|f| f.lines > FUNCTION_LINES_MAX);
    long.filter(|f| {
        !exempt
            .iter()
            .any(|(path, name, _)| *path == source.path && *name == f.name)
    })
    .map(|f| {
        format!(
            "{}:{}: fn {} has {} lines, expected at most {FUNCTION_LINES_MAX}",
            source.path, f.line, f.name, f.lines
        )
    })
    .collect()
}

/// An exemption that nothing needs any more.
fn stale_exemptions(sources: &[Source], exempt: &[(&str, &str, &str)]) -> Vec<String> {
    let needed = |path: &str, name: &str| {
        sources.iter().filter(|s| s.path == path).any(|s| {
            let functions = Code::new(&s.text).functions();
            functions
                .iter()
                .any(|f| f.name == name && f.lines > FUNCTION_LINES_MAX)
        })
    };
    let stale = exempt.iter().filter(|(path, name, _)| !needed(path, name));
    stale
        .map(|(path, name, _)| format!("{path}:1: fn {name} needs no exemption any more"))
        .collect()
}

/// Paths of one machine, marks of unfinished work, tests that are switched off.
fn forbidden_words(source: &Source) -> Vec<String> {
    // In two pieces, so that this file does not hold them.
    let paths = [concat!("/wo", "rk/"), concat!("/ro", "ot/")];
    let marks = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("XX", "X"),
    ];
    let code = [
        concat!("to", "do!("),
        concat!("unimple", "mented!("),
        concat!("#[ig", "nore"),
    ];
    // A folder of that name inside a longer path is no absolute path.
    let inside = |c: char| c.is_alphanumeric() || matches!(c, '.' | '_' | '-' | '}');
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let mut faults = Vec::new();
    for (i, line) in source.text.lines().enumerate() {
        let starts = |text: &'static str| {
            line.match_indices(text)
                .map(|(at, _)| (line[..at].chars().next_back(), at + text.len()))
        };
        let mut found = Vec::new();
        for path in paths {
            if starts(path).any(|(before, _)| !before.is_some_and(inside)) {
                found.push(path);
            }
        }
        for mark in marks {
            let whole = |(before, end): (Option<char>, usize)| {
                !before.is_some_and(word) && !line[end..].chars().next().is_some_and(word)
            };
            if starts(mark).any(whole) {
                found.push(mark);
            }
        }
        if source.is_rust() {
            found.extend(code.into_iter().filter(|text| line.contains(text)));
        }
        for text in found {
            faults.push(format!(
                "{}:{}: `{text}` must not be here",
                source.path,
                i + 1
            ));
        }
    }
    faults
}

/// Files in `configs/` that the table of shipped configs, somewhere in the trainer's `config`
/// module, does not name: by a path, or by a name on a line of its own.
fn unshipped_configs(sources: &[Source], exempt: &[(&str, &str)]) -> Vec<String> {
    let tables = || {
        let config = sources
            .iter()
            .filter(|s| s.path.starts_with("trainer/src/config"));
        config.filter(|s| s.is_rust() && !s.path.contains("/tests"))
    };
    let shipped = |name: &str| {
        let path = format!("configs/{name}.toml\"");
        tables().flat_map(|s| s.text.lines()).any(|line| {
            let alone = line.trim().trim_end_matches(',').trim_matches('"');
            alone == name || line.contains(&path)
        })
    };
    let configs = sources
        .iter()
        .filter_map(|s| s.path.strip_prefix("configs/"));
    configs
        .filter(|file| !exempt.iter().any(|(other, _)| other == file))
        .filter_map(|file| file.strip_suffix(".toml"))
        .filter(|name| !shipped(name))
        .map(|name| format!("configs/{name}.toml:1: trainer/src/config does not ship it"))
        .collect()
}
