//! Gated linear attention with a matrix state for each head, S_t = Diag(e^a_t) S_{t-1} + k_t' v_t, o_t = q_t S_t (Yang et
//! al. 2024), with log gates a of one number a head (`gla_head`) or one a key channel (`gla_channel`). Three forms: *naive* is
//! the reference executor's definition; *recurrent* walks time with a constant state; *chunked* multiplies matrices within
//! chunks and passes states between them. See `kernels_cpu::gla` for how gates are added up.

mod gpu;
#[cfg(test)]
mod tests;

use super::form::{self, Form, OnCpu, Recurrence};
use super::{Case, Graph, Op, Sample, Spec, Values};
use crate::device::gpu::Lowering;
use crate::device::{Cost, CpuCall, Kernel, Unsupported};
use crate::graph::{Gradient, Value};
use crate::tensor::{DType, RefTensor, TensorType};
use crate::{Error, Result};
use kernels_cpu::gla::{GlaShape, gla_backward, gla_chunked, gla_recurrent};

/// Inputs q [B, T, H, D], k [B, T, Hk, D], v [B, T, Hv, E], log gates a [B, T, H] or, with `channel_gates`, [B, T, H, D], and,
/// when `initial`, the first state [B, H, D, E]; outputs o [B, T, H, E] and the last state. Hk and Hv divide H: query head h
/// reads key head h / (H / Hk), and likewise its value head. q is not scaled here.
#[derive(Clone, Debug)]
pub struct Gla {
    pub channel_gates: bool,
    /// Time steps of a chunk; 0: the recurrent form.
    pub chunk: usize,
    pub initial: bool,
}

/// Inputs q, k, v, a, the gradients of o and of the last state and, when `initial`, the first state; outputs the gradients of
/// q, k, v, a and, when `initial`, of the first state. Always in chunks; states are computed again.
#[derive(Clone, Debug)]
pub struct GlaGrad(pub Gla);

impl Gla {
    /// Chunks keep products of matrices large and states few. With a gate for every channel the powers of e inside a chunk
    /// cost half its length for every channel and step, so that chunks are short there.
    pub fn default_chunk(channel_gates: bool) -> usize {
        if channel_gates { 16 } else { 64 }
    }

    /// Below this many steps walking is as good.
    const SHORT: usize = 8;

    /// The chunk of the gradient.
    fn chunk_back(&self) -> usize {
        if self.chunk == 0 { Self::default_chunk(self.channel_gates) } else { self.chunk }
    }

    fn shape(&self, q: &[usize], k: &[usize], v: &[usize]) -> GlaShape {
        GlaShape {
            batch: q[0],
            time: q[1],
            heads: q[2],
            key_heads: k[2],
            value_heads: v[2],
            key_dim: q[3],
            value_dim: v[3],
            channel_gates: self.channel_gates,
        }
    }

    fn op(&self, head: &'static str, channel: &'static str) -> &'static str {
        if self.channel_gates { channel } else { head }
    }

    fn flops(&self, s: &GlaShape, backward: bool) -> f64 {
        let (d, e) = (s.key_dim as f64, s.value_dim as f64);
        let chunk = if backward { self.chunk_back() } else { self.chunk }.min(s.time.max(1)) as f64;
        let each = match (backward, self.chunk) {
            (true, _) => chunk * (6.0 * d + 4.0 * e) + 10.0 * d * e,
            (false, 0) => 5.0 * d * e,
            (false, _) => 2.0 * chunk * (d + e) + 4.0 * d * e,
        };
        each * (s.batch * s.time * s.heads) as f64
    }
}

/// One head's walk in f64: where its rows are.
struct Walk<'a> {
    s: &'a GlaShape,
    b: usize,
    h: usize,
}

impl Walk<'_> {
    fn row(&self, t: usize, heads: usize, width: usize) -> usize {
        ((self.b * self.s.time + t) * heads + self.h * heads / self.s.heads) * width
    }
    fn q(&self, t: usize) -> usize {
        self.row(t, self.s.heads, self.s.key_dim)
    }
    fn k(&self, t: usize) -> usize {
        self.row(t, self.s.key_heads, self.s.key_dim)
    }
    fn v(&self, t: usize) -> usize {
        self.row(t, self.s.value_heads, self.s.value_dim)
    }
    fn o(&self, t: usize) -> usize {
        self.row(t, self.s.heads, self.s.value_dim)
    }
    /// The gate of key channel c.
    fn a(&self, t: usize, c: usize) -> usize {
        self.row(t, self.s.heads, self.s.gates()) + if self.s.channel_gates { c } else { 0 }
    }
    fn state(&self) -> std::ops::Range<usize> {
        let first = (self.b * self.s.heads + self.h) * self.s.state();
        first..first + self.s.state()
    }
}

