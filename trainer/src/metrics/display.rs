//! What a person sees: a progress bar on a terminal, plain lines anywhere else.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::data::prepare::{Progress, Stage};

const REDRAW: Duration = Duration::from_millis(200);

/// The bar of a run is drawn on standard error; lines go to standard output, where a log parser
/// finds nanoGPT's.
pub(super) struct Display {
    bar: Option<ProgressBar>,
    wants_bar: bool,
    val_loss: Option<f64>,
}

impl Display {
    /// `progress`: `bar`, `lines`, or `auto` = a bar where a person watches.
    pub(super) fn new(progress: &str) -> Self {
        let watched = io::stdout().is_terminal() && io::stderr().is_terminal();
        let wants_bar = progress == "bar" || progress == "auto" && watched;
        Self {
            bar: None,
            wants_bar,
            val_loss: None,
        }
    }

    pub(super) fn line(&self, line: &str) {
        let print = || {
            // A reader that has gone away must not end the run.
            writeln!(io::stdout(), "{line}").ok();
        };
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    pub(super) fn begin(&mut self, step: u64, max_iters: u64) {
        if !self.wants_bar {
            return;
        }
        let template = "{bar:30} {pos}/{len} {msg} | {elapsed} elapsed, {eta} left";
        let style = ProgressStyle::with_template(template).expect("the template is well-formed");
        let bar = ProgressBar::new(max_iters)
            .with_style(style)
            .with_position(step);
        bar.enable_steady_tick(REDRAW);
        bar.reset_eta();
        self.bar = Some(bar);
    }

    pub(super) fn position(&self, done: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        }
    }

    /// The bar carries the figures; without one the line is printed.
    pub(super) fn step(&self, step: u64, line: &str, loss: f64, tokens_per_second: f64) {
        let Some(bar) = &self.bar else {
            return self.line(line);
        };
        let val = self
            .val_loss
            .map_or(String::new(), |val| format!(", val {val:.4}"));
        let rate = crate::machine::human_count(tokens_per_second as u64);
        bar.set_message(format!("loss {loss:.4}{val} | {rate} tokens/s"));
        bar.set_position(step + 1);
    }

    pub(super) fn eval(&mut self, line: &str, val_loss: f64) {
        self.val_loss = Some(val_loss);
        self.line(line);
    }

    pub(super) fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    pub(super) fn prepare_bar(&self) -> PrepareBar {
        PrepareBar {
            bar: self.wants_bar.then(ProgressBar::no_length),
        }
    }
}

/// Progress over bytes while a dataset is fetched and tokenised. Shared by threads.
pub struct PrepareBar {
    bar: Option<ProgressBar>,
}

impl PrepareBar {
    /// Shows how far a stage is; nothing without a terminal.
    pub fn update(&self, Progress { stage, done, total }: Progress) {
        let Some(bar) = &self.bar else { return };
        let what = match stage {
            Stage::Fetching => "fetching",
            Stage::Scanning => "reading",
            Stage::Encoding => "encoding",
        };
        if bar.message() != what {
            let known = "{msg}: {bar:30} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left";
            let unknown = "{msg}: {bytes}, {bytes_per_sec}";
            let template = if total.is_some() { known } else { unknown };
            let style = ProgressStyle::with_template(template).expect("the templates are correct");
            bar.set_style(style);
            bar.set_message(what.to_owned());
            bar.reset();
        }
        if let Some(total) = total {
            bar.set_length(total);
        }
        bar.set_position(done);
    }
}

impl Drop for PrepareBar {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
