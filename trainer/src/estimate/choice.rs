//! Which row to take: the cheapest, the fastest, and the one that keeps a budget and a deadline.
//! Called by the estimate and the command line.

use serde::Serialize;

use super::{Estimate, Row};

/// What a person will spend at most, and how machines may be rented.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Wanted {
    pub budget_usd: Option<f64>,
    pub deadline_hours: Option<f64>,
    /// `None`: either.
    pub spot: Option<bool>,
}

/// A row at one of its two prices.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Offer {
    /// Index of the row.
    pub row: usize,
    pub spot: bool,
    pub hours: f64,
    pub usd: f64,
}

/// What was chosen and why, or that nothing was and what would do.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pick {
    pub offer: Option<Offer>,
    pub why: String,
    /// Where nothing fits: what would.
    pub hint: Option<String>,
}

/// Every row at every price that it has.
fn offers(rows: &[Row], spot: Option<bool>) -> Vec<Offer> {
    let of_row = |(index, row): (usize, &Row)| {
        let run = row.run.as_ref();
        let offer = |spot, hours: Option<f64>, usd: Option<f64>| {
            Some(Offer {
                row: index,
                spot,
                hours: hours?,
                usd: usd?,
            })
        };
        [
            offer(false, run.map(|run| run.hours), row.on_demand_usd),
            offer(true, run.map(|run| run.spot_hours), row.spot_usd),
        ]
    };
    let all = rows.iter().enumerate().flat_map(of_row).flatten();
    all.filter(|offer| spot.is_none_or(|spot| offer.spot == spot))
        .collect()
}

fn cheapest(offers: impl Iterator<Item = Offer>) -> Option<Offer> {
    offers.min_by(|a, b| a.usd.total_cmp(&b.usd).then(a.hours.total_cmp(&b.hours)))
}

fn fastest(offers: impl Iterator<Item = Offer>) -> Option<Offer> {
    offers.min_by(|a, b| a.hours.total_cmp(&b.hours).then(a.usd.total_cmp(&b.usd)))
}

/// Sorts the rows, cheapest first and what does not run last, and marks the best.
pub fn mark(rows: &mut [Row]) {
    let least = |row: &Row| {
        let prices = [row.on_demand_usd, row.spot_usd].into_iter().flatten();
        prices.fold(f64::INFINITY, f64::min)
    };
    rows.sort_by(|a, b| least(a).total_cmp(&least(b)));
    let all = offers(rows, None);
    let best = [
        ("cheapest", cheapest(all.iter().copied())),
        ("fastest", fastest(all.iter().copied())),
    ];
    for (word, offer) in best {
        if let Some(offer) = offer {
            rows[offer.row].marks.push(word);
        }
    }
}

/// Chooses: with a deadline the cheapest that keeps it (and the budget), with a budget alone the
/// fastest within it. Marks the row.
pub fn pick(estimate: &mut Estimate, wanted: &Wanted) -> Pick {
    let all = offers(&estimate.rows, wanted.spot);
    let within_budget = |offer: &Offer| wanted.budget_usd.is_none_or(|most| offer.usd <= most);
    let in_time = |offer: &Offer| wanted.deadline_hours.is_none_or(|most| offer.hours <= most);
    let fitting = || {
        let both = |offer: &Offer| within_budget(offer) && in_time(offer);
        all.iter().copied().filter(both)
    };
    let (offer, rule) = match (wanted.budget_usd, wanted.deadline_hours) {
        (Some(_), None) => (fastest(fitting()), "the fastest"),
        _ => (cheapest(fitting()), "the cheapest"),
    };
    let bounds = bounds(wanted);
    if let Some(offer) = offer {
        estimate.rows[offer.row].marks.push("picked");
        let text = describe(&estimate.rows[offer.row], &offer);
        let why = format!("{text}: {rule} {bounds}, of {} that are", fitting().count());
        return Pick {
            offer: Some(offer),
            why,
            hint: None,
        };
    }
    let told = |offer: Offer| describe(&estimate.rows[offer.row], &offer);
    let in_budget = fastest(all.iter().copied().filter(within_budget)).map(told);
    let in_time = cheapest(all.iter().copied().filter(in_time)).map(told);
    let (cheap, fast) = (cheapest(all.iter().copied()), fastest(all.iter().copied()));
    let hint = match (wanted.budget_usd, wanted.deadline_hours, in_budget, in_time) {
        (_, Some(_), _, Some(in_time)) => format!("in time with a larger budget: {in_time}"),
        (Some(_), _, Some(in_budget), _) => {
            format!("within the budget with more time: {in_budget}")
        }
        _ => match (cheap, fast) {
            (Some(cheap), Some(fast)) => {
                format!(
                    "the cheapest is {}; the fastest {}",
                    told(cheap),
                    told(fast)
                )
            }
            _ => {
                "nothing that is priced runs this; --recompute=block or a smaller model".to_owned()
            }
        },
    };
    Pick {
        offer: None,
        why: format!("nothing is {bounds}"),
        hint: Some(hint),
    }
}

/// What is asked of an offer, in words.
fn bounds(wanted: &Wanted) -> String {
    let budget = wanted.budget_usd.map(|usd| format!("within ${usd:.2}"));
    let time = wanted
        .deadline_hours
        .map(|hours| format!("done in {}", words(hours)));
    let kind = wanted
        .spot
        .map(|spot| if spot { "spot" } else { "on demand" });
    let parts = [kind.map(str::to_owned), budget, time];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    if parts.is_empty() {
        return "at any price".to_owned();
    }
    parts.join(" and ")
}

/// `H100 of modal, on demand: 9.6 h, $38.02`.
fn describe(row: &Row, offer: &Offer) -> String {
    let kind = if offer.spot { "spot" } else { "on demand" };
    let machine = row.machine.as_ref().map(|name| format!(" {name}"));
    format!(
        "{} of {}{}, {kind}, {}, ${:.2}",
        row.gpu,
        row.provider,
        machine.unwrap_or_default(),
        words(offer.hours),
        offer.usd
    )
}

/// Hours for people.
pub(super) fn words(hours: f64) -> String {
    match hours {
        hours if hours >= 48.0 => format!("{:.1} d", hours / 24.0),
        hours if hours >= 1.0 => format!("{hours:.1} h"),
        hours if hours >= 1.0 / 60.0 => format!("{:.1} min", hours * 60.0),
        hours => format!("{:.0} s", hours * 3600.0),
    }
}
