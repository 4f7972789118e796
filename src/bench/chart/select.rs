//! What the picture shows of a report: which dots are numbered, and how each device is told from the others.

use super::scene::{Fill, ONE_THREAD, Paint, Symbol};
use crate::bench::report::{DeviceReport, Direction, Dot, Report};
use std::collections::HashMap;

/// A device as it is drawn.
pub struct Drawn<'a> {
    pub device: &'a DeviceReport,
    pub paint: Paint,
    /// Of its roof, so that roofs are told apart without colours.
    pub dash: &'static [f64],
    pub fill: Fill,
    /// The CPU with one thread shows only its ceilings where all threads are measured too: twice the same dots would hide both.
    pub dots: bool,
    /// f32 operations per second, and its name, where any peak was measured: the best seen, as shares are counted against it.
    pub peak: Option<(&'a str, f64)>,
    /// bytes/s of main memory.
    pub memory: Option<f64>,
}

impl<'a> Drawn<'a> {
    /// FLOPs per byte where the roof bends.
    pub fn corner(&self) -> Option<f64> {
        Some(self.peak?.1 / self.memory?)
    }

    /// The device's name, and its threads where the name does not tell.
    pub fn name(&self) -> String {
        let name = &self.device.name;
        match self.device.threads {
            Some(_) if name.contains("thread") => name.clone(),
            Some(1) => format!("{name}, one thread"),
            Some(n) => format!("{name}, {n} threads"),
            // What a software device is comes first: versions and backends are in the table.
            None if self.device.software => format!("{}, software", name.split(" (").next().unwrap_or(name)),
            None => name.clone(),
        }
    }

    /// The device's dots that have a place on the chart: a finite time, and some work.
    pub fn shown(&self) -> impl Iterator<Item = &'a Dot> {
        let dots = if self.dots { &self.device.dots[..] } else { &[] };
        dots.iter().filter(|d| d.time().median > 0.0 && (d.flops > 0.0 || d.bytes > 0.0))
    }
}

/// Colours, dashes and fills: the CPU first, its single thread pale, GPUs in their order.
pub fn devices(report: &Report) -> Vec<Drawn<'_>> {
    let one_thread = |d: &DeviceReport| d.threads == Some(1);
    let all_threads = |d: &DeviceReport| d.threads.is_some_and(|n| n > 1);
    let (has_all, mut gpus) = (report.devices.iter().any(all_threads), 0);
    let mut drawn: Vec<Drawn<'_>> = (report.devices.iter())
        .map(|device| {
            let (hue, dash, fill): (usize, &'static [f64], Fill) = if one_thread(device) && has_all {
                (ONE_THREAD, &[2.0, 4.0], Fill::Tinted)
            } else if device.threads.is_some() {
                (0, &[], Fill::Full)
            } else {
                gpus += 1;
                const GPUS: [(&[f64], Fill); 4] = [
                    (&[14.0, 5.0], Fill::Hollow),
                    (&[12.0, 4.0, 2.0, 4.0], Fill::Cored),
                    (&[7.0, 4.0], Fill::Tinted),
                    (&[12.0, 4.0, 2.0, 4.0, 2.0, 4.0], Fill::Hollow),
                ];
                let (dash, fill) = GPUS[(gpus - 1) % GPUS.len()];
                (1 + (gpus - 1) % (ONE_THREAD - 1), dash, fill)
            };
            let compute = &device.ceilings.compute;
            let peak = compute.iter().find(|p| p.kind == "f32").or(compute.first());
            Drawn {
                device,
                paint: Paint::Device(hue),
                dash,
                fill,
                dots: !(one_thread(device) && has_all),
                peak: peak.map(|p| (p.kind.as_str(), p.rate.best)).filter(|p| p.1 > 0.0),
                memory: device.ceilings.levels.last().map(|l| l.bytes_per_second).filter(|&b| b > 0.0),
            }
        })
        .collect();
    // A hue nobody has is no help: the CPU's own comes first in lists, its single thread last among CPUs.
    drawn.sort_by_key(|d| (d.device.threads.is_none(), !d.dots));
    drawn
}

pub fn symbol(direction: Direction) -> Symbol {
    match direction {
        Direction::Forward => Symbol::Circle,
        Direction::Backward => Symbol::Triangle,
        Direction::Step => Symbol::Star,
        Direction::Prefill => Symbol::Square,
        Direction::Decode => Symbol::Diamond,
    }
}

pub type Id<'a> = (&'a str, &'a str, Direction);

/// The dots worth a number, at most `room`, from the least to the greatest intensity: whole steps, prefill and decode; then the
/// longest-running case of each operator that most devices ran, forward; then backward; then second cases. Operators that take longer come first.
pub fn numbered<'a>(drawn: &[Drawn<'a>], room: usize) -> Vec<Id<'a>> {
    struct Seen {
        seconds: f64,
        intensity: f64,
        /// Devices that ran it: what only one did compares nothing.
        devices: usize,
    }
    let mut seen: HashMap<Id<'a>, Seen> = HashMap::new();
    for dot in drawn.iter().flat_map(|d| d.shown()) {
        let entry = seen.entry(dot.id()).or_insert(Seen { seconds: 0.0, intensity: dot.intensity(), devices: 0 });
        entry.seconds = entry.seconds.max(dot.time().median);
        entry.devices += 1;
    }
    let mut of_operator: HashMap<(&str, Direction), Vec<Id<'a>>> = HashMap::new();
    for &id in seen.keys() {
        of_operator.entry((id.0, id.2)).or_default().push(id);
    }
    // Rounds: what must be numbered before what. Within an operator and a direction the longest case is in the first round.
    let mut order: Vec<(usize, f64, Id<'a>)> = Vec::new();
    for ids in of_operator.values_mut() {
        ids.sort_by(|a, b| {
            let (x, y) = (&seen[a], &seen[b]);
            y.devices.cmp(&x.devices).then(y.seconds.total_cmp(&x.seconds)).then(a.1.cmp(b.1))
        });
        for (nth, &id) in ids.iter().enumerate() {
            let first_round = match id.2 {
                Direction::Step | Direction::Prefill | Direction::Decode => 0,
                Direction::Forward => 1,
                Direction::Backward => 2,
            };
            order.push((first_round + 2 * nth, seen[&id].seconds, id));
        }
    }
    order.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.total_cmp(&a.1)).then((a.2.0, a.2.1).cmp(&(b.2.0, b.2.1))));
    let mut chosen: Vec<Id<'a>> = order.into_iter().take(room).map(|o| o.2).collect();
    chosen.sort_by(|a, b| seen[a].intensity.total_cmp(&seen[b].intensity).then((a.0, a.1).cmp(&(b.0, b.1))));
    chosen
}
