//! The graph, its passes and its plans: what is fused, what shares memory, what is known before the first run.

use lynx_gpu::Error;
use lynx_gpu::device::{Device, Home, Store};
use lynx_gpu::graph::{Graph, Plan, Role, Value};
use lynx_gpu::ops::reduce::Reduction;
use lynx_gpu::tensor::{HostTensor, TensorType};

fn input(g: &mut Graph, name: &str, shape: &[usize]) -> Value {
    g.input(name, TensorType::f32(shape))
}

fn run(plan: &Plan, device: &Device, inputs: &[(&str, &HostTensor)], output: &str) -> Vec<f64> {
    let mut store = Store::new(device);
    let mut exe = plan.prepare(&mut store).unwrap();
    for (name, value) in inputs {
        exe.write_input(name, value).unwrap();
    }
    exe.run().unwrap();
    exe.read_output(output).unwrap().to_f64().data
}

#[test]
fn a_chain_of_elementwise_operators_is_one_kernel_and_gives_the_same_values() {
    let mut g = Graph::new();
    let (x, y) = (input(&mut g, "x", &[5, 7]), input(&mut g, "y", &[7]));
    let a = g.mul(x, y).unwrap();
    let b = g.silu(a).unwrap();
    let c = g.affine(b, 2.0, -1.0).unwrap();
    let d = g.add(c, x).unwrap();
    g.output("d", d);
    let (fused, plain) = (Plan::new(&g).unwrap(), Plan::unoptimised(&g).unwrap());
    assert_eq!((fused.work.calls.len(), plain.work.calls.len()), (1, 4));
    assert_eq!(fused.passes.fused, 3);
    let xs = HostTensor::f32(&[5, 7], (0..35).map(|i| i as f32 * 0.3 - 5.0).collect());
    let ys = HostTensor::f32(&[7], (0..7).map(|i| 1.0 - i as f32 * 0.2).collect());
    let inputs = [("x", &xs), ("y", &ys)];
    let want = run(&plain, &Device::Reference, &inputs, "d");
    assert_eq!(run(&fused, &Device::Reference, &inputs, "d"), want);
    for (w, h) in want.iter().zip(run(&fused, &Device::Cpu, &inputs, "d")) {
        assert!((w - h).abs() < 1e-5, "{w} {h}");
    }
}

#[test]
fn a_value_read_twice_is_not_computed_twice_by_fusion() {
    let mut g = Graph::new();
    let x = input(&mut g, "x", &[8]);
    let e = g.exp(x).unwrap();
    let a = g.affine(e, 2.0, 0.0).unwrap();
    let s = g.sum_all(e).unwrap();
    g.output("a", a);
    g.output("s", s);
    let plan = Plan::new(&g).unwrap();
    assert_eq!(plan.work.calls.len(), 3);
}

#[test]
fn dead_nodes_and_common_subexpressions_are_dropped() {
    let mut g = Graph::new();
    let x = input(&mut g, "x", &[4]);
    let (a, b) = (g.exp(x).unwrap(), g.exp(x).unwrap());
    let unused = g.log(x).unwrap();
    let _ = g.neg(unused).unwrap();
    let s = g.sum_all(a).unwrap();
    let t = g.reduce_all(b, Reduction::Max).unwrap();
    g.output("s", s);
    g.output("t", t);
    let (optimised, stats) = g.optimised().unwrap();
    assert_eq!(stats.dead, 2);
    // The second exp and its reshape, if any.
    assert!(stats.common >= 1, "{stats:?}");
    assert_eq!(optimised.nodes().iter().filter(|n| format!("{:?}", n.kind).contains("Exp")).count(), 1);
}

#[test]
fn lifetimes_let_a_long_chain_live_in_two_buffers() {
    let mut g = Graph::new();
    let mut x = input(&mut g, "x", &[1000]);
    // Row sums cannot be fused or done in place, so every link needs a buffer.
    for _ in 0..10 {
        let column = g.reshape(x, &[1000, 1]).unwrap();
        x = g.reduce(column, Reduction::Sum, (1, 2), false).unwrap();
    }
    g.output("x", x);
    let plan = Plan::new(&g).unwrap();
    let transient: Vec<_> = plan.work.buffers.iter().filter(|b| b.home == Home::Transient).collect();
    assert_eq!(transient.len(), 2);
    assert_eq!(plan.memory.activations, 2 * 4000);
}

#[test]
fn the_last_reader_may_overwrite_its_operand() {
    let mut g = Graph::new();
    let x = input(&mut g, "x", &[100, 10]);
    let rows = g.reduce(x, Reduction::Sum, (1, 2), false).unwrap();
    let e = g.exp(rows).unwrap();
    g.output("e", e);
    let plan = Plan::new(&g).unwrap();
    assert_eq!(plan.memory.activations, 400, "exp runs in place");
    // An output that is still to be read is left alone.
    g.output("rows", rows);
    assert_eq!(Plan::new(&g).unwrap().memory.activations, 800);
}

