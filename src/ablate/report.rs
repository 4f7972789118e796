//! What a study came to: means over seeds, differences to the baseline, and what can be concluded from them by rule.

use super::runner::{self, RunResult};
use super::statistics::{Interval, quantile};
use super::study::{Row, slug};
use super::table::Table;
use crate::error::Result;
use serde::Serialize;
use std::path::Path;

#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub schema_version: u32,
    pub name: String,
    pub title: String,
    pub program_version: String,
    /// With names of files where it has absolute paths.
    pub command: String,
    /// UTC, RFC 3339.
    pub date: String,
    /// Of the machine that writes the report.
    pub host: String,
    /// Where the runs were made, in the words of each.
    pub devices: Vec<String>,
    pub seeds: Vec<u64>,
    pub rows: Vec<RowReport>,
    /// Rows in which nothing but perhaps the baseline is finished.
    pub not_run: Vec<String>,
}

#[derive(Debug, Clone, Serialize)]
pub struct RowReport {
    pub name: String,
    pub title: String,
    pub note: String,
    pub base: String,
    /// Name of the file or folder, or of a built-in corpus.
    pub data: String,
    pub data_sha256: String,
    pub steps: u64,
    pub baseline: String,
    /// "parameters", "FLOPs of a step" or none.
    pub matched: Option<&'static str>,
    pub variants: Vec<VariantReport>,
    pub conclusions: Vec<String>,
    /// Name of the picture beside the report.
    pub plot: String,
}

#[derive(Debug, Clone, Serialize)]
pub struct VariantReport {
    pub name: String,
    pub is_baseline: bool,
    pub set: Vec<String>,
    pub ff_width: usize,
    pub parameters: Option<u64>,
    pub planned_bytes: Option<u64>,
    /// Lowest validation loss in nats per token.
    pub loss: Option<Interval>,
    pub final_loss: Option<Interval>,
    pub bits_per_byte: Option<Interval>,
    /// Loss minus the baseline's, paired by seed.
    pub difference: Option<Interval>,
    /// Target tokens per second at the median step; the median over seeds.
    pub tokens_per_second: Option<f64>,
    /// sigmoid(alpha) by layer, the mean over seeds.
    pub shares: Vec<f64>,
    /// Mean validation loss over the seeds that have the step.
    pub curve: Vec<(u64, f64)>,
    pub runs: Vec<RunLine>,
    /// Runs that are not there yet.
    pub missing: usize,
}

/// One run, as it counts.
#[derive(Debug, Clone, Serialize)]
pub struct RunLine {
    pub seed: u64,
    pub folder: String,
    pub loss: Option<f64>,
    pub final_loss: Option<f64>,
    pub steps_done: u64,
    pub seconds: f64,
    pub tokens_per_second: Option<f64>,
    pub failure: Option<String>,
}

impl Report {
    /// Reads the results that `folder` has; `command` is the command line by words.
    pub fn new(table: &Table, folder: &Path, command: &[String]) -> Result<Self> {
        let study = &table.study;
        let (mut rows, mut not_run, mut devices) = (Vec::new(), Vec::new(), Vec::new());
        for (r, row) in study.rows.iter().enumerate() {
            let mut variants = Vec::new();
            for v in 0..row.variants.len() {
                variants.push(results(table, r, v, folder)?);
            }
            // A baseline that another row has run too is nothing to report of this one.
            let compared =
                variants.iter().enumerate().any(|(v, (results, _))| v != row.baseline_index() && !results.is_empty());
            if !compared {
                not_run.push(row.name.clone());
                continue;
            }
            for (result, _) in variants.iter().flat_map(|(results, _)| results) {
                if !devices.contains(&result.device) {
                    devices.push(result.device.clone());
                }
            }
            rows.push(row_report(table, r, variants));
        }
        let host = crate::device::host::cpu();
        Ok(Report {
            schema_version: 1,
            name: study.name.clone(),
            title: study.title.clone(),
            program_version: env!("CARGO_PKG_VERSION").into(),
            command: command.iter().map(|word| portable(word)).collect::<Vec<_>>().join(" "),
            date: crate::train::manifest::now(),
            host: format!("{}, {} cores, {}", host.model, host.cores, crate::device::host::system()),
            devices,
            seeds: study.seeds.clone(),
            rows,
            not_run,
        })
    }
}

