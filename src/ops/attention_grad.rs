//! The gradient of attention: probabilities are recomputed from `lse`, tile by tile (Dao et al. 2022, algorithm 4).

use super::attention::{Attention, EXP_ULPS, Stage, batch_bytes, rows_part, settings};
use super::blocks::{any_half, by_rows, part};
use super::{Case, Op, Sample, Spec, Values};
use crate::device::gpu::{Buf, Lowering};
use crate::device::{Cost, CpuCall, Kernel, Unsupported};
use crate::graph::{Gradient, Storage, Value};
use crate::tensor::{DType, RefTensor, TensorType};
use crate::{Error, Result};
use kernels_cpu::attention::AttentionShape;

/// Inputs: q, k, v, the attention's outputs o and lse, the gradient of o, and `key_range` where the attention has it.
/// Outputs: the gradients of q, k and v. With P = exp(scale q k' - lse), dP = dO V' and delta = rowsum(dO * O):
/// dV = P' dO, dS = P * (dP - delta), dQ = scale dS K, dK = scale dS' Q.
#[derive(Clone, Debug)]
pub struct AttentionGrad(pub Attention);

/// Writes the dispatches of a call with operands q, k, v, o, lse, the gradient of o and, where there is one, the range of keys
/// (with slots: the place), and results dq, dk, dv.
pub(super) fn lower(lowering: &mut Lowering, shape: AttentionShape) -> Result<(), Unsupported> {
    let [q, kv, lse] = batch_bytes(&shape);
    // lse and delta side by side: one binding instead of two.
    let stats = lowering.scratch(2 * lse * shape.batch as u64);
    let ranged = (lowering.inputs() > 6).then_some(Buf::In(6));
    let dim = shape.head_dim as f64;
    let stage = |name, rows, heads, flops, ranged| Stage { name, shape, rows, heads, flops, ranged };
    let delta = stage("delta", shape.queries, shape.heads, 2.0 * dim / shape.keys.max(1) as f64, None);
    let dq = stage("dq", shape.queries, shape.heads, 6.0 * dim, ranged);
    let dkv = stage("dkv", shape.keys, shape.kv_heads, 8.0 * dim, ranged);
    for batches in lowering.chunks(shape.batch, &[q, kv, lse, 2 * lse], 0.0)? {
        let read = |lowering: &Lowering, buf, bytes| lowering.read_part(buf, rows_part(&batches, bytes));
        let write = |lowering: &Lowering, buf, bytes| lowering.write_part(buf, rows_part(&batches, bytes));
        let binds = vec![
            read(lowering, Buf::In(3), q),
            read(lowering, Buf::In(5), q),
            read(lowering, Buf::In(4), lse),
            write(lowering, stats, 2 * lse),
        ];
        delta.launch(lowering, batches.clone(), binds)?;
        let operands = [
            read(lowering, Buf::In(0), q),
            read(lowering, Buf::In(1), kv),
            read(lowering, Buf::In(2), kv),
            read(lowering, Buf::In(5), q),
            read(lowering, stats, 2 * lse),
        ];
        let mut binds = operands.to_vec();
        binds.push(write(lowering, Buf::Out(0), q));
        dq.launch(lowering, batches.clone(), binds)?;
        let mut binds = operands.to_vec();
        binds.extend([write(lowering, Buf::Out(1), kv), write(lowering, Buf::Out(2), kv)]);
        dkv.launch(lowering, batches.clone(), binds)?;
    }
    Ok(())
}

