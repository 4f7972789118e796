//! Writes the files of a run that grow while it goes on: metrics, TensorBoard events, samples, and the loss curve drawn from them.

use super::files;
use super::metrics::{self, EvalRecord, MetricsLog, Record};
use super::plot::{Scale, loss_svg};
use super::run_dir::RunDir;
use super::sources::SourceLoss;
use super::tensorboard::EventWriter;
use crate::config::Config;
use crate::error::Result;
use std::path::PathBuf;

const METRICS_FILE: &str = "metrics.jsonl";
const SAMPLES_FILE: &str = "samples.txt";
const PLOT_FILE: &str = "loss.svg";

/// Names of the run's files that the manifest fingerprints when it ends.
pub(super) const ARTEFACTS: [&str; 4] = ["config.toml", METRICS_FILE, SAMPLES_FILE, PLOT_FILE];

pub(super) struct Recorder {
    log: MetricsLog,
    events: Option<EventWriter>,
    records: Vec<Record>,
    samples_path: PathBuf,
    plot_path: PathBuf,
    title: String,
}

impl Recorder {
    /// Opens the files as they were at step `from`: what was written of later steps is taken back.
    pub fn open(run: &RunDir, config: &Config, from: u64) -> Result<Self> {
        let metrics_path = run.file(METRICS_FILE);
        let log = MetricsLog::open(&metrics_path, from)?;
        let records = metrics::read(&metrics_path)?;
        let mut events = None;
        if config.run.tensorboard {
            let mut writer = EventWriter::create(run.path(), (from > 0).then_some(from))?;
            writer.text(from, "config", &format!("```toml\n{}```\n", config.to_toml()))?;
            writer.flush()?;
            events = Some(writer);
        }
        let title = run.path().file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let (samples_path, plot_path) = (run.file(SAMPLES_FILE), run.file(PLOT_FILE));
        let recorder = Self { log, events, records, samples_path, plot_path, title };
        recorder.write_samples()?;
        Ok(recorder)
    }

    /// Appends a record to `metrics.jsonl`; TensorBoard gets steps only where `log` says so.
    pub fn record(&mut self, record: Record, log: bool) -> Result<()> {
        self.log.append(&record)?;
        if let Some(events) = self.events.as_mut().filter(|_| log) {
            match &record {
                Record::Train(r) => {
                    events.scalar(r.step, "loss/train", r.loss)?;
                    events.scalar(r.step, "lr", r.lr)?;
                    events.scalar(r.step, "grad_norm", r.grad_norm)?;
                    events.scalar(r.step, "tokens_per_second", r.tokens_per_second)?;
                }
                Record::Eval(r) => {
                    events.scalar(r.step, "loss/validation", r.loss)?;
                    events.scalar(r.step, "perplexity/validation", r.perplexity)?;
                }
                Record::Sources(r) => {
                    for source in &r.sources {
                        events.scalar(r.step, &format!("bits_per_byte/{}", source.name), source.bits_per_byte)?;
                    }
                }
                Record::Sample(r) => {
                    events.text(r.step, "sample", &format!("```text\n{}{}\n```\n", r.prompt, r.text))?
                }
            }
            events.flush()?;
        }
        let is_sample = matches!(record, Record::Sample(_));
        self.records.push(record);
        if is_sample { self.write_samples() } else { Ok(()) }
    }

    /// The validation recorded after `step`, if there was one.
    pub fn eval_at(&self, step: u64) -> Option<EvalRecord> {
        self.records.iter().rev().find_map(|record| match record {
            Record::Eval(eval) if eval.step == step => Some(*eval),
            _ => None,
        })
    }

    /// The losses by origin recorded after `step`.
    pub fn sources_at(&self, step: u64) -> Vec<SourceLoss> {
        let found = self.records.iter().rev().find_map(|record| match record {
            Record::Sources(r) if r.step == step => Some(r.sources.clone()),
            _ => None,
        });
        found.unwrap_or_default()
    }

    pub fn has_samples_at(&self, step: u64) -> bool {
        self.records.iter().any(|record| matches!(record, Record::Sample(sample) if sample.step == step))
    }

    /// Redraws `loss.svg`.
    pub fn draw(&self) -> Result<()> {
        files::write_atomic(&self.plot_path, loss_svg(&self.records, &self.title, Scale::Linear)?.as_bytes())
    }

    /// `samples.txt` is a view of the sample records, so going back to a checkpoint takes samples back too.
    fn write_samples(&self) -> Result<()> {
        let samples = self.records.iter().filter_map(|record| match record {
            Record::Sample(sample) => Some(sample.to_text()),
            _ => None,
        });
        let text: String = samples.collect();
        if text.is_empty() && !self.samples_path.exists() {
            return Ok(());
        }
        files::write_atomic(&self.samples_path, text.as_bytes())
    }
}
