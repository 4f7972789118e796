//! A picture as data: lines, markers and words in pixels of a page, with roles in place of colours. The SVG and the PNG are two
//! ways of writing the same scene, and the tests look at it too.

use super::font::Weight;

/// What a colour is for. Each has a hue for light pages and one for dark ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Paint {
    Ground,
    Ink,
    Muted,
    Grid,
    /// The n-th hue of devices.
    Device(usize),
}

/// Light and dark, `#rrggbb`. The hues of devices are those of Okabe and Ito (2008), which people who are colour-blind tell apart,
/// darkened where a thin line on white asks for it and lightened on black.
const DEVICES: [(&str, &str); 6] = [
    ("#0072b2", "#56b4e9"),
    ("#d55e00", "#ff9147"),
    ("#008a64", "#2fd3a0"),
    ("#b0568a", "#e79ac6"),
    ("#8a6d00", "#e6c84a"),
    ("#6b7f93", "#a9b8c8"),
];
/// The hue kept for the CPU with one thread: a paler brother of the CPU's.
pub const ONE_THREAD: usize = 5;

impl Paint {
    pub fn light(self) -> &'static str {
        self.both().0
    }

    pub fn dark(self) -> &'static str {
        self.both().1
    }

    fn both(self) -> (&'static str, &'static str) {
        match self {
            Paint::Ground => ("#ffffff", "#14171c"),
            Paint::Ink => ("#1b1f24", "#eceff3"),
            Paint::Muted => ("#5b6470", "#a3adb9"),
            Paint::Grid => ("#e3e6ea", "#2b3139"),
            Paint::Device(n) => DEVICES[n % DEVICES.len()],
        }
    }

    /// A CSS class.
    pub fn class(self) -> String {
        match self {
            Paint::Ground => "ground".into(),
            Paint::Ink => "ink".into(),
            Paint::Muted => "muted".into(),
            Paint::Grid => "grid".into(),
            Paint::Device(n) => format!("d{}", n % DEVICES.len()),
        }
    }

    pub fn all() -> Vec<Paint> {
        let mut all = vec![Paint::Ground, Paint::Ink, Paint::Muted, Paint::Grid];
        all.extend((0..DEVICES.len()).map(Paint::Device));
        all
    }
}

pub type Point = (f64, f64);

#[derive(Clone, Debug, PartialEq)]
pub struct Stroke {
    pub paint: Paint,
    pub width: f64,
    pub opacity: f64,
    /// Lengths of dashes and gaps; empty for an unbroken line.
    pub dash: Vec<f64>,
}

