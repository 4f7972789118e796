//! The report as a table for people: each device's ceilings, then every operator under them.

pub mod paint;
pub mod units;

use super::report::{Bound, Ceilings, Crossover, DeviceReport, Dot, Report, Stat};
use paint::{Pen, cut, wrapped};
use std::fmt::Write;

/// Narrower terminals get the layout of this width.
const NARROWEST: usize = 80;
/// From this width on, operators have a column of their own and shares a bar.
const WIDE: usize = 112;
const BAR: usize = 10;

/// `width` in columns; `colour` where the reader is a terminal that wants it.
pub fn render(report: &Report, width: usize, colour: bool) -> String {
    let width = width.clamp(NARROWEST, 160);
    let pen = Pen { colour };
    let mut out = String::new();
    head(&mut out, report, width, &pen);
    for device in &report.devices {
        out.push('\n');
        ceilings(&mut out, device, width, &pen);
        dots(&mut out, device, width, &pen);
    }
    if !report.crossovers.is_empty() {
        let _ = writeln!(out, "\n{}", pen.bold("Where a GPU pays off"));
        for crossover in &report.crossovers {
            lines(&mut out, "  ", &pays_off(crossover), width);
        }
    }
    for warning in &report.warnings {
        out.push('\n');
        for (i, line) in wrapped(warning, width - 9).into_iter().enumerate() {
            let _ = writeln!(out, "{}{line}", if i == 0 { pen.yellow("warning: ") } else { " ".repeat(9) });
        }
    }
    out
}

fn head(out: &mut String, report: &Report, width: usize, pen: &Pen) {
    let host = &report.host;
    let mut facts = vec![host.cpu.clone(), format!("{} cores", host.cores), host.simd.clone(), host.system.clone()];
    facts.extend(host.memory_bytes.map(units::size));
    facts.extend(host.power.as_ref().map(|p| format!("on {p}")));
    facts.extend(host.power_profile.clone());
    facts.retain(|f| !f.is_empty());
    let quick = if report.quick { "quick, " } else { "" };
    let _ = writeln!(
        out,
        "{}  {}, {quick}took {}",
        pen.bold("Roofline"),
        units::date(report.unix_time),
        units::seconds(report.took_seconds)
    );
    lines(out, "  ", &facts.join(", "), width);
    if let Some(filter) = &report.filter {
        lines(out, "  ", &format!("only what matches `{filter}`"), width);
    }
}

fn lines(out: &mut String, indent: &str, text: &str, width: usize) {
    for line in wrapped(text, width - indent.len()) {
        let _ = writeln!(out, "{indent}{line}");
    }
}

/// A name and, beside it, entries that are broken over lines only between each other.
fn entries(out: &mut String, name: &str, entries: &[String], width: usize, pen: &Pen) {
    const NAME: usize = 14;
    if entries.is_empty() {
        return;
    }
    let mut line = String::new();
    let mut first = true;
    let mut flush = |line: &mut String, out: &mut String| {
        let name = if std::mem::take(&mut first) { name } else { "" };
        let _ = writeln!(out, "  {}{line}", pen.dim(&format!("{name:<NAME$}")));
        line.clear();
    };
    for entry in entries {
        let room = width - 2 - NAME;
        if !line.is_empty() && line.chars().count() + 3 + entry.chars().count() > room {
            flush(&mut line, out);
        }
        if !line.is_empty() {
            line.push_str("   ");
        }
        line.push_str(&cut(entry, room));
    }
    flush(&mut line, out);
}

/// ` ±2 %`: half the distance of the quartiles.
fn spread(stat: &Stat) -> String {
    format!("\u{b1}{}", units::percent(stat.spread() / 2.0))
}

