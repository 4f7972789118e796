//! Batched orthogonal Procrustes for stitching two windows that saw the same tokens: the rotation `omega` that best maps
//! the new window's low-dimensional states `zb` onto the old window's `za`, and a cross-validated measure of how far to
//! trust it.
//!
//! With `M = zb^T za`, the matrix solved for is `M_rho = M sqrt(d) / ||M||_F + rho I`. Its orthogonal polar factor is the
//! minimiser of `||zb W - za||^2` plus a ridge toward the identity (Schonemann 1966). Newton-Schulz approximates the
//! factor with matrix products only; where singular values are too small to converge in the given iterations the result
//! is a contraction, which shrinks directions without evidence, so it must not be assumed orthogonal. `polar_svd` is the
//! exact factor, for judging.

use crate::polar::{newton_schulz, polar_svd};
use crate::threads::par_rows_mut;

/// How to solve. `Default` gives ridge 0.1, centring, and 16 iterations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProcrustesOptions {
    /// `rho`: weight of the identity against `M` scaled to Frobenius norm `sqrt(d)`.
    pub ridge: f32,
    /// Subtract each cloud's mean first.
    pub center: bool,
    /// Newton-Schulz iterations.
    pub iters: usize,
}

impl Default for ProcrustesOptions {
    fn default() -> Self {
        ProcrustesOptions { ridge: 0.1, center: true, iters: 16 }
    }
}

/// Rotations `omega [batch, d, d]` with `zb * omega ~ za`, for clouds `za`, `zb` of shape `[batch, o, d]`.
///
/// Where the evidence vanishes (`M = 0`, `o = 0`) or is not finite, `omega` is the identity.
pub fn procrustes(
    batch: usize,
    o: usize,
    d: usize,
    za: &[f32],
    zb: &[f32],
    options: ProcrustesOptions,
    omega: &mut [f32],
) {
    check(batch, o, d, za, zb);
    assert_eq!(omega.len(), batch * d * d, "procrustes: omega must be [batch, d, d]");
    par_rows_mut(omega, d * d, d * d * (o + d * options.iters), |first, omega| {
        for (b, w) in (first..).zip(omega.chunks_exact_mut(d * d)) {
            let (a, z) = (&za[b * o * d..][..o * d], &zb[b * o * d..][..o * d]);
            solve(a, z, d, options, 0, 1, w);
        }
    });
}

/// Cross-validated strength `w [batch]` in `[0, 1]`: the rotation is fitted on the even rows and scored on the odd ones,
/// and the other way round; `w = clamp(1 - sum ||zb omega - za||^2 / sum ||zb - za||^2, 0, 1)` over the held-out rows,
/// with both clouds shifted by the means of the rows fitted on. 0 where the ratio is not finite (equal clouds, `o < 2`,
/// non-finite input).
pub fn cross_validated_strength(
    batch: usize,
    o: usize,
    d: usize,
    za: &[f32],
    zb: &[f32],
    options: ProcrustesOptions,
    w: &mut [f32],
) {
    check(batch, o, d, za, zb);
    assert_eq!(w.len(), batch, "cross_validated_strength: w must be [batch]");
    par_rows_mut(w, 1, 2 * d * d * (o + d * options.iters), |first, w| {
        for (b, w) in (first..).zip(w) {
            *w = strength(&za[b * o * d..][..o * d], &zb[b * o * d..][..o * d], o, d, options);
        }
    });
}

/// `procrustes` and `cross_validated_strength` together: three polar factors a row (two folds and all rows).
#[allow(clippy::too_many_arguments)]
pub fn stitch(
    batch: usize,
    o: usize,
    d: usize,
    za: &[f32],
    zb: &[f32],
    options: ProcrustesOptions,
    omega: &mut [f32],
    w: &mut [f32],
) {
    procrustes(batch, o, d, za, zb, options, omega);
    cross_validated_strength(batch, o, d, za, zb, options, w);
}

