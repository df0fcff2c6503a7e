//! `configs/prices.toml`: what machines cost where neither the provider nor the user says it.

use serde::Deserialize;

use crate::provider::{Kind, Price, PriceSource};

const SHIPPED: &str = include_str!("../../../configs/prices.toml");
const HOURS_PER_MONTH: f64 = 730.0;

/// A dated list of prices.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    gpu: Vec<Gpu>,
    storage: Vec<Storage>,
}

/// One GPU or machine type of one provider, in dollars an hour.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Gpu {
    provider: String,
    /// Words that all occur in the machine's name for its GPU, or the provider's name of its type.
    name: String,
    on_demand: Option<f64>,
    spot: Option<f64>,
    /// A whole machine, and not one of its GPUs.
    #[serde(default)]
    machine: bool,
    as_of: String,
}

/// Disks of one provider.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Storage {
    provider: String,
    per_gb_month: f64,
    as_of: String,
}

/// What is known of the disk that is paid for.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Disk {
    pub gb: f64,
}

impl Table {
    /// The table that ships with the program.
    ///
    /// # Panics
    /// Never: it is read by a test.
    pub fn shipped() -> Self {
        Self::parse(SHIPPED).expect("the shipped table is tested")
    }

    /// # Errors
    /// If it is not such a table, or holds what no price can be.
    pub fn parse(text: &str) -> Result<Self, String> {
        let table: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        let prices = table.gpu.iter().flat_map(|gpu| [gpu.on_demand, gpu.spot]);
        let prices = prices
            .flatten()
            .chain(table.storage.iter().map(|s| s.per_gb_month));
        for price in prices {
            if !price.is_finite() || price < 0.0 {
                return Err(format!("expected a price of 0 or more, got {price}"));
            }
        }
        for gpu in &table.gpu {
            if gpu.on_demand.is_none() && gpu.spot.is_none() {
                return Err(format!("{} {}: no price", gpu.provider, gpu.name));
            }
        }
        let providers = table.gpu.iter().map(|gpu| &gpu.provider);
        for provider in providers.chain(table.storage.iter().map(|s| &s.provider)) {
            provider.parse::<Kind>()?;
        }
        Ok(table)
    }

    /// What a machine with `count` GPUs of this name costs, and since when that is known. The
    /// longest name that fits wins: `A100-80GB` before `A100`.
    pub fn price(
        &self,
        kind: Kind,
        name: &str,
        count: u32,
        spot: Option<bool>,
        disk: Disk,
    ) -> Option<(Price, String)> {
        let of_kind = self.gpu.iter().filter(|gpu| gpu.provider == kind.name());
        let fits = of_kind.filter(|gpu| {
            let (asked, known) = (words(name), words(&gpu.name));
            known.iter().all(|word| asked.contains(word))
        });
        let gpu = fits.max_by_key(|gpu| gpu.name.len())?;
        let per_hour = match spot {
            Some(true) => gpu.spot.or(gpu.on_demand),
            _ => gpu.on_demand.or(gpu.spot),
        }?;
        let count = if gpu.machine {
            1.0
        } else {
            f64::from(count.max(1))
        };
        let storage = self.storage.iter().find(|s| s.provider == kind.name());
        let storage = storage.map_or(0.0, |s| s.per_gb_month / HOURS_PER_MONTH * disk.gb);
        let price = Price {
            per_hour: per_hour * count,
            storage_per_hour: storage,
            source: PriceSource::Table,
        };
        Some((price, gpu.as_of.clone()))
    }

    /// The newest date in it, for people.
    pub fn as_of(&self) -> &str {
        let dates = self.gpu.iter().map(|gpu| gpu.as_of.as_str());
        let dates = dates.chain(self.storage.iter().map(|s| s.as_of.as_str()));
        dates.max().unwrap_or_default()
    }
}

/// The words of a name, so that `NVIDIA A100-SXM4-80GB` holds those of `A100-80GB`; types such as
/// `p3.2xlarge` are one word.
fn words(name: &str) -> Vec<String> {
    let split = name.split(|c: char| !c.is_ascii_alphanumeric() && c != '.');
    let words = split.filter(|word| !word.is_empty());
    words.map(str::to_ascii_lowercase).collect()
}
