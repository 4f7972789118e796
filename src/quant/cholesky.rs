//! The factor that GPTQ walks along, in f64.

use kernels_cpu::threads::par_rows_mut;

/// The upper triangular U [n, n] with H^-1 = U^T U, row after row, zeros below its diagonal; none where H, symmetric, is not positive
/// definite.
///
/// H = R R^T with R upper triangular is Cholesky's method begun at the last row; then U is the inverse of R, and the inverse of H
/// itself is never made.
pub fn inverse_factor(h: &[f64], n: usize) -> Option<Vec<f64>> {
    let mut r = h.to_vec();
    for j in (0..n).rev() {
        let (above, row) = r.split_at_mut(j * n);
        let tail = &row[j + 1..n];
        let square = row[j] - dot(tail, tail);
        if !(square.is_finite() && square > 0.0) {
            return None;
        }
        let root = square.sqrt();
        // Eight products at a time: threads are woken for what is worth it.
        par_rows_mut(above, n, (n - j) / 8, |_, rows| {
            for other in rows.chunks_exact_mut(n) {
                other[j] = (other[j] - dot(&other[j + 1..n], tail)) / root;
            }
        });
        row[j] = root;
        row[..j].fill(0.0);
    }
    // Row i of the inverse is made of the rows below it, which are inverted already.
    let mut line = vec![0.0; n];
    for i in (0..n).rev() {
        let (above, below) = r.split_at_mut((i + 1) * n);
        let row = &mut above[i * n..];
        let pivot = 1.0 / row[i];
        line[i..].fill(0.0);
        line[i] = pivot;
        for k in i + 1..n {
            let by = -row[k] * pivot;
            if by != 0.0 {
                let other = &below[(k - i - 1) * n..][k..n];
                line[k..].iter_mut().zip(other).for_each(|(l, u)| *l += by * u);
            }
        }
        row[i..n].copy_from_slice(&line[i..]);
    }
    r.iter().all(|v| v.is_finite()).then_some(r)
}

/// Eight sums side by side, which a compiler can keep in vectors.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    let (a8, b8) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f64 = a8.remainder().iter().zip(b8.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a8.zip(b8) {
        for (s, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *s += a * b;
        }
    }
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernels_cpu::philox;

    #[test]
    fn the_factor_times_itself_is_the_inverse() {
        let n = 45;
        let mut x = vec![0.0f32; n * 60];
        philox::fill_normal(1, 0, &mut x);
        let h: Vec<f64> = (0..n * n)
            .map(|at| (0..60).map(|t| f64::from(x[t * n + at / n]) * f64::from(x[t * n + at % n])).sum::<f64>() / 60.0)
            .collect();
        let u = inverse_factor(&h, n).unwrap();
        // U^T U H = 1.
        let times = |a: &[f64], trans: bool, b: &[f64]| -> Vec<f64> {
            let at = |i: usize, k: usize| if trans { a[k * n + i] } else { a[i * n + k] };
            (0..n * n).map(|p| (0..n).map(|k| at(p / n, k) * b[k * n + p % n]).sum()).collect()
        };
        let unit = times(&times(&u, true, &u), false, &h);
        for (p, v) in unit.iter().enumerate() {
            let want = if p / n == p % n { 1.0 } else { 0.0 };
            assert!((v - want).abs() < 1e-9, "[{}, {}] {v}", p / n, p % n);
        }
        assert!((0..n * n).filter(|p| p / n > p % n).all(|p| u[p] == 0.0), "it is upper triangular");
    }

    #[test]
    fn what_is_not_positive_definite_has_none() {
        assert!(inverse_factor(&[1.0, 2.0, 2.0, 1.0], 2).is_none());
        assert!(inverse_factor(&[0.0], 1).is_none());
        assert!(inverse_factor(&[f64::NAN], 1).is_none());
    }
}
