//! The roofline as a scene: axes, roofs, dots and their words.

use super::axis::{Axis, tick};
use super::places::Places;
use super::scene::{Anchor, Area, Marker, Paint, Point, Scene, Shape, Stroke, Text};
use super::select::{self, Drawn, Id};
use super::side;
use crate::bench::report::{Dot, Report};
use crate::bench::table::units;

const WIDTH: f64 = 1600.0;
const HEIGHT: f64 = 900.0;
const AXES: (Point, Point) = ((96.0, 104.0), (1064.0, 792.0));

pub fn compose(report: &Report) -> Scene {
    let drawn = select::devices(report);
    let room = side::rows(drawn.len());
    let numbered = select::numbered(&drawn, room);
    let (x, y) = axes(&drawn);
    let mut figure = Figure { x, y, shapes: Vec::new(), places: Places::new(AXES), drawn: &drawn, numbered: &numbered };
    figure.page(report);
    figure.grid();
    figure.roofs();
    figure.dots();
    figure.corners();
    figure.words();
    let mut shapes = figure.shapes;
    shapes.extend(side::panel(&drawn, &numbered, (AXES.1.0 + 44.0, AXES.0.1), WIDTH - 36.0));
    let names: Vec<&str> = report.devices.iter().map(|d| d.name.as_str()).collect();
    Scene {
        width: WIDTH,
        height: HEIGHT,
        title: format!("Roofline of {}", names.join(", ")),
        description: "Attainable speed over arithmetic intensity, both logarithmic: measured ceilings of each device, and how far under them the program's operators are.".into(),
        axes: AXES,
        shapes,
    }
}

/// Ranges: 0.01 to 100 FLOP/byte and 0.1 GFLOP/s to 1.5 times the highest peak, wider where a dot or a corner asks for it.
pub fn axes(drawn: &[Drawn<'_>]) -> (Axis, Axis) {
    let low_x: f64 = 0.01;
    let mut high_x: f64 = 100.0;
    let (mut low_y, mut high_y): (f64, f64) = (1e8, 1e9);
    for d in drawn {
        high_x = high_x.max(d.corner().map_or(0.0, |c| 4.0 * c));
        for peak in &d.device.ceilings.compute {
            high_y = high_y.max(1.5 * peak.rate.best);
        }
        for dot in d.shown() {
            let (i, speed) = position(dot, low_x);
            high_x = high_x.max(1.6 * i);
            high_y = high_y.max(1.3 * speed);
            low_y = low_y.min(speed / 1.5);
        }
    }
    // A dot that is slow beyond measure must not squeeze all others into a corner.
    let low_y = low_y.max(high_y * 1e-9);
    let (from, to) = AXES;
    (
        Axis { low: low_x, high: high_x, from: from.0, to: to.0 },
        Axis { low: low_y, high: high_y, from: to.1, to: from.1 },
    )
}

/// Intensity and FLOP/s. What does (next to) no arithmetic stands at the left edge, at the height its bandwidth would have there: as
/// far under the memory roof as it is slow.
pub fn position(dot: &Dot, lowest: f64) -> Point {
    let seconds = dot.time().median;
    if dot.intensity() < lowest {
        return (lowest, dot.bytes.max(1.0) / seconds * lowest);
    }
    (dot.intensity(), dot.flops / seconds)
}

struct Figure<'a> {
    x: Axis,
    y: Axis,
    shapes: Vec<Shape>,
    places: Places,
    drawn: &'a [Drawn<'a>],
    numbered: &'a [Id<'a>],
}

