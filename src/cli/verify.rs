//! `lynx-gpu verify`: do this machine's devices compute what the f64 reference says? The report is made for a bug thread.

use crate::device::choose::{self, choose_with};
use crate::device::gpu::{Context, Options};
use crate::device::{Device, host};
use crate::ops::check::{self, Parity};
use crate::ops::workloads::workloads;
use crate::ops::{Spec, registry};
use crate::{Error, Result};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::fmt::Write;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    /// Device to check: all, cpu, gpu, gpu:N or part of a name
    #[arg(long, default_value = "all")]
    device: String,
    /// Check only operators whose name contains this
    #[arg(long, value_name = "NAME")]
    op: Option<String>,
    /// Write the report (Markdown) to this file
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// One operator on one device.
#[derive(Clone, Debug, Serialize)]
struct Row {
    operator: String,
    cases: usize,
    gradients: usize,
    /// Largest error over its tolerance; above 1 is a difference.
    worst: f64,
    split: usize,
    fallback: usize,
    failed: usize,
}

#[derive(Serialize)]
struct Checked {
    device: String,
    driver: String,
    rows: Vec<Row>,
}

#[derive(Serialize)]
struct Report {
    program: String,
    system: String,
    cpu: host::Cpu,
    operators: usize,
    cases: usize,
    comparisons: usize,
    /// Calls that took several dispatches because of a limit of the device.
    split: usize,
    /// Calls that ran on the CPU because the GPU could not take them.
    fallback: usize,
    devices: Vec<Checked>,
    differences: Vec<Parity>,
}

pub fn run(args: Args, json: bool) -> Result<()> {
    let specs = chosen(args.op.as_deref())?;
    let devices = devices(&args.device)?;
    let report = check(&specs, &devices)?;
    if let Some(path) = &args.report {
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
        folder.map_or(Ok(()), std::fs::create_dir_all).map_err(|e| Error::io(path, e))?;
        crate::train::files::write_atomic(path, markdown(&report).as_bytes())?;
        eprintln!("report: {}", path.display());
    }
    if json {
        let text =
            serde_json::to_string_pretty(&report).map_err(|e| Error::Failed(format!("cannot write JSON: {e}")))?;
        println!("{text}");
    } else {
        print!("{}", text(&report));
    }
    if report.differences.is_empty() {
        return Ok(());
    }
    let hint = if args.report.is_some() { "" } else { "; --report FILE writes a report for a bug thread" };
    Err(Error::Failed(format!("{} of {} comparisons differ{hint}", report.differences.len(), report.comparisons)))
}

fn chosen(op: Option<&str>) -> Result<Vec<Spec>> {
    let all = registry();
    let names: Vec<_> = all.iter().map(|s| s.name).collect();
    let part = op.unwrap_or_default();
    let specs: Vec<Spec> = all.into_iter().filter(|s| s.name.contains(part)).collect();
    if specs.is_empty() {
        return Err(Error::Config(format!(
            "--op {part}: no operator has this in its name (there are: {})",
            names.join(", ")
        )));
    }
    Ok(specs)
}

/// The devices to check, opened with checked shaders: the CPU and every GPU, or the one named.
fn devices(spec: &str) -> Result<Vec<Device>> {
    let options = Options { checked: true, ..Options::default() };
    if !spec.trim().eq_ignore_ascii_case("all") {
        return Ok(vec![choose_with(spec, options, workloads)?.device]);
    }
    let adapters = choose::adapters();
    let summary: Vec<_> = adapters.iter().map(|(a, _)| a.clone()).collect();
    let mut devices = vec![Device::Cpu];
    for ((_, adapter), duplicate) in adapters.iter().zip(choose::duplicates(&summary)) {
        if duplicate.is_none() {
            devices.push(Device::Gpu(Context::open(adapter, options)?));
        }
    }
    Ok(devices)
}

