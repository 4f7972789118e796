//! The search for scales that quantise a block with the least weighted square error, and the K-quants that need one.

use super::quantise::{extreme, inverse, mean_square, search_weights, sum};
use crate::half::{f16_to_f32, f32_to_f16};

/// The scale s with which codes -`levels` to `levels` - 1, chosen by rounding x / s, leave the least error: for a number of trial
/// scales around the one that just reaches the extreme, the codes are chosen, and then the scale that fits these codes best.
/// Weights that are all zero count as equal. A block of zeros, or one that is not finite, gives 0.
#[inline(always)]
pub(super) fn best_symmetric<const N: usize>(x: &[f32; N], weights: &[f32; N], levels: i32) -> f32 {
    let extreme = extreme(x);
    if !(extreme.abs() >= 1e-30 && extreme.is_finite()) {
        return 0.0;
    }
    let weights = usable(weights);
    let (mut best, mut scale) = (0.0, extreme / -levels as f32);
    for step in -9i32..=9 {
        let inverse = -(levels as f32 + 0.1 * step as f32) / extreme;
        let q = x.map(|x| (x * inverse).round_ties_even().clamp(-levels as f32, (levels - 1) as f32));
        let xq = sum(N, |i| weights[i] * x[i] * q[i]);
        let qq = sum(N, |i| weights[i] * q[i] * q[i]);
        // what the codes explain of the sum of squares, when scaled best
        if qq > 0.0 && xq * xq > best * qq {
            (best, scale) = (xq * xq / qq, xq / qq);
        }
    }
    scale
}

/// Scale s and minimum m with which codes 0 to `levels`, chosen by rounding (x - m) / s, leave the least error. `negative`: m is at most
/// 0 (K-quants store -m). Weights that are all zero count as equal. A block of one number gives scale 0, or what stands for it.
#[inline(always)]
pub(super) fn best_affine<const N: usize>(x: &[f32; N], weights: &[f32; N], levels: u8, negative: bool) -> (f32, f32) {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut min = x.iter().copied().fold(f32::INFINITY, f32::min);
    if negative {
        min = min.min(0.0);
    }
    let range = max - min;
    if !(range >= 1e-30 && range.is_finite()) {
        return (0.0, min);
    }
    let weights = usable(weights);
    let top = levels as f32;
    let mut best = (f32::INFINITY, range / top, min);
    let (sw, sx) = (sum(N, |i| weights[i]), sum(N, |i| weights[i] * x[i]));
    for step in 0..=STEPS {
        let inverse = (top + FIRST + STEP * step as f32) / range;
        let q = x.map(|x| ((x - min) * inverse).round_ties_even().clamp(0.0, top));
        let sq = sum(N, |i| weights[i] * q[i]);
        let sqq = sum(N, |i| weights[i] * q[i] * q[i]);
        let sxq = sum(N, |i| weights[i] * q[i] * x[i]);
        let determinant = sw * sqq - sq * sq;
        if !(determinant > 0.0 && sqq > 0.0) {
            continue;
        }
        let mut s = (sw * sxq - sx * sq) / determinant;
        let mut m = (sqq * sx - sq * sxq) / determinant;
        if negative && m > 0.0 {
            (s, m) = (sxq / sqq, 0.0);
        }
        let error = sum(N, |i| {
            let e = s * q[i] + m - x[i];
            weights[i] * e * e
        });
        if error < best.0 && s > 0.0 {
            best = (error, s, m);
        }
    }
    (best.1, best.2)
}

/// Trial scales of [`best_affine`]: the range is cut into `levels` + FIRST, + FIRST + STEP, .. steps.
const STEPS: usize = 36;
const FIRST: f32 = -0.9;
const STEP: f32 = 0.05;

#[inline(always)]
fn usable<const N: usize>(weights: &[f32; N]) -> [f32; N] {
    let total = sum(N, |i| weights[i]);
    if total > 0.0 && total.is_finite() { *weights } else { [1.0; N] }
}

#[inline(always)]
fn f16_bits(x: f32) -> [u8; 2] {
    f32_to_f16(x).to_le_bytes()
}

/// `x` as it is read back from f16.
#[inline(always)]
fn stored(x: f32) -> f32 {
    f16_to_f32(f32_to_f16(x))
}

/// The weights of a block of a superblock: importance if it is known; else numbers count by their size.
#[inline(always)]
fn weights<const N: usize>(x: &[f32; N], importance: Option<&[f32]>, superblock: f32) -> [f32; N] {
    match importance {
        Some(importance) => search_weights(x, importance.try_into().expect("N weights"), superblock),
        None => {
            let typical = mean_square(x).sqrt();
            x.map(|x| typical + x.abs())
        }
    }
}

