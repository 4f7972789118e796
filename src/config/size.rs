//! Sizes in bytes as people write and read them.

/// Reads `512MiB`, `2GiB`, `1.5GB`, `800 kB` or a plain number of bytes; case does not matter, and `B` may be left out (`2Gi`, `1.5G`).
///
/// # Errors
/// What is wrong with the text and what a size looks like.
pub fn parse(text: &str) -> Result<u64, String> {
    let examples = "write a size like 512MiB, 2GiB, 1.5GB, or a number of bytes";
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = (&text[..split], text[split..].trim());
    let value: f64 = number.parse().map_err(|_| format!("\"{text}\" is not a size; {examples}"))?;
    let lower = unit.to_ascii_lowercase();
    let scale: f64 = match lower.strip_suffix('b').unwrap_or(&lower) {
        "" => 1.0,
        "k" => 1e3,
        "m" => 1e6,
        "g" => 1e9,
        "t" => 1e12,
        "ki" => 1024.0,
        "mi" => 1024.0f64.powi(2),
        "gi" => 1024.0f64.powi(3),
        "ti" => 1024.0f64.powi(4),
        _ => return Err(format!("\"{unit}\" is not a unit of size (kB, MB, GB, TB, KiB, MiB, GiB, TiB); {examples}")),
    };
    let bytes = (value * scale).round();
    if bytes < 1.0 {
        return Err(format!("\"{text}\" is less than one byte; {examples}"));
    }
    if bytes >= u64::MAX as f64 {
        return Err(format!("\"{text}\" is more bytes than can be counted; {examples}"));
    }
    Ok(bytes as u64)
}

/// `1.50 GiB`, `3.2 MiB`, `17 B`.
pub fn show(n: u64) -> String {
    match n {
        0..1024 => format!("{n} B"),
        1024..1_048_576 => format!("{:.1} KiB", n as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", n as f64 / 1_048_576.0),
        _ => format!("{:.2} GiB", n as f64 / 1_073_741_824.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_the_units_people_use() {
        for (text, bytes) in [
            ("512MiB", 512 << 20),
            ("2GiB", 2 << 30),
            ("1.5GB", 1_500_000_000),
            ("0.5 gib", 1 << 29),
            ("3000", 3000),
            ("64b", 64),
            ("10k", 10_000),
            ("1Ki", 1024),
            (" 7 MB ", 7_000_000),
            ("1TiB", 1 << 40),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_size_is_refused_with_an_example() {
        for text in
            ["", "GiB", "2GiBs", "2 giga", "-1GiB", "1.2.3MB", "nan", "inf", "0", "0.0001B", "1e9", "99999999TiB"]
        {
            let error = parse(text).unwrap_err();
            assert!(error.contains("512MiB"), "{text}: {error}");
        }
    }
}
