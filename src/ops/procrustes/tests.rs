//! Golden values, the Jacobi oracle, planted rotations, and the gradient that detaching leaves exact.

use super::*;
use crate::device::Device;
use crate::device::gpu::Options;
use crate::ops::on_devices::{devices, gpu, run, run_graph};
use crate::tensor::HostTensor;
use kernels_cpu::polar::polar_svd;
use kernels_cpu::procrustes::procrustes_svd;

fn host(shape: [usize; 3], values: &[f64]) -> HostTensor {
    HostTensor::f32(&shape, values.iter().map(|x| *x as f32).collect())
}

fn largest_difference(have: &[f32], want: &[f64]) -> f64 {
    assert_eq!(have.len(), want.len());
    have.iter().zip(want).map(|(h, w)| (*h as f64 - w).abs()).fold(0.0, f64::max)
}

/// As `devices`, and a GPU with only the workgroup memory that WebGPU promises, where wide clouds go through storage.
fn all_devices() -> Vec<Device> {
    let least = Options { checked: true, max_workgroup_memory: Some(16 << 10), ..Options::default() };
    devices().into_iter().chain(gpu(least)).collect()
}

#[test]
fn golden_rotation_of_thirty_degrees_with_and_without_ridge() {
    let (c, s) = ((std::f64::consts::PI / 6.0).cos(), 0.5);
    let zb = [1.0, 0.0, 0.0, 2.0, -1.0, -2.0];
    let za: Vec<f64> = zb.chunks(2).flat_map(|r| [r[0] * c - r[1] * s, r[0] * s + r[1] * c]).collect();
    for (ridge, want) in
        [(0.0, [0.866_025_4, 0.5, -0.5, 0.866_025_4]), (0.1, [0.892_491, 0.451_066, -0.451_066, 0.892_491])]
    {
        for device in devices() {
            let op = Procrustes { ridge, center: false, ..Procrustes::default() };
            let out = run(&device, op, &[host([1, 3, 2], &za), host([1, 3, 2], &zb)]).0;
            assert!(largest_difference(&out[0], &want) < 2e-6, "{} ridge {ridge}: {:?}", device.name(), out[0]);
        }
    }
}

#[test]
fn planted_rotations_agree_with_the_jacobi_oracle() {
    for device in all_devices() {
        for (observations, d) in [(12, 1), (6, 2), (24, 8), (48, 16), (96, 44), (96, 45), (96, 48), (160, 64)] {
            let shape = [1, observations, d];
            let (za, zb) = planted(shape, 1.0, 0.05, 31);
            let (za, zb) = (host(shape, &za), host(shape, &zb));
            let oracle = procrustes_svd(observations, d, za.as_f32().unwrap(), zb.as_f32().unwrap(), 0.1, true);
            let out = run(&device, Procrustes::default(), &[za, zb]).0;
            let error = largest_difference(&out[0], &oracle);
            assert!(error <= 1e-4, "{} {observations} observations of {d}: {error:e}", device.name());
        }
    }
}

#[test]
fn planted_rotations_with_5_percent_noise_align_held_out_observations() {
    let (draws, fitted, d) = (31, 48, 16);
    // A turn by about 0.25 sqrt(d / 2) = 0.7 radians: the ridge draws omega to the identity in proportion to it.
    let (za, zb) = planted([draws, 2 * fitted, d], 0.25, 0.05, 8);
    let half = fitted * d;
    let first = |z: &[f64]| z.chunks(2 * half).flat_map(|pair| &pair[..half]).copied().collect::<Vec<f64>>();
    let shape = [draws, fitted, d];
    let inputs = [host(shape, &first(&za)), host(shape, &first(&zb))];
    for device in devices() {
        let out = run(&device, Procrustes::default(), &inputs).0;
        let mut errors: Vec<(f64, f64)> = (0..draws)
            .map(|b| {
                let omega: Vec<f64> = out[0][b * d * d..][..d * d].iter().map(|x| *x as f64).collect();
                let unmoved: Vec<f64> = (0..d * d).map(|i| f64::from(u8::from(i.is_multiple_of(d + 1)))).collect();
                let held = (2 * b + 1) * half..(2 * b + 2) * half;
                let (a, b) = (&za[held.clone()], &zb[held]);
                let norm = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
                let error = |omega: &[f64]| norm(&residuals(a, b, omega, d)) / norm(a);
                (error(&omega), error(&unmoved))
            })
            .collect();
        errors.sort_by(|x, y| x.0.total_cmp(&y.0));
        let (after, before) = errors[draws / 2];
        assert!(before >= 0.5 && after <= 0.12, "{}: {before} before, {after} after", device.name());
        assert!(median(&out[1]) > 0.5, "{}: strengths {:?}", device.name(), out[1]);
    }
}

