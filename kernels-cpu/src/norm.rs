//! Layer normalisation (Ba et al. 2016) and root-mean-square normalisation (Zhang and Sennrich 2019) over rows, with gradients.
//! Parameter gradients are column reductions in fixed blocks, so their bits do not depend on the number of threads.

use crate::norm_params::param_grads;
use crate::register::with_register;
use crate::stream::prefetch;
use crate::threads::{SharedMut, par_rows, par_rows_mut};
use crate::vector::Vector;

/// Elements of a row whose terms are added in `f32` before they join an `f64` total.
const BLOCK: usize = 1024;
/// Rows that go through a kernel's steps together at most, so that the latency of one row's sums is hidden behind the others.
const ROWS: usize = 8;

/// Rows of a group: as few as hide the latency, because what a group reads in one go it computes in another.
#[inline(always)]
fn group_rows(d: usize) -> usize {
    (GROUP_FLOATS / d).clamp(1, ROWS)
}

/// Elements of a group of rows.
const GROUP_FLOATS: usize = 512;
/// How many elements ahead of a row's last pass its tensors are fetched, at least: memory answers after a hundred nanoseconds, in
/// which it can deliver about this much.
pub(crate) const AHEAD: usize = 1024;

/// `y = f(a, b, c)` over a row, lane by lane; a line of each tensor is asked for at `ahead` elements behind each of `fetch`.
///
/// # Safety
/// The pointers that `f` uses are valid for `n` reads, `y` for `n` writes; those that overlap are the same.
#[inline(always)]
unsafe fn row_results<R: Vector, const N: usize>(
    [a, b, c]: [*const f32; 3],
    y: &mut [f32],
    fetch: [*const f32; N],
    ahead: usize,
    f: impl Fn(R, R, R) -> R,
) {
    let (n, y) = (y.len(), y.as_mut_ptr());
    let fetch = fetch.map(|p| p.wrapping_add(ahead));
    // SAFETY: (whole body) loads and stores stay within the rows.
    unsafe {
        let mut i = 0;
        while i + 16 <= n {
            for p in fetch {
                prefetch(p.wrapping_add(i));
            }
            f(R::load(a.add(i)), R::load(b.add(i)), R::load(c.add(i))).store(y.add(i));
            i += 16;
        }
        if i < n {
            for p in fetch {
                prefetch(p.wrapping_add(i));
            }
            let [a, b, c] = [a, b, c].map(|p| R::load_partial(p.add(i), n - i, 0.0));
            f(a, b, c).store_partial(y.add(i), n - i);
        }
    }
}

#[inline(always)]
fn layer_norm_row<R: Vector>(
    x: &[f32],
    m: f32,
    r: f32,
    gamma: &[f32],
    beta: Option<&[f32]>,
    ahead: usize,
    y: &mut [f32],
) {
    let (m, r, at, g) = (R::splat(m), R::splat(r), x.as_ptr(), gamma.as_ptr());
    // SAFETY: rows of one length.
    unsafe {
        match beta {
            Some(b) => {
                row_results::<R, 1>([at, g, b.as_ptr()], y, [at], ahead, |x, g, b| b.accumulate(x.sub(m).mul(r), g))
            }
            None => row_results::<R, 1>([at, g, g], y, [at], ahead, |x, g, _| x.sub(m).mul(r).mul(g)),
        }
    }
}

#[inline(always)]
fn layer_norm_grad_row<R: Vector>(
    x: &[f32],
    dy: &[f32],
    gamma: &[f32],
    m: f32,
    r: f32,
    a: f32,
    b: f32,
    ahead: usize,
    dx: &mut [f32],
) {
    let [m, r, minus_a, b] = [m, r, -a, b].map(R::splat);
    let (x, dy) = (x.as_ptr(), dy.as_ptr());
    // SAFETY: rows of one length.
    unsafe {
        row_results::<R, 2>([x, dy, gamma.as_ptr()], dx, [x, dy], ahead, |x, dy, g| {
            r.mul(minus_a.accumulate(dy, g).sub(x.sub(m).mul(b)))
        })
    }
}

