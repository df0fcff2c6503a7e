//! Rules between modules and between crates: who may name whom. Called by `tidy`.

use std::collections::HashMap;

use super::Source;
use super::code::Code;

/// What a crate may depend on.
enum Wall {
    /// None of these, in any of its tables.
    Never(&'static [&'static str]),
    /// These at most; tests may use more.
    Only(&'static [&'static str]),
}

const WALLS: [(&str, Wall); 4] = [
    (
        "protocol",
        Wall::Only(&["serde", "serde_json", "thiserror"]),
    ),
    ("kernels", Wall::Never(&["agent", "protocol", "trainer"])),
    ("trainer", Wall::Never(&["agent"])),
    ("agent", Wall::Never(&["kernels", "trainer"])),
];

/// Dependencies that would tear down a wall.
pub(super) fn walls(manifest: &Source) -> Vec<String> {
    let path = &manifest.path;
    let table: toml::Table = manifest
        .text
        .parse()
        .unwrap_or_else(|e| panic!("{path}: cannot be read: {e}"));
    let name = table
        .get("package")
        .and_then(|p| p.get("name"))
        .and_then(|n| n.as_str());
    let Some((name, wall)) = WALLS
        .iter()
        .find(|(crate_name, _)| Some(*crate_name) == name)
    else {
        return Vec::new();
    };
    let mut faults = Vec::new();
    for (section, dependency) in dependencies(&table) {
        let allowed = match wall {
            Wall::Never(others) => !others.contains(&dependency.as_str()),
            Wall::Only(others) => {
                section == "dev-dependencies" || others.contains(&dependency.as_str())
            }
        };
        if !allowed {
            let named = manifest
                .text
                .lines()
                .position(|l| l.trim().starts_with(&dependency));
            let line = named.map_or(1, |i| i + 1);
            faults.push(format!(
                "{path}:{line}: {name} must not depend on {dependency}"
            ));
        }
    }
    faults
}

/// Every `(section, crate)` of a manifest, those for one target too.
fn dependencies(manifest: &toml::Table) -> Vec<(&'static str, String)> {
    let targets = manifest.get("target").and_then(|t| t.as_table());
    let targets = targets
        .into_iter()
        .flat_map(|t| t.values())
        .filter_map(|t| t.as_table());
    let mut found = Vec::new();
    for table in targets.chain([manifest]) {
        for section in ["dependencies", "build-dependencies", "dev-dependencies"] {
            let entries = table.get(section).and_then(|s| s.as_table());
            for (key, value) in entries.into_iter().flatten() {
                // A renamed dependency tells its crate in `package`.
                let package = value.get("package").and_then(|p| p.as_str()).unwrap_or(key);
                found.push((section, package.to_owned()));
            }
        }
    }
    found
}

/// Uses of a module by one that stands above it in its crate's `lib.rs`. Tests are free.
pub(super) fn module_order(lib: &Source, sources: &[Source]) -> Vec<String> {
    let folder = lib.path.strip_suffix("lib.rs").expect("a lib.rs");
    let order = declared_modules(&Code::new(&lib.text).without_tests());
    let exports = re_exports(&Code::new(&lib.text), &order);
    let position = |name: &str| {
        let module = exports.get(name).map_or(name, String::as_str);
        order.iter().position(|m| m == module)
    };
    let mut faults = Vec::new();
    for source in sources.iter().filter(|s| s.is_rust()) {
        let Some(path) = source.path.strip_prefix(folder) else {
            continue;
        };
        let mut modules: Vec<&str> = path.trim_end_matches(".rs").split('/').collect();
        if modules.last() == Some(&"mod") {
            modules.pop();
        }
        if modules.contains(&"tests") || modules.contains(&"bin") {
            continue;
        }
        let Some(own) = position(modules[0]) else {
            continue;
        };
        let code = Code::new(&source.text).without_tests();
        for (name, at) in uses_from_root(&code, modules.len()) {
            if position(&name).is_some_and(|other| other > own) {
                faults.push(format!(
                    "{}:{}: {} names {name}, which stands below it in {}",
                    source.path,
                    code.line(at),
                    order[own],
                    lib.path
                ));
            }
        }
    }
    faults
}

/// The modules of a `lib.rs`, top to bottom.
fn declared_modules(lib: &Code) -> Vec<String> {
    let words = lib.words();
    let declared = words.windows(2).filter(|w| w[0].text == "mod");
    declared
        .filter(|w| lib.next_mark(w[1].end) == Some(';'))
        .map(|w| w[1].text.clone())
        .collect()
}

/// `pub use error::{Error, Result};` makes `crate::Error` a use of `error`.
fn re_exports(lib: &Code, modules: &[String]) -> HashMap<String, String> {
    let words = lib.words();
    let mut exports = HashMap::new();
    for (i, word) in words.iter().enumerate().filter(|(_, w)| w.text == "use") {
        let Some(module) = words[i + 1..]
            .iter()
            .find(|w| w.text != "crate" && w.text != "self")
        else {
            continue;
        };
        if !modules.contains(&module.text) {
            continue;
        }
        let statement = words
            .iter()
            .filter(|w| w.start > word.start)
            .take_while(|w| (word.end..w.start).all(|at| lib.follows(at, ";") != Some(at + 1)));
        for name in statement.filter(|w| !modules.contains(&w.text)) {
            exports.insert(name.text.clone(), module.text.clone());
        }
    }
    exports
}

/// Names used directly under the crate's root, with where: `crate::a::B`, `use crate::{a, b::C}`,
/// and the same through `super` from a file `depth` modules deep.
fn uses_from_root(code: &Code, depth: usize) -> Vec<(String, usize)> {
    let words = code.words();
    let mut found = Vec::new();
    let mut i = 0;
    while i < words.len() {
        let root = if words[i].text == "crate" {
            code.follows(words[i].end, "::")
        } else {
            supers(code, words[i].start, depth)
        };
        let skipped = words[i].end;
        i += 1;
        let Some(after) = root else { continue };
        let names = match code.follows(after, "{") {
            Some(inside) => group(code, inside - 1),
            None => vec![after],
        };
        for at in names {
            if let Some(word) = words.iter().find(|w| w.start >= at) {
                found.push((word.text.clone(), word.start));
            }
        }
        while words.get(i).is_some_and(|w| w.start < skipped.max(after)) {
            i += 1;
        }
    }
    found
}

/// The index after `super::` written `depth` times at `at`.
fn supers(code: &Code, at: usize, depth: usize) -> Option<usize> {
    (0..depth).try_fold(at, |at, _| code.follows(at, "super::"))
}

/// Where the items of a `{…}` group begin that stand directly in it.
fn group(code: &Code, open: usize) -> Vec<usize> {
    let close = code.closing(open);
    let mut items = vec![open + 1];
    let mut at = open + 1;
    while at < close {
        if code.follows(at, "{") == Some(at + 1) {
            at = code.closing(at);
        } else if code.follows(at, ",") == Some(at + 1) {
            items.push(at + 1);
        }
        at += 1;
    }
    // A trailing comma begins nothing.
    items.retain(|item| code.next_mark(*item) != Some('}'));
    items
}
