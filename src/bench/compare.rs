//! Two reports side by side: what got faster or slower beyond noise.
//!
//! A dot has changed when both of these say so, in the same direction:
//! - the **medians** differ by more than [`LEAST`], and by more than [`QUARTILES`] times the two spreads (distances of the
//!   quartiles over the median) added as independent errors are;
//! - the **best** times differ by more than half of that. On a machine that others use too, whole stretches of samples are late and
//!   the median wanders with them, but the best sample hardly does; a slower kernel is slower at its best too.
//!
//! Where a ceiling of the device has itself changed by that measure, the machine was not the same (other programs, clocks, heat), and
//! dots must change by more than the ceiling that moved most.

mod render;

use super::report::{DeviceReport, Dot, MemoryPoint, Report, Stat};
use crate::{Error, Result};
use serde::Serialize;
use std::collections::HashSet;

/// Smaller changes are never reported: other processes, clocks and the placement of memory make them between any two runs.
pub const LEAST: f64 = 0.05;
/// A ceiling that moved by no more is the same machine's.
const CEILING: f64 = 0.1;
/// Of the normal distribution, the distance of the quartiles is 1.35 standard deviations, so this is 2.7 standard deviations of a
/// single sample: a median of many wanders that far only when the whole run was slower. Reports hold hundreds of dots, so one in a
/// thousand would already be a false alarm in every few comparisons.
pub const QUARTILES: f64 = 2.0;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Same,
    Faster,
    Slower,
}

/// One quantity in both reports.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// Operator, case and direction; or the ceiling.
    pub name: String,
    /// Old time over new time: 2 is twice as fast.
    pub speed: f64,
    /// Share of change that counts as noise here.
    pub noise: f64,
    pub verdict: Verdict,
    /// Seconds, or the rate of a ceiling.
    pub old: f64,
    pub new: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DeviceComparison {
    /// In the new report.
    pub id: String,
    pub name: String,
    pub key: String,
    /// Geometric mean of the dots' speeds; absent without a common dot.
    pub geometric_mean: Option<f64>,
    pub dots: Vec<Change>,
    /// Peaks and bandwidths: what the machine itself did.
    pub ceilings: Vec<Change>,
    /// Dots that only the new (the old) report has.
    pub added: Vec<String>,
    pub removed: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    pub devices: Vec<DeviceComparison>,
    /// Keys of devices that only one report has.
    pub only_old: Vec<String>,
    pub only_new: Vec<String>,
    /// What makes the two reports unlike each other.
    pub notes: Vec<String>,
}

/// Matches devices by key and dots by operator, case and direction. An error where no device is in both reports, or no dot is.
pub fn compare(old: &Report, new: &Report) -> Result<Comparison> {
    let mut devices = Vec::new();
    for after in &new.devices {
        if let Some(before) = old.devices.iter().find(|d| d.key == after.key) {
            devices.push(device(before, after));
        }
    }
    let only = |these: &Report, others: &Report| -> Vec<String> {
        let missing = |d: &&DeviceReport| !others.devices.iter().any(|o| o.key == d.key);
        these.devices.iter().filter(missing).map(|d| d.key.clone()).collect()
    };
    if devices.is_empty() {
        return Err(Error::Data(format!(
            "nothing to compare: no device (with its driver and threads) is in both reports\n  old: {}\n  new: {}\n\
             measure both on the same machine and driver, with the same --device",
            keys(old),
            keys(new)
        )));
    }
    if devices.iter().all(|d| d.dots.is_empty() && d.ceilings.is_empty()) {
        return Err(Error::Data(format!(
            "nothing to compare: the reports have devices in common but no measurement (--filter was {} and is {}); measure both with the same --filter",
            filter(old),
            filter(new)
        )));
    }
    Ok(Comparison { devices, only_old: only(old, new), only_new: only(new, old), notes: notes(old, new) })
}

fn keys(report: &Report) -> String {
    let keys: Vec<&str> = report.devices.iter().map(|d| d.key.as_str()).collect();
    if keys.is_empty() { "no device".into() } else { keys.join("; ") }
}

fn filter(report: &Report) -> String {
    report.filter.as_ref().map_or("none".into(), |f| format!("`{f}`"))
}

fn notes(old: &Report, new: &Report) -> Vec<String> {
    let mut notes = Vec::new();
    let kind = |report: &Report| if report.quick { "quick" } else { "full" };
    if old.quick != new.quick {
        notes.push(format!(
            "the old report is a {} measurement, the new one a {} one: fewer dots in common, and wider noise",
            kind(old),
            kind(new)
        ));
    }
    if old.filter != new.filter {
        notes.push(format!("--filter was {} and is {}", filter(old), filter(new)));
    }
    let power = |report: &Report| report.host.power.clone().unwrap_or_else(|| "not told".into());
    if old.host.power != new.host.power {
        notes.push(format!("power was {} and is {}: clocks differ", power(old), power(new)));
    }
    let profile = |report: &Report| report.host.power_profile.clone().unwrap_or_else(|| "not told".into());
    if old.host.power_profile != new.host.power_profile {
        notes.push(format!("the power profile was {} and is {}: clocks differ", profile(old), profile(new)));
    }
    if old.program != new.program {
        notes.push(format!("lynx-gpu was {} and is {}", old.program, new.program));
    }
    notes
}

fn name(dot: &Dot) -> String {
    format!("{} {} {}", dot.operator, dot.case, super::table::units::direction(dot.direction))
}

