//! What the dashboard knows of a run.

use super::super::metrics::{EvalRecord, SampleRecord};
use super::super::model::ModelInfo;
use super::super::observer::{Event, StepEvent};
use super::super::sources::SourceLoss;
use std::collections::VecDeque;

/// Which quantity the chart shows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Plot {
    #[default]
    Loss,
    LearningRate,
    GradientNorm,
    TokensPerSecond,
}

impl Plot {
    pub const ALL: [Plot; 4] = [Plot::Loss, Plot::LearningRate, Plot::GradientNorm, Plot::TokensPerSecond];

    pub fn title(self) -> &'static str {
        match self {
            Plot::Loss => "loss",
            Plot::LearningRate => "learning rate",
            Plot::GradientNorm => "gradient norm",
            Plot::TokensPerSecond => "tokens/s",
        }
    }

    fn step(self, by: usize) -> Self {
        let at = Self::ALL.iter().position(|plot| *plot == self).unwrap_or(0);
        Self::ALL[(at + by) % Self::ALL.len()]
    }

    pub fn next(self) -> Self {
        self.step(1)
    }

    pub fn previous(self) -> Self {
        self.step(Self::ALL.len() - 1)
    }
}

/// Points of one curve. When there are too many, neighbours are averaged, so memory stays bounded however long the run.
#[derive(Debug, Default)]
pub(super) struct Series {
    points: Vec<(f64, f64)>,
    /// How many measurements make one point, and those of the point under way.
    stride: usize,
    pending: Vec<(f64, f64)>,
}

impl Series {
    const LIMIT: usize = 4096;

    pub(super) fn push(&mut self, step: u64, value: f64) {
        self.pending.push((step as f64, value));
        if self.pending.len() >= self.stride.max(1) {
            self.points.push(mean(&self.pending));
            self.pending.clear();
        }
        if self.points.len() >= Self::LIMIT {
            self.points = self.points.chunks(2).map(mean).collect();
            self.stride = 2 * self.stride.max(1);
        }
    }

    /// At most about `count` points, each the mean of its neighbours.
    pub(super) fn thinned(&self, count: usize) -> Vec<(f64, f64)> {
        let chunk = self.points.len().div_ceil(count.max(1)).max(1);
        self.points.chunks(chunk).map(mean).collect()
    }
}

fn mean(points: &[(f64, f64)]) -> (f64, f64) {
    let n = points.len() as f64;
    (points.iter().map(|p| p.0).sum::<f64>() / n, points.iter().map(|p| p.1).sum::<f64>() / n)
}

/// State behind the screen.
#[derive(Debug, Default)]
pub struct Dashboard {
    pub plot: Plot,
    pub paused: bool,
    pub stopping: bool,
    pub(super) info: ModelInfo,
    pub(super) run: String,
    pub(super) steps: u64,
    pub(super) first_step: u64,
    pub(super) last: Option<StepEvent>,
    pub(super) eval: Option<EvalRecord>,
    pub(super) best: Option<EvalRecord>,
    pub(super) sample: Option<SampleRecord>,
    pub(super) log: VecDeque<String>,
    curves: [Series; Plot::ALL.len()],
    pub(super) validation: Series,
}

impl Dashboard {
    const LOG_LINES: usize = 200;

    pub(super) fn curve(&self, plot: Plot) -> &Series {
        &self.curves[plot as usize]
    }

    /// Takes in what happened.
    pub fn update(&mut self, event: &Event) {
        match event {
            Event::Start { info, run, step, steps } => {
                self.info = (*info).clone();
                self.run = run.display().to_string();
                (self.first_step, self.steps) = (*step, *steps);
            }
            Event::Step(step) => {
                let r = &step.record;
                for (plot, value) in Plot::ALL.into_iter().zip([r.loss, r.lr, r.grad_norm, r.tokens_per_second]) {
                    self.curves[plot as usize].push(r.step, value);
                }
                self.steps = step.steps;
                self.last = Some(*step);
            }
            Event::Eval { record, is_best } => {
                self.validation.push(record.step, record.loss);
                self.eval = Some(**record);
                if *is_best {
                    self.best = Some(**record);
                }
                self.say(format!("step {}: validation loss {:.4}", record.step, record.loss));
            }
            Event::Sources(record) => {
                self.say(record.sources.iter().map(SourceLoss::text).collect::<Vec<_>>().join(", "));
                record.sources.iter().filter_map(|source| source.warning()).for_each(|warning| self.say(warning));
            }
            Event::Sample(sample) => self.sample = Some((*sample).clone()),
            Event::Saved { path, is_best } => {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                self.say(format!("saved {name}{}", if *is_best { " (best)" } else { "" }));
            }
            Event::Message(message) => self.say(message.to_string()),
        }
    }

    fn say(&mut self, line: String) {
        self.log.push_back(line);
        if self.log.len() > Self::LOG_LINES {
            self.log.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_stays_bounded_and_keeps_its_mean() {
        let mut series = Series::default();
        let n = 1 << 16;
        for step in 0..n {
            series.push(step, step as f64);
        }
        assert!(series.points.len() < Series::LIMIT);
        let total: f64 = series.points.iter().map(|p| p.1).sum::<f64>() / series.points.len() as f64;
        assert!((total - (n - 1) as f64 / 2.0).abs() < n as f64 * 0.02);
        assert!(series.points.is_sorted_by(|a, b| a.0 < b.0));
        assert!(series.thinned(100).len() <= 100);
    }

    #[test]
    fn plots_go_round_in_both_directions() {
        let forward: Vec<Plot> = std::iter::successors(Some(Plot::Loss), |plot| Some(plot.next())).take(5).collect();
        assert_eq!(forward[..4], Plot::ALL);
        assert_eq!(forward[4], Plot::Loss);
        assert!(Plot::ALL.iter().all(|plot| plot.next().previous() == *plot));
    }
}
