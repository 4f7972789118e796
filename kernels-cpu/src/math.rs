//! Elementary functions in `f32`, written branch-free so that a loop over them vectorises.
//!
//! All are `#[inline(always)]` and generic over the instruction set (see [`crate::simd`]). Errors below are the greatest measured by the tests of this file against `f64`, in
//! units in the last place (ULP) of the correctly rounded result; without a fused multiply-add they are at most one ULP worse.
//! NaN gives NaN, and no finite argument gives NaN where the function is finite.
//!
//! | function     | range                | max error                                    |
//! |--------------|----------------------|----------------------------------------------|
//! | `exp`        | all                  | 1.5 ULP; 0 below -103.98, infinity above 88.73 |
//! | `log`        | all, subnormals too  | 1.5 ULP                                      |
//! | `expm1`      | all                  | 2 ULP; -1 below -17.3, infinity above 88.73  |
//! | `log1p`      | all                  | 3 ULP                                        |
//! | `tanh`       | all                  | 3 ULP                                        |
//! | `sigmoid`    | all                  | 3 ULP                                        |
//! | `softplus`   | all                  | 3 ULP                                        |
//! | `erf`        | all                  | 3 ULP                                        |
//! | `normal_cdf` | all                  | 7 ULP (relative, in both tails)              |
//! | `normal_pdf` | all                  | 3 ULP                                        |
//! | `sin`, `cos` | \|x\| <= 1e4         | absolute 1.2e-7                              |
//!
//! Polynomials for `exp`, `log`, `tanh`, `sin` and `cos` are those of the Cephes library (S. Moshier, single precision); those of `erf` and
//! the normal tail are weighted least-squares (Lawson) fits with relative errors of 1.3e-9 and 3.5e-9.

#![allow(clippy::excessive_precision, reason = "constants keep the digits of their sources")]

use crate::simd::Isa;

/// Adding and subtracting 1.5 * 2^23 rounds a float of magnitude below 2^22 to the nearest integer.
const ROUND: f32 = 12_582_912.0;

