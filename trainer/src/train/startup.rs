//! Where the time before the first step goes, stage by stage. Kept while a run is opened.

use std::time::{Duration, Instant};

/// A stopwatch from the start of the process.
#[derive(Clone, Debug)]
pub(super) struct Startup {
    last: Instant,
    stages: Vec<(&'static str, Duration)>,
}

impl Startup {
    /// Begins at the start of the process; the time until now is the first stage.
    pub(super) fn since(process_start: Instant) -> Self {
        let mut startup = Self {
            last: process_start,
            stages: Vec::new(),
        };
        startup.done("process");
        startup
    }

    /// A stage is over, the next begins.
    pub(super) fn done(&mut self, stage: &'static str) {
        let now = Instant::now();
        self.stages.push((stage, now - self.last));
        self.last = now;
    }

    /// For the event: milliseconds by stage.
    pub(super) fn milliseconds(&self) -> Vec<(String, f64)> {
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        let stages = self.stages.iter();
        stages
            .map(|&(stage, time)| (stage.to_owned(), milliseconds(time)))
            .collect()
    }

    /// For people, in one line.
    pub(super) fn line(&self) -> String {
        let total: Duration = self.stages.iter().map(|&(_, time)| time).sum();
        let stages = self.stages.iter();
        let parts = stages.map(|(stage, time)| format!("{stage} {:.2}", time.as_secs_f64()));
        let parts = parts.collect::<Vec<_>>().join(" + ");
        format!("ready after {:.2} s = {parts}", total.as_secs_f64())
    }
}