fn each_head(s: &GlaShape, mut f: impl FnMut(Walk)) {
    (0..s.batch).for_each(|b| (0..s.heads).for_each(|h| f(Walk { s, b, h })));
}

impl Kernel for Gla {
    fn name(&self) -> &'static str {
        self.op("gla_head", "gla_channel")
    }

    fn form(&self) -> Option<&'static str> {
        Some(form::name(self.chunk))
    }

    fn reference(&self, inputs: &[&RefTensor], outputs: &[TensorType]) -> Vec<RefTensor> {
        let [q, k, v, a] = std::array::from_fn(|i| &inputs[i].data);
        let s = self.shape(&inputs[0].shape, &inputs[1].shape, &inputs[2].shape);
        let (d, e) = (s.key_dim, s.value_dim);
        let [mut o, mut last] = std::array::from_fn(|i| RefTensor::zeros(&outputs[i].shape));
        if self.initial {
            last.data.copy_from_slice(&inputs[4].data);
        }
        each_head(&s, |w| {
            let state = &mut last.data[w.state()];
            for t in 0..s.time {
                for c in 0..d {
                    for x in 0..e {
                        let at = c * e + x;
                        state[at] = a[w.a(t, c)].exp() * state[at] + k[w.k(t) + c] * v[w.v(t) + x];
                        o.data[w.o(t) + x] += q[w.q(t) + c] * state[at];
                    }
                }
            }
        });
        vec![o, last]
    }

    fn cpu(&self, call: &mut CpuCall) -> Result<()> {
        let s = self.shape(&call.input(0).shape, &call.input(1).shape, &call.input(2).shape);
        let [q, k, v, a] = std::array::from_fn(|i| call.f32(i));
        let first = self.initial.then(|| call.f32(4));
        let (o, last) = (call.out_f32(0), call.out_f32(1));
        match self.chunk {
            0 => gla_recurrent(&s, q, k, v, a, first, o, last),
            chunk => gla_chunked(&s, chunk, q, k, v, a, first, o, last),
        }
        Ok(())
    }

    fn gpu(&self, l: &mut Lowering) -> Result<(), Unsupported> {
        let s = self.shape(&l.input(0).shape, &l.input(1).shape, &l.input(2).shape);
        match self.chunk {
            0 => gpu::recurrent(l, &s, self.initial),
            chunk => gpu::chunked(l, &s, chunk, self.initial),
        }
    }
}

impl Op for Gla {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, String> {
        let [q, k, v, a, rest @ ..] = inputs else { return Err("q, k, v and the log gates a are needed".into()) };
        if let Some(t) = inputs.iter().find(|t| t.dtype != DType::F32) {
            return Err(format!("operands are f32 (states must not be rounded), one is {t}"));
        }
        if q.rank() != 4 || k.rank() != 4 || v.rank() != 4 {
            return Err(format!("q, k and v must be [batch, time, heads, width], not {q}, {k} and {v}"));
        }
        let (heads, d, e) = (q.shape[2], q.shape[3], v.shape[3]);
        if k.shape[..2] != q.shape[..2] || v.shape[..2] != q.shape[..2] || k.shape[3] != d {
            return Err(format!("q {q}, k {k} and v {v} must share batch and time, and q and k their width"));
        }
        for (name, shared) in [("key", k.shape[2]), ("value", v.shape[2])] {
            if heads == 0 || shared == 0 || !heads.is_multiple_of(shared) {
                return Err(format!("{heads} query heads are not a multiple of {shared} {name} heads"));
            }
        }
        if d == 0 || e == 0 {
            return Err("heads must be at least one element wide".into());
        }
        let mut gates = q.shape[..3].to_vec();
        gates.extend(self.channel_gates.then_some(d));
        if a.shape != gates {
            return Err(format!("the log gates must be f32{gates:?}, not {a}"));
        }
        let state = TensorType::f32(&[q.shape[0], heads, d, e]);
        if rest.len() != usize::from(self.initial) || rest.first().is_some_and(|first| *first != state) {
            return Err(format!("the first state must be one {state}"));
        }
        Ok(vec![TensorType::f32(&[q.shape[0], q.shape[1], heads, e]), state])
    }

