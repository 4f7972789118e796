//! The elementwise gated scan h_t = g_t h_{t-1} + u_t, in its three forms: *naive* is the reference executor's
//! definition; *recurrent* walks time with a constant state; *chunked* runs chunks in parallel and passes states
//! between them (Blelloch 1990; Martin and Cundy 2018). A gate may be given as its logarithm a; the update is then
//! h += expm1(a) h + u, which keeps what g = e^a loses in rounding when gates are near one.

#[cfg(test)]
mod tests;

use super::form::{self, Form, OnCpu, Recurrence};
use super::sequence::{Piece, Sequence};
use super::{Case, Graph, Op, Sample, Spec, Values};
use crate::Result;
use crate::device::gpu::{Buf, Lowering, Params};
use crate::device::{Cost, CpuCall, Kernel, Unsupported};
use crate::graph::{Gradient, Value};
use crate::tensor::{DType, RefTensor, TensorType};
pub use kernels_cpu::scan::Gate;
use kernels_cpu::scan::{ScanShape, gated_scan_chunked, gated_scan_chunked_backward};
use minijinja::context;
use std::sync::Arc;

/// Inputs g, u [B, T, C] and, when `initial`, h0 [B, C]; outputs h [B, T, C] and the last state [B, C].
#[derive(Clone, Debug)]
pub struct GatedScan {
    /// Time steps of a chunk; 0: the recurrent form.
    pub chunk: usize,
    pub initial: bool,
    /// What operand 0 is.
    pub gate: Gate,
}

/// Inputs g, h, dh and, when `initial`, h0; outputs dg, du and, when `initial`, dh0.
#[derive(Clone, Debug)]
pub struct GatedScanGrad {
    pub chunk: usize,
    pub initial: bool,
    /// What operand 0 is.
    pub gate: Gate,
}

/// Chunks this long keep the walk short and the carried states few.
const DEFAULT_CHUNK: usize = 64;

/// Sizes for `kernels_cpu`, and the chunk there: all of time in the recurrent form.
fn sizes(shape: &[usize], chunk: usize) -> (ScanShape, usize) {
    let s = ScanShape { batch: shape[0], time: shape[1], channels: shape[2] };
    (s, if chunk == 0 { s.time.max(1) } else { chunk })
}

fn check(op: &str, inputs: &[TensorType], full: usize, initial: bool) -> Result<(), String> {
    let count = full + usize::from(initial);
    if inputs.len() != count {
        return Err(format!("{op} takes {count} operands, not {}", inputs.len()));
    }
    let x = &inputs[0];
    if x.rank() != 3 || x.dtype != DType::F32 || inputs[1..full].iter().any(|t| t != x) {
        return Err(format!("{op} takes {full} f32 tensors of one shape [batch, time, channels]"));
    }
    if initial && inputs[full] != TensorType::f32(&[x.shape[0], x.shape[2]]) {
        return Err(format!("the initial state must be f32[{}, {}]", x.shape[0], x.shape[2]));
    }
    Ok(())
}

impl Kernel for GatedScan {
    fn name(&self) -> &'static str {
        "gated_scan"
    }

    fn form(&self) -> Option<&'static str> {
        Some(form::name(self.chunk))
    }

    fn reference(&self, inputs: &[&RefTensor], outputs: &[TensorType]) -> Vec<RefTensor> {
        let s = Sequence::new(&inputs[0].shape);
        let [mut h, mut last] = std::array::from_fn(|o| RefTensor::zeros(&outputs[o].shape));
        for b in 0..s.batch {
            for c in 0..s.channels {
                let mut state = if self.initial { inputs[2].data[b * s.channels + c] } else { 0.0 };
                for t in 0..s.time {
                    let at = (b * s.time + t) * s.channels + c;
                    state = factor(self.gate, inputs[0].data[at]) * state + inputs[1].data[at];
                    h.data[at] = state;
                }
                last.data[b * s.channels + c] = state;
            }
        }
        vec![h, last]
    }

    fn cpu(&self, call: &mut CpuCall) -> Result<()> {
        let (s, chunk) = sizes(&call.input(0).shape, self.chunk);
        let h0 = self.initial.then(|| call.f32(2));
        let (h, last) = (call.out_f32(0), Some(call.out_f32(1)));
        gated_scan_chunked(s, self.gate, chunk, call.f32(0), call.f32(1), h0, h, last);
        Ok(())
    }

    fn gpu(&self, l: &mut Lowering) -> Result<(), Unsupported> {
        lower(l, self.chunk, self.initial, self.gate, false)
    }
}

