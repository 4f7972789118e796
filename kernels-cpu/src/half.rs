//! The 16-bit floating-point formats as storage: bfloat16 (the upper half of an `f32`) and IEEE 754 binary16, both held as `u16`
//! bits. Numbers are widened exactly and narrowed by rounding to the nearest, ties to even; arithmetic is done in `f32`.
//!
//! The conversions have no branches, so LLVM vectorises the loops over slices. A NaN stays a NaN (quiet, its payload not kept
//! by binary16); numbers beyond the largest finite one become infinite; subnormals are kept on both sides.

use crate::threads::{SharedMut, par_rows};

/// Half the distance from 1 to the next bfloat16: the greatest relative error of narrowing a normal number.
pub const BF16_ROUNDOFF: f32 = 1.0 / 256.0;
/// As [`BF16_ROUNDOFF`], of binary16: numbers below 2^-14 have an absolute error of at most 2^-25 instead.
pub const F16_ROUNDOFF: f32 = 1.0 / 2048.0;

/// The number that `bits` stands for in bfloat16.
#[inline(always)]
pub const fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits((bits as u32) << 16)
}

/// The bfloat16 nearest to `x`.
#[inline(always)]
pub const fn f32_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    // adding 0x7fff, and one more where the kept part is odd, carries exactly when the dropped part calls for rounding up
    let rounded = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16;
    let nan = (bits >> 16) as u16 | 0x40;
    if bits & 0x7fff_ffff > 0x7f80_0000 { nan } else { rounded }
}

/// The number that `bits` stands for in binary16.
#[inline(always)]
pub const fn f16_to_f32(bits: u16) -> f32 {
    let sign = ((bits & 0x8000) as u32) << 16;
    let magnitude = ((bits & 0x7fff) as u32) << 13;
    // the exponents' biases differ by 112; the product is exact and normalises subnormals
    let scaled = (f32::from_bits(magnitude) * f32::from_bits((127 + 112) << 23)).to_bits();
    let special = magnitude | 0x7f80_0000 | if magnitude & 0x007f_e000 != 0 { 0x0040_0000 } else { 0 };
    f32::from_bits(sign | if magnitude >= 0x0f80_0000 { special } else { scaled })
}

/// The binary16 nearest to `x`.
#[inline(always)]
pub const fn f32_to_f16(x: f32) -> u16 {
    let sign = ((x.to_bits() >> 16) & 0x8000) as u16;
    let bits = x.to_bits() & 0x7fff_ffff;
    // Below 2^-14: adding 1/2 makes the last bit kept 2^-24, the smallest subnormal, and lets the addition round.
    let subnormal = ((f32::from_bits(bits) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits())) as u16;
    // Otherwise as for bfloat16, with the exponent's bias corrected; a carry out of the largest number gives infinity.
    let rounded = bits.wrapping_sub(112 << 23).wrapping_add(0xfff + ((bits >> 13) & 1));
    let normal = (rounded >> 13) as u16;
    let special = if bits > 0x7f80_0000 { 0x7e00 } else { 0x7c00 };
    sign | if bits >= 0x4780_0000 {
        special
    } else if bits < 113 << 23 {
        subnormal
    } else {
        normal
    }
}

