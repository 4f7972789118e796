//! What `device::probe` times on a device, written as graphs of ordinary operators.

use super::attention::Attention;
use super::reduce::Reduction;
use crate::Result;
use crate::device::Work;
use crate::device::gpu::tiles::Family;
use crate::device::probe::Workloads;
use crate::graph::{Graph, Plan, Value};
use crate::tensor::TensorType;

pub fn workloads() -> Result<Workloads> {
    Ok(Workloads { compute: planned(compute)?, memory: planned(memory)?, step: planned(step)? })
}

/// What `gpu::tune` times: for each family of kernels a few works of the shapes that models have.
pub fn tuning() -> Result<Vec<(Family, Work)>> {
    let product = |family, [m, n, k]: [usize; 3], ta: bool, tb: bool| {
        planned(move |g| {
            let a = g.input("a", TensorType::f32(&if ta { [k, m] } else { [m, k] }));
            let b = g.input("b", TensorType::f32(&if tb { [n, k] } else { [k, n] }));
            g.matmul_t(a, b, ta, tb)
        })
        .map(|work| (family, work))
    };
    let rows = |family, shape: [usize; 2], write: fn(&mut Graph, Value) -> Result<Value>| {
        planned(move |g| {
            let x = g.input("x", TensorType::f32(&shape));
            write(g, x)
        })
        .map(|work| (family, work))
    };
    Ok(vec![
        product(Family::Matmul, [1024, 1024, 1024], false, false)?,
        product(Family::Matmul, [1024, 384, 384], false, true)?,
        product(Family::Matmul, [256, 512, 128], false, false)?,
        // Gradients of weights: few tiles, long sums.
        product(Family::Split, [384, 384, 4096], true, false)?,
        product(Family::Split, [128, 65, 2048], true, false)?,
        product(Family::Gemv, [1, 2048, 2048], false, false)?,
        product(Family::Gemv, [1, 2048, 2048], false, true)?,
        product(Family::Gemv, [4, 768, 768], false, false)?,
        (Family::Attention, planned(attention)?),
        rows(Family::Rows, [4096, 600], |g, x| g.softmax(x, 1))?,
        rows(Family::Rows, [128, 8192], |g, x| g.softmax(x, 1))?,
        rows(Family::Columns, [4096, 384], |g, x| g.reduce(x, Reduction::Sum, (0, 1), false))?,
    ])
}

/// Forward and backward of causal attention: 6 heads of 64, 256 positions.
fn attention(g: &mut Graph) -> Result<Value> {
    let ty = TensorType::f32(&[2, 256, 6, 64]);
    let [q, k, v] = ["q", "k", "v"].map(|name| g.input(name, ty.clone()));
    let o = g.attention(q, k, v, None, Attention { causal: true, window: None, scale: 0.125 })?;
    let square = g.mul(o, o)?;
    let loss = g.reduce_all(square, Reduction::Mean)?;
    for (i, gradient) in g.gradients(loss, &[q, k, v])?.into_iter().enumerate() {
        g.output(&format!("g{i}"), gradient);
    }
    Ok(loss)
}

fn planned(write: impl FnOnce(&mut Graph) -> Result<Value>) -> Result<Work> {
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
