//! `trainer doctor`: whether this machine is fit to train, a line for each thing.

use protocol::ExitCode;

use super::{Words, print};
use crate::config::Config;
use crate::doctor;
use crate::error::{Error, Result};

pub(super) fn run(mut words: Words) -> Result<ExitCode> {
    let source = words.take("config")?;
    let before = words.words.len();
    words.words.retain(|word| word != "--json");
    let as_json = words.words.len() < before;
    let named = source.is_some() || !words.words.is_empty();
    let config = Config::resolve(source.as_deref(), &words.words);
    let report = doctor::examine(config, named);
    if as_json {
        let text = serde_json::to_string(&report);
        let text = text.map_err(|error| Error::config(format!("--json: {error}")))?;
        print(&text)?;
    } else {
        print(&report.lines().join("\n"))?;
    }
    Ok(report.exit().unwrap_or(ExitCode::Finished))
}
