//! Repeated measurements: how long, how often, and what is made of them.

use super::report::Stat;
use crate::Result;
use std::time::{Duration, Instant};

/// How much time a quantity may take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Effort {
    /// Shortest sample worth reading a clock for; shorter runs are repeated inside one sample.
    pub sample_seconds: f64,
    /// Most samples.
    pub samples: usize,
    /// No new sample is begun after this; at least [`FEWEST`] are taken.
    pub seconds: f64,
}

/// Fewer samples have no quartiles.
const FEWEST: usize = 3;

impl Effort {
    /// Of a quantity that `seconds` may be spent on.
    pub fn within(seconds: f64) -> Self {
        Effort { sample_seconds: (seconds / 20.0).clamp(2e-4, 5e-3), samples: 31, seconds }
    }
}

/// Measures one run: `run(n)` does `n` runs one after another and gives the seconds they took. The first calls warm up and decide how
/// many runs make a sample; a sample that shows them to have been held up by other programs decides it anew, so that no sample is too
/// short for the clock.
pub fn measure(effort: &Effort, mut run: impl FnMut(usize) -> Result<f64>) -> Result<Stat> {
    let begin = Instant::now();
    run(1)?;
    let (mut n, mut took) = (1usize, run(1)?);
    let mut samples = Vec::new();
    loop {
        while took < effort.sample_seconds / 2.0 && n < 1 << 30 {
            let growth = (effort.sample_seconds / took.max(1e-9)).clamp(2.0, 100.0);
            n = (n as f64 * growth).ceil() as usize;
            took = run(n)?;
            samples.clear();
        }
        // A run that is long enough by itself is a sample already.
        if n == 1 && samples.is_empty() {
            samples.push(took);
        }
        if samples.len() >= FEWEST
            && (samples.len() >= effort.samples || begin.elapsed().as_secs_f64() >= effort.seconds)
        {
            break;
        }
        let again = run(n)?;
        samples.push(again / n as f64);
        // Far below what was aimed at: a fifth leaves room for clocks that speed up.
        if again < effort.sample_seconds / 5.0 {
            took = again;
        }
    }
    Ok(Stat::of(&samples))
}

/// Seconds that `f` takes.
pub fn seconds(f: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    f()?;
    Ok(start.elapsed().as_secs_f64())
}

/// Shares what is left until a deadline among the measurements still to come, so that all are made and the whole ends in time.
#[derive(Clone, Copy, Debug)]
pub struct Allowance {
    deadline: Option<Instant>,
    /// Most that one measurement gets.
    most: f64,
    /// Least that one measurement gets, deadline or not.
    least: f64,
}

impl Allowance {
    pub fn new(total: Option<Duration>, least: f64, most: f64) -> Self {
        Allowance { deadline: total.map(|t| Instant::now() + t), least, most }
    }

    /// Seconds for the next measurement when `left` are to be made, this one included.
    pub fn next(&self, left: usize) -> f64 {
        let Some(deadline) = self.deadline else { return self.most };
        let remaining = deadline.saturating_duration_since(Instant::now()).as_secs_f64();
        (remaining / left.max(1) as f64).clamp(self.least, self.most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_runs_are_repeated_until_a_sample_is_long_enough() {
        let effort = Effort { sample_seconds: 1e-3, samples: 5, seconds: 60.0 };
        let mut longest = 0;
        let stat = measure(&effort, |n| {
            longest = longest.max(n);
            Ok(n as f64 * 1e-6)
        });
        let stat = stat.unwrap();
        assert!((500..=2000).contains(&longest), "{longest}");
        assert!((stat.median - 1e-6).abs() < 1e-12 && stat.samples == 5, "{stat:?}");
    }

    #[test]
    fn a_run_that_was_held_up_does_not_leave_samples_too_short_for_the_clock() {
        let effort = Effort { sample_seconds: 1e-3, samples: 5, seconds: 60.0 };
        let mut calls = 0;
        let stat = measure(&effort, |n| {
            calls += 1;
            let held_up = if calls <= 2 { 4e-3 } else { 0.0 };
            // The clock moves in steps of a tenth of a microsecond.
            Ok((n as f64 * 1.26e-8 / 1e-7).floor() * 1e-7 + held_up)
        });
        let stat = stat.unwrap();
        assert!((stat.best / 1.26e-8 - 1.0).abs() < 1e-3 && stat.samples == 5, "{stat:?}");
    }

    #[test]
    fn a_long_run_is_one_sample_and_at_least_three_are_taken() {
        let mut calls = 0;
        let stat = measure(&Effort { sample_seconds: 1e-3, samples: 9, seconds: 0.0 }, |n| {
            calls += n;
            Ok(n as f64 * 0.5)
        });
        assert_eq!((stat.unwrap().samples, calls), (3, 4));
    }

    #[test]
    fn what_is_left_until_the_deadline_is_shared() {
        let allowance = Allowance::new(Some(Duration::from_secs(10)), 0.01, 1.0);
        assert_eq!(allowance.next(2), 1.0);
        assert!((allowance.next(100) - 0.1).abs() < 0.01);
        assert_eq!(allowance.next(1_000_000), 0.01);
        assert_eq!(Allowance::new(None, 0.01, 1.0).next(1_000_000), 1.0);
    }
}
