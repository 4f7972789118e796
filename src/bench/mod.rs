//! The roofline: what a device can do at most, measured, and how far under that each kernel stands. `report` is what a
//! measurement gives; everything that is printed, drawn or compared is made from it. `docs/roofline.md` says how it is measured.

pub mod chart;
pub mod compare;
pub mod context;
mod cpu;
pub mod crossover;
pub mod describe;
pub mod dots;
pub mod forms;
pub mod generation;
mod gpu;
mod host;
mod levels;
mod nothing;
pub mod report;
pub mod schema;
mod steps;
pub mod table;
mod targets;
pub mod terminal;
pub mod throughput;
mod timing;

pub use report::Report;
pub use steps::stand_in;
pub use targets::Target;

use crate::device::roof::{self, Roof};
use crate::device::{Device, host as machine, probe};
use crate::{Error, Result};
use report::{Ceilings, DeviceReport, Dot, SCHEMA, VERSION};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use timing::{Allowance, Effort};

/// What to measure.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// `all`, `cpu`, `gpu:N` or part of a GPU's name (then the CPU is measured too).
    pub device: String,
    /// Only dots whose operator, case and direction contain this.
    pub filter: Option<String>,
    /// Fewer points and shorter samples: under a minute for the CPU.
    pub quick: bool,
}

/// How thorough a measurement is.
#[derive(Clone, Copy, Debug)]
pub struct Scope {
    pub quick: bool,
}

impl Scope {
    fn effort(&self) -> Effort {
        Effort::within(if self.quick { 0.03 } else { 0.3 })
    }
    /// Seconds for one access at one working set.
    fn point_seconds(&self) -> f64 {
        if self.quick { 0.012 } else { 0.1 }
    }
    /// Bytes of the largest arrays: far beyond caches, and what memory can spare.
    fn largest_working_set(&self) -> usize {
        let most = if self.quick { 256 << 20 } else { 1 << 30 };
        let spare = crate::device::host::available_bytes().map_or(usize::MAX, |b| (b / 8) as usize);
        most.min(spare).max(16 << 20)
    }
    /// Powers of two; not in a hurry also what lies between.
    fn working_sets(&self, smallest: usize, largest: usize) -> Vec<usize> {
        let mut sets = Vec::new();
        let mut size = smallest;
        while size <= largest {
            sets.push(size);
            if !self.quick && size * 3 / 2 <= largest {
                sets.push(size * 3 / 2);
            }
            size *= 2;
        }
        sets
    }
    /// Time for the dots of one device.
    fn dots_allowance(&self, software: bool) -> Allowance {
        match (self.quick, software) {
            (true, false) => Allowance::new(Some(Duration::from_secs(10)), 0.003, 0.1),
            (true, true) => Allowance::new(Some(Duration::from_secs(20)), 0.01, 0.3),
            (false, _) => Allowance::new(None, 0.02, 0.7),
        }
    }
    /// A run that is expected to take longer than this is left out.
    fn longest_run(&self) -> f64 {
        if self.quick { 0.25 } else { 8.0 }
    }
    /// Timed sizes of each operator; the lists begin with the ones that matter most.
    fn sizes_per_operator(&self) -> usize {
        if self.quick { 2 } else { usize::MAX }
    }
}

/// Told what is being measured, for a person who waits.
pub trait Progress {
    fn step(&mut self, what: &str);
}

impl Progress for () {
    fn step(&mut self, _: &str) {}
}

