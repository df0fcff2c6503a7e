//! `trainer plot`: the losses of runs over their steps, as one SVG.

use std::path::PathBuf;

use plotters::prelude::*;
use protocol::{ExitCode, RunDir};

use super::print;
use crate::checkpoint::atomic_write;
use crate::error::{Error, Result};
use crate::interop::history::History;

/// Points of a curve; more steps than these are averaged in groups.
const POINTS_MAX: usize = 2000;
const SIZE: (u32, u32) = (960, 600);

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Run directories.
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// File to write.
    #[arg(long, default_value = "losses.svg")]
    out: PathBuf,
    /// Steps on a logarithmic axis, from 1.
    #[arg(long)]
    log: bool,
}

/// A line of the picture.
struct Curve {
    name: String,
    points: Vec<(f64, f64)>,
    color: RGBAColor,
    width: u32,
}

pub(super) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut curves = Vec::new();
    for (index, path) in arguments.runs.iter().enumerate() {
        let history = History::read(&RunDir::new(path))?;
        let name = path.display().to_string();
        let color = Palette99::pick(index).to_rgba();
        let steps = history.steps.iter().map(|(step, made)| (*step, made.loss));
        let evaluations = history.evaluations.iter();
        curves.push(Curve {
            name: format!("{name}: training"),
            points: averaged(steps),
            color: color.mix(0.35),
            width: 1,
        });
        curves.push(Curve {
            name: format!("{name}: validation"),
            points: averaged(evaluations.map(|(step, seen)| (*step, seen.val))),
            color,
            width: 2,
        });
    }
    if arguments.log {
        for curve in &mut curves {
            curve.points.retain(|(step, _)| *step >= 1.0);
        }
    }
    let svg = draw(&curves, arguments.log).map_err(|what| {
        Error::Data(format!(
            "{}: cannot be drawn: {what}",
            arguments.out.display()
        ))
    })?;
    atomic_write(&arguments.out, svg.as_bytes())?;
    let mut lines = Vec::new();
    for curve in &curves {
        if let Some((step, loss)) = curve.points.last() {
            lines.push(format!("{}: {loss:.4} at step {step}", curve.name));
        }
    }
    lines.push(format!("drawn in {}", arguments.out.display()));
    print(&lines.join("\n"))
}

/// The finite losses, averaged in groups where there are many.
fn averaged(losses: impl Iterator<Item = (u64, f64)>) -> Vec<(f64, f64)> {
    let finite: Vec<(f64, f64)> = losses
        .filter(|(_, loss)| loss.is_finite())
        .map(|(step, loss)| (step as f64, loss))
        .collect();
    let group = finite.len().div_ceil(POINTS_MAX).max(1);
    finite
        .chunks(group)
        .map(|group| {
            let mean = group.iter().map(|(_, loss)| loss).sum::<f64>() / group.len() as f64;
            (group[group.len() - 1].0, mean)
        })
        .collect()
}

fn draw(curves: &[Curve], log: bool) -> std::result::Result<String, String> {
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let span = |of: fn(&(f64, f64)) -> f64| {
        let fold = |(low, high): (f64, f64), x: f64| (low.min(x), high.max(x));
        points()
            .map(of)
            .fold((f64::INFINITY, f64::NEG_INFINITY), fold)
    };
    let ((first, last), (low, high)) = (span(|point| point.0), span(|point| point.1));
    if points().next().is_none() {
        return Err("the runs have measured no losses".to_owned());
    }
    // A single point needs a span, too.
    let (last, margin) = (last.max(first + 1.0), ((high - low) * 0.05).max(1e-3));
    let losses = (low - margin)..(high + margin);
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE).map_err(|error| error.to_string())?;
        let mut builder = ChartBuilder::on(&area);
        builder
            .margin(16)
            .x_label_area_size(44)
            .y_label_area_size(60);
        let drawn = if log {
            let chart = builder.build_cartesian_2d((first..last).log_scale(), losses);
            chart.map(|chart| curves_on(chart, curves))
        } else {
            let chart = builder.build_cartesian_2d(first..last, losses);
            chart.map(|chart| curves_on(chart, curves))
        };
        drawn.map_err(|error| error.to_string())??;
        area.present().map_err(|error| error.to_string())?;
    }
    Ok(svg)
}

type Canvas<'a, 'b, X> =
    ChartContext<'a, SVGBackend<'b>, Cartesian2d<X, plotters::coord::types::RangedCoordf64>>;

/// Axes, curves and their names.
fn curves_on<'a, 'b: 'a, X>(
    mut chart: Canvas<'a, 'b, X>,
    curves: &[Curve],
) -> std::result::Result<(), String>
where
    X: Ranged<ValueType = f64> + plotters::coord::ranged1d::ValueFormatter<f64>,
{
    chart
        .configure_mesh()
        .x_desc("step")
        .y_desc("loss, nats per token")
        .x_label_formatter(&|step| format!("{step:.0}"))
        .bold_line_style(BLACK.mix(0.1))
        .light_line_style(WHITE)
        .draw()
        .map_err(|error| error.to_string())?;
    for curve in curves.iter().filter(|curve| !curve.points.is_empty()) {
        let style = curve.color.stroke_width(curve.width);
        let line = LineSeries::new(curve.points.iter().copied(), style);
        let drawn = chart.draw_series(line).map_err(|error| error.to_string())?;
        drawn
            .label(curve.name.clone())
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], style));
    }
    chart
        .configure_series_labels()
        // Losses fall, so nothing is there.
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .draw()
        .map_err(|error| error.to_string())
}
