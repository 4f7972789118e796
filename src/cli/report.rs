//! Tables that several commands print.

use crate::data::ngram::BestNGram;
use crate::graph::Plan;
use crate::models::session::{PlanReport, lines};
use crate::train::outcome::Outcome;
use crate::train::run_dir::RunDir;
use crate::{Error, Result};
use serde_json::json;
use std::path::Path;

pub use crate::config::size::show as bytes;

/// 12,345,678
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// 1.23 G, 45.6 M
pub fn si(x: f64) -> String {
    let units = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];
    match units.iter().find(|(u, _)| x >= *u) {
        Some((u, name)) => format!("{:.3} {name}", x / u),
        None => format!("{x:.0} "),
    }
}

/// Writes JSON to stdout.
pub fn emit(value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Error::Failed(format!("cannot write JSON: {e}")))?;
    println!("{text}");
    Ok(())
}

/// The dry run: parameters, memory plan, cost of a step.
pub fn plan(report: &PlanReport, json: bool) -> Result<()> {
    if json {
        return emit(report);
    }
    println!("{} on {}\n", report.summary, report.device);
    let width = report.tensors.iter().map(|t| t.name.len()).max().unwrap_or(0).max(9);
    println!("{:width$}  {:>16}  {:>12}  decay", "parameter", "shape", "count");
    for t in &report.tensors {
        let shape = t.shape.iter().map(|d| d.to_string()).collect::<Vec<_>>().join(" x ");
        let decays = if t.decays { "yes" } else { "no" };
        println!("{:width$}  {shape:>16}  {:>12}  {decays}", t.name, grouped(t.parameters as u64));
    }
    println!("{:width$}  {:>16}  {:>12}\n", "total", "", grouped(report.parameters as u64));
    println!("memory plan ({})", report.precision);
    let full = report.memory_f32.as_ref().map(lines);
    for (i, (name, n)) in report.memory_lines().into_iter().enumerate() {
        let beside = full.as_ref().map_or(String::new(), |f| format!("   in f32 {:>12}", bytes(f[i].1)));
        println!("  {name:<22} {:>12}  {:>16}{beside}", bytes(n), grouped(n));
    }
    match report.available_bytes {
        Some(have) => {
            let share = 100.0 * report.total_bytes as f64 / have as f64;
            println!("  {:<22} {:>12}  ({share:.2} % would be used)", "device has free", bytes(have));
            if report.total_bytes > have {
                println!("  it does not fit: use a smaller batch (--set train.batch_size=N) or context");
            }
        }
        None => println!("  {:<22} {:>12}", "device has free", "not told"),
    }
    let c = &report.cost;
    println!(
        "\none step: {} tokens, {}FLOP, {}B moved ({:.1} FLOP/B), {} kernels",
        report.tokens_per_step,
        si(c.flops),
        si(c.bytes()),
        c.flops / c.bytes().max(1.0),
        report.nodes
    );
    if let Some(recomputed) = &report.recomputed {
        println!("recomputed: {}", recomputed.line());
        for (name, count) in &recomputed.nodes {
            println!("  {count:>4} x {name}");
        }
    }
    for p in &report.passes {
        println!("passes: {} dead, {} common, {} fused, {} absorbed", p.dead, p.common, p.fused, p.absorbed);
    }
    if !report.forms.is_empty() {
        println!("forms: {}", report.forms.join(", "));
    }
    for line in &report.split {
        println!("split: {line}");
    }
    for line in &report.fallback {
        println!("runs on the CPU: {line}");
    }
    Ok(())
}

/// The end of a training run, against the best n-gram on the same split.
pub fn outcome(outcome: &Outcome, baseline: &BestNGram, run: &RunDir, json: bool) -> Result<()> {
    let best = outcome.best.map(|b| b.loss);
    let last = outcome.validation.map(|v| v.loss);
    let loss = match (best, last) {
        (Some(b), Some(l)) => Some(b.min(l)),
        (b, l) => b.or(l),
    };
    let perplexity = loss.map(f64::exp);
    let wins = perplexity.map(|p| p < baseline.perplexity);
    if json {
        // One line, after the lines of the steps: standard output is JSON lines throughout.
        let line = json!({
            "kind": "outcome",
            "outcome": outcome,
            "best_validation_loss": loss,
            "best_validation_perplexity": perplexity,
            "ngram": baseline,
            "beats_ngram": wins,
            "run": run.path(),
        });
        println!("{line}");
        return Ok(());
    }
    println!("{}", outcome.summary());
    if let Some(p) = perplexity {
        let verdict = if p < baseline.perplexity { "the model wins" } else { "the n-gram wins" };
        let (n, q) = (baseline.n, baseline.perplexity);
        println!("perplexity {p:.3} against {q:.3} of the best n-gram (n = {n}) on the same split: {verdict}");
    }
    let samples = std::fs::read_to_string(run.file("samples.txt")).unwrap_or_default();
    if let Some(last) = samples.trim_end().rsplit("\n\n").next().filter(|s| !s.trim().is_empty()) {
        println!("\nsample\n{}\n", last.trim());
    }
    println!("use it: lynx-gpu generate {}", run.path().display());
    Ok(())
}

/// Writes the graphs of a training step as DOT or JSON, by the file's extension.
pub fn write_graph(plans: &[Plan], path: &Path) -> Result<()> {
    let text = match path.extension().and_then(|e| e.to_str()) {
        Some("dot") => plans.iter().map(|p| p.graph.to_dot()).collect::<Vec<_>>().join("\n"),
        Some("json") => {
            let graphs: Vec<_> = plans.iter().map(|p| p.graph.to_json()).collect();
            serde_json::to_string_pretty(&graphs).map_err(|e| Error::Failed(format!("cannot write JSON: {e}")))?
        }
        _ => return Err(Error::Config(format!("{}: a graph is written as .dot or .json", path.display()))),
    };
    crate::train::files::write_atomic(path, text.as_bytes())?;
    eprintln!("graph: {}", path.display());
    Ok(())
}
