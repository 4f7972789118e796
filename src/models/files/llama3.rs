//! The frequencies of Llama 3.1, which GGUF has as a list of divisors, one a pair, and we have as the four numbers they come from.

use crate::config::{LlamaConfig, RopeScaling};

/// What every frequency is divided by.
pub(super) fn factors(c: &LlamaConfig) -> Vec<f32> {
    let plain = LlamaConfig { rope_scaling: RopeScaling::None, ..c.clone() };
    let (scaled, plain) = (c.rope_frequencies().0, plain.rope_frequencies().0);
    plain.iter().zip(&scaled).map(|(p, s)| (p / s) as f32).collect()
}

/// Finds the numbers that give these divisors. Original context and the two limits are known only up to a common factor, which
/// `original`, if the file says it, or Llama 3's own context fixes.
///
/// # Errors
/// Divisors of another kind.
pub(super) fn set(c: &mut LlamaConfig, divisors: &[f32], original: Option<usize>) -> Result<(), String> {
    let most = divisors.iter().copied().fold(1.0f32, f32::max);
    if !divisors.iter().all(|d| d.is_finite() && *d >= 1.0) {
        return Err("divisors of RoPE's frequencies must be at least 1".into());
    }
    if most == 1.0 {
        return Ok(());
    }
    let original = original.unwrap_or(8192);
    let plain = c.rope_frequencies().0;
    // What the models that came with it have, then what the divisors say.
    let tried = [Some((1.0, 4.0)), line(&plain, divisors, f64::from(most), original)];
    for (low, high) in tried.into_iter().flatten() {
        let mut candidate = LlamaConfig {
            rope_scaling: RopeScaling::Llama3,
            rope_factor: f64::from(most),
            rope_original_context: original,
            rope_low_freq_factor: low,
            rope_high_freq_factor: high,
            ..c.clone()
        };
        candidate.resolve();
        let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-5 * b.abs();
        if candidate.validate().is_ok() && factors(&candidate).iter().zip(divisors).all(near) {
            *c = candidate;
            return Ok(());
        }
    }
    Err("the divisors of RoPE's frequencies are not those of Llama 3, others are not supported".into())
}

/// Between the limits, the share of a frequency that is left alone grows in a line with it; two pairs there, or one and where the
/// line begins or ends, give the line.
fn line(plain: &[f64], divisors: &[f32], factor: f64, original: usize) -> Option<(f64, f64)> {
    // Turns a token.
    let turns: Vec<f64> = plain.iter().map(|w| w / std::f64::consts::TAU).collect();
    let share = |d: f32| (1.0 / f64::from(d) - 1.0 / factor) / (1.0 - 1.0 / factor);
    let points: Vec<(f64, f64)> = turns.iter().zip(divisors).map(|(&x, &d)| (x, share(d))).collect();
    let between: Vec<(f64, f64)> = points.iter().copied().filter(|p| p.1 > 1e-6 && p.1 < 1.0 - 1e-6).collect();
    let slowest_whole = points.iter().copied().filter(|p| p.1 >= 1.0 - 1e-6).map(|p| p.0).fold(f64::NAN, f64::min);
    let fastest_divided = points.iter().copied().filter(|p| p.1 <= 1e-6).map(|p| p.0).fold(f64::NAN, f64::max);
    let (a, b) = match between[..] {
        [first, .., last] => (first, last),
        [only] if fastest_divided.is_finite() => (only, (fastest_divided, 0.0)),
        [only] if slowest_whole.is_finite() => ((slowest_whole, 1.0), only),
        // Any limits between the two.
        [] if slowest_whole.is_finite() && fastest_divided.is_finite() => {
            let middle = (slowest_whole * fastest_divided).sqrt();
            (((slowest_whole * middle).sqrt(), 1.0), ((fastest_divided * middle).sqrt(), 0.0))
        }
        _ => return None,
    };
    let slope = (a.1 - b.1) / (a.0 - b.0);
    let span = original as f64 / slope;
    let low = a.0 * original as f64 - a.1 * span;
    (low > 0.0 && span > 0.0).then_some((low, low + span))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_found_again_from_the_divisors() {
        for (base, dims, factor, low, high, original, told) in [
            (500000.0, 128, 8.0, 1.0, 4.0, 8192, None),
            (500000.0, 64, 32.0, 1.0, 4.0, 8192, Some(8192)),
            (50.0, 8, 4.0, 1.0, 4.0, 48, None),
            (10000.0, 16, 4.0, 1.5, 3.0, 256, Some(256)),
            (10000.0, 8, 4.0, 1.0, 4.0, 128, None),
        ] {
            let mut c = LlamaConfig {
                heads: 2,
                width: 2 * dims,
                context: 1 << 14,
                rope_base: base,
                rope_scaling: RopeScaling::Llama3,
                rope_factor: factor,
                rope_original_context: original,
                rope_low_freq_factor: low,
                rope_high_freq_factor: high,
                ..LlamaConfig::default()
            };
            c.resolve();
            let expected = factors(&c);
            let mut found = LlamaConfig { rope_scaling: RopeScaling::None, rope_factor: 1.0, ..c.clone() };
            set(&mut found, &expected, told).unwrap();
            assert_eq!(found.rope_scaling, RopeScaling::Llama3);
            for (a, b) in factors(&found).iter().zip(&expected) {
                assert!((a - b).abs() < 1e-5 * b, "{a} {b}");
            }
        }
    }

    #[test]
    fn other_divisors_are_refused() {
        let mut c = LlamaConfig::default();
        c.resolve();
        let mut divisors = vec![1.0f32; 16];
        set(&mut c, &divisors, None).unwrap();
        assert_eq!(c.rope_scaling, RopeScaling::None);
        divisors[3] = 7.0;
        assert!(set(&mut c, &divisors, None).unwrap_err().contains("Llama 3"));
        divisors[3] = f32::NAN;
        assert!(set(&mut c, &divisors, None).is_err());
    }
}
