//! Each rule of `tidy` on texts that break it and on texts that do not.

use super::code::{Code, Function};
use super::crates::{module_order, walls};
use super::*;

fn source(path: &str, text: &str) -> Source {
    Source {
        path: path.to_owned(),
        text: text.to_owned(),
    }
}

#[test]
fn a_file_without_a_header_is_a_fault() {
    let faults = file_shape(&source("a.rs", "use std::fs;\nuse std::io;\n"));
    assert_eq!(
        faults,
        ["a.rs:1: expected `//!` and what the file holds, who calls it"]
    );
    assert!(file_shape(&source("a.rs", "//! Holds a.\n")).is_empty());
    assert!(file_shape(&source("a.rs", "fn main() {}\n")).is_empty());
}

#[test]
fn a_long_file_and_a_long_line_are_faults() {
    let longest = "//!\n".repeat(FILE_LINES_MAX);
    assert!(file_shape(&source("a.rs", &longest)).is_empty());
    let faults = file_shape(&source("a.rs", &(longest + "//!\n")));
    assert_eq!(faults, ["a.rs:601: expected at most 600 lines"]);

    // Columns are characters, not bytes.
    let widest = format!("//! a\n//{}", "ä".repeat(LINE_COLUMNS_MAX - 2));
    assert!(file_shape(&source("a.rs", &widest)).is_empty());
    let faults = file_shape(&source("a.rs", &(widest + "x")));
    assert_eq!(faults, ["a.rs:2: 101 columns, expected at most 100"]);
}

#[test]
fn a_long_function_is_a_fault_unless_exempt() {
    let body = |lines: usize| format!("//! x\nfn f() {{\n{}}}\n", "    x();\n".repeat(lines));
    assert!(function_lengths(&source("a.rs", &body(68)), &[]).is_empty());
    let long = source("a.rs", &body(69));
    let faults = function_lengths(&long, &[]);
    assert_eq!(faults, ["a.rs:2: fn f has 71 lines, expected at most 70"]);
    assert!(function_lengths(&long, &[("a.rs", "f", "a table")]).is_empty());
    assert_eq!(
        function_lengths(&long, &[("b.rs", "f", "a table")]).len(),
        1
    );
}

#[test]
fn an_exemption_that_nothing_needs_is_a_fault() {
    let sources = [source("a.rs", "//! x\nfn f() {\n}\n")];
    let faults = stale_exemptions(&sources, &[("a.rs", "f", "was a table")]);
    assert_eq!(faults, ["a.rs:1: fn f needs no exemption any more"]);
    assert_eq!(stale_exemptions(&sources, &[("gone.rs", "f", "")]).len(), 1);
}

