use super::*;
use crate::device::gpu::{Caps, Features, lower};
use crate::device::{Device, Store};
use crate::graph::{Graph, Plan};
use crate::tensor::{HostData, HostTensor};

fn values(n: usize, seed: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919 + seed * 31) % 1013) as f32 / 506.0 - 1.0).collect()
}

#[test]
fn quantising_and_back_is_within_half_a_step() {
    let (rows, columns, group) = (5, 37, 8);
    let mut graph = Graph::new();
    let x = graph.input("x", TensorType::f32(&[rows, columns]));
    let (q, scales) = graph.quantize_rows(x, group).unwrap();
    let y = graph.dequantize(q, scales, group).unwrap();
    graph.output("y", y);
    graph.output("scales", scales);
    let mut store = Store::new(&Device::Cpu);
    let mut executable = Plan::new(&graph).unwrap().prepare(&mut store).unwrap();
    let x = values(rows * columns, 1);
    executable.write_input("x", &HostTensor::f32(&[rows, columns], x.clone())).unwrap();
    executable.run().unwrap();
    let y = executable.read_output("y").unwrap();
    let scales = executable.read_output("scales").unwrap();
    let (y, scales) = (y.as_f32().unwrap(), scales.as_f32().unwrap());
    let groups = columns.div_ceil(group);
    for (i, (x, y)) in x.iter().zip(y).enumerate() {
        let scale = scales[i / columns * groups + i % columns / group];
        assert!((x - y).abs() <= 0.5001 * scale, "{i}: {x} became {y}, step {scale}");
    }
}

#[test]
fn bias_and_activation_after_an_int8_product_become_one_call() {
    let mut graph = Graph::new();
    let x = graph.input("x", TensorType::f32(&[3, 10]));
    let q =
        graph.constant(HostTensor { shape: vec![6, 10], data: HostData::I8((0..60).map(|i| i as i8 - 30).collect()) });
    let scales = graph.constant(HostTensor::f32(&[6, 1], values(6, 2)));
    let bias = graph.constant(HostTensor::f32(&[6], values(6, 3)));
    let y = graph.matmul_q8(x, q, scales, 10).unwrap();
    let y = graph.add(bias, y).unwrap();
    let y = graph.silu(y).unwrap();
    graph.output("y", y);
    let run = |plan: Plan| {
        let mut store = Store::new(&Device::Cpu);
        let calls = plan.work.calls.len();
        let mut executable = plan.prepare(&mut store).unwrap();
        executable.write_input("x", &HostTensor::f32(&[3, 10], values(30, 4))).unwrap();
        executable.run().unwrap();
        (calls, executable.read_output("y").unwrap())
    };
    let (calls, fused) = run(Plan::new(&graph).unwrap());
    let (_, plain) = run(Plan::unoptimised(&graph).unwrap());
    assert_eq!(calls, 1);
    for (a, b) in fused.as_f32().unwrap().iter().zip(plain.as_f32().unwrap()) {
        // The same operations, perhaps in registers of another width.
        assert!((a - b).abs() <= 8.0 * f32::EPSILON * b.abs().max(1.0), "{a} {b}");
    }
}

fn kernels(caps: &Caps, m: usize, integer: bool) -> Vec<String> {
    let mut graph = Graph::new();
    let x = graph.input("x", TensorType::f32(&[m, 256]));
    let q = graph.input("q", TensorType::new(DType::I8, &[512, 256]));
    let scales = graph.input("scales", TensorType::f32(&[512, 4]));
    let y = if integer { graph.matmul_q8q8(x, q, scales, 64) } else { graph.matmul_q8(x, q, scales, 64) };
    graph.output("y", y.unwrap());
    let lowered = lower(&Plan::new(&graph).unwrap().work, caps);
    assert_eq!(lowered[0].fallback, None);
    lowered[0].dispatches.iter().map(|d| d.shader.label.clone()).collect()
}

#[test]
fn the_kernel_follows_the_rows_and_the_features() {
    let plain = Caps { flops_per_second: 1e12, bytes_per_second: 1e11, ..Caps::PLAIN };
    let subgroups = Features { subgroups: true, ..Features::NONE };
    let wide = Caps { features: subgroups, subgroup_sizes: (32, 32), ..plain };
    assert_eq!(kernels(&plain, 1, false), ["gemv/dots"]);
    assert_eq!(kernels(&wide, 2, false), ["gemv/subgroup"]);
    assert_eq!(kernels(&plain, 4096, false), ["matmul/tiled64"]);
    let packed = Caps { features: Features { packed_dot: true, ..Features::NONE }, ..plain };
    assert_eq!(kernels(&plain, 8, true), ["quantize/scales", "quantize/values", "matmul_q8q8/plain"]);
    assert_eq!(kernels(&packed, 8, true), ["quantize/scales", "quantize/values", "matmul_q8q8/packed"]);
}

#[test]
fn scales_that_do_not_fit_their_weights_are_refused_with_the_shape_they_need() {
    let mut graph = Graph::new();
    let x = graph.input("x", TensorType::f32(&[2, 100]));
    let q = graph.input("q", TensorType::new(DType::I8, &[8, 100]));
    let scales = graph.input("scales", TensorType::f32(&[8, 1]));
    let message = graph.matmul_q8(x, q, scales, 64).unwrap_err().to_string();
    assert!(message.contains("[8, 2]"), "{message}");
    assert!(graph.matmul_q8(x, q, scales, 0).is_err());
}