fn median(values: &[f32]) -> f32 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f32::total_cmp);
    sorted[sorted.len() / 2]
}

#[test]
fn strength_sees_rotations_and_ignores_unrelated_or_aligned_clouds() {
    let shape = [60, 24, 16];
    let draw = |seed| Sample::normal(&shape).draw(seed).data;
    let (rotated, turned) = planted(shape, 1.0, 0.3, 3);
    let near: Vec<f64> = draw(6).iter().zip(draw(7)).map(|(x, n)| x + 0.3 * n).collect();
    for device in devices() {
        let strength = |za: &[f64], zb: &[f64]| {
            median(&run(&device, Procrustes::default(), &[host(shape, za), host(shape, zb)]).0[1])
        };
        let have = [strength(&draw(4), &draw(5)), strength(&rotated, &turned), strength(&near, &draw(6))];
        let name = device.name();
        assert!(have[0] <= 0.05 && have[1] >= 0.4 && have[2] == 0.0, "{name}: unrelated, rotated, aligned {have:?}");
    }
}

#[test]
fn rank_deficient_clouds_give_a_finite_contraction() {
    let shape = [1, 4, 48];
    let inputs = [1, 2].map(|seed| Sample::normal(&shape).draw(seed).to_host(DType::F32));
    for device in all_devices() {
        for ridge in [0.0, 0.1] {
            let omega = run(&device, Procrustes { ridge, ..Procrustes::default() }, &inputs).0.remove(0);
            let x = Sample::normal(&[48]).draw(5).data;
            let y: Vec<f64> = (0..48).map(|c| (0..48).map(|r| x[r] * omega[r * 48 + c] as f64).sum()).collect();
            let norm = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
            assert!(norm(&y) <= norm(&x) * (1.0 + 1e-4), "{}: {} from {}", device.name(), norm(&y), norm(&x));
        }
    }
}

#[test]
fn no_evidence_gives_the_identity_and_no_strength() {
    for device in all_devices() {
        for (d, fill) in [(3, 0.0), (3, f32::NAN), (48, 0.0), (48, f32::INFINITY)] {
            for ridge in [0.0, 0.1] {
                let z = HostTensor::f32(&[1, 5, d], vec![fill; 5 * d]);
                let out = run(&device, Procrustes { ridge, ..Procrustes::default() }, &[z.clone(), z]).0;
                let identity: Vec<f64> = (0..d * d).map(|i| f64::from(u8::from(i.is_multiple_of(d + 1)))).collect();
                let error = largest_difference(&out[0], &identity);
                assert!(error < 1e-6, "{} width {d} filled with {fill}: {error}", device.name());
                assert_eq!(out[1], [0.0], "{} width {d} filled with {fill}", device.name());
            }
        }
    }
}

#[test]
fn wide_clouds_use_storage_where_workgroup_memory_is_too_small() {
    let least = Options { max_workgroup_memory: Some(16 << 10), ..Options::default() };
    let Some(device) = gpu(least) else { return };
    for (d, kernel) in [(45, "procrustes/workgroup"), (46, "procrustes/storage")] {
        let z = HostTensor::f32(&[1, 2, d], vec![1.0; 2 * d]);
        let notes = run(&device, Procrustes::default(), &[z.clone(), z]).1;
        assert_eq!(notes.kernels, [kernel, "procrustes/strength"], "width {d}");
    }
}

