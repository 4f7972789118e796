//! The read of an episodic memory: every token attends to the last snapshots that were taken, every so many tokens, strictly
//! before it, and to a null slot that lets it abstain. It is attention over a strided band: the kernels are those of
//! [`super::attention`] with another rule of what is seen (`kernels_cpu::attention::Slots`).

use super::attention::{EXP_ULPS, lower};
use super::{Case, Graph, Op, Sample, Spec, Values};
use crate::device::gpu::Lowering;
use crate::device::{Cost, CpuCall, Kernel, Unsupported};
use crate::graph::{Gradient, Value};
use crate::tensor::{DType, RefTensor, TensorType};
use crate::{Error, Result};
use kernels_cpu::attention::{AttentionShape, Slots};
use std::ops::Range;

/// Inputs q [B, T, D], k and v [B, S, D], optionally `place` i32 [2]; outputs o [B, T, D] and lse [B, T].
///
/// Row r of k and v is slot j = r + `place[1]`, query i stands at position t = i + `place[0]` (both 0 without `place`). The
/// token at t reads the last `slots` slots that are ready, those with `every j + ready <= t` and j >= 0, as far as their rows
/// are there. With s_j = scale q . k_j, p_j = e^s_j / (1 + sum of e^s): o = sum of p_j v_j, and lse = ln(1 + sum of e^s).
/// Positions stay below 2^30: a longer text may count them from any multiple of `every`, and slots with them, once
/// `slots` slots lie behind.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EpisodicRead {
    /// Tokens from one slot to the next.
    pub every: usize,
    /// Slots that a token reads at most: the ring's capacity.
    pub slots: usize,
    /// Tokens from the first one of a slot to its first reader: 1 for a snapshot of that token, `every` for the mean of the
    /// `every` tokens of the slot.
    pub ready: usize,
    /// Factor on the scores, usually `1 / sqrt(D)`.
    pub scale: f32,
}

/// Inputs q, k, v, the read's outputs o and lse, the gradient of o, and `place` where the read has it; outputs the gradients
/// of q, k and v. With P = exp(scale q k' - lse): dV = P' dO, dS = P * (dO V' - rowsum(dO * O)), dQ = scale dS K,
/// dK = scale dS' Q. The null slot has nothing to learn.
#[derive(Clone, Debug)]
pub struct EpisodicReadGrad(pub EpisodicRead);

/// `every` and `ready` at most; positions are less.
const LONGEST: usize = 1 << 24;

impl EpisodicRead {
    /// As an attention with one head. `place`: position of query 0 and slot of row 0.
    fn shape(&self, q: &[usize], k: &[usize], place: [i64; 2]) -> AttentionShape {
        let EpisodicRead { every, slots: capacity, ready, scale } = *self;
        let slots = Some(Slots { every, capacity, ready, position: place[0], first_slot: place[1] });
        let (batch, queries, keys, head_dim) = (q[0], q[1], k[1], q[2]);
        AttentionShape {
            batch,
            queries,
            keys,
            heads: 1,
            kv_heads: 1,
            head_dim,
            causal: true,
            window: None,
            scale,
            slots,
        }
    }

    /// The rows that the token at `position` reads, of `rows` from slot `first` on. The definition, slot by slot.
    fn read(&self, position: i64, first: i64, rows: usize) -> Vec<usize> {
        let ready = |slot: i64| self.every as i64 * slot + self.ready as i64 <= position;
        let newer = |slot: i64| (slot + 1..).take_while(|j| ready(*j)).take(self.slots).count();
        let row = |r: &usize| {
            let slot = first + *r as i64;
            slot >= 0 && ready(slot) && newer(slot) < self.slots
        };
        (0..rows).filter(row).collect()
    }

    /// For every query its row of q and the rows of k that it reads, of all batch rows.
    fn each_query(
        &self,
        [q, k]: [&RefTensor; 2],
        place: Option<&RefTensor>,
        mut visit: impl FnMut(usize, &mut dyn Iterator<Item = usize>),
    ) {
        let (position, first) = place.map_or((0, 0), |p| (p.data[0] as i64, p.data[1] as i64));
        let (batch, queries, keys) = (q.shape[0], q.shape[1], k.shape[1]);
        for i in 0..queries {
            let rows = self.read(position + i as i64, first, keys);
            for b in 0..batch {
                visit(b * queries + i, &mut rows.iter().map(|r| b * keys + r));
            }
        }
    }

