//! A sweep in words and tables.

use super::sweep::{Point, Sensitivity, Timing};
use crate::evals::perplexity::Perplexity;
use serde::Serialize;
use std::fmt::Write;

/// All that a sweep found, and what is needed to do it again.
#[derive(Clone, Debug, Serialize)]
pub struct Sweep {
    /// lynx-gpu and its version.
    pub program: String,
    /// The command line.
    pub command: String,
    pub date: String,
    pub model: String,
    pub summary: String,
    pub device: String,
    pub threads: usize,
    /// Name and SHA-256 of the text that was scored.
    pub text: String,
    pub text_sha256: String,
    /// What calibration read.
    pub calibration: Option<String>,
    pub timing: Timing,
    pub points: Vec<Point>,
    pub sensitivity: Option<Sensitivities>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Sensitivities {
    pub scheme: String,
    pub base: Perplexity,
    pub rows: Vec<Sensitivity>,
}

/// 1,234,567
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let cut = |(i, c): (usize, char)| {
        let comma = i > 0 && (digits.len() - i).is_multiple_of(3);
        if comma { format!(",{c}") } else { c.to_string() }
    };
    digits.chars().enumerate().map(cut).collect()
}

/// The schemes as a Markdown table.
pub fn table(points: &[Point]) -> String {
    let mut out = String::from(
        "| scheme | perplexity | change | bytes | of f32 | tokens/s | speed | front |\n|---|---:|---:|---:|---:|---:|---:|---|\n",
    );
    let whole = points.first().map_or(1, |p| p.bytes).max(1) as f64;
    for p in points {
        let _ = writeln!(
            out,
            "| {} | {:.4} +/- {:.4} | {:+.2} % | {} | {:.3} | {:.0} | {:.2} | {} |",
            p.scheme,
            p.perplexity.perplexity,
            p.perplexity.error,
            100.0 * p.change,
            grouped(p.bytes),
            p.bytes as f64 / whole,
            p.tokens_per_second,
            p.speed,
            if p.on_front { "yes" } else { "" }
        );
    }
    out
}

/// Parts as a Markdown table.
pub fn sensitivity_table(found: &Sensitivities) -> String {
    let mut out = String::from("| part | numbers | perplexity | change |\n|---|---:|---:|---:|\n");
    for row in &found.rows {
        let (numbers, change) = (grouped(row.numbers), 100.0 * row.change);
        let _ = writeln!(out, "| {} | {numbers} | {:.4} | {change:+.3} % |", row.part, row.perplexity);
    }
    out
}

/// `REPORT.md`, beside which the pictures lie.
pub fn markdown(s: &Sweep) -> String {
    let mut out = format!("# {} under {} schemes\n\n", s.model, s.points.len());
    let _ = writeln!(out, "{}, on {} ({} threads), {}, {}.\n", s.summary, s.device, s.threads, s.program, s.date);
    let _ = writeln!(out, "    {}\n", s.command);
    if let Some(first) = s.points.first() {
        let p = &first.perplexity;
        let protocol = if p.lines { "of every line as a text of its own" } else { "by llama.cpp's protocol" };
        let _ = writeln!(out, "Perplexity {protocol}: {} (SHA-256 {}), {}.", s.text, s.text_sha256, p.extent());
    }
    match &s.calibration {
        Some(read) => {
            let _ = writeln!(out, "Schemes that learn (gptq, awq) have read {read}; all others round to the nearest.");
        }
        None => out.push_str("No scheme has learned from a text.\n"),
    }
    let Timing { rounds, prompt, tokens } = s.timing;
    let _ = writeln!(
        out,
        "Tokens per second: {tokens} decoded one by one after {prompt}, all schemes in turn, medians of {rounds} rounds; \"speed\" is the median ratio to f32 in the same round.\nA scheme is on the front if no other is smaller without a higher perplexity. +/- is the standard error of the mean over tokens, which all schemes share; differences between schemes on the same tokens are far surer.\n"
    );
    out.push_str(&table(&s.points));
    out.push_str("\n![perplexity against bytes](perplexity.svg)\n\n![tokens per second against bytes](speed.svg)\n");
    let notes: Vec<String> =
        s.points.iter().flat_map(|p| p.notes.iter().map(move |n| format!("- {}: {n}\n", p.scheme))).collect();
    if !notes.is_empty() {
        let _ = write!(out, "\n## Notes\n\n{}", notes.concat());
    }
    if let Some(found) = &s.sensitivity {
        let base = found.base.perplexity;
        let _ = write!(
            out,
            "\n## One part at a time\n\nOnly this part is stored as {}, the rest as it was; perplexity without any is {base:.4}.\n\n{}",
            found.scheme,
            sensitivity_table(found)
        );
    }
    out
}
