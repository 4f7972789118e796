use crate::norm::*;
use crate::threads::with_threads;

const SHAPES: [(usize, usize); 10] =
    [(1, 1), (3, 2), (7, 17), (257, 64), (33, 257), (2, 1025), (600, 31), (0, 8), (300, 384), (135, 1030)];
const U: f64 = 1.0 / (1 << 24) as f64;

fn data(n: usize, seed: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919 + seed * 131) % 1013) as f32 / 337.0 - 1.2).collect()
}

fn close(got: &[f32], want: &[f64], size: &[f64], roundings: f64, what: &str) {
    for (i, ((&g, &w), &s)) in got.iter().zip(want).zip(size).enumerate() {
        assert!((g as f64 - w).abs() <= U * roundings * s + 1e-37, "{what}[{i}]: {g} {w} size {s}");
    }
}

/// The definitions in f64, from the f32 inputs: (y, mean, rstd, dx, dgamma, dbeta) and the sizes of the terms of the last three.
struct Judge {
    y: Vec<f64>,
    mean: Vec<f64>,
    rstd: Vec<f64>,
    dx: Vec<f64>,
    dgamma: Vec<f64>,
    dbeta: Vec<f64>,
    y_size: Vec<f64>,
    dx_size: Vec<f64>,
    dgamma_size: Vec<f64>,
    dbeta_size: Vec<f64>,
}

fn judge(x: &[f32], rows: usize, d: usize, gamma: &[f64], beta: &[f32], eps: f32, dy: &[f32], centred: bool) -> Judge {
    let z = || vec![0.0; rows * d];
    let mut j = Judge {
        y: z(),
        mean: vec![],
        rstd: vec![],
        dx: z(),
        dgamma: vec![0.0; d],
        dbeta: vec![0.0; d],
        y_size: z(),
        dx_size: z(),
        dgamma_size: vec![0.0; d],
        dbeta_size: vec![0.0; d],
    };
    for r in 0..rows {
        let x: Vec<f64> = x[r * d..(r + 1) * d].iter().map(|&v| v as f64).collect();
        let dy: Vec<f64> = dy[r * d..(r + 1) * d].iter().map(|&v| v as f64).collect();
        let n = d as f64;
        let m = if centred { x.iter().sum::<f64>() / n } else { 0.0 };
        let rstd = 1.0 / (x.iter().map(|v| (v - m) * (v - m)).sum::<f64>() / n + eps as f64).sqrt();
        let hat: Vec<f64> = x.iter().map(|v| (v - m) * rstd).collect();
        let g: Vec<f64> = dy.iter().zip(gamma).map(|(a, b)| a * b).collect();
        let a = if centred { g.iter().sum::<f64>() / n } else { 0.0 };
        let b = g.iter().zip(&hat).map(|(a, b)| a * b).sum::<f64>() / n;
        let abs_g = g.iter().map(|v| v.abs()).sum::<f64>() / n;
        let abs_b = g.iter().zip(&hat).map(|(a, b)| (a * b).abs()).sum::<f64>() / n;
        let abs_x = x.iter().map(|v| v.abs()).sum::<f64>() / n;
        // the mean is rounded to f32, which moves every centred value by U |mean|, scaled by rstd
        let moved = rstd * (abs_x + m.abs());
        for i in 0..d {
            let k = r * d + i;
            j.y[k] = hat[i] * gamma[i] + beta[i] as f64;
            j.y_size[k] = (hat[i].abs() + moved) * gamma[i].abs() + (beta[i] as f64).abs();
            j.dx[k] = rstd * (g[i] - a - hat[i] * b);
            j.dx_size[k] =
                rstd * (g[i].abs() + abs_g + (hat[i].abs() + moved) * (abs_b + moved * abs_g) + moved * abs_b);
            j.dgamma[i] += dy[i] * hat[i];
            j.dgamma_size[i] += dy[i].abs() * (hat[i].abs() + moved);
            j.dbeta[i] += dy[i];
            j.dbeta_size[i] += dy[i].abs();
        }
        j.mean.push(m);
        j.rstd.push(rstd);
    }
    j
}

