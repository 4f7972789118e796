//! Products with a packed matrix.

use super::{Activations, Packing, bytes, check, gpu, numbers};
use crate::Result;
use crate::device::gpu::Lowering;
use crate::device::{Cost, CpuCall, Kernel, Unsupported};
use crate::graph::{Gradient, Graph, Op, Value};
use crate::ops::int8::quantise::{group_scale, round};
use crate::ops::matmul::{Dims, Epilogue};
use crate::tensor::{DType, RefTensor, TensorType};
use kernels_cpu::packed::{self, BLOCK};
use kernels_cpu::program::Program;
use std::sync::Arc;

/// `activation(x w^T + bias) + residual`: x f32 [.., K] and a packed w [N, K] to [.., N]. Weights become f32 inside the kernel, sums are
/// f32. With [`Activations::Int8`] x is first rounded: in every block of 32 terms (the last may be shorter) to `scale q` with
/// `scale = max |x| / 127` and `q = x (1 / scale)` to the nearest integer, ties to even, in f32 arithmetic on every executor; where the
/// weights are 8-bit or 4-bit integers the products of a block are summed as integers.
#[derive(Clone, Debug)]
pub struct PackedLinear {
    pub packing: Packing,
    pub activations: Activations,
    pub epilogue: Epilogue,
}

impl PackedLinear {
    pub fn new(packing: Packing, activations: Activations) -> Self {
        PackedLinear { packing, activations, epilogue: Epilogue::default() }
    }

    fn dims(&self, x: &[usize]) -> Dims {
        let Packing { rows, columns, .. } = self.packing;
        Dims { batch: 1, m: x[..x.len() - 1].iter().product(), n: rows, k: columns, a_batch: 0, b_batch: 0 }
    }

    fn shape(&self, inputs: &[TensorType]) -> Result<Vec<usize>, String> {
        let [x, w, ..] = inputs else { return Err("x and a packed matrix are needed".into()) };
        check(&self.packing, w)?;
        if x.dtype != DType::F32 || x.shape.last() != Some(&self.packing.columns) {
            return Err(format!("x must be f32 [.., {}], it is {x}", self.packing.columns));
        }
        Ok([&x.shape[..x.rank() - 1], &[self.packing.rows]].concat())
    }
}

/// Rows of activations as [`Activations::Int8`] rounds them.
fn rounded(x: &[f64], columns: usize) -> Vec<f64> {
    let mut all = Vec::with_capacity(x.len());
    for block in x.chunks(columns).flat_map(|row| row.chunks(BLOCK)) {
        let (scale, inverse) = group_scale(block);
        all.extend(block.iter().map(|x| f64::from(scale) * round(*x, inverse)));
    }
    all
}

impl Kernel for PackedLinear {
    fn name(&self) -> &'static str {
        match self.activations {
            Activations::F32 => "packed_linear",
            Activations::Int8 => "packed_linear_int8",
        }
    }

    fn reference(&self, inputs: &[&RefTensor], outputs: &[TensorType]) -> Vec<RefTensor> {
        let d = self.dims(&inputs[0].shape);
        let w = numbers(&self.packing, inputs[1]);
        let x = match self.activations {
            Activations::F32 => inputs[0].data.clone(),
            Activations::Int8 => rounded(&inputs[0].data, d.k),
        };
        let mut out = RefTensor::zeros(&outputs[0].shape);
        for i in 0..d.m {
            for j in 0..d.n {
                let (at, terms) = (i * d.n + j, x[i * d.k..][..d.k].iter().zip(&w[j * d.k..]));
                out.data[at] = self.epilogue.reference(terms.map(|(x, w)| x * w).sum(), inputs, j, at);
            }
        }
        vec![out]
    }

    fn cpu(&self, call: &mut CpuCall) -> Result<()> {
        let m = self.dims(&call.input(0).shape).m;
        let (x, w, y, epilogue) = (call.f32(0), bytes(call.i8(1)), call.out_f32(0), self.epilogue.on_cpu(call));
        packed::linear(&self.packing, self.activations, m, x, w, y, epilogue);
        Ok(())
    }

    fn gpu(&self, lowering: &mut Lowering) -> Result<(), Unsupported> {
        let dims = self.dims(&lowering.input(0).shape);
        gpu::linear(self, dims, lowering)
    }
}

impl Op for PackedLinear {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, String> {
        let expected = 2 + self.epilogue.operands();
        if inputs.len() != expected {
            return Err(format!("{expected} operands are needed"));
        }
        let shape = self.shape(inputs)?;
        self.epilogue.check(inputs, &shape)?;
        Ok(vec![TensorType::f32(&shape)])
    }

    /// The gradient with respect to x, as if it had not been rounded: the weights are constants.
    fn gradient(&self, cx: &mut Gradient) -> Result<Vec<Option<Value>>> {
        let (x, w, g) = (cx.inputs[0], cx.inputs[1], cx.grad(0));
        let product = PackedLinear { epilogue: self.epilogue.before(2), ..self.clone() };
        let (g, mut result) = self.epilogue.gradient(cx, g, |graph, bias| {
            let operands: Vec<Value> = [x, w].into_iter().chain(bias).collect();
            graph.apply1(product, &operands)
        })?;
        if cx.needs(0) {
            let wide = cx.graph.unpack(w, self.packing)?;
            let shape = cx.graph.shape(x).to_vec();
            let d = self.dims(&shape);
            let g = cx.graph.reshape(g, &[d.m, d.n])?;
            let dx = cx.graph.matmul(g, wide)?;
            result[0] = Some(cx.graph.reshape(dx, &shape)?);
        }
        Ok(result)
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        let sum = |ts: &[TensorType]| ts.iter().map(|t| t.bytes() as f64).sum::<f64>();
        let flops = outputs[0].elements() as f64 * (2.0 * self.packing.columns as f64 + self.epilogue.steps() as f64);
        Cost { flops, bytes_read: sum(inputs), bytes_written: sum(outputs) }
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
        let shape = self.shape(own).ok()?;
        let epilogue = Epilogue::recognise(consumer, position, inputs, &shape, 2)?;
        Some(Arc::new(PackedLinear { epilogue, ..self.clone() }))
    }
}

impl Graph {
    /// `x` [.., K] times the transpose of the packed matrix `w` [N, K]: [.., N].
    pub fn packed_linear(&mut self, x: Value, w: Value, packing: Packing, activations: Activations) -> Result<Value> {
        self.apply1(PackedLinear::new(packing, activations), &[x, w])
    }
}
