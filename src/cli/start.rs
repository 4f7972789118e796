//! How long a command took to its first training step, and how much of that went into compiling for the GPU.

use crate::device::ExecutionNotes;
use crate::graph::{MemoryReport, Recomputed};
use crate::train::observer::{Event, Observer};
use crate::{Error, Result};
use serde::Serialize;
use std::time::Instant;

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Start {
    kind: &'static str,
    /// From the command to the end of the first step: the two parts below, and reading data, planning and preparing.
    seconds_to_first_step: f64,
    /// Validation of the untrained model.
    validation_seconds: f64,
    /// The first step itself.
    step_seconds: f64,
    pipelines: usize,
    pipelines_cached: usize,
    pipeline_seconds: f64,
    /// Bytes of the training plans by purpose.
    memory: MemoryReport,
    recomputed: Option<Recomputed>,
}

impl Start {
    fn line(&self) -> String {
        let mut line =
            format!("first step after {:.1} s: {:.1} s the step", self.seconds_to_first_step, self.step_seconds);
        if self.validation_seconds > 0.0 {
            line += &format!(", {:.1} s validation of the untrained model", self.validation_seconds);
        }
        if self.pipelines > 0 {
            let (n, cached) = (self.pipelines, self.pipelines_cached);
            line += &format!(", {:.1} s for {n} pipelines ({cached} from the cache)", self.pipeline_seconds);
        }
        line
    }
}

/// Passes everything on, and says after the first step when it came.
pub struct FirstStep {
    pub begun: Instant,
    /// Of the training plans.
    pub notes: Vec<ExecutionNotes>,
    pub memory: MemoryReport,
    pub recomputed: Option<Recomputed>,
    pub json: bool,
    pub inner: Box<dyn Observer>,
    pub said: bool,
    /// Seconds of validation before the first step.
    pub validation: f64,
}

impl Observer for FirstStep {
    fn on(&mut self, event: &Event) -> Result<()> {
        self.inner.on(event)?;
        if let (Event::Eval { record, .. }, false) = (event, self.said) {
            self.validation += record.seconds;
        }
        let Event::Step(step) = event else { return Ok(()) };
        if std::mem::replace(&mut self.said, true) {
            return Ok(());
        }
        let sum = |of: fn(&ExecutionNotes) -> usize| self.notes.iter().map(of).sum();
        let start = Start {
            kind: "start",
            seconds_to_first_step: self.begun.elapsed().as_secs_f64(),
            validation_seconds: self.validation,
            step_seconds: step.took.as_secs_f64(),
            pipelines: sum(|n| n.pipelines),
            pipelines_cached: sum(|n| n.pipelines_cached),
            pipeline_seconds: self.notes.iter().map(|n| n.pipeline_seconds).sum(),
            memory: self.memory.clone(),
            recomputed: self.recomputed.clone(),
        };
        if self.json {
            let line = serde_json::to_string(&start).map_err(|e| Error::Failed(format!("cannot write JSON: {e}")))?;
            println!("{line}");
            return Ok(());
        }
        self.inner.on(&Event::Message(&start.line()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_speaks_of_pipelines_only_where_some_were_made() {
        let mut start = Start {
            kind: "start",
            seconds_to_first_step: 1.26,
            validation_seconds: 0.0,
            step_seconds: 0.84,
            pipelines: 0,
            pipelines_cached: 0,
            pipeline_seconds: 0.0,
            memory: MemoryReport::default(),
            recomputed: None,
        };
        assert_eq!(start.line(), "first step after 1.3 s: 0.8 s the step");
        start.validation_seconds = 0.12;
        assert_eq!(start.line(), "first step after 1.3 s: 0.8 s the step, 0.1 s validation of the untrained model");
        start.validation_seconds = 0.0;
        (start.pipelines, start.pipelines_cached, start.pipeline_seconds) = (30, 28, 0.44);
        assert_eq!(start.line(), "first step after 1.3 s: 0.8 s the step, 0.4 s for 30 pipelines (28 from the cache)");
    }
}