/// Measures the devices that `options` names.
pub fn roofline(options: &Options, progress: &mut dyn Progress) -> Result<Report> {
    let (begin, scope) = (Instant::now(), Scope { quick: options.quick });
    let unix_time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let items = chosen(options.filter.as_deref(), &scope)?;
    let targets = targets::resolve(&options.device)?;
    let host = host::describe();
    let mut warnings = host::warnings(&host);
    let mut devices = Vec::new();
    for target in &targets {
        let measured = measure_device(target, &items, options, progress, &mut warnings);
        match measured {
            Ok(device) => devices.push(device),
            // What was measured on other devices is kept.
            Err(e) if targets.len() > 1 => warnings.push(format!("{}: {e}", target.id)),
            Err(e) => return Err(e),
        }
    }
    if devices.is_empty() {
        return Err(Error::Device(format!("no device could be measured: {}", warnings.join("; "))));
    }
    let crossovers = crossover::crossovers(&devices);
    remember(&targets, &devices, &crossovers, &mut warnings);
    Ok(Report {
        schema: SCHEMA.into(),
        version: VERSION,
        program: env!("CARGO_PKG_VERSION").into(),
        unix_time,
        took_seconds: begin.elapsed().as_secs_f64(),
        host,
        quick: options.quick,
        filter: options.filter.clone(),
        devices,
        crossovers,
        warnings,
    })
}

/// The items that pass the filter.
fn chosen(filter: Option<&str>, scope: &Scope) -> Result<Vec<dots::Item>> {
    let all = dots::items(scope.sizes_per_operator());
    let Some(filter) = filter else { return Ok(all) };
    let wanted = filter.trim().to_lowercase();
    let found: Vec<dots::Item> = dots::items(usize::MAX).into_iter().filter(|i| i.title().contains(&wanted)).collect();
    // A filter may be meant for the whole steps.
    if found.is_empty() && !steps::titles().iter().any(|t| t.contains(&wanted)) {
        let mut names: Vec<&str> = all.iter().map(|i| i.operator).collect();
        names.dedup();
        return Err(Error::Config(format!(
            "--filter '{filter}' fits no measurement; operators: {}; whole steps: {}",
            names.join(", "),
            steps::titles().join(", ")
        )));
    }
    Ok(found)
}

/// Names of whole steps, as a filter finds them.
pub const STEP_WORDS: [&str; 4] = ["training step", "evaluation", "prefill", "decode"];

/// A roof to place dots under.
pub struct Under<'a> {
    pub roof: &'a Roof,
    pub ceilings: &'a Ceilings,
    pub scope: Scope,
}

fn measure_device(
    target: &Target,
    items: &[dots::Item],
    options: &Options,
    progress: &mut dyn Progress,
    warnings: &mut Vec<String>,
) -> Result<DeviceReport> {
    let scope = &Scope { quick: options.quick };
    let _threads = target.set_threads();
    progress.step(&format!("{}: ceilings", target.id));
    let ceilings = match &target.device {
        Device::Gpu(context) => gpu::ceilings(context, scope)?,
        _ => cpu::ceilings(scope)?,
    };
    let roof = levels::roof(&ceilings);
    let under = Under { roof: &roof, ceilings: &ceilings, scope: *scope };
    let mut report = DeviceReport {
        id: target.id.clone(),
        name: target.name.clone(),
        driver: target.driver.clone(),
        threads: target.threads,
        software: target.software,
        key: target.key.clone(),
        ceilings: ceilings.clone(),
        dots: vec![],
    };
    let allowance = scope.dots_allowance(target.software);
    let mut skipped: Vec<String> = Vec::new();
    for (i, item) in items.iter().enumerate() {
        progress.step(&format!("{}: {} {}", target.id, item.operator, item.case.label));
        match dot(item, &target.device, &under, &allowance, items.len() - i) {
            Ok(Ok(dot)) => report.dots.push(dot),
            Ok(Err(why)) => skipped.push(format!("{} {} ({why})", item.operator, item.case.label)),
            Err(e) if alive(&target.device) => {
                warnings.push(format!("{}: {} {}: {e}", target.id, item.operator, item.case.label))
            }
            Err(e) => {
                warnings.push(format!("{}: {e}; what was measured before is kept", target.id));
                return Ok(report);
            }
        }
    }
    if !skipped.is_empty() {
        skipped.dedup();
        warnings.push(format!("{}: left out: {}", target.id, skipped.join(", ")));
    }
    let mut doubtful = Vec::new();
    let mut step = |what: &str| progress.step(&format!("{}: {what}", target.id));
    report.dots.extend(steps::dots(&target.device, &under, options.filter.as_deref(), &mut doubtful, &mut step));
    warnings.extend(doubtful.into_iter().map(|w| format!("{}: {w}", target.id)));
    warnings.extend(doubts(&report));
    Ok(report)
}

