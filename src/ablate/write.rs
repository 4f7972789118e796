//! A report as text for a terminal, as Markdown with pictures, and as JSON.

use super::report::{Report, RowReport, VariantReport};
use super::statistics::Interval;
use crate::config::size;
use crate::error::Result;
use crate::train::{files, plot};
use std::fmt::Write;
use std::path::Path;

const HEADINGS: [&str; 9] = [
    "variant",
    "parameters",
    "ff_width",
    "best loss",
    "difference",
    "bits/byte",
    "final loss",
    "tok/s",
    "planned bytes",
];

/// REPORT.md, report.json and a picture for each row.
pub fn write(report: &Report, folder: &Path) -> Result<()> {
    for row in &report.rows {
        let series: Vec<(String, Vec<(f64, f64)>)> = row
            .variants
            .iter()
            .filter(|v| !v.curve.is_empty())
            .map(|v| (v.name.clone(), v.curve.iter().map(|&(step, loss)| (step as f64, loss)).collect()))
            .collect();
        let title = format!("{}: validation loss, mean over seeds", row.name);
        files::write_atomic(&folder.join(&row.plot), plot::comparison_svg(&series, &title)?.as_bytes())?;
    }
    let json = serde_json::to_string_pretty(report).expect("a report is plain data");
    files::write_atomic(&folder.join("report.json"), json.as_bytes())?;
    files::write_atomic(&folder.join("REPORT.md"), markdown(report).as_bytes())
}

/// The tables and conclusions for a terminal.
pub fn text(report: &Report) -> String {
    let mut out = String::new();
    for row in &report.rows {
        let cells: Vec<[String; 9]> =
            std::iter::once(HEADINGS.map(String::from)).chain(row.variants.iter().map(cells)).collect();
        let width = |column: usize| cells.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..HEADINGS.len()).map(width).collect();
        let _ = writeln!(out, "{} ({} steps, {})", heading(row), row.steps, row.base);
        for line in &cells {
            let mut text = format!("  {:<w$}", line[0], w = widths[0]);
            for (cell, w) in line.iter().zip(&widths).skip(1) {
                let _ = write!(text, "  {cell:>w$}");
            }
            let _ = writeln!(out, "{}", text.trim_end());
        }
        shares(row).iter().for_each(|line| writeln!(out, "  {line}").expect("text grows"));
        row.conclusions.iter().for_each(|line| writeln!(out, "  - {line}").expect("text grows"));
        out.push('\n');
    }
    if !report.not_run.is_empty() {
        let _ = writeln!(out, "not run yet: {}", report.not_run.join(", "));
    }
    out
}

pub fn markdown(report: &Report) -> String {
    let mut out = String::new();
    let title = if report.title.is_empty() { &report.name } else { &report.title };
    let seeds: Vec<String> = report.seeds.iter().map(u64::to_string).collect();
    let _ = writeln!(out, "# {title}\n");
    let _ = writeln!(out, "- command: `{}`", report.command);
    let _ = writeln!(out, "- date: {}, lynx-gpu {}", report.date, report.program_version);
    let _ = writeln!(out, "- device of the runs: {}; report written on {}", report.devices.join("; "), report.host);
    let _ = writeln!(
        out,
        "- seeds: {} (each sets the initial weights, dropout and the order of the data)\n",
        seeds.join(", ")
    );
    out.push_str(HOW_TO_READ);
    for row in &report.rows {
        let _ = writeln!(out, "\n## {}\n", heading(row));
        if !row.note.is_empty() {
            let _ = writeln!(out, "{}\n", row.note.trim());
        }
        let matched = row
            .matched
            .map_or(String::new(), |what| format!(", `model.ff_width` changed until {what} are the baseline's"));
        let _ = writeln!(
            out,
            "Base `{}`, {} steps on {} (SHA-256 {}), baseline {}{matched}.\n",
            row.base,
            row.steps,
            escaped(&row.data),
            &row.data_sha256[..12.min(row.data_sha256.len())],
            escaped(&row.baseline),
        );
        let _ = writeln!(out, "| {} |\n|---|{}", HEADINGS.join(" | "), "---:|".repeat(HEADINGS.len() - 1));
        for variant in &row.variants {
            let _ = writeln!(out, "| {} |", cells(variant).map(|cell| escaped(&cell)).join(" | "));
        }
        out.push('\n');
        shares(row).iter().for_each(|line| writeln!(out, "{}\n", escaped(line)).expect("text grows"));
        let _ = writeln!(out, "![validation loss by step]({})\n", row.plot);
        row.conclusions.iter().for_each(|line| writeln!(out, "- {}", escaped(line)).expect("text grows"));
        let settings: Vec<String> = row.variants.iter().map(settings).collect();
        let _ = writeln!(out, "\nSettings: {}.", settings.join("; "));
    }
    if !report.not_run.is_empty() {
        let _ = writeln!(out, "\nNot run yet: {}.", report.not_run.join(", "));
    }
    out
}

