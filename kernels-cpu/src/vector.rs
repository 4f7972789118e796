//! Elementary functions and row sums over explicit registers, for kernels whose time is exponentials: a loop of scalar code leaves
//! the end of every row to scalars, and cannot name the instruction that multiplies by a power of two.

#![allow(clippy::excessive_precision, reason = "constants keep the digits of their sources")]

use crate::register::Register;

/// What rows of exponentials need beyond [`Register`]; all of 16 floats (see `with_register`). The defaults go through arrays, which
/// LLVM turns back into vectors.
pub(crate) trait Vector: Register {
    /// The lesser of each pair; `other` where one is NaN.
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        map(self, other, |a, b| if a < b { a } else { b })
    }
    /// The greater of each pair; `other` where one is NaN.
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        map(self, other, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        map(self, other, |a, b| a / b)
    }
    #[inline(always)]
    fn abs(self) -> Self {
        map(self, self, |a, _| a.abs())
    }
    /// 1 where positive, else 0.
    #[inline(always)]
    fn step(self) -> Self {
        map(self, self, |a, _| if a > 0.0 { 1.0 } else { 0.0 })
    }
    /// `self * 2^n` for whole numbers n of magnitude up to 250.
    #[inline(always)]
    fn scale2(self, n: Self) -> Self {
        map(self, n, |p, n| {
            // two factors, because 2^n alone may leave the range where the result does not
            let n = n as i32;
            let exp2i = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
            p * exp2i(n >> 1) * exp2i(n.wrapping_sub(n >> 1))
        })
    }
    /// The 12 leading bits of each fraction: their squares are exact.
    #[inline(always)]
    fn leading_bits(self) -> Self {
        map(self, self, |a, _| f32::from_bits(a.to_bits() & 0xffff_f000))
    }
    /// The first `n` (at most 16) floats at `p`, then `fill`.
    ///
    /// # Safety
    /// `p` is valid for `n` reads.
    #[inline(always)]
    unsafe fn load_partial(p: *const f32, n: usize, fill: f32) -> Self {
        let mut lanes = [fill; 16];
        // SAFETY: `n` floats from the contract, and 16 of the array.
        unsafe {
            std::ptr::copy_nonoverlapping(p, lanes.as_mut_ptr(), n);
            Self::load(lanes.as_ptr())
        }
    }
    /// # Safety
    /// `p` is valid for `n` writes, `n` is at most 16.
    #[inline(always)]
    unsafe fn store_partial(self, p: *mut f32, n: usize) {
        let lanes = self.lanes();
        // SAFETY: the contract.
        unsafe { std::ptr::copy_nonoverlapping(lanes.as_ptr(), p, n) }
    }
    #[inline(always)]
    fn lanes(self) -> [f32; 16] {
        const { assert!(Self::WIDTH == 16) };
        let mut lanes = [0.0; 16];
        // SAFETY: sixteen floats.
        unsafe { self.store(lanes.as_mut_ptr()) };
        lanes
    }
    /// The sum of all lanes, as a balanced tree.
    #[inline(always)]
    fn sum(self) -> f32 {
        fold(self.lanes(), |a, b| a + b)
    }
    /// The greatest lane.
    #[inline(always)]
    fn greatest(self) -> f32 {
        fold(self.lanes(), |a, b| if a > b { a } else { b })
    }
}

#[inline(always)]
fn map<R: Register>(a: R, b: R, f: impl Fn(f32, f32) -> f32) -> R {
    const { assert!(R::WIDTH == 16) };
    let (mut x, mut y) = ([0.0f32; 16], [0.0f32; 16]);
    // SAFETY: sixteen floats each.
    unsafe {
        a.store(x.as_mut_ptr());
        b.store(y.as_mut_ptr());
        for (x, y) in x.iter_mut().zip(y) {
            *x = f(*x, y);
        }
        R::load(x.as_ptr())
    }
}