impl Figure<'_> {
    fn line(&mut self, points: Vec<Point>, stroke: Stroke) {
        self.shapes.push(Shape::Line { points, stroke });
    }

    fn text(&mut self, text: Text) {
        self.shapes.push(Shape::Text(text));
    }

    fn at(&self, (x, y): Point) -> Point {
        (self.x.at(x), self.y.at(y))
    }

    fn page(&mut self, report: &Report) {
        let ground = Some((Paint::Ground, 1.0));
        self.shapes.push(Shape::Box { from: (0.0, 0.0), to: (WIDTH, HEIGHT), radius: 0.0, fill: ground, stroke: None });
        let host = &report.host;
        let gpus = report.devices.iter().filter(|d| d.threads.is_none());
        let gpus: Vec<&str> = gpus.map(|d| d.name.split(" (").next().unwrap_or(&d.name)).collect();
        let title = [&[host.cpu.as_str()], &gpus[..]].concat().join(" and ");
        let title = super::font::fitted(
            &format!("Roofline of {title}"),
            30.0,
            super::font::Weight::SemiBold,
            AXES.1.0 - AXES.0.0,
        );
        self.text(Text::new((AXES.0.0, 48.0), title, 30.0).bold());
        let quick = if report.quick { " \u{b7} quick measurement" } else { "" };
        let power = host.power.as_ref().map_or(String::new(), |p| format!(" \u{b7} on {p}"));
        // "linux 6.1.0 x86_64, Debian GNU/Linux 12 (bookworm)": what is after the comma is what people call it.
        let system = host.system.split_once(", ").map_or(host.system.as_str(), |s| s.1);
        let line = format!(
            "{} cores \u{b7} {system} \u{b7} {}{quick} \u{b7} lynx-gpu {}{power}",
            host.cores,
            units::date(report.unix_time),
            report.program,
        );
        let line = super::font::fitted(&line, 15.0, super::font::Weight::Regular, AXES.1.0 - AXES.0.0);
        self.text(Text::new((AXES.0.0, 76.0), line, 15.0).paint(Paint::Muted));
        let foot = "Under the slope a kernel waits for memory, under the flat part for arithmetic; the nearer the line, the better. \
                    Dots on the left edge only move data. Small dots: further sizes.";
        self.text(Text::new((AXES.0.0, HEIGHT - 22.0), foot, 14.0).paint(Paint::Muted));
    }

    fn grid(&mut self) {
        let (from, to) = AXES;
        for (axis, upright) in [(self.x, true), (self.y, false)] {
            let across = |v: f64| {
                let p = axis.at(v);
                if upright { vec![(p, from.1), (p, to.1)] } else { vec![(from.0, p), (to.0, p)] }
            };
            for v in axis.between() {
                self.line(across(v), Stroke::new(Paint::Grid, 0.6).faint(0.75));
            }
            for v in axis.decades() {
                self.line(across(v), Stroke::new(Paint::Grid, 1.5));
                let at = if upright { (axis.at(v), to.1 + 24.0) } else { (from.0 - 12.0, axis.at(v) + 5.5) };
                let anchor = if upright { Anchor::Middle } else { Anchor::End };
                let value = if upright { v } else { v / 1e9 };
                self.text(Text::new(at, tick(value), 16.0).anchor(anchor).paint(Paint::Muted));
            }
        }
        self.line(vec![from, (from.0, to.1), to], Stroke::new(Paint::Muted, 1.5));
        let middle = ((from.0 + to.0) / 2.0, (from.1 + to.1) / 2.0);
        let below = Text::new((middle.0, to.1 + 54.0), "Arithmetic intensity (FLOP per byte)", 17.0).bold();
        self.text(below.anchor(Anchor::Middle));
        let beside = Text::new((from.0 - 70.0, middle.1), "Speed (GFLOP/s)", 17.0).bold();
        self.text(beside.anchor(Anchor::Middle).turned(-90.0));
    }

    /// The part of a diagonal `speed = bandwidth x intensity` up to a speed, within the axes.
    fn diagonal(&self, bandwidth: f64, up_to: f64) -> Option<[Point; 2]> {
        let start = self.x.low.max(self.y.low / bandwidth);
        let end = self.x.high.min(up_to.min(self.y.high) / bandwidth);
        (start < end).then(|| [self.at((start, start * bandwidth)), self.at((end, end * bandwidth))])
    }

    /// The part of a ceiling to the right of the memory roof.
    fn ceiling(&self, drawn: &Drawn<'_>, peak: f64) -> Option<[Point; 2]> {
        let start = drawn.memory.map_or(self.x.low, |b| (peak / b).max(self.x.low));
        (start < self.x.high && self.y.holds(peak)).then(|| [self.at((start, peak)), self.at((self.x.high, peak))])
    }

    fn roofs(&mut self) {
        let drawn = self.drawn;
        for d in drawn {
            let (fastest, slowest) = (levels(d).next(), d.memory);
            let highest = d.device.ceilings.compute.iter().map(|p| p.rate.best).fold(0.0, f64::max);
            let Some((_, peak)) = d.peak else { continue };
            // Cache levels, where this device shows its dots.
            if d.dots && fastest.is_some() {
                for level in levels(d) {
                    if let Some(ends) = self.diagonal(level.1, peak) {
                        self.line(ends.to_vec(), Stroke::new(d.paint, 1.1).faint(0.45).dashed(d.dash));
                    }
                }
            }
            if let Some(ends) = slowest.and_then(|b| self.diagonal(b, highest)) {
                self.line(ends.to_vec(), Stroke::new(d.paint, 1.1).faint(0.6).dashed(d.dash));
            }
            for other in &d.device.ceilings.compute {
                if let Some(ends) = self.ceiling(d, other.rate.best) {
                    self.line(ends.to_vec(), Stroke::new(d.paint, 1.1).faint(0.7).dashed(d.dash));
                    self.places.cross(Area::along(ends[0], ends[1], 1.0));
                }
            }
            let mut roof = Vec::new();
            if let Some([start, end]) = slowest.and_then(|b| self.diagonal(b, peak)) {
                self.places.cross(Area::along(start, end, 2.0));
                roof.extend([start, end]);
            }
            if let Some([start, end]) = self.ceiling(d, peak) {
                self.places.cross(Area::along(start, end, 2.0));
                roof.extend([start, end]);
            }
            let width = if d.dots { 3.0 } else { 2.0 };
            self.line(roof, Stroke::new(d.paint, width).dashed(d.dash));
        }
    }

    fn number(&self, dot: &Dot) -> Option<usize> {
        self.numbered.iter().position(|id| *id == dot.id())
    }

    fn dots(&mut self) {
        let drawn = self.drawn;
        // Small ones first, so that no number is hidden.
        for important in [false, true] {
            for d in drawn {
                let numbered = self.numbered;
                for dot in d.shown().filter(|dot| numbered.contains(&dot.id()) == important) {
                    let at = self.at(position(dot, self.x.low));
                    let marker = Marker {
                        at,
                        radius: if important { 6.0 } else { 3.0 },
                        symbol: select::symbol(dot.direction),
                        fill: d.fill,
                        paint: d.paint,
                        opacity: if important { 1.0 } else { 0.55 },
                        tip: tip(d, dot),
                    };
                    if important {
                        self.places.take(marker.area());
                    } else {
                        self.places.cross(marker.area());
                    }
                    self.shapes.push(Shape::Marker(marker));
                }
            }
        }
    }

    /// A line from each roof's bend down to the axis, with its intensity.
    fn corners(&mut self) {
        let drawn = self.drawn;
        for d in drawn {
            let (Some(corner), Some((_, peak))) = (d.corner(), d.peak) else { continue };
            if !self.x.holds(corner) {
                continue;
            }
            let (top, bottom) = (self.at((corner, peak)), AXES.1.1);
            self.line(vec![top, (top.0, bottom)], Stroke::new(d.paint, 1.1).faint(0.7).dashed(&[1.5, 4.0]));
            let label =
                Text::new(top, format!("{} FLOP/byte", units::figures(corner)), 14.0).paint(d.paint).bold().halo();
            let candidates = (0..8).flat_map(|row| {
                let y = bottom - 10.0 - 20.0 * f64::from(row);
                let right = Text { at: (top.0 + 6.0, y), ..label.clone() };
                let left = Text { at: (top.0 - 6.0, y), ..label.clone() }.anchor(Anchor::End);
                [right, left]
            });
            if let Some(text) = self.places.put(candidates) {
                self.text(text);
            }
        }
    }

    /// Along a line between two points, at several parts of its length, above it or below; with its end at the line's where the line
    /// is shorter than the words.
    fn along(label: &Text, [start, end]: [Point; 2], parts: &[f64]) -> Vec<Text> {
        let (dx, dy) = (end.0 - start.0, end.1 - start.1);
        let (length, degrees) = (dx.hypot(dy), dy.atan2(dx).to_degrees());
        let (ux, uy) = (dx / length, dy / length);
        let capital = label.weight.capital(label.size);
        let mut out = Vec::new();
        // Distance of the base line from the line, upwards; below it needs the height of the letters.
        for lift in [6.0, -(capital + 7.0)] {
            for part in parts {
                let along = (6.0 + part * (length - label.width() - 12.0)).min(length - label.width() - 6.0);
                let at = (start.0 + along * ux + lift * uy, start.1 + along * uy - lift * ux);
                out.push(Text { at, turned: degrees, ..label.clone() });
            }
        }
        out
    }

    fn words(&mut self) {
        const FROM_RIGHT: [f64; 11] = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0];
        const FROM_LEFT: [f64; 12] = [0.02, 0.06, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8];
        let drawn = self.drawn;
        // With what must be said first.
        let mut labels: Vec<(u8, Vec<Text>)> = Vec::new();
        for d in drawn {
            let label = |words: String, size: f64| Text::new((0.0, 0.0), words, size).paint(d.paint).halo();
            let id = &d.device.id;
            for peak in &d.device.ceilings.compute {
                let rate = peak.rate.best;
                let main = d.peak.is_some_and(|p| p.0 == peak.kind);
                let words = format!("{id} {} {}", peak.kind, units::operations(rate, &peak.kind));
                let text = if main { label(words, 15.0).bold() } else { label(words, 13.0) };
                if let Some(ends) = self.ceiling(d, rate).filter(|_| main || d.dots) {
                    labels.push((if main { 0 } else { 2 }, Self::along(&text, ends, &FROM_RIGHT)));
                }
            }
            let Some((_, peak)) = d.peak else { continue };
            if let Some(memory) = d.memory {
                let text = label(format!("{id} memory {}", units::bandwidth(memory)), 15.0).bold();
                if let Some(ends) = self.diagonal(memory, peak) {
                    labels.push((1, Self::along(&text, ends, &FROM_LEFT)));
                }
            }
            for (name, bandwidth) in levels(d).filter(|_| d.dots) {
                let text = label(format!("{id} {name} {}", units::bandwidth(bandwidth)), 13.0);
                if let Some(ends) = self.diagonal(bandwidth, peak) {
                    labels.push((4, Self::along(&text, ends, &FROM_LEFT)));
                }
            }
        }
        labels.extend(self.numbers().into_iter().map(|candidates| (3, candidates)));
        labels.sort_by_key(|l| l.0);
        for (_, candidates) in labels {
            if let Some(text) = self.places.put(candidates) {
                self.text(text);
            }
        }
    }

    /// Candidates around each numbered dot, near ones first.
    fn numbers(&self) -> Vec<Vec<Text>> {
        let mut out = Vec::new();
        for d in self.drawn {
            for dot in d.shown() {
                let Some(number) = self.number(dot) else { continue };
                let (x, y) = self.at(position(dot, self.x.low));
                let label = Text::new((x, y), format!("{}", number + 1), 14.0).bold().paint(d.paint).halo();
                let (half, capital) = (label.width() / 2.0, label.weight.capital(label.size));
                let label = label.anchor(Anchor::Middle);
                let ring = |gap: f64| {
                    let label = label.clone();
                    // In sixteenths of a turn, clockwise from the right: the corners first, then the sides, then between.
                    [14, 6, 2, 10, 0, 12, 4, 8, 15, 13, 1, 11, 3, 9, 5, 7].into_iter().map(move |turn| {
                        let angle = f64::from(turn) * std::f64::consts::FRAC_PI_8;
                        let centre = (x + (gap + half) * angle.cos(), y + (gap + capital / 2.0) * angle.sin());
                        Text { at: (centre.0, centre.1 + capital / 2.0), ..label.clone() }
                    })
                };
                out.push([10.0, 14.0, 19.0].into_iter().flat_map(ring).collect());
            }
        }
        out
    }
}

/// Cache levels: all but the last, which is main memory.
fn levels<'a>(d: &Drawn<'a>) -> impl Iterator<Item = (&'a str, f64)> {
    let levels = &d.device.ceilings.levels;
    let caches = &levels[..levels.len().saturating_sub(1)];
    caches.iter().filter(|l| l.bytes_per_second > 0.0).map(|l| (l.name.as_str(), l.bytes_per_second))
}

fn tip(d: &Drawn<'_>, dot: &Dot) -> String {
    let time = dot.time();
    format!(
        "{} {}, {} on {}: {}, {}, {}, {} of the roof",
        dot.operator,
        dot.case,
        units::direction(dot.direction),
        d.device.id,
        units::seconds(time.median),
        units::operations(dot.flops / time.median, &dot.compute),
        units::bandwidth(dot.bytes / time.median),
        units::percent(dot.share)
    )
}
