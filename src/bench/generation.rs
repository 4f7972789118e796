//! Tokens per second of a model with its weights: what `bench MODEL` prints, measured as llama.cpp's `llama-bench` does.

use super::throughput::{grid, megabytes, parameters};
use super::{Progress, Target, host};
use crate::infer::NextToken;
use crate::models::Session;
use crate::ops::case::SplitMix;
use crate::{Error, Result};
use serde::Serialize;
use std::time::Instant;

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// `all`, `cpu`, `gpu:N` or part of a device's name.
    pub device: String,
    /// Threads of the CPU; none: as many as it has cores.
    pub threads: Option<usize>,
    /// Tokens of the prompt, read at once from an empty cache; 0: not measured.
    pub prompt: usize,
    /// Tokens generated one by one from an empty cache; 0: not measured.
    pub generate: usize,
    /// Runs of each test, after one that warms up.
    pub repeats: usize,
}

/// One test on one device.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// `cpu` or the GPU's backend.
    pub backend: String,
    pub device: String,
    pub threads: Option<usize>,
    /// `ppN` (a prompt of N tokens) or `tgN` (N tokens one after another).
    pub test: String,
    /// Mean of the runs, and their standard deviation.
    pub tokens_per_second: f64,
    pub deviation: f64,
    /// Of every run.
    pub per_second: Vec<f64>,
    /// Tokens per second of processor time, all threads together: with one thread a measure that other programs disturb little. Empty
    /// where the system does not tell.
    pub per_cpu_second: Vec<f64>,
    /// Bytes of the weights on the device, and of keys and values.
    pub weight_bytes: u64,
    pub cache_bytes: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct Table {
    pub model: String,
    /// Bytes of the file, or of all files of a folder.
    pub file_bytes: u64,
    pub parameters: usize,
    pub rows: Vec<Row>,
    /// Most memory that the program had resident, from its start to the end of the measurement.
    pub peak_bytes: Option<u64>,
    pub warnings: Vec<String>,
}

/// Measures the model on every device that is asked for; `open` puts it on one. Devices that fail are warned of; none left is an error.
///
/// # Errors
/// A model that cannot be opened, or no device.
pub fn measure(
    (model, file_bytes): (&str, u64),
    options: &Options,
    open: &mut dyn FnMut(&Target) -> Result<Session>,
    progress: &mut dyn Progress,
) -> Result<Table> {
    let warnings = host::warnings(&host::describe());
    let mut table = Table { model: model.into(), file_bytes, parameters: 0, rows: vec![], peak_bytes: None, warnings };
    for mut target in Target::exactly(&options.device)? {
        if target.threads.is_some() {
            target.threads = options.threads.or(target.threads);
        }
        progress.step(&format!("{}: {model}", target.id));
        let _threads = target.set_threads();
        let mut one = || {
            let mut session = open(&target)?;
            table.parameters = session.parameters().iter().map(|p| p.elements()).sum();
            rows(&mut session, options, &target, progress)
        };
        match one() {
            Ok(rows) => table.rows.extend(rows),
            // What is wrong with a file or a setting is wrong everywhere.
            Err(e @ (Error::Config(_) | Error::Checkpoint(_) | Error::Io { .. })) => return Err(e),
            Err(e) => table.warnings.push(format!("{}: {e}", target.id)),
        }
    }
    table.peak_bytes = host::peak_bytes();
    match table.rows.is_empty() {
        true => Err(Error::Device(format!("no device could be measured: {}", table.warnings.join("; ")))),
        false => Ok(table),
    }
}

