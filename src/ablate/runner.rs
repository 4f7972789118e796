//! Runs of a study, one after another, each in a folder of its own: what is finished is read, what was interrupted goes on.

use super::statistics::quantile;
use super::table::{Job, Table};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::models::setup;
use crate::train::checkpoint::{ModelFiles, Which};
use crate::train::data::Prepared;
use crate::train::files;
use crate::train::metrics::{self, Record};
use crate::train::model::{TensorData, TrainModel};
use crate::train::observer::{Event, Observer, StepEvent};
use crate::train::outcome::Ending;
use crate::train::run_dir::RunDir;
use crate::train::signals::Control;
use crate::train::trainer::{Start, Training};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Written in a run's folder when it is finished.
const RESULT_FILE: &str = "result.json";
const SCHEMA_VERSION: u32 = 1;

/// Time of a training step: batches, forward, backward and update, no validation. In seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct StepTime {
    pub median: f64,
    /// First and third quartile.
    pub low: f64,
    pub high: f64,
    /// Steps measured; the first ones, which warm up, are left out.
    pub steps: usize,
}

/// What one run came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunResult {
    schema_version: u32,
    pub config_hash: String,
    pub corpus_sha256: String,
    pub tokenizer_sha256: String,
    pub seed: u64,
    pub steps: u64,
    /// Steps done: fewer than `steps` when it stopped early or failed.
    pub step: u64,
    pub device: String,
    pub parameters: u64,
    /// Of a training step on the device.
    pub planned_bytes: u64,
    /// Lowest validation loss of the run in nats per token; none when it failed.
    pub loss: Option<f64>,
    pub loss_step: Option<u64>,
    /// Closing validation over the whole split.
    pub final_loss: Option<f64>,
    pub bits_per_byte: Option<f64>,
    pub tokens_per_step: f64,
    pub step_time: Option<StepTime>,
    /// Seconds of training and validation, over all starts.
    pub seconds: f64,
    /// Share of the recurrence, sigmoid(alpha), in every layer that has one.
    pub shares: Vec<f64>,
    /// (step, validation loss).
    pub curve: Vec<(u64, f64)>,
    /// Why there is no loss.
    pub failure: Option<String>,
}

impl RunResult {
    pub fn tokens_per_second(&self) -> Option<f64> {
        self.step_time.map(|time| self.tokens_per_step / time.median)
    }
}

/// Is told how a study goes.
pub trait Watch {
    /// A run begins: its place among those to make, from 1.
    fn begin(&mut self, job: &Job, place: usize, total: usize) -> Result<()>;
    fn step(&mut self, job: &Job, event: &StepEvent) -> Result<()>;
    /// A run is there: just made, or read.
    fn done(&mut self, job: &Job, result: &RunResult, read: bool) -> Result<()>;
    fn message(&mut self, message: &str) -> Result<()>;
}

/// How the runs of a study ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Every run that was asked for is there.
    Complete,
    /// Somebody asked to stop; carries the exit code that says who.
    Interrupted { exit_code: usize },
}

/// Makes the runs of `rows` that `folder` does not have yet.
///
/// # Errors
/// `Error::Config` when a folder holds a run of another configuration or other data; those of training but `Error::Numerics`: a run
/// that diverges is a result.
pub fn run(
    table: &Table,
    rows: &[usize],
    folder: &Path,
    device: &Device,
    control: &Arc<Control>,
    watch: &mut dyn Watch,
) -> Result<Ended> {
    let jobs = table.order(rows);
    // A folder that cannot be used is found before hours are spent on the others.
    jobs.iter().try_for_each(|job| refuse_others(job, &table.data[job.data], &folder.join(&job.folder)))?;
    for (index, job) in jobs.iter().enumerate() {
        if let Some(exit_code) = control.stop_requested() {
            return Ok(Ended::Interrupted { exit_code });
        }
        let path = folder.join(&job.folder);
        if let Some(result) = read(job, &path)? {
            watch.done(job, &result, true)?;
            continue;
        }
        watch.begin(job, index + 1, jobs.len())?;
        match train(job, &table.data[job.data], &path, device, control, watch)? {
            Ok(result) => watch.done(job, &result, false)?,
            Err(exit_code) => return Ok(Ended::Interrupted { exit_code }),
        }
    }
    Ok(Ended::Complete)
}

