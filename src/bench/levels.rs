//! From the bandwidths of many working sets to the few levels of memory that explain them.

use super::report::{Ceilings, Level, MemoryPoint};
use crate::device::roof::Roof;
use std::ops::Range;

/// One more level must explain at least this much of the squared relative differences that are left...
const WORTH: f64 = 0.35;
/// ...and they must be larger than those of points that lie this close to their level.
const SCATTER: f64 = 0.05;
/// Steps sought: those of four levels and of the falls between them.
const MOST_STEPS: usize = 8;
/// A level is as fast for working sets that differ by this factor.
const LASTS: u64 = 3;
/// A level holds the working sets up to the last one that reaches this share of its bandwidth.
const HOLDS: f64 = 0.9;

/// The best measured bandwidth of every working set, as an envelope that never rises.
pub fn envelope(memory: &[MemoryPoint]) -> Vec<(u64, f64)> {
    Roof::envelope(memory.iter().map(|p| (p.working_set, p.rate.best)))
}

/// The levels of memory, fastest first: all but the last are named in order by `names`, the last is `memory`. They are the steps of the
/// step function that lies nearest to the logarithms of the envelope. Stores that bypass the
/// caches do not show what caches hold, so the steps are sought without them; the rates are the best of all.
pub fn levels(memory: &[MemoryPoint], names: &[&str]) -> Vec<Level> {
    let cached = Roof::envelope(memory.iter().filter(|p| !p.streaming).map(|p| (p.working_set, p.rate.best)));
    let all = Roof { bandwidth: envelope(memory), ..Roof::default() };
    let logs: Vec<(u64, f64)> = cached.iter().map(|p| (p.0, p.1.ln())).collect();
    let values: Vec<f64> = logs.iter().map(|p| p.1).collect();
    let steps = merged(steps(&values, MOST_STEPS), &logs, names.len() + 1);
    let count = steps.len();
    let level = |(i, step): (usize, Range<usize>)| {
        if i + 1 == count {
            let largest = cached[step.end - 1].0;
            return Level { name: "memory".into(), holds: None, bytes_per_second: all.bandwidth_at(largest) };
        }
        // The median: a step may begin with the end of a fall.
        let middle = &cached[(step.start + step.end) / 2];
        let held = cached[step.clone()].iter().rev().find(|p| p.1 >= HOLDS * middle.1).unwrap_or(middle);
        Level { name: names[i].into(), holds: Some(held.0), bytes_per_second: all.bandwidth_at(middle.0) }
    };
    steps.into_iter().enumerate().map(level).collect()
}

/// Falls between two levels are steps too: those that do not last ([`LASTS`]) count with the level after them. Where there are still
/// more than `most`, those that differ least are taken for one. `points` are working sets and logarithms of bandwidths.
fn merged(mut steps: Vec<Range<usize>>, points: &[(u64, f64)], most: usize) -> Vec<Range<usize>> {
    let mean = |r: &Range<usize>| points[r.clone()].iter().map(|p| p.1).sum::<f64>() / r.len().max(1) as f64;
    let lasts = |r: &Range<usize>| points[r.end - 1].0 >= LASTS * points[r.start].0;
    let join = |steps: &mut Vec<Range<usize>>, i: usize| {
        let next = steps.remove(i + 1);
        steps[i].end = next.end;
    };
    let mut i = 1;
    while i + 1 < steps.len() {
        if lasts(&steps[i]) { i += 1 } else { join(&mut steps, i) }
    }
    while steps.len() > most {
        let fall = |i: &usize| mean(&steps[*i]) - mean(&steps[i + 1]);
        let least = (0..steps.len() - 1).min_by(|a, b| fall(a).total_cmp(&fall(b))).unwrap_or(0);
        join(&mut steps, least);
    }
    steps
}

/// Cuts `values` into at most `most` stretches so that the squared differences from their means are least (dynamic programming), with
/// as few stretches as explain them.
fn steps(values: &[f64], most: usize) -> Vec<Range<usize>> {
    let n = values.len();
    if n == 0 {
        return vec![];
    }
    let scatter = |range: Range<usize>| {
        let part = &values[range];
        let mean = part.iter().sum::<f64>() / part.len() as f64;
        part.iter().map(|v| (v - mean).powi(2)).sum::<f64>()
    };
    // best[k][j]: of the first j values in k + 1 stretches, and where the last one begins.
    let mut best = vec![(0..=n).map(|j| (if j == 0 { 0.0 } else { scatter(0..j) }, 0)).collect::<Vec<(f64, usize)>>()];
    for k in 1..most.min(n) {
        let before = &best[k - 1];
        let last = |j: usize| {
            let cuts = (k..j).map(|i| (before[i].0 + scatter(i..j), i));
            cuts.min_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or((f64::INFINITY, 0))
        };
        let row = (0..=n).map(last).collect();
        best.push(row);
    }
    let left = |k: usize| best[k][n].0;
    let mut k = 0;
    while k + 1 < best.len() {
        // A step may pay off only with the one after it.
        let better = (k + 1..best.len()).find(|&m| left(m) < left(k) * (1.0 - WORTH).powi((m - k) as i32));
        match better {
            Some(m) if left(k) > n as f64 * SCATTER * SCATTER => k = m,
            _ => break,
        }
    }
    let (mut stretches, mut end) = (Vec::new(), n);
    for row in best[..=k].iter().rev() {
        stretches.push(row[end].1..end);
        end = row[end].1;
    }
    stretches.reverse();
    stretches
}