fn rows(session: &mut Session, options: &Options, target: &Target, progress: &mut dyn Progress) -> Result<Vec<Row>> {
    let vocabulary = session.model().vocab_size() as u64;
    let mut rng = SplitMix(1);
    let longest = options.prompt.max(options.generate);
    let ids: Vec<u32> = (0..longest).map(|_| (rng.next_u64() % vocabulary) as u32).collect();
    let (prompt, generate) = (options.prompt.min(session.context()), options.generate.min(session.context()));
    let mut rows = Vec::new();
    for (name, tokens, part) in [("pp", prompt, prompt.max(1)), ("tg", generate, 1)] {
        if tokens == 0 {
            continue;
        }
        progress.step(&format!("{}: {name}{tokens}", target.id));
        let mut run = |tokens: usize| -> Result<(f64, Option<f64>)> {
            session.restart()?;
            let (begun, cpu) = (Instant::now(), host::cpu_seconds());
            ids[..tokens].chunks(part).try_for_each(|ids| session.advance(ids).map(|_| ()))?;
            let wall = begun.elapsed().as_secs_f64();
            Ok((wall, cpu.zip(host::cpu_seconds()).map(|(from, to)| to - from)))
        };
        // Plans are made and caches warm: a whole prompt, some tokens.
        run(if part == 1 { tokens.min(8) } else { tokens })?;
        let times: Vec<(f64, Option<f64>)> = (0..options.repeats.max(1)).map(|_| run(tokens)).collect::<Result<_>>()?;
        let per_second: Vec<f64> = times.iter().map(|t| tokens as f64 / t.0).collect();
        let (mean, deviation) = moments(&per_second);
        rows.push(Row {
            backend: target.backend(),
            device: target.name.clone(),
            threads: target.threads,
            test: format!("{name}{tokens}"),
            tokens_per_second: mean,
            deviation,
            per_second,
            per_cpu_second: times.iter().filter_map(|t| t.1.filter(|s| *s > 0.0).map(|s| tokens as f64 / s)).collect(),
            weight_bytes: session.weight_bytes(),
            cache_bytes: session.cache_bytes(),
        });
    }
    Ok(rows)
}

/// Mean and standard deviation (that of a sample: n - 1).
fn moments(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    (mean, if values.len() > 1 { (squares / (n - 1.0)).sqrt() } else { 0.0 })
}

/// The rows as a Markdown table.
pub fn text(table: &Table) -> String {
    let row = |r: &Row| -> Vec<String> {
        vec![
            table.model.clone(),
            megabytes(r.weight_bytes),
            parameters(table.parameters),
            r.backend.clone(),
            r.threads.map_or(String::new(), |t| t.to_string()),
            megabytes(r.cache_bytes),
            r.test.clone(),
            format!("{:.2} \u{b1} {:.2}", r.tokens_per_second, r.deviation),
        ]
    };
    let titles =
        [("model", false), ("size", true), ("params", true), ("backend", false), ("threads", true), ("cache", true)];
    let titles: Vec<(&str, bool)> = titles.into_iter().chain([("test", false), ("t/s", true)]).collect();
    let mut out = grid(&titles, &table.rows.iter().map(row).collect::<Vec<_>>());
    let mut devices: Vec<&str> = table.rows.iter().map(|r| r.device.as_str()).collect();
    devices.dedup();
    out.push_str(&format!("\n{}\n", devices.join("\n")));
    if let Some(peak) = table.peak_bytes {
        out.push_str(&format!("file {}, peak memory {}\n", megabytes(table.file_bytes), megabytes(peak)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deviation_is_that_of_a_sample() {
        assert_eq!(moments(&[2.0, 4.0, 6.0]), (4.0, 2.0));
        assert_eq!(moments(&[3.0]), (3.0, 0.0));
    }

    #[test]
    fn the_table_tells_what_was_measured_and_the_memory_it_took() {
        let row = Row {
            backend: "cpu".into(),
            device: "a cpu, 2 threads".into(),
            threads: Some(2),
            test: "pp512".into(),
            tokens_per_second: 1234.5,
            deviation: 6.7,
            per_second: vec![1234.5],
            per_cpu_second: vec![],
            weight_bytes: 3 << 19,
            cache_bytes: 1 << 20,
        };
        let table = Table {
            model: "stories".into(),
            file_bytes: 2 << 20,
            parameters: 260_000,
            rows: vec![row],
            peak_bytes: Some(8 << 20),
            warnings: vec![],
        };
        let text = text(&table);
        for part in ["stories", "1.50 MiB", "260.0 k", "pp512", "1234.50 \u{b1} 6.70", "a cpu", "peak memory 8.00 MiB"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