#[test]
fn plan_bytes_are_the_bytes_allocated_and_do_not_grow() {
    let mut g = Graph::new();
    let x = input(&mut g, "x", &[64, 32]);
    let w = g.variable("w", Role::Parameter, TensorType::f32(&[32])).unwrap();
    let y = g.mul(x, w).unwrap();
    let s = g.sum_all(y).unwrap();
    let grads = g.gradients(s, &[w]).unwrap();
    let step = g.scale(grads[0], -0.001).unwrap();
    let new = g.add(w, step).unwrap();
    g.update(w, new).unwrap();
    g.output("s", s);
    let plan = Plan::new(&g).unwrap();
    for device in [Device::Reference, Device::Cpu] {
        let mut store = Store::new(&device);
        let mut exe = plan.prepare(&mut store).unwrap();
        assert_eq!(exe.allocated_bytes(), plan.memory_on(&device).total());
        exe.write_input("x", &HostTensor::f32(&[64, 32], vec![0.5; 2048])).unwrap();
        (0..2).for_each(|_| exe.run().unwrap());
        let at_two = exe.allocated_bytes();
        (2..1000).for_each(|_| exe.run().unwrap());
        assert_eq!(exe.allocated_bytes(), at_two);
        // 1000 steps of -0.001 * 32 (64 rows of 0.5).
        let w = store.read("w").unwrap().to_f64().data[0];
        assert!((w + 32.0).abs() < 2e-2, "{w}");
    }
}

#[test]
fn an_update_that_cannot_be_in_place_is_copied_after_the_last_reader() {
    let mut g = Graph::new();
    let v = g.variable("v", Role::State, TensorType::f32(&[3])).unwrap();
    let next = g.affine(v, 1.0, 1.0).unwrap();
    // Reads the old value after the new one is known.
    let both = g.mul(next, v).unwrap();
    g.output("both", both);
    g.update(v, next).unwrap();
    for plan in [Plan::new(&g).unwrap(), Plan::unoptimised(&g).unwrap()] {
        for device in [Device::Reference, Device::Cpu] {
            let mut store = Store::new(&device);
            let mut exe = plan.prepare(&mut store).unwrap();
            for step in 0..3 {
                exe.run().unwrap();
                let old = step as f64;
                assert_eq!(exe.read_output("both").unwrap().to_f64().data, vec![(old + 1.0) * old; 3]);
            }
            assert_eq!(store.read("v").unwrap().to_f64().data, vec![3.0; 3]);
        }
    }
}

#[test]
fn fusion_leaves_a_read_before_the_node_that_overwrites_what_it_reads() {
    let ty = TensorType::f32(&[3]);
    let mut g = Graph::new();
    let [w, m] = ["w", "m"].map(|n| g.variable(n, Role::State, ty.clone()).unwrap());
    let (gradient, hyper) = (g.input("g", ty), input(&mut g, "hyper", &[2]));
    let before = g.affine(w, 2.0, 0.0).unwrap();
    let scale = g.constant(HostTensor::scalar(1.0));
    let sgd =
        lynx_gpu::ops::optimizer::SgdMomentum { momentum: 0.0, dampening: 0.0, nesterov: false, weight_decay: 0.0 };
    g.sgd_momentum(sgd, (w, gradient, m), hyper, scale).unwrap();
    // Elementwise and the only reader of `before`: fused, it would read `w` after the optimiser.
    let after = g.exp(before).unwrap();
    g.output("after", after);
    let values = [HostTensor::f32(&[3], vec![1.0; 3]), HostTensor::f32(&[2], vec![0.5, 1.0])];
    let plan = Plan::new(&g).unwrap();
    assert_eq!(run(&plan, &Device::Cpu, &[("g", &values[0]), ("hyper", &values[1])], "after"), [1.0; 3]);
}

#[test]
fn two_variables_can_change_places() {
    let mut g = Graph::new();
    let [a, b] = ["a", "b"].map(|name| g.variable(name, Role::State, TensorType::f32(&[2])).unwrap());
    g.update(a, b).unwrap();
    g.update(b, a).unwrap();
    let plan = Plan::new(&g).unwrap();
    for device in [Device::Reference, Device::Cpu] {
        let mut store = Store::new(&device);
        let mut exe = plan.prepare(&mut store).unwrap();
        store.write("a", &HostTensor::f32(&[2], vec![1.0, 2.0])).unwrap();
        store.write("b", &HostTensor::f32(&[2], vec![3.0, 4.0])).unwrap();
        exe.run().unwrap();
        assert_eq!(store.read("a").unwrap().to_f64().data, [3.0, 4.0]);
        assert_eq!(store.read("b").unwrap().to_f64().data, [1.0, 2.0]);
    }
}

