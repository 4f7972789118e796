//! A scene as PNG, on a light ground: the letters drawn from the built-in font, two pixels to each of the scene's.

use super::scene::{Fill, Marker, Paint, Scene, Shape, Stroke, Text};
use super::svg::{HALO, rim};
use crate::{Error, Result};
use tiny_skia::{FillRule, LineCap, LineJoin, Paint as Ink, Path, PathBuilder, Pixmap, StrokeDash, Transform};
use ttf_parser::OutlineBuilder;

pub const SCALE: f64 = 2.0;

pub fn write(scene: &Scene) -> Result<Vec<u8>> {
    let (width, height) = ((scene.width * SCALE) as u32, (scene.height * SCALE) as u32);
    let pixels = Pixmap::new(width, height)
        .ok_or_else(|| Error::Failed(format!("a picture of {width} x {height} pixels does not fit in memory")))?;
    let mut page = Page { pixels };
    for shape in &scene.shapes {
        page.draw(shape);
    }
    page.pixels.encode_png().map_err(|e| Error::Failed(format!("cannot write the picture as PNG: {e}")))
}

struct Page {
    pixels: Pixmap,
}

const TO_PIXELS: f32 = SCALE as f32;

impl Page {
    fn draw(&mut self, shape: &Shape) {
        match shape {
            Shape::Line { points, stroke } => {
                if let Some(path) = polyline(points, false) {
                    self.stroke(&path, stroke, LineCap::Butt, Transform::identity());
                }
            }
            Shape::Box { from, to, radius, fill, stroke } => {
                let Some(path) = rounded(*from, *to, *radius) else { return };
                if let Some((paint, opacity)) = fill {
                    self.fill(&path, *paint, *opacity, Transform::identity());
                }
                if let Some(stroke) = stroke {
                    self.stroke(&path, stroke, LineCap::Butt, Transform::identity());
                }
            }
            Shape::Marker(marker) => self.marker(marker),
            Shape::Text(text) => self.text(text),
        }
    }

    fn fill(&mut self, path: &Path, paint: Paint, opacity: f64, turn: Transform) {
        let transform = turn.post_scale(TO_PIXELS, TO_PIXELS);
        self.pixels.fill_path(path, &ink(paint, opacity), FillRule::Winding, transform, None);
    }

    fn stroke(&mut self, path: &Path, stroke: &Stroke, line_cap: LineCap, turn: Transform) {
        let dash: Vec<f32> = stroke.dash.iter().map(|&d| d as f32).collect();
        let line = tiny_skia::Stroke {
            width: stroke.width as f32,
            line_cap,
            line_join: LineJoin::Round,
            dash: StrokeDash::new(dash, 0.0),
            ..Default::default()
        };
        let transform = turn.post_scale(TO_PIXELS, TO_PIXELS);
        self.pixels.stroke_path(path, &ink(stroke.paint, stroke.opacity), &line, transform, None);
    }

    fn marker(&mut self, marker: &Marker) {
        let outline = |radius: f64| {
            let marker = Marker { radius, ..marker.clone() };
            let corners = marker.corners();
            if corners.is_empty() {
                let (x, y) = (marker.at.0 as f32, marker.at.1 as f32);
                PathBuilder::from_circle(x, y, radius as f32)
            } else {
                polyline(&corners, true)
            }
        };
        let Some(path) = outline(marker.radius) else { return };
        let still = Transform::identity();
        let line = |paint, width| Stroke::new(paint, width).faint(marker.opacity);
        if marker.fill == Fill::Full {
            self.fill(&path, marker.paint, marker.opacity, still);
            self.stroke(&path, &line(Paint::Ground, 1.0), LineCap::Butt, still);
            return;
        }
        self.fill(&path, Paint::Ground, marker.opacity, still);
        let core = match marker.fill {
            Fill::Tinted => outline(0.7 * marker.radius).map(|path| (path, 0.45)),
            Fill::Cored => outline(0.35 * marker.radius).map(|path| (path, 1.0)),
            Fill::Full | Fill::Hollow => None,
        };
        if let Some((path, opacity)) = core {
            self.fill(&path, marker.paint, opacity * marker.opacity, still);
        }
        self.stroke(&path, &line(marker.paint, rim(marker.radius)), LineCap::Butt, still);
    }

    fn text(&mut self, text: &Text) {
        let mut pen = Pen(PathBuilder::new());
        text.weight.outline(&text.text, text.size, &mut pen);
        let Some(path) = pen.0.finish() else { return };
        let turn = Transform::from_translate(text.start() as f32, 0.0)
            .post_rotate(text.turned as f32)
            .post_translate(text.at.0 as f32, text.at.1 as f32);
        if text.halo {
            self.stroke(&path, &Stroke::new(Paint::Ground, HALO), LineCap::Round, turn);
        }
        self.fill(&path, text.paint, 1.0, turn);
    }
}

fn ink(paint: Paint, opacity: f64) -> Ink<'static> {
    let byte = |at: usize| u8::from_str_radix(&paint.light()[at..at + 2], 16).unwrap_or(0);
    let mut ink = Ink { anti_alias: true, ..Default::default() };
    ink.set_color_rgba8(byte(1), byte(3), byte(5), (255.0 * opacity).round() as u8);
    ink
}

fn polyline(points: &[(f64, f64)], closed: bool) -> Option<Path> {
    let mut path = PathBuilder::new();
    for (i, &(x, y)) in points.iter().enumerate() {
        let (x, y) = (x as f32, y as f32);
        if i == 0 { path.move_to(x, y) } else { path.line_to(x, y) }
    }
    if closed {
        path.close();
    }
    path.finish()
}

/// A rectangle with round corners (quadratic curves: at these sizes nobody sees the difference from a circle's).
fn rounded(from: (f64, f64), to: (f64, f64), radius: f64) -> Option<Path> {
    let (x0, y0, x1, y1) = (from.0 as f32, from.1 as f32, to.0 as f32, to.1 as f32);
    let r = (radius as f32).min((x1 - x0) / 2.0).min((y1 - y0) / 2.0).max(0.0);
    let mut path = PathBuilder::new();
    path.move_to(x0 + r, y0);
    path.line_to(x1 - r, y0);
    path.quad_to(x1, y0, x1, y0 + r);
    path.line_to(x1, y1 - r);
    path.quad_to(x1, y1, x1 - r, y1);
    path.line_to(x0 + r, y1);
    path.quad_to(x0, y1, x0, y1 - r);
    path.line_to(x0, y0 + r);
    path.quad_to(x0, y0, x0 + r, y0);
    path.close();
    path.finish()
}

struct Pen(PathBuilder);

impl OutlineBuilder for Pen {
    fn move_to(&mut self, x: f32, y: f32) {
        self.0.move_to(x, y);
    }
    fn line_to(&mut self, x: f32, y: f32) {
        self.0.line_to(x, y);
    }
    fn quad_to(&mut self, x1: f32, y1: f32, x: f32, y: f32) {
        self.0.quad_to(x1, y1, x, y);
    }
    fn curve_to(&mut self, x1: f32, y1: f32, x2: f32, y2: f32, x: f32, y: f32) {
        self.0.cubic_to(x1, y1, x2, y2, x, y);
    }
    fn close(&mut self) {
        self.0.close();
    }
}
