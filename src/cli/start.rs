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
    /// From the command to the end of the first step; evaluation of the untrained model included.
    seconds_to_first_step: f64,
    pipelines: usize,
    pipelines_cached: usize,
    pipeline_seconds: f64,
    /// Bytes of the training plans by purpose.
    memory: MemoryReport,
    recomputed: Option<Recomputed>,
}

impl Start {
    fn line(&self) -> String {
        let seconds = self.seconds_to_first_step;
        let share = match (self.pipelines, self.pipelines_cached) {
            (0, _) => String::new(),
            (n, cached) => {
                format!(", of which {:.1} s for {n} pipelines ({cached} from the cache)", self.pipeline_seconds)
            }
        };
        format!("first step after {seconds:.1} s{share}")
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
}

impl Observer for FirstStep {
    fn on(&mut self, event: &Event) -> Result<()> {
        self.inner.on(event)?;
        if self.said || !matches!(event, Event::Step(_)) {
            return Ok(());
        }
        self.said = true;
        let sum = |of: fn(&ExecutionNotes) -> usize| self.notes.iter().map(of).sum();
        let start = Start {
            kind: "start",
            seconds_to_first_step: self.begun.elapsed().as_secs_f64(),
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
            pipelines: 0,
            pipelines_cached: 0,
            pipeline_seconds: 0.0,
            memory: MemoryReport::default(),
            recomputed: None,
        };
        assert_eq!(start.line(), "first step after 1.3 s");
        (start.pipelines, start.pipelines_cached, start.pipeline_seconds) = (30, 28, 0.44);
        assert_eq!(start.line(), "first step after 1.3 s, of which 0.4 s for 30 pipelines (28 from the cache)");
    }
}