/// The matrix whose polar factor `procrustes` approximates, for one pair of clouds `[o, d]`: `M_rho [d, d]` in `f64`.
pub fn ridged_cross_covariance(o: usize, d: usize, za: &[f32], zb: &[f32], ridge: f64, center: bool) -> Vec<f64> {
    check(1, o, d, za, zb);
    let mean = |z: &[f32]| -> Vec<f64> {
        (0..d)
            .map(|c| if center { (0..o).map(|i| z[i * d + c] as f64).sum::<f64>() / o.max(1) as f64 } else { 0.0 })
            .collect()
    };
    let (ma, mb) = (mean(za), mean(zb));
    let mut m = vec![0.0; d * d];
    for i in 0..o {
        for r in 0..d {
            for c in 0..d {
                m[r * d + c] += (zb[i * d + r] as f64 - mb[r]) * (za[i * d + c] as f64 - ma[c]);
            }
        }
    }
    let norm = m.iter().map(|x| x * x).sum::<f64>().sqrt();
    let scale = if norm > 0.0 { (d as f64).sqrt() / norm } else { 0.0 };
    for (i, x) in m.iter_mut().enumerate() {
        *x = *x * scale + if i % (d + 1) == 0 { ridge } else { 0.0 };
    }
    m
}

/// The exact solution in `f64` by Jacobi SVD: what `procrustes` converges to where `M_rho` has full rank.
pub fn procrustes_svd(o: usize, d: usize, za: &[f32], zb: &[f32], ridge: f64, center: bool) -> Vec<f64> {
    polar_svd(d, &ridged_cross_covariance(o, d, za, zb, ridge, center))
}

fn check(batch: usize, o: usize, d: usize, za: &[f32], zb: &[f32]) {
    assert!(d >= 1, "procrustes: d must be at least 1");
    assert_eq!(za.len(), batch * o * d, "procrustes: za must be [batch, o, d]");
    assert_eq!(zb.len(), batch * o * d, "procrustes: zb must be [batch, o, d]");
}

/// Solves on rows `first, first + step, ...` of one pair; returns the means subtracted, `(mean_a, mean_b)`.
fn solve(
    za: &[f32],
    zb: &[f32],
    d: usize,
    options: ProcrustesOptions,
    first: usize,
    step: usize,
    omega: &mut [f32],
) -> (Vec<f32>, Vec<f32>) {
    let rows = || (first..za.len() / d).step_by(step);
    let count = rows().count();
    let (mut mean_a, mut mean_b) = (vec![0.0f32; d], vec![0.0f32; d]);
    if options.center && count > 0 {
        for i in rows() {
            for c in 0..d {
                mean_a[c] += za[i * d + c];
                mean_b[c] += zb[i * d + c];
            }
        }
        let inv = 1.0 / count as f32;
        mean_a.iter_mut().chain(mean_b.iter_mut()).for_each(|m| *m *= inv);
    }
    let mut m = vec![0.0f32; d * d];
    let mut a = vec![0.0f32; d];
    for i in rows() {
        for c in 0..d {
            a[c] = za[i * d + c] - mean_a[c];
        }
        for r in 0..d {
            let b = zb[i * d + r] - mean_b[r];
            for (x, a) in m[r * d..][..d].iter_mut().zip(&a) {
                *x += b * a;
            }
        }
    }
    // The largest entry is divided out before squaring, so that neither large nor tiny states leave f32's range.
    let peak = m.iter().fold(0.0f32, |p, x| p.max(x.abs()));
    if peak > 0.0 {
        m.iter_mut().for_each(|x| *x /= peak);
        let norm = m.iter().map(|x| x * x).sum::<f32>().sqrt();
        let scale = (d as f32).sqrt() / norm;
        m.iter_mut().for_each(|x| *x *= scale);
    }
    for i in 0..d {
        m[i * (d + 1)] += options.ridge;
    }
    newton_schulz(d, &m, options.iters, omega);
    (mean_a, mean_b)
}