    fn place(call: &CpuCall, input: usize) -> [i64; 2] {
        if call.inputs.len() > input { [0, 1].map(|i| i64::from(call.i32(input)[i])) } else { [0; 2] }
    }

    /// Scores computed where nothing is placed.
    fn pairs(&self, q: &TensorType, k: &TensorType) -> f64 {
        let slots = self.shape(&q.shape, &k.shape, [0; 2]).slots.expect("this attention has slots");
        let rows = k.shape[1] as i64;
        let row = |t: usize| {
            let (low, high) = slots.readable(t as i64);
            (high.min(rows) - low).max(0) as f64
        };
        (0..q.shape[1]).map(row).sum::<f64>() * q.shape[0] as f64
    }
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

fn row_of(d: usize, row: usize) -> Range<usize> {
    row * d..(row + 1) * d
}

impl Kernel for EpisodicRead {
    fn name(&self) -> &'static str {
        "episodic_read"
    }

    fn reference(&self, inputs: &[&RefTensor], outputs: &[TensorType]) -> Vec<RefTensor> {
        let [q, k, v] = [inputs[0], inputs[1], inputs[2]];
        let (d, scale) = (q.shape[2], self.scale as f64);
        let [mut o, mut lse] = std::array::from_fn(|i| RefTensor::zeros(&outputs[i].shape));
        self.each_query([q, k], inputs.get(3).copied(), |i, rows| {
            let rows: Vec<usize> = rows.collect();
            let query = &q.data[row_of(d, i)];
            let scores: Vec<f64> = rows.iter().map(|j| scale * dot(query, &k.data[row_of(d, *j)])).collect();
            let max = scores.iter().fold(0.0f64, |m, s| m.max(*s));
            let sum: f64 = (-max).exp() + scores.iter().map(|s| (s - max).exp()).sum::<f64>();
            lse.data[i] = max + sum.ln();
            for (j, s) in rows.iter().zip(&scores) {
                for c in 0..d {
                    o.data[i * d + c] += (s - max).exp() / sum * v.data[j * d + c];
                }
            }
        });
        vec![o, lse]
    }

    fn cpu(&self, call: &mut CpuCall) -> Result<()> {
        let s = self.shape(&call.input(0).shape, &call.input(1).shape, Self::place(call, 3));
        let (o, lse) = (call.out_f32(0), call.out_f32(1));
        kernels_cpu::attention::attention_forward(&s, call.f32(0), call.f32(1), call.f32(2), None, o, lse);
        Ok(())
    }

    fn gpu(&self, lowering: &mut Lowering) -> Result<(), Unsupported> {
        let shape = self.shape(&lowering.input(0).shape, &lowering.input(1).shape, [0; 2]);
        lower(lowering, shape)
    }
}

impl Op for EpisodicRead {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, String> {
        let [q, k, v, rest @ ..] = inputs else { return Err("q, k and v are needed".into()) };
        if [q, k, v].iter().any(|t| t.dtype != DType::F32 || t.rank() != 3) || k != v {
            return Err(format!("q must be f32 [B, T, D], k and v f32 [B, S, D], not {q}, {k} and {v}"));
        }
        if q.shape[0] != k.shape[0] || q.shape[2] != k.shape[2] {
            return Err(format!("q {q} and k {k} differ in batch or width"));
        }
        if q.shape[1] == 0 || k.shape[1] == 0 {
            return Err(format!(
                "q {q} and k {k} need at least one token and one row; rows of slots that are not there yet may hold anything"
            ));
        }
        if !(1..=256).contains(&q.shape[2]) {
            return Err(format!("a slot is {} wide, which is not in 1..=256", q.shape[2]));
        }
        if self.every == 0 || self.slots == 0 {
            return Err("slots are at least one token apart, and at least one is read".into());
        }
        if self.every > LONGEST || self.ready > LONGEST {
            return Err(format!("slots {} tokens apart, ready after {}: at most {LONGEST}", self.every, self.ready));
        }
        match rest {
            [] => {}
            [place] if *place == TensorType::i32(&[2]) => {}
            _ => return Err("the place must be one i32[2]: position of query 0, slot of row 0".into()),
        }
        Ok(vec![q.clone(), TensorType::f32(&q.shape[..2])])
    }