/// The result in a run's folder, if it is one of this configuration.
///
/// # Errors
/// `Error::Io` and `Error::Config` for a file that cannot be read.
pub fn read(job: &Job, folder: &Path) -> Result<Option<RunResult>> {
    let path = folder.join(RESULT_FILE);
    if !path.is_file() {
        return Ok(None);
    }
    let result: RunResult = serde_json::from_str(&files::read_text(&path)?)
        .map_err(|e| Error::Config(format!("{}: not the result of a run: {e}; remove the folder", path.display())))?;
    if result.schema_version != SCHEMA_VERSION {
        return Ok(None);
    }
    // Settings that are newer than the run have their defaults there, so that its own hash is not the one to compare.
    let config = folder.join("config.toml");
    let config = crate::config::Config::parse(&files::read_text(&config)?, &config.to_string_lossy(), &[])?;
    Ok((config.hash() == job.hash).then_some(result))
}

/// A folder with another run in it: nothing is deleted, and nothing else is called by this run's name.
fn refuse_others(job: &Job, data: &Prepared, folder: &Path) -> Result<()> {
    if !folder.join("manifest.json").is_file() {
        return Ok(());
    }
    let fail = |why: String| {
        Err(Error::Config(format!(
            "{}: this folder holds {why}; choose another --out, or remove the folder to train again",
            folder.display()
        )))
    };
    let (run, old) = RunDir::open(folder, &[])?;
    if old.hash() != job.hash {
        let changes = changes(&old.to_toml(), &job.config.to_toml());
        return fail(format!("a run of another configuration ({changes})"));
    }
    let now = data.describe();
    for key in ["corpus_sha256", "tokenizer_sha256"] {
        let then = &run.manifest.data[key];
        if !then.is_null() && *then != now[key] {
            return fail(format!("a run on other data ({key} was {then}, is {})", now[key]));
        }
    }
    Ok(())
}

/// The settings in which two configurations differ, where a run is written left out.
fn changes(old: &str, new: &str) -> String {
    fn leaves(prefix: &str, value: &toml::Value, out: &mut std::collections::BTreeMap<String, String>) {
        match value {
            toml::Value::Table(table) => {
                for (key, value) in table {
                    leaves(&if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") }, value, out);
                }
            }
            value => {
                out.insert(prefix.into(), value.to_string());
            }
        }
    }
    let [old, new] = [old, new].map(|text| {
        let mut out = std::collections::BTreeMap::new();
        if let Ok(table) = toml::from_str::<toml::Table>(text) {
            leaves("", &toml::Value::Table(table), &mut out);
        }
        out
    });
    let keys: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let differing = keys.into_iter().filter(|key| !key.starts_with("run.") && old.get(*key) != new.get(*key));
    let say = |value: Option<&String>| value.cloned().unwrap_or_else(|| "absent".into());
    let all: Vec<String> =
        differing.map(|key| format!("{key} was {}, is {}", say(old.get(key)), say(new.get(key)))).collect();
    match all.len() {
        0..=3 => all.join("; "),
        n => format!("{}; and {} more", all[..3].join("; "), n - 3),
    }
}

/// Passes steps on and keeps their times.
struct Steps<'a> {
    job: &'a Job,
    watch: &'a mut dyn Watch,
    seconds: &'a mut Vec<f64>,
}

impl Observer for Steps<'_> {
    fn on(&mut self, event: &Event) -> Result<()> {
        match event {
            Event::Step(step) => {
                self.seconds.push(step.took.as_secs_f64());
                self.watch.step(self.job, step)
            }
            _ => Ok(()),
        }
    }
}