fn strength(za: &[f32], zb: &[f32], o: usize, d: usize, options: ProcrustesOptions) -> f32 {
    if o < 2 {
        return 0.0;
    }
    let mut omega = vec![0.0f32; d * d];
    let mut rotated = vec![0.0f32; d];
    let (mut residual, mut baseline) = (0.0f32, 0.0f32);
    for fold in 0..2 {
        let (mean_a, mean_b) = solve(za, zb, d, options, fold, 2, &mut omega);
        for i in (1 - fold..o).step_by(2) {
            rotated.fill(0.0);
            for r in 0..d {
                let b = zb[i * d + r] - mean_b[r];
                for (x, w) in rotated.iter_mut().zip(&omega[r * d..][..d]) {
                    *x += b * w;
                }
            }
            for c in 0..d {
                let a = za[i * d + c] - mean_a[c];
                let b = zb[i * d + c] - mean_b[c];
                residual += (rotated[c] - a) * (rotated[c] - a);
                baseline += (b - a) * (b - a);
            }
        }
    }
    let w = 1.0 - residual / baseline;
    if w.is_finite() { w.clamp(0.0, 1.0) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::polar::tests::{matmul, noise};

    fn solve_one(o: usize, d: usize, za: &[f32], zb: &[f32], options: ProcrustesOptions) -> Vec<f32> {
        let mut omega = vec![f32::NAN; d * d];
        procrustes(1, o, d, za, zb, options, &mut omega);
        omega
    }

    fn golden_pair() -> (Vec<f32>, Vec<f32>) {
        let (c, s) = ((std::f32::consts::PI / 6.0).cos(), 0.5f32);
        let zb = vec![1.0, 0.0, 0.0, 2.0, -1.0, -2.0];
        let za = zb.chunks(2).flat_map(|r| [r[0] * c - r[1] * s, r[0] * s + r[1] * c]).collect();
        (za, zb)
    }

    #[test]
    fn golden_rotation_of_thirty_degrees_with_and_without_ridge() {
        let (za, zb) = golden_pair();
        for (ridge, want) in
            [(0.0, [0.866_025_4f32, 0.5, -0.5, 0.866_025_4]), (0.1, [0.892_491, 0.451_066, -0.451_066, 0.892_491])]
        {
            let options = ProcrustesOptions { ridge, center: false, iters: 16 };
            for (x, y) in solve_one(3, 2, &za, &zb, options).iter().zip(want) {
                assert!((x - y).abs() < 2e-6, "ridge {ridge}: {x} {y}");
            }
            for (x, y) in procrustes_svd(3, 2, &za, &zb, ridge as f64, false).iter().zip(want) {
                assert!((x - y as f64).abs() < 1e-6, "oracle, ridge {ridge}: {x} {y}");
            }
        }
    }

    #[test]
    fn related_clouds_agree_with_the_svd_oracle() {
        for (o, d) in [(12, 1), (12, 7), (16, 8), (32, 16), (80, 33), (96, 48), (160, 64)] {
            let zb = noise(o * d, 3 + d as u64);
            let rotation: Vec<f32> = polar_svd(d, &noise(d * d, 7).iter().map(|&x| x as f64).collect::<Vec<_>>())
                .iter()
                .map(|&x| x as f32)
                .collect();
            let za = matmul(o, d, d, &zb, &rotation);
            let got = solve_one(o, d, &za, &zb, ProcrustesOptions::default());
            let want = procrustes_svd(o, d, &za, &zb, 0.1, true);
            for (x, y) in got.iter().zip(&want) {
                // 16 products of d x d f32 matrices, each with rounding error below sqrt(d) eps per entry of order one
                let tolerance = 16.0 * (d as f64).sqrt() * f32::EPSILON as f64;
                assert!((*x as f64 - y).abs() < tolerance, "o={o} d={d}: {x} {y}");
            }
        }
    }

    #[test]
    fn no_evidence_gives_the_identity_and_no_strength() {
        for (o, d, fill) in
            [(5, 8, 0.0f32), (1, 4, 3.0), (6, 3, 2.5), (0, 3, 0.0), (4, 3, f32::NAN), (4, 3, f32::INFINITY)]
        {
            let z = vec![fill; o * d];
            let (mut omega, mut w) = (vec![9.0; d * d], vec![9.0]);
            stitch(1, o, d, &z, &z, ProcrustesOptions::default(), &mut omega, &mut w);
            for (i, x) in omega.iter().enumerate() {
                let want = if i % (d + 1) == 0 { 1.0 } else { 0.0 };
                assert!((x - want).abs() < 1e-6, "o={o} d={d} fill={fill}: {omega:?}");
            }
            assert_eq!(w[0], 0.0);
        }
        let zero = vec![0.0f32; 12];
        let options = ProcrustesOptions { ridge: 0.0, ..Default::default() };
        assert_eq!(solve_one(4, 3, &zero, &zero, options), [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]);
    }

    #[test]
    fn rank_deficient_clouds_give_a_finite_contraction() {
        let (o, d) = (4, 16);
        let (za, zb) = (noise(o * d, 1), noise(o * d, 2));
        for ridge in [0.0, 0.1] {
            let options = ProcrustesOptions { ridge, ..Default::default() };
            let omega = solve_one(o, d, &za, &zb, options);
            let x = noise(d, 5);
            let y = matmul(1, d, d, &x, &omega);
            let norm = |v: &[f32]| v.iter().map(|x| x * x).sum::<f32>().sqrt();
            assert!(norm(&y) <= norm(&x) * (1.0 + 1e-5), "{} {}", norm(&y), norm(&x));
        }
    }

    #[test]
    fn extreme_scales_do_not_change_the_rotation() {
        let (o, d) = (24, 8);
        let zb = noise(o * d, 11);
        let za: Vec<f32> = zb.iter().zip(noise(o * d, 12)).map(|(a, b)| a + 0.1 * b).collect();
        let want = solve_one(o, d, &za, &zb, ProcrustesOptions::default());
        for scale in [1e-15f32, 1e15] {
            let scaled = |z: &[f32]| z.iter().map(|x| x * scale).collect::<Vec<_>>();
            let got = solve_one(o, d, &scaled(&za), &scaled(&zb), ProcrustesOptions::default());
            for (x, y) in got.iter().zip(&want) {
                assert!((x - y).abs() < 1e-5, "scale {scale}: {x} {y}");
            }
        }
    }

    #[test]
    fn strength_sees_rotations_and_ignores_unrelated_or_aligned_clouds() {
        let (d, o, trials) = (12, 16, 41);
        let rotation: Vec<f32> = polar_svd(d, &noise(d * d, 99).iter().map(|&x| x as f64).collect::<Vec<_>>())
            .iter()
            .map(|&x| x as f32)
            .collect();
        let median = |make: &dyn Fn(u64) -> (Vec<f32>, Vec<f32>)| {
            let mut all: Vec<f32> = (0..trials)
                .map(|seed| {
                    let (za, zb) = make(seed);
                    let mut w = [f32::NAN];
                    cross_validated_strength(1, o, d, &za, &zb, ProcrustesOptions::default(), &mut w);
                    w[0]
                })
                .collect();
            all.sort_by(f32::total_cmp);
            all[trials as usize / 2]
        };
        let unrelated = median(&|s| (noise(o * d, 2 * s + 1000), noise(o * d, 2 * s + 1001)));
        let rotated = median(&|s| {
            let zb = noise(o * d, 2 * s + 2000);
            let n = noise(o * d, 2 * s + 2001);
            let za = matmul(o, d, d, &zb, &rotation).iter().zip(n).map(|(x, n)| x + 0.3 * n).collect();
            (za, zb)
        });
        let aligned = median(&|s| {
            let zb = noise(o * d, 2 * s + 3000);
            let za = zb.iter().zip(noise(o * d, 2 * s + 3001)).map(|(x, n)| x + 0.3 * n).collect();
            (za, zb)
        });
        assert!(unrelated < 0.1, "unrelated {unrelated}");
        assert!(rotated > 0.2, "rotated {rotated}");
        assert_eq!(aligned, 0.0);
    }

    #[test]
    fn batches_are_independent_and_do_not_depend_on_threads() {
        let (batch, o, d) = (30, 19, 16);
        let (za, zb) = (noise(batch * o * d, 21), noise(batch * o * d, 22));
        let run = |threads| {
            let (mut omega, mut w) = (vec![0.0; batch * d * d], vec![0.0; batch]);
            crate::threads::with_threads(threads, || {
                stitch(batch, o, d, &za, &zb, ProcrustesOptions::default(), &mut omega, &mut w)
            });
            (omega, w)
        };
        let one = run(1);
        assert_eq!(one, run(3));
        let last = batch - 1;
        let alone = solve_one(o, d, &za[last * o * d..], &zb[last * o * d..], ProcrustesOptions::default());
        assert_eq!(alone, one.0[last * d * d..]);
    }
}
