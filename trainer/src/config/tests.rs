//! Tests of the configuration: the table, the grammars, the faults and the shipped configs.

use std::fs;
use std::path::PathBuf;

use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::draft::Draft;
use super::table::{Group, KEYS};
use super::validate::CHOICES;
use super::value::{Kind, Value};
use super::*;

mod table_of_keys;
mod shipped_configs;
mod command_line;
mod files;
mod validation;
mod toml_round_trip;

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// The config that these words make of the defaults.
fn over_defaults(overrides: &[&str]) -> Config {
    Config::resolve(None, &words(overrides)).unwrap().config
}

/// Every fault of `--config source` with these words, a line each.
fn faults(source: Option<&str>, overrides: &[&str]) -> String {
    match Config::resolve(source, &words(overrides)) {
        Err(error @ Error::Config(_)) => error.to_string(),
        other => panic!("expected faults, got {other:?}"),
    }
}

/// A config file in a folder of its own, and its path.
fn file(name: &str, text: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (folder, path)
}

/// Faults of a config file with these words, without the folder's random name.
fn file_faults(name: &str, text: &str, overrides: &[&str]) -> String {
    let (folder, path) = file(name, text);
    let folder = format!("{}/", folder.path().display());
    faults(Some(&path), overrides).replace(&folder, "")
}

fn check(got: &str, expected: Expect) {
    expected.assert_eq(&format!("{got}\n"));
}
