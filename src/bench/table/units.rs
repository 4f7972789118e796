//! Quantities in words: three figures and the unit a person would say.

use crate::bench::report::Direction;

const PREFIXES: [(f64, &str); 5] = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, "")];

/// Three significant digits, without an exponent.
pub fn figures(x: f64) -> String {
    let size = x.abs();
    if size >= 99.95 {
        format!("{x:.0}")
    } else if size >= 9.995 {
        format!("{x:.1}")
    } else if size >= 0.0995 {
        format!("{x:.2}")
    } else if x == 0.0 {
        "0".into()
    } else {
        let digits = (2.0 - size.log10().floor()).clamp(0.0, 12.0) as usize;
        format!("{x:.digits$}")
    }
}

fn with_prefix(x: f64, unit: &str) -> String {
    // 999.6 M would be printed as 1000 M.
    let (scale, prefix) = PREFIXES.into_iter().find(|(scale, _)| x.abs() >= 0.9995 * scale).unwrap_or((1.0, ""));
    format!("{} {prefix}{unit}", figures(x / scale))
}

/// `234 GFLOP/s`; operations on integers are called OP/s.
pub fn operations(rate: f64, kind: &str) -> String {
    with_prefix(rate, if kind.starts_with("int") { "OP/s" } else { "FLOP/s" })
}

/// `33.4 GB/s`, decimal as bandwidths are.
pub fn bandwidth(rate: f64) -> String {
    with_prefix(rate, "B/s")
}

/// `32 KiB`, binary as sizes of caches are.
pub fn size(bytes: u64) -> String {
    let units = [(1u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.into_iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) if bytes.is_multiple_of(unit) => format!("{} {name}", bytes / unit),
        Some((unit, name)) => format!("{} {name}", figures(bytes as f64 / unit as f64)),
        None => format!("{bytes} B"),
    }
}

/// `3.21 ms`
pub fn seconds(t: f64) -> String {
    let units = [(1.0, "s"), (1e-3, "ms"), (1e-6, "\u{b5}s"), (1e-9, "ns")];
    let (unit, name) = units.into_iter().find(|(unit, _)| t >= 0.9995 * unit).unwrap_or(units[3]);
    format!("{} {name}", figures(t / unit))
}

/// `72 %`; below ten, one digit more.
pub fn percent(share: f64) -> String {
    let percent = 100.0 * share;
    if percent.abs() < 9.95 { format!("{percent:.1} %") } else { format!("{percent:.0} %") }
}

pub fn direction(direction: Direction) -> &'static str {
    match direction {
        Direction::Forward => "forward",
        Direction::Backward => "backward",
        Direction::Step => "training step",
        Direction::Prefill => "prefill",
        Direction::Decode => "decode",
    }
}

/// `2026-11-22 17:05 UTC`; the number itself where it is no date.
pub fn date(unix_time: u64) -> String {
    let format = time::macros::format_description!("[year]-[month]-[day] [hour]:[minute] UTC");
    i64::try_from(unix_time)
        .ok()
        .and_then(|t| time::OffsetDateTime::from_unix_timestamp(t).ok())
        .and_then(|t| t.format(format).ok())
        .unwrap_or_else(|| format!("{unix_time} s since 1970"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_have_three_figures_and_the_nearest_unit() {
        assert_eq!(operations(233.96e9, "f32"), "234 GFLOP/s");
        assert_eq!(operations(999.7e9, "int8 dot"), "1.00 TOP/s");
        assert_eq!(bandwidth(33.44e9), "33.4 GB/s");
        assert_eq!(size(32 << 10), "32 KiB");
        assert_eq!(size(1536 << 10), "1.50 MiB");
        assert_eq!(seconds(3.214e-3), "3.21 ms");
        assert_eq!(seconds(4e-9), "4.00 ns");
        assert_eq!(seconds(2e-10), "0.20 ns");
        assert_eq!(percent(0.0412), "4.1 %");
        assert_eq!(percent(0.774), "77 %");
        assert_eq!(figures(0.00123), "0.00123");
        assert_eq!(date(0), "1970-01-01 00:00 UTC");
    }
}
