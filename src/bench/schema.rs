//! Reading `roofline.json` back: its schema (`docs/roofline.schema.json`), its version, and whether its numbers can be meant.

use super::report::{DeviceReport, Report, SCHEMA, Stat, VERSION};
use crate::{Error, Result};
use serde_json::Value;
use std::collections::HashSet;
use std::path::Path;

const AGAIN: &str = "measure again with `lynx-gpu bench --roofline`";

/// Reads a file written by `bench --roofline`. Errors name the file, the key and what to do.
pub fn read(path: &Path) -> Result<Report> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    parse(&text, path)
}

/// The report in `text`; `path` is where it came from, for messages.
pub fn parse(text: &str, path: &Path) -> Result<Report> {
    let wrong = |what: String| Error::Data(format!("{}: {what}", path.display()));
    let value: Value = serde_json::from_str(text)
        .map_err(|e| wrong(format!("not JSON ({e}): the file is damaged or cut short; {AGAIN}")))?;
    match value.get("schema").and_then(Value::as_str) {
        Some(SCHEMA) => {}
        Some(other) => {
            return Err(wrong(format!(
                "key `schema` is \"{other}\", not \"{SCHEMA}\": give the roofline.json that `lynx-gpu bench --roofline` wrote"
            )));
        }
        None => {
            let what = "no key `schema`: this is no roofline report; give the roofline.json that `lynx-gpu bench --roofline` wrote";
            return Err(wrong(what.to_string()));
        }
    }
    match value.get("version").and_then(Value::as_u64) {
        Some(version) if version == u64::from(VERSION) => {}
        Some(version) => {
            let advice = if version < u64::from(VERSION) {
                format!("it was written by an older program; {AGAIN}")
            } else {
                "it was written by a newer program: use that one to read it".to_string()
            };
            return Err(wrong(format!(
                "key `version` is {version}, and this program reads version {VERSION}: {advice}"
            )));
        }
        None => {
            return Err(wrong(format!("key `version` is missing or no whole number: the file is damaged; {AGAIN}")));
        }
    }
    let report: Report = serde_path_to_error::deserialize(&value).map_err(|e| {
        let key = e.path().to_string();
        let key = if key == "." { String::new() } else { format!("key `{key}`: ") };
        wrong(format!("{key}{}: the file is damaged; {AGAIN}", e.into_inner()))
    })?;
    check(&report).map_err(|what| wrong(format!("{what}: the file is damaged or edited; {AGAIN}")))?;
    Ok(report)
}

/// What types cannot say. The first wrong key and what is wrong with it.
fn check(report: &Report) -> Result<(), String> {
    positive("took_seconds", report.took_seconds, true)?;
    let mut ids = HashSet::new();
    for (i, device) in report.devices.iter().enumerate() {
        let at = format!("devices[{i}]");
        if !ids.insert(&device.id) {
            return Err(format!("key `{at}.id`: \"{}\" is there twice", device.id));
        }
        ceilings(&at, device)?;
        dots(&at, device)?;
    }
    for (i, c) in report.crossovers.iter().enumerate() {
        if !ids.contains(&c.gpu) {
            return Err(format!("key `crossovers[{i}].gpu`: no device is called \"{}\"", c.gpu));
        }
        if let Some(flops) = c.flops {
            positive(&format!("crossovers[{i}].flops"), flops, true)?;
        }
    }
    Ok(())
}

fn ceilings(at: &str, device: &DeviceReport) -> Result<(), String> {
    let c = &device.ceilings;
    let at = format!("{at}.ceilings");
    for (i, peak) in c.compute.iter().enumerate() {
        stat(&format!("{at}.compute[{i}].rate"), &peak.rate, false)?;
    }
    for (i, point) in c.memory.iter().enumerate() {
        stat(&format!("{at}.memory[{i}].rate"), &point.rate, false)?;
    }
    for (i, level) in c.levels.iter().enumerate() {
        positive(&format!("{at}.levels[{i}].bytes_per_second"), level.bytes_per_second, false)?;
    }
    for (name, rate) in [("workgroup_memory", &c.workgroup_memory), ("upload", &c.upload), ("download", &c.download)] {
        if let Some(rate) = rate {
            stat(&format!("{at}.{name}"), rate, false)?;
        }
    }
    for (i, stride) in c.strides.iter().enumerate() {
        positive(&format!("{at}.strides[{i}].seconds"), stride.seconds, true)?;
    }
    for (i, overhead) in c.overheads.iter().enumerate() {
        stat(&format!("{at}.overheads[{i}].time"), &overhead.time, true)?;
    }
    Ok(())
}

fn dots(at: &str, device: &DeviceReport) -> Result<(), String> {
    let mut ids = HashSet::new();
    for (i, dot) in device.dots.iter().enumerate() {
        let at = format!("{at}.dots[{i}]");
        if !ids.insert(dot.id()) {
            return Err(format!(
                "key `{at}`: operator \"{}\", case \"{}\" and its direction are there twice",
                dot.operator, dot.case
            ));
        }
        for (name, value) in [
            ("flops", dot.flops),
            ("bytes", dot.bytes),
            ("roof_seconds", dot.roof_seconds),
            ("share", dot.share),
            ("tokens_per_second", dot.tokens_per_second.unwrap_or(0.0)),
        ] {
            positive(&format!("{at}.{name}"), value, true)?;
        }
        stat(&format!("{at}.seconds"), &dot.seconds, false)?;
        if let Some(seconds) = &dot.device_seconds {
            stat(&format!("{at}.device_seconds"), seconds, false)?;
        }
    }
    Ok(())
}

fn positive(key: &str, value: f64, or_zero: bool) -> Result<(), String> {
    if value.is_finite() && (value > 0.0 || or_zero && value == 0.0) {
        return Ok(());
    }
    Err(format!("key `{key}` is {value}, which is {}", if or_zero { "negative" } else { "not above zero" }))
}

fn stat(key: &str, stat: &Stat, or_zero: bool) -> Result<(), String> {
    for (name, value) in [("median", stat.median), ("low", stat.low), ("high", stat.high), ("best", stat.best)] {
        positive(&format!("{key}.{name}"), value, or_zero)?;
    }
    positive(&format!("{key}.drift"), stat.drift, true)?;
    if !(stat.low <= stat.median && stat.median <= stat.high) {
        return Err(format!(
            "key `{key}`: the median {} is not between its quartiles {} and {}",
            stat.median, stat.low, stat.high
        ));
    }
    if stat.samples == 0 {
        return Err(format!("key `{key}.samples` is 0, and nothing comes from no samples"));
    }
    Ok(())
}