fn ceilings(out: &mut String, device: &DeviceReport, width: usize, pen: &Pen) {
    let c: &Ceilings = &device.ceilings;
    let mut facts = vec![device.name.clone()];
    facts.extend((!device.driver.is_empty()).then(|| device.driver.clone()));
    let threads = device.threads.filter(|_| !device.name.contains("thread"));
    facts.extend(threads.map(|n| if n == 1 { "one thread".into() } else { format!("{n} threads") }));
    facts.extend(device.software.then(|| "emulated on the CPU".into()));
    let name = cut(&facts.join(", "), width.saturating_sub(device.id.chars().count() + 2));
    let _ = writeln!(out, "{}  {name}", pen.bold(&device.id));
    let peaks: Vec<String> = (c.compute.iter())
        .map(|p| {
            // Shares are counted against the best; a median far from it tells of a busy machine.
            let best = format!("{} {}", p.kind, units::operations(p.rate.best, &p.kind));
            let busy = p.rate.median < 0.9 * p.rate.best;
            if busy { format!("{best} (median {})", units::operations(p.rate.median, &p.kind)) } else { best }
        })
        .collect();
    entries(out, "arithmetic", &peaks, width, pen);
    let levels: Vec<String> = (c.levels.iter())
        .map(|l| {
            let holds = l.holds.map_or(String::new(), |n| format!(" (to {})", units::size(n)));
            format!("{} {}{holds}", l.name, units::bandwidth(l.bytes_per_second))
        })
        .collect();
    entries(out, "memory", &levels, width, pen);
    if let (Some(peak), Some(memory)) = (c.compute.iter().find(|p| p.kind == "f32"), c.levels.last()) {
        let corner = peak.rate.best / memory.bytes_per_second;
        let told = format!("{} FLOP/byte", units::figures(corner));
        let meaning = "with fewer, memory is the limit; with more, f32 arithmetic";
        entries(out, "corner", &[told, meaning.into()], width, pen);
    }
    let strides = [4, 64, 4096].into_iter().filter_map(|bytes| c.strides.iter().find(|s| s.stride_bytes == bytes));
    let moves: Vec<String> =
        [("workgroup memory", &c.workgroup_memory), ("upload", &c.upload), ("download", &c.download)]
            .into_iter()
            .filter_map(|(name, stat)| stat.map(|s| format!("{name} {} {}", units::bandwidth(s.median), spread(&s))))
            .chain(
                strides.map(|s| {
                    format!("one access every {}: {}", units::size(s.stride_bytes), units::seconds(s.seconds))
                }),
            )
            .collect();
    entries(out, "moving", &moves, width, pen);
    let overheads: Vec<String> =
        c.overheads.iter().map(|o| format!("{} {}", o.kind, units::seconds(o.time.median))).collect();
    entries(out, "overhead", &overheads, width, pen);
}

/// Dots by operator, in the order in which operators are first met.
fn groups(dots: &[Dot]) -> Vec<(&str, Vec<&Dot>)> {
    let mut groups: Vec<(&str, Vec<&Dot>)> = Vec::new();
    for dot in dots {
        match groups.iter_mut().find(|g| g.0 == dot.operator) {
            Some(group) => group.1.push(dot),
            None => groups.push((&dot.operator, vec![dot])),
        }
    }
    groups
}

struct Columns {
    /// 0: operators have lines of their own.
    operator: usize,
    case: usize,
    bar: bool,
}