#[test]
fn a_second_update_of_a_variable_is_refused_by_name() {
    let mut g = Graph::new();
    let v = g.variable("momentum", Role::State, TensorType::f32(&[2])).unwrap();
    let next = g.affine(v, 2.0, 0.0).unwrap();
    g.update(v, next).unwrap();
    let error = g.update(v, next).unwrap_err().to_string();
    assert!(error.contains("'momentum'") && error.contains("twice"), "{error}");
}

#[test]
fn shape_errors_name_the_node_the_operands_and_their_shapes() {
    let mut g = Graph::new();
    let (x, y) = (input(&mut g, "queries", &[2, 3]), input(&mut g, "keys", &[4]));
    let error = g.scoped("blocks.0", |g| g.add(x, y)).unwrap_err();
    assert!(matches!(error, Error::Graph(_)));
    let text = error.to_string();
    for part in ["blocks.0.pointwise", "f32[2, 3]", "f32[4]", "queries", "keys", "does not broadcast"] {
        assert!(text.contains(part), "'{part}' is missing in: {text}");
    }
    assert!(g.reshape(x, &[5]).unwrap_err().to_string().contains("6 elements"));
    assert!(g.gradients(x, &[x]).unwrap_err().to_string().contains("scalar"));
}

#[test]
fn inputs_are_checked_by_name_and_type() {
    let mut g = Graph::new();
    let x = input(&mut g, "x", &[2]);
    g.output("y", x);
    let plan = Plan::new(&g).unwrap();
    let mut store = Store::new(&Device::Cpu);
    let mut exe = plan.prepare(&mut store).unwrap();
    let wrong = exe.write_input("x", &HostTensor::f32(&[3], vec![0.0; 3])).unwrap_err().to_string();
    assert!(wrong.contains("f32[2]") && wrong.contains("f32[3]"), "{wrong}");
    let unknown = exe.write_input("z", &HostTensor::f32(&[2], vec![0.0; 2])).unwrap_err().to_string();
    assert!(unknown.contains("'z'") && unknown.contains("x"), "{unknown}");
}

#[test]
fn gradients_accumulate_over_every_use() {
    // L = (a b + c)(a - c) at (2, 3, 4): -20, gradients 4, -4, -12.
    let mut g = Graph::new();
    let [a, b, c] = ["a", "b", "c"].map(|n| input(&mut g, n, &[]));
    let ab = g.mul(a, b).unwrap();
    let left = g.add(ab, c).unwrap();
    let right = g.sub(a, c).unwrap();
    let l = g.mul(left, right).unwrap();
    g.output("l", l);
    for (name, grad) in ["da", "db", "dc"].iter().zip(g.gradients(l, &[a, b, c]).unwrap()) {
        g.output(name, grad);
    }
    let plan = Plan::new(&g).unwrap();
    let values = [2.0, 3.0, 4.0].map(HostTensor::scalar);
    let inputs = [("a", &values[0]), ("b", &values[1]), ("c", &values[2])];
    let got: Vec<f64> = ["l", "da", "db", "dc"].iter().flat_map(|o| run(&plan, &Device::Cpu, &inputs, o)).collect();
    assert_eq!(got, [-20.0, 4.0, -4.0, -12.0]);
}

#[test]
fn broadcasting_gradients_are_summed_back_to_the_operand() {
    // (3,) + (4,3) summed gives 4 everywhere; (3,1) + (3,5) summed gives 5.
    for (small, large, want) in [(&[3][..], &[4, 3][..], 4.0), (&[3, 1], &[3, 5], 5.0)] {
        let mut g = Graph::new();
        let (x, y) = (input(&mut g, "x", small), input(&mut g, "y", large));
        let s = g.add(x, y).unwrap();
        let s = g.sum_all(s).unwrap();
        let dx = g.gradients(s, &[x]).unwrap()[0];
        assert_eq!(g.shape(dx), small);
        g.output("dx", dx);
        let plan = Plan::new(&g).unwrap();
        let zeros = |shape: &[usize]| HostTensor::zeros(&TensorType::f32(shape));
        let got = run(&plan, &Device::Cpu, &[("x", &zeros(small)), ("y", &zeros(large))], "dx");
        assert_eq!(got, vec![want; 3]);
    }
}

#[test]
fn a_graph_can_be_looked_at_as_dot_and_json() {
    let mut g = Graph::new();
    let x = input(&mut g, "x", &[2]);
    let y = g.sub(x, x).unwrap();
    g.output("difference", y);
    let dot = g.to_dot();
    assert!(dot.starts_with("digraph") && dot.ends_with("}\n"));
    assert_eq!(dot.matches("n0 -> n1").count(), 2, "both operands are edges:\n{dot}");
    let json = g.to_json();
    assert_eq!(json["nodes"].as_array().unwrap().len(), 2);
    assert_eq!(json["nodes"][1]["inputs"], serde_json::json!([[0, 0], [0, 0]]));
    assert_eq!(json["outputs"][0]["name"], "difference");
}