#[test]
fn functions_are_found_and_measured() {
    let text = r##"
fn one(a: [u8; 4], f: fn(u8) -> u8) -> &'static str { "}" }
trait T { fn no_body(&self) -> [u8; 2]; }
// fn in_a_comment() {
/* fn in_a /* nested */ comment() { */
pub(crate) async fn two<'a, T>(x: &'a T) -> Result<(), Box<dyn Fn() -> char>>
where
    T: Copy,
{
    let _ = ('{', '\'', b'}', '"', r#"fn in_a_string() { "#, b"\"{");
    fn inner() {
    }
    if x { y() }
}
"##;
    let found = |name: &str, line, lines| Function {
        name: name.to_owned(),
        line,
        lines,
    };
    let expected = [
        found("one", 2, 1),
        found("two", 6, 9),
        found("inner", 11, 2),
    ];
    assert_eq!(Code::new(text).functions(), expected);
}

#[test]
fn words_that_do_not_belong_are_faults() {
    let faults = |path: &str, text: &str| forbidden_words(&source(path, text));
    let path = concat!("/wo", "rk/main");
    assert_eq!(
        faults("a.md", &format!("fine\ncd {path}\n")),
        [concat!("a.md:2: `/wo", "rk/` must not be here")]
    );
    assert_eq!(faults("a.md", concat!("see `/ro", "ot/.cargo`")).len(), 1);
    assert!(faults("a.md", &format!("src{path} ${{HOME}}{path} ..{path}")).is_empty());

    for mark in [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("XX", "X"),
    ] {
        assert_eq!(
            faults("a.sh", &format!("# {mark}: later")).len(),
            1,
            "{mark}"
        );
        assert!(
            faults("a.sh", &format!("mktemp -t a.{mark}X _{mark}")).is_empty(),
            "{mark}"
        );
    }
    for code in [concat!("to", "do!()"), concat!("#[ig", "nore = \"slow\"]")] {
        assert_eq!(faults("a.rs", code).len(), 1, "{code}");
        assert!(faults("a.md", code).is_empty(), "{code}");
    }
}

/// A crate of three modules in the order a, b, c.
fn order_of(path: &str, text: &str) -> Vec<String> {
    let lib = "//! x\npub mod a;\nmod b;\n#[cfg(test)]\nmod c;\npub use c::{deep::Deep, C};\n";
    let sources = [source("x/src/lib.rs", lib), source(path, text)];
    module_order(&sources[0], &sources)
}

#[test]
fn naming_a_module_further_down_is_a_fault() {
    let fault = |line: usize, user: &str, file: &str, name: &str| {
        format!("x/src/{file}:{line}: {user} names {name}, which stands below it in x/src/lib.rs")
    };
    let a = |text: &str| order_of("x/src/a.rs", text);
    assert_eq!(a("\nuse crate::b;"), [fault(2, "a", "a.rs", "b")]);
    assert_eq!(a("fn f() { crate::b::g() }"), [fault(1, "a", "a.rs", "b")]);
    assert_eq!(a("use super::b::X;"), [fault(1, "a", "a.rs", "b")]);
    // Through what lib.rs re-exports.
    assert_eq!(a("use crate::C;"), [fault(1, "a", "a.rs", "C")]);
    assert_eq!(a("use crate::Deep;"), [fault(1, "a", "a.rs", "Deep")]);
    let grouped = "use crate::{\n    a::{b, X},\n    b::Y,\n    c,\n};";
    assert_eq!(
        a(grouped),
        [fault(3, "a", "a.rs", "b"), fault(4, "a", "a.rs", "c")]
    );
    // Children count as their module; each `super` goes up by one.
    let child = order_of(
        "x/src/b/child.rs",
        "use super::super::c; use super::c; use super::a;",
    );
    assert_eq!(child, [fault(1, "b", "b/child.rs", "c")]);
    assert_eq!(
        order_of("x/src/b/mod.rs", "use super::c;"),
        [fault(1, "b", "b/mod.rs", "c")]
    );
}

#[test]
fn naming_a_module_further_up_or_in_tests_is_no_fault() {
    assert!(
        order_of(
            "x/src/b.rs",
            "use crate::a::{c, X}; use crate::b::Y; use other::c;"
        )
        .is_empty()
    );
    assert!(order_of("x/src/a.rs", "// crate::b\nconst S: &str = \"crate::b\";").is_empty());
    assert!(
        order_of(
            "x/src/a.rs",
            "#[cfg(test)]\nmod tests {\n    use crate::c;\n}"
        )
        .is_empty()
    );
    assert!(order_of("x/src/a/tests.rs", "use crate::c;").is_empty());
    assert!(order_of("x/src/main.rs", "use crate::c;").is_empty());
    assert!(order_of("y/src/a.rs", "use crate::c;").is_empty());
}

#[test]
fn a_dependency_through_a_wall_is_a_fault() {
    let faults = |text: &str| walls(&source("x/Cargo.toml", text));
    let agent = "[package]\nname = \"agent\"\n";
    assert!(
        faults(&format!(
            "{agent}[dependencies]\nprotocol.workspace = true\n"
        ))
        .is_empty()
    );
    assert_eq!(
        faults(&format!(
            "{agent}[dependencies]\ntrainer.workspace = true\n"
        )),
        ["x/Cargo.toml:4: agent must not depend on trainer"]
    );
    for section in [
        "dev-dependencies",
        "build-dependencies",
        "target.'cfg(unix)'.dependencies",
    ] {
        let text = format!("{agent}[{section}]\nk = {{ package = \"kernels\", path = \"..\" }}\n");
        assert_eq!(faults(&text).len(), 1, "{section}");
    }
    assert_eq!(
        faults(&format!("{agent}[dependencies.trainer]\npath = \"..\"\n")).len(),
        1
    );

    let protocol = "[package]\nname = \"protocol\"\n[dependencies]\nserde = \"1\"\n";
    assert!(faults(protocol).is_empty());
    assert_eq!(
        faults(&format!("{protocol}tokio = \"1\"\n")),
        ["x/Cargo.toml:5: protocol must not depend on tokio"]
    );
    assert!(faults(&format!("{protocol}[dev-dependencies]\ntempfile = \"3\"\n")).is_empty());
    assert!(faults("[package]\nname = \"e2e\"\n[dependencies]\ntrainer = \"1\"\n").is_empty());
}

#[test]
fn a_config_that_is_not_shipped_is_a_fault() {
    let faults = |table: &str| {
        let sources = [
            source("configs/a.toml", ""),
            source("configs/prices.toml", ""),
            source("configs/README.md", ""),
            source("trainer/src/config/shipped.rs", table),
        ];
        unshipped_configs(&sources, &[("prices.toml", "read by the agent")])
    };
    assert!(faults(r#"("a", include_str!("../../../configs/a.toml"))"#).is_empty());
    assert!(faults("shipped! {\n    b\n    a\n}").is_empty());
    for table in ["", "// ships a", "b\nab", "configs/aa.toml\""] {
        let expected = ["configs/a.toml:1: trainer/src/config does not ship it"];
        assert_eq!(faults(table), expected, "{table}");
    }
}
