//! `configs/prices.toml`: what machines cost, as it is known to the program. Called by the
//! estimate; the agent reads the same file for the meter of a run.

use serde::Deserialize;

use super::cards::Card;
use crate::error::{Error, Result};

const SHIPPED: &str = include_str!("../../../configs/prices.toml");

/// A card at a provider, in dollars an hour.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Price {
    pub(super) provider: String,
    pub(super) card: &'static Card,
    /// The provider's type of machine, where that is what is rented.
    pub(super) machine: Option<String>,
    /// GPUs that the price is for. A run uses one.
    pub(super) gpus: u32,
    pub(super) on_demand: Option<f64>,
    pub(super) spot: Option<f64>,
    pub(super) as_of: String,
}

/// The file as it stands.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    gpu: Vec<Line>,
    /// Disks, which an estimate of hours leaves out.
    #[serde(rename = "storage")]
    _storage: Vec<toml::Table>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    provider: String,
    name: String,
    on_demand: Option<f64>,
    spot: Option<f64>,
    #[serde(default)]
    machine: bool,
    as_of: String,
}

/// The table that ships with the program.
///
/// # Panics
/// Never: it is read by a test.
pub(super) fn shipped() -> Vec<Price> {
    parse(SHIPPED).expect("the shipped table is tested")
}

/// # Errors
/// [`Error::Config`] if it is no such table, or prices a card that is not known here.
pub(super) fn parse(text: &str) -> Result<Vec<Price>> {
    let file: File =
        toml::from_str(text).map_err(|error| Error::config(format!("prices: {error}")))?;
    let price = |line: Line| {
        let Some((card, gpus)) = Card::of_price(&line.name, line.machine) else {
            return Err(Error::config(format!(
                "prices: {} {}: no data sheet is known for it",
                line.provider, line.name
            )));
        };
        Ok(Price {
            provider: line.provider,
            card,
            machine: line.machine.then_some(line.name),
            gpus,
            on_demand: line.on_demand,
            spot: line.spot,
            as_of: line.as_of,
        })
    };
    file.gpu.into_iter().map(price).collect()
}