#[inline(always)]
fn rms_norm_row<R: Vector>(x: &[f32], r: f32, gamma: &[f32], offset: f32, ahead: usize, y: &mut [f32]) {
    let (r, offset, x, g) = (R::splat(r), R::splat(offset), x.as_ptr(), gamma.as_ptr());
    // SAFETY: rows of one length.
    unsafe { row_results::<R, 1>([x, g, g], y, [x], ahead, |x, g, _| x.mul(r).mul(g.add(offset))) }
}

#[inline(always)]
fn rms_norm_grad_row<R: Vector>(
    x: &[f32],
    dy: &[f32],
    gamma: &[f32],
    offset: f32,
    r: f32,
    b: f32,
    ahead: usize,
    dx: &mut [f32],
) {
    let [offset, r, minus_b] = [offset, r, -b].map(R::splat);
    let (x, dy) = (x.as_ptr(), dy.as_ptr());
    // SAFETY: rows of one length.
    unsafe {
        row_results::<R, 2>([x, dy, gamma.as_ptr()], dx, [x, dy], ahead, |x, dy, g| {
            r.mul(x.mul(minus_b).accumulate(dy, g.add(offset)))
        })
    }
}

/// The sums over a row of the two terms that `f` makes of vectors of a, b and c. Beyond the row's end all three are 0, of which `f`
/// must make 0.
///
/// # Safety
/// The pointers that `f` uses are valid for `n` reads.
#[inline(always)]
unsafe fn row_sums<R: Vector>([a, b, c]: [*const f32; 3], n: usize, f: impl Fn(R, R, R) -> (R, R)) -> (f64, f64) {
    let (mut s1, mut s2) = (0.0, 0.0);
    // SAFETY: (whole body) loads stay within the rows.
    unsafe {
        for start in (0..n).step_by(BLOCK) {
            let end = n.min(start + BLOCK);
            let (mut acc1, mut acc2) = ([R::splat(0.0); 4], [R::splat(0.0); 4]);
            let mut i = start;
            while i + 64 <= end {
                for j in 0..4 {
                    let at = i + 16 * j;
                    let (p, q) = f(R::load(a.add(at)), R::load(b.add(at)), R::load(c.add(at)));
                    (acc1[j], acc2[j]) = (acc1[j].add(p), acc2[j].add(q));
                }
                i += 64;
            }
            while i + 16 <= end {
                let (p, q) = f(R::load(a.add(i)), R::load(b.add(i)), R::load(c.add(i)));
                (acc1[0], acc2[0]) = (acc1[0].add(p), acc2[0].add(q));
                i += 16;
            }
            if i < end {
                let [a, b, c] = [a, b, c].map(|p| R::load_partial(p.add(i), end - i, 0.0));
                let (p, q) = f(a, b, c);
                (acc1[1], acc2[1]) = (acc1[1].add(p), acc2[1].add(q));
            }
            s1 += acc1[0].add(acc1[1]).add(acc1[2].add(acc1[3])).sum() as f64;
            s2 += acc2[0].add(acc2[1]).add(acc2[2].add(acc2[3])).sum() as f64;
        }
    }
    (s1, s2)
}

/// The sum of a row.
#[inline(always)]
fn row_sum<R: Vector>(x: &[f32]) -> f64 {
    let p = x.as_ptr();
    // SAFETY: the row.
    unsafe { row_sums::<R>([p; 3], x.len(), |x, _, _| (x, R::splat(0.0))).0 }
}

/// The sum over a row of (x - mean)^2.
#[inline(always)]
fn centred_sum_sq<R: Vector>(x: &[f32], mean: f32) -> f64 {
    let (whole, p, m) = (x.len() / 16 * 16, x.as_ptr(), R::splat(mean));
    // SAFETY: the row; what completes the last vector is the mean itself, which adds nothing.
    unsafe {
        let term = |x: R, _: R, _: R| {
            let c = x.sub(m);
            (c.mul(c), R::splat(0.0))
        };
        let mut total = row_sums::<R>([p; 3], whole, term).0;
        if whole < x.len() {
            let last = R::load_partial(p.add(whole), x.len() - whole, mean);
            total += term(last, last, last).0.sum() as f64;
        }
        total
    }
}

