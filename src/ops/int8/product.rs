//! Products with int8 weights: `x [.., K]` times the transpose of `scale * q [N, K]`.

use super::check;
use super::quantise::{Quantising, constant_scales, group_scale, round};
use crate::Result;
use crate::device::gpu::{Buf, Lowering, Params};
use crate::device::{Cost, CpuCall, Kernel, Unsupported};
use crate::graph::{Gradient, Graph, Op, Value};
use crate::ops::matmul::gpu::{self, Product, Weights, cut};
use crate::ops::matmul::{Dims, Epilogue, epilogue};
use crate::tensor::{DType, RefTensor, TensorType};
use kernels_cpu::int8;
use kernels_cpu::program::Program;
use minijinja::context;
use std::sync::Arc;

/// `activation(x w^T + bias) + residual` with `w = scales * q`: x f32 [.., K], q int8 [N, K], scales f32 [N, ceil(K / group)], result
/// [.., N]. Weights are multiplied by their scales inside the kernel; sums are f32.
#[derive(Clone, Debug)]
pub struct MatmulQ8 {
    pub group: usize,
    pub epilogue: Epilogue,
}

/// As `MatmulQ8` without an epilogue, with `x` quantised too, one scale a row, and products summed as integers:
/// `y = sx sum_g sw_g (sum_{k in g} qx qw)`. Every executor sums the same integers.
#[derive(Clone, Debug)]
pub struct MatmulQ8Q8 {
    pub group: usize,
}

/// Integer sums of this many products fit 31 bits.
const MAX_GROUP: usize = 1 << 16;

fn dims(x: &[usize], q: &[usize]) -> Dims {
    Dims { batch: 1, m: x[..x.len() - 1].iter().product(), n: q[0], k: q[1], a_batch: 0, b_batch: 0 }
}

fn infer(inputs: &[TensorType], group: usize) -> Result<Vec<usize>, String> {
    let [x, q, scales, ..] = inputs else { return Err("x, int8 weights and their scales are needed".into()) };
    check(q, scales, group)?;
    if x.dtype != DType::F32 || x.rank() == 0 || q.rank() != 2 {
        return Err("x must be f32 [.., K] and the weights int8 [N, K]".into());
    }
    let (k, w) = (x.shape[x.rank() - 1], q.shape[1]);
    if k != w {
        return Err(format!("the inner lengths differ: {k} and {w}"));
    }
    Ok([&x.shape[..x.rank() - 1], &[q.shape[0]]].concat())
}

/// The gradient with respect to x: the weights are constants.
fn x_gradient(cx: &mut Gradient, g: Value, group: usize) -> Result<Option<Value>> {
    constant_scales(cx, 2)?;
    let w = cx.graph.dequantize(cx.inputs[1], cx.inputs[2], group)?;
    cx.graph.matmul(g, w).map(Some)
}

fn cost(inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
    let sum = |ts: &[TensorType]| ts.iter().map(|t| t.bytes() as f64).sum::<f64>();
    let k = inputs[1].shape[1] as f64;
    Cost { flops: 2.0 * k * outputs[0].elements() as f64, bytes_read: sum(inputs), bytes_written: sum(outputs) }
}

impl Kernel for MatmulQ8 {
    fn name(&self) -> &'static str {
        "matmul_q8"
    }

    fn reference(&self, inputs: &[&RefTensor], outputs: &[TensorType]) -> Vec<RefTensor> {
        let d = dims(&inputs[0].shape, &inputs[1].shape);
        let groups = d.k.div_ceil(self.group);
        let mut out = RefTensor::zeros(&outputs[0].shape);
        for i in 0..d.m {
            for j in 0..d.n {
                let term = |l: usize| {
                    let w = inputs[1].data[j * d.k + l] * inputs[2].data[j * groups + l / self.group];
                    inputs[0].data[i * d.k + l] * w
                };
                let (at, sum) = (i * d.n + j, (0..d.k).map(term).sum());
                out.data[at] = self.epilogue.reference(sum, inputs, j, at);
            }
        }
        vec![out]
    }

    fn cpu(&self, call: &mut CpuCall) -> Result<()> {
        let d = dims(&call.input(0).shape, &call.input(1).shape);
        let y = call.out_f32(0);
        int8::matmul_q8(d.m, d.n, d.k, self.group, call.f32(0), call.i8(1), call.f32(2), y);
        epilogue::finish(d.m, d.n, y, self.epilogue.on_cpu(call));
        Ok(())
    }

    fn gpu(&self, lowering: &mut Lowering) -> Result<(), Unsupported> {
        let dims = dims(&lowering.input(0).shape, &lowering.input(1).shape);
        let MatmulQ8 { group, epilogue } = *self;
        let product =
            Product { dims, trans_a: false, trans_b: true, epilogue, a: Buf::In(0), weights: Weights::Int8(group) };
        gpu::lower(&product, lowering)
    }
}

