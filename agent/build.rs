//! Writes Chart.js, which draws the curves of the agent's page, to where `http/page` embeds it.
//! The library comes out of a crate that carries it unchanged; nothing is downloaded, and nothing
//! else of that crate gets into the agent.

use std::path::Path;
use std::{env, fs, io};

use rustlavel_chart::plugin::CHART_JS;

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    let out = env::var_os("OUT_DIR").expect("cargo tells build scripts where to write");
    fs::write(Path::new(&out).join("chart.js"), CHART_JS)
}