/// The sum of squares of a row.
#[inline(always)]
fn row_sum_sq<R: Vector>(x: &[f32]) -> f64 {
    let p = x.as_ptr();
    // SAFETY: the row.
    unsafe { row_sums::<R>([p; 3], x.len(), |x, _, _| (x.mul(x), R::splat(0.0))).0 }
}

/// The sums over a row of g and of g (x - mean), with g = dy (gamma + offset).
#[inline(always)]
fn gradient_sums<R: Vector>(dy: &[f32], gamma: &[f32], offset: f32, x: &[f32], mean: f32) -> (f64, f64) {
    let (offset, mean) = (R::splat(offset), R::splat(mean));
    // SAFETY: rows of one length; beyond their end dy is 0, and so are both terms.
    unsafe {
        row_sums::<R>([dy.as_ptr(), gamma.as_ptr(), x.as_ptr()], x.len(), |dy, gamma, x| {
            let g = dy.mul(gamma.add(offset));
            (g, g.mul(x.sub(mean)))
        })
    }
}

crate::multiversion! {
    fn layer_norm_rows<V>(
        x: &[f32], d: usize, gamma: &[f32], beta: Option<&[f32]>, eps: f32, y: &mut [f32], mean: &mut [f32], rstd: &mut [f32],
    ) {
        let (n, ahead) = (group_rows(d), (group_rows(d) * d).max(AHEAD));
        let groups = x.chunks(n * d).zip(y.chunks_mut(n * d)).zip(mean.chunks_mut(n)).zip(rstd.chunks_mut(n));
        for (((x, y), mean), rstd) in groups {
            for (x, m) in x.chunks_exact(d).zip(&mut *mean) {
                *m = (with_register!(V, row_sum(x)) / d as f64) as f32;
            }
            let mut squares = [0.0f64; ROWS];
            for ((x, &m), s) in x.chunks_exact(d).zip(&*mean).zip(&mut squares) {
                *s = with_register!(V, centred_sum_sq(x, m));
            }
            for (r, s) in rstd.iter_mut().zip(squares) {
                *r = (1.0 / (s / d as f64 + eps as f64).sqrt()) as f32;
            }
            for (((x, y), &m), &r) in x.chunks_exact(d).zip(y.chunks_exact_mut(d)).zip(&*mean).zip(&*rstd) {
                with_register!(V, layer_norm_row(x, m, r, gamma, beta, ahead, y));
            }
        }
    }

    fn layer_norm_grad_rows<V>(
        x: &[f32], d: usize, gamma: &[f32], mean: &[f32], rstd: &[f32], dy: &[f32], dx: &mut [f32],
    ) {
        let (n, ahead) = (group_rows(2 * d), (group_rows(2 * d) * d).max(AHEAD));
        let groups = x.chunks(n * d).zip(dy.chunks(n * d)).zip(dx.chunks_mut(n * d));
        for (((x, dy), dx), (mean, rstd)) in groups.zip(mean.chunks(n).zip(rstd.chunks(n))) {
            let mut means = [(0.0f32, 0.0f32); ROWS];
            let rows = x.chunks_exact(d).zip(dy.chunks_exact(d)).zip(mean).zip(rstd);
            for ((((x, dy), &m), &r), means) in rows.zip(&mut means) {
                // with xhat = (x - m) r and g = dy gamma: dx = r (g - mean(g) - xhat mean(g xhat))
                let (s1, s2) = with_register!(V, gradient_sums(dy, gamma, 0.0, x, m));
                *means = ((s1 / d as f64) as f32, (s2 * r as f64 * r as f64 / d as f64) as f32);
            }
            let rows = x.chunks_exact(d).zip(dy.chunks_exact(d)).zip(dx.chunks_exact_mut(d)).zip(mean).zip(rstd);
            for (((((x, dy), dx), &m), &r), (a, b)) in rows.zip(means) {
                with_register!(V, layer_norm_grad_row(x, dy, gamma, m, r, a, b, ahead, dx));
            }
        }
    }

    fn rms_norm_rows<V>(x: &[f32], d: usize, gamma: &[f32], offset: f32, eps: f32, y: &mut [f32], rstd: &mut [f32]) {
        let (n, ahead) = (group_rows(d), (group_rows(d) * d).max(AHEAD));
        for ((x, y), rstd) in x.chunks(n * d).zip(y.chunks_mut(n * d)).zip(rstd.chunks_mut(n)) {
            for (x, r) in x.chunks_exact(d).zip(&mut *rstd) {
                *r = (1.0 / (with_register!(V, row_sum_sq(x)) / d as f64 + eps as f64).sqrt()) as f32;
            }
            for ((x, y), &r) in x.chunks_exact(d).zip(y.chunks_exact_mut(d)).zip(&*rstd) {
                with_register!(V, rms_norm_row(x, r, gamma, offset, ahead, y));
            }
        }
    }

    fn rms_norm_grad_rows<V>(
        x: &[f32], d: usize, gamma: &[f32], offset: f32, rstd: &[f32], dy: &[f32], dx: &mut [f32],
    ) {
        let (n, ahead) = (group_rows(2 * d), (group_rows(2 * d) * d).max(AHEAD));
        let groups = x.chunks(n * d).zip(dy.chunks(n * d)).zip(dx.chunks_mut(n * d));
        for (((x, dy), dx), rstd) in groups.zip(rstd.chunks(n)) {
            let mut means = [0.0f32; ROWS];
            for (((x, dy), &r), mean) in x.chunks_exact(d).zip(dy.chunks_exact(d)).zip(rstd).zip(&mut means) {
                // with g = dy gamma: dx = r (g - x r^2 mean(g x))
                let (_, s) = with_register!(V, gradient_sums(dy, gamma, offset, x, 0.0));
                *mean = (s * r as f64 * r as f64 / d as f64) as f32;
            }
            let rows = x.chunks_exact(d).zip(dy.chunks_exact(d)).zip(dx.chunks_exact_mut(d)).zip(rstd);
            for ((((x, dy), dx), &r), b) in rows.zip(means) {
                with_register!(V, rms_norm_grad_row(x, dy, gamma, offset, r, b, ahead, dx));
            }
        }
    }
}