#[test]
fn the_same_clouds_give_the_same_bits() {
    let shape = [3, 70, 33];
    let (za, zb) = planted(shape, 1.0, 0.3, 12);
    for device in devices() {
        let once = || run(&device, Procrustes::default(), &[host(shape, &za), host(shape, &zb)]).0;
        assert_eq!(once(), once(), "{}", device.name());
    }
}

#[test]
fn the_alignment_loss_has_its_exact_gradient_with_the_rotation_held_constant() {
    let (observations, d) = (14, 4);
    let (za, zb) = planted([1, observations, d], 1.0, 0.3, 77);
    // The loss at its minimum over rotations, by the exact polar factor of Zb^T Za.
    let minimum = |zb: &[f64]| {
        let mut m = vec![0.0; d * d];
        for i in 0..observations {
            for r in 0..d {
                for c in 0..d {
                    m[r * d + c] += zb[i * d + r] * za[i * d + c];
                }
            }
        }
        residuals(&za, zb, &polar_svd(d, &m), d).iter().map(|x| x * x).sum::<f64>()
    };
    let op = Procrustes { ridge: 0.0, center: false, iterations: 60 };
    let omega = op.fit(&za, &zb, d, 0, 1).omega;
    let off = residuals(&za, &zb, &omega, d);
    for at in 0..observations * d {
        let (i, r) = (at / d, at % d);
        let analytic: f64 = (0..d).map(|c| 2.0 * off[i * d + c] * omega[r * d + c]).sum();
        let h = 1e-4;
        let moved = |by: f64| {
            let mut moved = zb.clone();
            moved[at] += by;
            minimum(&moved)
        };
        let numeric = (8.0 * (moved(h) - moved(-h)) - (moved(2.0 * h) - moved(-2.0 * h))) / (12.0 * h);
        // Truncation is of order h^4 = 1e-16; rounding of a loss near 5 divided by h is near 1e-11.
        assert!((analytic - numeric).abs() < 1e-8, "{at}: {analytic} {numeric}");
    }
}

/// Zb Omega - Za.
fn residuals(za: &[f64], zb: &[f64], omega: &[f64], d: usize) -> Vec<f64> {
    let rotated = |i: usize, c: usize| (0..d).map(|r| zb[i * d + r] * omega[r * d + c]).sum::<f64>();
    (0..za.len()).map(|at| rotated(at / d, at % d) - za[at]).collect()
}

#[test]
fn no_gradient_flows_through_the_rotation() {
    let mut graph = Graph::new();
    let za = graph.input("x0", TensorType::f32(&[1, 5, 2]));
    let zb = graph.input("x1", TensorType::f32(&[1, 5, 2]));
    let (omega, _) = graph.procrustes(za, zb, Procrustes::default()).unwrap();
    let loss = graph.sum_all(omega).unwrap();
    let gradient = graph.gradients(loss, &[zb]).unwrap()[0];
    graph.output("g", gradient);
    graph.output("omega", omega);
    let z = || HostTensor::f32(&[1, 5, 2], (0..10).map(|i| (i as f32).sin()).collect());
    let (out, _) = run_graph(&Device::Reference, &graph, &[z(), z()], &["g".to_string()]);
    assert_eq!(out[0], [0.0; 10]);
}

#[test]
fn widths_out_of_range_are_refused() {
    let mut graph = Graph::new();
    for d in [0, MAX_WIDTH + 1] {
        let z = graph.input("z", TensorType::f32(&[1, 5, d]));
        let message = graph.procrustes(z, z, Procrustes::default()).unwrap_err().to_string();
        assert!(message.contains("must be from 1 to 64"), "{message}");
    }
}
