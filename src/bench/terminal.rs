//! The chart in a terminal: roofs in braille (each character holds 2 x 4 dots), kernels as letters' size marks.

use super::chart::axis::{Axis, tick};
use super::chart::figure::{axes, position};
use super::chart::scene::Paint;
use super::chart::select::{self, Drawn};
use super::report::Report;
use super::table::paint::{Pen, cut};
use super::table::units;

/// Columns for the numbers at the left.
const LEFT: usize = 9;
const MARKS: [char; 6] = ['\u{25cf}', '\u{25cb}', '\u{25c7}', '\u{25a1}', '\u{25b3}', '\u{2022}'];

/// A character of the plot, and whose colour it has.
#[derive(Clone, Copy)]
struct Cell {
    /// Bits of a braille pattern, or 0.
    braille: u8,
    /// In place of the pattern.
    letter: Option<char>,
    device: usize,
}

struct Canvas {
    columns: usize,
    rows: usize,
    cells: Vec<Cell>,
}

impl Canvas {
    fn new(columns: usize, rows: usize) -> Self {
        Canvas { columns, rows, cells: vec![Cell { braille: 0, letter: None, device: 0 }; columns * rows] }
    }

    fn cell(&mut self, column: usize, row: usize) -> Option<&mut Cell> {
        (column < self.columns && row < self.rows).then(|| &mut self.cells[row * self.columns + column])
    }

    /// `x` and `y` in dots.
    fn dot(&mut self, x: usize, y: usize, device: usize) {
        // Unicode numbers the dots of a pattern down the left, down the right, and then the two of the last row.
        const BITS: [[u8; 2]; 4] = [[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]];
        if let Some(cell) = self.cell(x / 2, y / 4) {
            cell.braille |= BITS[y % 4][x % 2];
            cell.device = device;
        }
    }

    fn line(&mut self, (x0, y0): (f64, f64), (x1, y1): (f64, f64), device: usize, every: usize) {
        let steps = (x1 - x0).abs().max((y1 - y0).abs()).ceil().max(1.0) as usize;
        for i in (0..=steps).step_by(every) {
            let t = i as f64 / steps as f64;
            self.dot((x0 + t * (x1 - x0)).round() as usize, (y0 + t * (y1 - y0)).round() as usize, device);
        }
    }

    fn letter(&mut self, column: usize, row: usize, letter: char, device: usize) {
        if let Some(cell) = self.cell(column, row) {
            cell.letter = Some(letter);
            cell.device = device;
        }
    }

    /// Writes words ending in the last column, in the free row nearest above `row`, else below; nowhere if there is none.
    fn words(&mut self, text: &str, row: usize, device: usize) {
        let length = text.chars().count();
        if length > self.columns {
            return;
        }
        let start = self.columns - length;
        let free = |canvas: &Canvas, row: usize| {
            let cells = &canvas.cells[row * canvas.columns + start..(row + 1) * canvas.columns];
            cells.iter().all(|c| c.letter.is_none())
        };
        let above = (row.saturating_sub(3)..row).rev();
        let below = row + 1..(row + 4).min(self.rows);
        if let Some(row) = above.chain(below).find(|&r| r < self.rows && free(self, r)) {
            for (i, letter) in text.chars().enumerate() {
                self.letter(start + i, row, letter, device);
            }
        }
    }
}

