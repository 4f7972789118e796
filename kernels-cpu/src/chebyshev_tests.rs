//! Chebyshev filters against dense matrices in `f64`.

use crate::chebyshev::{ChebShape, MAX_ORDER, cheb_matrix, cheb_matrix_backward, cheb_path, cheb_path_backward_coeffs};
use crate::polar::tests::noise;
use crate::threads::with_threads;

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| x as f64).collect()
}

/// `-D^{-1/2} A D^{-1/2}` of the path, from degrees.
fn path(time: usize) -> Vec<f64> {
    let degree = |i: usize| (if i > 0 { 1.0 } else { 0.0 }) + if i + 1 < time { 1.0 } else { 0.0 };
    let mut l = vec![0.0; time * time];
    for i in 1..time {
        let e = -1.0 / f64::sqrt(degree(i - 1) * degree(i));
        l[(i - 1) * time + i] = e;
        l[i * time + i - 1] = e;
    }
    l
}

/// `T_k(l) x` for every k.
fn terms(s: ChebShape, l: &[f64], x: &[f64]) -> Vec<Vec<f64>> {
    let times_l = |v: &[f64]| -> Vec<f64> {
        let mut out = vec![0.0; v.len()];
        for b in 0..s.batch {
            for t in 0..s.time {
                for r in 0..s.time {
                    for c in 0..s.channels {
                        out[(b * s.time + t) * s.channels + c] +=
                            l[t * s.time + r] * v[(b * s.time + r) * s.channels + c];
                    }
                }
            }
        }
        out
    };
    let mut all = vec![x.to_vec()];
    for k in 1..=s.order {
        let next = times_l(&all[k - 1]);
        all.push(if k == 1 { next } else { next.iter().zip(&all[k - 2]).map(|(a, b)| 2.0 * a - b).collect() });
    }
    all
}

fn filter(s: ChebShape, l: &[f64], x: &[f64], coeffs: &[f64]) -> Vec<f64> {
    let all = terms(s, l, x);
    let term = |i: usize, k: usize| coeffs[i % s.channels * (s.order + 1) + k] * all[k][i];
    (0..s.len()).map(|i| (0..=s.order).map(|k| term(i, k)).sum()).collect()
}

