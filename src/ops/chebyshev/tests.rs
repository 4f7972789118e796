//! Golden values and identities, on every device.

use super::*;
use crate::device::Device;
use crate::ops::on_devices::{devices, run};
use crate::tensor::HostTensor;

fn close(have: &[f32], want: &[f32], tolerance: f32, what: &str) {
    assert_eq!(have.len(), want.len(), "{what}");
    for (i, (h, w)) in have.iter().zip(want).enumerate() {
        assert!((h - w).abs() <= tolerance, "{what} [{i}]: {h}, not {w}");
    }
}

/// T_k(L) of the path on five nodes as a matrix, column by column: five channels, one impulse each.
fn path_term(device: &Device, k: usize) -> Vec<f32> {
    let impulses = HostTensor::f32(&[1, 5, 5], (0..25).map(|i| f32::from(u8::from(i % 6 == 0))).collect());
    let one_hot = (0..5 * (k + 1)).map(|i| f32::from(u8::from(i % (k + 1) == k))).collect();
    let coefficients = HostTensor::f32(&[5, k + 1], one_hot);
    run(device, Chebyshev { terms: Terms::Path, order: k }, &[impulses, coefficients]).0.remove(0)
}

#[test]
fn laplacian_of_the_path_on_five_nodes_has_its_known_entries() {
    let (a, b) = (-std::f32::consts::FRAC_1_SQRT_2, -0.5);
    #[rustfmt::skip]
    let want = [
        0.0, a, 0.0, 0.0, 0.0,
        a, 0.0, b, 0.0, 0.0,
        0.0, b, 0.0, b, 0.0,
        0.0, 0.0, b, 0.0, a,
        0.0, 0.0, 0.0, a, 0.0,
    ];
    for device in devices() {
        close(&path_term(&device, 1), &want, 1e-7, &device.name());
    }
}

#[test]
fn laplacian_of_the_path_on_five_nodes_has_its_known_spectrum() {
    // The traces of T_0 .. T_4 are the power sums of the eigenvalues -1, -1/sqrt 2, 0, 1/sqrt 2, 1 in another basis:
    // they fix them.
    for device in devices() {
        for k in 0..=8 {
            let term = path_term(&device, k);
            let trace: f32 = (0..5).map(|i| term[i * 6]).sum();
            let angles = (0..5).map(|j| std::f64::consts::PI * j as f64 / 4.0);
            let want: f64 = angles.map(|angle| (k as f64 * angle).cos()).sum();
            // |T_k'| <= k^2 times the rounding of an entry, five times.
            let tolerance = 5.0 * (1 + k * k) as f32 * f32::EPSILON;
            close(&[trace], &[want as f32], tolerance, &format!("{} T_{k}", device.name()));
        }
    }
}

#[test]
fn the_matrix_form_of_the_path_is_the_path_filter() {
    let draw = |shape: &[usize], seed| Sample::normal(shape).draw(seed).to_host(DType::F32);
    let (x, coefficients) = (draw(&[2, 23, 3], 1), draw(&[3, 6], 2));
    let l = (0..23 * 23).map(|i| definition::path_entry(i / 23, i % 23, 23) as f32).collect();
    let l = HostTensor::f32(&[23, 23], l);
    for device in devices() {
        let path = run(&device, Chebyshev { terms: Terms::Path, order: 5 }, &[x.clone(), coefficients.clone()]).0;
        for transpose in [false, true] {
            let matrix = Chebyshev { terms: Terms::Matrix { transpose }, order: 5 };
            let matrix = run(&device, matrix, &[x.clone(), coefficients.clone(), l.clone()]).0;
            // Order 5: k^2 roundings of an entry in each of six terms of size up to the largest coefficient times |x|.
            close(&matrix[0], &path[0], 1e-4, &device.name());
        }
    }
}

#[test]
fn allpass_powers_of_an_impulse_are_the_known_ones() {
    #[rustfmt::skip]
    let want = [
        [-0.5, 0.75, 0.375, 0.1875, 0.09375, 0.046875],
        [0.25, -0.75, 0.1875, 0.375, 0.328125, 0.234375],
        [-0.125, 0.5625, -0.5625, -0.28125, 0.0703125, 0.24609375],
    ];
    // Three channels, of which channel k gives the power k + 1.
    let impulse = |at: usize| HostTensor::f32(&[1, 6, 3], (0..18).map(|i| f32::from(u8::from(i / 3 == at))).collect());
    let one_hot = (0..12).map(|i| f32::from(u8::from(i % 4 == i / 4 + 1))).collect();
    let coefficients = HostTensor::f32(&[3, 4], one_hot);
    let pole = HostTensor::f32(&[3], vec![0.5; 3]);
    for device in devices() {
        for reverse in [false, true] {
            let op = Chebyshev { terms: Terms::Bank { reverse }, order: 3 };
            let x = impulse(if reverse { 5 } else { 0 });
            let y = run(&device, op, &[x, coefficients.clone(), pole.clone()]).0.remove(0);
            for (k, want) in want.iter().enumerate() {
                let have: Vec<f32> = (0..6).map(|t| y[if reverse { 5 - t } else { t } * 3 + k]).collect();
                // Sums of powers of two: exact.
                close(&have, want, 0.0, &format!("{} power {}", device.name(), k + 1));
            }
        }
    }
}

#[test]
fn operands_that_do_not_fit_are_refused_with_what_is_wanted() {
    let mut graph = Graph::new();
    let x = graph.input("x", TensorType::f32(&[2, 3, 4]));
    let c = graph.input("c", TensorType::f32(&[5, 2]));
    let message = graph.chebyshev_path(x, c).unwrap_err().to_string();
    assert!(message.contains("f32[4, 2]"), "{message}");
    let c = graph.input("many", TensorType::f32(&[4, MAX_ORDER + 2]));
    let message = graph.chebyshev_path(x, c).unwrap_err().to_string();
    assert!(message.contains(&format!("above {MAX_ORDER}")), "{message}");
}
