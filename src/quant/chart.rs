//! The sweep as pictures, in colours that read on light and dark pages: perplexity and tokens per second against bytes.

use super::sweep::Point;
use crate::{Error, Result};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use std::ops::Range;

/// Axes, grid and words: a grey of middle lightness on a transparent ground.
const GREY: RGBColor = RGBColor(128, 128, 128);
const FRONT: RGBColor = RGBColor(226, 112, 26);
const OTHER: RGBColor = RGBColor(56, 132, 214);
/// Pixels of a picture.
const SIZE: (u32, u32) = (800, 480);

/// What stands against bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Against {
    /// With the front that no scheme beats.
    Perplexity,
    TokensPerSecond,
}

/// Draws the points with their names; bytes are spaced logarithmically.
///
/// # Errors
/// The picture cannot be written.
pub fn svg(points: &[Point], title: &str, what: Against) -> Result<String> {
    let value = |p: &Point| match what {
        Against::Perplexity => p.perplexity.perplexity,
        Against::TokensPerSecond => p.tokens_per_second,
    };
    let marks: Vec<Mark> = points
        .iter()
        .filter(|p| value(p).is_finite() && p.bytes > 0)
        .map(|p| Mark { at: (p.bytes as f64, value(p)), name: &p.scheme, front: p.on_front })
        .collect();
    draw(&marks, title, what).map_err(|e| Error::Failed(format!("cannot draw the sweep: {e}")))
}

struct Mark<'a> {
    at: (f64, f64),
    name: &'a str,
    front: bool,
}

fn span(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    if low <= high { (low, high) } else { (1.0, 2.0) }
}

fn draw(marks: &[Mark], title: &str, what: Against) -> std::result::Result<String, Box<dyn std::error::Error>> {
    let (least, most) = span(marks.iter().map(|m| m.at.0));
    let (low, high) = span(marks.iter().map(|m| m.at.1));
    let room = (0.12 * (high - low)).max(0.002 * high.abs()).max(1e-9);
    let values: Range<f64> = match what {
        Against::Perplexity => low - room..high + room,
        Against::TokensPerSecond => 0.0..high + room,
    };
    let mut out = String::new();
    {
        let root = SVGBackend::with_string(&mut out, SIZE).into_drawing_area();
        let words = |size: i32| ("sans-serif", size).into_font().color(&GREY);
        let mut chart = ChartBuilder::on(&root)
            .caption(title, words(20))
            .margin(12)
            .x_label_area_size(44)
            .y_label_area_size(64)
            .build_cartesian_2d((least / 1.15..most * 1.4).log_scale(), RangedCoordf64::from(values))?;
        chart
            .configure_mesh()
            .bold_line_style(GREY.mix(0.35))
            .light_line_style(TRANSPARENT)
            .axis_style(GREY)
            .label_style(words(14))
            .axis_desc_style(words(15))
            .x_desc("bytes of weights")
            .y_desc(if what == Against::Perplexity { "perplexity" } else { "tokens per second, decoding" })
            .x_label_formatter(&|bytes| short(*bytes))
            .y_label_formatter(&|v| if what == Against::Perplexity { format!("{v:.3}") } else { format!("{v:.0}") })
            .draw()?;
        if what == Against::Perplexity {
            let mut front: Vec<(f64, f64)> = marks.iter().filter(|m| m.front).map(|m| m.at).collect();
            front.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
            chart.draw_series(LineSeries::new(front, FRONT.stroke_width(2)))?;
        }
        let hue = |m: &Mark| if m.front && what == Against::Perplexity { FRONT } else { OTHER };
        chart.draw_series(marks.iter().map(|m| Circle::new(m.at, 4, hue(m).filled())))?;
        // Names go above and below in turn, so that neighbours do not cover each other.
        let mut order: Vec<&Mark> = marks.iter().collect();
        order.sort_unstable_by(|a, b| a.at.0.total_cmp(&b.at.0));
        let place = |i: usize| [-18, 6, -32, 20][i % 4];
        chart.draw_series(
            order
                .iter()
                .enumerate()
                .map(|(i, m)| EmptyElement::at(m.at) + Text::new(m.name.to_string(), (7, place(i)), words(14))),
        )?;
        root.present()?;
    }
    Ok(out)
}

/// 512 B, 64 kB, 1.5 MB
fn short(bytes: f64) -> String {
    let units = [(1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
    match units.iter().find(|(u, _)| bytes >= *u) {
        Some((u, name)) => format!("{} {name}", (bytes / u * 10.0).round() / 10.0),
        None => format!("{bytes:.0} B"),
    }
}