#[inline(always)]
fn fold(mut lanes: [f32; 16], f: impl Fn(f32, f32) -> f32) -> f32 {
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] = f(lanes[i], lanes[i + half]);
        }
    }
    lanes[0]
}

impl<R: Register> Vector for crate::register::Two<R> {}

#[cfg(target_arch = "x86_64")]
// SAFETY (all below): a register is made only where its instruction set is there; pointers keep the contracts of the trait.
#[allow(unused_unsafe)]
impl Vector for crate::register::__m512 {
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        unsafe { std::arch::x86_64::_mm512_min_ps(self, other) }
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        unsafe { std::arch::x86_64::_mm512_max_ps(self, other) }
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        unsafe { std::arch::x86_64::_mm512_div_ps(self, other) }
    }
    #[inline(always)]
    fn abs(self) -> Self {
        unsafe { std::arch::x86_64::_mm512_abs_ps(self) }
    }
    #[inline(always)]
    fn step(self) -> Self {
        use std::arch::x86_64::*;
        unsafe {
            let positive = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(self, _mm512_setzero_ps());
            _mm512_maskz_mov_ps(positive, _mm512_set1_ps(1.0))
        }
    }
    #[inline(always)]
    fn scale2(self, n: Self) -> Self {
        unsafe { std::arch::x86_64::_mm512_scalef_ps(self, n) }
    }
    #[inline(always)]
    fn leading_bits(self) -> Self {
        use std::arch::x86_64::*;
        unsafe { _mm512_and_ps(self, _mm512_castsi512_ps(_mm512_set1_epi32(0xffff_f000u32 as i32))) }
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        use std::arch::x86_64::*;
        unsafe {
            let half = _mm256_add_ps(_mm512_castps512_ps256(self), _mm512_extractf32x8_ps::<1>(self));
            let quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps::<1>(half));
            let pair = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
            _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)))
        }
    }
    #[inline(always)]
    fn greatest(self) -> f32 {
        use std::arch::x86_64::*;
        unsafe {
            let half = _mm256_max_ps(_mm512_castps512_ps256(self), _mm512_extractf32x8_ps::<1>(self));
            let quarter = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps::<1>(half));
            let pair = _mm_max_ps(quarter, _mm_movehl_ps(quarter, quarter));
            _mm_cvtss_f32(_mm_max_ss(pair, _mm_movehdup_ps(pair)))
        }
    }
    #[inline(always)]
    unsafe fn load_partial(p: *const f32, n: usize, fill: f32) -> Self {
        use std::arch::x86_64::*;
        unsafe { _mm512_mask_loadu_ps(_mm512_set1_ps(fill), ((1u32 << n) - 1) as u16, p) }
    }
    #[inline(always)]
    unsafe fn store_partial(self, p: *mut f32, n: usize) {
        unsafe { std::arch::x86_64::_mm512_mask_storeu_ps(p, ((1u32 << n) - 1) as u16, self) }
    }
}

const ROUND: f32 = 12_582_912.0;

/// (p, n) with e^(x + lo) = (1 + p) 2^n for a small correction `lo`; the method and the accuracy of `math::exp`.
#[inline(always)]
fn exp_reduced<R: Vector>(x: R, lo: Option<R>) -> (R, R) {
    let c = R::splat;
    // the clamps keep NaN; beyond them the result is 0 or infinity anyway
    let x = c(-105.0).max(c(89.0).min(x));
    let t = c(ROUND).accumulate(x, c(std::f32::consts::LOG2_E));
    let n = t.sub(c(ROUND));
    let r = x.accumulate(n, c(-0.693_359_375));
    let mut r = r.accumulate(n, c(2.121_944_4e-4));
    if let Some(lo) = lo {
        r = r.add(lo);
    }
    let mut p = c(1.987_569_1e-4);
    for k in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_66, 0.5] {
        p = c(k).accumulate(p, r);
    }
    (r.accumulate(p.mul(r), r), n)
}

#[inline(always)]
fn exp_corrected<R: Vector>(x: R, lo: Option<R>) -> R {
    let (p, n) = exp_reduced(x, lo);
    p.add(R::splat(1.0)).scale2(n)
}