    fn gradient(&self, cx: &mut Gradient) -> Result<Vec<Option<Value>>> {
        if cx.has_grad(1) {
            return Err(Error::Graph("the logarithms of the read's denominators (output 1) have no gradient".into()));
        }
        let mut operands = cx.inputs[..3].to_vec();
        operands.extend([cx.outputs[0], cx.outputs[1], cx.grad(0)]);
        operands.extend(&cx.inputs[3..]);
        let written = cx.graph.apply(EpisodicReadGrad(*self), &operands)?;
        let mut gradients: Vec<Option<Value>> = written.into_iter().map(Some).collect();
        gradients.resize(cx.inputs.len(), None);
        Ok(gradients)
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        cost(4.0 * self.pairs(&inputs[0], &inputs[1]), inputs, outputs)
    }
}

/// `each`: FLOPs of one score for one element of a slot.
fn cost(each: f64, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
    let bytes = |types: &[TensorType]| types.iter().map(|t| t.bytes() as f64).sum();
    let flops = each * inputs[0].shape[2] as f64;
    Cost { flops, bytes_read: bytes(inputs), bytes_written: bytes(outputs) }
}

impl Kernel for EpisodicReadGrad {
    fn name(&self) -> &'static str {
        "episodic_read_grad"
    }

    fn reference(&self, inputs: &[&RefTensor], outputs: &[TensorType]) -> Vec<RefTensor> {
        let [q, k, v, o, lse, d_o] = std::array::from_fn(|i| inputs[i]);
        let (d, scale) = (q.shape[2], self.0.scale as f64);
        let [mut dq, mut dk, mut dv] = std::array::from_fn(|i| RefTensor::zeros(&outputs[i].shape));
        self.0.each_query([q, k], inputs.get(6).copied(), |i, rows| {
            let (query, wanted) = (&q.data[row_of(d, i)], &d_o.data[row_of(d, i)]);
            let delta = dot(&o.data[row_of(d, i)], wanted);
            for j in rows {
                let (key, value) = (&k.data[row_of(d, j)], &v.data[row_of(d, j)]);
                let p = (scale * dot(query, key) - lse.data[i]).exp();
                let ds = scale * p * (dot(wanted, value) - delta);
                for c in 0..d {
                    dq.data[i * d + c] += ds * key[c];
                    dk.data[j * d + c] += ds * query[c];
                    dv.data[j * d + c] += p * wanted[c];
                }
            }
        });
        vec![dq, dk, dv]
    }

    fn cpu(&self, call: &mut CpuCall) -> Result<()> {
        let s = self.0.shape(&call.input(0).shape, &call.input(1).shape, EpisodicRead::place(call, 6));
        let [q, k, v, o, lse, d_o] = std::array::from_fn(|i| call.f32(i));
        let (dq, dk, dv) = (call.out_f32(0), call.out_f32(1), call.out_f32(2));
        kernels_cpu::attention_grad::attention_backward(&s, q, k, v, o, lse, None, d_o, dq, dk, dv);
        Ok(())
    }

    fn gpu(&self, lowering: &mut Lowering) -> Result<(), Unsupported> {
        let shape = self.0.shape(&lowering.input(0).shape, &lowering.input(1).shape, [0; 2]);
        super::attention_grad::lower(lowering, shape)
    }
}

impl Op for EpisodicReadGrad {
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

    fn gradient(&self, _: &mut Gradient) -> Result<Vec<Option<Value>>> {
        Err(Error::Graph("the second derivative of episodic_read is not implemented".into()))
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        // Scores and dP once, and three products with P and dS.
        cost(10.0 * self.0.pairs(&inputs[0], &inputs[1]), inputs, outputs)
    }
}

impl Graph {
    /// What each of the queries `q [B, T, D]` reads from the slots `k`, `v` `[B, S, D]`, with `place` i32 `[2]` where the first
    /// query or the first row is not the text's first: `[B, T, D]`. See [`EpisodicRead`].
    pub fn episodic_read(
        &mut self,
        q: Value,
        k: Value,
        v: Value,
        place: Option<Value>,
        op: EpisodicRead,
    ) -> Result<Value> {
        let mut operands = vec![q, k, v];
        operands.extend(place);
        Ok(self.apply(op, &operands)?[0])
    }
}

pub fn specs() -> Vec<Spec> {
    vec![
        Spec::new("episodic_read", || cases(forward)).timed(|| timed(forward)),
        Spec::new("episodic_read_grad", || cases(backward)).timed(|| timed(backward)),
    ]
}

/// Batch, time, rows, width.
type Size = [usize; 4];
type Make = fn(EpisodicRead, Size, Option<[i64; 2]>, f64) -> Case;