/// A plot of `width` columns and `height` rows, legend included.
pub fn plot(report: &Report, width: usize, height: usize, colour: bool) -> String {
    let pen = Pen { colour };
    let drawn = select::devices(report);
    let (width, height) = (width.clamp(50, 240), height.clamp(16, 100));
    let columns = width - LEFT - 1;
    let rows = (height.saturating_sub(4 + drawn.len())).max(8);
    let (x, y) = axes(&drawn);
    // From the middle of the first dot to the middle of the last.
    let x = Axis { from: 0.0, to: (2 * columns - 1) as f64, ..x };
    let y = Axis { from: (4 * rows - 1) as f64, to: 0.0, ..y };
    let mut canvas = Canvas::new(columns, rows);
    for (n, d) in drawn.iter().enumerate().rev() {
        roof(&mut canvas, &x, &y, d, n);
    }
    for (n, d) in drawn.iter().enumerate().rev() {
        for dot in d.shown() {
            let (i, speed) = position(dot, x.low);
            canvas.letter(x.at(i).round() as usize / 2, y.at(speed).round() as usize / 4, MARKS[n % MARKS.len()], n);
        }
    }
    for (n, d) in drawn.iter().enumerate() {
        if let Some((kind, peak)) = d.peak.filter(|p| y.holds(p.1)) {
            let words = format!("{} {kind} {}", d.device.id, units::operations(peak, kind));
            canvas.words(&words, y.at(peak).round() as usize / 4, n);
        }
    }
    let mut out = format!("{:>LEFT$}\n", "GFLOP/s");
    let hue = |n: usize| if let Paint::Device(hue) = drawn[n].paint { hue } else { 0 };
    let labels: Vec<(usize, String)> = y.decades().into_iter().map(|v| (y.at(v) as usize / 4, tick(v / 1e9))).collect();
    for row in 0..rows {
        let label = labels.iter().find(|l| l.0 == row).map_or("", |l| &l.1);
        out.push_str(&format!("{label:>w$} {}", if label.is_empty() { '\u{2502}' } else { '\u{253c}' }, w = LEFT - 1));
        let mut line = String::new();
        for cell in &canvas.cells[row * columns..(row + 1) * columns] {
            let letter = match (cell.letter, cell.braille) {
                (Some(letter), _) => letter,
                (None, 0) => ' ',
                (None, bits) => char::from_u32(0x2800 + u32::from(bits)).unwrap_or(' '),
            };
            if letter == ' ' {
                line.push(' ');
            } else {
                line.push_str(&pen.device(hue(cell.device), &letter.to_string()));
            }
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out.push_str(&bottom(&x, columns));
    for (n, d) in drawn.iter().enumerate() {
        let mark = if d.dots { MARKS[n % MARKS.len()] } else { '\u{2500}' };
        let line = cut(&legend(d), width.saturating_sub(4));
        out.push_str(&format!("  {} {line}\n", pen.device(hue(n), &mark.to_string())));
    }
    out
}

fn roof(canvas: &mut Canvas, x: &Axis, y: &Axis, d: &Drawn<'_>, n: usize) {
    let Some((_, peak)) = d.peak else { return };
    let every = if d.dots { 1 } else { 3 };
    let corner = d.corner().unwrap_or(x.low);
    if let Some(memory) = d.memory {
        let start = x.low.max(y.low / memory);
        let end = corner.min(x.high);
        if start < end {
            canvas.line((x.at(start), y.at(start * memory)), (x.at(end), y.at(end * memory)), n, every);
        }
    }
    if corner < x.high && y.holds(peak) {
        canvas.line((x.at(corner.max(x.low)), y.at(peak)), (x.at(x.high), y.at(peak)), n, every);
    }
}

/// The axis, its numbers and its name.
fn bottom(x: &Axis, columns: usize) -> String {
    let mut line: Vec<char> = vec!['\u{2500}'; columns];
    let mut numbers: Vec<char> = vec![' '; columns];
    for v in x.decades() {
        let column = x.at(v).round() as usize / 2;
        line[column.min(columns - 1)] = '\u{253c}';
        let label = tick(v);
        // Centred under the mark, but not out of the canvas.
        let length = label.chars().count();
        let start = column.saturating_sub(length / 2).min(columns.saturating_sub(length));
        for (i, c) in label.chars().enumerate() {
            numbers[start + i] = c;
        }
    }
    let (line, numbers): (String, String) = (line.into_iter().collect(), numbers.into_iter().collect());
    let name = "FLOP per byte";
    format!(
        "{:w$}\u{2514}{line}\n{:w$} {}\n{:>end$}\n",
        "",
        "",
        numbers.trim_end(),
        name,
        w = LEFT,
        end = LEFT + 1 + columns / 2 + name.len() / 2
    )
}

fn legend(d: &Drawn<'_>) -> String {
    let mut facts = vec![format!("{}  {}", d.device.id, d.name())];
    if let Some((kind, peak)) = d.peak {
        facts.push(format!("{kind} {}", units::operations(peak, kind)));
    }
    facts.extend(d.memory.map(|b| format!("memory {}", units::bandwidth(b))));
    facts.extend(d.corner().map(|c| format!("corner {} FLOP/byte", units::figures(c))));
    facts.join(", ")
}