/// `y = (x - mean) rstd gamma + beta` for each row of `x`, shaped [rows, d], with `rstd = 1 / sqrt(variance + eps)` and the biased
/// variance. `gamma` and `beta` are [d]; `mean` and `rstd` are outputs, [rows].
pub fn layer_norm(
    x: &[f32],
    rows: usize,
    d: usize,
    gamma: &[f32],
    beta: Option<&[f32]>,
    eps: f32,
    y: &mut [f32],
    mean: &mut [f32],
    rstd: &mut [f32],
) {
    check(rows, d, &[x.len(), y.len()], &[mean.len(), rstd.len()], &[gamma.len(), beta.map_or(d, |b| b.len())]);
    let (y, mean, rstd) = (SharedMut::new(y), SharedMut::new(mean), SharedMut::new(rstd));
    par_rows(if d == 0 { 0 } else { rows }, 4 * d, |r| {
        let e = r.start * d..r.end * d;
        // SAFETY: the ranges are disjoint.
        let (y, mean, rstd) = unsafe { (y.slice(e.clone()), mean.slice(r.clone()), rstd.slice(r)) };
        layer_norm_rows(&x[e], d, gamma, beta, eps, y, mean, rstd);
    });
}

/// The gradient of [`layer_norm`] by `x`: all of [rows, d] except `gamma` [d], `mean` and `rstd` [rows].
pub fn layer_norm_grad_x(
    x: &[f32],
    rows: usize,
    d: usize,
    gamma: &[f32],
    mean: &[f32],
    rstd: &[f32],
    dy: &[f32],
    dx: &mut [f32],
) {
    check(rows, d, &[x.len(), dy.len(), dx.len()], &[mean.len(), rstd.len()], &[gamma.len()]);
    par_rows_mut(dx, d, 4 * d, |first, dx| {
        let r = first..first + dx.len() / d;
        let e = r.start * d..r.end * d;
        layer_norm_grad_rows(&x[e.clone()], d, gamma, &mean[r.clone()], &rstd[r], &dy[e], dx);
    });
}

