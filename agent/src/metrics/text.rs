//! The two text formats of metrics: Prometheus 0.0.4, and OpenMetrics 1.0 where it is asked for.
//! They differ in how counters and infos are named and in how the page ends.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::board::{BUCKETS, Histogram};

/// Every name begins with this.
const PREFIX: &str = "anneal_";

/// How a page is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Classic,
    OpenMetrics,
}

impl Format {
    /// What a client wants by its header `Accept`.
    pub fn wanted(accept: &str) -> Self {
        let wants = |part: &str| part.trim().starts_with("application/openmetrics-text");
        match accept.split(',').any(wants) {
            true => Self::OpenMetrics,
            false => Self::Classic,
        }
    }

    pub fn content_type(self) -> &'static str {
        match self {
            Self::Classic => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// What a family is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Gauge,
    Counter,
}

/// A page being written.
pub(super) struct Page {
    format: Format,
    text: String,
}

/// The samples of one name.
pub(super) struct Family<'a> {
    page: &'a mut Page,
    name: String,
}

impl Page {
    pub(super) fn new(format: Format) -> Self {
        let text = String::with_capacity(16 << 10);
        Self { format, text }
    }

    /// A family without samples. A counter's name comes without `_total`.
    pub(super) fn family(&mut self, name: &str, kind: Kind, help: &str) -> Family<'_> {
        let total = format!("{PREFIX}{name}_total");
        let plain = format!("{PREFIX}{name}");
        let (head, sample, word) = match (kind, self.format) {
            (Kind::Gauge, _) => (plain.clone(), plain, "gauge"),
            (Kind::Counter, Format::Classic) => (total.clone(), total, "counter"),
            (Kind::Counter, Format::OpenMetrics) => (plain, total, "counter"),
        };
        self.head(&head, word, help);
        Family {
            page: self,
            name: sample,
        }
    }

    /// A family of somebody else's name, without our prefix. A counter of theirs has no `_total`,
    /// which OpenMetrics does not allow, so there it is of no known type.
    pub(super) fn foreign(&mut self, name: &str, kind: Kind, help: &str) -> Family<'_> {
        let word = match (kind, self.format) {
            (Kind::Gauge, _) => "gauge",
            (Kind::Counter, Format::Classic) => "counter",
            (Kind::Counter, Format::OpenMetrics) => "unknown",
        };
        self.head(name, word, help);
        let name = name.to_owned();
        Family { page: self, name }
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}").expect("a text grows");
    }

    /// A gauge, left out while it has no value.
    pub(super) fn gauge(&mut self, name: &str, help: &str, value: Option<f64>) {
        if let Some(value) = value {
            self.family(name, Kind::Gauge, help).sample(&[], value);
        }
    }

    pub(super) fn counter(&mut self, name: &str, help: &str, value: f64) {
        self.family(name, Kind::Counter, help).sample(&[], value);
    }

    /// Counters that differ in one label.
    pub(super) fn counters<K: AsRef<str>>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        counts: &BTreeMap<K, u64>,
    ) {
        let mut family = self.family(name, Kind::Counter, help);
        for (value, count) in counts {
            family.sample(&[(label, value.as_ref())], *count as f64);
        }
    }

    /// A gauge that is always 1, or an info, for its labels' sake.
    pub(super) fn info(&mut self, name: &str, help: &str, labels: &[(&str, &str)]) {
        let sample = format!("{PREFIX}{name}_info");
        match self.format {
            Format::Classic => self.head(&sample, "gauge", help),
            Format::OpenMetrics => self.head(&format!("{PREFIX}{name}"), "info", help),
        }
        Family {
            page: self,
            name: sample,
        }
        .sample(labels, 1.0);
    }

    /// Histograms that differ in their labels.
    pub(super) fn histogram(
        &mut self,
        name: &str,
        help: &str,
        histograms: &[(&[(&str, &str)], &Histogram)],
    ) {
        let name = format!("{PREFIX}{name}");
        self.head(&name, "histogram", help);
        for (labels, histogram) in histograms {
            let mut below = 0;
            for (count, bound) in histogram.counts.iter().zip(BUCKETS.iter()) {
                below += count;
                self.bucket(&name, labels, &number(*bound), below);
            }
            self.bucket(&name, labels, "+Inf", histogram.count());
            let mut part = |end: &str, value: f64| {
                let name = format!("{name}_{end}");
                Family { page: self, name }.sample(labels, value);
            };
            part("sum", histogram.sum);
            part("count", histogram.count() as f64);
        }
    }

    fn bucket(&mut self, name: &str, labels: &[(&str, &str)], bound: &str, below: u64) {
        let labels: Vec<_> = labels.iter().copied().chain([("le", bound)]).collect();
        let name = format!("{name}_bucket");
        Family { page: self, name }.sample(&labels, below as f64);
    }

    pub(super) fn end(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.text.push_str("# EOF\n");
        }
        self.text
    }
}

impl Family<'_> {
    pub(super) fn sample(&mut self, labels: &[(&str, &str)], value: f64) {
        let text = &mut self.page.text;
        text.push_str(&self.name);
        for (at, (label, value)) in labels.iter().enumerate() {
            let before = if at == 0 { '{' } else { ',' };
            write!(text, "{before}{label}=\"{}\"", escaped(value)).expect("a text grows");
        }
        let after = if labels.is_empty() { "" } else { "}" };
        writeln!(text, "{after} {}", number(value)).expect("a text grows");
    }
}

/// A number with a point, as OpenMetrics wants bounds of buckets.
fn number(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    format!("{value:?}")
}

fn escaped(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for letter in value.chars() {
        match letter {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            other => text.push(other),
        }
    }
    text
}
