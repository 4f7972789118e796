use super::*;
use crate::device::gpu::{Caps, Features};
use crate::device::{Device, Store};
use crate::graph::Plan;
use crate::tensor::HostTensor;

fn values(shape: &[usize], seed: usize) -> HostTensor {
    let n = shape.iter().product();
    HostTensor::f32(shape, (0..n).map(|i| ((i * 37 + seed * 11) % 29) as f32 / 29.0 - 0.4).collect())
}

/// Builds `write(a [6, 8] times b [8, 12], bias, residual)`; the number of calls with passes, and the largest difference between the
/// results with and without them on the CPU.
fn absorbed(write: impl Fn(&mut Graph, Value, Value, Value) -> Result<Value>) -> (usize, f32) {
    let mut graph = Graph::new();
    let shapes: [(&str, &[usize]); 4] = [("a", &[6, 8]), ("b", &[8, 12]), ("bias", &[12]), ("r", &[6, 12])];
    let x: Vec<Value> = shapes.iter().map(|(n, s)| graph.input(n, TensorType::f32(s))).collect();
    let product = graph.matmul(x[0], x[1]).unwrap();
    let y = write(&mut graph, product, x[2], x[3]).unwrap();
    graph.output("y", y);
    let run = |plan: Plan| {
        let calls = plan.work.calls.len();
        let mut store = Store::new(&Device::Cpu);
        let mut executable = plan.prepare(&mut store).unwrap();
        for (i, (name, shape)) in shapes.iter().enumerate() {
            executable.write_input(name, &values(shape, i)).unwrap();
        }
        executable.run().unwrap();
        (calls, executable.read_output("y").unwrap().as_f32().unwrap().to_vec())
    };
    let (calls, fused) = run(Plan::new(&graph).unwrap());
    let (_, plain) = run(Plan::unoptimised(&graph).unwrap());
    (calls, fused.iter().zip(&plain).fold(0.0, |m, (a, b)| m.max((a - b).abs())))
}

#[test]
fn bias_activation_and_residual_in_either_order_become_one_call_with_equal_results() {
    type Write = fn(&mut Graph, Value, Value, Value) -> Result<Value>;
    let forms: [(&str, Write); 10] = [
        ("v + bias", |g, v, b, _| g.add(v, b)),
        ("bias + v", |g, v, b, _| g.add(b, v)),
        ("v + residual", |g, v, _, r| g.add(v, r)),
        ("gelu(v)", |g, v, _, _| g.gelu_tanh(v)),
        ("relu(v + bias)", |g, v, b, _| g.add(v, b).and_then(|x| g.relu(x))),
        ("silu(bias + v)", |g, v, b, _| g.add(b, v).and_then(|x| g.silu(x))),
        ("(v + bias) + residual", |g, v, b, r| g.add(v, b).and_then(|x| g.add(x, r))),
        ("residual + (bias + v)", |g, v, b, r| g.add(b, v).and_then(|x| g.add(r, x))),
        ("(residual + bias) + v", |g, v, b, r| g.add(r, b).and_then(|x| g.add(x, v))),
        ("residual + gelu(v + bias)", |g, v, b, r| g.add(v, b).and_then(|x| g.gelu_erf(x)).and_then(|x| g.add(r, x))),
    ];
    for (name, write) in forms {
        let (calls, difference) = absorbed(write);
        assert_eq!(calls, 1, "{name}");
        // Sums of three numbers below 4 in another order: a few roundings.
        assert!(difference <= 8.0 * f32::EPSILON * 4.0, "{name}: {difference}");
    }
}