/// The gradients of [`layer_norm`] by `gamma` and `beta`, each [d]: sums over rows of `dy (x - mean) rstd` and of `dy`.
pub fn layer_norm_grad_params(
    x: &[f32],
    rows: usize,
    d: usize,
    mean: &[f32],
    rstd: &[f32],
    dy: &[f32],
    dgamma: &mut [f32],
    dbeta: Option<&mut [f32]>,
) {
    check(
        rows,
        d,
        &[x.len(), dy.len()],
        &[mean.len(), rstd.len()],
        &[dgamma.len(), dbeta.as_ref().map_or(d, |b| b.len())],
    );
    param_grads(x, rows, d, Some(mean), rstd, dy, dgamma, dbeta);
}

/// `y = x rstd (gamma + 1 if gamma_plus_one)` for each row of `x`, shaped [rows, d], with `rstd = 1 / sqrt(mean(x^2) + eps)`, an output
/// [rows]. `gamma` is [d].
pub fn rms_norm(
    x: &[f32],
    rows: usize,
    d: usize,
    gamma: &[f32],
    gamma_plus_one: bool,
    eps: f32,
    y: &mut [f32],
    rstd: &mut [f32],
) {
    check(rows, d, &[x.len(), y.len()], &[rstd.len()], &[gamma.len()]);
    let (y, rstd) = (SharedMut::new(y), SharedMut::new(rstd));
    par_rows(if d == 0 { 0 } else { rows }, 3 * d, |r| {
        let e = r.start * d..r.end * d;
        // SAFETY: the ranges are disjoint.
        let (y, rstd) = unsafe { (y.slice(e.clone()), rstd.slice(r)) };
        rms_norm_rows(&x[e], d, gamma, gamma_plus_one as u8 as f32, eps, y, rstd);
    });
}

/// The gradient of [`rms_norm`] by `x`.
pub fn rms_norm_grad_x(
    x: &[f32],
    rows: usize,
    d: usize,
    gamma: &[f32],
    gamma_plus_one: bool,
    rstd: &[f32],
    dy: &[f32],
    dx: &mut [f32],
) {
    check(rows, d, &[x.len(), dy.len(), dx.len()], &[rstd.len()], &[gamma.len()]);
    par_rows_mut(dx, d, 4 * d, |first, dx| {
        let r = first..first + dx.len() / d;
        let e = r.start * d..r.end * d;
        rms_norm_grad_rows(&x[e.clone()], d, gamma, gamma_plus_one as u8 as f32, &rstd[r], &dy[e], dx);
    });
}

/// The gradient of [`rms_norm`] by `gamma`, [d]: the sum over rows of `dy x rstd`.
pub fn rms_norm_grad_params(x: &[f32], rows: usize, d: usize, rstd: &[f32], dy: &[f32], dgamma: &mut [f32]) {
    check(rows, d, &[x.len(), dy.len()], &[rstd.len()], &[dgamma.len()]);
    param_grads(x, rows, d, None, rstd, dy, dgamma, None);
}

fn check(rows: usize, d: usize, elements: &[usize], row_stats: &[usize], params: &[usize]) {
    assert!(elements.iter().all(|&n| n == rows * d), "tensors are [{rows}, {d}]: {elements:?}");
    assert!(row_stats.iter().all(|&n| n == rows), "statistics are [{rows}]: {row_stats:?}");
    assert!(params.iter().all(|&n| n == d), "parameters are [{d}]: {params:?}");
}