const HOW_TO_READ: &str = "\
Losses are in nats per token. *best loss* is the lowest validation loss of a run (the same validation batches for every variant), \
*final loss* the closing one over the whole split. Figures with \u{b1} are means over seeds with Student's 95 % interval; \
*difference* is the loss minus the baseline's, paired by seed, so that what the seed does to both is gone. Intervals are not widened for the number of \
comparisons: of twenty rows without any effect about one would show one. *tok/s* is training target tokens per second at the median step (forward, \
backward, update, data; no validation), the median over seeds, on the machine as it was, busy or idle. *planned bytes* is the memory plan of a training step.\n";

fn heading(row: &RowReport) -> String {
    match row.title.is_empty() {
        true => row.name.clone(),
        false => format!("{}: {}", row.name, row.title),
    }
}

fn cells(variant: &VariantReport) -> [String; 9] {
    let none = || "-".to_string();
    let mean = |interval: &Option<Interval>| interval.as_ref().map_or_else(none, |i| spread(i, false));
    let mut name = variant.name.clone();
    if variant.is_baseline {
        name += " (baseline)";
    }
    if variant.missing > 0 {
        let _ = write!(name, " [{} of {} runs]", variant.runs.len(), variant.runs.len() + variant.missing);
    }
    [
        name,
        variant.parameters.map_or_else(none, |n| n.to_string()),
        variant.ff_width.to_string(),
        mean(&variant.loss),
        variant.difference.as_ref().map_or_else(none, |i| spread(i, true)),
        mean(&variant.bits_per_byte),
        mean(&variant.final_loss),
        variant.tokens_per_second.map_or_else(none, |speed| format!("{speed:.0}")),
        variant.planned_bytes.map_or_else(none, size::show),
    ]
}

fn spread(interval: &Interval, signed: bool) -> String {
    let mean = if signed { format!("{:+.4}", interval.mean) } else { format!("{:.4}", interval.mean) };
    match interval.half_width {
        Some(half) => format!("{mean} \u{b1} {half:.4}"),
        None => format!("{mean} (n=1)"),
    }
}

/// What share of the mix the recurrence has, where a model says so.
fn shares(row: &RowReport) -> Vec<String> {
    let with = row.variants.iter().filter(|v| !v.shares.is_empty());
    let line = |v: &VariantReport| {
        let shares: Vec<String> = v.shares.iter().map(|share| format!("{share:.3}")).collect();
        format!("{}: share of the recurrence (sigmoid of alpha) by layer {}", v.name, shares.join(", "))
    };
    with.map(line).collect()
}

fn settings(variant: &VariantReport) -> String {
    let sets = if variant.set.is_empty() { "as the base".into() } else { format!("`{}`", variant.set.join("` `")) };
    format!("{}: {sets}", escaped(&variant.name))
}

/// A bar would end a cell of a table.
fn escaped(text: &str) -> String {
    text.replace('|', "\\|")
}
