//! Integer dot products of int8 vectors: AVX-512 VNNI, AVX2, NEON or plain code, all exact.

use std::ops::Range;
use std::sync::OnceLock;

use crate::int8::group_range;
use crate::simd::{Level, level};
use crate::threads::SharedMut;

/// How dot products are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Plain code; LLVM vectorises it for the compilation target.
    Plain,
    /// 16-bit widening and `vpmaddwd`.
    Avx2,
    /// `vpdpbusd`: 64 products an instruction.
    Vnni,
    /// `smull` and `sadalp`.
    Neon,
}

/// The best kind this processor has, within [`simd::level`](crate::simd::level).
pub fn kind() -> Kind {
    static KIND: OnceLock<Kind> = OnceLock::new();
    *KIND.get_or_init(|| match level() {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 if is_x86_feature_detected!("avx512vnni") => Kind::Vnni,
        Level::Avx512 | Level::Avx2 => Kind::Avx2,
        Level::Baseline if cfg!(target_arch = "aarch64") => Kind::Neon,
        Level::Baseline => Kind::Plain,
    })
}

/// The longest stretch summed in 32 bits: `65536 * 255 * 128 < 2^31` (VNNI sums unsigned times signed bytes).
const STRETCH: usize = 1 << 16;

/// A product of quantised matrices: `y [m, n] = x [m, k] w^T` with scales per row of x and per group of w `[n, k]`.
pub(crate) struct Product<'a> {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub group: usize,
    /// As [`prepare`] left it.
    pub x: &'a [i8],
    pub x_scales: &'a [f32],
    pub w: &'a [i8],
    pub w_scales: &'a [f32],
    pub y: &'a SharedMut<'a, f32>,
}

/// Puts quantised activations into the form that `kind` reads: VNNI wants them unsigned, offset by 128.
pub(crate) fn prepare(kind: Kind, x: &mut [i8]) {
    if kind == Kind::Vnni {
        x.iter_mut().for_each(|x| *x ^= -128);
    }
}

trait Dot {
    /// Dot products of `M` prepared vectors with `w`, all of `w`'s length, at most [`STRETCH`].
    ///
    /// # Safety
    /// The instruction set is there.
    unsafe fn dots<const M: usize>(x: [&[i8]; M], w: &[i8]) -> [i32; M];
}

struct Plain;

impl Dot for Plain {
    #[inline(always)]
    unsafe fn dots<const M: usize>(x: [&[i8]; M], w: &[i8]) -> [i32; M] {
        x.map(|x| x.iter().zip(w).map(|(&x, &w)| x as i32 * w as i32).sum())
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Dot, Plain};
    use std::arch::x86_64::*;

    pub(super) struct Avx2;

    impl Dot for Avx2 {
        #[inline(always)]
        unsafe fn dots<const M: usize>(x: [&[i8]; M], w: &[i8]) -> [i32; M] {
            // SAFETY: every load of 16 bytes starts at least 16 before the end of both slices; AVX2 is the caller's word.
            unsafe {
                let mut acc = [_mm256_setzero_si256(); M];
                let whole = w.len() / 16 * 16;
                for at in (0..whole).step_by(16) {
                    let wide = |x: &[i8]| _mm256_cvtepi8_epi16(_mm_loadu_si128(x.as_ptr().add(at).cast()));
                    let weights = wide(w);
                    for (acc, x) in acc.iter_mut().zip(x) {
                        *acc = _mm256_add_epi32(*acc, _mm256_madd_epi16(wide(x), weights));
                    }
                }
                let tail = Plain::dots(x.map(|x| &x[whole..]), &w[whole..]);
                std::array::from_fn(|i| {
                    let half = _mm_add_epi32(_mm256_castsi256_si128(acc[i]), _mm256_extracti128_si256::<1>(acc[i]));
                    let pair = _mm_add_epi32(half, _mm_shuffle_epi32::<0b01_00_11_10>(half));
                    let sum = _mm_add_epi32(pair, _mm_shuffle_epi32::<0b10_11_00_01>(pair));
                    _mm_cvtsi128_si32(sum) + tail[i]
                })
            }
        }
    }

    pub(super) struct Vnni;

    impl Dot for Vnni {
        #[inline(always)]
        unsafe fn dots<const M: usize>(x: [&[i8]; M], w: &[i8]) -> [i32; M] {
            // SAFETY: masked loads touch only bytes inside the slices; AVX-512 BW and VNNI are the caller's word.
            unsafe {
                // Of x + 128, the part 128 w is taken off again at the end.
                let mut acc = [_mm512_setzero_si512(); M];
                let mut weight_sum = _mm512_setzero_si512();
                let ones = _mm512_set1_epi8(1);
                for at in (0..w.len()).step_by(64) {
                    let left = w.len() - at;
                    let mask = if left >= 64 { u64::MAX } else { (1 << left) - 1 };
                    let weights = _mm512_maskz_loadu_epi8(mask, w.as_ptr().add(at));
                    weight_sum = _mm512_dpbusd_epi32(weight_sum, ones, weights);
                    for (acc, x) in acc.iter_mut().zip(x) {
                        let x = _mm512_maskz_loadu_epi8(mask, x.as_ptr().add(at));
                        *acc = _mm512_dpbusd_epi32(*acc, x, weights);
                    }
                }
                let offset = _mm512_slli_epi32::<7>(weight_sum);
                acc.map(|acc| _mm512_reduce_add_epi32(_mm512_sub_epi32(acc, offset)))
            }
        }
    }
}

#[cfg(target_arch = "aarch64")]
struct Neon;

