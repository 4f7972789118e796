//! How a run ended.

use super::meter::human_duration;
use super::metrics::EvalRecord;
use super::observer::sources_line;
use super::schedule::Best;
use super::sources::SourceLoss;
use crate::error::{Error, Result};
use serde::Serialize;
use std::path::PathBuf;
use std::time::Duration;

/// What made the loop end without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// All steps are done.
    Finished,
    /// Validation stopped improving.
    StoppedEarly,
    /// Somebody asked for it; the state is saved. Carries the exit code that says who.
    Interrupted { exit_code: usize },
}

/// The result of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    pub ending: Ending,
    /// Steps done, over all starts of the run.
    pub step: u64,
    pub steps: u64,
    /// Target tokens seen.
    pub tokens: u64,
    /// Seconds of training over all starts.
    pub seconds: f64,
    pub best: Option<Best>,
    /// The closing validation over the whole split; None when interrupted or without validation data.
    pub validation: Option<EvalRecord>,
    /// The same validation by the origins of a mix; empty where the text is of one kind.
    pub sources: Vec<SourceLoss>,
    pub run: PathBuf,
    pub resume_command: String,
}

impl Outcome {
    /// A few lines for a person.
    pub fn summary(&self) -> String {
        let took = human_duration(Duration::try_from_secs_f64(self.seconds).unwrap_or_default());
        let mut lines = vec![match self.ending {
            Ending::Finished => format!("finished {} steps ({} tokens) in {took}", self.step, self.tokens),
            Ending::StoppedEarly => {
                format!("stopped early at step {} of {}: validation no longer improves ({took})", self.step, self.steps)
            }
            Ending::Interrupted { .. } => {
                format!("stopped at step {} of {}; the state is saved", self.step, self.steps)
            }
        }];
        if let Some(v) = &self.validation {
            lines.push(format!("validation loss {:.4}, perplexity {:.3}", v.loss, v.perplexity));
        }
        if !self.sources.is_empty() {
            lines.push(sources_line(&self.sources));
            lines.extend(self.sources.iter().filter_map(|source| source.warning()));
        }
        if let Some(best) = &self.best {
            lines.push(format!("best validation loss {:.4} at step {}", best.loss, best.step));
        }
        lines.push(format!("run folder: {}", self.run.display()));
        if matches!(self.ending, Ending::Interrupted { .. }) {
            lines.push(format!("go on with: {}", self.resume_command));
        }
        lines.join("\n")
    }

    /// The outcome, or the error whose exit code tells a shell that the run was interrupted (130 Ctrl-C, 143 SIGTERM).
    pub fn into_result(self) -> Result<Self> {
        match self.ending {
            Ending::Interrupted { exit_code: super::signals::EXIT_TERMINATED } => {
                Err(Error::Terminated(self.summary()))
            }
            Ending::Interrupted { .. } => Err(Error::Interrupted(self.summary())),
            _ => Ok(self),
        }
    }
}
