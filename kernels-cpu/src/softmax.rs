//! Softmax and log-softmax over rows, and their gradients. The maximum is subtracted first, so logits of any finite size are safe; masks
//! are large finite negatives (a row of nothing but masks is uniform).

use crate::reduce::{ROW_BLOCK, sum};
use crate::register::with_register;
use crate::simd::{Isa, dot};
use crate::threads::par_rows_mut;
use crate::vector::{Vector, exp, lanewise, row_exp, row_map, row_max};

/// About what one `exp` costs beside an addition.
pub(crate) const EXP_COST: usize = 8;

/// The dot product with the sum of blocks in f64.
#[inline(always)]
pub(crate) fn blocked_dot<V: Isa>(a: &[f32], b: &[f32]) -> f64 {
    a.chunks(ROW_BLOCK).zip(b.chunks(ROW_BLOCK)).fold(0.0, |total, (a, b)| total + dot::<V>(a, b) as f64)
}

lanewise! {
    Scale(scale) = |x, _y| x.mul(scale);
    LogProbability(max, log_sum) = |x, _y| x.sub(max).sub(log_sum);
    Gradient(inner) = |y, dy| y.mul(dy.sub(inner));
    LogGradient(minus_total) = |y, dy| dy.accumulate(exp(y), minus_total);
}

/// `y = exp(x) / sum(exp(x))` for one row.
#[inline(always)]
fn softmax_row<R: Vector>(x: &[f32], y: &mut [f32]) {
    let (n, p) = (y.len(), y.as_mut_ptr());
    // SAFETY: both rows have `n` elements; `y` is scaled in place.
    unsafe {
        let scale = (1.0 / row_exp::<R, true>(x.as_ptr(), n, row_max::<R>(x), p)) as f32;
        row_map::<R>(p, p, n, p, Scale::new(scale));
    }
}

/// `y = (x - max) - log(sum(exp(x - max)))` for one row.
#[inline(always)]
fn log_softmax_row<R: Vector>(x: &[f32], y: &mut [f32]) {
    let (n, p, m) = (y.len(), x.as_ptr(), row_max::<R>(x));
    // SAFETY: both rows have `n` elements; nothing is stored by `row_exp`.
    unsafe {
        let log_sum = row_exp::<R, false>(p, n, m, y.as_mut_ptr()).ln() as f32;
        row_map::<R>(p, p, n, y.as_mut_ptr(), LogProbability::new(m, log_sum));
    }
}

#[inline(always)]
fn softmax_grad_row<R: Vector>(y: &[f32], dy: &[f32], inner: f32, dx: &mut [f32]) {
    // SAFETY: rows of one length.
    unsafe { row_map::<R>(y.as_ptr(), dy.as_ptr(), dx.len(), dx.as_mut_ptr(), Gradient::new(inner)) }
}

#[inline(always)]
fn log_softmax_grad_row<R: Vector>(y: &[f32], dy: &[f32], total: f32, dx: &mut [f32]) {
    // SAFETY: rows of one length.
    unsafe { row_map::<R>(y.as_ptr(), dy.as_ptr(), dx.len(), dx.as_mut_ptr(), LogGradient::new(-total)) }
}

crate::multiversion! {
    fn softmax_rows<V>(x: &[f32], n: usize, y: &mut [f32]) {
        for (x, y) in x.chunks_exact(n).zip(y.chunks_exact_mut(n)) {
            with_register!(V, softmax_row(x, y));
        }
    }

    fn log_softmax_rows<V>(x: &[f32], n: usize, y: &mut [f32]) {
        for (x, y) in x.chunks_exact(n).zip(y.chunks_exact_mut(n)) {
            with_register!(V, log_softmax_row(x, y));
        }
    }

    fn softmax_grad_rows<V>(y: &[f32], dy: &[f32], n: usize, dx: &mut [f32]) {
        for ((y, dy), dx) in y.chunks_exact(n).zip(dy.chunks_exact(n)).zip(dx.chunks_exact_mut(n)) {
            let inner = blocked_dot::<V>(y, dy) as f32;
            with_register!(V, softmax_grad_row(y, dy, inner, dx));
        }
    }

    fn log_softmax_grad_rows<V>(y: &[f32], dy: &[f32], n: usize, dx: &mut [f32]) {
        for ((y, dy), dx) in y.chunks_exact(n).zip(dy.chunks_exact(n)).zip(dx.chunks_exact_mut(n)) {
            let total = sum::<V>(dy) as f32;
            with_register!(V, log_softmax_grad_row(y, dy, total, dx));
        }
    }
}

fn check(rows: usize, n: usize, lens: &[usize]) {
    for &len in lens {
        assert_eq!(len, rows * n, "every tensor is [{rows}, {n}]");
    }
}

/// `y = exp(x) / sum(exp(x))` over each row of `x`, shaped [rows, n].
pub fn softmax(x: &[f32], rows: usize, n: usize, y: &mut [f32]) {
    check(rows, n, &[x.len(), y.len()]);
    par_rows_mut(y, n, n * EXP_COST, |first, y| softmax_rows(&x[first * n..][..y.len()], n, y));
}

/// `y = x - log(sum(exp(x)))` over each row of `x`, shaped [rows, n].
pub fn log_softmax(x: &[f32], rows: usize, n: usize, y: &mut [f32]) {
    check(rows, n, &[x.len(), y.len()]);
    par_rows_mut(y, n, n * EXP_COST, |first, y| log_softmax_rows(&x[first * n..][..y.len()], n, y));
}