/// The level that a reuse distance falls into.
pub fn level_of(ceilings: &Ceilings, distance: u64) -> String {
    let inside = |l: &&Level| l.holds.is_none_or(|holds| distance <= holds);
    ceilings.levels.iter().find(inside).map_or_else(|| "memory".into(), |l| l.name.clone())
}

/// The roof that these ceilings are.
pub fn roof(ceilings: &Ceilings) -> Roof {
    let call = ceilings.overheads.iter().find(|o| matches!(o.kind.as_str(), "dispatch" | "call"));
    Roof {
        peaks: ceilings.compute.iter().map(|p| (p.kind.clone(), p.rate.best)).collect(),
        bandwidth: envelope(&ceilings.memory),
        call_seconds: call.map_or(0.0, |o| o.time.median),
        step_crossover: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::{Access, Stat};

    fn ladder(points: &[(u64, f64)]) -> Vec<MemoryPoint> {
        let point = |&(kib, gb): &(u64, f64)| MemoryPoint {
            access: Access::Read,
            streaming: false,
            working_set: kib << 10,
            rate: Stat::of(&[gb * 1e9]),
        };
        points.iter().map(point).collect()
    }

    #[test]
    fn the_plateaus_of_a_ladder_are_its_levels() {
        let zen4 = ladder(&[
            (4, 220.0),
            (8, 230.0),
            (16, 232.0),
            (32, 225.0),
            (64, 130.0),
            (128, 118.0),
            (256, 117.0),
            (512, 116.0),
            (1024, 100.0),
            (2048, 62.0),
            (4096, 58.0),
            (8192, 57.0),
            (16384, 55.0),
            (32768, 40.0),
            (65536, 29.0),
            (131072, 25.0),
            (262144, 24.5),
        ]);
        let found = levels(&zen4, &["L1", "L2", "L3"]);
        let names: Vec<&str> = found.iter().map(|l| l.name.as_str()).collect();
        assert_eq!(names, ["L1", "L2", "L3", "memory"]);
        assert_eq!(found[0].holds, Some(32 << 10));
        assert_eq!(found[1].holds, Some(512 << 10));
        assert_eq!(found[2].holds, Some(16384 << 10));
        assert_eq!(found[3].bytes_per_second, 24.5e9);
    }

    #[test]
    fn a_cache_that_is_hardly_slower_than_the_one_before_is_a_level() {
        let virtual_machine = ladder(&[
            (4, 255.0),
            (8, 271.0),
            (16, 275.0),
            (32, 280.0),
            (64, 128.0),
            (128, 118.0),
            (256, 118.0),
            (512, 116.0),
            (1024, 100.0),
            (2048, 100.0),
            (4096, 101.0),
            (8192, 101.0),
            (16384, 82.0),
            (32768, 53.0),
            (65536, 28.8),
            (131072, 27.5),
            (262144, 27.8),
        ]);
        let found = levels(&virtual_machine, &["L1", "L2", "L3"]);
        assert_eq!(found.len(), 4, "{found:?}");
        assert_eq!((found[0].holds, found[3].bytes_per_second), (Some(32 << 10), 27.8e9));
        assert!(found[2].holds.unwrap() >= 8 << 20, "{found:?}");
    }

    #[test]
    fn noise_makes_no_levels_and_too_many_are_merged() {
        let flat = ladder(&[(4, 10.0), (8, 9.5), (16, 10.2), (32, 9.9)]);
        let found = levels(&flat, &["L1", "L2", "L3"]);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].name.as_str(), found[0].holds), ("memory", None));
        let steps = ladder(&[(4, 64.0), (8, 32.0), (16, 31.0), (32, 16.0), (64, 15.9), (128, 4.0), (256, 4.0)]);
        assert_eq!(levels(&steps, &["cache"]).len(), 2);
        assert!(levels(&[], &["L1"]).is_empty());
    }
}