/// Both directions: `reverse` walks from the end with dh in place of u.
fn lower(l: &mut Lowering, chunk: usize, initial: bool, gate: Gate, reverse: bool) -> Result<(), Unsupported> {
    let whole = Sequence::new(&l.input(0).shape);
    let mut pieces = whole.pieces(l, if reverse { 5 } else { 3 }, 2.0, Some(0))?;
    let kept = pieces.iter().any(|p| p.times.len() < whole.time);
    if reverse {
        pieces.reverse();
    }
    let state = kept.then(|| l.scratch((whole.channels * 4) as u64));
    let cuts = |p: &Piece| if chunk == 0 { 1 } else { p.times.len().div_ceil(chunk).max(1) };
    let states = pieces.iter().map(|p| p.rows.len() * cuts(p)).max().unwrap_or(0) * whole.channels;
    let chunked = pieces.iter().any(|p| cuts(p) > 1);
    let memory = if chunked { Some([(); 3].map(|()| l.scratch((states * 4) as u64))) } else { None };
    for piece in &pieces {
        let memory = memory.filter(|_| cuts(piece) > 1);
        scan_piece(l, &whole, piece, Walk { chunk, initial, gate, reverse, state, memory })?;
    }
    Ok(())
}

struct Walk {
    chunk: usize,
    initial: bool,
    gate: Gate,
    reverse: bool,
    /// Hands the state from one piece of a row's time to the next.
    state: Option<Buf>,
    /// Ends, products and starts of the chunks; None: the recurrent form.
    memory: Option<[Buf; 3]>,
}

fn scan_piece(l: &mut Lowering, whole: &Sequence, piece: &Piece, walk: Walk) -> Result<(), Unsupported> {
    let Walk { chunk, initial, gate, reverse, state, memory } = walk;
    let Piece { rows, times } = piece;
    let (g, first) = whole.window(l, Buf::In(0), piece, false);
    let source = whole.window(l, Buf::In(if reverse { 2 } else { 1 }), piece, false).0;
    // States before each step: a window one step earlier, when there is an earlier step.
    let early = usize::from(times.start > 0);
    let before = Piece { rows: rows.clone(), times: times.start - early..times.end - early };
    let (past, past_ahead) = whole.window(l, Buf::In(1), &before, false);
    let chunk = if memory.is_some() { chunk } else { times.len() };
    let chunks = times.len().div_ceil(chunk.max(1)).max(1);
    let width = rows.len() * whole.channels;
    l.loops(chunk.max(chunks))?;
    let resumed = if reverse { times.end < whole.time } else { times.start > 0 };
    let params = Params::new().u32(rows.len()).u32(times.len()).u32(whole.channels).u32(chunk).u32(chunks);
    let params = params.u32(first).u32(past_ahead + early * whole.channels).u32(rows.start * whole.channels);
    let [from_zero, to_end] = [times.start == 0, times.end == whole.time].map(usize::from);
    let params = params.u32(from_zero).u32(to_end).u32(usize::from(resumed));

    let shader = crate::shader!("scan.wgsl");
    let (kept, log) = (state.is_some(), gate == Gate::Log);
    let variant = |phase: &str, chunked: bool| context! { phase, reverse, initial, log, kept, chunked };
    let mut edges = vec![];
    if initial {
        edges.push(if reverse { ("dh0", l.write(Buf::Out(2))) } else { ("h0", l.read(Buf::In(2))) });
    }
    if !reverse {
        edges.push(("last", l.write(Buf::Out(1))));
    }
    if let Some(state) = state {
        edges.push(("kept", l.write(state)));
    }
    let input = if reverse { "dh" } else { "u" };
    let mut binds = vec![("g", g), (input, source)];
    if reverse {
        binds.push(("past", past));
        let output = |o, name| (name, whole.window(l, Buf::Out(o), piece, true).0);
        binds.extend([output(0, "dg"), output(1, "du")]);
        if initial {
            binds.push(("h0", l.read(Buf::In(3))));
        }
    } else {
        binds.push(("h", whole.window(l, Buf::Out(0), piece, true).0));
    }
    let groups = l.line((width * chunks).div_ceil(64));
    match memory {
        None => {
            binds.extend(edges);
            l.dispatch_named("scan/recurrent", shader, variant("apply", false), &binds, params, groups)
        }
        Some([ends, products, starts]) => {
            let walk = [("g", g), (input, source), ("ends", l.write(ends)), ("products", l.write(products))];
            l.dispatch_named("scan/ends", shader, variant("ends", true), &walk, params.clone(), groups)?;
            let mut carry = vec![("ends", l.read(ends)), ("products", l.read(products)), ("starts", l.write(starts))];
            carry.extend(edges);
            let lines = l.line(width.div_ceil(64));
            l.dispatch_named("scan/carry", shader, variant("carry", true), &carry, params.clone(), lines)?;
            binds.push(("starts", l.read(starts)));
            l.dispatch_named("scan/chunked", shader, variant("apply", true), &binds, params, groups)
        }
    }
}