/// e^x, as `math::exp`.
#[inline(always)]
pub(crate) fn exp<R: Vector>(x: R) -> R {
    exp_corrected(x, None)
}

/// e^x - 1, as `math::expm1`, for x up to 88.
#[inline(always)]
pub(crate) fn expm1<R: Vector>(x: R) -> R {
    let one = R::splat(1.0);
    let (p, n) = exp_reduced(R::splat(88.0).min(x), None);
    let power = one.scale2(n);
    power.sub(one).accumulate(p, power)
}

/// (|x| capped at 15, exp(-x^2 / 2), Phi(-|x|) / exp(-x^2 / 2)): what both functions below are made of; see `math::normal_cdf`.
#[inline(always)]
fn normal_parts<R: Vector>(x: R) -> (R, R, R) {
    let c = R::splat;
    let a = c(15.0).min(x.abs());
    let s = c(1.0).div(c(1.0).accumulate(a, c(0.3)));
    let mut p = c(-0.020_628_711);
    for k in [
        0.112_465_06,
        -0.228_285_4,
        0.191_884_09,
        -0.079_509_79,
        0.096_205_24,
        0.078_372_12,
        0.110_239_364,
        0.119_571_31,
        0.119_686_715,
    ] {
        p = c(k).accumulate(p, s);
    }
    let hi = a.leading_bits();
    let lo = c(-0.5).mul(a.sub(hi)).mul(a.add(hi));
    (a, exp_corrected(c(-0.5).mul(hi).mul(hi), Some(lo)), s.mul(p))
}

/// x Phi(x).
#[inline(always)]
pub(crate) fn gelu_erf<R: Vector>(x: R) -> R {
    let (a, e, tail) = normal_parts(x);
    // x - x tail above zero, -|x| tail below
    R::splat(0.0).max(x).sub(a.mul(e.mul(tail)))
}

/// Phi(x) + x phi(x).
#[inline(always)]
pub(crate) fn gelu_erf_grad<R: Vector>(x: R) -> R {
    let (a, e, tail) = normal_parts(x);
    // above zero 1 + e (a / sqrt(2 pi) - tail); below it the second term alone, with the other sign
    let swing = e.mul(a.mul(R::splat(0.398_942_3)).sub(tail));
    let step = x.step();
    step.accumulate(swing, step.add(step).sub(R::splat(1.0)))
}

/// Elements whose terms are added in `f32` before they join an `f64` total: 16 additions in each of 64 accumulators.
const BLOCK: usize = 1024;

/// The greatest element of a row, -infinity when it is empty. Where NaN is among the elements, any of them.
#[inline(always)]
pub(crate) fn row_max<R: Vector>(x: &[f32]) -> f32 {
    let mut acc = [R::splat(f32::NEG_INFINITY); 4];
    let p = x.as_ptr();
    let mut i = 0;
    // SAFETY: (whole body) every load stays within the row.
    unsafe {
        while i + 64 <= x.len() {
            for (j, acc) in acc.iter_mut().enumerate() {
                *acc = R::load(p.add(i + 16 * j)).max(*acc);
            }
            i += 64;
        }
        while i + 16 <= x.len() {
            acc[0] = R::load(p.add(i)).max(acc[0]);
            i += 16;
        }
        if i < x.len() {
            acc[1] = R::load_partial(p.add(i), x.len() - i, f32::NEG_INFINITY).max(acc[1]);
        }
    }
    acc[0].max(acc[1]).max(acc[2].max(acc[3])).greatest()
}