/// Trains, or goes on; the exit code of whoever asked to stop.
fn train(
    job: &Job,
    data: &Prepared,
    folder: &Path,
    device: &Device,
    control: &Arc<Control>,
    watch: &mut dyn Watch,
) -> Result<std::result::Result<RunResult, usize>> {
    let mut config = job.config.clone();
    config.run.root = folder.parent().unwrap_or(Path::new(".")).to_string_lossy().into_owned();
    config.run.name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let (mut run, start) = if folder.join("manifest.json").is_file() {
        (RunDir::open(folder, &[])?.0, Start::Resume(Which::Last))
    } else {
        (RunDir::create(&config, &job.base)?, Start::Fresh)
    };
    run.manifest.data = data.describe();
    let mut session = setup::training_session(&config, &data.tokenizer, device.clone())?;
    let planned = session.report();
    let (mut batches, mut validation) = (data.train_batches(&config)?, data.validation_batches(&config)?);
    let mut seconds = Vec::new();
    let training = Training {
        config: &config,
        model: &mut session,
        train: &mut batches,
        validation: &mut validation,
        run: &mut run,
        files: ModelFiles {
            config_json: serde_json::to_string_pretty(&config.model).unwrap_or_default(),
            tokenizer_json: data.tokenizer.to_huggingface_json(),
        },
        control: Arc::clone(control),
        observers: vec![Box::new(Steps { job, watch, seconds: &mut seconds })],
    };
    let mut result = RunResult {
        schema_version: SCHEMA_VERSION,
        config_hash: job.hash.clone(),
        corpus_sha256: data.text.fingerprint(),
        tokenizer_sha256: data.tokenizer.fingerprint(),
        seed: job.seed,
        steps: config.train.steps,
        step: 0,
        device: planned.device.clone(),
        parameters: planned.parameters as u64,
        planned_bytes: planned.total_bytes,
        loss: None,
        loss_step: None,
        final_loss: None,
        bits_per_byte: None,
        tokens_per_step: 0.0,
        step_time: None,
        seconds: 0.0,
        shares: vec![],
        curve: vec![],
        failure: None,
    };
    match training.run(start) {
        Ok(outcome) => {
            if let Ending::Interrupted { exit_code } = outcome.ending {
                return Ok(Err(exit_code));
            }
            (result.step, result.seconds) = (outcome.step, outcome.seconds);
            result.tokens_per_step = outcome.tokens as f64 / outcome.step.max(1) as f64;
            result.final_loss = outcome.validation.map(|v| v.loss);
            // A run without validations on its way has the closing one only.
            let best = outcome.best.map(|b| (b.loss, b.step));
            let best = best.or(outcome.validation.map(|v| (v.loss, v.step)));
            (result.loss, result.loss_step) = (best.map(|b| b.0), best.map(|b| b.1));
            result.shares = shares(&mut session)?;
        }
        Err(Error::Numerics(message)) => {
            watch.message(&message)?;
            result.failure = Some(message);
        }
        Err(error) => return Err(error),
    }
    result.bits_per_byte = result.loss.map(|loss| data.corpus.val.bits_per_byte(loss));
    result.step_time = step_time(&seconds);
    result.curve = curve(&run.file("metrics.jsonl"))?;
    if result.failure.is_some() {
        result.step = result.curve.last().map_or(0, |point| point.0);
    }
    let text = serde_json::to_string_pretty(&result).expect("a result is plain data");
    files::write_atomic(&run.file(RESULT_FILE), text.as_bytes())?;
    Ok(Ok(result))
}

/// Median and quartiles of the steps but the first tenth, 20 at most, in which caches and clocks warm up.
fn step_time(seconds: &[f64]) -> Option<StepTime> {
    let mut warm = seconds[(seconds.len() / 10).min(20)..].to_vec();
    warm.sort_by(f64::total_cmp);
    let at = |q| quantile(&warm, q);
    Some(StepTime { median: at(0.5)?, low: at(0.25)?, high: at(0.75)?, steps: warm.len() })
}

/// Validation losses of the trained model by step.
fn curve(metrics: &Path) -> Result<Vec<(u64, f64)>> {
    let mut curve: Vec<(u64, f64)> = Vec::new();
    for record in metrics::read(metrics)? {
        if let Record::Eval(eval) = record {
            // The closing validation repeats a step, over the whole split: the curve keeps to one extent.
            if eval.step > 0 && curve.last().is_none_or(|last| last.0 != eval.step) {
                curve.push((eval.step, eval.loss));
            }
        }
    }
    Ok(curve)
}

/// sigmoid(alpha) of the layers in their order.
fn shares(session: &mut impl TrainModel) -> Result<Vec<f64>> {
    let mut found: Vec<(usize, f64)> = Vec::new();
    for tensor in session.state()?.weights {
        let (Some(scope), TensorData::F32(values)) = (tensor.name.strip_suffix(".alpha"), &tensor.data) else {
            continue;
        };
        let layer = scope.split('.').find_map(|part| part.parse().ok()).unwrap_or(0);
        if let [alpha] = values[..] {
            found.push((layer, 1.0 / (1.0 + (-f64::from(alpha)).exp())));
        }
    }
    found.sort_by_key(|(layer, _)| *layer);
    Ok(found.into_iter().map(|(_, share)| share).collect())
}

/// Folders of the runs of `rows` that are finished, out of all: for a dry run.
pub fn finished(table: &Table, rows: &[usize], folder: &Path) -> Result<(usize, usize)> {
    let jobs = table.order(rows);
    let paths: Vec<PathBuf> = jobs.iter().map(|job| folder.join(&job.folder)).collect();
    let mut there = 0;
    for (job, path) in jobs.iter().zip(&paths) {
        there += usize::from(read(job, path)?.is_some());
    }
    Ok((there, jobs.len()))
}
