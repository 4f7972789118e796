//! A comparison in words.

use super::{Change, Comparison, DeviceComparison, Verdict};
use crate::bench::table::paint::{Pen, cut, wrapped};
use crate::bench::table::units;
use std::fmt::Write;

pub(super) fn render(comparison: &Comparison, width: usize, colour: bool) -> String {
    let (pen, width) = (Pen { colour }, width.clamp(80, 160));
    let mut out = String::new();
    for note in &comparison.notes {
        list(&mut out, &pen.yellow("note: "), 6, note, width);
    }
    for device in &comparison.devices {
        one(&mut out, device, width, &pen);
    }
    for (side, keys) in [("old", &comparison.only_old), ("new", &comparison.only_new)] {
        for key in keys {
            list(&mut out, &pen.dim(&format!("only in the {side} report: ")), 24, key, width);
        }
    }
    let dots: usize = comparison.devices.iter().map(|d| d.dots.len()).sum();
    let (slower, faster) = (comparison.slower(), comparison.faster());
    let _ = writeln!(
        out,
        "{dots} measurements compared: {} slower, {} faster, {} within noise",
        if slower > 0 { pen.red(&slower.to_string()) } else { "0".into() },
        if faster > 0 { pen.green(&faster.to_string()) } else { "0".into() },
        dots - slower - faster
    );
    out
}

/// `text` after a label of `label_width` columns, further lines under its beginning.
fn list(out: &mut String, label: &str, label_width: usize, text: &str, width: usize) {
    for (i, line) in wrapped(text, width - label_width).into_iter().enumerate() {
        let _ = writeln!(out, "{}{line}", if i == 0 { label.to_string() } else { " ".repeat(label_width) });
    }
}

fn one(out: &mut String, device: &DeviceComparison, width: usize, pen: &Pen) {
    let mean =
        device.geometric_mean.map_or(String::new(), |m| format!(": {:.3} times the old speed (geometric mean)", m));
    let _ = writeln!(out, "{}  {}{mean}", pen.bold(&device.id), cut(&device.name, 40));
    let moved: Vec<&Change> = device.ceilings.iter().filter(|c| c.verdict != Verdict::Same).collect();
    if !moved.is_empty() {
        let names: Vec<String> = moved.iter().map(|c| format!("{} {:.2} times", c.name, c.speed)).collect();
        let text = format!(
            "the machine itself changed ({}): other programs, clocks or heat; only dots that changed by more are told. Measure again when it is quiet",
            names.join(", ")
        );
        list(out, &format!("  {}", pen.yellow("note: ")), 8, &text, width);
    }
    let mut changed: Vec<&Change> = device.dots.iter().filter(|c| c.verdict != Verdict::Same).collect();
    changed.sort_by(|a, b| a.speed.total_cmp(&b.speed));
    for c in changed {
        // `  slower  1.23 x  NAME  1.00 ms -> 1.23 ms  (noise 5 %)`
        let (word, factor) = match c.verdict {
            Verdict::Faster => (pen.green("faster"), c.speed),
            _ => (pen.red("slower"), 1.0 / c.speed),
        };
        let times = format!("{} -> {}", units::seconds(c.old), units::seconds(c.new));
        let name = width - 2 - 6 - 2 - 9 - 2 - 2 - 22 - 2 - 13;
        let _ = writeln!(
            out,
            "  {word}  {:>7} x  {:name$}  {times:<22}  (noise {})",
            units::figures(factor),
            cut(&c.name, name),
            units::percent(c.noise)
        );
    }
    for (what, names) in [("added", &device.added), ("removed", &device.removed)] {
        if !names.is_empty() {
            let few = names.iter().take(8).cloned().collect::<Vec<_>>().join(", ");
            let more = if names.len() > 8 { format!(" and {} more", names.len() - 8) } else { String::new() };
            let label = format!("  {what} ({}): ", names.len());
            list(out, &pen.dim(&label), label.chars().count(), &format!("{few}{more}"), width);
        }
    }
}