impl Op for MatmulQ8 {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, String> {
        let expected = 3 + self.epilogue.operands();
        if inputs.len() != expected {
            return Err(format!("{expected} operands are needed"));
        }
        let shape = infer(inputs, self.group)?;
        self.epilogue.check(inputs, &shape)?;
        Ok(vec![TensorType::f32(&shape)])
    }

    fn gradient(&self, cx: &mut Gradient) -> Result<Vec<Option<Value>>> {
        let (inputs, g) = (cx.inputs.clone(), cx.grad(0));
        let product = MatmulQ8 { epilogue: self.epilogue.before(3), ..self.clone() };
        let (g, mut result) = self.epilogue.gradient(cx, g, |graph, bias| {
            let operands: Vec<Value> = inputs[..3].iter().copied().chain(bias).collect();
            graph.apply1(product, &operands)
        })?;
        if cx.needs(0) || cx.needs(2) {
            result[0] = x_gradient(cx, g, self.group)?;
        }
        Ok(result)
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        let mut cost = cost(inputs, outputs);
        cost.flops += (self.epilogue.steps() * outputs[0].elements()) as f64;
        cost
    }

    fn absorb(
        &self,
        own: &[TensorType],
        consumer: &Program,
        position: usize,
        inputs: &[TensorType],
    ) -> Option<Arc<dyn Op>> {
        if !self.epilogue.is_none() {
            return None;
        }
        let shape = infer(own, self.group).ok()?;
        let epilogue = Epilogue::recognise(consumer, position, inputs, &shape, 3)?;
        Some(Arc::new(MatmulQ8 { epilogue, ..self.clone() }))
    }
}

