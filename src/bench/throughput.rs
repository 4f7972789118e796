//! Tokens per second of a model on devices: what `bench` prints without `--roofline`, in the manner of llama.cpp's `llama-bench`.

use super::Progress;
use super::report::Stat;
use super::steps::{Model, Task};
use super::targets::Target;
use super::timing::Effort;
use crate::{Error, Result};
use serde::Serialize;
use std::fmt::Write;

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Preset or file.
    pub config: String,
    /// Changes of the configuration, as `--set` has them.
    pub sets: Vec<String>,
    pub device: String,
    pub quick: bool,
    /// Prompt tokens; at most the context, or any number where a state is carried.
    pub prompt: usize,
    /// Tokens to generate.
    pub generate: usize,
}

/// One line of the table.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub model: String,
    /// Bytes of the weights.
    pub size: usize,
    pub parameters: usize,
    /// `cpu` or the GPU's backend.
    pub backend: String,
    pub device: String,
    pub threads: Option<usize>,
    /// `ppN` (a prompt of N tokens), `tgN` (N tokens generated), `evalBxT` or `trainBxT` (B sequences of T tokens).
    pub test: String,
    pub tokens_per_second: f64,
    /// Standard deviation that the quartiles of a normal distribution have.
    pub deviation: f64,
    /// Of one run.
    pub seconds: Stat,
}

#[derive(Clone, Debug, Serialize)]
pub struct Table {
    pub rows: Vec<Row>,
    pub warnings: Vec<String>,
}

/// Measures the model on every device that is asked for. Devices that fail are warned of; none left is an error.
pub fn measure(options: &Options, progress: &mut dyn Progress) -> Result<Table> {
    let mut table = Table { rows: vec![], warnings: super::host::warnings(&super::host::describe()) };
    for target in Target::exactly(&options.device)? {
        progress.step(&format!("{}: {}", target.id, options.config));
        match rows(options, &target, progress) {
            Ok(rows) => table.rows.extend(rows),
            // A wrong configuration is wrong everywhere.
            Err(e @ (Error::Config(_) | Error::Io { .. })) => return Err(e),
            Err(e) => table.warnings.push(format!("{}: {e}", target.id)),
        }
    }
    match table.rows.is_empty() {
        true => Err(Error::Device(format!("no device could be measured: {}", table.warnings.join("; ")))),
        false => Ok(table),
    }
}

fn rows(options: &Options, target: &Target, progress: &mut dyn Progress) -> Result<Vec<Row>> {
    let _threads = target.set_threads();
    let mut model = Model::new(&options.config, &options.sets, &target.device)?;
    let context = model.context();
    let reach = model.reach();
    let (prompt, generate) = (options.prompt.clamp(1, reach), options.generate.clamp(1, context));
    let seconds = if options.quick { 0.5 } else { 4.0 };
    let effort = Effort { sample_seconds: seconds / 40.0, samples: 25, seconds };
    let mut rows = Vec::new();
    for task in [Task::Prefill(prompt), Task::Decode(generate), Task::Evaluate, Task::Train] {
        progress.step(&format!("{}: {}", target.id, model.case(task)));
        let time = model.time(task, &effort)?;
        let tokens = model.tokens(task) as f64;
        let (batch, steps) = (model.config.train.batch_size, model.config.train.accumulation);
        let sequences = if task == Task::Train { batch * steps } else { batch };
        let rate = time.rate(tokens);
        rows.push(Row {
            model: model.name.clone(),
            size: model.weight_bytes(),
            parameters: model.parameters(),
            backend: target.backend(),
            device: target.name.clone(),
            threads: target.threads,
            test: match task {
                Task::Prefill(n) => format!("pp{n}"),
                Task::Decode(n) => format!("tg{n}"),
                Task::Evaluate => format!("eval{sequences}x{context}"),
                Task::Train => format!("train{sequences}x{context}"),
            },
            tokens_per_second: rate.median,
            // Quartiles of a normal distribution are 1.349 standard deviations apart.
            deviation: (rate.high - rate.low) / 1.349,
            seconds: time,
        });
    }
    Ok(rows)
}

pub(super) fn megabytes(bytes: u64) -> String {
    format!("{:.2} MiB", bytes as f64 / (1 << 20) as f64)
}

pub(super) fn parameters(count: usize) -> String {
    match count {
        n if n >= 1_000_000 => format!("{:.2} M", n as f64 / 1e6),
        n => format!("{:.1} k", n as f64 / 1e3),
    }
}

/// A Markdown table; each title says whether its column is of numbers, which stand to the right.
pub(super) fn grid(titles: &[(&str, bool)], rows: &[Vec<String>]) -> String {
    let width = |c: usize| rows.iter().map(|r| r[c].chars().count()).chain([titles[c].0.len()]).max().unwrap_or(0);
    let widths: Vec<usize> = (0..titles.len()).map(width).collect();
    let mut out = String::new();
    let mut line = |cells: &[String]| {
        for (c, cell) in cells.iter().enumerate() {
            let w = widths[c];
            let _ = if titles[c].1 { write!(out, "| {cell:>w$} ") } else { write!(out, "| {cell:<w$} ") };
        }
        out.push_str("|\n");
    };
    line(&titles.iter().map(|t| t.0.to_string()).collect::<Vec<_>>());
    let rule = |(t, w): (&(&str, bool), &usize)| if t.1 { format!("{}:", "-".repeat(w - 1)) } else { "-".repeat(*w) };
    line(&titles.iter().zip(&widths).map(rule).collect::<Vec<_>>());
    rows.iter().for_each(|r| line(r));
    out
}

/// The rows as a Markdown table.
pub fn text(table: &Table) -> String {
    let row = |r: &Row| -> Vec<String> {
        vec![
            r.model.clone(),
            megabytes(r.size as u64),
            parameters(r.parameters),
            r.backend.clone(),
            r.threads.map_or(String::new(), |t| t.to_string()),
            r.test.clone(),
            format!("{:.1} \u{b1} {:.1}", r.tokens_per_second, r.deviation),
            format!("{:.2}", r.seconds.median * 1e3),
        ]
    };
    let titles = [("model", false), ("size", true), ("params", true), ("backend", false)];
    let more = [("threads", true), ("test", false), ("t/s", true), ("ms/run", true)];
    let titles: Vec<(&str, bool)> = titles.into_iter().chain(more).collect();
    let mut out = grid(&titles, &table.rows.iter().map(row).collect::<Vec<_>>());
    let mut devices: Vec<&str> = table.rows.iter().map(|r| r.device.as_str()).collect();
    devices.dedup();
    let _ = writeln!(out, "\n{}", devices.join("\n"));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_row_for_every_test_and_lines_of_one_width() {
        let row = |test: &str, rate: f64| Row {
            model: "minigpt".into(),
            size: 4 << 20,
            parameters: 1_000_000,
            backend: "cpu".into(),
            device: "a cpu, 2 threads".into(),
            threads: Some(2),
            test: test.into(),
            tokens_per_second: rate,
            deviation: 1.0,
            seconds: Stat::of(&[0.25]),
        };
        let text = text(&Table { rows: vec![row("pp32", 1e6), row("train8x32", 5.0)], warnings: vec![] });
        let lines: Vec<&str> = text.lines().take(4).collect();
        assert!(lines.iter().all(|l| l.chars().count() == lines[0].chars().count()), "{text}");
        assert!(lines[2].contains("pp32") && lines[3].contains("5.0 \u{b1} 1.0") && text.contains("a cpu"), "{text}");
    }
}