fn check(specs: &[Spec], devices: &[Device]) -> Result<Report> {
    let cases: Vec<_> = specs.iter().map(|s| (s.name, (s.cases)())).collect();
    let count: usize = cases.iter().map(|(_, c)| c.len()).sum();
    // Hidden where stderr is not a terminal.
    let bar = ProgressBar::new((count * devices.len()) as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {eta} {msg}") {
        bar.set_style(style);
    }
    let mut checked: Vec<Checked> = devices.iter().map(described).collect();
    let mut differences = Vec::new();
    for (name, cases) in cases {
        for c in &mut checked {
            let operator = name.to_string();
            c.rows.push(Row { operator, cases: 0, gradients: 0, worst: 0.0, split: 0, fallback: 0, failed: 0 });
        }
        for case in cases {
            bar.set_message(format!("{name} [{}]", case.label));
            let judged = check::judge(name, &case)
                .map_err(|e| Error::Failed(format!("{name} [{}]: the reference itself fails: {e}", case.label)))?;
            for (device, c) in devices.iter().zip(&mut checked) {
                let parity = judged.compare(device);
                let row = c.rows.last_mut().expect("a row was added for this operator");
                row.cases += 1;
                row.gradients += judged.gradients();
                row.worst = row.worst.max(parity.worst);
                row.split += parity.split;
                row.fallback += parity.fallback;
                if !parity.ok {
                    row.failed += 1;
                    differences.push(parity);
                }
                bar.inc(1);
            }
        }
    }
    bar.finish_and_clear();
    let total = |f: fn(&Row) -> usize| checked.iter().flat_map(|c| &c.rows).map(f).sum();
    Ok(Report {
        program: format!("lynx-gpu {}", env!("CARGO_PKG_VERSION")),
        system: host::system(),
        cpu: host::cpu(),
        operators: specs.len(),
        cases: count,
        comparisons: total(|r| r.cases),
        split: total(|r| r.split),
        fallback: total(|r| r.fallback),
        devices: checked,
        differences,
    })
}

fn described(device: &Device) -> Checked {
    let driver = match device {
        Device::Gpu(context) => format!("{} {}", context.info().driver, context.info().driver_info),
        _ => format!("kernels for {}", kernels_cpu::simd::level().name()),
    };
    Checked { device: device.name(), driver: driver.trim().into(), rows: vec![] }
}

impl Report {
    fn counts(&self) -> String {
        format!(
            "{} operators x {} cases x {} devices = {} comparisons; {} calls split, {} on the CPU twin; {} differences",
            self.operators,
            self.cases,
            self.devices.len(),
            self.comparisons,
            self.split,
            self.fallback,
            self.differences.len()
        )
    }
}

impl Row {
    fn verdict(&self) -> &'static str {
        if self.failed == 0 { "ok" } else { "FAIL" }
    }
}

fn text(report: &Report) -> String {
    let mut out = String::new();
    for d in &report.devices {
        let _ = writeln!(out, "{} ({})", d.device, d.driver);
        let width = d.rows.iter().map(|r| r.operator.len()).max().unwrap_or(0).max(8);
        let _ = writeln!(out, "  {:width$}  cases  gradients  worst  split  on cpu", "operator");
        for r in &d.rows {
            let (name, cases, gradients, worst) = (&r.operator, r.cases, r.gradients, r.worst);
            let (split, fallback, verdict) = (r.split, r.fallback, r.verdict());
            let _ = writeln!(
                out,
                "  {name:width$}  {cases:>5}  {gradients:>9}  {worst:>5.2}  {split:>5}  {fallback:>6}  {verdict}"
            );
        }
        out.push('\n');
    }
    for p in &report.differences {
        let _ = writeln!(out, "{} [{}] on {}: {}", p.operator, p.case, p.device, p.message);
    }
    let _ = writeln!(out, "{}", report.counts());
    out.push_str("worst: largest error as a share of its tolerance; over 1 is a difference\n");
    out
}

fn markdown(report: &Report) -> String {
    let mut out = format!("# {} verify\n\n", report.program);
    let cpu = &report.cpu;
    let _ = writeln!(out, "- system: {}", report.system);
    let _ = writeln!(out, "- cpu: {}, {} cores, {} threads, {}", cpu.model, cpu.cores, cpu.threads, cpu.simd);
    for d in &report.devices {
        let _ = writeln!(out, "- device: {} ({})", d.device, d.driver);
    }
    let _ = writeln!(out, "- result: {}\n", report.counts());
    if !report.differences.is_empty() {
        out.push_str(
            "## Differences\n\n| operator | case | device | error / tolerance | message |\n|---|---|---|---|---|\n",
        );
        for p in &report.differences {
            let cell = |s: &str| s.replace('|', "\\|").replace('\n', " ");
            let (case, message) = (cell(&p.case), cell(&p.message));
            let _ = writeln!(out, "| {} | {case} | {} | {:.2} | {message} |", p.operator, p.device, p.worst);
        }
        out.push('\n');
    }
    for d in &report.devices {
        let _ = writeln!(out, "## {}\n", d.device);
        out.push_str("| operator | cases | gradients | worst error / tolerance | split | on the CPU | |\n|---|---|---|---|---|---|---|\n");
        for r in &d.rows {
            let (name, worst, verdict) = (&r.operator, r.worst, r.verdict());
            let (cases, gradients, split, fallback) = (r.cases, r.gradients, r.split, r.fallback);
            let _ = writeln!(out, "| {name} | {cases} | {gradients} | {worst:.3} | {split} | {fallback} | {verdict} |");
        }
        out.push('\n');
    }
    out
}