fn dots(out: &mut String, device: &DeviceReport, width: usize, pen: &Pen) {
    if device.dots.is_empty() {
        return;
    }
    // direction 8, time 8, spread 6, GFLOP/s 7, GB/s 6, of roof 7, limit 8, two spaces before each but the spread, indent 2
    const FIXED: usize = 8 + 8 + 6 + 7 + 6 + 7 + 8 + 6 * 2 + 1 + 2;
    let wide = width >= WIDE;
    let operator =
        if wide { device.dots.iter().map(|d| d.operator.chars().count()).max().unwrap_or(0).clamp(8, 24) } else { 0 };
    let used = FIXED + if wide { operator + 2 + BAR + 1 } else { 0 };
    let longest = device.dots.iter().map(|d| d.case.chars().count()).max().unwrap_or(0);
    let columns = Columns { operator, case: longest.max(12).min(width - used), bar: wide };
    out.push('\n');
    let first = if wide {
        format!("{:operator$}  {:w$}", "operator", "case", w = columns.case)
    } else {
        format!("{:w$}", "case", w = columns.case)
    };
    let bar = if columns.bar { " ".repeat(BAR + 1) } else { String::new() };
    let head = format!(
        "  {first}  {:8}  {:>8} {:6}  {:>7}  {:>6}  {:>7}{bar}  {:8}",
        "", "time", "", "GFLOP/s", "GB/s", "of roof", "limit"
    );
    let _ = writeln!(out, "{}", pen.dim(head.trim_end()));
    for (operator, group) in groups(&device.dots) {
        if !wide {
            let _ = writeln!(out, "  {}", pen.bold(&cut(operator, width - 2)));
        }
        for (nth, dot) in group.into_iter().enumerate() {
            row(out, dot, nth == 0, &columns, pen);
        }
    }
}

fn row(out: &mut String, dot: &Dot, first: bool, columns: &Columns, pen: &Pen) {
    let time = dot.time();
    let operator = match (columns.operator, first) {
        (0, _) => String::new(),
        (n, true) => format!("{}  ", pen.bold(&format!("{:n$}", cut(&dot.operator, n)))),
        (n, false) => " ".repeat(n + 2),
    };
    let rate = |amount: f64| if amount > 0.0 { units::figures(amount / time.median / 1e9) } else { "-".into() };
    let direction = units::direction(dot.direction).trim_start_matches("training ");
    let share = pen.graded(dot.share, &format!("{:>7}", units::percent(dot.share)));
    let bar =
        if columns.bar { format!(" {}", pen.graded(dot.share, &paint::bar(dot.share, BAR))) } else { String::new() };
    let limit = match dot.bound {
        Bound::Compute => dot.compute.clone(),
        Bound::Memory => dot.level.clone(),
        Bound::Overhead => "launch".into(),
    };
    let case = columns.case;
    // The tokens per second of a step stand beside its case, or under it.
    let tokens = dot.tokens_per_second.map(|t| format!("{} tokens/s", units::figures(t)));
    let (label, below) = match tokens {
        Some(tokens) if dot.case.chars().count() + 2 + tokens.chars().count() <= case => {
            (format!("{}, {tokens}", dot.case), None)
        }
        tokens => (dot.case.clone(), tokens),
    };
    let line = format!(
        "  {operator}{:case$}  {direction:8}  {:>8} {}  {:>7}  {:>6}  {share}{bar}  {}",
        cut(&label, case),
        units::seconds(time.median),
        pen.dim(&format!("{:6}", spread(&time))),
        rate(dot.flops),
        rate(dot.bytes),
        cut(&limit, 8)
    );
    let _ = writeln!(out, "{}", line.trim_end());
    if let Some(tokens) = below {
        let _ = writeln!(out, "  {}  {}", " ".repeat(columns.operator), pen.dim(&tokens));
    }
}

fn pays_off(c: &Crossover) -> String {
    let what = match c.direction {
        super::report::Direction::Forward => c.operator.clone(),
        other if c.operator == units::direction(other) => c.operator.clone(),
        other => format!("{} {}", c.operator, units::direction(other)),
    };
    match (&c.case, c.flops) {
        (Some(case), _) => format!("{what}: {} is faster than the CPU from {case} on", c.gpu),
        (None, Some(flops)) => {
            format!("{what}: {} is faster than the CPU from {} MFLOP on", c.gpu, units::figures(flops / 1e6))
        }
        (None, None) => format!("{what}: {} was faster than the CPU at no size measured", c.gpu),
    }
}