/// A block of [`Format::Q4K`](super::Format::Q4K): scales and minima of its eight blocks are searched, rounded to six bits and a common
/// f16 factor, and the codes chosen with what is stored.
#[inline(always)]
pub(super) fn q4_k(x: &[f32; 256], importance: Option<&[f32; 256]>, b: &mut [u8; 144]) {
    b.fill(0);
    if !x.iter().all(|x| x.is_finite()) {
        b[..2].copy_from_slice(&f16_bits(f32::NAN));
        return;
    }
    let square = mean_square(x);
    let (blocks, _) = x.as_chunks::<32>();
    let (mut scales, mut minima, mut all) = ([0.0f32; 8], [0.0f32; 8], [[0.0f32; 32]; 8]);
    for (j, block) in blocks.iter().enumerate() {
        all[j] = usable(&weights(block, importance.map(|w| &w[32 * j..][..32]), square));
        let (s, m) = best_affine(block, &all[j], 15, true);
        (scales[j], minima[j]) = (s, -m);
    }
    let greatest = |v: &[f32; 8]| v.iter().copied().fold(0.0, f32::max);
    let (d, dmin) = (stored(greatest(&scales) / 63.0), stored(greatest(&minima) / 63.0));
    let six_bits = |v: f32, d: f32| if d > 0.0 { (v / d).round_ties_even().clamp(0.0, 63.0) as u8 } else { 0 };
    b[..2].copy_from_slice(&f16_bits(d));
    b[2..4].copy_from_slice(&f16_bits(dmin));
    for (j, block) in blocks.iter().enumerate() {
        // the neighbours too: rounded together, the nearest scale and the nearest minimum are not always the best
        let (near_s, near_m) = (six_bits(scales[j], d), six_bits(minima[j], dmin));
        let (mut best, mut s, mut m) = (f32::INFINITY, near_s, near_m);
        for trial_s in near_s.saturating_sub(1)..=(near_s + 1).min(63) {
            for trial_m in near_m.saturating_sub(1)..=(near_m + 1).min(63) {
                let (ds, dm) = (d * trial_s as f32, dmin * trial_m as f32);
                let inverse = inverse(ds);
                let error = sum(32, |i| {
                    let e = ds * ((block[i] + dm) * inverse).round_ties_even().clamp(0.0, 15.0) - dm - block[i];
                    all[j][i] * e * e
                });
                if error < best {
                    (best, s, m) = (error, trial_s, trial_m);
                }
            }
        }
        if j < 4 {
            b[4 + j] |= s;
            b[8 + j] |= m;
        } else {
            b[8 + j] |= s & 15 | m << 4;
            b[j] |= s >> 4 << 6;
            b[4 + j] |= m >> 4 << 6;
        }
        let (s, m) = (d * s as f32, dmin * m as f32);
        if s == 0.0 {
            continue;
        }
        for (i, &x) in block.iter().enumerate() {
            let q = ((x + m) / s).round_ties_even().clamp(0.0, 15.0) as u8;
            b[16 + 32 * (j / 2) + i] |= q << (4 * (j % 2));
        }
    }
}

/// A block of [`Format::Q6K`](super::Format::Q6K): as [`q4_k`], with 16 signed scales of eight bits.
#[inline(always)]
pub(super) fn q6_k(x: &[f32; 256], importance: Option<&[f32; 256]>, b: &mut [u8; 210]) {
    b.fill(0);
    if !x.iter().all(|x| x.is_finite()) {
        b[208..].copy_from_slice(&f16_bits(f32::NAN));
        return;
    }
    let square = mean_square(x);
    let (blocks, _) = x.as_chunks::<16>();
    let mut scales = [0.0f32; 16];
    for (g, block) in blocks.iter().enumerate() {
        let w = match importance {
            Some(importance) => weights(block, Some(&importance[16 * g..][..16]), square),
            None => block.map(|x| x * x),
        };
        scales[g] = best_symmetric(block, &w, 32);
    }
    // the scale of greatest magnitude becomes -128: one code more than 127 would give
    let d = stored(extreme(&scales) / -128.0);
    b[208..].copy_from_slice(&f16_bits(d));
    let mut codes = [0u8; 256];
    for (g, block) in blocks.iter().enumerate() {
        let s = if d == 0.0 { 0.0 } else { (scales[g] / d).round_ties_even().clamp(-128.0, 127.0) };
        b[192 + g] = s as i8 as u8;
        let s = d * s;
        for (i, &x) in block.iter().enumerate() {
            let q = if s == 0.0 { 0.0 } else { (x / s).round_ties_even().clamp(-32.0, 31.0) };
            codes[16 * g + i] = (q + 32.0) as u8;
        }
    }
    for half in 0..2 {
        let q = &codes[128 * half..][..128];
        for i in 0..64 {
            b[64 * half + i] = q[i] & 15 | q[i + 64] << 4;
        }
        for i in 0..32 {
            b[128 + 32 * half + i] = q[i] >> 4 | q[i + 32] >> 4 << 2 | q[i + 64] >> 4 << 4 | q[i + 96] >> 4 << 6;
        }
    }
}