type Results = (Vec<(RunResult, String)>, usize);

/// The finished runs of a variant with their folders, and how many are missing.
fn results(table: &Table, row: usize, variant: usize, folder: &Path) -> Result<Results> {
    let (mut there, mut missing) = (Vec::new(), 0);
    for job in table.jobs.iter().filter(|job| job.row == row && job.variant == variant) {
        match runner::read(job, &folder.join(&job.folder))? {
            Some(result) => there.push((result, job.folder.display().to_string())),
            None => missing += 1,
        }
    }
    Ok((there, missing))
}

fn by_seed(results: &[(RunResult, String)]) -> Vec<(u64, f64)> {
    results.iter().filter_map(|(r, _)| Some((r.seed, r.loss?))).collect()
}

fn row_report(table: &Table, r: usize, all: Vec<Results>) -> RowReport {
    let row = &table.study.rows[r];
    let baseline = row.baseline_index();
    let reference = by_seed(&all[baseline].0);
    let mut variants = Vec::new();
    for (v, (results, missing)) in all.into_iter().enumerate() {
        let interval = |of: fn(&RunResult) -> Option<f64>| {
            Interval::of(&results.iter().filter_map(|(r, _)| of(r)).collect::<Vec<f64>>())
        };
        let mut speeds: Vec<f64> = results.iter().filter_map(|(r, _)| r.tokens_per_second()).collect();
        speeds.sort_by(f64::total_cmp);
        let lines = results.iter().map(|(r, folder)| RunLine {
            seed: r.seed,
            folder: folder.clone(),
            loss: r.loss,
            final_loss: r.final_loss,
            steps_done: r.step,
            seconds: r.seconds,
            tokens_per_second: r.tokens_per_second(),
            failure: r.failure.clone(),
        });
        variants.push(VariantReport {
            name: row.variants[v].name.clone(),
            is_baseline: v == baseline,
            set: row.variants[v].set.iter().map(|set| portable(set)).collect(),
            ff_width: table.first(r, v).config.model.ff_width(),
            parameters: results.first().map(|(r, _)| r.parameters),
            planned_bytes: results.first().map(|(r, _)| r.planned_bytes),
            loss: interval(|r| r.loss),
            final_loss: interval(|r| r.final_loss),
            bits_per_byte: interval(|r| r.bits_per_byte),
            difference: if v == baseline { None } else { Interval::of_difference(&reference, &by_seed(&results)) },
            tokens_per_second: quantile(&speeds, 0.5),
            shares: mean_of(&results.iter().map(|(r, _)| r.shares.as_slice()).collect::<Vec<_>>()),
            curve: mean_curve(&results),
            runs: lines.collect(),
            missing,
        });
    }
    let first = table.first(r, 0);
    let data = &table.data[first.data];
    let conclusions = variants.iter().map(|variant| conclusion(row, variant, &variants[baseline])).collect();
    RowReport {
        name: row.name.clone(),
        title: row.title.clone(),
        note: row.note.clone(),
        base: portable(&first.base),
        data: Path::new(&data.text.name)
            .file_name()
            .map_or(data.text.name.clone(), |n| n.to_string_lossy().into_owned()),
        data_sha256: data.text.fingerprint(),
        steps: first.config.train.steps,
        baseline: row.baseline.clone(),
        matched: match (row.match_parameters, row.match_flops) {
            (true, _) => Some("parameters"),
            (_, true) => Some("FLOPs of a training step"),
            _ => None,
        },
        variants,
        conclusions,
        plot: format!("{}.svg", slug(&row.name)),
    }
}

/// The mean of each place over the lists that have it.
fn mean_of(lists: &[&[f64]]) -> Vec<f64> {
    let longest = lists.iter().map(|list| list.len()).max().unwrap_or(0);
    let mean = |place: usize| {
        let values: Vec<f64> = lists.iter().filter_map(|list| list.get(place).copied()).collect();
        values.iter().sum::<f64>() / values.len() as f64
    };
    (0..longest).map(mean).collect()
}

