//! Which form runs where, and that the three forms agree.

use super::*;
use crate::ops::on_devices::{devices, gpu, run, run_graph};
use crate::tensor::HostTensor;

fn draw(shape: &[usize], seed: u64, values: Values) -> HostTensor {
    Sample::new(shape, values).draw(seed).to_host(DType::F32)
}

fn inputs(shape: [usize; 3]) -> [HostTensor; 3] {
    let gates = draw(&shape, 1, Values::Uniform(0.05, 0.999));
    [gates, draw(&shape, 2, Values::Normal(1.0)), draw(&[shape[0], shape[2]], 3, Values::Normal(1.0))]
}

fn labels(time: usize) -> Option<Vec<String>> {
    let gpu = gpu(Default::default())?;
    let x = inputs([1, time, 3]);
    let mut graph = Graph::new();
    let v: Vec<Value> = x.iter().enumerate().map(|(i, x)| graph.input(&format!("x{i}"), x.ty())).collect();
    let h = graph.gated_scan(v[0], v[1], Some(v[2])).unwrap();
    let loss = graph.sum_all(h).unwrap();
    let g = graph.gradients(loss, &v).unwrap();
    graph.output("g", g[0]);
    let (_, notes) = run_graph(&gpu, &graph, &x, &["g".to_string()]);
    assert_eq!(notes.fallback, Vec::<String>::new());
    Some(notes.kernels.into_iter().filter(|k| k.starts_with("scan/")).collect())
}

#[test]
fn short_sequences_walk_and_long_ones_run_in_chunks() {
    if let (Some(short), Some(long)) = (labels(DEFAULT_CHUNK), labels(DEFAULT_CHUNK + 1)) {
        assert_eq!(short, ["scan/recurrent"; 2], "forward and gradient of one chunk");
        assert_eq!(long, ["scan/ends", "scan/carry", "scan/chunked"].repeat(2), "forward and gradient of two chunks");
    }
}

#[test]
fn naive_recurrent_and_chunked_agree_in_values_and_gradients() {
    let shape = [2, 75, 9];
    let [g, u, h0] = inputs(shape);
    let dh = draw(&shape, 4, Values::Normal(1.0));
    let s = ScanShape { batch: 2, time: 75, channels: 9 };
    let f = |x: &HostTensor| x.as_f32().unwrap().to_vec();
    let (mut h, mut dg, mut du, mut dh0) = (vec![0.0; 1350], vec![0.0; 1350], vec![0.0; 1350], vec![0.0; 18]);
    let (gates, start) = (f(&g), f(&h0));
    kernels_cpu::scan::gated_scan_naive(s, Gate::Factor, &gates, &f(&u), Some(&start), &mut h);
    let dh0_out = Some(&mut dh0[..]);
    kernels_cpu::scan::gated_scan_naive_backward(
        s,
        Gate::Factor,
        &gates,
        &h,
        Some(&start),
        &f(&dh),
        &mut dg,
        &mut du,
        dh0_out,
    );
    let naive = [h.clone(), dg, du, dh0];
    let states = HostTensor::f32(&shape, h);
    for device in devices() {
        for chunk in [0, 1, 16, 75, 1000] {
            let forward = GatedScan { chunk, initial: true, gate: Gate::Factor };
            let backward = GatedScanGrad { chunk, initial: true, gate: Gate::Factor };
            let mut have = run(&device, forward, &[g.clone(), u.clone(), h0.clone()]).0;
            have.truncate(1);
            have.extend(run(&device, backward, &[g.clone(), states.clone(), dh.clone(), h0.clone()]).0);
            for (k, (have, want)) in have.iter().zip(&naive).enumerate() {
                // Each of at most 75 steps rounds twice, and products of gates below one only shrink what came before.
                let most = want.iter().fold(0.0f32, |m, x| m.max(x.abs()));
                let tolerance = 2.0 * 75.0 * f32::EPSILON * most;
                let worst = have.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(worst <= tolerance, "{} chunk {chunk}, result {k}: {worst} {tolerance}", device.name());
            }
        }
    }
}

#[test]
fn single_steps_continue_a_scan() {
    let [g, u, h0] = inputs([1, 6, 5]);
    let values = |x: &HostTensor| x.as_f32().unwrap().to_vec();
    let (gates, inputs) = (values(&g), values(&u));
    let op = GatedScan { chunk: 0, initial: true, gate: Gate::Factor };
    for device in devices() {
        let all = run(&device, op.clone(), &[g.clone(), u.clone(), h0.clone()]).0.remove(0);
        let mut state = values(&h0);
        for (t, want) in all.chunks(5).enumerate() {
            let at = |x: &[f32]| HostTensor::f32(&[1, 1, 5], x[t * 5..][..5].to_vec());
            let step = [at(&gates), at(&inputs), HostTensor::f32(&[1, 5], state)];
            state = run(&device, op.clone(), &step).0.remove(0);
            // The reference keeps its state in f64 between steps; here it is rounded after each, and gates below one
            // shrink that.
            let tolerance = 6.0 * f32::EPSILON * all.iter().fold(0.0f32, |m, x| m.max(x.abs()));
            for (have, want) in state.iter().zip(want) {
                assert!((have - want).abs() <= tolerance, "{} step {t}: {have}, not {want}", device.name());
            }
        }
    }
}

#[test]
fn shapes_that_do_not_fit_are_refused_with_what_is_wanted() {
    let mut graph = Graph::new();
    let x = graph.input("x", TensorType::f32(&[2, 3, 4]));
    let short = graph.input("short", TensorType::f32(&[2, 3]));
    let message = graph.gated_scan(x, short, None).unwrap_err().to_string();
    assert!(message.contains("[batch, time, channels]"), "{message}");
    let message = graph.gated_scan(x, x, Some(short)).unwrap_err().to_string();
    assert!(message.contains("f32[2, 4]"), "{message}");
}
