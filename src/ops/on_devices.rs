//! Runs small graphs on every device, for tests that compare values an operator's cases do not: golden numbers, other
//! forms of the same operator, which kernel was chosen.

use super::Op;
use crate::device::gpu::{Context, Options};
use crate::device::{Device, ExecutionNotes, Store};
use crate::graph::{Graph, Plan};
use crate::tensor::HostTensor;

/// The reference, the CPU and, where there is an adapter, a GPU; `LYNX_REQUIRE_GPU` makes a missing one a failure.
pub fn devices() -> Vec<Device> {
    [Device::Reference, Device::Cpu].into_iter().chain(gpu(Options { checked: true, ..Options::default() })).collect()
}

pub fn gpu(options: Options) -> Option<Device> {
    let adapter = Context::adapters().into_iter().next();
    if adapter.is_none() {
        assert!(std::env::var_os("LYNX_REQUIRE_GPU").is_none(), "LYNX_REQUIRE_GPU is set and no adapter was found");
        eprintln!("SKIPPED: no GPU adapter (install mesa-vulkan-drivers for a software one)");
    }
    adapter.map(|a| Device::Gpu(Context::open(&a, options).expect("an adapter that is listed opens")))
}

/// Runs `op` once; returns its outputs.
pub fn run(device: &Device, op: impl Op, inputs: &[HostTensor]) -> (Vec<Vec<f32>>, ExecutionNotes) {
    let mut graph = Graph::new();
    let values: Vec<_> = inputs.iter().enumerate().map(|(i, x)| graph.input(&format!("x{i}"), x.ty())).collect();
    let outputs = graph.apply(op, &values).unwrap();
    for (o, v) in outputs.iter().enumerate() {
        graph.output(&format!("y{o}"), *v);
    }
    let names: Vec<String> = (0..outputs.len()).map(|o| format!("y{o}")).collect();
    run_graph(device, &graph, inputs, &names)
}

/// Runs a graph whose inputs are called x0, x1, ..; returns the outputs in the order of `names`.
pub fn run_graph(
    device: &Device,
    graph: &Graph,
    inputs: &[HostTensor],
    names: &[String],
) -> (Vec<Vec<f32>>, ExecutionNotes) {
    let plan = Plan::new(graph).unwrap();
    let mut store = Store::new(device);
    let mut executable = plan.prepare(&mut store).unwrap();
    for (i, x) in inputs.iter().enumerate() {
        executable.write_input(&format!("x{i}"), x).unwrap();
    }
    executable.run().unwrap();
    let read = |n: &String| executable.read_output(n).unwrap().as_f32().unwrap().to_vec();
    (names.iter().map(read).collect(), executable.notes())
}
