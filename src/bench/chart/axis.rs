//! A logarithmic axis.

/// Values `low..high` drawn between two pixels (`from` may be greater: y grows upwards).
#[derive(Clone, Copy, Debug)]
pub struct Axis {
    pub low: f64,
    pub high: f64,
    pub from: f64,
    pub to: f64,
}

impl Axis {
    /// Where a value is drawn; values outside at the edge.
    pub fn at(&self, value: f64) -> f64 {
        let part = (value.max(f64::MIN_POSITIVE) / self.low).ln() / (self.high / self.low).ln();
        self.from + part.clamp(0.0, 1.0) * (self.to - self.from)
    }

    pub fn holds(&self, value: f64) -> bool {
        value >= self.low && value <= self.high
    }

    /// Powers of ten within.
    pub fn decades(&self) -> Vec<f64> {
        let (low, high) = (self.low.log10() - 1e-9, self.high.log10() + 1e-9);
        (low.ceil() as i32..=high.floor() as i32).map(|power| 10f64.powi(power)).collect()
    }

    /// 2 to 9 times the powers of ten within.
    pub fn between(&self) -> Vec<f64> {
        let (low, high) = (self.low.log10().floor() as i32, self.high.log10().ceil() as i32);
        let all = (low..high).flat_map(|power| (2..10).map(move |n| f64::from(n) * 10f64.powi(power)));
        all.filter(|&v| self.holds(v)).collect()
    }
}

/// 0.01, 1, 10 000: as on the axes.
pub fn tick(value: f64) -> String {
    if value < 1.0 {
        let digits = (-value.log10()).round().max(0.0) as usize;
        return format!("{value:.digits$}");
    }
    let digits = format!("{value:.0}");
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if digits.len() > 4 && i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push('\u{a0}');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decade_has_the_same_length_everywhere() {
        let axis = Axis { low: 0.01, high: 100.0, from: 400.0, to: 0.0 };
        assert_eq!(axis.decades().len(), 5);
        assert_eq!(axis.between().len(), 4 * 8);
        assert!((axis.at(1.0) - 200.0).abs() < 1e-9 && (axis.at(10.0) - 100.0).abs() < 1e-9);
        assert_eq!((axis.at(0.0), axis.at(1e9)), (400.0, 0.0), "what is outside stands at the edge");
        assert_eq!([tick(0.01), tick(1.0), tick(1000.0), tick(10_000.0)], ["0.01", "1", "1000", "10\u{a0}000"]);
    }
}