/// A dot, or why there is none.
fn dot(
    item: &dots::Item,
    device: &Device,
    under: &Under,
    allowance: &Allowance,
    left: usize,
) -> Result<Result<Dot, String>> {
    let plan = dots::plan(item)?;
    let needed: u64 = plan.work.buffers.iter().map(|b| b.bytes).sum();
    if let Some(spare) = crate::device::host::available_bytes()
        && needed > spare / 2
    {
        return Ok(Err(format!("needs {} MiB, {} MiB are free", needed >> 20, spare >> 20)));
    }
    // A quarter of the roof is what an ordinary kernel reaches.
    let expected = under.roof.least(&plan.work, &[]).seconds * 4.0;
    if expected > under.scope.longest_run() {
        return Ok(Err(format!("may take {expected:.1} s")));
    }
    let mut ready = dots::ready(item, &plan, device)?;
    let effort = Effort::within(allowance.next(left));
    Ok(Ok(dots::time(item, &mut ready, device, (under.roof, under.ceilings), &effort)?))
}

fn alive(device: &Device) -> bool {
    match device {
        Device::Gpu(context) => context.check().is_ok(),
        _ => true,
    }
}

/// Wider quartiles than this share of the median are noise that hides a difference.
const NOISY: f64 = 0.25;
/// Times that grow by more than this from the first third to the last tell of heat.
const DRIFTING: f64 = 1.1;

/// What the spread and drift of a device's times say.
fn doubts(report: &DeviceReport) -> Vec<String> {
    let mut doubts = Vec::new();
    let count = report.dots.len().max(1);
    let noisy = report.dots.iter().filter(|d| d.time().spread() > NOISY).count();
    if noisy * 5 > count {
        let id = &report.id;
        doubts
            .push(format!("{id}: {noisy} of {count} dots are noisy (quartiles more than {NOISY} of the median apart)"));
    }
    let mut drifts: Vec<f64> = report.dots.iter().map(|d| d.time().drift).collect();
    drifts.sort_by(f64::total_cmp);
    if let Some(median) = drifts.get(drifts.len() / 2)
        && *median > DRIFTING
    {
        doubts.push(format!(
            "{}: times grow by {:.0} % while measuring (heat or clocks)",
            report.id,
            (median - 1.0) * 100.0
        ));
    }
    doubts
}

/// Keeps the roofs in the cache folder for `train` and for `--device auto`.
fn remember(
    targets: &[Target],
    devices: &[DeviceReport],
    crossovers: &[report::Crossover],
    warnings: &mut Vec<String>,
) {
    for device in devices {
        let Some(target) = targets.iter().find(|t| t.id == device.id) else { continue };
        let key = match &target.device {
            Device::Gpu(context) => probe::gpu_key(context.info()),
            _ if target.threads == Some(targets::all_threads()) => probe::cpu_key(&machine::cpu_model()),
            _ => continue,
        };
        let mut roof = levels::roof(&device.ceilings);
        // A measurement without whole steps does not forget where they cross.
        roof.step_crossover = crossover::of_steps(device, devices, crossovers)
            .or_else(|| roof::remembered(&key).and_then(|known| known.step_crossover));
        if let Err(e) = roof::remember(&key, roof) {
            warnings
                .push(format!("the ceilings are not remembered: {e} (set LYNX_CACHE to a folder that can be written)"));
        }
    }
}