/// e^(x + lo) as (p, f, g) with e^(x + lo) = (1 + p) f g, |p| < 0.42, f and g powers of two: the reduced argument takes in the small
/// correction `lo` before it is lost to rounding.
#[inline(always)]
fn exp_reduced<V: Isa>(x: f32, lo: f32) -> (f32, f32, f32) {
    // the clamps keep NaN; beyond them the result is 0 or infinity anyway
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if x < -105.0 { -105.0 } else { x };
    let t = V::fma(x, std::f32::consts::LOG2_E, ROUND);
    let n = t - ROUND;
    // ln 2 = 0.693359375 - 2.12194440e-4; the first has 9 bits, so n times it is exact
    let r = V::fma(n, -0.693_359_375, x);
    let r = V::fma(n, 2.121_944_4e-4, r) + lo;
    let mut p = 1.987_569_1e-4;
    p = V::fma(p, r, 1.398_199_9e-3);
    p = V::fma(p, r, 8.333_452e-3);
    p = V::fma(p, r, 4.166_579_6e-2);
    p = V::fma(p, r, 0.166_666_66);
    p = V::fma(p, r, 0.5);
    p = V::fma(p * r, r, r);
    // two factors, because 2^n alone may leave the range where the result does not
    let n = (t.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = n >> 1;
    (p, exp2i(half), exp2i(n.wrapping_sub(half)))
}

/// e^(x + lo) for a small correction `lo`.
#[inline(always)]
fn exp_with_correction<V: Isa>(x: f32, lo: f32) -> f32 {
    let (p, f, g) = exp_reduced::<V>(x, lo);
    (p + 1.0) * f * g
}

/// 2^n for -126 <= n <= 127.
#[inline(always)]
fn exp2i(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// e^x.
#[inline(always)]
pub fn exp<V: Isa>(x: f32) -> f32 {
    exp_with_correction::<V>(x, 0.0)
}

/// e^x - 1, relative to itself also near 0.
#[inline(always)]
pub fn expm1<V: Isa>(x: f32) -> f32 {
    let (p, f, g) = exp_reduced::<V>(x, 0.0);
    // 2^n p + (2^n - 1) rounds the sum once; from 2^25 on the 1 is lost in any case, and 2^n alone may leave the range
    let near = V::fma(p * f, g, f * g - 1.0);
    if x > 18.0 { (p + 1.0) * f * g } else { near }
}

/// ln(1 + x), relative to itself also near 0: -infinity at -1, NaN below.
#[inline(always)]
pub fn log1p<V: Isa>(x: f32) -> f32 {
    let w = 1.0 + x;
    // what was lost in rounding 1 + x, over w
    let lost = (x - (w - 1.0)) / w;
    log::<V>(w) + if w > 0.0 && w < f32::INFINITY { lost } else { 0.0 }
}

/// The natural logarithm: -infinity at 0, NaN below.
#[inline(always)]
pub fn log<V: Isa>(x: f32) -> f32 {
    let subnormal = x < f32::MIN_POSITIVE;
    let y = if subnormal { x * 8_388_608.0 } else { x };
    let bias = if subnormal { 23.0 } else { 0.0 };
    // x = 2^e m with m in [sqrt(1/2), sqrt 2)
    const SQRT_HALF: u32 = 0x3f35_04f3;
    let bits = y.to_bits().wrapping_sub(SQRT_HALF);
    let e = ((bits as i32) >> 23) as f32 - bias;
    let f = f32::from_bits((bits & 0x007f_ffff).wrapping_add(SQRT_HALF)) - 1.0;
    let z = f * f;
    let mut p = 7.037_683_6e-2;
    p = V::fma(p, f, -0.115_146_1);
    p = V::fma(p, f, 0.116_769_984);
    p = V::fma(p, f, -0.124_201_41);
    p = V::fma(p, f, 0.142_493_23);
    p = V::fma(p, f, -0.166_680_57);
    p = V::fma(p, f, 0.200_007_15);
    p = V::fma(p, f, -0.249_999_94);
    p = V::fma(p, f, 0.333_333_32);
    let tail = V::fma(e, -2.121_944_4e-4, p * f * z);
    let tail = V::fma(z, -0.5, tail);
    let r = V::fma(e, 0.693_359_375, f + tail);
    let r = if x == 0.0 { f32::NEG_INFINITY } else { r };
    let r = if x < 0.0 { f32::NAN } else { r };
    // infinity and NaN are their own logarithms
    if x < f32::INFINITY { r } else { x }
}

#[inline(always)]
pub fn tanh<V: Isa>(x: f32) -> f32 {
    let a = x.abs();
    // near zero: x + x^3 P(x^2)
    let z = x * x;
    let mut p = -5.704_988e-3;
    p = V::fma(p, z, 2.063_908_9e-2);
    p = V::fma(p, z, -5.373_971_6e-2);
    p = V::fma(p, z, 0.133_314_42);
    p = V::fma(p, z, -0.333_332_82);
    let small = V::fma(p * z, x, x);
    let large = (1.0 - 2.0 / (exp::<V>(a + a) + 1.0)).copysign(x);
    if a < 0.625 { small } else { large }
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub fn sigmoid<V: Isa>(x: f32) -> f32 {
    let e = exp::<V>(-x.abs());
    (if x < 0.0 { e } else { 1.0 }) / (1.0 + e)
}

/// (sigmoid(x), 1 - sigmoid(x)), neither by cancellation.
#[inline(always)]
fn sigmoid_pair<V: Isa>(x: f32) -> (f32, f32) {
    let e = exp::<V>(-x.abs());
    let r = 1.0 / (1.0 + e);
    if x < 0.0 { (e * r, r) } else { (r, e * r) }
}

/// ln(1 + e^x), without overflow for large x and without cancellation for very negative x.
#[inline(always)]
pub fn softplus<V: Isa>(x: f32) -> f32 {
    let u = exp::<V>(-x.abs());
    let w = 1.0 + u;
    // log1p(u) = log(w) + what was lost in rounding 1 + u, over w
    let log1p = log::<V>(w) + (u - (w - 1.0)) / w;
    (if x > 0.0 { x } else { 0.0 }) + log1p
}

/// exp(-x^2 / 2), with the rounding error of the square carried into the exponential.
#[inline(always)]
fn exp_neg_half_square<V: Isa>(x: f32) -> f32 {
    // |x| capped where the result has long been 0, so that the square stays finite
    let a = x.abs();
    let a = if a > 15.0 { 15.0 } else { a };
    // 12 leading bits: their square is exact
    let hi = f32::from_bits(a.to_bits() & 0xffff_f000);
    exp_with_correction::<V>(-0.5 * hi * hi, -0.5 * (a - hi) * (a + hi))
}

/// Phi(-|x|): the lesser tail of the standard normal distribution, as exp(-x^2/2) s P(s) with s = 1 / (1 + 0.3 |x|).
#[inline(always)]
fn normal_tail<V: Isa>(x: f32) -> f32 {
    let a = x.abs();
    let s = 1.0 / V::fma(if a > 15.0 { 15.0 } else { a }, 0.3, 1.0);
    let mut p = -0.020_628_711;
    p = V::fma(p, s, 0.112_465_06);
    p = V::fma(p, s, -0.228_285_4);
    p = V::fma(p, s, 0.191_884_09);
    p = V::fma(p, s, -0.079_509_79);
    p = V::fma(p, s, 0.096_205_24);
    p = V::fma(p, s, 0.078_372_12);
    p = V::fma(p, s, 0.110_239_364);
    p = V::fma(p, s, 0.119_571_31);
    p = V::fma(p, s, 0.119_686_715);
    exp_neg_half_square::<V>(x) * (s * p)
}

/// Phi(x) = (1 + erf(x / sqrt 2)) / 2, the standard normal distribution function.
#[inline(always)]
pub fn normal_cdf<V: Isa>(x: f32) -> f32 {
    let tail = normal_tail::<V>(x);
    if x > 0.0 { 1.0 - tail } else { tail }
}

/// exp(-x^2 / 2) / sqrt(2 pi), the standard normal density.
#[inline(always)]
pub fn normal_pdf<V: Isa>(x: f32) -> f32 {
    exp_neg_half_square::<V>(x) * 0.398_942_3
}

/// The error function.
#[inline(always)]
pub fn erf<V: Isa>(x: f32) -> f32 {
    let z = x * x;
    let mut p = 7.853_858e-5;
    p = V::fma(p, z, -8.010_192_5e-4);
    p = V::fma(p, z, 5.188_327_7e-3);
    p = V::fma(p, z, -2.685_381_1e-2);
    p = V::fma(p, z, 0.112_835_854);
    p = V::fma(p, z, -0.376_126_26);
    p = V::fma(p, z, std::f32::consts::FRAC_2_SQRT_PI);
    let large = (1.0 - 2.0 * normal_tail::<V>(x * std::f32::consts::SQRT_2)).copysign(x);
    if z < 1.0 { x * p } else { large }
}

/// The greatest |x| for which [`sin`] and [`cos`] keep their accuracy. Beyond it use `f64`, as [`sin_cos_f64`] does.
pub const SIN_COS_RANGE: f32 = 1.0e4;

/// (sin x, cos x): Cody-Waite reduction by four parts of pi/2 (three of 11 bits), then a polynomial each.
#[inline(always)]
fn sin_cos_reduced<V: Isa>(x: f32) -> (f32, f32, u32) {
    let x = if x.abs() <= 2.0 * SIN_COS_RANGE { x } else { x * 0.0 }; // keeps NaN; the caller handles large arguments
    let t = V::fma(x, std::f32::consts::FRAC_2_PI, ROUND);
    let n = t - ROUND;
    let r = V::fma(n, -1.570_312_5, x);
    let r = V::fma(n, -4.837_513e-4, r);
    let r = V::fma(n, -7.549_533_6e-8, r);
    let r = V::fma(n, -2.563_344_2e-12, r);
    let z = r * r;
    let s = V::fma(V::fma(-1.951_529_6e-4, z, 8.332_161e-3), z, -0.166_666_55);
    let s = V::fma(s * z, r, r);
    let c = V::fma(V::fma(2.443_315_7e-5, z, -1.388_731_6e-3), z, 4.166_664_6e-2);
    let c = V::fma(c * z, z, V::fma(z, -0.5, 1.0));
    (s, c, t.to_bits().wrapping_sub(ROUND.to_bits()))
}

/// sin x for |x| <= [`SIN_COS_RANGE`]; some value of magnitude at most 1 beyond it.
#[inline(always)]
pub fn sin<V: Isa>(x: f32) -> f32 {
    let (s, c, quadrant) = sin_cos_reduced::<V>(x);
    let v = if quadrant & 1 == 0 { s } else { c };
    f32::from_bits(v.to_bits() ^ ((quadrant & 2) << 30))
}

/// cos x for |x| <= [`SIN_COS_RANGE`]; some value of magnitude at most 1 beyond it.
#[inline(always)]
pub fn cos<V: Isa>(x: f32) -> f32 {
    let (s, c, quadrant) = sin_cos_reduced::<V>(x);
    let v = if quadrant & 1 == 0 { c } else { s };
    f32::from_bits(v.to_bits() ^ ((quadrant.wrapping_add(1) & 2) << 30))
}

/// (sin x, cos x) for any x, through `f64`.
pub fn sin_cos_f64(x: f32) -> (f32, f32) {
    let (s, c) = (x as f64).sin_cos();
    (s as f32, c as f32)
}

/// x sigmoid(x).
#[inline(always)]
pub fn silu<V: Isa>(x: f32) -> f32 {
    x * sigmoid::<V>(x)
}

/// The derivative of [`silu`]: s (1 + x (1 - s)).
#[inline(always)]
pub fn silu_grad<V: Isa>(x: f32) -> f32 {
    let (s, rest) = sigmoid_pair::<V>(x);
    s * V::fma(x, rest, 1.0)
}

const SQRT_8_OVER_PI: f32 = 1.595_769_2; // 2 sqrt(2 / pi)
const GELU_CUBIC: f32 = 0.044_715;

/// 0.5 x (1 + tanh u), u = sqrt(2/pi) (x + 0.044715 x^3), as x sigmoid(2u): no cancellation for negative x.
#[inline(always)]
pub fn gelu_tanh<V: Isa>(x: f32) -> f32 {
    x * sigmoid::<V>(SQRT_8_OVER_PI * x * V::fma(GELU_CUBIC * x, x, 1.0))
}

/// The derivative of [`gelu_tanh`]: s + x s (1 - s) (2u)' with s = sigmoid(2u).
#[inline(always)]
pub fn gelu_tanh_grad<V: Isa>(x: f32) -> f32 {
    // beyond 20 the derivative is 0 or 1 to the last bit, and the cap keeps its factors finite
    let x = if x > 20.0 { 20.0 } else { x };
    let x = if x < -20.0 { -20.0 } else { x };
    let (s, rest) = sigmoid_pair::<V>(SQRT_8_OVER_PI * x * V::fma(GELU_CUBIC * x, x, 1.0));
    let du = SQRT_8_OVER_PI * V::fma(3.0 * GELU_CUBIC * x, x, 1.0);
    s * V::fma(x * du, rest, 1.0)
}

/// x Phi(x).
#[inline(always)]
pub fn gelu_erf<V: Isa>(x: f32) -> f32 {
    x * normal_cdf::<V>(x)
}

/// The derivative of [`gelu_erf`]: Phi(x) + x phi(x).
#[inline(always)]
pub fn gelu_erf_grad<V: Isa>(x: f32) -> f32 {
    V::fma(x, normal_pdf::<V>(x), normal_cdf::<V>(x))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::Unary;

    macro_rules! slices {
        ($($name:ident),*) => { $(
            mod $name {
                crate::multiversion! {
                    pub fn run<V>(x: &[f32], y: &mut [f32]) {
                        for (y, &x) in y.iter_mut().zip(x) { *y = crate::math::$name::<V>(x); }
                    }
                }
            }
        )* };
    }
    slices!(exp, expm1, log, log1p, tanh, sigmoid, softplus, erf, normal_cdf, normal_pdf, sin, cos);
    slices!(silu, silu_grad, gelu_tanh, gelu_tanh_grad, gelu_erf, gelu_erf_grad);

    /// About `n` floats that cover every binade of both signs, and `n` evenly spaced over [-span, span].
    fn sweep(n: usize, span: f32) -> Vec<f32> {
        let mut x: Vec<f32> = (0..n).map(|i| span * (2.0 * i as f32 / n as f32 - 1.0)).collect();
        let step = u32::MAX as usize / n;
        x.extend((0..n).map(|i| f32::from_bits((i * step) as u32)).filter(|v| v.is_finite()));
        x.extend([
            0.0,
            -0.0,
            f32::MIN_POSITIVE,
            1e-45,
            -1e-45,
            f32::MAX,
            f32::MIN,
            88.7,
            88.73,
            -87.4,
            -103.9,
            -104.1,
            1.0,
        ]);
        x
    }

    fn ulp(y: f64) -> f64 {
        let y = y.abs().max(f32::MIN_POSITIVE as f64);
        2f64.powi(y.log2().floor() as i32 - 23)
    }

    /// The greatest error over `x` in ULP (with `floor` as the least magnitude whose ULP counts); panics on NaN or a wrong infinity.
    fn max_ulp(x: &[f32], run: fn(&[f32], &mut [f32]), exact: impl Fn(f64) -> f64, floor: f64) -> f64 {
        let mut y = vec![0.0; x.len()];
        run(x, &mut y);
        let mut worst = 0.0f64;
        for (&x, &y) in x.iter().zip(&y) {
            let want = exact(x as f64);
            if want.is_nan() {
                assert!(y.is_nan(), "f({x}) = {y}, not NaN");
            } else if want.abs() > f32::MAX as f64 * (1.0 + 2f64.powi(-24)) {
                assert_eq!(y as f64, want.signum() * f64::INFINITY, "f({x})");
            } else if y.is_infinite() {
                // correctly rounded or one ULP from it
                assert!(want.abs() > f32::MAX as f64 * (1.0 - 4e-7), "f({x}) = {y}, not {want}");
            } else {
                let e = (y as f64 - want).abs() / ulp(want.abs().max(floor));
                assert!(e.is_finite(), "f({x}) = {y}, not {want}");
                worst = worst.max(e);
            }
        }
        worst
    }

    /// `fused` is the documented bound; without fused multiply-adds one ULP more is allowed.
    fn check(name: &str, got: f64, fused: f64) {
        let has_fma = crate::simd::level() > crate::simd::Level::Baseline || crate::simd::Baseline::HAS_FMA;
        let bound = if has_fma { fused } else { fused + 1.0 };
        println!("{name}: {got:.3} ULP");
        assert!(got <= bound, "{name}: {got} ULP, bound {bound}");
    }

    const N: usize = 300_000;

    #[test]
    fn exp_and_log_are_accurate_to_the_documented_ulp_everywhere() {
        check("exp", max_ulp(&sweep(N, 110.0), exp::run, f64::exp, 0.0), 1.5);
        check("log", max_ulp(&sweep(N, 4.0), log::run, f64::ln, 0.0), 1.5);
        let mut y = [0.0; 3];
        exp::run(&[-104.5, f32::NEG_INFINITY, f32::INFINITY], &mut y);
        assert_eq!(y, [0.0, 0.0, f32::INFINITY]);
        log::run(&[0.0, f32::INFINITY, 1.0], &mut y);
        assert_eq!(y, [f32::NEG_INFINITY, f32::INFINITY, 0.0]);
    }

    #[test]
    fn expm1_and_log1p_are_accurate_to_the_documented_ulp_everywhere() {
        check("expm1", max_ulp(&sweep(N, 110.0), expm1::run, f64::exp_m1, 0.0), 2.0);
        check("expm1 near 0", max_ulp(&sweep(N, 0.5), expm1::run, f64::exp_m1, 0.0), 2.0);
        check("log1p", max_ulp(&sweep(N, 4.0), log1p::run, f64::ln_1p, 0.0), 3.0);
        let mut y = [0.0; 4];
        expm1::run(&[-104.5, f32::NEG_INFINITY, f32::INFINITY, -0.0], &mut y);
        assert_eq!(y, [-1.0, -1.0, f32::INFINITY, 0.0]);
    }

    #[test]
    fn sigmoids_are_accurate_to_the_documented_ulp_everywhere() {
        check("tanh", max_ulp(&sweep(N, 12.0), tanh::run, f64::tanh, 0.0), 3.0);
        check("sigmoid", max_ulp(&sweep(N, 110.0), sigmoid::run, |x| Unary::Sigmoid.eval_f64(x), 0.0), 3.0);
        check("softplus", max_ulp(&sweep(N, 110.0), softplus::run, |x| Unary::Softplus.eval_f64(x), 0.0), 3.0);
    }

    #[test]
    fn normal_functions_are_accurate_to_the_documented_ulp_in_both_tails() {
        let cdf = |x: f64| if x == 0.0 { 0.5 } else { Unary::GeluErf.eval_f64(x) / x };
        let tiny = |x: &f32| x.abs() == 0.0 || x.abs() > 1e-30; // x Phi(x) / x would divide subnormals
        let x: Vec<f32> = sweep(N, 15.0).into_iter().filter(tiny).collect();
        check("normal_cdf", max_ulp(&x, normal_cdf::run, cdf, 0.0), 7.0);
        let pdf = |x: f64| (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
        check("normal_pdf", max_ulp(&sweep(N, 15.0), normal_pdf::run, pdf, 0.0), 3.0);
        // erf x = 1 - 2 Phi(-x sqrt 2); the difference is good to 1e-16 absolute, so small x are judged by the series
        let erf_exact = |x: f64| match x.abs() < 1e-3 {
            true => std::f64::consts::FRAC_2_SQRT_PI * (x - x.powi(3) / 3.0 + x.powi(5) / 10.0),
            false => 2.0 * cdf(x * std::f64::consts::SQRT_2) - 1.0,
        };
        let x: Vec<f32> = sweep(N, 5.0).into_iter().filter(|x| x.abs() > 1e-30).collect();
        check("erf", max_ulp(&x, erf::run, erf_exact, 0.0), 3.0);
    }

    #[test]
    fn sin_and_cos_keep_their_absolute_accuracy_to_ten_thousand() {
        let x: Vec<f32> = sweep(N, SIN_COS_RANGE).into_iter().filter(|x| x.abs() <= SIN_COS_RANGE).collect();
        let mut y = vec![0.0; x.len()];
        for (run, f) in [(sin::run as fn(&[f32], &mut [f32]), f64::sin as fn(f64) -> f64), (cos::run, f64::cos)] {
            run(&x, &mut y);
            let worst = x.iter().zip(&y).map(|(&x, &y)| (y as f64 - f(x as f64)).abs()).fold(0.0, f64::max);
            println!("{worst:e}");
            assert!(worst <= 1.2e-7, "{worst}");
        }
        sin::run(&[1e30, f32::MAX, -0.0], &mut y);
        assert!(y[..3].iter().all(|v| v.abs() <= 1.0));
    }

    #[test]
    fn activations_and_their_derivatives_are_finite_and_accurate_for_every_finite_argument() {
        let x = sweep(N, 30.0);
        // a product is judged relatively, down to where its factors become subnormal; a sum that crosses zero is judged
        // against the size of its terms (about 1)
        for (name, run, op, floor, bound) in [
            ("silu", silu::run as fn(&[f32], &mut [f32]), Unary::Silu, 1e-35, 4.0),
            ("gelu_erf", gelu_erf::run, Unary::GeluErf, 1e-35, 8.0),
            ("silu_grad", silu_grad::run, Unary::SiluGrad, 0.5, 4.0),
            ("gelu_erf_grad", gelu_erf_grad::run, Unary::GeluErfGrad, 0.5, 4.0),
            ("gelu_tanh_grad", gelu_tanh_grad::run, Unary::GeluTanhGrad, 0.5, 8.0),
        ] {
            check(name, max_ulp(&x, run, |x| op.eval_f64(x), floor), bound);
        }
        // 2u is rounded before the exponential, which turns its relative error into |2u| times as much of the result:
        // at |x| = 3, 2u = 6.7
        let x: Vec<f32> = x.into_iter().filter(|x| *x > -3.0 && x.abs() > 1e-30).collect();
        let exact = |x: f64| {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            x * Unary::Sigmoid.eval_f64(2.0 * u)
        };
        check("gelu_tanh", max_ulp(&x, gelu_tanh::run, exact, 0.0), 3.0 * 6.7);
    }

    #[test]
    fn nan_gives_nan() {
        let mut y = [0.0];
        for run in
            [exp::run, log::run, tanh::run, sigmoid::run, softplus::run, erf::run, normal_cdf::run, sin::run, cos::run]
        {
            run(&[f32::NAN], &mut y);
            assert!(y[0].is_nan());
        }
    }
}