#[test]
fn layer_norm_and_its_gradients_agree_with_f64() {
    for (rows, d) in SHAPES {
        let (x, gamma, beta, dy) = (data(rows * d, 1), data(d, 2), data(d, 3), data(rows * d, 4));
        let g64: Vec<f64> = gamma.iter().map(|&g| g as f64).collect();
        let want = judge(&x, rows, d, &g64, &beta, 1e-5, &dy, true);
        let (mut y, mut mean, mut rstd) = (vec![0.0; rows * d], vec![0.0; rows], vec![0.0; rows]);
        layer_norm(&x, rows, d, &gamma, Some(&beta), 1e-5, &mut y, &mut mean, &mut rstd);
        close(&y, &want.y, &want.y_size, 60.0, "y");
        if d > 1 {
            close(&rstd, &want.rstd, &want.rstd, 60.0, "rstd"); // one element has variance 0 up to rounding
        }
        let mut plain = vec![0.0; rows * d];
        layer_norm(&x, rows, d, &gamma, None, 1e-5, &mut plain, &mut mean, &mut rstd);
        let zero = vec![0.0; d];
        let no_beta = judge(&x, rows, d, &g64, &zero, 1e-5, &dy, true);
        close(&plain, &no_beta.y, &no_beta.y_size, 60.0, "y without beta");
        let mut dx = vec![0.0; rows * d];
        layer_norm_grad_x(&x, rows, d, &gamma, &mean, &rstd, &dy, &mut dx);
        close(&dx, &want.dx, &want.dx_size, 90.0, "dx");
        let (mut dgamma, mut dbeta) = (vec![f32::NAN; d], vec![f32::NAN; d]);
        layer_norm_grad_params(&x, rows, d, &mean, &rstd, &dy, &mut dgamma, Some(&mut dbeta));
        close(&dgamma, &want.dgamma, &want.dgamma_size, 90.0, "dgamma");
        close(&dbeta, &want.dbeta, &want.dbeta_size, 40.0, "dbeta");
        assert!(mean.iter().zip(&want.mean).all(|(&a, &b)| (a as f64 - b).abs() < 1e-5));
    }
}

#[test]
fn rms_norm_and_its_gradients_agree_with_f64_with_and_without_the_offset() {
    for (rows, d) in SHAPES {
        for plus_one in [false, true] {
            let (x, gamma, dy) = (data(rows * d, 1), data(d, 2), data(rows * d, 4));
            let g64: Vec<f64> = gamma.iter().map(|&g| g as f64 + plus_one as u8 as f64).collect();
            let zero = vec![0.0; d];
            let want = judge(&x, rows, d, &g64, &zero, 1e-6, &dy, false);
            let (mut y, mut rstd, mut dx) = (vec![0.0; rows * d], vec![0.0; rows], vec![0.0; rows * d]);
            rms_norm(&x, rows, d, &gamma, plus_one, 1e-6, &mut y, &mut rstd);
            close(&y, &want.y, &want.y_size, 60.0, "y");
            close(&rstd, &want.rstd, &want.rstd, 60.0, "rstd");
            rms_norm_grad_x(&x, rows, d, &gamma, plus_one, &rstd, &dy, &mut dx);
            close(&dx, &want.dx, &want.dx_size, 90.0, "dx");
            let mut dgamma = vec![f32::NAN; d];
            rms_norm_grad_params(&x, rows, d, &rstd, &dy, &mut dgamma);
            close(&dgamma, &want.dgamma, &want.dgamma_size, 90.0, "dgamma");
        }
    }
}

#[test]
fn parameter_gradients_do_not_depend_on_the_number_of_threads() {
    let (rows, d) = (1031, 300);
    let (x, dy, mean, rstd) = (data(rows * d, 1), data(rows * d, 2), data(rows, 3), data(rows, 4));
    let run = |threads| {
        with_threads(threads, || {
            let (mut dgamma, mut dbeta) = (vec![0.0; d], vec![0.0; d]);
            layer_norm_grad_params(&x, rows, d, &mean, &rstd, &dy, &mut dgamma, Some(&mut dbeta));
            (dgamma, dbeta)
        })
    };
    let one = run(1);
    assert!([2, 3, 8].into_iter().all(|threads| run(threads) == one));
}

#[test]
fn a_constant_row_and_a_zero_row_stay_finite() {
    let x = [3.0, 3.0, 3.0, 0.0, 0.0, 0.0];
    let (mut y, mut mean, mut rstd) = ([0.0; 6], [0.0; 2], [0.0; 2]);
    layer_norm(&x, 2, 3, &[1.0; 3], None, 1e-5, &mut y, &mut mean, &mut rstd);
    assert_eq!(y, [0.0; 6]);
    rms_norm(&x, 2, 3, &[1.0; 3], false, 1e-5, &mut y, &mut rstd);
    assert!(y.iter().all(|v| v.is_finite()) && y[3..] == [0.0; 3]);
}