macro_rules! convert_slice {
    ($(#[$attr:meta])* $name:ident, $serial:ident, $from:ty, $to:ty, $one:ident) => {
        crate::multiversion! {
            fn $serial<V>(src: &[$from], dst: &mut [$to]) {
                for (d, &s) in dst.iter_mut().zip(src) {
                    *d = $one(s);
                }
            }
        }

        $(#[$attr])*
        ///
        /// # Panics
        /// If the lengths differ.
        pub fn $name(src: &[$from], dst: &mut [$to]) {
            assert_eq!(src.len(), dst.len(), "as many numbers out as in");
            /// Numbers that one thread converts at a time: 2 to 4 KiB of cost is not worth a task.
            const BLOCK: usize = 4096;
            let out = SharedMut::new(dst);
            par_rows(src.len().div_ceil(BLOCK), BLOCK / 4, |r| {
                let range = r.start * BLOCK..(r.end * BLOCK).min(src.len());
                // SAFETY: the ranges of blocks are disjoint.
                $serial(&src[range.clone()], unsafe { out.slice(range) });
            });
        }
    };
}

convert_slice!(
    /// Widens bfloat16 numbers.
    widen_bf16, widen_bf16_serial, u16, f32, bf16_to_f32);
convert_slice!(
    /// Narrows to bfloat16, rounding to nearest even.
    narrow_bf16, narrow_bf16_serial, f32, u16, f32_to_bf16);
convert_slice!(
    /// Widens binary16 numbers.
    widen_f16, widen_f16_serial, u16, f32, f16_to_f32);
convert_slice!(
    /// Narrows to binary16, rounding to nearest even.
    narrow_f16, narrow_f16_serial, f32, u16, f32_to_f16);

#[cfg(test)]
mod tests {
    use super::*;

    fn same(a: f32, b: f32) -> bool {
        a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
    }

    #[test]
    fn every_16_bit_number_widens_as_in_the_half_crate_and_narrows_back_to_itself() {
        let all: Vec<u16> = (0..=u16::MAX).collect();
        let (mut bf16, mut f16) = (vec![0.0; all.len()], vec![0.0; all.len()]);
        widen_bf16(&all, &mut bf16);
        widen_f16(&all, &mut f16);
        let (mut bf16_back, mut f16_back) = (vec![0; all.len()], vec![0; all.len()]);
        narrow_bf16(&bf16, &mut bf16_back);
        narrow_f16(&f16, &mut f16_back);
        for (i, &bits) in all.iter().enumerate() {
            assert!(same(bf16[i], half::bf16::from_bits(bits).to_f32()), "bf16 {bits:#x}");
            assert!(same(f16[i], half::f16::from_bits(bits).to_f32()), "f16 {bits:#x}");
            assert!(bf16_back[i] == bits || bf16[i].is_nan(), "bf16 {bits:#x}");
            assert!(f16_back[i] == bits || f16[i].is_nan(), "f16 {bits:#x}");
        }
    }

    #[test]
    fn narrowing_rounds_to_nearest_even_as_in_the_half_crate_around_every_boundary() {
        // every upper half with dropped parts just below, at and above the middle, for both formats
        let tails = [0u32, 1, 0x0fff, 0x1000, 0x1001, 0x1fff, 0x2000, 0x3000, 0x7fff, 0x8000, 0x8001, 0xffff];
        let x: Vec<f32> = (0..=u16::MAX as u32).flat_map(|hi| tails.map(|lo| f32::from_bits(hi << 16 | lo))).collect();
        let (mut bf16, mut f16) = (vec![0; x.len()], vec![0; x.len()]);
        narrow_bf16(&x, &mut bf16);
        narrow_f16(&x, &mut f16);
        for (i, &x) in x.iter().enumerate() {
            if x.is_nan() {
                assert!(bf16_to_f32(bf16[i]).is_nan() && f16_to_f32(f16[i]).is_nan());
                continue;
            }
            assert_eq!(bf16[i], half::bf16::from_f32(x).to_bits(), "{x:e}");
            assert_eq!(f16[i], half::f16::from_f32(x).to_bits(), "{x:e}");
        }
    }

    #[test]
    fn slices_of_any_length_are_converted_whole() {
        for n in [0, 1, 15, 17, 4096, 4097, 300_001] {
            let x: Vec<f32> = (0..n).map(|i| (i as f32 - 7.5) * 0.37).collect();
            let (mut bf16, mut f16) = (vec![0; n], vec![0; n]);
            narrow_bf16(&x, &mut bf16);
            narrow_f16(&x, &mut f16);
            assert!(x.iter().zip(&bf16).all(|(&x, &h)| h == f32_to_bf16(x)));
            assert!(x.iter().zip(&f16).all(|(&x, &h)| h == f32_to_f16(x)));
        }
    }

    #[test]
    fn rounding_errors_are_within_the_documented_roundoffs() {
        for i in 0..100_000 {
            let x = (1.0 + i as f32 * 1e-5) * if i % 2 == 0 { 3.0 } else { -0.01 };
            assert!((bf16_to_f32(f32_to_bf16(x)) - x).abs() <= BF16_ROUNDOFF * x.abs());
            assert!((f16_to_f32(f32_to_f16(x)) - x).abs() <= F16_ROUNDOFF * x.abs());
        }
    }
}