impl Stroke {
    pub fn new(paint: Paint, width: f64) -> Self {
        Stroke { paint, width, opacity: 1.0, dash: Vec::new() }
    }
    pub fn faint(self, opacity: f64) -> Self {
        Stroke { opacity, ..self }
    }
    pub fn dashed(self, dash: &[f64]) -> Self {
        Stroke { dash: dash.to_vec(), ..self }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anchor {
    Start,
    Middle,
    End,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Text {
    /// On the base line.
    pub at: Point,
    pub text: String,
    pub size: f64,
    pub weight: Weight,
    pub anchor: Anchor,
    pub paint: Paint,
    /// Degrees, clockwise, about `at`.
    pub turned: f64,
    /// A rim in the colour of the ground, for words that stand on lines.
    pub halo: bool,
}

impl Text {
    pub fn new(at: Point, text: impl Into<String>, size: f64) -> Self {
        Text {
            at,
            text: text.into(),
            size,
            weight: Weight::Regular,
            anchor: Anchor::Start,
            paint: Paint::Ink,
            turned: 0.0,
            halo: false,
        }
    }
    pub fn bold(self) -> Self {
        Text { weight: Weight::SemiBold, ..self }
    }
    pub fn paint(self, paint: Paint) -> Self {
        Text { paint, ..self }
    }
    pub fn anchor(self, anchor: Anchor) -> Self {
        Text { anchor, ..self }
    }
    pub fn turned(self, degrees: f64) -> Self {
        Text { turned: degrees, ..self }
    }
    pub fn halo(self) -> Self {
        Text { halo: true, ..self }
    }

    pub fn width(&self) -> f64 {
        self.weight.width(&self.text, self.size)
    }

    /// From `at` to where the first letter begins, along the base line.
    pub fn start(&self) -> f64 {
        match self.anchor {
            Anchor::Start => 0.0,
            Anchor::Middle => -0.5 * self.width(),
            Anchor::End => -self.width(),
        }
    }

    /// What it covers: from under the base line to the top of the capitals.
    pub fn area(&self) -> Area {
        let capital = self.weight.capital(self.size);
        let below = 0.2 * self.size;
        let (x0, x1) = (self.start(), self.start() + self.width());
        let (sin, cos) = self.turned.to_radians().sin_cos();
        let corner = |x: f64, y: f64| (self.at.0 + x * cos - y * sin, self.at.1 + x * sin + y * cos);
        Area([corner(x0, -capital), corner(x1, -capital), corner(x1, below), corner(x0, below)])
    }
}

/// A rectangle, maybe turned: its corners in order.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Area(pub [Point; 4]);

impl Area {
    pub fn around((x, y): Point, half: f64) -> Area {
        Area([(x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half)])
    }

    /// A thin rectangle about a line.
    pub fn along((x0, y0): Point, (x1, y1): Point, half: f64) -> Area {
        let length = (x1 - x0).hypot(y1 - y0).max(1e-9);
        let (nx, ny) = (-(y1 - y0) / length * half, (x1 - x0) / length * half);
        Area([(x0 + nx, y0 + ny), (x1 + nx, y1 + ny), (x1 - nx, y1 - ny), (x0 - nx, y0 - ny)])
    }

    /// Longer by `by` at both ends of its first edge.
    pub fn wider(&self, by: f64) -> Area {
        let [a, b, c, d] = self.0;
        let length = (b.0 - a.0).hypot(b.1 - a.1).max(1e-9);
        let (ux, uy) = ((b.0 - a.0) / length * by, (b.1 - a.1) / length * by);
        Area([(a.0 - ux, a.1 - uy), (b.0 + ux, b.1 + uy), (c.0 + ux, c.1 + uy), (d.0 - ux, d.1 - uy)])
    }

    /// Whether two rectangles share more than an edge: they do unless some edge's normal separates them.
    pub fn overlaps(&self, other: &Area) -> bool {
        let normals = |a: &Area| {
            let [p, q, r, _] = a.0;
            [(q.0 - p.0, q.1 - p.1), (r.0 - q.0, r.1 - q.1)]
        };
        let span = |a: &Area, n: Point| {
            let along = a.0.map(|p| p.0 * n.0 + p.1 * n.1);
            let low = along.into_iter().fold(f64::INFINITY, f64::min);
            (low, along.into_iter().fold(f64::NEG_INFINITY, f64::max))
        };
        normals(self).into_iter().chain(normals(other)).all(|n| {
            let ((a0, a1), (b0, b1)) = (span(self, n), span(other, n));
            let slack = 1e-6 * n.0.hypot(n.1);
            a0 + slack < b1 && b0 + slack < a1
        })
    }

    pub fn inside(&self, (x0, y0): Point, (x1, y1): Point) -> bool {
        self.0.iter().all(|p| p.0 >= x0 && p.0 <= x1 && p.1 >= y0 && p.1 <= y1)
    }
}

/// Says the direction of a dot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Symbol {
    Circle,
    Triangle,
    Star,
    Square,
    Diamond,
}

/// Says the device of a dot where colours are not seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    Full,
    Hollow,
    Tinted,
    Cored,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Marker {
    pub at: Point,
    pub radius: f64,
    pub symbol: Symbol,
    pub fill: Fill,
    pub paint: Paint,
    pub opacity: f64,
    /// What an SVG viewer shows under the mouse.
    pub tip: String,
}

impl Marker {
    /// The outline as a polygon; none for a circle.
    pub fn corners(&self) -> Vec<Point> {
        let (x, y) = self.at;
        let r = self.radius;
        let ring = |n: usize, turn: f64, radius: &dyn Fn(usize) -> f64| -> Vec<Point> {
            let corner = |i: usize| {
                let angle = std::f64::consts::TAU * i as f64 / n as f64 + turn;
                (x + radius(i) * angle.cos(), y + radius(i) * angle.sin())
            };
            (0..n).map(corner).collect()
        };
        let up = -std::f64::consts::FRAC_PI_2;
        match self.symbol {
            Symbol::Circle => Vec::new(),
            Symbol::Triangle => ring(3, up, &|_| 1.25 * r),
            Symbol::Star => ring(10, up, &|i| if i % 2 == 0 { 1.5 * r } else { 0.65 * r }),
            Symbol::Square => ring(4, up / 2.0, &|_| 1.25 * r),
            Symbol::Diamond => ring(4, up, &|_| 1.3 * r),
        }
    }

    pub fn area(&self) -> Area {
        Area::around(self.at, 1.2 * self.radius)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Shape {
    Line { points: Vec<Point>, stroke: Stroke },
    Box { from: Point, to: Point, radius: f64, fill: Option<(Paint, f64)>, stroke: Option<Stroke> },
    Marker(Marker),
    Text(Text),
}

#[derive(Clone, Debug)]
pub struct Scene {
    pub width: f64,
    pub height: f64,
    pub title: String,
    pub description: String,
    /// Upper left and lower right corner of the axes.
    pub axes: (Point, Point),
    /// From the back to the front.
    pub shapes: Vec<Shape>,
}

impl Scene {
    pub fn texts(&self) -> impl Iterator<Item = &Text> {
        self.shapes.iter().filter_map(|s| if let Shape::Text(t) = s { Some(t) } else { None })
    }
    pub fn markers(&self) -> impl Iterator<Item = &Marker> {
        self.shapes.iter().filter_map(|s| if let Shape::Marker(m) = s { Some(m) } else { None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turned_rectangles_overlap_only_where_they_do() {
        let flat = Area::around((0.0, 0.0), 10.0);
        assert!(flat.overlaps(&flat));
        assert!(flat.overlaps(&Area::around((19.0, 0.0), 10.0)));
        assert!(!flat.overlaps(&Area::around((20.0, 0.0), 10.0)), "a shared edge is no overlap");
        // A diagonal bar past the corner: its bounding box overlaps, the bar does not.
        let bar = Area::along((12.0, -30.0), (42.0, 0.0), 1.0);
        assert!(!flat.overlaps(&bar));
        assert!(flat.overlaps(&Area::along((-12.0, -30.0), (18.0, 0.0), 15.0)));
    }

    #[test]
    fn the_area_of_a_text_follows_its_anchor_and_turn() {
        let text = |anchor| Text::new((100.0, 50.0), "H", 20.0).anchor(anchor).area().0;
        let width = Weight::Regular.width("H", 20.0);
        assert_eq!(text(Anchor::Start)[0].0, 100.0);
        assert_eq!(text(Anchor::End)[0].0, 100.0 - width);
        assert_eq!(text(Anchor::Middle)[1].0, 100.0 + width / 2.0);
        let up = Text::new((100.0, 50.0), "H", 20.0).turned(-90.0).area();
        assert!(up.0.iter().all(|p| p.1 <= 50.0 + 1e-9), "turned to read upwards: {up:?}");
    }
}