    fn gradient(&self, cx: &mut Gradient) -> Result<Vec<Option<Value>>> {
        let inputs = gradient_inputs(cx);
        Ok(cx.graph.apply(GlaGrad(self.clone()), &inputs)?.into_iter().map(Some).collect())
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        cost(self.flops(&self.shape(&inputs[0].shape, &inputs[1].shape, &inputs[2].shape), false), inputs, outputs)
    }
}

/// Operands of the gradient.
fn gradient_inputs(cx: &mut Gradient) -> Vec<Value> {
    let mut inputs = cx.inputs[..4].to_vec();
    inputs.extend([cx.grad(0), cx.grad(1)]);
    inputs.extend(cx.inputs.get(4));
    inputs
}

impl Recurrence for Gla {
    fn gradient_on_cpu(&self, cx: &mut Gradient, naive: bool) -> Result<Vec<Option<Value>>> {
        let inputs = gradient_inputs(cx);
        Ok(cx.graph.apply(OnCpu { op: GlaGrad(self.clone()), naive }, &inputs)?.into_iter().map(Some).collect())
    }
}

impl Recurrence for GlaGrad {
    fn gradient_on_cpu(&self, cx: &mut Gradient, _: bool) -> Result<Vec<Option<Value>>> {
        self.gradient(cx)
    }
}

fn cost(flops: f64, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
    let sum = |ts: &[TensorType]| ts.iter().map(|t| t.bytes() as f64).sum::<f64>();
    Cost { flops, bytes_read: sum(inputs), bytes_written: sum(outputs) }
}

impl Kernel for GlaGrad {
    fn name(&self) -> &'static str {
        self.0.op("gla_head_grad", "gla_channel_grad")
    }

    fn form(&self) -> Option<&'static str> {
        Some(form::name(self.0.chunk_back()))
    }

    fn reference(&self, inputs: &[&RefTensor], outputs: &[TensorType]) -> Vec<RefTensor> {
        let [q, k, v, a, d_o, d_last] = std::array::from_fn(|i| &inputs[i].data);
        let s = self.0.shape(&inputs[0].shape, &inputs[1].shape, &inputs[2].shape);
        let (d, e) = (s.key_dim, s.value_dim);
        let mut out: Vec<RefTensor> = outputs.iter().map(|t| RefTensor::zeros(&t.shape)).collect();
        each_head(&s, |w| {
            let mut states = vec![match inputs.get(6) {
                Some(first) => first.data[w.state()].to_vec(),
                None => vec![0.0; s.state()],
            }];
            for t in 0..s.time {
                let next =
                    |at: usize| a[w.a(t, at / e)].exp() * states[t][at] + k[w.k(t) + at / e] * v[w.v(t) + at % e];
                let next = (0..d * e).map(next).collect();
                states.push(next);
            }
            // The gradient of the state, from the end: first of S_t, then of S_{t-1}.
            let mut wanted = d_last[w.state()].to_vec();
            for t in (0..s.time).rev() {
                for (at, wanted) in wanted.iter_mut().enumerate() {
                    let (c, x) = (at / e, at % e);
                    out[0].data[w.q(t) + c] += d_o[w.o(t) + x] * states[t + 1][at];
                    *wanted += q[w.q(t) + c] * d_o[w.o(t) + x];
                    out[1].data[w.k(t) + c] += v[w.v(t) + x] * *wanted;
                    out[2].data[w.v(t) + x] += k[w.k(t) + c] * *wanted;
                    *wanted *= a[w.a(t, c)].exp();
                    out[3].data[w.a(t, c)] += *wanted * states[t][at];
                }
            }
            if let Some(d_first) = out.get_mut(4) {
                d_first.data[w.state()].copy_from_slice(&wanted);
            }
        });
        out
    }

    fn cpu(&self, call: &mut CpuCall) -> Result<()> {
        let s = self.0.shape(&call.input(0).shape, &call.input(1).shape, &call.input(2).shape);
        let [q, k, v, a, d_o, d_last] = std::array::from_fn(|i| call.f32(i));
        let first = self.0.initial.then(|| call.f32(6));
        let d_first = if self.0.initial { Some(call.out_f32(4)) } else { None };
        let (dq, dk, dv, da) = (call.out_f32(0), call.out_f32(1), call.out_f32(2), call.out_f32(3));
        gla_backward(&s, self.0.chunk_back(), q, k, v, a, first, d_o, Some(d_last), dq, dk, dv, da, d_first);
        Ok(())
    }

    fn gpu(&self, l: &mut Lowering) -> Result<(), Unsupported> {
        let s = self.0.shape(&l.input(0).shape, &l.input(1).shape, &l.input(2).shape);
        gpu::backward(l, &s, self.0.chunk_back(), self.0.initial)
    }
}