impl Op for GatedScan {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, String> {
        check("gated_scan", inputs, 2, self.initial)?;
        let x = &inputs[0];
        Ok(vec![x.clone(), TensorType::f32(&[x.shape[0], x.shape[2]])])
    }

    fn gradient(&self, cx: &mut Gradient) -> Result<Vec<Option<Value>>> {
        self.gradient_by(cx, |op| Arc::new(op))
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        let n = outputs[0].elements() as f64;
        let sum = |ts: &[TensorType]| ts.iter().map(|t| t.bytes() as f64).sum::<f64>();
        Cost { flops: 2.0 * n, bytes_read: sum(inputs), bytes_written: sum(outputs) }
    }
}

impl Recurrence for GatedScan {
    fn gradient_on_cpu(&self, cx: &mut Gradient, naive: bool) -> Result<Vec<Option<Value>>> {
        self.gradient_by(cx, |op| Arc::new(OnCpu { op, naive }))
    }
}

impl Recurrence for GatedScanGrad {
    fn gradient_on_cpu(&self, cx: &mut Gradient, _: bool) -> Result<Vec<Option<Value>>> {
        self.gradient(cx)
    }
}

impl GatedScan {
    /// The gradient by the operator that `form` makes of the default one.
    fn gradient_by(
        &self,
        cx: &mut Gradient,
        form: impl Fn(GatedScanGrad) -> Arc<dyn Op>,
    ) -> Result<Vec<Option<Value>>> {
        let h = cx.outputs[0];
        let dh = self.states_gradient(cx)?;
        let mut inputs = vec![cx.inputs[0], h, dh];
        inputs.extend(cx.inputs.get(2));
        let op = form(GatedScanGrad { chunk: self.chunk, initial: self.initial, gate: self.gate });
        let mut grads: Vec<_> = cx.graph.apply_arc(op, &inputs)?.into_iter().map(Some).collect();
        if self.initial && cx.has_grad(1) && cx.graph.shape(h)[1] == 0 {
            // Without a step the last state is the first.
            grads[2] = Some(cx.grad(1));
        }
        Ok(grads)
    }

    /// The gradient of all states: that of the last one reaches it twice, as a state and as the last.
    fn states_gradient(&self, cx: &mut Gradient) -> Result<Value> {
        let shape = cx.graph.shape(cx.outputs[0]).to_vec();
        if !cx.has_grad(1) || shape[1] == 0 {
            return Ok(cx.grad(0));
        }
        let last = cx.grad(1);
        let last = cx.graph.reshape(last, &[shape[0], 1, shape[2]])?;
        let last = cx.graph.pad(last, 1, shape[1] - 1, 0, 0.0)?;
        if !cx.has_grad(0) {
            return Ok(last);
        }
        let all = cx.grad(0);
        cx.graph.add(all, last)
    }
}

/// The gate that operand `g` stands for.
fn factor(gate: Gate, g: f64) -> f64 {
    match gate {
        Gate::Factor => g,
        Gate::Log => g.exp(),
    }
}

