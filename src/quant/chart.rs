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
        .map(|p| Mark { at: ((p.bytes as f64 / MEGABYTE).log2(), value(p)), name: &p.scheme, front: p.on_front })
        .collect();
    draw(&marks, title, what).map_err(|e| Error::Failed(format!("cannot draw the sweep: {e}")))
}

const MEGABYTE: f64 = 1e6;
/// Where the plot begins, right of the labels of its axis.
const AXIS: i32 = 78;
/// Height of the names in pixels.
const TEXT: i32 = 14;

struct Mark<'a> {
    /// Powers of two of megabytes, and the value.
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
            .build_cartesian_2d(RangedCoordf64::from(least - 0.2..most + 0.6), RangedCoordf64::from(values))?;
        chart
            .configure_mesh()
            .bold_line_style(GREY.mix(0.35))
            .light_line_style(TRANSPARENT)
            .axis_style(GREY)
            .label_style(words(14))
            .axis_desc_style(words(15))
            .x_desc("bytes of weights")
            .y_desc(if what == Against::Perplexity { "perplexity" } else { "tokens per second, decoding" })
            .x_label_formatter(&|power| short(power.exp2() * MEGABYTE))
            .y_label_formatter(&|v| if what == Against::Perplexity { format!("{v:.3}") } else { format!("{v:.0}") })
            .draw()?;
        if what == Against::Perplexity {
            let mut front: Vec<(f64, f64)> = marks.iter().filter(|m| m.front).map(|m| m.at).collect();
            front.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
            chart.draw_series(LineSeries::new(front, FRONT.stroke_width(2)))?;
        }
        let hue = |m: &Mark| if m.front && what == Against::Perplexity { FRONT } else { OTHER };
        chart.draw_series(marks.iter().map(|m| Circle::new(m.at, 4, hue(m).filled())))?;
        for (m, at) in marks.iter().zip(places(marks, |m| chart.backend_coord(&m.at))) {
            root.draw(&Text::new(m.name.to_string(), at, words(TEXT)))?;
        }
        root.present()?;
    }
    Ok(out)
}

/// Where the names' upper left corners go: each to the nearest place around its point that neither a name nor a point has.
fn places(marks: &[Mark], pixel: impl Fn(&Mark) -> (i32, i32)) -> Vec<(i32, i32)> {
    let points: Vec<(i32, i32)> = marks.iter().map(&pixel).collect();
    let overlap = |a: &[i32; 4], b: &[i32; 4]| a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];
    let mut taken: Vec<[i32; 4]> = points.iter().map(|(x, y)| [x - 4, y - 4, x + 4, y + 4]).collect();
    let mut found = Vec::with_capacity(marks.len());
    for (mark, (x, y)) in marks.iter().zip(&points) {
        let width = mark.name.len() as i32 * TEXT / 2 + 4;
        // To the right, then to the left, ever further up and down.
        let candidates = (0..12).flat_map(|step| {
            let dy = (step + 1) / 2 * TEXT * if step % 2 == 0 { 1 } else { -1 };
            [6, -width - 6].map(|dx| [x + dx, y + dy - TEXT / 2, x + dx + width, y + dy + TEXT / 2])
        });
        let free = |place: &[i32; 4]| place[0] > AXIS && taken.iter().all(|t| !overlap(place, t));
        let place = candidates.clone().find(free).unwrap_or([x + 6, y - TEXT / 2, x + 6 + width, y + TEXT / 2]);
        taken.push(place);
        found.push((place[0], place[1]));
    }
    found
}

/// 512 B, 64 kB, 1.5 MB
fn short(bytes: f64) -> String {
    let units = [(1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
    match units.iter().find(|(u, _)| bytes >= *u) {
        Some((u, name)) => format!("{} {name}", (bytes / u * 10.0).round() / 10.0),
        None => format!("{bytes:.0} B"),
    }
}