impl Kernel for AttentionGrad {
    fn name(&self) -> &'static str {
        "attention_grad"
    }

    fn reference(&self, inputs: &[&RefTensor], outputs: &[TensorType]) -> Vec<RefTensor> {
        let [q, k, v, o, lse, d_o] = std::array::from_fn(|i| &inputs[i].data);
        let s = self.0.shape(&inputs[0].shape, &inputs[1].shape);
        let (d, scale) = (s.head_dim, self.0.scale as f64);
        let [mut dq, mut dk, mut dv] = std::array::from_fn(|i| RefTensor::zeros(&outputs[i].shape));
        self.0.each_row(&s, inputs.get(6).copied(), |at, row, keys, kv| {
            let delta: f64 = (0..d).map(|c| o[at + c] * d_o[at + c]).sum();
            for at_key in keys.iter().map(|&j| kv(j)) {
                let score = scale * (0..d).map(|c| q[at + c] * k[at_key + c]).sum::<f64>();
                let p = (score - lse[row]).exp();
                let dp: f64 = (0..d).map(|c| d_o[at + c] * v[at_key + c]).sum();
                let ds = p * (dp - delta) * scale;
                for c in 0..d {
                    dq.data[at + c] += ds * k[at_key + c];
                    dk.data[at_key + c] += ds * q[at + c];
                    dv.data[at_key + c] += p * d_o[at + c];
                }
            }
        });
        vec![dq, dk, dv]
    }

    fn cpu(&self, call: &mut CpuCall) -> Result<()> {
        let s = self.0.shape(&call.input(0).shape, &call.input(1).shape);
        let range = (call.inputs.len() > 6).then(|| call.i32(6));
        if any_half(call) {
            let n = s.batch.max(1);
            let (q, kv, lse) = (s.q_len() / n, s.kv_len() / n, s.lse_len() / n);
            let inputs = [part(0, q), part(1, kv), part(2, kv), part(3, q), part(4, lse), part(5, q)];
            let outputs = [part(0, q), part(1, kv), part(2, kv)];
            by_rows(call, s.batch, 1, inputs, outputs, |rows, [q, k, v, o, lse, d_o], [dq, dk, dv]| {
                let range = range.map(|r| &r[2 * rows.start..2 * rows.end]);
                let s = AttentionShape { batch: rows.len(), ..s };
                kernels_cpu::attention_grad::attention_backward(&s, q, k, v, o, lse, range, d_o, dq, dk, dv);
            });
            return Ok(());
        }
        let [q, k, v, o, lse, d_o] = std::array::from_fn(|i| call.f32(i));
        let (dq, dk, dv) = (call.out_f32(0), call.out_f32(1), call.out_f32(2));
        kernels_cpu::attention_grad::attention_backward(&s, q, k, v, o, lse, range, d_o, dq, dk, dv);
        Ok(())
    }

    fn gpu(&self, lowering: &mut Lowering) -> Result<(), Unsupported> {
        let shape = self.0.shape(&lowering.input(0).shape, &lowering.input(1).shape);
        lower(lowering, shape)
    }
}

impl Op for AttentionGrad {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, String> {
        let [q, k, v, o, lse, d_o, rest @ ..] = inputs else {
            return Err("q, k, v, o, lse and the gradient of o are needed".into());
        };
        let mut forward = vec![q.clone(), k.clone(), v.clone()];
        forward.extend(rest.iter().cloned());
        let outputs = self.0.infer(&forward)?;
        if o != q || d_o != q || *lse != outputs[1] {
            return Err(format!("o and its gradient must be {q}, lse {}", outputs[1]));
        }
        Ok(forward[..3].to_vec())
    }

    fn storage(&self, _: &[TensorType]) -> Storage {
        Storage { reads: vec![0, 1, 2, 3, 5], writes: vec![0, 1, 2], ..Storage::default() }
    }

    fn gradient(&self, _: &mut Gradient) -> Result<Vec<Option<Value>>> {
        Err(Error::Graph("the second derivative of attention is not implemented".into()))
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        let bytes = |types: &[TensorType]| types.iter().map(|t| t.bytes() as f64).sum();
        // Scores and dP once, and three products with P and dS; GPUs recompute the first two for dK and dV.
        let flops = 10.0 * inputs[0].shape[3] as f64 * self.0.pairs(&inputs[0], &inputs[1]);
        Cost { flops, bytes_read: bytes(inputs), bytes_written: bytes(outputs) }
    }
}

pub fn specs() -> Vec<Spec> {
    vec![Spec::new("attention_grad", cases).timed(sizes)]
}

fn case(s: super::attention::Setting) -> Case {
    let [b, tq, _, h, _, d] = s.size;
    let mut inputs = s.operands();
    // Any lse is a legal operand; these keep the probabilities below one.
    let scores = s.deviation * s.deviation;
    let lse = Values::Uniform(4.0 * scores, 6.0 * scores);
    inputs.extend([Sample::normal(&[b, tq, h, d]), Sample::new(&[b, h, tq], lse), Sample::normal(&[b, tq, h, d])]);
    inputs.extend(s.range_operand());
    Case::new(s.label, AttentionGrad(s.op), inputs).ulps(EXP_ULPS).forward_only()
}

fn sizes() -> Vec<Case> {
    super::attention::timed_settings().into_iter().map(case).collect()
}

fn cases() -> Vec<Case> {
    // Attention's own cases check the gradient against differences; these feed it operands no attention made. With huge scores
    // the two are one: only a consistent lse keeps probabilities finite.
    let all: Vec<Case> = settings().into_iter().filter(|s| s.deviation == 1.0).map(case).collect();
    let halves = [DType::Bf16, DType::F16].into_iter().flat_map(|dtype| {
        let stored = move |c: &Case| c.clone().stored(dtype, &[0, 1, 2, 3, 5], &[0, 1, 2]);
        let mixed = all[5].clone().stored(dtype, &[0, 2], &[1]);
        all.iter().step_by(3).map(stored).chain([mixed]).collect::<Vec<_>>()
    });
    all.iter().cloned().chain(halves).collect()
}