#[test]
fn consumers_that_are_no_epilogue_stay_calls_of_their_own() {
    type Write = fn(&mut Graph, Value, Value, Value) -> Result<Value>;
    let forms: [(&str, Write); 5] = [
        ("v * bias", |g, v, b, _| g.mul(v, b)),
        ("relu(v + residual)", |g, v, _, r| g.add(v, r).and_then(|x| g.relu(x))),
        ("gelu(v) + bias", |g, v, b, _| g.gelu_tanh(v).and_then(|x| g.add(x, b))),
        ("v + residual + residual", |g, v, _, r| g.add(v, r).and_then(|x| g.add(x, r))),
        ("sigmoid(v + bias)", |g, v, b, _| g.add(v, b).and_then(|x| g.sigmoid(x))),
    ];
    for (name, write) in forms {
        let (calls, difference) = absorbed(write);
        assert_eq!(calls, 2, "{name}");
        assert!(difference <= 8.0 * f32::EPSILON * 4.0, "{name}: {difference}");
    }
}

#[test]
fn a_product_that_is_read_twice_is_not_absorbed() {
    let (calls, _) = absorbed(|g, v, b, _| {
        let x = g.add(v, b)?;
        g.output("product", v);
        g.relu(x)
    });
    assert_eq!(calls, 2);
}

/// Labels of the kernels that a product of these shapes is lowered to.
fn kernels(caps: &Caps, a: &[usize], b: &[usize], op: Matmul) -> Vec<String> {
    let mut graph = Graph::new();
    let a = graph.input("a", TensorType::f32(a));
    let b = graph.input("b", TensorType::f32(b));
    let y = graph.apply1(op, &[a, b]).unwrap();
    graph.output("y", y);
    let plan = Plan::new(&graph).unwrap();
    let lowered = crate::device::gpu::lower(&plan.work, caps);
    assert_eq!(lowered[0].fallback, None);
    lowered[0].dispatches.iter().map(|d| d.shader.label.clone()).collect()
}

#[test]
fn the_kernel_follows_the_shape_and_the_device() {
    let plain = Caps { flops_per_second: 1e12, bytes_per_second: 1e11, ..Caps::PLAIN };
    let subgroups = |size, software| Caps {
        features: Features { subgroups: true, ..Features::NONE },
        subgroup_sizes: (size, size),
        software,
        ..plain
    };
    let nn = || Matmul::new(false, false);
    let nt = || Matmul::new(false, true);
    assert_eq!(kernels(&plain, &[1, 768], &[768, 3072], nn()), ["gemv/columns"]);
    assert_eq!(kernels(&plain, &[4, 768], &[3072, 768], nt()), ["gemv/dots"]);
    assert_eq!(kernels(&subgroups(32, false), &[4, 768], &[3072, 768], nt()), ["gemv/subgroup"]);
    assert_eq!(kernels(&plain, &[512, 768], &[768, 1], nn()), ["gemv/dots"]);
    assert_eq!(kernels(&plain, &[1024, 768], &[768, 768], nn()), ["matmul/tiled64"]);
    assert_eq!(kernels(&subgroups(32, false), &[2048, 768], &[768, 2048], nn()), ["matmul/tiled128"]);
    assert_eq!(kernels(&subgroups(8, true), &[512, 768], &[768, 768], nn()), ["matmul/subgroup"]);
    assert_eq!(kernels(&Caps { software: true, ..plain }, &[512, 768], &[768, 768], nn()), ["matmul/direct"]);
}

#[test]
fn a_weight_gradient_with_few_tiles_splits_its_sum() {
    let caps = Caps { flops_per_second: 1e12, bytes_per_second: 1e11, ..Caps::PLAIN };
    assert_eq!(
        kernels(&caps, &[16384, 128], &[16384, 128], Matmul::new(true, false)),
        ["matmul/tiled64", "matmul/reduce"]
    );
}

#[test]
fn operands_that_do_not_fit_are_refused_with_the_reason() {
    let mut graph = Graph::new();
    let a = graph.input("left", TensorType::f32(&[2, 3, 4]));
    let b = graph.input("right", TensorType::f32(&[5, 6]));
    let c = graph.input("other", TensorType::f32(&[3, 4, 6]));
    let message = graph.matmul(a, b).unwrap_err().to_string();
    assert!(message.contains("left") && message.contains("inner lengths differ: 4 and 5"), "{message}");
    let message = graph.matmul(a, c).unwrap_err().to_string();
    assert!(message.contains("batch axes [2] and [3]"), "{message}");
}
