//! The orthogonal polar factor of a small square matrix: fast by Newton-Schulz in `f32`, exactly by one-sided Jacobi in
//! `f64`.

use crate::tile::{Left, matmul, pad_cols};

/// Cubic Newton-Schulz: `X_0 = M / sqrt(||M||_1 ||M||_inf)`, then `X <- 1.5 X - 0.5 X (X^T X)`, `iters` times, for `m`,
/// `out` of shape `[d, d]` (Bjorck and Bowie 1971). Singular values grow from `(0, 1]` toward 1, small ones by 1.5 a step;
/// zero ones stay zero. The zero matrix and non-finite input give the identity.
pub fn newton_schulz(d: usize, m: &[f32], iters: usize, out: &mut [f32]) {
    assert_eq!(m.len(), d * d, "newton_schulz: m must be [d, d]");
    assert_eq!(out.len(), d * d, "newton_schulz: out must be [d, d]");
    let norm_1 = (0..d).map(|c| (0..d).map(|r| m[r * d + c].abs()).sum::<f32>()).fold(0.0, f32::max);
    let norm_inf = m.chunks(d).map(|row| row.iter().map(|x| x.abs()).sum::<f32>()).fold(0.0, f32::max);
    let bound = norm_1.sqrt() * norm_inf.sqrt();
    if !(bound > 0.0 && m.iter().all(|x| x.is_finite()) && bound.is_finite()) {
        return identity(d, out);
    }
    let w = pad_cols(d);
    let mut x = vec![0.0f32; w * w];
    for (x, m) in x.chunks_exact_mut(w).zip(m.chunks_exact(d)) {
        for (x, m) in x.iter_mut().zip(m) {
            *x = m / bound;
        }
    }
    iterate(w, iters, &mut x, &mut vec![0.0; w * w], &mut vec![0.0; w * w]);
    for (out, x) in out.chunks_exact_mut(d).zip(x.chunks_exact(w)) {
        out.copy_from_slice(&x[..d]);
    }
}

crate::multiversion! {
    /// The iteration on a square tile padded with zeros, which stay zeros.
    fn iterate<V>(w: usize, iters: usize, x: &mut [f32], gram: &mut [f32], product: &mut [f32]) {
        for _ in 0..iters {
            // SAFETY: all are whole w x w tiles, w a multiple of both paddings; V is the dispatched instruction set.
            unsafe {
                matmul::<V>([w; 3], Left::transposed(x, w), x, w, gram, w, false);
                matmul::<V>([w; 3], Left::rows(x, w), gram, w, product, w, false);
            }
            for (x, p) in x.iter_mut().zip(product.iter()) {
                *x = V::fma(-0.5, *p, 1.5 * *x);
            }
        }
    }
}

fn identity(d: usize, out: &mut [f32]) {
    out.fill(0.0);
    out.iter_mut().step_by(d + 1).for_each(|x| *x = 1.0);
}

