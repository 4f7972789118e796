//! The roofline as a picture: every device of a report on one log-log chart (Williams, Waterman and Patterson, "Roofline: an
//! insightful visual performance model", CACM 2009).

pub(super) mod axis;
pub(super) mod figure;
pub mod font;
mod places;
mod png;
pub mod scene;
pub(super) mod select;
mod side;
mod svg;

use super::report::Report;
use crate::Result;
use scene::Scene;

/// Pixels of the PNG to one of the SVG.
pub use png::SCALE;

/// The picture as data.
pub fn scene(report: &Report) -> Scene {
    figure::compose(report)
}

/// The picture as SVG text, for light and dark pages.
pub fn svg(report: &Report) -> Result<String> {
    Ok(svg::write(&scene(report)))
}

/// The picture as a PNG file's bytes, for slides and paper.
pub fn png(report: &Report) -> Result<Vec<u8>> {
    png::write(&scene(report))
}
