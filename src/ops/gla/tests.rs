//! Golden values, which form runs where, how forms agree and what is refused.

use super::*;
use crate::ops::on_devices::{devices, gpu, run, run_graph};
use crate::tensor::HostTensor;

const Q: [f32; 6] = [1.0, 0.5, 1.0, 1.0, -1.0, 2.0];
const K: [f32; 6] = [1.0, 2.0, 0.5, 1.0, -1.0, 1.0];
const V: [f32; 6] = [1.0, -1.0, 2.0, 0.0, 0.5, 3.0];
/// log sigmoid of 3, 0 and 1.
const A: [f32; 3] = [-0.048_587_35, -std::f32::consts::LN_2, -0.313_261_7];
const FIRST: [f32; 4] = [1.0, 0.0, 2.0, -1.0];

fn near(have: &[f32], want: &[f32], what: &str) {
    assert_eq!(have.len(), want.len(), "{what}");
    for (h, w) in have.iter().zip(want) {
        assert!((h - w).abs() <= 1e-5, "{what}: {have:?}, not {want:?}");
    }
}

/// Three steps of a head of two numbers, worked out in f64.
#[test]
fn a_head_of_two_numbers_gives_the_golden_values_in_every_form() {
    let wide = |x: &[f32]| HostTensor::f32(&[1, 3, 1, 2], x.to_vec());
    let (a, first) = (HostTensor::f32(&[1, 3, 1], A.to_vec()), HostTensor::f32(&[1, 1, 2, 2], FIRST.to_vec()));
    let (d_o, d_last) = (wide(&[1.0, 0.0, 1.0, 1.0, 0.0, 1.0]), HostTensor::f32(&[1, 1, 2, 2], vec![0.0; 4]));
    for device in devices() {
        for chunk in [0, 1, 2, 3, 64] {
            let what = format!("{} chunk {chunk}", device.name());
            let op = Gla { channel_gates: false, chunk, initial: true };
            let have = run(&device, op.clone(), &[wide(&Q), wide(&K), wide(&V), a.clone(), first.clone()]).0;
            near(&have[0], &[3.905148, -2.476287, 5.928861, -1.976287, 5.834345, 7.207025], &what);
            near(&have[1], &[0.944782, -3.365529, 3.389563, 1.920748], &what);
            let operands = [wide(&Q), wide(&K), wide(&V), a.clone(), d_o.clone(), d_last.clone(), first.clone()];
            let have = run(&device, GlaGrad(op), &operands).0;
            near(&have[0], &[1.952574, 3.905148, 1.476287, 2.476287, -3.365529, 1.920748], &what);
            near(&have[1], &[1.365529, -0.231059, 2.0, 2.0, -3.0, 6.0], &what);
            near(&have[2], &[3.5, 2.596588, 1.5, 2.596588, 0.0, 3.0], &what);
            // The golden gradients are of the logits: those of the log gates times sigmoid(-z).
            let closing = [0.047_425_873, 0.5, 0.268_941_42];
            let dz: Vec<f32> = have[3].iter().zip(closing).map(|(da, s)| da * s).collect();
            near(&dz, &[0.102503, -0.420201, -0.482205], &what);
            near(&have[4], &[1.428861, 0.128093, 0.952574, 1.172675], &what);
        }
    }
}

#[test]
fn short_sequences_walk_and_long_ones_run_in_chunks() {
    let Some(gpu) = gpu(Default::default()) else { return };
    for (time, walks) in [(1, true), (Gla::SHORT, false)] {
        let x = |heads: usize| HostTensor::f32(&[1, time, heads, 4], vec![0.5; time * heads * 4]);
        let inputs = [x(2), x(2), x(1), HostTensor::f32(&[1, time, 2], vec![-0.1; 2 * time])];
        let mut graph = Graph::new();
        let v: Vec<Value> = inputs.iter().enumerate().map(|(i, x)| graph.input(&format!("x{i}"), x.ty())).collect();
        let (o, _) = graph.gla_head(v[0], v[1], v[2], v[3], None).unwrap();
        graph.output("o", o);
        let (_, notes) = run_graph(&gpu, &graph, &inputs, &["o".to_string()]);
        assert_eq!(notes.fallback, Vec::<String>::new());
        let kernels: Vec<&str> = notes.kernels.iter().map(String::as_str).filter(|k| k.starts_with("gla/")).collect();
        match walks {
            true => assert_eq!(kernels, ["gla/recurrent"]),
            false => assert_eq!(kernels, ["gla/gates", "gla/sums", "gla/carry", "gla/pairs", "gla/mix"]),
        }
    }
}

#[test]
fn shapes_that_do_not_fit_are_refused_with_what_is_wanted() {
    let mut graph = Graph::new();
    let mut input = |shape: &[usize]| graph.input("x", TensorType::f32(shape));
    let (q, k, v) = (input(&[2, 3, 4, 8]), input(&[2, 3, 3, 8]), input(&[2, 3, 2, 5]));
    let (a, state) = (input(&[2, 3, 4]), input(&[2, 4, 8, 8]));
    let mut message = |k, a, first| graph.gla_head(q, k, v, a, first).unwrap_err().to_string();
    assert!(message(k, a, None).contains("4 query heads are not a multiple of 3 key heads"));
    assert!(message(q, q, None).contains("the log gates must be f32[2, 3, 4]"));
    assert!(message(q, a, Some(state)).contains("the first state must be one f32[2, 4, 8, 5]"));
    assert!(message(v, a, None).contains("share batch and time"));
}