/// The sum of exp(x - m) over a row; the terms are written to `y` where it is given, which may be `x` itself.
///
/// # Safety
/// `x` is valid for `n` reads, `y` for `n` writes; if they overlap they are the same.
#[inline(always)]
pub(crate) unsafe fn row_exp<R: Vector, const STORE: bool>(x: *const f32, n: usize, m: f32, y: *mut f32) -> f64 {
    let m = R::splat(m);
    let mut total = 0.0;
    // SAFETY: (whole body) loads and stores stay within the row.
    unsafe {
        for start in (0..n).step_by(BLOCK) {
            let end = n.min(start + BLOCK);
            let mut acc = [R::splat(0.0); 4];
            let mut i = start;
            while i + 64 <= end {
                for (j, acc) in acc.iter_mut().enumerate() {
                    let e = exp(R::load(x.add(i + 16 * j)).sub(m));
                    if STORE {
                        e.store(y.add(i + 16 * j));
                    }
                    *acc = acc.add(e);
                }
                i += 64;
            }
            while i + 16 <= end {
                let e = exp(R::load(x.add(i)).sub(m));
                if STORE {
                    e.store(y.add(i));
                }
                acc[0] = acc[0].add(e);
                i += 16;
            }
            if i < end {
                let e = exp(R::load_partial(x.add(i), end - i, f32::NEG_INFINITY).sub(m));
                if STORE {
                    e.store_partial(y.add(i), end - i);
                }
                acc[1] = acc[1].add(e);
            }
            total += acc[0].add(acc[1]).add(acc[2].add(acc[3])).sum() as f64;
        }
    }
    total
}

/// A function of two vectors, lane by lane. Not a closure: those are compiled for the least instruction set, and cannot be told to be
/// inlined into a kernel that was dispatched to a better one.
pub(crate) trait Lanewise<R> {
    fn of(&self, a: R, b: R) -> R;
}

/// `y = f(a, b)` over rows of one length; `y` may be one of the others.
///
/// # Safety
/// `a` and `b` are valid for `n` reads, `y` for `n` writes; those that overlap are the same.
#[inline(always)]
pub(crate) unsafe fn row_map<R: Vector>(a: *const f32, b: *const f32, n: usize, y: *mut f32, f: impl Lanewise<R>) {
    // SAFETY: (whole body) loads and stores stay within the rows.
    unsafe {
        let mut i = 0;
        while i + 16 <= n {
            f.of(R::load(a.add(i)), R::load(b.add(i))).store(y.add(i));
            i += 16;
        }
        if i < n {
            let rest = n - i;
            let (a, b) = (R::load_partial(a.add(i), rest, 0.0), R::load_partial(b.add(i), rest, 0.0));
            f.of(a, b).store_partial(y.add(i), rest);
        }
    }
}