impl Kernel for MatmulQ8Q8 {
    fn name(&self) -> &'static str {
        "matmul_q8q8"
    }

    fn reference(&self, inputs: &[&RefTensor], outputs: &[TensorType]) -> Vec<RefTensor> {
        let d = dims(&inputs[0].shape, &inputs[1].shape);
        let groups = d.k.div_ceil(self.group);
        let mut out = RefTensor::zeros(&outputs[0].shape);
        for i in 0..d.m {
            let x = &inputs[0].data[i * d.k..(i + 1) * d.k];
            let (scale, inverse) = group_scale(x);
            let qx: Vec<f64> = x.iter().map(|x| round(*x, inverse)).collect();
            for j in 0..d.n {
                let mut sum = 0.0;
                for g in 0..groups {
                    let terms = g * self.group..((g + 1) * self.group).min(d.k);
                    let integer: f64 = terms.map(|l| qx[l] * inputs[1].data[j * d.k + l]).sum();
                    sum += integer * inputs[2].data[j * groups + g];
                }
                out.data[i * d.n + j] = f64::from(scale) * sum;
            }
        }
        vec![out]
    }

    fn cpu(&self, call: &mut CpuCall) -> Result<()> {
        let d = dims(&call.input(0).shape, &call.input(1).shape);
        int8::matmul_q8q8(d.m, d.n, d.k, self.group, call.f32(0), call.i8(1), call.f32(2), call.out_f32(0));
        Ok(())
    }

    fn gpu(&self, l: &mut Lowering) -> Result<(), Unsupported> {
        let d = dims(&l.input(0).shape, &l.input(1).shape);
        let (group, groups) = (self.group.min(d.k.max(1)), d.k.div_ceil(self.group));
        if group > MAX_GROUP {
            return Err(Unsupported(format!("a sum of {group} int8 products may exceed 31 bits")));
        }
        let stride = d.k.next_multiple_of(4);
        let rows = [4 * d.n as u64, 4 * d.k as u64, stride as u64];
        let m_cuts = cut(l, d.m, 16, &rows, 2.0 * (d.n * d.k) as f64)?;
        let columns = [d.k as u64, 4 * groups as u64];
        let whole = d.n as u64 * columns[0].max(columns[1]) <= l.caps.limits.max_binding;
        #[allow(clippy::single_range_in_vec_init, reason = "the usual list of ranges has one")]
        let n_cuts = if whole { vec![0..d.n] } else { cut(l, d.n, 16, &columns, 0.0)? };
        let most = m_cuts.iter().map(|r| r.len()).max().unwrap_or(0);
        let (q_scratch, scale_scratch) = (l.scratch((most * stride) as u64), l.scratch(4 * most as u64));
        // Quads start on whole words, and no group ends inside one.
        let aligned = d.k.is_multiple_of(4) && (group.is_multiple_of(4) || groups <= 1);
        // Few rows: invocations share a column's terms (alone on devices where barriers are slow).
        let slices = if d.m <= 4 && !l.caps.software { 16 } else { 1 };
        let packed = l.caps.features.packed_dot;
        for m in m_cuts {
            let part = |bytes: u64| m.start as u64 * bytes..m.end as u64 * bytes;
            let (q, scales) = (
                l.write_part(q_scratch, 0..(m.len() * stride) as u64),
                l.write_part(scale_scratch, 0..4 * m.len() as u64),
            );
            let x = l.read_part(Buf::In(0), part(rows[1]));
            if d.k > 0 {
                let quantising = Quantising { rows: m.len(), columns: d.k, stride, group: d.k, x, q, scales };
                quantising.dispatch(l)?;
            }
            for n in &n_cuts {
                let lines = |bytes: u64| n.start as u64 * bytes..n.end as u64 * bytes;
                let binds = [
                    l.write_part(Buf::Out(0), part(rows[0])),
                    l.read_part(q_scratch, 0..(m.len() * stride) as u64),
                    l.read_part(scale_scratch, 0..4 * m.len() as u64),
                    l.read_part(Buf::In(1), lines(columns[0])),
                    l.read_part(Buf::In(2), lines(columns[1])),
                ];
                let tiles_n = n.len().div_ceil(4);
                let tiles = m.len().div_ceil(4) * tiles_n;
                let params = Params::new().u32(m.len()).u32(n.len()).u32(d.k).u32(stride).u32(d.n).u32(n.start);
                let params = params.u32(group).u32(groups).u32(tiles_n).u32(tiles);
                let variables = context! { packed, aligned, slices };
                let label = if packed { "matmul_q8q8/packed" } else { "matmul_q8q8/plain" };
                let grid = l.line(tiles.div_ceil(64 / slices));
                l.dispatch(label, crate::shader!("int8_dot.wgsl"), variables, &binds, params, grid)?;
            }
        }
        Ok(())
    }
}

impl Op for MatmulQ8Q8 {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, String> {
        if inputs.len() != 3 {
            return Err("x, int8 weights and their scales are needed".into());
        }
        Ok(vec![TensorType::f32(&infer(inputs, self.group)?)])
    }

    /// The gradient of the product as if `x` had not been rounded.
    fn gradient(&self, cx: &mut Gradient) -> Result<Vec<Option<Value>>> {
        let g = cx.grad(0);
        Ok(vec![x_gradient(cx, g, self.group)?, None, None])
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        cost(inputs, outputs)
    }
}

impl Graph {
    /// `x` [.., K] times the transpose of int8 weights `q` [N, K] with `scales` [N, ceil(K / group)]: [.., N].
    pub fn matmul_q8(&mut self, x: Value, q: Value, scales: Value, group: usize) -> Result<Value> {
        let op = MatmulQ8 { group, epilogue: Epilogue::default() };
        self.apply1(op, &[x, q, scales])
    }
    /// As `matmul_q8`, with `x` quantised to int8 row by row and integer sums.
    pub fn matmul_q8q8(&mut self, x: Value, q: Value, scales: Value, group: usize) -> Result<Value> {
        self.apply1(MatmulQ8Q8 { group }, &[x, q, scales])
    }
}
