//! What `device::probe` times on a device, written as graphs of ordinary operators.

use super::reduce::Reduction;
use crate::Result;
use crate::device::Work;
use crate::device::probe::Workloads;
use crate::graph::{Graph, Plan, Value};
use crate::tensor::TensorType;

pub fn workloads() -> Result<Workloads> {
    Ok(Workloads { compute: planned(compute)?, memory: planned(memory)?, step: planned(step)? })
}

fn planned(write: fn(&mut Graph) -> Result<Value>) -> Result<Work> {
    let mut graph = Graph::new();
    let result = write(&mut graph)?;
    graph.output("result", result);
    Ok(Plan::new(&graph)?.work)
}

/// Three matrix products in a row, 0.8 GFLOP: milliseconds on a CPU, enough to fill an integrated GPU.
fn compute(g: &mut Graph) -> Result<Value> {
    let square = TensorType::f32(&[512, 512]);
    let mut x = g.input("x", square.clone());
    let w = g.input("w", square);
    for _ in 0..3 {
        x = g.matmul(x, w)?;
    }
    g.reduce(x, Reduction::Sum, (1, 2), false)
}

/// The sum of two tensors of 16 MiB, more than most caches hold.
fn memory(g: &mut Graph) -> Result<Value> {
    let ty = TensorType::f32(&[4096, 1024]);
    let (a, b) = (g.input("a", ty.clone()), g.input("b", ty));
    let sum = g.add(a, b)?;
    g.output("sum", sum);
    g.reduce(sum, Reduction::Max, (1, 2), false)
}

/// Forward and backward of a feed-forward layer of the usual proportions.
fn step(g: &mut Graph) -> Result<Value> {
    let (rows, width, inner) = (256, 256, 1024);
    let x = g.input("x", TensorType::f32(&[rows, width]));
    let up = g.input("up", TensorType::f32(&[width, inner]));
    let down = g.input("down", TensorType::f32(&[inner, width]));
    let h = g.matmul(x, up)?;
    let h = g.gelu_tanh(h)?;
    let y = g.matmul(h, down)?;
    let square = g.mul(y, y)?;
    let loss = g.reduce_all(square, Reduction::Mean)?;
    for (i, gradient) in g.gradients(loss, &[up, down])?.into_iter().enumerate() {
        g.output(&format!("g{i}"), gradient);
    }
    Ok(loss)
}
