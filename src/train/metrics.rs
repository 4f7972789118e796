//! `metrics.jsonl`: one JSON object per line and measurement, appended while the run goes on.

use super::files;
use super::sources::SourceLoss;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// One line of `metrics.jsonl`, told apart by `kind`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Record {
    /// One optimiser step.
    Train(TrainRecord),
    /// One pass over validation data.
    Eval(EvalRecord),
    /// The same pass, by the origins of a mix.
    Sources(SourcesRecord),
    /// A piece of generated text.
    Sample(SampleRecord),
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TrainRecord {
    /// Step, from 1.
    pub step: u64,
    /// Mean loss of the step's targets before the update, nats per token.
    pub loss: f64,
    pub lr: f64,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// The gradient was scaled down.
    pub clipped: bool,
    /// Target tokens seen since step 1.
    pub tokens: u64,
    pub tokens_per_second: f64,
    /// Seconds of training so far, over all starts of the run.
    pub seconds: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EvalRecord {
    /// Steps done.
    pub step: u64,
    /// Mean validation loss, nats per token.
    pub loss: f64,
    /// exp(loss).
    pub perplexity: f64,
    /// Tokens the loss is taken over.
    pub tokens: u64,
    /// The whole split was used, not its first `train.eval_batches` batches or, at step 0, its first sequences.
    pub whole_split: bool,
    pub seconds: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SourcesRecord {
    /// Steps done.
    pub step: u64,
    /// Of each origin.
    pub sources: Vec<SourceLoss>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SampleRecord {
    pub step: u64,
    pub prompt: String,
    pub text: String,
    pub temperature: f64,
}

impl Record {
    pub fn step(&self) -> u64 {
        match self {
            Record::Train(r) => r.step,
            Record::Eval(r) => r.step,
            Record::Sources(r) => r.step,
            Record::Sample(r) => r.step,
        }
    }
}

impl SampleRecord {
    /// The sample as `samples.txt` shows it.
    pub fn to_text(&self) -> String {
        format!(
            "--- step {}, temperature {}, prompt {:?}\n{}{}\n\n",
            self.step, self.temperature, self.prompt, self.prompt, self.text
        )
    }
}

/// The open file.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: File,
}

impl MetricsLog {
    /// Opens `path` for appending. Lines of steps after `keep_to`, and a line a crash cut short, are dropped first,
    /// so that a resumed run's file reads like an uninterrupted one's.
    pub fn open(path: &Path, keep_to: u64) -> Result<Self> {
        if path.exists() {
            let text = files::read_text(path)?;
            let keeps = |line: &&str| serde_json::from_str::<Record>(line).is_ok_and(|record| record.step() <= keep_to);
            let kept: String = text.lines().filter(keeps).flat_map(|line| [line, "\n"]).collect();
            if kept != text {
                files::write_atomic(path, kept.as_bytes())?;
            }
        }
        let file = File::options().append(true).create(true).open(path).map_err(|e| Error::io(path, e))?;
        Ok(Self { path: path.to_path_buf(), file })
    }

    /// Writes one line in a single call, so that a reader never sees half of it while the run is alive.
    pub fn append(&mut self, record: &Record) -> Result<()> {
        let mut line = serde_json::to_string(record).expect("a record is plain data");
        line.push('\n');
        self.file.write_all(line.as_bytes()).map_err(|e| Error::io(&self.path, e))
    }
}

/// All records of a file; lines that are not records are passed over.
pub fn read(path: &Path) -> Result<Vec<Record>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    Ok(files::read_text(path)?.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn train(step: u64) -> Record {
        Record::Train(TrainRecord {
            step,
            loss: 4.0 / step as f64,
            lr: 1e-4,
            grad_norm: 0.5,
            clipped: false,
            tokens: 10 * step,
            tokens_per_second: 123.4,
            seconds: 0.5,
        })
    }

    #[test]
    fn reopening_at_a_step_drops_what_came_after_and_a_half_written_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut log = MetricsLog::open(&path, u64::MAX).unwrap();
        for step in 1..=5 {
            log.append(&train(step)).unwrap();
        }
        let eval = EvalRecord { step: 4, loss: 0.0, perplexity: 1.0, tokens: 9, whole_split: true, seconds: 0.1 };
        log.append(&Record::Eval(eval)).unwrap();
        log.file.write_all(br#"{"kind":"train","step":3,"lo"#).unwrap();
        drop(log);

        let mut log = MetricsLog::open(&path, 3).unwrap();
        log.append(&train(4)).unwrap();
        let steps: Vec<u64> = read(&path).unwrap().iter().map(Record::step).collect();
        assert_eq!(steps, [1, 2, 3, 4]);
        assert!(std::fs::read_to_string(&path).unwrap().lines().all(|line| line.starts_with(r#"{"kind":"train""#)));
    }

    #[test]
    fn a_missing_file_has_no_records() {
        assert_eq!(read(Path::new("/no/such/metrics.jsonl")).unwrap(), []);
    }
}
