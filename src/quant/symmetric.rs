//! Symmetric integers: a block of numbers as codes -top ..= top times one scale (phase 26 of Lynx Cortex; top 127 and 7).

use half::f16;

/// How a block's scale is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Clip {
    /// The largest magnitude is the largest code: no number is cut off.
    #[default]
    Max,
    /// This share of the magnitudes lies within the codes, larger ones are cut off.
    Percentile(f64),
    /// The scale, of [`STEPS`] from the largest down to half of it, with the least squared error.
    Mse,
}

/// Scales that [`Clip::Mse`] tries.
pub const STEPS: usize = 41;

impl Clip {
    /// `max`, `mse` or a percentile such as `99.9`.
    pub fn from_name(name: &str) -> Option<Clip> {
        match name {
            "max" => Some(Clip::Max),
            "mse" => Some(Clip::Mse),
            _ => name.parse().ok().filter(|p| (50.0..=100.0).contains(p)).map(|p: f64| Clip::Percentile(p / 100.0)),
        }
    }
}

/// Codes of one width, and how their scale is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grid {
    /// -127 ..= 127, the scale f32.
    Int8,
    /// -7 ..= 7, the scale f16.
    Int4,
}

impl Grid {
    pub fn top(self) -> f32 {
        match self {
            Grid::Int8 => 127.0,
            Grid::Int4 => 7.0,
        }
    }

    /// The scale as it is stored: codes are made with this one, so that what is read back is what was meant.
    pub fn stored(self, scale: f32) -> f32 {
        match self {
            // The inverse of a smaller one need not be finite.
            Grid::Int8 => {
                if scale >= f32::MIN_POSITIVE {
                    scale
                } else {
                    0.0
                }
            }
            Grid::Int4 => f16::from_f32(scale.min(f16::MAX.to_f32())).to_f32(),
        }
    }

    /// The nearest code; 0 where the scale is 0.
    pub fn code(self, value: f32, scale: f32) -> f32 {
        // As `kernels_cpu::blocks` rounds, to the bit.
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        (value * inverse).round_ties_even().clamp(-self.top(), self.top())
    }

    /// The scale of a block, as stored. `importance` weights the squared errors of [`Clip::Mse`], one number for each value.
    pub fn scale(self, values: &[f32], importance: Option<&[f32]>, clip: Clip) -> f32 {
        let largest = values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        match clip {
            Clip::Max => self.stored(largest / self.top()),
            Clip::Percentile(share) => {
                let within = quantile(values, share);
                self.stored(if within > 0.0 { within } else { largest } / self.top())
            }
            Clip::Mse => {
                let mut best = (f64::INFINITY, 0.0);
                for step in 0..STEPS {
                    let share = 1.0 - 0.5 * step as f32 / (STEPS - 1) as f32;
                    let scale = self.stored(largest * share / self.top());
                    let error = self.error(values, importance, scale);
                    if error < best.0 {
                        best = (error, scale);
                    }
                }
                best.1
            }
        }
    }

    /// Sum of squared errors of a block with this scale.
    fn error(self, values: &[f32], importance: Option<&[f32]>, scale: f32) -> f64 {
        let off = |v: f32| {
            let e = f64::from(v - scale * self.code(v, scale));
            e * e
        };
        match importance {
            Some(h) => values.iter().zip(h).map(|(v, h)| off(*v) * f64::from(*h)).sum(),
            None => values.iter().map(|v| off(*v)).sum(),
        }
    }
}

/// The magnitude below which this share of them lies, between two of them by linear interpolation.
fn quantile(values: &[f32], share: f64) -> f32 {
    let mut sorted: Vec<f32> = values.iter().map(|v| v.abs()).collect();
    sorted.sort_unstable_by(f32::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let at = share.clamp(0.0, 1.0) * last as f64;
    let (low, rest) = (at.floor() as usize, at.fract() as f32);
    sorted[low] + rest * (sorted[(low + 1).min(last)] - sorted[low])
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernels_cpu::philox;

    fn normal(n: usize) -> Vec<f32> {
        let mut values = vec![0.0; n];
        philox::fill_normal(42, 0, &mut values);
        values
    }

    #[test]
    fn nothing_is_off_by_more_than_half_a_step() {
        let values = normal(4096);
        for (grid, block) in [(Grid::Int8, 4096), (Grid::Int4, 64), (Grid::Int4, 128)] {
            for block in values.chunks(block) {
                let s = grid.scale(block, None, Clip::Max);
                // The f16 scale may be a little less than max / 7.
                let most = 0.5 * s * (1.0 + 1e-2);
                assert!(block.iter().all(|v| (v - s * grid.code(*v, s)).abs() <= most), "{grid:?}");
            }
        }
    }

    #[test]
    fn searching_a_scale_never_loses_to_the_largest_and_percentiles_cut_off() {
        let values = normal(1024);
        let error = |clip| {
            let of = |b: &[f32]| Grid::Int4.error(b, None, Grid::Int4.scale(b, None, clip));
            values.chunks(128).map(of).sum::<f64>()
        };
        assert!(error(Clip::Mse) < error(Clip::Max));
        let cut = Grid::Int8.scale(&values, None, Clip::Percentile(0.9));
        let (within, all) = (values.iter().filter(|v| v.abs() <= cut * 127.0).count(), values.len());
        assert!(within.abs_diff(all * 9 / 10) <= 1);
        assert_eq!(quantile(&[-4.0, 1.0, 2.0], 0.75), 3.0);
    }

    #[test]
    fn what_matters_decides_the_scale() {
        // One large number that nothing multiplies: the others keep their precision.
        let mut values = vec![0.11f32; 64];
        values[0] = 1.0;
        let mut importance = vec![1.0f32; 64];
        importance[0] = 0.0;
        let plain = Grid::Int4.scale(&values, None, Clip::Mse);
        let weighted = Grid::Int4.scale(&values, Some(&importance), Clip::Mse);
        let off = |s: f32| (0.11 - s * Grid::Int4.code(0.11, s)).abs();
        assert!(off(weighted) < 0.5 * off(plain), "{} {}", off(weighted), off(plain));
    }

    #[test]
    fn blocks_of_nothing_and_of_extremes_stay_finite() {
        for values in [[0.0f32; 64], [f32::MAX; 64], [1e-30; 64]] {
            for clip in [Clip::Max, Clip::Percentile(0.999), Clip::Mse] {
                let s = Grid::Int4.scale(&values, None, clip);
                assert!(s.is_finite() && (s * Grid::Int4.code(values[0], s)).is_finite());
            }
        }
        assert!(matches!(Clip::from_name("99.9"), Some(Clip::Percentile(p)) if (p - 0.999).abs() < 1e-12));
        assert_eq!(Clip::from_name("never"), None);
    }
}