fn norm(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// Rounding bound of an output for `||l||_2 <= 1`: a term's error of `row eps ||x||` reaches term k through `U_{k-j}(l)`, of norm
/// at most `k - j + 1`, so the last term errs by about `order^2 / 2` of them.
fn bound(s: ChebShape, row: usize, coeffs: &[f64], x: &[f64]) -> f64 {
    let n = (s.order + 1) as f64;
    let c = coeffs.iter().fold(0.0f64, |m, c| m.max(c.abs()));
    n * n * n * (row as f64 + 4.0) * 2f64.powi(-24) * c * norm(x)
}

fn shapes() -> Vec<ChebShape> {
    [
        [1, 1, 1, 0],
        [1, 1, 3, 5],
        [2, 2, 3, 4],
        [1, 3, 33, 16],
        [2, 5, 31, 8],
        [1, 40, 70, 16],
        [3, 67, 32, 1],
        [2, 0, 40, 3],
    ]
    .map(|[batch, time, channels, order]| ChebShape { batch, time, channels, order })
    .to_vec()
}

struct Data {
    x: Vec<f32>,
    dy: Vec<f32>,
    c: Vec<f32>,
}

fn data(s: ChebShape) -> Data {
    Data { x: noise(s.len(), 1), dy: noise(s.len(), 2), c: noise(s.coeffs_len(), 3) }
}

/// `dcoeffs` by its definition.
fn coeff_gradient(s: ChebShape, l: &[f64], d: &Data) -> Vec<f64> {
    let all = terms(s, l, &wide(&d.x));
    let mut out = vec![0.0; s.coeffs_len()];
    for i in 0..s.len() {
        for (k, term) in all.iter().enumerate() {
            out[i % s.channels * (s.order + 1) + k] += d.dy[i] as f64 * term[i];
        }
    }
    out
}

fn assert_near(got: &[f32], want: &[f64], bound: f64, what: &str) {
    for (i, (x, y)) in got.iter().zip(want).enumerate() {
        assert!((*x as f64 - y).abs() <= bound, "{what}[{i}]: {x} for {y}, bound {bound}");
    }
}

#[test]
fn golden_laplacian_of_the_five_node_path_and_its_eigenvalues() {
    let s = ChebShape { batch: 1, time: 5, channels: 5, order: 1 };
    let identity: Vec<f32> = (0..25).map(|i| if i % 6 == 0 { 1.0 } else { 0.0 }).collect();
    let coeffs = [0.0, 1.0].repeat(5);
    let mut l = vec![f32::NAN; 25];
    cheb_path(s, &identity, &coeffs, &mut l);
    let off = [-std::f32::consts::FRAC_1_SQRT_2, -0.5, -0.5, -std::f32::consts::FRAC_1_SQRT_2];
    for i in 0..5 {
        for j in 0..5 {
            let want = if i + 1 == j {
                off[i]
            } else if j + 1 == i {
                off[j]
            } else {
                0.0
            };
            assert_eq!(l[i * 5 + j], want);
        }
    }
    let half = std::f64::consts::FRAC_1_SQRT_2;
    // eigenvectors sqrt(degree_j) cos(pi m j / 4), eigenvalues -cos(pi m / 4): -1, -0.707, 0, 0.707, 1
    for (m, want) in [-1.0, -half, 0.0, half, 1.0].into_iter().enumerate() {
        let v = |j: usize| {
            (if j == 0 || j == 4 { 1.0f64 } else { 2.0 }).sqrt() * (std::f64::consts::PI * (m * j) as f64 / 4.0).cos()
        };
        for i in 0..5 {
            let lv: f64 = (0..5).map(|j| l[i * 5 + j] as f64 * v(j)).sum();
            assert!((lv - want * v(i)).abs() < 1e-6, "eigenvalue {want}");
        }
    }
}

#[test]
fn path_filter_and_its_gradients_agree_with_the_dense_polynomial() {
    for s in shapes() {
        let (d, l) = (data(s), path(s.time));
        let (mut y, mut dx, mut dc) = (vec![f32::NAN; s.len()], vec![f32::NAN; s.len()], vec![f32::NAN; d.c.len()]);
        cheb_path(s, &d.x, &d.c, &mut y);
        cheb_path(s, &d.dy, &d.c, &mut dx);
        cheb_path_backward_coeffs(s, &d.x, &d.dy, &mut dc);
        let (x, dy, c) = (wide(&d.x), wide(&d.dy), wide(&d.c));
        assert_near(&y, &filter(s, &l, &x, &c), bound(s, 2, &c, &x), &format!("y {s:?}"));
        assert_near(&dx, &filter(s, &l, &dy, &c), bound(s, 2, &c, &dy), &format!("dx {s:?}"));
        let size = bound(s, s.batch * s.time, &[1.0], &x) * norm(&dy);
        assert_near(&dc, &coeff_gradient(s, &l, &d), size, &format!("dcoeffs {s:?}"));
    }
}

#[test]
fn matrix_filter_of_the_path_laplacian_is_the_path_filter() {
    for s in shapes() {
        let (d, l) = (data(s), path(s.time));
        let l32: Vec<f32> = l.iter().map(|&x| x as f32).collect();
        let (mut a, mut b) = (vec![0.0; s.len()], vec![f32::NAN; s.len()]);
        cheb_path(s, &d.x, &d.c, &mut a);
        cheb_matrix(s, &l32, &d.x, &d.c, &mut b);
        let bound = 2.0 * bound(s, 2, &wide(&d.c), &wide(&d.x));
        assert_near(&b, &wide(&a), bound, &format!("{s:?}"));
    }
}

/// A matrix without symmetry and of 2-norm at most 1 (its Frobenius norm is 0.9).
fn matrix(time: usize) -> Vec<f32> {
    let l = noise(time * time, 9);
    let size = norm(&wide(&l)) as f32;
    l.iter().map(|x| 0.9 * x / size).collect()
}

#[test]
fn matrix_filter_and_its_gradients_agree_with_the_dense_polynomial() {
    for s in shapes() {
        let (d, l) = (data(s), matrix(s.time));
        let n = s.len();
        let (mut y, mut dx) = (vec![f32::NAN; n], vec![f32::NAN; n]);
        let (mut dc, mut dl) = (vec![f32::NAN; d.c.len()], vec![f32::NAN; l.len()]);
        cheb_matrix(s, &l, &d.x, &d.c, &mut y);
        cheb_matrix_backward(s, &l, &d.x, &d.c, &d.dy, &mut dx, &mut dc, Some(&mut dl));
        let (mut dx_only, mut dc_only) = (vec![f32::NAN; n], vec![f32::NAN; d.c.len()]);
        cheb_matrix_backward(s, &l, &d.x, &d.c, &d.dy, &mut dx_only, &mut dc_only, None);
        assert_eq!((&dx, &dc), (&dx_only, &dc_only));
        let (x, dy, c, l) = (wide(&d.x), wide(&d.dy), wide(&d.c), wide(&l));
        assert_near(&y, &filter(s, &l, &x, &c), bound(s, s.time, &c, &x), &format!("y {s:?}"));
        let transposed: Vec<f64> = (0..l.len()).map(|i| l[i % s.time * s.time + i / s.time]).collect();
        assert_near(&dx, &filter(s, &transposed, &dy, &c), bound(s, s.time, &c, &dy), &format!("dx {s:?}"));
        let size = bound(s, s.batch * s.time + s.time, &[1.0], &x) * norm(&dy);
        assert_near(&dc, &coeff_gradient(s, &l, &d), size, &format!("dcoeffs {s:?}"));
        // central differences of the matrix; the loss is a polynomial in its entries
        let loss = |l: &[f64]| filter(s, l, &x, &c).iter().zip(&dy).map(|(y, d)| y * d).sum::<f64>();
        let order = (s.order + 1) as f64;
        let size = bound(s, s.batch * s.channels + s.time, &c, &x) * norm(&dy) * order * order + 1e-5;
        for at in (0..l.len()).step_by(1 + l.len() / 6) {
            let moved = |h: f64| {
                let mut l = l.clone();
                l[at] += h;
                loss(&l)
            };
            let slope = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            assert!((slope - dl[at] as f64).abs() <= size, "dl[{at}] {s:?}: {} for {slope}", dl[at]);
        }
    }
}

#[test]
fn constants_of_the_chebyshev_family_hold_on_one_node() {
    // L = 0 there: T_0, T_1, .. are 1, 0, -1, 0, 1, ..
    let s = ChebShape { batch: 1, time: 1, channels: 1, order: MAX_ORDER };
    for k in 0..=MAX_ORDER {
        let mut coeffs = [0.0; MAX_ORDER + 1];
        coeffs[k] = 1.0;
        let mut y = [f32::NAN];
        cheb_path(s, &[3.0], &coeffs, &mut y);
        assert_eq!(y[0], [3.0, 0.0, -3.0, 0.0][k % 4]);
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let s = ChebShape { batch: 3, time: 60, channels: 100, order: 7 };
    let (d, l) = (data(s), matrix(60));
    let run = |threads| {
        with_threads(threads, || {
            let n = s.len();
            let mut out =
                [vec![0.0; n], vec![0.0; d.c.len()], vec![0.0; n], vec![0.0; n], vec![0.0; d.c.len()], vec![0.0; 3600]];
            let [y, dc, z, dx, dc2, dl] = &mut out;
            cheb_path(s, &d.x, &d.c, y);
            cheb_path_backward_coeffs(s, &d.x, &d.dy, dc);
            cheb_matrix(s, &l, &d.x, &d.c, z);
            cheb_matrix_backward(s, &l, &d.x, &d.c, &d.dy, dx, dc2, Some(dl));
            out
        })
    };
    assert_eq!(run(1), run(4));
}
