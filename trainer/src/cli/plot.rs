//! `trainer plot`: the losses of runs over their steps, as one picture, SVG or PNG.

use std::path::{Path, PathBuf};

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::register_font;
use protocol::{ExitCode, RunDir};

use super::print;
use crate::checkpoint::atomic_write;
use crate::error::{Error, Result};
use crate::interop::history::History;

/// Points of a curve; more steps than these are averaged in groups.
const POINTS_MAX: usize = 2000;
const SIZE: (u32, u32) = (960, 600);
/// A PNG has so many pixels in each direction for one of [`SIZE`], so that it is sharp.
const PNG_SCALE: u32 = 2;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Run directories.
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// File to write, .svg or .png.
    #[arg(long, default_value = "losses.svg")]
    out: PathBuf,
    /// Steps on a logarithmic axis, from 1.
    #[arg(long)]
    log: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Svg,
    Png,
}

/// A line of the picture.
struct Curve {
    name: String,
    points: Vec<(f64, f64)>,
    color: RGBAColor,
    width: u32,
}

pub(super) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let format = Format::of(&arguments.out)?;
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
    let drawn = match format {
        Format::Svg => svg(&curves, arguments.log),
        Format::Png => bitmap(&curves, arguments.log),
    };
    let picture = drawn.map_err(|what| {
        Error::Data(format!(
            "{}: cannot be drawn: {what}",
            arguments.out.display()
        ))
    })?;
    atomic_write(&arguments.out, &picture)?;
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

impl Format {
    fn of(path: &Path) -> Result<Self> {
        let extension = path.extension().unwrap_or_default();
        match extension.to_string_lossy().to_ascii_lowercase().as_str() {
            "svg" => Ok(Self::Svg),
            "png" => Ok(Self::Png),
            _ => Err(Error::config(format!(
                "--out={}: expected a name that ends in .svg or .png",
                path.display()
            ))),
        }
    }
}

fn svg(curves: &[Curve], log: bool) -> std::result::Result<Vec<u8>, String> {
    let mut text = String::new();
    let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
    draw(area, 1, curves, log)?;
    Ok(text.into_bytes())
}

fn bitmap(curves: &[Curve], log: bool) -> std::result::Result<Vec<u8>, String> {
    let (width, height) = (SIZE.0 * PNG_SCALE, SIZE.1 * PNG_SCALE);
    let mut pixels = vec![0; width as usize * height as usize * 3];
    let area = BitMapBackend::with_buffer(&mut pixels, (width, height)).into_drawing_area();
    draw(area, PNG_SCALE, curves, log)?;
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width, height);
    encoder.set_color(png::ColorType::Rgb);
    let written = encoder.write_header().and_then(|mut rows| {
        rows.write_image_data(&pixels)?;
        rows.finish()
    });
    written.map_err(|error| error.to_string())?;
    Ok(file)
}

/// The whole picture, every length in it times `scale`.
fn draw<B: DrawingBackend>(
    area: DrawingArea<B, Shift>,
    scale: u32,
    curves: &[Curve],
    log: bool,
) -> std::result::Result<(), String> {
    // What is drawn on pixels needs a font, and the machine may have none.
    let font = epaint_default_fonts::UBUNTU_LIGHT;
    register_font("sans-serif", FontStyle::Normal, font)
        .map_err(|_| "the font within the program cannot be read".to_owned())?;
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
    area.fill(&WHITE).map_err(|error| error.to_string())?;
    let mut builder = ChartBuilder::on(&area);
    builder
        .margin(16 * scale)
        .x_label_area_size(44 * scale)
        .y_label_area_size(60 * scale);
    let drawn = if log {
        let chart = builder.build_cartesian_2d((first..last).log_scale(), losses);
        chart.map(|chart| curves_on(chart, scale, curves))
    } else {
        let chart = builder.build_cartesian_2d(first..last, losses);
        chart.map(|chart| curves_on(chart, scale, curves))
    };
    drawn.map_err(|error| error.to_string())??;
    area.present().map_err(|error| error.to_string())
}

type Canvas<'a, B, X> = ChartContext<'a, B, Cartesian2d<X, plotters::coord::types::RangedCoordf64>>;

/// Axes, curves and their names.
fn curves_on<'a, B, X>(
    mut chart: Canvas<'a, B, X>,
    scale: u32,
    curves: &[Curve],
) -> std::result::Result<(), String>
where
    B: DrawingBackend + 'a,
    X: Ranged<ValueType = f64> + plotters::coord::ranged1d::ValueFormatter<f64>,
{
    let text = |points: u32| ("sans-serif", points * scale).into_font();
    chart
        .configure_mesh()
        .x_desc("step")
        .y_desc("loss, nats per token")
        .label_style(text(12))
        .axis_desc_style(text(13))
        .axis_style(BLACK.stroke_width(scale))
        .set_all_tick_mark_size(5 * scale)
        .x_label_formatter(&|step| format!("{step:.0}"))
        .bold_line_style(BLACK.mix(0.1).stroke_width(scale))
        .light_line_style(WHITE)
        .draw()
        .map_err(|error| error.to_string())?;
    for curve in curves.iter().filter(|curve| !curve.points.is_empty()) {
        let style = curve.color.stroke_width(curve.width * scale);
        let line = LineSeries::new(curve.points.iter().copied(), style);
        let drawn = chart.draw_series(line).map_err(|error| error.to_string())?;
        let length = 18 * scale as i32;
        drawn
            .label(curve.name.clone())
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + length, y)], style));
    }
    chart
        .configure_series_labels()
        // Losses fall, so nothing is there.
        .position(SeriesLabelPosition::UpperRight)
        .label_font(text(12))
        .legend_area_size(22 * scale)
        .margin(8 * scale)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3).stroke_width(scale))
        .draw()
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