/// The gradient of [`softmax`] from its result: `dx = y (dy - sum(y dy))`.
pub fn softmax_grad(y: &[f32], dy: &[f32], rows: usize, n: usize, dx: &mut [f32]) {
    check(rows, n, &[y.len(), dy.len(), dx.len()]);
    par_rows_mut(dx, n, n * 2, |first, dx| {
        let range = first * n..first * n + dx.len();
        softmax_grad_rows(&y[range.clone()], &dy[range], n, dx);
    });
}

/// The gradient of [`log_softmax`] from its result: `dx = dy - exp(y) sum(dy)`.
pub fn log_softmax_grad(y: &[f32], dy: &[f32], rows: usize, n: usize, dx: &mut [f32]) {
    check(rows, n, &[y.len(), dy.len(), dx.len()]);
    par_rows_mut(dx, n, n * EXP_COST, |first, dx| {
        let range = first * n..first * n + dx.len();
        log_softmax_grad_rows(&y[range.clone()], &dy[range], n, dx);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPES: [(usize, usize); 9] =
        [(1, 1), (3, 2), (7, 17), (5, 64), (2, 1023), (2, 1025), (200, 131), (0, 5), (1, 50_257)];
    /// One unit of relative rounding.
    const U: f64 = 1.0 / (1 << 24) as f64;

    fn data(n: usize, scale: f32) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 % 1013) as f32 / 1013.0 - 0.5) * scale).collect()
    }

    fn log_softmax_f64(x: &[f32]) -> Vec<f64> {
        let m = x.iter().fold(f64::MIN, |m, &v| m.max(v as f64));
        let s = x.iter().map(|&v| (v as f64 - m).exp()).sum::<f64>().ln();
        x.iter().map(|&v| v as f64 - m - s).collect()
    }

    #[test]
    fn forward_agrees_with_f64_for_ordinary_and_huge_logits() {
        for (rows, n) in SHAPES {
            for scale in [1.0, 30.0, 2e4, 2e30] {
                let x = data(rows * n, scale);
                let (mut y, mut l) = (vec![0.0; rows * n], vec![0.0; rows * n]);
                softmax(&x, rows, n, &mut y);
                log_softmax(&x, rows, n, &mut l);
                for r in 0..rows {
                    let x = &x[r * n..(r + 1) * n];
                    let want = log_softmax_f64(x);
                    let span = x.iter().map(|v| v.abs() as f64).fold(0.0, f64::max) * 2.0;
                    for i in 0..n {
                        let (p, got) = (want[i].exp(), y[r * n + i] as f64);
                        // x - m is rounded once: a relative error of the exponential of U |x - m|, and x - m > -105 where it is not 0;
                        // about 30 more roundings in exp, sum and scale
                        let bound = U * (span.min(105.0) + 30.0) * p + 1e-40;
                        assert!((got - p).abs() <= bound, "softmax {rows}x{n} {scale}: {got} {p}");
                        let got = l[r * n + i] as f64;
                        let bound = U * (2.0 * span + 105.0 + 30.0);
                        assert!((got - want[i]).abs() <= bound, "log_softmax {rows}x{n} {scale}: {got} {}", want[i]);
                    }
                }
            }
        }
    }

    #[test]
    fn masked_entries_get_no_weight_and_all_masked_rows_are_uniform() {
        let mut y = [0.0; 4];
        softmax(&[1e4, -1e30, 1e4, -1e30], 1, 4, &mut y);
        assert_eq!(y, [0.5, 0.0, 0.5, 0.0]);
        softmax(&[-1e30; 4], 1, 4, &mut y);
        assert_eq!(y, [0.25; 4]);
    }

    #[test]
    fn gradients_agree_with_f64() {
        for (rows, n) in SHAPES {
            let (x, dy) = (data(rows * n, 8.0), data(rows * n + 3, 2.0)[3..].to_vec());
            let (mut y, mut l, mut dx) = (vec![0.0; rows * n], vec![0.0; rows * n], vec![0.0; rows * n]);
            softmax(&x, rows, n, &mut y);
            log_softmax(&x, rows, n, &mut l);
            softmax_grad(&y, &dy, rows, n, &mut dx);
            for r in 0..rows {
                let at = |i: usize| (y[r * n + i] as f64, dy[r * n + i] as f64);
                let inner: f64 = (0..n).map(at).map(|(y, d)| y * d).sum();
                for i in 0..n {
                    let (y, d) = at(i);
                    let bound = U * 40.0 * y * (d.abs() + 1.0) + 1e-40;
                    assert!((dx[r * n + i] as f64 - y * (d - inner)).abs() <= bound);
                }
            }
            log_softmax_grad(&l, &dy, rows, n, &mut dx);
            for r in 0..rows {
                let total: f64 = dy[r * n..][..n].iter().map(|&d| d as f64).sum();
                let size: f64 = dy[r * n..][..n].iter().map(|&d| d.abs() as f64).sum();
                for i in 0..n {
                    let (p, d) = ((l[r * n + i] as f64).exp(), dy[r * n + i] as f64);
                    let bound = U * (30.0 * p * size + 2.0 * d.abs() + 2.0 * p * total.abs()) + 1e-40;
                    assert!((dx[r * n + i] as f64 - (d - p * total)).abs() <= bound);
                }
            }
        }
    }
}
