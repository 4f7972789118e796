//! Beside the axes: what the colours and markers mean, and the names of the numbered dots with their shares of the roof.

use super::font::{Weight, fitted};
use super::scene::{Anchor, Marker, Paint, Point, Shape, Stroke, Symbol, Text};
use super::select::{Drawn, Id, symbol};
use crate::bench::report::Direction;
use crate::bench::table::units;

const DEVICE: f64 = 48.0;
const ROW: f64 = 24.0;
const COLUMN: f64 = 58.0;
/// Height of the panel beside the axes.
const HEIGHT: f64 = 770.0;
/// Columns of shares that leave room for names.
const COLUMNS: usize = 4;

/// How many numbered dots fit under the list of so many devices.
pub fn rows(devices: usize) -> usize {
    let left = HEIGHT - devices as f64 * DEVICE - 90.0;
    ((left / ROW) as usize).clamp(4, 24)
}

pub fn panel(drawn: &[Drawn<'_>], numbered: &[Id<'_>], (left, top): Point, right: f64) -> Vec<Shape> {
    let mut out = Vec::new();
    let mut y = top - 42.0;
    for d in drawn {
        y += device(&mut out, d, (left, y), right);
    }
    y += 8.0;
    directions(&mut out, drawn, (left, y));
    y += 38.0;
    table(&mut out, drawn, numbered, (left, y), right);
    out
}

fn device(out: &mut Vec<Shape>, d: &Drawn<'_>, (left, y): Point, right: f64) -> f64 {
    let line = vec![(left, y - 5.0), (left + 40.0, y - 5.0)];
    out.push(Shape::Line { points: line, stroke: Stroke::new(d.paint, 3.0).dashed(d.dash) });
    if d.dots {
        out.push(Shape::Marker(sample(d, (left + 20.0, y - 5.0), Symbol::Circle)));
    }
    let id = Text::new((left + 52.0, y), d.device.id.clone(), 17.0).bold().paint(d.paint);
    let after = left + 52.0 + id.width() + 10.0;
    let name = fitted(&d.name(), 15.0, Weight::Regular, right - after);
    out.push(Shape::Text(id));
    out.push(Shape::Text(Text::new((after, y), name, 15.0)));
    let mut facts = Vec::new();
    if let Some((kind, peak)) = d.peak {
        facts.push(format!("{kind} {}", units::operations(peak, kind)));
    }
    if let Some(memory) = d.memory {
        facts.push(units::bandwidth(memory));
    }
    if let Some(corner) = d.corner() {
        facts.push(format!("corner {} FLOP/B", units::figures(corner)));
    }
    let facts = fitted(&facts.join(" \u{b7} "), 13.5, Weight::Regular, right - left - 52.0);
    out.push(Shape::Text(Text::new((left + 52.0, y + 20.0), facts, 13.5).paint(Paint::Muted)));
    DEVICE
}

fn sample(d: &Drawn<'_>, at: Point, symbol: Symbol) -> Marker {
    Marker { at, radius: 6.0, symbol, fill: d.fill, paint: d.paint, opacity: 1.0, tip: String::new() }
}

fn directions(out: &mut Vec<Shape>, drawn: &[Drawn<'_>], (left, y): Point) {
    let mut x = left;
    let all = [Direction::Forward, Direction::Backward, Direction::Step, Direction::Prefill, Direction::Decode];
    for direction in all.into_iter().filter(|a| drawn.iter().any(|d| d.shown().any(|dot| dot.direction == *a))) {
        out.push(Shape::Marker(key(direction, (x + 7.0, y - 5.0))));
        let word = if direction == Direction::Step { "step" } else { units::direction(direction) };
        let text = Text::new((x + 20.0, y), word, 14.0).paint(Paint::Muted);
        x += 20.0 + text.width() + 18.0;
        out.push(Shape::Text(text));
    }
}

fn key(direction: Direction, at: Point) -> Marker {
    let fill = super::scene::Fill::Full;
    Marker { at, radius: 5.0, symbol: symbol(direction), fill, paint: Paint::Muted, opacity: 1.0, tip: String::new() }
}

fn table(out: &mut Vec<Shape>, drawn: &[Drawn<'_>], numbered: &[Id<'_>], (left, y): Point, right: f64) {
    if numbered.is_empty() {
        return;
    }
    let columns: Vec<&Drawn<'_>> = drawn.iter().filter(|d| d.dots).take(COLUMNS).collect();
    let column = |i: usize| right - COLUMN * (columns.len() - 1 - i) as f64;
    let names = right - COLUMN * columns.len() as f64 - 8.0;
    out.push(Shape::Text(Text::new((left, y), "share of the roof", 14.0).paint(Paint::Muted)));
    for (i, d) in columns.iter().enumerate() {
        let id = fitted(&d.device.id, 14.0, Weight::SemiBold, COLUMN - 6.0);
        out.push(Shape::Text(Text::new((column(i), y), id, 14.0).bold().paint(d.paint).anchor(Anchor::End)));
    }
    let rule = vec![(left, y + 8.0), (right, y + 8.0)];
    out.push(Shape::Line { points: rule, stroke: Stroke::new(Paint::Grid, 1.5) });
    for (row, id) in numbered.iter().enumerate() {
        let y = y + 8.0 + ROW * (row + 1) as f64 - 5.0;
        let number = Text::new((left + 22.0, y), format!("{}", row + 1), 14.0).bold().anchor(Anchor::End);
        out.push(Shape::Text(number));
        out.push(Shape::Marker(key(id.2, (left + 38.0, y - 5.0))));
        let name = Text::new((left + 52.0, y), fitted(id.0, 14.5, Weight::Regular, names - left - 52.0), 14.5);
        let after = left + 52.0 + name.width() + 7.0;
        out.push(Shape::Text(name));
        let case = fitted(id.1, 13.0, Weight::Regular, names - after);
        if case != "\u{2026}" {
            out.push(Shape::Text(Text::new((after, y), case, 13.0).paint(Paint::Muted)));
        }
        for (i, d) in columns.iter().enumerate() {
            let share =
                d.shown().find(|dot| dot.id() == *id).map_or("\u{2013}".into(), |dot| units::percent(dot.share));
            out.push(Shape::Text(Text::new((column(i), y), share, 14.0).anchor(Anchor::End)));
        }
    }
}
