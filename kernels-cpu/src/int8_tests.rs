//! Quantisation and quantised products against their definitions in `f64`.

use crate::int8::{dequantize, groups, matmul_q8, matmul_q8q8, quantize};
use crate::polar::tests::noise;
use crate::threads::with_threads;

fn quantized(rows: usize, cols: usize, group: usize, x: &[f32]) -> (Vec<i8>, Vec<f32>) {
    let (mut q, mut s) = (vec![99; rows * cols], vec![f32::NAN; rows * groups(cols, group)]);
    quantize(rows, cols, group, x, &mut q, &mut s);
    (q, s)
}

#[test]
fn values_come_back_within_half_a_step_of_their_group() {
    for (rows, cols, group) in
        [(1, 1, 64), (3, 64, 64), (2, 65, 64), (5, 300, 128), (2, 77, usize::MAX), (4, 16, 1), (0, 5, 2)]
    {
        let x = noise(rows * cols, 1);
        let (q, s) = quantized(rows, cols, group, &x);
        let mut back = vec![f32::NAN; x.len()];
        dequantize(rows, cols, group, &q, &s, &mut back);
        for (i, (&x, &y)) in x.iter().zip(&back).enumerate() {
            let scale = s[i / cols * groups(cols, group) + i % cols / group];
            // half a step, and two roundings of a quotient of at most 127
            assert!((x - y).abs() <= scale * (0.5 + 127.0 * 2.0 * f32::EPSILON), "{x} {y} {scale}");
        }
        for (g, &scale) in s.iter().enumerate() {
            let (row, first) = (g / groups(cols, group), g % groups(cols, group) * group.min(cols));
            let part = &x[row * cols..][first..(first + group.min(cols)).min(cols)];
            assert_eq!(scale, part.iter().fold(0.0f32, |m, x| m.max(x.abs())) / 127.0);
        }
    }
}

#[test]
fn quantised_values_are_fixed_points() {
    let x = noise(300, 4);
    let (q, s) = quantized(3, 100, 64, &x);
    let mut back = vec![0.0; 300];
    dequantize(3, 100, 64, &q, &s, &mut back);
    assert_eq!(quantized(3, 100, 64, &back).0, q);
    assert!(q.iter().all(|&q| q >= -127));
    assert_eq!(quantized(1, 3, 3, &[127.0, 0.5, -1.5]).0, [127, 0, -2], "ties go to even");
}

#[test]
fn zeros_tiny_and_non_finite_groups_are_told_apart() {
    let x = [0.0, -0.0, 1e-40, 1e-42, f32::NAN, 1.0, f32::INFINITY, 2.0, 1e-20, -2e-20, f32::MAX, f32::MIN];
    let (q, s) = quantized(1, 12, 2, &x);
    assert_eq!(s[..2], [0.0, 0.0]);
    assert_eq!(q[..4], [0; 4]);
    assert!(!s[2].is_finite() && !s[3].is_finite());
    assert!(s[4] > 0.0 && q[8..10] == [64, -127]);
    assert!(s[5].is_finite() && q[10..] == [127, -127]);
}

fn sizes() -> Vec<(usize, usize, usize, usize)> {
    let mut all = vec![];
    for (k, group) in [(1, 64), (64, 64), (130, 64), (200, 128), (97, usize::MAX), (33, 7)] {
        for (m, n) in [(1, 1), (1, 70), (3, 33), (8, 5), (9, 34), (40, 65)] {
            all.push((m, n, k, group));
        }
    }
    all.extend([(2, 3, 0, 64), (0, 3, 5, 64), (3, 0, 5, 64)]);
    all
}

#[test]
fn product_agrees_with_the_dequantised_weights() {
    for (m, n, k, group) in sizes() {
        let (x, w) = (noise(m * k, 1), noise(n * k, 2));
        let (q, s) = quantized(n, k, group, &w);
        let mut y = vec![f32::NAN; m * n];
        matmul_q8(m, n, k, group, &x, &q, &s, &mut y);
        for (i, &got) in y.iter().enumerate() {
            let term = |l: usize| {
                let scale = s[i % n * groups(k, group) + l / group];
                x[i / n * k + l] as f64 * scale as f64 * q[i % n * k + l] as f64
            };
            let want: f64 = (0..k).map(term).sum();
            let size: f64 = (0..k).map(|l| term(l).abs()).sum();
            let bound = (k + 3) as f64 * 2f64.powi(-24) * size;
            assert!((got as f64 - want).abs() <= bound, "m={m} n={n} k={k} group={group}: {got} {want}");
        }
    }
}

#[test]
fn integer_product_agrees_with_both_dequantised_operands() {
    for (m, n, k, group) in sizes() {
        let (x, w) = (noise(m * k, 1), noise(n * k, 2));
        let (q, s) = quantized(n, k, group, &w);
        let (qx, sx) = quantized(m, k, k.max(1), &x);
        let mut y = vec![f32::NAN; m * n];
        matmul_q8q8(m, n, k, group, &x, &q, &s, &mut y);
        for (i, &got) in y.iter().enumerate() {
            let term = |l: usize| {
                let scale = s[i % n * groups(k, group) + l / group] as f64 * sx[i / n] as f64;
                scale * qx[i / n * k + l] as f64 * q[i % n * k + l] as f64
            };
            let want: f64 = (0..k).map(term).sum();
            let size: f64 = (0..k).map(|l| term(l).abs()).sum();
            let bound = (groups(k, group) + 3) as f64 * 2f64.powi(-24) * size;
            assert!((got as f64 - want).abs() <= bound, "m={m} n={n} k={k} group={group}: {got} {want}");
        }
    }
}

#[test]
fn a_row_does_not_depend_on_how_many_rows_go_with_it() {
    let (n, k) = (20, 150);
    let (x, w) = (noise(8 * k, 1), noise(n * k, 2));
    let (q, s) = quantized(n, k, 64, &w);
    let mut all = vec![0.0; 8 * n];
    for product in [matmul_q8, matmul_q8q8] {
        product(8, n, k, 64, &x, &q, &s, &mut all);
        for r in 0..8 {
            let mut one = vec![0.0; n];
            product(1, n, k, 64, &x[r * k..][..k], &q, &s, &mut one);
            assert_eq!(one, all[r * n..][..n]);
        }
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let (n, k) = (300, 700);
    let w = noise(n * k, 2);
    let run = |threads| {
        with_threads(threads, || {
            let (q, s) = quantized(n, k, 128, &w);
            let mut out = vec![];
            for m in [1, 30] {
                let x = noise(m * k, 1);
                for product in [matmul_q8, matmul_q8q8] {
                    let mut y = vec![0.0; m * n];
                    product(m, n, k, 128, &x, &q, &s, &mut y);
                    out.extend(y);
                }
            }
            (q, out)
        })
    };
    assert_eq!(run(1), run(4));
}