/// The orthogonal polar factor `U V^T` of `m [d, d] = U S V^T`, by one-sided Jacobi (Hestenes 1958; Demmel and Veselic
/// 1992 for its accuracy). Where `m` is rank-deficient the factor is not unique: the missing columns of `U` are taken as
/// near to those of `V` as orthogonality allows, so that `m = 0` gives the identity.
///
/// # Panics
/// If `m` is not `[d, d]` or has a non-finite entry.
pub fn polar_svd(d: usize, m: &[f64]) -> Vec<f64> {
    assert_eq!(m.len(), d * d, "polar_svd: m must be [d, d]");
    assert!(m.iter().all(|x| x.is_finite()), "polar_svd: m has a non-finite entry");
    let peak = m.iter().fold(0.0f64, |p, x| p.max(x.abs()));
    let scale = if peak > 0.0 { peak } else { 1.0 };
    // Column-major, so that the columns being rotated are contiguous: a[j] is column j of m V, v[j] column j of V.
    let mut a: Vec<Vec<f64>> = (0..d).map(|c| (0..d).map(|r| m[r * d + c] / scale).collect()).collect();
    let mut v: Vec<Vec<f64>> = (0..d).map(|c| (0..d).map(|r| if r == c { 1.0 } else { 0.0 }).collect()).collect();
    for _sweep in 0..60 {
        let mut rotated = false;
        for p in 0..d {
            for q in p + 1..d {
                rotated |= orthogonalise_pair(&mut a, &mut v, p, q);
            }
        }
        if !rotated {
            break;
        }
    }
    let sigma: Vec<f64> = a.iter().map(|c| dot(c, c).sqrt()).collect();
    let largest = sigma.iter().copied().fold(0.0, f64::max);
    let negligible = largest * d as f64 * f64::EPSILON;
    let mut u: Vec<Vec<f64>> = vec![Vec::new(); d];
    let mut basis: Vec<Vec<f64>> = Vec::with_capacity(d);
    for j in 0..d {
        if sigma[j] > negligible {
            u[j] = a[j].iter().map(|x| x / sigma[j]).collect();
            basis.push(u[j].clone());
        }
    }
    for j in 0..d {
        if sigma[j] <= negligible {
            u[j] = complete(&basis, &v[j], d);
            basis.push(u[j].clone());
        }
    }
    let mut out = vec![0.0; d * d];
    for (u, v) in u.iter().zip(&v) {
        for (row, ui) in out.chunks_mut(d).zip(u) {
            for (x, vj) in row.iter_mut().zip(v) {
                *x += ui * vj;
            }
        }
    }
    out
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// One Jacobi rotation of columns `p`, `q`; false if they were orthogonal to working accuracy already.
fn orthogonalise_pair(a: &mut [Vec<f64>], v: &mut [Vec<f64>], p: usize, q: usize) -> bool {
    let (alpha, beta, gamma) = (dot(&a[p], &a[p]), dot(&a[q], &a[q]), dot(&a[p], &a[q]));
    if gamma == 0.0 || gamma.abs() <= f64::EPSILON * alpha.sqrt() * beta.sqrt() {
        return false;
    }
    let zeta = (beta - alpha) / (2.0 * gamma);
    let t = zeta.signum() / (zeta.abs() + zeta.hypot(1.0));
    let c = 1.0 / t.hypot(1.0);
    let s = c * t;
    for columns in [a, v] {
        let (head, tail) = columns.split_at_mut(q);
        for (x, y) in head[p].iter_mut().zip(tail[0].iter_mut()) {
            (*x, *y) = (c * *x - s * *y, s * *x + c * *y);
        }
    }
    true
}

/// A unit vector orthogonal to `basis`, as near to `wanted` as can be had; an axis serves where `wanted` lies in its span.
fn complete(basis: &[Vec<f64>], wanted: &[f64], d: usize) -> Vec<f64> {
    let axes = (0..d).map(|i| (0..d).map(|r| if r == i { 1.0 } else { 0.0 }).collect::<Vec<_>>());
    // Some axis keeps at least 1/sqrt(d) of its length outside a span of fewer than d dimensions.
    let enough = 0.5 / (d as f64).sqrt();
    for mut x in std::iter::once(wanted.to_vec()).chain(axes) {
        // Twice is enough (Kahan): the second pass removes what cancellation left of the first.
        let mut first_norm = 0.0;
        for pass in 0..2 {
            for b in basis {
                let k = dot(b, &x);
                x.iter_mut().zip(b).for_each(|(x, b)| *x -= k * b);
            }
            if pass == 0 {
                first_norm = dot(&x, &x).sqrt();
            }
        }
        if first_norm >= enough {
            let norm = dot(&x, &x).sqrt();
            x.iter_mut().for_each(|x| *x /= norm);
            return x;
        }
    }
    unreachable!("a span of fewer than d dimensions leaves room for an axis")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Standard normal numbers from a fixed 64-bit mix (SplitMix64) and Box-Muller.
    pub(crate) fn noise(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03;
        let mut uniform = || {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
        };
        (0..n)
            .map(|_| {
                let (a, b) = (1.0 - uniform(), uniform());
                ((-2.0 * a.ln()).sqrt() * (2.0 * std::f64::consts::PI * b).cos()) as f32
            })
            .collect()
    }

    pub(crate) fn matmul(m: usize, k: usize, n: usize, a: &[f32], b: &[f32]) -> Vec<f32> {
        let at = |i: usize| (0..k).map(|l| a[i / n * k + l] as f64 * b[l * n + i % n] as f64).sum::<f64>() as f32;
        (0..m * n).map(at).collect()
    }

    fn orthogonality_error(d: usize, w: &[f64]) -> f64 {
        let mut worst = 0.0f64;
        for i in 0..d {
            for j in 0..d {
                let g: f64 = (0..d).map(|r| w[r * d + i] * w[r * d + j]).sum();
                worst = worst.max((g - if i == j { 1.0 } else { 0.0 }).abs());
            }
        }
        worst
    }

    /// `W^T M` is symmetric and positive semidefinite exactly when `W` is a polar factor of `M`.
    fn asymmetry(d: usize, w: &[f64], m: &[f64]) -> f64 {
        let h = |i: usize, j: usize| (0..d).map(|r| w[r * d + i] * m[r * d + j]).sum::<f64>();
        (0..d * d).map(|i| (h(i / d, i % d) - h(i % d, i / d)).abs()).fold(0.0, f64::max)
    }

    #[test]
    fn svd_polar_factor_is_orthogonal_with_a_symmetric_stretch() {
        for d in [1, 2, 3, 5, 8, 17, 33, 64] {
            let m: Vec<f64> = noise(d * d, d as u64).iter().map(|&x| x as f64).collect();
            let w = polar_svd(d, &m);
            assert!(orthogonality_error(d, &w) < 1e-13 * d as f64, "d={d}");
            assert!(asymmetry(d, &w, &m) < 1e-12 * d as f64, "d={d}");
        }
    }

    #[test]
    fn svd_polar_factor_handles_every_rank() {
        let d = 7;
        for rank in 0..=d {
            let (u, v) = (noise(d * rank, 1), noise(rank * d, 2));
            let m: Vec<f64> = matmul(d, rank, d, &u, &v).iter().map(|&x| x as f64).collect();
            let w = polar_svd(d, &m);
            assert!(orthogonality_error(d, &w) < 1e-12, "rank {rank}: {}", orthogonality_error(d, &w));
        }
        let zero = polar_svd(d, &vec![0.0; d * d]);
        assert!(zero.iter().enumerate().all(|(i, &x)| x == if i % (d + 1) == 0 { 1.0 } else { 0.0 }));
    }

    #[test]
    fn svd_polar_factor_of_a_scaled_reflection_is_the_reflection() {
        for scale in [1e-200, 1.0, 1e200] {
            let w = polar_svd(2, &[0.0, scale, scale, 0.0]);
            for (x, y) in w.iter().zip([0.0, 1.0, 1.0, 0.0]) {
                assert!((x - y).abs() < 1e-15, "{w:?}");
            }
        }
    }

    #[test]
    fn newton_schulz_leaves_the_null_space_at_zero() {
        let m = [2.0, 0.0, 0.0, 0.0, 3.0, 0.0, 0.0, 0.0, 0.0];
        let mut x = [0.0; 9];
        newton_schulz(3, &m, 16, &mut x);
        for (x, y) in x.iter().zip([1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]) {
            assert!((x - y).abs() < 1e-6, "{x} {y}");
        }
    }
}
