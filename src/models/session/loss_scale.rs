//! Dynamic loss scaling (Micikevicius et al. 2018, "Mixed precision training", section 3.2): the loss is multiplied before the backward
//! pass so that small gradients stay inside the range of binary16, and the gradients of weights, which are f32, are divided again.
//!
//! A step whose gradients overflow leaves the weights alone and is taken again, on the same batch, with half the scale: so no batch
//! is lost and steps count updates. Scales are powers of two: multiplying by one rounds nothing.

use crate::train::model::{NamedTensor, TensorSpec, TensorType};
use crate::{Error, Result};

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossScale {
    scale: f32,
    /// Steps taken since the scale last changed.
    good: u32,
}

impl LossScale {
    /// Name of the checkpoint's tensor: the scale and the steps taken with it.
    pub const NAME: &str = "loss_scale";
    const START: f32 = 65536.0;
    const LEAST: f32 = 1.0;
    const MOST: f32 = 16_777_216.0;
    /// Steps without overflow after which the scale is doubled (PyTorch's `growth_interval`).
    const GROWTH_INTERVAL: u32 = 2000;

    /// A scale of at least 1 that is a power of two.
    pub fn new(scale: f32) -> Self {
        LossScale { scale: scale.clamp(Self::LEAST, Self::MOST).log2().round().exp2(), good: 0 }
    }
    pub fn scale(&self) -> f32 {
        self.scale
    }
    /// After a step whose gradients overflowed: whether a smaller scale is left to try.
    pub fn back_off(&mut self) -> bool {
        let smaller = self.scale > Self::LEAST;
        *self = LossScale::new(self.scale / 2.0);
        smaller
    }
    /// After a step that was taken.
    pub fn taken(&mut self) {
        self.good += 1;
        if self.good == Self::GROWTH_INTERVAL {
            *self = LossScale::new(self.scale * 2.0);
        }
    }

    pub fn spec() -> TensorSpec {
        TensorSpec { name: Self::NAME.into(), shape: vec![2], dtype: TensorType::F32 }
    }
    pub fn state(&self) -> NamedTensor {
        NamedTensor::f32(Self::NAME, &[2], vec![self.scale, self.good as f32])
    }
    /// # Errors
    /// `Error::Checkpoint` when the values are not a scale and a count.
    pub fn restore(values: &[f32]) -> Result<Self> {
        match *values {
            [scale, good] if LossScale::new(scale).scale == scale && (0.0..2000.0).contains(&good) => {
                Ok(LossScale { scale, good: good as u32 })
            }
            _ => Err(Error::Checkpoint(format!("'{}' holds {values:?}, not a power of two and a count", Self::NAME))),
        }
    }
}

impl Default for LossScale {
    fn default() -> Self {
        LossScale::new(Self::START)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_halves_on_overflow_and_doubles_after_two_thousand_good_steps() {
        let mut s = LossScale::default();
        assert!(s.back_off());
        assert_eq!(s.scale(), 32768.0);
        (0..1999).for_each(|_| s.taken());
        assert_eq!(s.scale(), 32768.0);
        assert_eq!(LossScale::restore(&[32768.0, 1999.0]).unwrap(), s);
        s.taken();
        assert_eq!((s.scale(), s.good), (65536.0, 0));
        // An overflow starts the count anew.
        (0..1999).for_each(|_| s.taken());
        s.back_off();
        s.taken();
        assert_eq!((s.scale(), s.good), (32768.0, 1));
    }

    #[test]
    fn the_scale_stays_between_its_ends_and_a_damaged_one_is_refused() {
        let mut s = LossScale::new(2.0);
        assert!(s.back_off());
        assert!(!s.back_off(), "there is nothing below 1");
        assert_eq!(s.scale(), 1.0);
        let mut s = LossScale::new(f32::MAX);
        (0..4000).for_each(|_| s.taken());
        assert_eq!(s.scale(), LossScale::MOST);
        for bad in [&[3.0, 0.0][..], &[0.0, 0.0], &[f32::NAN, 0.0], &[2.0, -1.0], &[2.0, f32::NAN], &[2.0]] {
            assert!(LossScale::restore(bad).is_err(), "{bad:?}");
        }
    }
}