/// Declares functions for [`row_map`]: `Name(parameters) = |a, b| value;`, parameters being vectors.
macro_rules! lanewise {
    ($($(#[$attr:meta])* $name:ident($($field:ident),*) = |$a:ident, $b:ident| $value:expr;)*) => { $(
        $(#[$attr])*
        struct $name<R> { $($field: R,)* kind: std::marker::PhantomData<R> }
        impl<R: $crate::vector::Vector> $name<R> {
            #[inline(always)]
            fn new($($field: f32),*) -> Self {
                $name { $($field: R::splat($field),)* kind: std::marker::PhantomData }
            }
        }
        impl<R: $crate::vector::Vector> $crate::vector::Lanewise<R> for $name<R> {
            #[inline(always)]
            fn of(&self, $a: R, $b: R) -> R {
                let $name { $($field,)* kind: _ } = self;
                $(let $field = *$field;)*
                $value
            }
        }
    )* };
}
pub(crate) use lanewise;

#[cfg(test)]
mod tests {
    use crate::program::Unary;
    use crate::register::with_register;

    macro_rules! slices {
        ($($name:ident),*) => { $(
            mod $name {
                use crate::register::with_register;
                crate::vector::lanewise! { Function() = |x, _y| crate::vector::$name(x); }
                #[inline(always)]
                fn all<R: crate::vector::Vector>(x: &[f32], y: &mut [f32]) {
                    // SAFETY: slices of one length.
                    unsafe {
                        crate::vector::row_map::<R>(x.as_ptr(), x.as_ptr(), y.len(), y.as_mut_ptr(), Function::new())
                    }
                }
                crate::multiversion! {
                    pub fn run<V>(x: &[f32], y: &mut [f32]) { with_register!(V, all(x, y)) }
                }
            }
        )* };
    }
    slices!(exp, gelu_erf, gelu_erf_grad);

    /// Floats of every binade of both signs, and evenly spaced ones over [-span, span].
    fn sweep(span: f32) -> Vec<f32> {
        let binades = (0..100_000u32).map(|i| f32::from_bits(i.wrapping_mul(42_949))).filter(|x| x.is_finite());
        binades.chain((0..100_001).map(|i| (i as f32 / 50_000.0 - 1.0) * span)).collect()
    }

    /// The greatest error in units in the last place of the result, or of `floor` where that is greater.
    fn max_ulp(x: &[f32], run: fn(&[f32], &mut [f32]), f: impl Fn(f64) -> f64, floor: f64) -> f64 {
        let mut y = vec![f32::NAN; x.len()];
        run(x, &mut y);
        let ulp = |x: f64| ((x as f32).to_bits() + 1).min(f32::MAX.to_bits());
        x.iter().zip(&y).fold(0.0, |worst, (&x, &y)| {
            let want = f(x as f64);
            if y.is_infinite() {
                assert!(want.abs() > f32::MAX as f64 * (1.0 - 4e-7), "f({x}) = {y}, not {want}");
                return worst;
            }
            let size = want.abs().max(floor).min(f32::MAX as f64);
            let unit = (f32::from_bits(ulp(size)) as f64 - size as f32 as f64).abs().max(2f64.powi(-149));
            let error = (y as f64 - want).abs() / unit;
            assert!(error.is_finite(), "f({x}) = {y}, not {want}");
            worst.max(error)
        })
    }

    #[test]
    fn functions_over_registers_are_as_accurate_as_those_of_math() {
        // one more without a fused multiply-add
        let slack = if crate::simd::level() > crate::simd::Level::Baseline { 0.0 } else { 1.0 };
        for (name, run, f, span, floor, bound) in [
            ("exp", exp::run as fn(&[f32], &mut [f32]), f64::exp as fn(f64) -> f64, 110.0, 0.0, 1.5),
            ("gelu_erf", gelu_erf::run, |x| Unary::GeluErf.eval_f64(x), 30.0, 1e-35, 8.0),
            ("gelu_erf_grad", gelu_erf_grad::run, |x| Unary::GeluErfGrad.eval_f64(x), 30.0, 0.5, 4.0),
        ] {
            let got = max_ulp(&sweep(span), run, f, floor);
            assert!(got <= bound + slack, "{name}: {got} ULP");
        }
        let mut y = [0.0; 5];
        exp::run(&[-104.5, f32::NEG_INFINITY, f32::INFINITY, 0.0, f32::NAN], &mut y);
        assert_eq!(y[..4], [0.0, 0.0, f32::INFINITY, 1.0]);
        assert!(y[4].is_nan());
        for run in [gelu_erf::run, gelu_erf_grad::run] {
            run(&[f32::NAN; 5], &mut y);
            assert!(y.iter().all(|y| y.is_nan()));
        }
    }

    #[inline(always)]
    fn max_of<R: super::Vector>(x: &[f32]) -> f32 {
        super::row_max::<R>(x)
    }

    crate::multiversion! {
        fn greatest<V>(x: &[f32]) -> f32 { with_register!(V, max_of(x)) }
    }

    #[test]
    fn the_greatest_of_a_row_is_found_at_every_place_and_length() {
        assert_eq!(greatest(&[]), f32::NEG_INFINITY);
        for n in [1, 2, 15, 16, 17, 63, 64, 65, 130] {
            for at in 0..n {
                let x: Vec<f32> = (0..n).map(|i| if i == at { -1.0 } else { -2.0 - i as f32 }).collect();
                assert_eq!(greatest(&x), -1.0, "{n} {at}");
            }
        }
    }
}