fn operands(op: &EpisodicRead, size: Size, place: Option<[i64; 2]>, deviation: f64) -> (String, Vec<Sample>) {
    let [b, t, s, d] = size;
    let EpisodicRead { every, slots, ready, .. } = op;
    let label = format!("{size:?} {slots} slots every {every} ready {ready} place {place:?} sd {deviation}");
    let normal = |shape: &[usize]| Sample::new(shape, Values::Normal(deviation));
    (label, vec![normal(&[b, t, d]), normal(&[b, s, d]), Sample::normal(&[b, s, d])])
}

fn place_operand(place: Option<[i64; 2]>) -> Option<Sample> {
    place.map(|p| Sample::typed(DType::I32, &[2], Values::Fixed(p.map(|x| x as f64).to_vec())))
}

fn forward(op: EpisodicRead, size: Size, place: Option<[i64; 2]>, deviation: f64) -> Case {
    let (label, mut inputs) = operands(&op, size, place, deviation);
    inputs.extend(place_operand(place));
    Case::new(label, op, inputs).ulps(EXP_ULPS)
}

fn backward(op: EpisodicRead, size: Size, place: Option<[i64; 2]>, deviation: f64) -> Case {
    let (label, mut inputs) = operands(&op, size, place, deviation);
    let [b, t, _, d] = size;
    // Any lse is a legal operand; these keep the probabilities below one.
    let lse = Values::Uniform(4.0 * deviation, 6.0 * deviation);
    inputs.extend([Sample::normal(&[b, t, d]), Sample::new(&[b, t], lse), Sample::normal(&[b, t, d])]);
    inputs.extend(place_operand(place));
    Case::new(label, EpisodicReadGrad(op), inputs).ulps(EXP_ULPS).forward_only()
}

fn op(slots: usize, every: usize, ready: usize, d: usize) -> EpisodicRead {
    EpisodicRead { every, slots, ready, scale: 1.0 / (d as f32).sqrt() }
}

/// The presets' memories in training, a long text in one piece, a segment of one that streams, and one token.
fn timed(make: Make) -> Vec<Case> {
    let mut cases: Vec<Case> = [
        ([12, 64, 16, 24], 8, 4),
        ([12, 256, 32, 48], 32, 8),
        ([8, 1024, 128, 96], 128, 8),
        ([1, 4096, 512, 96], 128, 8),
    ]
    .into_iter()
    .map(|(size, slots, every)| make(op(slots, every, 1, size[3]), size, None, 1.0))
    .collect();
    cases.push(make(op(128, 8, 1, 96), [1, 512, 192, 96], Some([8192, 896]), 1.0));
    cases.push(make(op(128, 8, 1, 96), [1, 1, 129, 96], Some([8200, 897]), 1.0));
    cases
}

fn cases(make: Make) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |size: Size, slots: usize, every: usize, ready: usize, place: Option<[i64; 2]>| {
        cases.push(make(op(slots, every, ready, size[3]), size, place, 1.0));
    };
    add([1, 1, 1, 1], 1, 1, 1, None);
    add([2, 40, 5, 8], 3, 8, 1, None);
    add([2, 37, 10, 24], 2, 4, 1, None);
    // More rows than the text has slots, and fewer; a mean is ready later.
    add([1, 33, 20, 6], 5, 4, 1, None);
    add([1, 50, 4, 16], 6, 5, 5, None);
    add([2, 19, 19, 7], 1, 1, 1, None);
    add([1, 65, 65, 5], 70, 1, 1, None);
    add([1, 130, 11, 12], 1, 12, 12, None);
    // Segments of a stream: rows before the text, rows that are missing, all rows too old, one token.
    add([2, 16, 7, 8], 3, 4, 1, Some([0, -3]));
    add([2, 21, 9, 8], 3, 4, 1, Some([32, 5]));
    add([1, 9, 4, 13], 4, 3, 3, Some([300, 97]));
    add([1, 9, 4, 4], 4, 3, 1, Some([300, 2]));
    add([1, 9, 4, 4], 4, 3, 1, Some([3, 50]));
    add([3, 1, 9, 24], 8, 4, 1, Some([1_000_000_001, 249_999_992]));
    add([1, 5, 3, 8], 1 << 40, 1 << 24, 1, Some([(1 << 24) - 1, -1]));
    // Several tiles of rows and queries, and widths beyond what registers hold.
    add([1, 300, 150, 24], 40, 2, 1, None);
    add([1, 70, 36, 132], 9, 2, 1, None);
    add([1, 20, 10, 67], 9, 2, 1, None);
    add([0, 9, 3, 8], 3, 4, 1, None);
    // Above 1 MiB in all.
    add([9, 400, 100, 96], 32, 4, 1, None);
    cases
}