impl Op for GlaGrad {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, String> {
        let [q, k, v, a, d_o, d_last, rest @ ..] = inputs else {
            return Err("q, k, v, a and the gradients of o and of the last state are needed".into());
        };
        let mut forward = vec![q.clone(), k.clone(), v.clone(), a.clone()];
        forward.extend(rest.iter().cloned());
        let outputs = self.0.infer(&forward)?;
        if *d_o != outputs[0] || *d_last != outputs[1] {
            return Err(format!("the gradients of o and of the last state must be {} and {}", outputs[0], outputs[1]));
        }
        Ok(forward)
    }

    fn gradient(&self, _: &mut Gradient) -> Result<Vec<Option<Value>>> {
        Err(Error::Graph(format!("the second derivative of {} is not implemented", self.0.name())))
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        cost(self.0.flops(&self.0.shape(&inputs[0].shape, &inputs[1].shape, &inputs[2].shape), true), inputs, outputs)
    }
}

impl Graph {
    /// Gated linear attention with log gates `a` [B, T, H] (see `log_sigmoid`) for q [B, T, H, D], already scaled, k [B, T, Hk,
    /// D] and v [B, T, Hv, E], from the state `first` [B, H, D, E] or zero: o [B, T, H, E] and the last state, which continues
    /// the sequence as another's `first`; cut after a multiple of 128 steps, the parts give the bits of the whole.
    pub fn gla_head(&mut self, q: Value, k: Value, v: Value, a: Value, first: Option<Value>) -> Result<(Value, Value)> {
        self.gla(Form::Auto, false, [q, k, v, a], first)
    }

    /// As `gla_head`, with a log gate for every key channel: `a` [B, T, H, D].
    pub fn gla_channel(
        &mut self,
        q: Value,
        k: Value,
        v: Value,
        a: Value,
        first: Option<Value>,
    ) -> Result<(Value, Value)> {
        self.gla(Form::Auto, true, [q, k, v, a], first)
    }

    /// As `gla_channel` or, with a gate a head, `gla_head`, of q, k, v and a, in this form.
    pub fn gla(
        &mut self,
        form: Form,
        channel_gates: bool,
        operands: [Value; 4],
        first: Option<Value>,
    ) -> Result<(Value, Value)> {
        let time = self.shape(operands[0]).get(1).copied().unwrap_or(0);
        let chunk = form.chunk(time, Gla::SHORT, Gla::default_chunk(channel_gates));
        let inputs: Vec<Value> = operands.into_iter().chain(first).collect();
        let op = Gla { channel_gates, chunk, initial: first.is_some() };
        let outputs = self.apply_arc(form.placed(op), &inputs)?;
        Ok((outputs[0], outputs[1]))
    }
}

pub fn specs() -> Vec<Spec> {
    vec![
        Spec::new("gla_head", || cases(false, forward)).timed(|| timed(false, forward)),
        Spec::new("gla_head_grad", || cases(false, backward)).timed(|| timed(false, backward)),
        Spec::new("gla_channel", || cases(true, forward)).timed(|| timed(true, forward)),
        Spec::new("gla_channel_grad", || cases(true, backward)).timed(|| timed(true, backward)),
    ]
}

/// Batch, time, heads, key heads, value heads, key width, value width.
type Size = [usize; 7];

