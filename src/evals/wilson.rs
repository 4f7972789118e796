//! Shares with their uncertainty.

use serde::Serialize;

/// The 0.975 quantile of the normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// `hits` of `n`, with the 95 % interval of Wilson (1927, "Probable inference, the law of succession, and statistical inference"):
/// the shares p for which the observed one lies within 1.96 standard deviations of p. Unlike the interval around the observed
/// share it is right at 0 and at 1 and for few trials.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Proportion {
    pub hits: u64,
    pub n: u64,
    /// `hits / n`; 0 of 0 is 0.
    pub rate: f64,
    pub low: f64,
    pub high: f64,
}

impl Proportion {
    /// # Panics
    /// If there are more hits than trials.
    pub fn new(hits: u64, n: u64) -> Self {
        assert!(hits <= n, "{hits} hits of {n}");
        if n == 0 {
            return Proportion { hits, n, rate: 0.0, low: 0.0, high: 1.0 };
        }
        let (trials, rate) = (n as f64, hits as f64 / n as f64);
        let scale = 1.0 + Z * Z / trials;
        let centre = (rate + Z * Z / (2.0 * trials)) / scale;
        let half = Z / scale * (rate * (1.0 - rate) / trials + Z * Z / (4.0 * trials * trials)).sqrt();
        // At the ends the bound is exactly 0 or 1; rounding would leave a little on the wrong side.
        let low = if hits == 0 { 0.0 } else { (centre - half).max(0.0) };
        let high = if hits == n { 1.0 } else { (centre + half).min(1.0) };
        Proportion { hits, n, rate, low, high }
    }

    /// Counts what is true.
    pub fn of(marks: impl IntoIterator<Item = bool>) -> Self {
        let (hits, n) = marks.into_iter().fold((0, 0), |(hits, n), mark| (hits + u64::from(mark), n + 1));
        Self::new(hits, n)
    }

    /// Whether this whole interval lies above that one.
    pub fn above(&self, other: &Proportion) -> bool {
        self.low > other.high
    }
}

/// `34.5 % [28.3, 41.3]`
impl std::fmt::Display for Proportion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [rate, low, high] = [self.rate, self.low, self.high].map(|share| 100.0 * share);
        f.pad(&format!("{rate:.1} % [{low:.1}, {high:.1}]"))
    }
}
