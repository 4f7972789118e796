//! Matrix product with optional batch axes, transposes, and an epilogue that absorbs the elementwise operators after it.

mod cases;
pub(super) mod epilogue;
pub(super) mod gpu;
mod half;
#[cfg(test)]
mod tests;

use super::{Graph, Op, Spec};
use crate::Result;
use crate::device::gpu::{Buf, Lowering};
use crate::device::{Cost, CpuCall, Kernel, Unsupported};
use crate::graph::{Gradient, Storage, Value};
use crate::tensor::{DType, RefTensor, TensorType};
pub use epilogue::Epilogue;
use kernels_cpu::gemm;
use kernels_cpu::program::Program;
use std::sync::Arc;

/// Products with fewer rows, columns or terms read f32 as it is.
const HALF_MIN: usize = 8;

/// `activation(op(a) op(b) + bias) + residual`, where `op` transposes the last two axes if asked.
///
/// `a` is [.., M, K] ([.., K, M] with `trans_a`) and `b` is [.., K, N] ([.., N, K] with `trans_b`); the result is [.., M, N]. Batch axes
/// must be equal, or one of the operands is a single matrix that serves the whole batch. A single `b` with `a` not transposed is one
/// product: the batch axes of `a` join its rows.
#[derive(Clone, Debug, Default)]
pub struct Matmul {
    pub trans_a: bool,
    pub trans_b: bool,
    pub epilogue: Epilogue,
}

/// The product as the kernels see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ops) struct Dims {
    pub batch: usize,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    /// Elements between the matrices of a batch, 0 for a single one.
    pub a_batch: usize,
    pub b_batch: usize,
}

impl Matmul {
    /// `op(a) op(b)` with no epilogue.
    pub fn new(trans_a: bool, trans_b: bool) -> Self {
        Matmul { trans_a, trans_b, ..Self::default() }
    }

    /// Whether the batch axes of `a` are rows of one product.
    fn folds(&self, b: &[usize]) -> bool {
        b.len() == 2 && !self.trans_a
    }

    /// The product's dimensions and the shape of its result.
    fn dims(&self, a: &[usize], b: &[usize]) -> Result<(Dims, Vec<usize>), String> {
        if a.len() < 2 || b.len() < 2 {
            return Err("both operands need at least two axes".into());
        }
        let (a_lead, b_lead) = (&a[..a.len() - 2], &b[..b.len() - 2]);
        let last = |s: &[usize], transposed: bool| {
            let (x, y) = (s[s.len() - 2], s[s.len() - 1]);
            if transposed { (y, x) } else { (x, y) }
        };
        let ((rows, k), (b_k, n)) = (last(a, self.trans_a), last(b, self.trans_b));
        if k != b_k {
            let (ta, tb) = (self.trans_a, self.trans_b);
            return Err(format!("the inner lengths differ: {k} and {b_k} (trans_a {ta}, trans_b {tb})"));
        }
        let a_count: usize = a_lead.iter().product();
        let b_count: usize = b_lead.iter().product();
        let (dims, lead) = if self.folds(b) {
            (Dims { batch: 1, m: a_count * rows, n, k, a_batch: 0, b_batch: 0 }, a_lead)
        } else if a_lead == b_lead {
            (Dims { batch: a_count, m: rows, n, k, a_batch: rows * k, b_batch: k * n }, a_lead)
        } else if b_lead.is_empty() {
            (Dims { batch: a_count, m: rows, n, k, a_batch: rows * k, b_batch: 0 }, a_lead)
        } else if a_lead.is_empty() {
            (Dims { batch: b_count, m: rows, n, k, a_batch: 0, b_batch: k * n }, b_lead)
        } else {
            return Err(format!("the batch axes {a_lead:?} and {b_lead:?} must be equal, or one operand have none"));
        };
        Ok((dims, [lead, &[rows, n]].concat()))
    }

    fn checked(&self, a: &[usize], b: &[usize]) -> Dims {
        self.dims(a, b).expect("infer accepted these shapes").0
    }
}

impl Kernel for Matmul {
    fn name(&self) -> &'static str {
        "matmul"
    }

    fn reference(&self, inputs: &[&RefTensor], outputs: &[TensorType]) -> Vec<RefTensor> {
        let d = self.checked(&inputs[0].shape, &inputs[1].shape);
        let (a, b) = (&inputs[0].data, &inputs[1].data);
        let mut out = RefTensor::zeros(&outputs[0].shape);
        for s in 0..d.batch {
            for i in 0..d.m {
                for j in 0..d.n {
                    let mut sum = 0.0;
                    for l in 0..d.k {
                        let x = if self.trans_a { l * d.m + i } else { i * d.k + l };
                        let y = if self.trans_b { j * d.k + l } else { l * d.n + j };
                        sum += a[s * d.a_batch + x] * b[s * d.b_batch + y];
                    }
                    let at = (s * d.m + i) * d.n + j;
                    out.data[at] = self.epilogue.reference(sum, inputs, j, at);
                }
            }
        }
        vec![out]
    }

    fn cpu(&self, call: &mut CpuCall) -> Result<()> {
        let d = self.checked(&call.input(0).shape, &call.input(1).shape);
        let (ta, tb) = (self.trans_a, self.trans_b);
        let (lda, ldb) = (if ta { d.m } else { d.k }, if tb { d.k } else { d.n });
        let epilogue = self.epilogue.on_cpu(call);
        if call.inputs.iter().chain(&call.outputs).any(|o| o.ty.dtype.is_half()) {
            half::product(self, d, call, epilogue);
            return Ok(());
        }
        let (a, b, c) = (call.f32(0), call.f32(1), call.out_f32(0));
        if d.batch == 1 {
            gemm::gemm_epilogue(ta, tb, d.m, d.n, d.k, a, lda, b, ldb, false, c, d.n, epilogue);
            return Ok(());
        }
        let (sa, sb, sc) = (d.a_batch, d.b_batch, d.m * d.n);
        gemm::gemm_batched(ta, tb, d.m, d.n, d.k, a, lda, sa, b, ldb, sb, false, c, d.n, sc, d.batch);
        epilogue::finish(d.batch * d.m, d.n, c, epilogue);
        Ok(())
    }

    fn gpu(&self, lowering: &mut Lowering) -> Result<(), Unsupported> {
        let Matmul { trans_a, trans_b, epilogue } = *self;
        let dims = self.checked(&lowering.input(0).shape, &lowering.input(1).shape);
        let (a, weights) = (Buf::In(0), gpu::Weights::F32);
        gpu::lower(&gpu::Product { dims, trans_a, trans_b, epilogue, a, weights }, lowering)
    }
}