/// Training and prefill at the width of a small model, chunked beside recurrent, and one token.
fn timed(channel_gates: bool, make: fn(Gla, Size, Values) -> Case) -> Vec<Case> {
    let chunk = Gla::default_chunk(channel_gates);
    let gates = || Values::Uniform(-0.1, -1e-3);
    let with = |time: usize, chunk: usize| {
        make(Gla { channel_gates, chunk, initial: true }, [1, time, 6, 6, 2, 64, 64], gates())
    };
    let mut cases: Vec<Case> =
        [256, 1024, 4096, 16_384].into_iter().flat_map(|t| [with(t, chunk), with(t, 0)]).collect();
    cases.push(with(1, 0));
    cases.push(make(Gla { channel_gates, chunk, initial: false }, [8, 1024, 6, 6, 6, 64, 64], gates()));
    cases
}

fn forward(op: Gla, size: Size, gates: Values) -> Case {
    let (label, inputs) = operands(&op, size, gates);
    Case::new(label, op, inputs).cotangents(&[0, 1])
}

fn backward(op: Gla, size: Size, gates: Values) -> Case {
    let (label, mut inputs) = operands(&op, size, gates);
    let [b, t, h, _, _, d, e] = size;
    inputs.splice(4..4, [Sample::normal(&[b, t, h, e]), Sample::normal(&[b, h, d, e])]);
    Case::new(label, GlaGrad(op), inputs).forward_only()
}

fn operands(op: &Gla, [b, t, h, hk, hv, d, e]: Size, gates: Values) -> (String, Vec<Sample>) {
    let form = if op.chunk == 0 { "recurrent".into() } else { format!("chunks of {}", op.chunk) };
    let label = format!("{b} x {t}, heads {h}/{hk}/{hv}, {d} x {e}, {form}, {gates:?}");
    let gate_shape = if op.channel_gates { vec![b, t, h, d] } else { vec![b, t, h] };
    let gates = match gates {
        // Every fifth gate shut, the rest open.
        Values::Fixed(_) => {
            let n = gate_shape.iter().product();
            Values::Fixed((0..n).map(|i| if i % 5 == 3 { -200.0 } else { -0.01 }).collect())
        }
        other => other,
    };
    let normal = |shape: &[usize]| Sample::new(shape, Values::Normal(0.5));
    let mut inputs = vec![normal(&[b, t, h, d]), normal(&[b, t, hk, d]), normal(&[b, t, hv, e])];
    inputs.push(Sample::new(&gate_shape, gates));
    if op.initial {
        inputs.push(normal(&[b, h, d, e]));
    }
    (label, inputs)
}

fn cases(channel_gates: bool, make: fn(Gla, Size, Values) -> Case) -> Vec<Case> {
    let open = || Values::Uniform(-0.7, -1e-3);
    let resets = || Values::Fixed(vec![]);
    let op = |chunk, initial| Gla { channel_gates, chunk, initial };
    let mut cases = vec![
        make(op(0, false), [1, 1, 1, 1, 1, 1, 1], open()),
        make(op(16, true), [1, 1, 1, 1, 1, 1, 1], open()),
        make(op(0, true), [2, 1, 6, 2, 2, 16, 16], open()),
        make(op(0, true), [2, 9, 2, 1, 2, 5, 3], resets()),
        make(op(4, true), [2, 9, 2, 1, 2, 5, 3], resets()),
        make(op(64, true), [1, 2, 4, 4, 2, 16, 8], open()),
        make(op(1, false), [1, 3, 2, 2, 2, 4, 4], open()),
        make(op(16, true), [1, 63, 6, 6, 2, 16, 16], open()),
        make(op(64, false), [1, 64, 2, 1, 1, 7, 9], resets()),
        make(op(32, true), [2, 65, 2, 2, 1, 8, 6], resets()),
        make(op(64, true), [1, 129, 2, 1, 1, 32, 16], open()),
        make(op(16, true), [1, 129, 2, 2, 2, 6, 10], resets()),
        make(op(0, true), [1, 129, 2, 2, 2, 6, 10], open()),
        make(op(16, true), [2, 0, 2, 1, 1, 3, 2], open()),
        make(op(0, true), [2, 0, 2, 1, 1, 3, 2], open()),
        make(op(8, true), [0, 5, 2, 1, 1, 3, 2], open()),
    ];
    // Above 1 MiB in all, and a long row.
    let split = make(op(16, true), [9, 500, 2, 1, 1, 16, 16], open());
    cases.push(Case { inputs: split.inputs.into_iter().map(Sample::fixed).collect(), ..split });
    cases
}
