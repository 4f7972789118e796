//! The tuner: times the forms of each family of kernels on a few representative works, and keeps what is faster than the table's row.
//! It runs when asked for (`lynx-gpu devices --tune`), never on the way to a first step; its result is remembered per adapter and
//! driver (`probe::Memory`).

use super::Context;
use super::lowering::{Caps, lower};
use super::runner::Runner;
use super::tiles::{Change, Choices, Family};
use crate::Result;
use crate::device::probe::ramp;
use crate::device::{Device, Executable, Store, Work};
use serde::Serialize;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A change is kept when it saves at least this share of the time: less may be noise.
const WORTH: f64 = 0.05;

/// Timed runs of a candidate, of which the shortest counts: what disturbs a run only makes it longer.
const RUNS: usize = 5;

/// No family is begun after this long.
const PATIENCE: Duration = Duration::from_secs(60);

/// One form of a family, timed.
#[derive(Clone, Debug, Serialize)]
pub struct Timing {
    pub family: Family,
    /// None: the form that was in use.
    pub change: Option<Change>,
    /// Seconds on the device of each work of the family, in the order of `tune`'s argument.
    pub seconds: Vec<f64>,
    pub kept: bool,
}

/// What the tuner found.
#[derive(Clone, Debug, Serialize)]
pub struct Tuned {
    pub choices: Choices,
    pub timings: Vec<Timing>,
    pub seconds: f64,
}

/// Times every form that `context` can run and that keeps f32 exact, family by family, each on the works of that family; starts from
/// the table's row.
///
/// # Errors
/// Those of preparing and running the works.
pub fn tune(context: &Arc<Context>, works: &[(Family, Work)]) -> Result<Tuned> {
    let begun = Instant::now();
    let mut choices = context.caps().class().choices();
    if choices.misfit(context.caps()).is_some() {
        choices = super::tiles::Class::Unknown.choices();
    }
    let mut timings = Vec::new();
    for family in Family::ALL {
        let own: Vec<&Work> = works.iter().filter(|(f, _)| *f == family).map(|(_, w)| w).collect();
        if own.is_empty() || begun.elapsed() > PATIENCE {
            continue;
        }
        let run = |choices: Choices| own.iter().map(|work| time(context, work, choices)).collect::<Result<Vec<f64>>>();
        let same = |a: Choices, b: Choices| {
            own.iter().all(|w| dispatches(w, context.caps(), a) == dispatches(w, context.caps(), b))
        };
        let base = run(choices)?;
        let first = timings.len();
        timings.push(Timing { family, change: None, seconds: base.clone(), kept: false });
        let (mut best, mut kept, mut least) = (choices, first, 1.0 - WORTH);
        for change in Change::all().into_iter().filter(|c| c.family() == family && c.keeps_f32()) {
            let candidate = change.of(choices);
            if candidate.misfit(context.caps()).is_some() || same(candidate, choices) {
                continue;
            }
            let seconds = run(candidate)?;
            let share = mean_ratio(&seconds, &base);
            if share < least {
                (best, kept, least) = (candidate, timings.len(), share);
            }
            timings.push(Timing { family, change: Some(change), seconds, kept: false });
        }
        timings[kept].kept = true;
        choices = best;
    }
    Ok(Tuned { choices, timings, seconds: begun.elapsed().as_secs_f64() })
}

/// Geometric mean of the ratios: every work counts alike, however long it takes.
fn mean_ratio(seconds: &[f64], base: &[f64]) -> f64 {
    let logs: f64 = seconds.iter().zip(base).map(|(s, b)| (s.max(1e-9) / b.max(1e-9)).ln()).sum();
    (logs / seconds.len().max(1) as f64).exp()
}

/// What tells two choices apart for a work: shaders and parameters.
fn dispatches(work: &Work, caps: &Caps, choices: Choices) -> Vec<(Arc<str>, Vec<u32>)> {
    let lowered = lower(work, &Caps { tuned: Some(choices), ..*caps });
    lowered.into_iter().flat_map(|l| l.dispatches).map(|d| (d.shader.source, d.params)).collect()
}

/// Device seconds of a run of `work` with these forms.
fn time(context: &Arc<Context>, work: &Work, choices: Choices) -> Result<f64> {
    let mut store = Store::new(&Device::Gpu(context.clone()));
    let mut runner = Runner::with_choices(context.clone(), work.clone(), &mut store, choices)?;
    for (name, place) in &work.inputs {
        runner.write_input(name, &ramp(&place.ty))?;
    }
    let mut least = f64::INFINITY;
    for _ in 0..RUNS {
        least = runner.profile(1)?.iter().map(|t| t.seconds).sum::<f64>().min(least);
    }
    Ok(least)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn works_of_any_length_weigh_the_same() {
        assert!((mean_ratio(&[1.0, 4e-3], &[2.0, 2e-3]) - 1.0).abs() < 1e-12);
        assert!((mean_ratio(&[0.5, 0.5e-3], &[1.0, 1e-3]) - 0.5).abs() < 1e-12);
    }
}