fn mean_curve(results: &[(RunResult, String)]) -> Vec<(u64, f64)> {
    let mut steps: std::collections::BTreeMap<u64, Vec<f64>> = Default::default();
    for &(step, loss) in results.iter().flat_map(|(r, _)| &r.curve) {
        steps.entry(step).or_default().push(loss);
    }
    steps.into_iter().map(|(step, losses)| (step, losses.iter().sum::<f64>() / losses.len() as f64)).collect()
}

/// A word of a command line, a setting or a place of data with the file's name where it has an absolute path, which means nothing on
/// another machine: `--data=/home/a/text.txt` is `--data=text.txt`.
pub fn portable(word: &str) -> String {
    // The path, if there is one, stands after the last sign of equality, if there is one.
    let (head, path) = word.rsplit_once('=').map_or(("", word), |(head, path)| (&word[..head.len() + 1], path));
    match Path::new(path).file_name() {
        Some(name) if Path::new(path).is_absolute() => format!("{head}{}", name.to_string_lossy()),
        _ => word.to_owned(),
    }
}

/// One sentence about a variant, by rule: better or worse only where the paired interval excludes zero.
pub fn conclusion(row: &Row, variant: &VariantReport, baseline: &VariantReport) -> String {
    let name = &variant.name;
    let failed = variant.runs.iter().filter(|run| run.failure.is_some()).count();
    let diverged = match failed {
        0 => String::new(),
        n => format!(" {n} of its {} runs diverged and count nowhere else.", variant.runs.len()),
    };
    let Some(loss) = variant.loss else {
        let why = if failed > 0 { "every run diverged" } else { "not run yet" };
        return format!("{name}: {why}.");
    };
    if variant.is_baseline {
        return format!("{name} is the baseline, {}.{diverged}", described(&loss, "nats per token"));
    }
    let Some(difference) = variant.difference else {
        return format!(
            "{name}: no seed in common with the baseline {}, so nothing can be said.{diverged}",
            row.baseline
        );
    };
    let against = &row.baseline;
    let verdict = match (difference.half_width, difference.includes_zero()) {
        _ if difference.mean == 0.0 && difference.half_width.is_none_or(|half| half == 0.0) => {
            format!("{name}: the same numbers as {against}")
        }
        (Some(half), Some(false)) => {
            let word = if difference.mean < 0.0 { "better" } else { "worse" };
            format!(
                "{name} is {word} than {against} by {:.4} nats per token (95 % interval {:.4} to {:.4}, {} seeds)",
                difference.mean.abs(),
                difference.mean.abs() - half,
                difference.mean.abs() + half,
                difference.n
            )
        }
        (Some(half), _) => format!(
            "{name}: no difference from {against} is shown: the interval of the difference, {:+.4} to {:+.4} over {} seeds, includes 0",
            difference.mean - half,
            difference.mean + half,
            difference.n
        ),
        (None, _) => format!(
            "{name}: {:+.4} nats per token against {against} with one seed, which has no interval and shows nothing",
            difference.mean
        ),
    };
    let size = match (variant.parameters, baseline.parameters) {
        (Some(own), Some(theirs)) if (own as f64 / theirs as f64 - 1.0).abs() > super::table::TOLERANCE => {
            format!(" It has {:+.1} % parameters.", 100.0 * (own as f64 / theirs as f64 - 1.0))
        }
        _ => String::new(),
    };
    format!("{verdict}.{size}{diverged}")
}

fn described(interval: &Interval, unit: &str) -> String {
    match interval.half_width {
        Some(half) => format!("{:.4} \u{b1} {half:.4} {unit} over {} seeds", interval.mean, interval.n),
        None => format!("{:.4} {unit} with one seed (no interval)", interval.mean),
    }
}

#[cfg(test)]
mod tests {
    use super::portable;

    #[cfg(unix)]
    #[test]
    fn absolute_paths_become_names_and_all_else_stays() {
        for (word, want) in [
            ("/home/a/text.txt", "text.txt"),
            ("--data=/home/a/my text.txt", "--data=my text.txt"),
            ("data.source=/home/a/mix/", "data.source=mix"),
            ("books/text.txt", "books/text.txt"),
            ("--set", "--set"),
            ("schedule.lr=2e-3", "schedule.lr=2e-3"),
            ("gpu:0", "gpu:0"),
            ("/", "/"),
            ("", ""),
        ] {
            assert_eq!(portable(word), want);
        }
    }
}
