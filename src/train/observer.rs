//! Those who watch a run: a progress bar, plain lines, or JSON lines. The dashboard is in `tui`.

use super::meter::human_duration;
use super::metrics::{EvalRecord, Record, SampleRecord, SourcesRecord, TrainRecord};
use super::model::ModelInfo;
use super::sources::SourceLoss;
use crate::error::{Error, Result};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

/// What happens in a run, in the order it happens.
#[derive(Debug)]
pub enum Event<'a> {
    Start {
        info: &'a ModelInfo,
        run: &'a Path,
        step: u64,
        steps: u64,
    },
    Step(StepEvent),
    Eval {
        record: &'a EvalRecord,
        is_best: bool,
    },
    /// Follows the `Eval` whose losses by origin it has.
    Sources(&'a SourcesRecord),
    Sample(&'a SampleRecord),
    Saved {
        path: &'a Path,
        is_best: bool,
    },
    Message(&'a str),
}

/// One optimiser step, and what can be said about the rest.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepEvent {
    pub record: TrainRecord,
    pub steps: u64,
    /// Wall-clock time of the step: batches, model, update.
    pub took: Duration,
    pub remaining: Option<Duration>,
    /// Tokens per second over the roofline's, where that is known.
    pub roof_share: Option<f64>,
    /// The step is a multiple of `train.log_interval`, or the last one.
    pub log: bool,
}

/// Is told everything that happens. An error from an observer ends the run; the last checkpoint stays.
pub trait Observer {
    fn on(&mut self, event: &Event) -> Result<()>;
}

/// One line about a step, the same for bar and plain text.
pub fn step_line(event: &StepEvent) -> String {
    let r = &event.record;
    let mut line = format!(
        "loss {:.4}  lr {:.2e}  grad {:.3}{}  {:.0} tok/s",
        r.loss,
        r.lr,
        r.grad_norm,
        if r.clipped { " (clipped)" } else { "" },
        r.tokens_per_second
    );
    if let Some(share) = event.roof_share {
        line += &format!("  {:.0} % of roof", 100.0 * share);
    }
    if let Some(remaining) = event.remaining {
        line += &format!("  {} left", human_duration(remaining));
    }
    line
}

fn eval_line(record: &EvalRecord, is_best: bool) -> String {
    format!(
        "step {}: validation loss {:.4}, perplexity {:.3}{}{}",
        record.step,
        record.loss,
        record.perplexity,
        if record.whole_split { String::new() } else { format!(" over {} tokens", record.tokens) },
        if is_best { " (best)" } else { "" }
    )
}

/// `  by origin: arithmetic 0.412 bits/byte (at least 0.105), ..`
pub fn sources_line(sources: &[SourceLoss]) -> String {
    format!("  by origin: {}", sources.iter().map(SourceLoss::text).collect::<Vec<_>>().join(", "))
}

fn start_line(info: &ModelInfo, run: &Path, step: u64, steps: u64) -> String {
    let place = if step == 0 { format!("{steps} steps") } else { format!("from step {step} to {steps}") };
    format!("{}: {} parameters on {}; {place}; run {}", info.summary, info.parameters, info.device, run.display())
}

/// A bar on the terminal; plain lines, one per log interval, where standard error is not one.
pub struct Console {
    bar: Option<ProgressBar>,
}

impl Console {
    pub fn new() -> Self {
        Self { bar: std::io::stderr().is_terminal().then(ProgressBar::no_length) }
    }

    fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None => eprintln!("{line}"),
        }
    }
}

impl Default for Console {
    fn default() -> Self {
        Self::new()
    }
}

impl Observer for Console {
    fn on(&mut self, event: &Event) -> Result<()> {
        match event {
            Event::Start { info, run, step, steps } => {
                self.say(&start_line(info, run, *step, *steps));
                if let Some(bar) = &self.bar {
                    let style =
                        ProgressStyle::with_template("{bar:24} {pos}/{len}  {msg}").expect("the template is sound");
                    bar.set_style(style);
                    bar.set_length(*steps);
                    bar.set_position(*step);
                }
            }
            Event::Step(step) => match &self.bar {
                Some(bar) => {
                    bar.set_position(step.record.step);
                    bar.set_message(step_line(step));
                }
                None if step.log => eprintln!("step {}/{}  {}", step.record.step, step.steps, step_line(step)),
                None => {}
            },
            Event::Eval { record, is_best } => self.say(&eval_line(record, *is_best)),
            Event::Sources(record) => {
                self.say(&sources_line(&record.sources));
                record.sources.iter().filter_map(|s| s.warning()).for_each(|warning| self.say(&warning));
            }
            Event::Sample(sample) => self.say(sample.to_text().trim_end()),
            Event::Saved { .. } => {}
            Event::Message(message) => self.say(message),
        }
        Ok(())
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }
}

/// Every record as one JSON line, the form of `metrics.jsonl`.
pub struct JsonLines<W: Write> {
    out: W,
}

impl<W: Write> JsonLines<W> {
    pub fn new(out: W) -> Self {
        Self { out }
    }
}

impl<W: Write> Observer for JsonLines<W> {
    fn on(&mut self, event: &Event) -> Result<()> {
        let record = match event {
            Event::Step(step) if step.log => Record::Train(step.record),
            Event::Eval { record, .. } => Record::Eval(**record),
            Event::Sources(record) => {
                record.sources.iter().filter_map(|s| s.warning()).for_each(|warning| eprintln!("{warning}"));
                Record::Sources((*record).clone())
            }
            Event::Sample(sample) => Record::Sample((*sample).clone()),
            // For a person: standard output is for programs.
            Event::Message(message) => {
                eprintln!("{message}");
                return Ok(());
            }
            _ => return Ok(()),
        };
        let line = serde_json::to_string(&record).expect("a record is plain data");
        writeln!(self.out, "{line}").and_then(|()| self.out.flush()).map_err(|e| Error::io("standard output", e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(log: bool) -> StepEvent {
        let record = TrainRecord {
            step: 10,
            loss: 2.34567,
            lr: 3e-4,
            grad_norm: 1.5,
            clipped: true,
            tokens: 100,
            tokens_per_second: 1234.4,
            seconds: 1.0,
        };
        let took = Duration::from_millis(80);
        StepEvent { record, steps: 20, took, remaining: Some(Duration::from_secs(75)), roof_share: Some(0.314), log }
    }

    #[test]
    fn a_step_line_has_everything_a_person_wants_to_know() {
        let expected = "loss 2.3457  lr 3.00e-4  grad 1.500 (clipped)  1234 tok/s  31 % of roof  1m 15s left";
        assert_eq!(step_line(&step(true)), expected);
        let bare = StepEvent { remaining: None, roof_share: None, ..step(true) };
        assert!(step_line(&bare).ends_with("1234 tok/s"));
    }

    #[test]
    fn json_lines_are_records_at_the_log_interval() {
        let mut out = Vec::new();
        let mut observer = JsonLines::new(&mut out);
        observer.on(&Event::Step(step(false))).unwrap();
        observer.on(&Event::Step(step(true))).unwrap();
        observer.on(&Event::Message("hello")).unwrap();
        let eval = EvalRecord { step: 10, loss: 1.0, perplexity: 2.7, tokens: 5, whole_split: true, seconds: 0.1 };
        observer.on(&Event::Eval { record: &eval, is_best: true }).unwrap();
        let text = String::from_utf8(out).unwrap();
        let records: Vec<Record> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(records, [Record::Train(step(true).record), Record::Eval(eval)]);
    }
}