impl Kernel for GatedScanGrad {
    fn name(&self) -> &'static str {
        "gated_scan_grad"
    }

    fn form(&self) -> Option<&'static str> {
        Some(form::name(self.chunk))
    }

    fn reference(&self, inputs: &[&RefTensor], outputs: &[TensorType]) -> Vec<RefTensor> {
        let s = Sequence::new(&inputs[0].shape);
        let (g, h, dh) = (inputs[0], inputs[1], inputs[2]);
        let mut out: Vec<RefTensor> = outputs.iter().map(|t| RefTensor::zeros(&t.shape)).collect();
        for b in 0..s.batch {
            for c in 0..s.channels {
                // dL/dh_t, collected from the end.
                let mut adjoint = 0.0;
                for t in (0..s.time).rev() {
                    let at = (b * s.time + t) * s.channels + c;
                    adjoint += dh.data[at];
                    let before = match t {
                        0 if self.initial => inputs[3].data[b * s.channels + c],
                        0 => 0.0,
                        _ => h.data[at - s.channels],
                    };
                    out[1].data[at] = adjoint;
                    out[0].data[at] = match self.gate {
                        Gate::Factor => adjoint * before,
                        Gate::Log => adjoint * before * g.data[at].exp(),
                    };
                    adjoint *= factor(self.gate, g.data[at]);
                }
                if self.initial {
                    out[2].data[b * s.channels + c] = adjoint;
                }
            }
        }
        out
    }

    fn cpu(&self, call: &mut CpuCall) -> Result<()> {
        let (s, chunk) = sizes(&call.input(0).shape, self.chunk);
        let h0 = self.initial.then(|| call.f32(3));
        let dh0 = if self.initial { Some(call.out_f32(2)) } else { None };
        let (g, h, dh) = (call.f32(0), call.f32(1), call.f32(2));
        gated_scan_chunked_backward(s, self.gate, chunk, g, h, h0, dh, call.out_f32(0), call.out_f32(1), dh0);
        Ok(())
    }

    fn gpu(&self, l: &mut Lowering) -> Result<(), Unsupported> {
        lower(l, self.chunk, self.initial, self.gate, true)
    }
}

impl Op for GatedScanGrad {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, String> {
        check("gated_scan_grad", inputs, 3, self.initial)?;
        let x = inputs[0].clone();
        Ok(if self.initial { vec![x.clone(), x, inputs[3].clone()] } else { vec![x.clone(), x] })
    }
    fn gradient(&self, _: &mut Gradient) -> Result<Vec<Option<Value>>> {
        Err(crate::Error::Graph("the second derivative of gated_scan is not implemented".into()))
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        let sum = |ts: &[TensorType]| ts.iter().map(|t| t.bytes() as f64).sum::<f64>();
        Cost { flops: 3.0 * inputs[0].elements() as f64, bytes_read: sum(inputs), bytes_written: sum(outputs) }
    }
}

impl Graph {
    /// h_t = g_t h_{t-1} + u_t for g, u [B, T, C], from `h0` [B, C] or zero. Short sequences walk, long ones run in
    /// chunks.
    pub fn gated_scan(&mut self, g: Value, u: Value, h0: Option<Value>) -> Result<Value> {
        Ok(self.scan_with(Form::Auto, Gate::Factor, g, u, h0)?.0)
    }

    /// h_t = e^a_t h_{t-1} + u_t for log gates a (see `log_sigmoid`) and u [B, T, C], from `h0` [B, C] or zero: all states
    /// and the last one [B, C], which continues the scan as another's `h0`; cut after a multiple of 128 steps, the parts
    /// give the bits of the whole.
    pub fn scan(&mut self, a: Value, u: Value, h0: Option<Value>) -> Result<(Value, Value)> {
        self.scan_as(Form::Auto, a, u, h0)
    }

    /// As `scan`, in this form.
    pub fn scan_as(&mut self, form: Form, a: Value, u: Value, h0: Option<Value>) -> Result<(Value, Value)> {
        self.scan_with(form, Gate::Log, a, u, h0)
    }

    fn scan_with(&mut self, form: Form, gate: Gate, g: Value, u: Value, h0: Option<Value>) -> Result<(Value, Value)> {
        let time = self.shape(g).get(1).copied().unwrap_or(0);
        let chunk = form.chunk(time, DEFAULT_CHUNK + 1, DEFAULT_CHUNK);
        let inputs: Vec<Value> = [g, u].into_iter().chain(h0).collect();
        let op = GatedScan { chunk, initial: h0.is_some(), gate };
        let outputs = self.apply_arc(form.placed(op), &inputs)?;
        Ok((outputs[0], outputs[1]))
    }

