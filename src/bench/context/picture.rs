//! Memory against the length of a text, as a picture.

use super::{ContextReport, PUBLISHED};
use crate::{Error, Result};
use plotters::prelude::*;

const GREY: RGBColor = RGBColor(128, 128, 128);
const OURS: RGBColor = RGBColor(56, 132, 214);
const OTHERS: RGBColor = RGBColor(226, 112, 26);
const CACHE: RGBColor = RGBColor(0, 158, 115);

/// Measured memory, the published figures, and weights with a cache that grows (computed): for light and dark pages.
pub fn svg(report: &ContextReport) -> Result<String> {
    draw(report).map_err(|e| Error::Failed(format!("cannot draw memory against context: {e}")))
}

fn draw(report: &ContextReport) -> std::result::Result<String, Box<dyn std::error::Error>> {
    let ours: Vec<(f64, f64)> = report.rows.iter().map(|r| (r.tokens as f64, r.device_bytes as f64 / 1e6)).collect();
    let published: Vec<(f64, f64)> = PUBLISHED.iter().map(|p| (p.0 as f64, p.1 * 1e3)).collect();
    let grown = |tokens: f64| (report.weight_bytes as f64 + tokens * report.cache_bytes_per_token as f64) / 1e6;
    let longest = ours.iter().map(|p| p.0).fold(100_000.0, f64::max);
    let shortest = ours.iter().map(|p| p.0).fold(1_000.0, f64::min).max(1.0);
    let cache: Vec<(f64, f64)> = [shortest, 2e3, 5e3, 1e4, 2e4, 5e4, longest]
        .map(|t| (t, grown(t)))
        .into_iter()
        .filter(|p| p.0 <= longest)
        .collect();
    let all = || ours.iter().chain(&published).chain(&cache).map(|p| p.1).filter(|v| *v > 0.0);
    let (low, high) = (all().fold(f64::INFINITY, f64::min) / 1.5, all().fold(1.0, f64::max) * 1.5);
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (800, 450)).into_drawing_area();
        let words = |size: i32| ("sans-serif", size).into_font().color(&GREY);
        let mut chart = ChartBuilder::on(&root)
            .caption("Memory against the length of the text", words(20))
            .margin(12)
            .margin_right(36)
            .x_label_area_size(44)
            .y_label_area_size(64)
            .build_cartesian_2d((shortest..longest).log_scale(), (low..high).log_scale())?;
        chart
            .configure_mesh()
            .bold_line_style(GREY.mix(0.35))
            .light_line_style(TRANSPARENT)
            .axis_style(GREY)
            .label_style(words(14))
            .axis_desc_style(words(15))
            .x_desc("tokens read")
            .y_desc("MB")
            .x_label_formatter(&|v| format!("{v:.0}"))
            .y_label_formatter(&|v| format!("{v:.0}"))
            .y_labels(6)
            .draw()?;
        // Ours last, over the others.
        let series = [
            ("weights and a cache of all keys and values, computed", &cache, CACHE, false),
            ("published for version 2.5, its own program", &published, OTHERS, true),
            ("this program, measured", &ours, OURS, true),
        ];
        for (name, points, colour, dots) in series {
            let style = colour.stroke_width(2);
            chart
                .draw_series(LineSeries::new(points.iter().copied(), style))?
                .label(name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
            if dots {
                chart.draw_series(points.iter().map(|&p| Circle::new(p, 3, colour.filled())))?;
            }
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .label_font(words(15))
            .border_style(GREY.mix(0.35))
            .draw()?;
        root.present()?;
    }
    Ok(svg)
}
