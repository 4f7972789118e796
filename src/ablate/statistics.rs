//! Means over seeds with Student's 95 % intervals, and differences paired by seed.

use serde::Serialize;

/// A mean, and the half-width of its 95 % interval where there are at least two values.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Interval {
    pub n: usize,
    pub mean: f64,
    /// t(0.975, n - 1) s / sqrt(n), with s the sample standard deviation; none for one value.
    pub half_width: Option<f64>,
}

impl Interval {
    /// Of values drawn independently; None without any.
    pub fn of(values: &[f64]) -> Option<Self> {
        let n = values.len();
        if n == 0 {
            return None;
        }
        let mean = values.iter().sum::<f64>() / n as f64;
        let half_width = (n > 1).then(|| {
            let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
            student_t(0.975, (n - 1) as f64) * (squares / (n - 1) as f64 / n as f64).sqrt()
        });
        Some(Interval { n, mean, half_width })
    }

    /// Of `b - a` for each seed that both have.
    pub fn of_difference(a: &[(u64, f64)], b: &[(u64, f64)]) -> Option<Self> {
        let partner = |seed: u64| a.iter().find(|(s, _)| *s == seed).map(|(_, value)| *value);
        let differences: Vec<f64> = b.iter().filter_map(|&(seed, value)| Some(value - partner(seed)?)).collect();
        Self::of(&differences)
    }

    /// Whether the interval holds zero; None where there is no interval.
    pub fn includes_zero(&self) -> Option<bool> {
        self.half_width.map(|half| self.mean.abs() <= half)
    }
}

/// The quantile of Student's t with `df` degrees of freedom at `p` in (0.5, 1).
pub fn student_t(p: f64, df: f64) -> f64 {
    // P(T > t) = I_x(df/2, 1/2) / 2 with x = df / (df + t^2) (Abramowitz and Stegun 26.7.1).
    let tail = |t: f64| 0.5 * incomplete_beta(df / (df + t * t), 0.5 * df, 0.5);
    let (mut low, mut high) = (0.0, 1.0);
    while tail(high) > 1.0 - p {
        high *= 2.0;
    }
    for _ in 0..100 {
        let middle = 0.5 * (low + high);
        if tail(middle) > 1.0 - p { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

/// The regularised incomplete beta function I_x(a, b), by its continued fraction (Press et al., Numerical Recipes, 6.4).
fn incomplete_beta(x: f64, a: f64, b: f64) -> f64 {
    if x <= 0.0 || x >= 1.0 {
        return x.clamp(0.0, 1.0);
    }
    if x > (a + 1.0) / (a + b + 2.0) {
        return 1.0 - incomplete_beta(1.0 - x, b, a);
    }
    let front = (ln_gamma(a + b) - ln_gamma(a) - ln_gamma(b) + a * x.ln() + b * (1.0 - x).ln()).exp() / a;
    // Lentz's method.
    let away = |v: f64| if v.abs() < 1e-300 { 1e-300 } else { v };
    let (mut c, mut d) = (1.0, 1.0 / away(1.0 - (a + b) * x / (a + 1.0)));
    let mut fraction = d;
    for m in 1..500 {
        let m = f64::from(m);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        let mut change = 1.0;
        for step in [even, odd] {
            d = 1.0 / away(1.0 + step * d);
            c = away(1.0 + step / c);
            change = c * d;
            fraction *= change;
        }
        if (change - 1.0).abs() < 1e-15 {
            break;
        }
    }
    front * fraction
}

/// ln of the gamma function for x > 0: Stirling's series, after moving x up to where it is exact to f64.
fn ln_gamma(mut x: f64) -> f64 {
    let mut shift = 0.0;
    while x < 15.0 {
        shift += x.ln();
        x += 1.0;
    }
    let i = 1.0 / (x * x);
    let series = (1.0 / 12.0 - i * (1.0 / 360.0 - i * (1.0 / 1260.0 - i * (1.0 / 1680.0 - i / 1188.0)))) / x;
    (x - 0.5) * x.ln() - x + 0.5 * (2.0 * std::f64::consts::PI).ln() + series - shift
}

/// The value below which a share `q` of the sorted values lies, between neighbours in a straight line.
pub fn quantile(sorted: &[f64], q: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let at = q * last as f64;
    let (low, high) = (at.floor() as usize, at.ceil() as usize);
    Some(sorted[low] + (at - low as f64) * (sorted[high] - sorted[low]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_students_t_are_those_of_the_tables() {
        for (df, expected) in [
            (1.0, 12.706_204_736),
            (2.0, 4.302_652_730),
            (3.0, 3.182_446_305),
            (4.0, 2.776_445_105),
            (9.0, 2.262_157_163),
            (30.0, 2.042_272_456),
            (1000.0, 1.962_339_081),
        ] {
            let t = student_t(0.975, df);
            assert!((t - expected).abs() < 1e-8 * expected, "df {df}: {t}");
        }
        assert!((student_t(0.95, 5.0) - 2.015_048_373).abs() < 1e-8);
    }

    #[test]
    fn the_interval_of_five_numbers_is_the_one_worked_by_hand() {
        // Mean 3, s^2 = 10/4, half = 2.776445 sqrt(2.5 / 5).
        let interval = Interval::of(&[1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
        assert_eq!((interval.n, interval.mean), (5, 3.0));
        assert!((interval.half_width.unwrap() - 2.776_445_105 * 0.5f64.sqrt()).abs() < 1e-8);
        assert_eq!(interval.includes_zero(), Some(false));
        assert_eq!(Interval::of(&[7.0]), Some(Interval { n: 1, mean: 7.0, half_width: None }));
        assert_eq!(Interval::of(&[7.0]).unwrap().includes_zero(), None);
        assert_eq!(Interval::of(&[]), None);
    }

    #[test]
    fn pairing_by_seed_sees_a_difference_that_the_spread_of_seeds_hides() {
        let a = [(1, 2.0), (2, 3.0), (3, 4.0)];
        let b = [(3, 4.12), (1, 2.1), (2, 3.11), (9, 50.0)];
        let difference = Interval::of_difference(&a, &b).unwrap();
        assert_eq!(difference.n, 3);
        assert!((difference.mean - 0.11).abs() < 1e-12);
        // s = 0.01, half = 4.302653 * 0.01 / sqrt(3).
        assert!((difference.half_width.unwrap() - 0.043_026_527_3 / 3f64.sqrt()).abs() < 1e-9);
        assert_eq!(difference.includes_zero(), Some(false));
        let own = Interval::of(&a.map(|(_, v)| v)).unwrap();
        assert!(own.half_width.unwrap() > 2.0, "the seeds themselves are far apart");
        assert_eq!(Interval::of_difference(&a, &[(4, 1.0)]), None);
        assert_eq!(Interval::of(&[-1.0, 1.0]).unwrap().includes_zero(), Some(true));
    }

    #[test]
    fn a_median_lies_between_the_two_in_the_middle() {
        assert_eq!(quantile(&[1.0, 2.0, 4.0, 8.0], 0.5), Some(3.0));
        assert_eq!(quantile(&[5.0], 0.25), Some(5.0));
        assert_eq!(quantile(&[], 0.5), None);
    }
}