impl Op for Matmul {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, String> {
        let expected = 2 + self.epilogue.operands();
        if inputs.len() != expected {
            return Err(format!("{expected} operands are needed"));
        }
        if inputs.iter().any(|t| t.dtype != DType::F32) {
            return Err("all operands must be f32 (int8 weights: matmul_q8)".into());
        }
        let (_, shape) = self.dims(&inputs[0].shape, &inputs[1].shape)?;
        self.epilogue.check(inputs, &shape)?;
        Ok(vec![TensorType::f32(&shape)])
    }

    fn gradient(&self, cx: &mut Gradient) -> Result<Vec<Option<Value>>> {
        let (a, b, g) = (cx.inputs[0], cx.inputs[1], cx.grad(0));
        let product = Matmul { epilogue: self.epilogue.before(2), ..self.clone() };
        let (g, mut result) = self.epilogue.gradient(cx, g, |graph, bias| {
            let operands: Vec<Value> = [a, b].into_iter().chain(bias).collect();
            graph.apply1(product, &operands)
        })?;
        let (needs_a, needs_b) = (cx.needs(0), cx.needs(1));
        let (ta, tb) = (self.trans_a, self.trans_b);
        let (a_shape, b_shape) = (cx.graph.shape(a).to_vec(), cx.graph.shape(b).to_vec());
        if needs_a {
            let d = if ta { cx.graph.matmul_t(b, g, tb, true)? } else { cx.graph.matmul_t(g, b, false, !tb)? };
            result[0] = Some(cx.graph.sum_to(d, &a_shape)?);
        }
        if needs_b {
            let (a, g) = if self.folds(&b_shape) {
                let d = self.checked(&a_shape, &b_shape);
                (cx.graph.reshape(a, &[d.m, d.k])?, cx.graph.reshape(g, &[d.m, d.n])?)
            } else {
                (a, g)
            };
            let d = if tb { cx.graph.matmul_t(g, a, true, ta)? } else { cx.graph.matmul_t(a, g, !ta, false)? };
            result[1] = Some(cx.graph.sum_to(d, &b_shape)?);
        }
        Ok(result)
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        let d = self.checked(&inputs[0].shape, &inputs[1].shape);
        let sum = |ts: &[TensorType]| ts.iter().map(|t| t.bytes() as f64).sum::<f64>();
        let results = outputs[0].elements() as f64;
        let flops = results * (2.0 * d.k as f64 + self.epilogue.steps() as f64);
        Cost { flops, bytes_read: sum(inputs), bytes_written: sum(outputs) }
    }

    fn storage(&self, inputs: &[TensorType]) -> Storage {
        let d = self.checked(&inputs[0].shape, &inputs[1].shape);
        // Making a copy of an operand pays when the product uses each of its elements several times.
        let prefers = if d.m.min(d.n).min(d.k) >= HALF_MIN { vec![0, 1] } else { vec![] };
        Storage { reads: (0..inputs.len()).collect(), writes: vec![0], prefers, gpu: false }
    }

    fn absorb(
        &self,
        own: &[TensorType],
        consumer: &Program,
        position: usize,
        inputs: &[TensorType],
    ) -> Option<Arc<dyn Op>> {
        if self.epilogue != Epilogue::default() {
            return None;
        }
        let (_, shape) = self.dims(&own[0].shape, &own[1].shape).ok()?;
        let epilogue = Epilogue::recognise(consumer, position, inputs, &shape, 2)?;
        Some(Arc::new(Matmul { epilogue, ..self.clone() }))
    }
}

impl Graph {
    /// `a` [.., M, K] times `b` [K, N] (one matrix for all of `a`) or [.., K, N] with the same batch axes: [.., M, N].
    pub fn matmul(&mut self, a: Value, b: Value) -> Result<Value> {
        self.matmul_t(a, b, false, false)
    }
    /// As `matmul`, with `a` stored as [.., K, M] if `trans_a` and `b` stored as [.., N, K] if `trans_b`.
    pub fn matmul_t(&mut self, a: Value, b: Value, trans_a: bool, trans_b: bool) -> Result<Value> {
        self.apply1(Matmul::new(trans_a, trans_b), &[a, b])
    }
}

pub fn specs() -> Vec<Spec> {
    vec![Spec::new("matmul", cases::cases).timed(cases::sizes)]
}