#[cfg(target_arch = "aarch64")]
impl Dot for Neon {
    #[inline(always)]
    unsafe fn dots<const M: usize>(x: [&[i8]; M], w: &[i8]) -> [i32; M] {
        use std::arch::aarch64::*;
        // SAFETY: every load of 8 bytes starts at least 8 before the end of both slices; AArch64 has NEON.
        unsafe {
            let mut acc = [vdupq_n_s32(0); M];
            let whole = w.len() / 8 * 8;
            for at in (0..whole).step_by(8) {
                let weights = vld1_s8(w.as_ptr().add(at));
                for (acc, x) in acc.iter_mut().zip(x) {
                    *acc = vpadalq_s16(*acc, vmull_s8(vld1_s8(x.as_ptr().add(at)), weights));
                }
            }
            let tail = Plain::dots(x.map(|x| &x[whole..]), &w[whole..]);
            std::array::from_fn(|i| vaddvq_s32(acc[i]) + tail[i])
        }
    }
}

/// Rows `range` of the weights against all rows of x.
///
/// # Safety
/// `D`'s instruction set is there.
#[inline(always)]
unsafe fn rows<D: Dot>(p: &Product<'_>, range: Range<usize>) {
    let mut first = 0;
    while first < p.m {
        let four = p.m - first >= 4;
        for j in range.clone() {
            // SAFETY: passed on to the caller.
            unsafe {
                if four {
                    element::<D, 4>(p, first, j);
                } else {
                    element::<D, 1>(p, first, j);
                }
            }
        }
        first += if four { 4 } else { 1 };
    }
}

/// `y[first..first + M, j]`.
///
/// # Safety
/// As [`rows`].
#[inline(always)]
unsafe fn element<D: Dot, const M: usize>(p: &Product<'_>, first: usize, j: usize) {
    let x: [&[i8]; M] = std::array::from_fn(|i| &p.x[(first + i) * p.k..][..p.k]);
    let w = &p.w[j * p.k..][..p.k];
    let groups = p.k.div_ceil(p.group);
    let mut sum = [0.0f32; M];
    for (g, &scale) in p.w_scales[j * groups..][..groups].iter().enumerate() {
        let part = group_range(g, p.group, p.k);
        let mut dots = [0i64; M];
        for from in part.clone().step_by(STRETCH) {
            let stretch = from..(from + STRETCH).min(part.end);
            // SAFETY: the caller's word.
            let part = unsafe { D::dots(x.map(|x| &x[stretch.clone()]), &w[stretch.clone()]) };
            for (total, part) in dots.iter_mut().zip(part) {
                *total += part as i64;
            }
        }
        for (sum, dot) in sum.iter_mut().zip(dots) {
            *sum += scale * dot as f32;
        }
    }
    for (i, sum) in sum.into_iter().enumerate() {
        let at = (first + i) * p.n + j;
        // SAFETY: items own disjoint columns of y.
        let out = unsafe { p.y.slice(at..at + 1) };
        out[0] = p.x_scales[first + i] * sum;
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn rows_avx2(p: &Product<'_>, range: Range<usize>) {
    // SAFETY: the features of this function.
    unsafe { rows::<x86::Avx2>(p, range) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn rows_vnni(p: &Product<'_>, range: Range<usize>) {
    // SAFETY: the features of this function.
    unsafe { rows::<x86::Vnni>(p, range) }
}

/// Computes columns `range` of the product. `kind` must be one this processor has.
pub(crate) fn run(kind: Kind, p: &Product<'_>, range: Range<usize>) {
    // SAFETY: `kind` says what the processor has.
    unsafe {
        match kind {
            #[cfg(target_arch = "x86_64")]
            Kind::Vnni => rows_vnni(p, range),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => rows_avx2(p, range),
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => rows::<Neon>(p, range),
            _ => rows::<Plain>(p, range),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(n: usize, seed: u64) -> Vec<i8> {
        let mut state = seed;
        (0..n)
            .map(|i| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                // the extremes come often, so that sums of pairs would overflow 16 bits
                if i % 3 == 0 { [-128, 127][(state >> 63) as usize] } else { (state >> 56) as i8 }
            })
            .collect()
    }

    #[test]
    fn every_instruction_set_gives_the_exact_integer_sums() {
        let mut kinds = vec![Kind::Plain, kind()];
        if level() >= Level::Avx2 {
            kinds.push(Kind::Avx2);
        }
        for (m, n, k, group) in
            [(1, 1, 1, 1), (5, 3, 200, 64), (4, 2, 131, 131), (3, 2, 65, 16), (1, 2, 70_000, 70_000)]
        {
            let (x, w) = (bytes(m * k, 1), bytes(n * k, 2));
            let groups = k.div_ceil(group);
            for &kind in &kinds {
                let mut prepared = x.clone();
                prepare(kind, &mut prepared);
                for g in 0..groups {
                    // one group switched on at a time shows its integer sum, exact in f32 below 2^24
                    let scales: Vec<f32> = (0..n * groups).map(|i| if i % groups == g { 1.0 } else { 0.0 }).collect();
                    let (mut out, ones) = (vec![f32::NAN; m * n], vec![1.0; m]);
                    let y = SharedMut::new(&mut out);
                    let p = Product { m, n, k, group, x: &prepared, x_scales: &ones, w: &w, w_scales: &scales, y: &y };
                    run(kind, &p, 0..n);
                    for (i, &got) in out.iter().enumerate() {
                        let part = group_range(g, group, k);
                        let (x, w) = (&x[i / n * k..][part.clone()], &w[i % n * k..][part]);
                        let want: i64 = x.iter().zip(w).map(|(&x, &w)| x as i64 * w as i64).sum();
                        assert_eq!(got, want as f32, "{kind:?} m={m} n={n} k={k}");
                    }
                }
            }
        }
    }
}