    /// log sigmoid(z) = -ln(1 + e^-z), with every digit for gates near one and without overflow; its gradient is
    /// sigmoid(-z).
    pub fn log_sigmoid(&mut self, z: Value) -> Result<Value> {
        let negated = self.neg(z)?;
        let softplus = self.softplus(negated)?;
        self.neg(softplus)
    }
}

pub fn specs() -> Vec<Spec> {
    vec![
        Spec::new("gated_scan", forward_cases).timed(|| timed(forward_case)),
        Spec::new("gated_scan_grad", gradient_cases).timed(|| timed(gradient_case)),
    ]
}

/// Training in chunks, in cache and out of it; the recurrent form; one token.
fn timed(case: impl Fn(&[usize; 3], usize, bool, Gate) -> Case) -> Vec<Case> {
    let sizes = [([8, 256, 384], 64), ([8, 2048, 1024], 64), ([8, 256, 384], 0), ([1, 1, 1024], 0)];
    let gates = [Gate::Factor, Gate::Log];
    sizes.iter().flat_map(|(shape, chunk)| gates.map(|gate| case(shape, *chunk, true, gate))).collect()
}

const SHAPES: &[([usize; 3], usize)] = &[
    ([1, 1, 1], 0),
    ([2, 7, 3], 0),
    ([2, 7, 3], 2),
    ([1, 64, 5], 64),
    ([1, 65, 5], 64),
    ([3, 130, 17], 32),
    ([2, 257, 64], 64),
    ([1, 5, 600], 3),
    ([0, 3, 2], 0),
    ([2, 0, 3], 0),
    ([2, 0, 3], 4),
];

/// Above 1 MiB: several rows of an odd size, so that pieces start anywhere, and rows that must be cut in time.
const LARGE: &[([usize; 3], usize)] = &[([5, 613, 101], 64), ([2, 1409, 193], 0), ([2, 1409, 193], 100)];

fn operands(shape: &[usize; 3], full: usize, initial: bool, gate: Gate) -> Vec<Sample> {
    // Gates inside (0, 1), as in every use: products of larger ones overflow.
    let gates = match gate {
        Gate::Factor => Values::Uniform(0.05, 0.999),
        Gate::Log => Values::Uniform(-3.0, -1e-4),
    };
    let mut inputs = vec![Sample::new(shape, gates)];
    (1..full).for_each(|_| inputs.push(Sample::normal(shape)));
    if initial {
        inputs.push(Sample::normal(&[shape[0], shape[2]]));
    }
    inputs
}

fn each(make: impl Fn(&[usize; 3], usize, bool, Gate) -> Case) -> Vec<Case> {
    let kinds = [(false, Gate::Factor), (true, Gate::Factor), (false, Gate::Log), (true, Gate::Log)];
    let all = |(shape, chunk): &([usize; 3], usize)| kinds.map(|(initial, gate)| make(shape, *chunk, initial, gate));
    SHAPES.iter().flat_map(all).collect()
}

fn label(shape: &[usize; 3], chunk: usize, initial: bool, gate: Gate) -> String {
    let form = if chunk == 0 { "recurrent".into() } else { format!("chunks of {chunk}") };
    let log = if gate == Gate::Log { " log gates" } else { "" };
    format!("{shape:?} {form}{log}{}", if initial { " from h0" } else { "" })
}

fn forward_case(shape: &[usize; 3], chunk: usize, initial: bool, gate: Gate) -> Case {
    let op = GatedScan { chunk, initial, gate };
    Case::new(label(shape, chunk, initial, gate), op, operands(shape, 2, initial, gate)).cotangents(&[0, 1])
}

fn forward_cases() -> Vec<Case> {
    let mut cases = each(forward_case);
    cases.extend(LARGE.iter().map(|(shape, chunk)| forward_case(shape, *chunk, true, Gate::Log)));
    cases.push(forward_case(&LARGE[2].0, LARGE[2].1, true, Gate::Factor));
    cases
}

fn gradient_case(shape: &[usize; 3], chunk: usize, initial: bool, gate: Gate) -> Case {
    let op = GatedScanGrad { chunk, initial, gate };
    Case::new(label(shape, chunk, initial, gate), op, operands(shape, 3, initial, gate)).forward_only()
}

fn gradient_cases() -> Vec<Case> {
    each(gradient_case)
}
