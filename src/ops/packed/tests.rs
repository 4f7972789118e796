use super::*;
use crate::device::gpu::{Caps, lower};
use crate::device::{Device, Store};
use crate::graph::{Graph, Plan, Role, Value};
use crate::tensor::{HostData, HostTensor};
use kernels_cpu::blocks::Format;
use kernels_cpu::packed::samples::random_rows;

fn packing(format: Format) -> Packing {
    Packing::fastest(format, 24, 64).unwrap()
}

/// A graph with a packed variable `w` and an input `x` [3, 64].
fn graph(packing: &Packing) -> (Graph, Value, Value) {
    let mut graph = Graph::new();
    let x = graph.input("x", TensorType::f32(&[3, 64]));
    let w = graph.variable("w", Role::State, packed_type(packing).unwrap()).unwrap();
    (graph, x, w)
}

fn values(shape: &[usize], seed: usize) -> HostTensor {
    let n = shape.iter().product();
    HostTensor::f32(shape, (0..n).map(|i| ((i * 37 + seed * 11) % 29) as f32 / 29.0 - 0.4).collect())
}

fn run(packing: &Packing, plan: &Plan, inputs: &[(&str, &[usize])]) -> Vec<f32> {
    let mut store = Store::new(&Device::Cpu);
    let mut executable = plan.prepare(&mut store).unwrap();
    let rows = random_rows(packing.format, packing.rows, packing.columns, 3);
    let mut packed = vec![0; packing.bytes()];
    kernels_cpu::packed::pack(packing, &rows, &mut packed);
    let data = HostData::I8(packed.iter().map(|b| *b as i8).collect());
    store.write("w", &HostTensor { shape: vec![packed.len()], data }).unwrap();
    for (i, (name, shape)) in inputs.iter().enumerate() {
        executable.write_input(name, &values(shape, i)).unwrap();
    }
    executable.run().unwrap();
    executable.read_output("y").unwrap().as_f32().unwrap().to_vec()
}

#[test]
fn bias_activation_and_residual_after_a_product_become_one_call_with_equal_results() {
    for activations in [Activations::F32, Activations::Int8] {
        let packing = packing(Format::Q4_0);
        let (mut graph, x, w) = graph(&packing);
        let bias = graph.input("bias", TensorType::f32(&[24]));
        let residual = graph.input("r", TensorType::f32(&[3, 24]));
        let y = graph.packed_linear(x, w, packing, activations).unwrap();
        let y = graph.add(y, bias).unwrap();
        let y = graph.silu(y).unwrap();
        let y = graph.add(residual, y).unwrap();
        graph.output("y", y);
        let inputs: [(&str, &[usize]); 3] = [("x", &[3, 64]), ("bias", &[24]), ("r", &[3, 24])];
        let (fused, plain) = (Plan::new(&graph).unwrap(), Plan::unoptimised(&graph).unwrap());
        assert_eq!(fused.work.calls.len(), 1);
        let (fused, plain) = (run(&packing, &fused, &inputs), run(&packing, &plain, &inputs));
        assert!(fused.iter().zip(&plain).all(|(a, b)| (a - b).abs() <= 8.0 * f32::EPSILON * 4.0));
    }
}

#[test]
fn the_gradient_of_a_rounded_product_is_that_of_the_unrounded_one() {
    let gradient = |activations| {
        let packing = packing(Format::Q8_0);
        let (mut graph, x, w) = graph(&packing);
        let y = graph.packed_linear(x, w, packing, activations).unwrap();
        let loss = graph.sum_all(y).unwrap();
        let g = graph.gradients(loss, &[x]).unwrap();
        graph.output("y", g[0]);
        run(&packing, &Plan::new(&graph).unwrap(), &[("x", &[3, 64])])
    };
    let exact = gradient(Activations::F32);
    assert_eq!(gradient(Activations::Int8), exact);
    assert!(exact.iter().any(|g| *g != 0.0));
}

#[test]
fn operands_that_are_not_what_the_packing_says_are_refused_with_both() {
    let packing = packing(Format::Q8_0);
    let (mut graph, x, w) = graph(&packing);
    let narrow = graph.input("narrow", TensorType::f32(&[3, 60]));
    let message = graph.packed_linear(narrow, w, packing, Activations::F32).unwrap_err().to_string();
    assert!(message.contains("f32 [.., 64], it is f32[3, 60]"), "{message}");
    let other = Packing { layout: Layout::Rows, rows: 23, ..packing };
    let message = graph.packed_linear(x, w, other, Activations::F32).unwrap_err().to_string();
    assert!(message.contains("[23, 64] of q8_0 in rows must be int8 [1564]"), "{message}");
    let bad = Packing { columns: 63, ..packing };
    let message = graph.unpack(w, bad).unwrap_err().to_string();
    assert!(message.contains("whole blocks of 32"), "{message}");
}

#[test]
fn an_id_outside_the_matrix_is_an_error_that_names_it() {
    let packing = packing(Format::Q8_0);
    let (mut graph, _, w) = graph(&packing);
    let ids = graph.constant(HostTensor::i32(&[2], vec![1, 24]));
    let y = graph.packed_embedding(w, ids, packing).unwrap();
    graph.output("y", y);
    let mut store = Store::new(&Device::Cpu);
    let mut executable = Plan::new(&graph).unwrap().prepare(&mut store).unwrap();
    let message = executable.run().unwrap_err().to_string();
    assert!(message.contains("index 24 at position 1 is not in 0..24"), "{message}");
}

#[test]
fn nothing_falls_back_to_the_cpu_on_a_plain_gpu_but_tiles_of_superblocks() {
    for spec in specs() {
        for case in (spec.cases)() {
            let built = crate::ops::check::build(&case, false).unwrap();
            let work = Plan::new(&built.graph).unwrap().work;
            // Sessions on a GPU keep these in rows.
            let only_cpu = ["q4_k tiles", "q5_k tiles", "q6_k tiles"].iter().any(|label| case.label.contains(label));
            let falls = lower(&work, &Caps::PLAIN).iter().any(|l| l.fallback.is_some());
            assert_eq!(falls, only_cpu, "{} {}", spec.name, case.label);
        }
    }
}