/// Times by one and the same clock: the device's where both reports have it.
fn times(old: &Dot, new: &Dot) -> (Stat, Stat) {
    match (old.device_seconds, new.device_seconds) {
        (Some(old), Some(new)) => (old, new),
        _ => (old.seconds, new.seconds),
    }
}

fn device(old: &DeviceReport, new: &DeviceReport) -> DeviceComparison {
    let mut ceilings = Vec::new();
    for peak in &new.ceilings.compute {
        if let Some(was) = old.ceilings.compute.iter().find(|p| p.kind == peak.kind) {
            ceilings.push(rate_change(format!("{} peak", peak.kind), &was.rate, &peak.rate));
        }
    }
    // Main memory: the largest working set that both measured, by each access.
    let same = |a: &MemoryPoint, b: &MemoryPoint| (a.access, a.streaming) == (b.access, b.streaming);
    let measured = &new.ceilings.memory;
    for point in measured.iter().filter(|p| !measured.iter().any(|q| same(p, q) && q.working_set > p.working_set)) {
        let mut olds = old.ceilings.memory.iter();
        if let Some(was) = olds.find(|p| same(p, point) && p.working_set == point.working_set) {
            let access = format!("{:?}", point.access).to_lowercase();
            let streaming = if point.streaming { ", streaming" } else { "" };
            ceilings.push(rate_change(format!("memory {access}{streaming}"), &was.rate, &point.rate));
        }
    }
    let moved = ceilings.iter().filter(|c| c.verdict != Verdict::Same).map(|c| c.speed.ln().abs()).fold(0.0, f64::max);
    let least = LEAST.max(moved.exp_m1());
    let before = |dot: &Dot| old.dots.iter().find(|d| d.id() == dot.id());
    let in_new: HashSet<_> = new.dots.iter().map(Dot::id).collect();
    let mut dots = Vec::new();
    let mut added = Vec::new();
    for dot in &new.dots {
        match before(dot) {
            Some(was) => {
                let (old, new) = times(was, dot);
                dots.push(change(name(dot), &old, &new, least));
            }
            None => added.push(name(dot)),
        }
    }
    let removed = old.dots.iter().filter(|d| !in_new.contains(&d.id())).map(name).collect();
    DeviceComparison {
        id: new.id.clone(),
        name: new.name.clone(),
        key: new.key.clone(),
        geometric_mean: geometric_mean(&dots),
        dots,
        ceilings,
        added,
        removed,
    }
}

fn geometric_mean(changes: &[Change]) -> Option<f64> {
    let logs: Vec<f64> = changes.iter().map(|c| c.speed.ln()).filter(|l| l.is_finite()).collect();
    (!logs.is_empty()).then(|| (logs.iter().sum::<f64>() / logs.len() as f64).exp())
}

/// The quartiles' distance over the median, and one standard error of it on top: few samples may lie together by chance. (Of n normal
/// samples that error is 1.17 / sqrt(n) of the distance.)
fn spread(stat: &Stat) -> f64 {
    stat.spread() * (1.0 + 1.17 / (stat.samples.max(1) as f64).sqrt())
}

/// Of times; what changed by no more than the share `least` is the same.
fn change(name: String, old: &Stat, new: &Stat, least: f64) -> Change {
    let noise = least.max(QUARTILES * spread(old).hypot(spread(new)));
    // Logarithms treat "twice as fast" and "half as fast" alike.
    let (median, best) = ((old.median / new.median).ln(), (old.best / new.best).ln());
    let beyond = noise.ln_1p();
    let changed = median.abs() > beyond && best.abs() > beyond / 2.0 && median * best > 0.0;
    let verdict = match (changed, median > 0.0) {
        (false, _) => Verdict::Same,
        (true, true) => Verdict::Faster,
        (true, false) => Verdict::Slower,
    };
    Change { name, speed: median.exp(), noise, verdict, old: old.median, new: new.median }
}

/// Of a ceiling, by its best rate: that is what roofs are made of, however far apart its samples lie.
fn rate_change(name: String, old: &Stat, new: &Stat) -> Change {
    let speed = new.best / old.best;
    let verdict = match () {
        _ if speed.ln().abs() <= CEILING.ln_1p() => Verdict::Same,
        _ if speed > 1.0 => Verdict::Faster,
        _ => Verdict::Slower,
    };
    Change { name, speed, noise: CEILING, verdict, old: old.best, new: new.best }
}

impl Comparison {
    fn count(&self, verdict: Verdict) -> usize {
        self.devices.iter().flat_map(|d| &d.dots).filter(|c| c.verdict == verdict).count()
    }

    pub fn slower(&self) -> usize {
        self.count(Verdict::Slower)
    }

    pub fn faster(&self) -> usize {
        self.count(Verdict::Faster)
    }

    /// Something got slower beyond noise.
    pub fn regressed(&self) -> bool {
        self.slower() > 0
    }

    /// An error with an exit code of its own where something got slower: for scripts.
    pub fn verdict(&self) -> Result<()> {
        if !self.regressed() {
            return Ok(());
        }
        let dots: usize = self.devices.iter().map(|d| d.dots.len()).sum();
        Err(Error::Slower(format!("{} of {dots} measurements got slower beyond noise", self.slower())))
    }

    /// For people: what changed, by device, the worst first.
    pub fn render(&self, width: usize, colour: bool) -> String {
        render::render(self, width, colour)
    }
}
